"""
The intake: it writes the spans of requests as calls to the journal of this process, deduplicated.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import msgspec

from voight_middleware.context.context import NOBODY, TagContext
from voight_middleware.otlp.counts import Reported
from voight_middleware.otlp.deduplicator import (
    INSTRUMENTATION,
    CountedCall,
    SpanDeduplicator,
    models,
)
from voight_middleware.otlp.framing import Unusable
from voight_middleware.otlp.mapping import Reading, read
from voight_middleware.otlp.spans import Span
from voight_middleware.otlp.wire import Decoded, Found
from voight_middleware.pipeline.meter import Meter
from voight_middleware.records.tags import Owner

_AT_ONCE = 5000
"""How many spans are processed together, so that spans around and inside others are known first."""
MAX_SECONDS = 20.0
"""
The maximum CPU time for the spans of one request: more than ``MAX_SPANS`` ordinary spans need.
"""
_OLDEST = 1_262_304_000_000_000_000
"""2010. An earlier span comes from a clock that was never set."""
_AHEAD = 86_400_000_000_000
"""
How far a clock may be ahead, in nanoseconds: a day. No report and no price list would cover a call
of the future.
"""


class NotWritten(Exception):
    """The journal cannot be written. The sender must keep the spans."""


class Taken(msgspec.Struct):
    """The counts of a request's spans, by result."""

    calls: int = 0
    """Written."""
    repeated: int = 0
    """Calls that were counted before: from the same span, or from another one."""
    others: int = 0
    """Spans that are not calls."""
    rejected: int = 0
    why: Counter[str] = msgspec.field(default_factory=Counter)


class Intake:
    """Writes spans to the journal of one meter. Used from one thread."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._deduplicator = SpanDeduplicator()
        self.totals = Taken()

    def slices(self, decoded: Decoded, taken: Taken) -> Iterator[None]:
        """
        Write the calls of a request's spans in steps of ``_AT_ONCE`` spans. Add the counts to
        *taken*.

        Raises:
            NotWritten: Not all calls could be written. The written ones are recognized when they
                are sent again.
        """
        seen, spent = 0, 0.0
        if not self._meter.journal.retry():
            raise NotWritten
        begun = time.thread_time()
        while spans := list(islice(decoded.spans, _AT_ONCE)):
            self._take(spans, taken)
            seen += len(spans)
            spent += time.thread_time() - begun
            if spent > MAX_SECONDS and seen < decoded.count:
                taken.rejected += decoded.count - seen
                taken.why[
                    f"a span beyond {MAX_SECONDS:.0f} seconds of work for one request: send fewer "
                    "spans"
                ] += decoded.count - seen
                break
            yield
            begun = time.thread_time()
        for name in ("calls", "repeated", "others", "rejected"):
            setattr(self.totals, name, getattr(self.totals, name) + getattr(taken, name))

    def _take(self, spans: list[Found], taken: Taken) -> None:
        readings = list(self._readings(spans, taken))
        for span, reading in readings:
            self._deduplicator.add(span.key, span.parent, reading.role)
        readings.sort(key=_innermost_first)
        for span, reading in readings:
            if reading.call is None:
                taken.others += 1
                continue
            counted = as_counted(span, reading)
            if self._deduplicator.is_resent(span.key):
                taken.repeated += 1
                continue
            if (same := self._deduplicator.same_as(span.key, counted)) is not None:
                taken.repeated += 1
                self._attribute_late(same, reading)
                continue
            if reading.role == "ours":
                # for the spans around it, which may lack the mark
                self._deduplicator.count(span.key, counted)
                taken.repeated += 1
                continue
            if self._write(reading):
                self._deduplicator.count(span.key, counted)
                taken.calls += 1
            else:
                taken.rejected += 1
                taken.why["a span that could not be stored"] += 1

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

    def _attribute_late(self, same: CountedCall, reading: Reading) -> None:
        """Take the owner of a call from a second span, if the counted span named none."""
        if (
            (owner := owner_for(same, reading)) is not None
            and same.call_id is not None
            and self._meter.settings.enabled
        ):
            self._meter.attribute_late([same.call_id], owner)
            if self._meter.journal.waiting:
                raise NotWritten

    def _write(self, reading: Reading) -> bool:
        """Return whether the call is in the journal. False if it can never be written."""
        assert reading.call is not None
        owner, meter = reading.owner or NOBODY, self._meter
        if not meter.settings.enabled:
            return True
        before = meter.journal.written
        meter.finish(reading.call, TagContext(None, owner.tags), owner, observed=())
        if meter.journal.waiting:
            raise NotWritten
        return meter.journal.written > before


def _innermost_first(span_and_reading: tuple[Span, Reading]) -> tuple[int, int]:
    """Return a sort key: an inner span ends first, or at the same time after a later start."""
    span, _ = span_and_reading
    return span.ended, -span.started


def owner_for(same: CountedCall, reading: Reading) -> Owner | None:
    """Return the owner that a span names for a call that another span reported without one."""
    if same.user is not None or same.scope == INSTRUMENTATION or same.ours:
        return None
    if reading.owner is None or reading.owner.tags.user_id is None:
        return None
    same.user = reading.owner.tags.user_id
    return reading.owner


def as_counted(span: Span, reading: Reading) -> CountedCall:
    """Return the deduplicator's data of a span that is a call."""
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
