"""Intake: the spans of requests become calls in the journal of this process, each once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import msgspec

from voight_middleware.context.context import NOBODY, TagContext
from voight_middleware.otlp.counts import Reported
from voight_middleware.otlp.framing import Unusable
from voight_middleware.otlp.mapping import Reading, read
from voight_middleware.otlp.recent import GATE, CountedCall, SpanDeduplicator, models
from voight_middleware.otlp.spans import Span
from voight_middleware.otlp.wire import Decoded, Found
from voight_middleware.pipeline.meter import Meter
from voight_middleware.records.tags import Owner

_AT_ONCE = 5000
"""How many spans are held at a time, to know those around and inside before one is decided."""
MAX_SECONDS = 20.0
"""How much CPU time the spans of one request may cost: more than ``MAX_SPANS`` ordinary ones need."""
_OLDEST = 1_262_304_000_000_000_000
"""2010: a span from before that has a clock that was never set."""
_AHEAD = 86_400_000_000_000
"""How far a clock may be ahead, in nanoseconds: a day. A call of the future would be in no report, and priced by no list."""


class NotWritten(Exception):
    """The journal cannot be written: whoever has sent the spans keeps them."""


class Taken(msgspec.Struct):
    """What became of the spans of one request."""

    calls: int = 0
    """Written."""
    repeated: int = 0
    """Calls that are known: sent before, or told by another span."""
    others: int = 0
    """Spans that are no call."""
    rejected: int = 0
    why: Counter[str] = msgspec.field(default_factory=Counter)


class Intake:
    """Used from one thread."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._recent = SpanDeduplicator()
        self.totals = Taken()

    def slices(self, decoded: Decoded, taken: Taken) -> Iterator[None]:
        """
        Write the calls of a request's spans, some thousand spans at each step, and add to *taken* what became of them.

        Raises:
            NotWritten: Not all of them could be written. Those that were are known when they are sent again.
        """
        seen, spent = 0, 0.0
        if not self._meter.journal.retry():
            raise NotWritten
        begun = time.thread_time()
        while some := list(islice(decoded.spans, _AT_ONCE)):
            self._take(some, taken)
            seen += len(some)
            spent += time.thread_time() - begun
            if spent > MAX_SECONDS and seen < decoded.count:
                taken.rejected += decoded.count - seen
                taken.why[f"a span beyond {MAX_SECONDS:.0f} seconds of work for one request: send fewer at once"] += decoded.count - seen
                break
            yield
            begun = time.thread_time()
        for name in ("calls", "repeated", "others", "rejected"):
            setattr(self.totals, name, getattr(self.totals, name) + getattr(taken, name))

    def _take(self, spans: list[Found], taken: Taken) -> None:
        readings = list(self._readings(spans, taken))
        for span, reading in readings:
            self._recent.heard(span.key, span.parent, reading.role)
        readings.sort(key=_innermost_first)
        for span, reading in readings:
            if reading.call is None:
                taken.others += 1
                continue
            counted = as_counted(span, reading)
            if self._recent.is_resent(span.key):
                taken.repeated += 1
                continue
            if (same := self._recent.same_as(span.key, counted)) is not None:
                taken.repeated += 1
                self._settle(same, reading)
                continue
            if reading.role == "ours":
                self._recent.count(span.key, counted)  # for the spans around it, which may not say so
                taken.repeated += 1
                continue
            if self._write(reading):
                self._recent.count(span.key, counted)
                taken.calls += 1
            else:
                taken.rejected += 1
                taken.why["a span that could not be kept"] += 1

    def _readings(self, spans: list[Found], taken: Taken) -> Iterator[tuple[Span, Reading]]:
        latest = time.time_ns() + _AHEAD
        for span in spans:
            if isinstance(span, Unusable):
                taken.rejected += 1
                taken.why[str(span)] += 1
            elif not _OLDEST <= span.started <= latest:
                taken.rejected += 1
                taken.why["a span from before 2010, or from more than a day ahead"] += 1
            else:
                yield span, read(span)

    def _settle(self, same: CountedCall, reading: Reading) -> None:
        """Of two spans of one call, the one that was counted need not be the one that says whose it is."""
        if (owner := owner_for(same, reading)) is not None and same.call_id is not None and self._meter.settings.enabled:
            self._meter.attribute_late([same.call_id], owner)
            if self._meter.journal.waiting:
                raise NotWritten

    def _write(self, reading: Reading) -> bool:
        """Whether the call is in the journal; False for one that nobody can write, however often it is sent."""
        assert reading.call is not None
        owner, meter = reading.owner or NOBODY, self._meter
        if not meter.settings.enabled:
            return True
        before = meter.journal.written
        meter.finish(reading.call, TagContext(None, owner.tags), owner, observed=())
        if meter.journal.waiting:
            raise NotWritten
        return meter.journal.written > before


def _innermost_first(one: tuple[Span, Reading]) -> tuple[int, int]:
    """What is inside ends before what is around it, or with it, having begun later."""
    return one[0].ended, -one[0].started


def owner_for(same: CountedCall, reading: Reading) -> Owner | None:
    """The owner that a span names for a call which was counted without one, by another span."""
    if same.user is not None or same.scope == GATE or same.ours or reading.owner is None or reading.owner.tags.user_id is None:
        return None
    same.user = reading.owner.tags.user_id
    return reading.owner


def as_counted(span: Span, reading: Reading) -> CountedCall:
    """What is remembered of a span that is a call."""
    call, usage = reading.call, reading.usage
    assert call is not None
    return CountedCall(
        scope=span.scope,
        started=span.started,
        ended=span.ended,
        models=models(call.requested_model, call.model),
        response_id=call.response_id,
        input=_tokens(usage, "input"),
        output=_tokens(usage, "output"),
        failed=span.failed,
        call_id=call.call_id,
        user=None if reading.owner is None else reading.owner.tags.user_id,
        ours=reading.role == "ours",
    )


def _tokens(usage: Reported | None, which: str) -> int | None:
    return None if usage is None else getattr(usage, which)
