"""
Tags on the spans of all instrumentation::

    provider.add_span_processor(CostTagSpanProcessor())

Every span that starts inside a request scope gets the owner's tags. A span never calls a getter.
The tags that are known at its start are set at once. If the user is not known yet, the first LLM
call resolves the user, and the request's open spans get the tags then. A span that ended before
that, or started before the scope, gets no tags.

Tags are never put into OpenTelemetry's baggage, and no setting changes that. OpenTelemetry's
propagators see the headers but not the target host. So baggage goes out with every request of every
instrumented client, also to the LLM provider.
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
    raise ImportError(
        "tags on spans need the OpenTelemetry SDK: pip install 'voight-middleware[otel]'"
    ) from error

_NAMED = frozenset(Tags.__struct_fields__) - {"extra"}
MAX_WAITING = 200
"""How many open spans of one request may wait for its user."""


class CostTagSpanProcessor(SpanProcessor):
    """
    Sets tags on every span that starts inside a request scope: ``user.id``, ``session.id``, and
    ``voight.<key>`` for other tags.

    Personal data becomes a pseudonym, as in the ledger. Existing attributes of the span stay.

    Args:
        keys: The tags to set. An application's own key becomes ``voight.tag.<key>``.
    """

    def __init__(
        self, keys: Collection[str] = ("user_id", "plan", "tenant_id", "session_id")
    ) -> None:
        if isinstance(keys, str):
            raise TypeError("keys must be a collection of tag keys, not a text: write [key]")
        self._names = {key: tag_attribute(key) for key in keys}
        self._waiting: weakref.WeakKeyDictionary[OwnerSource, list[tuple[Span, Tags]]] = (
            weakref.WeakKeyDictionary()
        )
        add_observer(self)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Set the known tags. Never raises, and never calls a getter."""
        try:
            context = current_context()
            if context.scope is None and context.tags is NO_TAGS:
                return
            tags = context.owner().tags
            self._set(span, tags)
            if tags.user_id is None and context.scope is not None:
                waiting = self._waiting.setdefault(context.scope, [])
                if len(waiting) >= MAX_WAITING:
                    waiting[:] = [
                        (open_span, tags) for open_span, tags in waiting if open_span.is_recording()
                    ]
                if len(waiting) < MAX_WAITING:
                    # not the context: it would keep the scope alive
                    waiting.append((span, context.tags))
        except Exception as error:
            report_internal_error(error)

    def on_end(self, span: ReadableSpan) -> None:
        """Do nothing: an ended span cannot be changed."""

    def shutdown(self) -> None:
        """Stop observing calls."""
        remove_observer(self)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Do nothing: there is nothing to flush."""
        return True

    # -- as a call observer ------------------------------------------------------------------------

    def on_call_start(self, start: CallStart) -> None:
        """Set the resolved owner on the open spans of the request."""
        scope = start.context.scope
        if scope is None or not self._waiting or (owner := scope.known()).tags.user_id is None:
            return
        for span, explicit in self._waiting.pop(scope, ()):
            if span.is_recording():
                self._set(span, overlay(owner, explicit).tags)

    def on_call_response(self, token: object) -> None:
        """Do nothing."""

    def on_call_end(self, token: object, call: Call) -> None:
        """Do nothing."""

    def _set(self, span: Span, tags: Tags) -> None:
        meter = current_meter()
        tags = meter.pseudonymized(tags)
        existing = span.attributes or {}
        for key, name in self._names.items():
            value = getattr(tags, key) if key in _NAMED else tags.extra.get(key)
            if value is None and key == "release":
                value = meter.settings.release
            if value is not None and name not in existing:
                span.set_attribute(name, value)
