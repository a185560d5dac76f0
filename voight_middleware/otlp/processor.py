"""
CostSpanProcessor: it meters calls in this process from the spans of other instrumentation.

It covers calls that our instrumentation does not see: frameworks with their own client, and SDKs
that are not wrapped. No call is metered twice. A span that starts inside a metered request belongs
to that request. A span that is current or open when a metered call starts may be around that call;
``deduplicator`` compares the two when the span ends.
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
from voight_middleware.otlp.deduplicator import (
    INSTRUMENTATION,
    CountedCall,
    SpanDeduplicator,
    may_be_same,
    models,
)
from voight_middleware.otlp.intake import as_counted, owner_for
from voight_middleware.otlp.kinds import METERED, role_of
from voight_middleware.otlp.mapping import read
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
    raise ImportError(
        "CostSpanProcessor needs OpenTelemetry's SDK: pip install 'voight-middleware[otel]'"
    ) from error

LIVE_SPANS = 20_000
"""
How many open spans are tracked. Beyond it, the oldest are metered without their starting context.
"""
_OPEN_SPANS = 16

_open: ContextVar[tuple[Key, ...]] = ContextVar("voight_open_spans", default=())
"""
Spans that started in this context and may be open. An instrumentor may not make its span current.
"""


class _Live(NamedTuple):
    span: SdkSpan
    context: TagContext
    metered: bool
    """Whether the span started inside a metered request."""
    beside: tuple[Key, ...]
    """The spans that were open in this context when the span started."""


class _Noted(NamedTuple):
    here: Key | None
    inside: CountedCall
    beside: CountedCall


class CostSpanProcessor(SpanProcessor):
    """
    Meters the LLM spans of this process, unless our instrumentation has metered the call::

        provider.add_span_processor(CostSpanProcessor())

    It reads OpenTelemetry's conventions, OpenInference's and others. A call has the same owner as a
    call of a wrapped client would have here. If that is unknown, the owner is the user that the
    span names. Unsampled spans are not metered. Nothing here raises into the application.
    """

    def __init__(self) -> None:
        self._deduplicator = SpanDeduplicator()
        self._live: OrderedDict[Key, _Live] = OrderedDict()
        self._lock = threading.RLock()
        self._observer = _Observer(self)
        add_observer(self._observer)
        itself = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _reset_after_fork(itself()))

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
        remove_observer(self._observer)

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
            opened = tuple(open_key for open_key in _open.get() if open_key in self._live)
            self._live[key] = _Live(span, current_context(), metered, opened)
            if len(self._live) > LIVE_SPANS:
                self._live.popitem(last=False)
            self._deduplicator.add(key, _key(span.parent), role)
            if not metered and role in ("call", "other"):
                _open.set((*opened, key)[-_OPEN_SPANS:])

    # Complex: each reason not to count a span is checked in its order.
    def _ended(self, ended: ReadableSpan) -> None:
        span = _span(ended)
        if span is None:
            return
        reading = read(span)
        with self._lock:
            live = self._live.pop(span.key, None)
            self._deduplicator.add(span.key, span.parent, reading.role)
            if (
                reading.call is None
                or reading.role == "ours"
                or (live is not None and live.metered)
            ):
                return
            context = live.context if live is not None else current_context()
            counted, beside = as_counted(span, reading), live.beside if live is not None else ()
            # The user of the context, not of the span: libraries spell users differently.
            counted.user, counted.context = context.owner().tags.user_id, id(context)
            if self._deduplicator.is_resent(span.key):
                return
            same = self._deduplicator.same_as(span.key, counted, beside)
            if same is None:
                self._deduplicator.count(
                    span.key, counted, [other for other in beside if other in self._live]
                )
        meter = current_meter()
        if same is not None:
            if (
                (owner := owner_for(same, reading)) is not None
                and same.call_id is not None
                and meter.settings.enabled
            ):
                meter.attribute_late([same.call_id], owner)
        elif meter.settings.enabled:
            span_tags = reading.owner.tags if reading.owner is not None else NO_TAGS
            resolved = context.resolve()
            if resolved.tags.user_id is not None:
                owner = Owner(span_tags.merge(resolved.tags), resolved.attribution)
            else:
                owner = overlay(resolved, span_tags)
                if span_tags.user_id is not None and reading.owner is not None:
                    owner = Owner(owner.tags, reading.owner.attribution)
            # Hidden from observers (`observed=()`): they would make another span of a call that
            # came as a span.
            meter.finish(reading.call, TagContext(context.scope, owner.tags), owner, observed=())

    # -- calls that our instrumentation meters -----------------------------------------------------

    def call_started(self, start: CallStart) -> _Noted:
        """Record a call that our instrumentation meters, for all spans that may be around it."""
        here = _key(trace.get_current_span().get_span_context())
        name = models(start.requested_model)
        user = start.owner.tags.user_id if start.owner.attribution != "request" else None
        inside = CountedCall(
            scope=INSTRUMENTATION,
            started=start.started_at,
            models=name,
            user=user,
            context=id(start.context),
        )
        beside = msgspec.structs.replace(inside, beside=True)
        with self._lock:
            if here is not None:
                self._deduplicator.note_inside(here, inside)
            self._deduplicator.note_beside(
                [key for key in _open.get() if key != here and key in self._live], beside
            )
        return _Noted(here, inside, beside)

    def call_ended(self, noted: _Noted, call: Call) -> None:
        """
        Complete the record of a call that ended. Mark the spans around it as metered for other
        readers.
        """
        input_tokens, output_tokens = _tokens(call)
        with self._lock:
            for counted in (noted.inside, noted.beside):
                counted.ended = counted.started + (call.duration or 0) * 1000
                counted.models = counted.models | models(call.model)
                counted.response_id, counted.call_id = call.response_id, call.call_id
                counted.failed = call.outcome != "ok"
                counted.input, counted.output = input_tokens, output_tokens
            self._deduplicator.note_response(noted.inside)
            self._deduplicator.note_context(noted.inside)
            around = [
                live.span
                for key in self._deduplicator.around(noted.here)
                if (live := self._live.get(key)) is not None
            ]
        for span in around:
            if span.is_recording() and _may_describe(span, noted.inside):
                span.set_attribute(METERED, True)

    def reset_after_fork(self) -> None:
        """Replace the lock in a forked child: another thread may have held it."""
        self._lock = threading.RLock()


class _Observer:
    def __init__(self, processor: CostSpanProcessor) -> None:
        self._processor = processor

    def on_call_start(self, start: CallStart) -> object:
        return self._processor.call_started(start)

    def on_call_response(self, token: Any) -> None:
        pass

    def on_call_end(self, token: Any, call: Call) -> None:
        if token is not None:
            self._processor.call_ended(token, call)


def _may_describe(span: SdkSpan, call: CountedCall) -> bool:
    """
    Return whether an open span around a metered call may describe that call, by its attributes so
    far.
    """
    so_far = _span(span)
    if so_far is None:
        return False
    reading = read(so_far)
    return reading.call is not None and may_be_same(
        models(reading.call.requested_model, reading.call.model), call.models
    )


def _reset_after_fork(processor: CostSpanProcessor | None) -> None:
    if processor is not None:
        processor.reset_after_fork()


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
        attributes={
            name: value for name, value in (ended.attributes or {}).items() if wanted(name)
        },
        failed=ended.status.status_code is StatusCode.ERROR,
    )
    for event in ended.events:
        if event.name == "exception":
            span.exception = text((event.attributes or {}).get("exception.type"))
        elif event.name in FIRST_TOKEN and span.first_token is None:
            span.first_token = event.timestamp
    return span


def _tokens(call: Call) -> tuple[int | None, int | None]:
    """Return all input and output tokens of a call, as reported by the provider."""
    if call.raw_usage is None:
        return None, None
    try:
        components = read_usage(call.endpoint, msgspec.json.decode(call.raw_usage))
    except (UsageError, msgspec.DecodeError):
        return None, None
    sums = [
        (component.usage.input_tokens, component.usage.output_tokens) for component in components
    ]
    if not sums or any(tokens is None for tokens, _ in sums):
        return None, None
    return sum(tokens or 0 for tokens, _ in sums), sum(tokens or 0 for _, tokens in sums)
