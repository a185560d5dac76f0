"""
One OpenTelemetry span per call, in the caller's trace::

    voight.configure(listeners=[OTelSpans()])

The span is current while the provider's SDK sends its request, so spans of the HTTP client are its
children. It ends with the call: for a stream, with its last byte. The cost of a call is known about
a second later, as calls are not priced on the application's threads. So a separate thread keeps the
span, sets the cost, and only then ends it for OpenTelemetry, with the end time of the call. After
``PRICE_SECONDS``, it ends the span without a cost (``voight.cost_status`` is ``pending``).

The anthropic SDK makes its own spans (``anthropic/_tracing.py``, since 1.17). Such a call gets no
second span: the SDK's span gets our attributes, and its end is deferred in the same way.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final

from voight_middleware.config.version import VERSION
from voight_middleware.exporters.otel.conventions import (
    Attributes,
    call_attributes,
    error_type,
    span_name,
    start_attributes,
)
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.pipeline.observers import CallStart
from voight_middleware.records.call import Call

try:
    from opentelemetry import context as contexts
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
except ImportError as error:
    raise ImportError("spans need OpenTelemetry: pip install 'voight-middleware[otel]'") from error

from voight_middleware.diagnostics import counters, report_internal_error
from voight_middleware.exporters.otel.span_tags import CostTagSpanProcessor

__all__ = ["CostTagSpanProcessor", "OTelSpans"]

PRICE_SECONDS = 10.0
"""How long an ended span waits for its cost. The cost normally arrives within about a second."""
MAX_HELD = 10_000
"""The maximum number of waiting spans. Beyond it, the oldest ends without its cost."""
EXIT_SECONDS = 5.0
"""How long process exit may wait for the costs of the last calls."""
SCHEMA = "https://opentelemetry.io/schemas/1.44.0"

_NATIVE: Final = "com.anthropic.sdk.python"
"""The instrumentation scope of the anthropic SDK's own spans."""
_TOKEN = contexts.create_key("voight-call")
_CURRENT = contexts.create_key("voight-place")
_SUPPRESSED = getattr(contexts, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")
"""The key that OpenTelemetry's ``suppress_instrumentation()`` sets. It suppresses our spans too."""


class _CurrentSpan:
    """Our span in the context where it is current. Copies of that context may outlast the span."""

    __slots__ = ("is_left", "outer", "span")

    def __init__(self, span: Span, outer: Context) -> None:
        self.span = span
        self.outer = outer
        self.is_left = False


def _still_open(context: Context) -> Context:
    """
    Return *context*, or the next outer one whose call still runs: an outer generator may end first.
    """
    while (
        isinstance(current := context.get(_CURRENT), _CurrentSpan)
        and current.is_left
        and trace.get_current_span(context) is current.span
    ):
        context = current.outer
    return context


class _Token:
    """A running call: its span, and the context to return to."""

    __slots__ = (
        "context",
        "current",
        "ended_at",
        "is_copied",
        "outer",
        "queue",
        "real_end",
        "span",
        "started_at",
    )

    def __init__(self, outer: Context, started_at: int, queue: SimpleQueue[Any]) -> None:
        self.outer = outer
        self.context = outer
        self.span: Span | None = None
        self.current: _CurrentSpan | None = None
        self.is_copied = False
        """
        Whether ``get_current()`` returns a new context each time, as in ddtrace, which keeps only
        the span.
        """
        self.started_at = started_at
        self.queue = queue
        self.real_end: list[Callable[[int], None]] | None = None
        """For the SDK's own span: the function that ends it, until it is called."""
        self.ended_at: int | None = None
        """For the SDK's own span: when the SDK ended it, in nanoseconds since 1970."""

    def end_native(self) -> None:
        """End the SDK's span, once."""
        with contextlib.suppress(IndexError):
            if self.real_end is not None and self.ended_at is not None:
                self.real_end.pop()(self.ended_at)

    def is_current(self) -> bool:
        """Return whether the span of this call is still the current one."""
        current = contexts.get_current()
        if self.is_copied and self.span is not None:
            return (
                trace.get_current_span(current).get_span_context().span_id
                == self.span.get_span_context().span_id
            )
        return current is self.context

    def is_open(self) -> bool:
        """Return whether this call has a span that has not ended."""
        return self.span is not None and self.span.is_recording()

    def end_without_call(self) -> None:
        """End a span whose call never reported its end."""
        if self.real_end is not None:
            self.end_native()
        elif self.span is not None and self.is_open():
            self.span.end()

    def drop(self) -> None:
        """Drop a span that cannot be exported. It never ends."""
        if self.real_end is not None and isinstance(
            end := getattr(self.span, "end", None), _DeferredEnd
        ):
            self.real_end.clear()
            end.finished = True
        self.span = None

    def enqueue(self) -> None:
        """Put this token into the thread's queue, unless the thread is stuck."""
        if self.queue.qsize() < 2 * MAX_HELD:
            self.queue.put(self)

    def __del__(self) -> None:
        if self.is_open() and self.real_end is None:
            # not ended here: the finalizer of a dropped stream may be about to end the call
            self.enqueue()


_SKIPPED = _Token(Context(), 0, SimpleQueue())
"""The token of a call without a span."""


class _Ended:
    """A call that ended and waits for its cost."""

    __slots__ = ("at", "call", "deadline", "token")

    def __init__(self, token: _Token, call: Call, at: int) -> None:
        self.token = token
        self.call = call
        self.at = at
        self.deadline = time.monotonic() + PRICE_SECONDS


class OTelSpans:
    """
    Makes one span per call, for ``configure(listeners=[…])``.

    Without a tracer provider, it makes no spans and costs almost nothing. A call of ``record()``
    gets a span afterwards. The results of batches and background jobs get no span, as they belong
    to no request. A span that its sampler drops is not replaced.

    Args:
        tracer_provider: The provider of the spans. The default is the global provider, even if it
            is set later.
        langfuse: Whether to add the attributes that only Langfuse reads
            (``exporters.otel.conventions``).
    """

    def __init__(
        self, tracer_provider: trace.TracerProvider | None = None, *, langfuse: bool = False
    ) -> None:
        self._given = tracer_provider
        self._langfuse = langfuse
        self._provider: trace.TracerProvider | None = None
        self._tracer: Tracer | None = None
        self._is_unusable = False
        self._lock = threading.Lock()
        self._reset()
        reference = weakref.WeakMethod(self._reset)
        os.register_at_fork(after_in_child=lambda: (reset := reference()) is not None and reset())

    def _reset(self) -> None:
        """Start without spans, also in a forked child: the parent ends its own spans."""
        # its put() is reentrant: a finalizer may interrupt it and put, too
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._held: dict[str, _Ended] = {}
        self._without_call: deque[tuple[float, _Token]] = deque()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    # -- on the application's threads --------------------------------------------------------------

    def on_call_start(self, start: CallStart) -> _Token | None:
        """Start the span of a call and make it the current one."""
        tracer = self._find_tracer()
        if tracer is None:
            return None
        current = contexts.get_current()
        outer = _still_open(current)
        if contexts.get_value(_SUPPRESSED, outer):
            return _SKIPPED
        token = _Token(outer, start.started_at, self._queue)
        token.is_copied = contexts.get_current() is not current
        if self._is_native(start):
            token.context = contexts.set_value(_TOKEN, token, outer)
        else:
            name = span_name(start.endpoint, start.requested_model)
            token.span = tracer.start_span(
                name,
                outer,
                SpanKind.CLIENT,
                start_attributes(start),
                start_time=start.started_at,
                record_exception=False,
            )
            token.current = _CurrentSpan(token.span, outer)
            token.context = contexts.set_value(
                _CURRENT, token.current, trace.set_span_in_context(token.span, outer)
            )
        if self._thread is None:
            self._start()
        # ddtrace cannot return to no span
        if not token.is_copied or trace.get_current_span(outer) is not trace.INVALID_SPAN:
            contexts.attach(token.context)  # last: an exception before it leaves nothing attached
        return token

    def on_call_response(self, token: _Token) -> None:
        """
        Make the caller's own span the current one again.

        Attach the outer context, as ``detach()`` raises in another copy of the context. An
        application's generator may be closed in such a copy.
        """
        if token.current is not None:
            token.current.is_left = True
        if token.is_current():
            contexts.attach(_still_open(token.outer))

    def on_call_end(self, token: _Token | None, call: Call) -> None:
        """Hand the span of a finished call to the thread that waits for the cost."""
        if token is None:
            if call.job is not None or self._find_tracer() is None:
                return
            token = _Token(contexts.get_current(), call.occurred_at * 1000, self._queue)
        elif token is _SKIPPED:
            return
        elif (
            token.span is not None
            and not token.span.is_recording()
            and not token.span.get_span_context().trace_flags.sampled
        ):
            return  # not sampled
        at = time.time_ns() if call.duration is None else token.started_at + call.duration * 1000
        if self._queue.qsize() >= MAX_HELD:  # the exporter does not return
            counters["lost_spans"] += 1
            token.drop()
            return
        self._queue.put(_Ended(token, call, at))
        if self._thread is None:
            self._start()

    def __call__(self, call: Call) -> None:
        """Pass a priced call to the thread."""
        if self._thread is not None and self._queue.qsize() < 2 * MAX_HELD:
            self._queue.put(call)

    def _find_tracer(self) -> Tracer | None:
        if self._given is None and self._is_unusable:
            return None
        try:
            provider = self._given or trace.get_tracer_provider()
        except Exception:
            # a wrong OTEL_PYTHON_TRACER_PROVIDER would be looked up and logged at length with every
            # call
            self._is_unusable = True
            raise
        if provider is not self._provider:
            if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
                return None
            with self._lock:
                if provider is not self._provider:
                    self._tracer = provider.get_tracer("voight_middleware", VERSION, SCHEMA)
                    if (add := getattr(provider, "add_span_processor", None)) is not None:
                        add(_Adopter())
                    # runs before the provider's own, which was registered earlier
                    atexit.register(_at_exit, weakref.ref(self))
                    self._provider = provider
        return self._tracer

    def _is_native(self, start: CallStart) -> bool:
        """Return whether the SDK will make its own span for this call, with our provider."""
        client, options = start.client, start.options
        if not getattr(options, "span_name", None):
            return False
        try:
            provider = client._open_telemetry.get("tracer_provider") or trace.get_tracer_provider()
            return (
                client._tracer is not None
                and provider is self._provider
                and hasattr(provider, "add_span_processor")
            )
        except AttributeError:  # another version of the SDK
            return False

    def _start(self) -> None:
        """
        Start the thread. If the lock is taken, its holder starts it. The holder may be this thread
        itself, if a finalizer runs inside the lock.
        """
        if self._lock.acquire(blocking=False):
            try:
                if self._thread is None:
                    # an empty context, even if other instrumentation copies the request's context
                    # into threads
                    run = contextvars.Context().run
                    thread = threading.Thread(
                        target=run, args=(self._run, self._queue), name="voight-spans", daemon=True
                    )
                    thread.start()
                    self._thread = thread
            except RuntimeError:
                # Python 3.12+ starts no thread while the process ends; flush() does the work
                pass
            finally:
                self._lock.release()

    # -- on the separate thread --------------------------------------------------------------------

    def flush(self, timeout: float = EXIT_SECONDS) -> bool:
        """
        Wait until the calls so far are priced, and their spans have ended for OpenTelemetry.

        Return whether they have within *timeout* seconds. To export them, call ``force_flush()`` of
        the tracer provider.
        """
        deadline = time.monotonic() + timeout
        while (remaining := deadline - time.monotonic()) > 0:
            # Briefly: without a ledger a flush never succeeds, and calls are priced anyway.
            current_meter().flush(min(remaining, 0.5))
            if (
                self._process_queue(threading.Event(), deadline)
                and not self._held
                and not self._without_call
            ):
                return True
        return False

    def close(self, timeout: float = EXIT_SECONDS) -> None:
        """Flush. Spans without a cost by then end without one."""
        self.flush(timeout)
        self._process_queue(_EndAll(), time.monotonic() + 1.0)

    def _process_queue(self, reached: threading.Event, deadline: float) -> bool:
        """Have the queue processed up to *reached*. Return whether it was."""
        self._queue.put(reached)
        if self._thread is None or not self._thread.is_alive():
            self._work(self._queue, 0)
        return reached.wait(max(0.0, deadline - time.monotonic()))

    def _run(self, queue: SimpleQueue[Any]) -> None:
        while queue is self._queue:
            try:
                self._work(queue, 1.0 if self._held or self._without_call else None)
            except BaseException as error:  # an exporter's SystemExit would end the thread
                report_internal_error(error)

    def _work(self, queue: SimpleQueue[Any], wait: float | None) -> None:
        """
        Take all items of the queue, after up to *wait* seconds for the first. End overdue spans.
        """
        with contextlib.suppress(Empty):
            item = queue.get(timeout=wait) if wait != 0 else queue.get_nowait()
            while True:
                self._take(item)
                item = queue.get_nowait()
        now = time.monotonic()
        while self._held:
            first = next(iter(self._held))
            if self._held[first].deadline > now and len(self._held) <= MAX_HELD:
                break
            self._finish(self._held.pop(first), None)
        while self._without_call and (
            self._without_call[0][0] <= now or not self._without_call[0][1].is_open()
        ):
            self._without_call.popleft()[1].end_without_call()

    def _take(self, item: Any) -> None:
        if isinstance(item, _Ended):
            before = self._held.pop(item.call.call_id, None)
            if before is not None:  # the same call id: recorded again, or a job that was seen twice
                self._finish(before, None)
            self._held[item.call.call_id] = item
        elif isinstance(item, Call):
            if (ended := self._held.pop(item.call_id, None)) is not None:
                self._finish(ended, item)
        elif isinstance(item, _Token):
            # the SDK ended its span, or nobody can end it: it ends even if no call comes
            self._without_call.append((time.monotonic() + PRICE_SECONDS, item))
        elif isinstance(item, threading.Event):
            while isinstance(item, _EndAll) and self._held:
                self._finish(self._held.pop(next(iter(self._held))), None)
            while self._without_call and (
                isinstance(item, _EndAll) or not self._without_call[0][1].is_open()
            ):
                self._without_call.popleft()[1].end_without_call()
            item.set()

    def _finish(self, ended: _Ended, priced: Call | None) -> None:
        try:
            attributes = call_attributes(priced or ended.call, self._langfuse)
            if priced is None:
                attributes["voight.cost_status"] = "pending"
                counters["spans_without_cost"] += 1
            if ended.token.real_end:
                _finish_native(ended.token, attributes)
            else:
                self._finish_own(ended, attributes)
        except Exception as error:
            report_internal_error(error)

    def _finish_own(self, ended: _Ended, attributes: Attributes) -> None:
        call, span = ended.call, ended.token.span
        if span is None:
            if ended.token.context is not ended.token.outer or self._tracer is None:
                return  # the SDK was to make a span, but its sampler dropped it
            name = span_name(call.endpoint, call.requested_model)
            span = self._tracer.start_span(
                name, ended.token.outer, SpanKind.CLIENT, start_time=ended.token.started_at
            )
        elif not span.is_recording():
            # an SDK's middleware sent the request again: this is another call, with another span
            assert self._tracer is not None
            name = span_name(call.endpoint, call.requested_model)
            span = self._tracer.start_span(
                name, ended.token.outer, SpanKind.CLIENT, start_time=ended.token.started_at
            )
        span.set_attributes(attributes)
        if call.outcome == "error":
            span.set_status(Status(StatusCode.ERROR, error_type(call)))
        span.end(ended.at)


class _EndAll(threading.Event):
    """A request to end all waiting spans."""


class _Adopter:
    """
    Finds the anthropic SDK's spans of metered calls. A SpanProcessor without the base class, as
    OpenTelemetry's SDK may be missing.
    """

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        token = contexts.get_value(_TOKEN, parent_context)
        if not isinstance(token, _Token) or token.real_end is not None:
            return
        scope = getattr(span, "instrumentation_scope", None)
        if scope is None or scope.name != _NATIVE:
            return
        token.span = span
        token.real_end = [span.end]
        span.end = _DeferredEnd(token)

    def _on_ending(self, span: Any) -> None: ...

    def on_end(self, span: Any) -> None: ...

    def shutdown(self) -> None: ...

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True


class _DeferredEnd:
    """
    Replaces ``end`` of the SDK's span. It records the end time, and the thread ends the span once
    the cost is known.
    """

    __slots__ = ("finished", "token")

    def __init__(self, token: _Token) -> None:
        self.token = token
        self.finished = False
        """Whether the span has all its attributes, and may end at once."""

    def __call__(self, end_time: int | None = None) -> None:
        token = self.token
        if token.ended_at is None:
            token.ended_at = end_time or time.time_ns()
            if self.finished:
                token.end_native()
            else:
                token.enqueue()


def _finish_native(token: _Token, attributes: Attributes) -> None:
    """
    Add the missing attributes to the SDK's span, and end it. If the SDK has not ended it yet, let
    the SDK do so.
    """
    span: Any = token.span
    existing = span.attributes or {}
    span.set_attributes({name: value for name, value in attributes.items() if name not in existing})
    span.end.finished = True
    token.end_native()


def _at_exit(spans: weakref.ref[OTelSpans]) -> None:
    instance = spans()
    if instance is not None:
        with contextlib.suppress(Exception):
            instance.close()
