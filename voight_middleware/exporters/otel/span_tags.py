"""
Tags onto everybody's spans::

    provider.add_span_processor(CostTagSpanProcessor())

Every span that starts inside a scope says whose it is, whatever instrumentation makes it. No getter is ever asked for a span: what is known
when it starts is set at once; where the user is not known yet, he is set on the request's open spans when the first LLM call has
resolved him. A span that has ended by then, or began before the scope, stays without.

There is no baggage, and no option for it. OpenTelemetry's propagators see a carrier of headers and not the host that it goes to: what is
in the baggage is sent with every request of every instrumented client, to the LLM provider too.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection

from voight_middleware.context.context import OwnerSource, current_context, overlay
from voight_middleware.diagnostics import report_internal_error
from voight_middleware.exporters.otel.conventions import tag_attribute
from voight_middleware.pipeline.meter import add_observer, current_meter, remove_observer
from voight_middleware.pipeline.observers import CallStart
from voight_middleware.records.call import Call
from voight_middleware.records.tags import NO_TAGS, Tags

try:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
except ImportError as error:
    raise ImportError("tags on spans need the OpenTelemetry SDK: pip install 'voight-middleware[otel]'") from error

_NAMED = frozenset(Tags.__struct_fields__) - {"extra"}
MAX_WAITING = 200
"""How many open spans of one request wait for its user."""


class CostTagSpanProcessor(SpanProcessor):
    """
    Sets tags on every span that starts inside a scope: ``user.id``, ``session.id``, and ``voight.<key>`` of the others.

    Personal data becomes a pseudonym, as in the ledger. An attribute that the span has already is left as it is.

    Args:
        keys: The tags to set; a key of the application's own becomes ``voight.tag.<key>``.
    """

    def __init__(self, keys: Collection[str] = ("user_id", "plan", "tenant_id", "session_id")) -> None:
        if isinstance(keys, str):
            raise TypeError("keys must be a collection of tag keys, not one text")
        self._names = {key: tag_attribute(key) for key in keys}
        self._waiting: weakref.WeakKeyDictionary[OwnerSource, list[tuple[Span, Tags]]] = weakref.WeakKeyDictionary()
        add_observer(self)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Set what is known. Never raises, asks nobody."""
        try:
            context = current_context()
            if context.scope is None and context.tags is NO_TAGS:
                return
            tags = context.owner().tags
            self._set(span, tags)
            if tags.user_id is None and context.scope is not None:
                waiting = self._waiting.setdefault(context.scope, [])
                if len(waiting) >= MAX_WAITING:
                    waiting[:] = [one for one in waiting if one[0].is_recording()]
                if len(waiting) < MAX_WAITING:
                    waiting.append((span, context.tags))  # not the context: it knows the scope, and would keep it
        except Exception as error:
            report_internal_error(error)

    def on_end(self, span: ReadableSpan) -> None:
        """Nothing: an ended span cannot be changed."""

    def shutdown(self) -> None:
        """See no more calls."""
        remove_observer(self)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """There is nothing to flush."""
        return True

    # -- as a watcher of calls -------------------------------------------------------------------------------------------------

    def on_call_start(self, start: CallStart) -> None:
        """The owner has been resolved: set him on the spans of his request that are open."""
        scope = start.context.scope
        if scope is None or not self._waiting or (found := scope.known()).tags.user_id is None:
            return
        for span, explicit in self._waiting.pop(scope, ()):
            if span.is_recording():
                self._set(span, overlay(found, explicit).tags)

    def on_call_response(self, token: object) -> None:
        """Nothing is to be taken back."""

    def on_call_end(self, token: object, call: Call) -> None:
        """Nothing is to be done."""

    def _set(self, span: Span, tags: Tags) -> None:
        meter = current_meter()
        tags = meter.pseudonymized(tags)
        own = span.attributes or {}
        for key, name in self._names.items():
            value = getattr(tags, key) if key in _NAMED else tags.extra.get(key)
            if value is None and key == "release":
                value = meter.settings.release
            if value is not None and name not in own:
                span.set_attribute(name, value)
