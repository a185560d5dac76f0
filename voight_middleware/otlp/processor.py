"""
CostSpanProcessor: meters, in this process, the calls that other libraries' instrumentation makes spans of.

It is for what no gate sees: frameworks with a client of their own, SDKs that were not wrapped. What the gate meters is not metered again:
a span that begins inside a metered request is that request's own; one that is current, or open at the same place, when a metered call
begins may be around it, and is compared with it when it ends (``recent``).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from contextvars import ContextVar
from typing import Any, NamedTuple

import msgspec

from voight_middleware.context.context import TagContext, current_context, overlay
from voight_middleware.diagnostics import report_internal_error
from voight_middleware.instrumentation.request import in_manual_block, request_here
from voight_middleware.otlp.intake import as_counted, owner_for
from voight_middleware.otlp.kinds import METERED, role_of
from voight_middleware.otlp.mapping import read
from voight_middleware.otlp.recent import GATE, CountedCall, SpanDeduplicator, may_be_same, models
from voight_middleware.otlp.spans import Key, Span, text, wanted
from voight_middleware.otlp.wire import FIRST_TOKEN
from voight_middleware.pipeline.meter import add_observer, current_meter, remove_observer
from voight_middleware.pipeline.observers import CallStart
from voight_middleware.providers.usage_formats import read_usage
from voight_middleware.records.call import Call
from voight_middleware.records.tags import NO_TAGS, Owner
from voight_middleware.records.usage import UsageError

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
    from opentelemetry.sdk.trace import Span as SdkSpan
    from opentelemetry.trace import StatusCode
except ImportError as error:
    raise ImportError("CostSpanProcessor needs OpenTelemetry's SDK: pip install 'voight-middleware[otel]'") from error

LIVE_SPANS = 20_000
"""How many spans may be open at once; of those beyond it, the oldest are metered without what was known when they began."""
_OPEN_SPANS = 16

_open: ContextVar[tuple[Key, ...]] = ContextVar("voight_open_spans", default=())
"""Spans that were begun in this context and may be open: an instrumentor need not make its span the current one."""


class _Live(NamedTuple):
    span: SdkSpan
    context: TagContext
    metered: bool
    """Whether it has begun inside a request that is metered already."""
    beside: tuple[Key, ...]
    """What was open in this context when it began."""


class _Noted(NamedTuple):
    here: Key | None
    inside: CountedCall
    beside: CountedCall


class CostSpanProcessor(SpanProcessor):
    """
    Meters the LLM spans of this process, unless the gate has metered the call: by OpenTelemetry's conventions, OpenInference, …::

        provider.add_span_processor(CostSpanProcessor())

    A call belongs to whoever a call of a wrapped client would belong to here; where nobody is known, to the user that its span names.
    Spans that are not sampled are not seen, and so not metered. Nothing here raises into the application.
    """

    def __init__(self) -> None:
        self._recent = SpanDeduplicator()
        self._live: OrderedDict[Key, _Live] = OrderedDict()
        self._lock = threading.RLock()
        self._watcher = _Observer(self)
        add_observer(self._watcher)
        itself = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _renew(itself()))

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        try:
            self._started(span)
        except Exception as error:
            report_internal_error(error)

    def on_end(self, span: ReadableSpan) -> None:
        try:
            self._ended(span)
        except Exception as error:
            report_internal_error(error)

    def shutdown(self) -> None:
        remove_observer(self._watcher)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True

    def _started(self, span: SdkSpan) -> None:
        key = _key(span.get_span_context())
        if key is None:
            return
        metered = request_here() is not None or in_manual_block()
        role = role_of(Span(key=key, name=span.name, attributes=span.attributes or {}))
        if metered and role == "call":
            span.set_attribute(METERED, True)
        with self._lock:
            opened = tuple(one for one in _open.get() if one in self._live)
            self._live[key] = _Live(span, current_context(), metered, opened)
            if len(self._live) > LIVE_SPANS:
                self._live.popitem(last=False)
            self._recent.heard(key, _key(span.parent), role)
            if not metered and role in ("call", "other"):
                _open.set((*opened, key)[-_OPEN_SPANS:])

    def _ended(self, ended: ReadableSpan) -> None:
        span = _span(ended)
        if span is None:
            return
        reading = read(span)
        with self._lock:
            live = self._live.pop(span.key, None)
            self._recent.heard(span.key, span.parent, reading.role)
            if reading.call is None or reading.role == "ours" or (live is not None and live.metered):
                return
            context = live.context if live is not None else current_context()
            counted, beside = as_counted(span, reading), live.beside if live is not None else ()
            counted.user, counted.context = context.owner().tags.user_id, id(context)  # not the span's: libraries spell users differently
            if self._recent.is_resent(span.key):
                return
            same = self._recent.same_as(span.key, counted, beside)
            if same is None:
                self._recent.count(span.key, counted, [one for one in beside if one in self._live])
        meter = current_meter()
        if same is not None:
            if (owner := owner_for(same, reading)) is not None and same.call_id is not None and meter.settings.enabled:
                meter.attribute_late([same.call_id], owner)
        elif meter.settings.enabled:
            said = reading.owner.tags if reading.owner is not None else NO_TAGS
            found = context.resolve()
            if found.tags.user_id is not None:
                owner = Owner(said.merge(found.tags), found.attribution)
            else:
                owner = overlay(found, said)
                if said.user_id is not None and reading.owner is not None:
                    owner = Owner(owner.tags, reading.owner.attribution)
            # observed: nobody is shown a call that came as a span, or a span would be made of it once more
            meter.finish(reading.call, TagContext(context.scope, owner.tags), owner, observed=())

    # -- what the gate meters --------------------------------------------------------------------------------------------------

    def metered(self, start: CallStart) -> _Noted:
        """The gate meters a call here and now: note it for all spans that may be around it."""
        here = _key(trace.get_current_span().get_span_context())
        name = models(start.requested_model)
        user = start.owner.tags.user_id if start.owner.attribution != "request" else None
        inside = CountedCall(scope=GATE, started=start.started_at, models=name, user=user, context=id(start.context))
        beside = msgspec.structs.replace(inside, beside=True)
        with self._lock:
            if here is not None:
                self._recent.note_inside(here, inside)
            self._recent.note_beside([key for key in _open.get() if key != here and key in self._live], beside)
        return _Noted(here, inside, beside)

    def answered(self, noted: _Noted, call: Call) -> None:
        """The call has ended: what is known of it now. The spans around it are told, for whoever else reads them."""
        input_tokens, output_tokens = _tokens(call)
        with self._lock:
            for one in (noted.inside, noted.beside):
                one.ended = one.started + (call.duration or 0) * 1000
                one.models = one.models | models(call.model)
                one.response_id, one.call_id = call.response_id, call.call_id
                one.failed = call.outcome != "ok"
                one.input, one.output = input_tokens, output_tokens
            self._recent.note_response(noted.inside)
            self._recent.note_context(noted.inside)
            around = [live.span for key in self._recent.around(noted.here) if (live := self._live.get(key)) is not None]
        for span in around:
            if span.is_recording() and _tells_of(span, noted.inside):
                span.set_attribute(METERED, True)

    def renew(self) -> None:
        """In a forked child: another thread may have held the lock."""
        self._lock = threading.RLock()


class _Observer:
    def __init__(self, processor: CostSpanProcessor) -> None:
        self._processor = processor

    def on_call_start(self, start: CallStart) -> object:
        return self._processor.metered(start)

    def on_call_response(self, token: Any) -> None:
        pass

    def on_call_end(self, token: Any, call: Call) -> None:
        if token is not None:
            self._processor.answered(token, call)


def _tells_of(span: SdkSpan, call: CountedCall) -> bool:
    """Whether a span around a metered call, that is still open, is of the same call as far as it says yet."""
    so_far = _span(span)
    if so_far is None:
        return False
    reading = read(so_far)
    return reading.call is not None and may_be_same(models(reading.call.requested_model, reading.call.model), call.models)


def _renew(processor: CostSpanProcessor | None) -> None:
    if processor is not None:
        processor.renew()


def _key(context: Any) -> Key | None:
    if context is None or not context.is_valid:
        return None
    return Key(f"{context.trace_id:032x}", f"{context.span_id:016x}")


def _span(ended: ReadableSpan) -> Span | None:
    key = _key(ended.context)
    if key is None or not ended.start_time:
        return None
    span = Span(
        key=key,
        parent_id=f"{ended.parent.span_id:016x}" if ended.parent is not None else None,
        name=ended.name,
        scope=ended.instrumentation_scope.name if ended.instrumentation_scope is not None else "",
        started=ended.start_time,
        ended=ended.end_time or ended.start_time,
        attributes={name: value for name, value in (ended.attributes or {}).items() if wanted(name)},
        failed=ended.status.status_code is StatusCode.ERROR,
    )
    for event in ended.events:
        if event.name == "exception":
            span.exception = text((event.attributes or {}).get("exception.type"))
        elif event.name in FIRST_TOKEN and span.first_token is None:
            span.first_token = event.timestamp
    return span


def _tokens(call: Call) -> tuple[int | None, int | None]:
    """All input and output tokens of a call as the provider has reported them."""
    if call.raw_usage is None:
        return None, None
    try:
        components = read_usage(call.endpoint, msgspec.json.decode(call.raw_usage))
    except (UsageError, msgspec.DecodeError):
        return None, None
    sums = [(one.usage.input_tokens, one.usage.output_tokens) for one in components]
    if not sums or any(tokens is None for tokens, _ in sums):
        return None, None
    return sum(tokens or 0 for tokens, _ in sums), sum(tokens or 0 for _, tokens in sums)
