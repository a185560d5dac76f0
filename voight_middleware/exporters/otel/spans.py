"""
Spans out: one OpenTelemetry span per call, in the trace of whoever makes it::

    voight.configure(listeners=[OTelSpans()])

The span is the current one while the provider's SDK sends its request, so that spans of the HTTP client are its children, and ends with
the call: of a stream, with its last byte. What a call cost is known about a second later, as nothing is priced on the application's
threads. A thread of ours therefore keeps the ended span, gives it the cost, and only then ends it for OpenTelemetry, with the time at
which the call ended. After ``PRICE_SECONDS`` it goes without a cost (``voight.cost_status`` is ``pending``).

The anthropic SDK makes spans of its own (``anthropic/_tracing.py``, since 1.17). Where it does, there is no second one: its span gets our
attributes, and its end is put off in the same way.
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
from voight_middleware.exporters.otel.conventions import Attributes, call_attributes, error_type, span_name, start_attributes
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
"""How long an ended span waits for its cost; as a rule it is there within about a second."""
MAX_HELD = 10_000
"""How many ended spans wait at most. Beyond it the oldest goes without its cost."""
EXIT_SECONDS = 5.0
"""How long the end of the process may wait for the costs of the last calls."""
SCHEMA = "https://opentelemetry.io/schemas/1.44.0"

_NATIVE: Final = "com.anthropic.sdk.python"
"""The instrumentation scope of the anthropic SDK's own spans."""
_TOKEN = contexts.create_key("voight-call")
_PLACE = contexts.create_key("voight-place")
_SUPPRESSED = getattr(contexts, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")
"""What ``suppress_instrumentation()`` of OpenTelemetry's instrumentations sets: no spans in here."""


class _Place:
    """Where a span of ours is the current one: found in its context by those inside, which may outlast it."""

    __slots__ = ("is_left", "outer", "span")

    def __init__(self, span: Span, outer: Context) -> None:
        self.span = span
        self.outer = outer
        self.is_left = False


def _still_open(context: Context) -> Context:
    """*context*, or the one around it whose call goes on: of two generators, the outer one may end first."""
    while isinstance(place := context.get(_PLACE), _Place) and place.is_left and trace.get_current_span(context) is place.span:
        context = place.outer
    return context


class _Token:
    """One call that is going on: its span, and the context to go back to."""

    __slots__ = ("context", "ended_at", "is_copied", "outer", "place", "queue", "real_end", "span", "started_at")

    def __init__(self, outer: Context, started_at: int, queue: SimpleQueue[Any]) -> None:
        self.outer = outer
        self.context = outer
        self.span: Span | None = None
        self.place: _Place | None = None
        self.is_copied = False
        """Whether each look at the current context makes a new one, as in ddtrace, which keeps nothing of it but the span."""
        self.started_at = started_at
        self.queue = queue
        self.real_end: list[Callable[[int], None]] | None = None
        """Of the SDK's own span: what ends it, until it is called."""
        self.ended_at: int | None = None
        """Of the SDK's own span: when the SDK ended it, nanoseconds since 1970."""

    def end_native(self) -> None:
        """End the SDK's span, once."""
        with contextlib.suppress(IndexError):
            if self.real_end is not None and self.ended_at is not None:
                self.real_end.pop()(self.ended_at)

    def is_current(self) -> bool:
        """Whether the span of this call is still the current one."""
        current = contexts.get_current()
        if self.is_copied and self.span is not None:
            return trace.get_current_span(current).get_span_context().span_id == self.span.get_span_context().span_id
        return current is self.context

    def is_open(self) -> bool:
        """Whether there is a span, and it has not ended."""
        return self.span is not None and self.span.is_recording()

    def give_up(self) -> None:
        """End a span of which nobody has heard that its call has ended."""
        if self.real_end is not None:
            self.end_native()
        elif self.span is not None and self.is_open():
            self.span.end()

    def lose(self) -> None:
        """Let go of a span that cannot be exported; it never ends."""
        if self.real_end is not None and isinstance(end := getattr(self.span, "end", None), _PutOffEnd):
            self.real_end.clear()
            end.finished = True
        self.span = None

    def tell(self) -> None:
        """Show itself to the thread, unless that is stuck."""
        if self.queue.qsize() < 2 * MAX_HELD:
            self.queue.put(self)

    def __del__(self) -> None:
        if self.is_open() and self.real_end is None:
            self.tell()  # not ended here: the finalizer of a dropped stream may be about to tell of its end


_SKIPPED = _Token(Context(), 0, SimpleQueue())
"""A call that is to have no span."""


class _Ended:
    """A call that has ended, and waits for its cost."""

    __slots__ = ("at", "call", "deadline", "token")

    def __init__(self, token: _Token, call: Call, at: int) -> None:
        self.token = token
        self.call = call
        self.at = at
        self.deadline = time.monotonic() + PRICE_SECONDS


class OTelSpans:
    """
    One span per call, for ``configure(listeners=[…])``. Without a tracer provider there are no spans, and it costs next to nothing.

    Calls that ``record()`` tells of get a span after the fact; the answers of batches and background jobs get none, as they belong to no
    request. A span that its sampler does not take is not made up for.

    Args:
        tracer_provider: Where the spans go; by default the global provider, whenever it is set.
        langfuse: Whether to add the attributes that only Langfuse reads (``export.conventions``).
    """

    def __init__(self, tracer_provider: trace.TracerProvider | None = None, *, langfuse: bool = False) -> None:
        self._given = tracer_provider
        self._langfuse = langfuse
        self._provider: trace.TracerProvider | None = None
        self._tracer: Tracer | None = None
        self._is_unusable = False
        self._lock = threading.Lock()
        self._anew()
        reference = weakref.WeakMethod(self._anew)
        os.register_at_fork(after_in_child=lambda: (again := reference()) is not None and again())

    def _anew(self) -> None:
        """In a forked child too: what the parent holds, the parent ends."""
        self._queue: SimpleQueue[Any] = SimpleQueue()  # its put() may be interrupted by a finalizer that puts, too
        self._held: dict[str, _Ended] = {}
        self._unheard: deque[tuple[float, _Token]] = deque()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    # -- on the application's threads ------------------------------------------------------------------------------------------

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
                name, outer, SpanKind.CLIENT, start_attributes(start), start_time=start.started_at, record_exception=False
            )
            token.place = _Place(token.span, outer)
            token.context = contexts.set_value(_PLACE, token.place, trace.set_span_in_context(token.span, outer))
        if self._thread is None:
            self._start()
        if not token.is_copied or trace.get_current_span(outer) is not trace.INVALID_SPAN:  # ddtrace cannot go back to no span
            contexts.attach(token.context)  # last: what raises before leaves nothing behind
        return token

    def on_call_response(self, token: _Token) -> None:
        """
        Make the caller's own span the current one again. By value: ``detach()`` raises in another copy of the context, and an
        application's generator may be closed in one.
        """
        if token.place is not None:
            token.place.is_left = True
        if token.is_current():
            contexts.attach(_still_open(token.outer))

    def on_call_end(self, token: _Token | None, call: Call) -> None:
        """A call has ended: hand its span to the thread that waits for the cost."""
        if token is None:
            if call.job is not None or self._find_tracer() is None:
                return
            token = _Token(contexts.get_current(), call.occurred_at * 1000, self._queue)
        elif token is _SKIPPED:
            return
        elif token.span is not None and not token.span.is_recording() and not token.span.get_span_context().trace_flags.sampled:
            return  # not sampled
        at = time.time_ns() if call.duration is None else token.started_at + call.duration * 1000
        if self._queue.qsize() >= MAX_HELD:  # whatever the spans are exported with does not come back
            counters["lost_spans"] += 1
            token.lose()
            return
        self._queue.put(_Ended(token, call, at))
        if self._thread is None:
            self._start()

    def __call__(self, call: Call) -> None:
        """The call has been priced."""
        if self._thread is not None and self._queue.qsize() < 2 * MAX_HELD:
            self._queue.put(call)

    def _find_tracer(self) -> Tracer | None:
        if self._given is None and self._is_unusable:
            return None
        try:
            provider = self._given or trace.get_tracer_provider()
        except Exception:  # OTEL_PYTHON_TRACER_PROVIDER names none: it would be looked for, and logged at length, with every call
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
                    atexit.register(_at_exit, weakref.ref(self))  # before the provider's own, which was registered earlier
                    self._provider = provider
        return self._tracer

    def _is_native(self, start: CallStart) -> bool:
        """Whether the SDK is going to make a span of its own for this call, and with our provider."""
        client, options = start.client, start.options
        if not getattr(options, "span_name", None):
            return False
        try:
            own = client._open_telemetry.get("tracer_provider") or trace.get_tracer_provider()
            return client._tracer is not None and own is self._provider and hasattr(own, "add_span_processor")
        except AttributeError:  # a version of the SDK that does otherwise
            return False

    def _start(self) -> None:
        """Start the thread; whoever holds the lock does, and that may be this thread itself, where a finalizer runs in there."""
        if self._lock.acquire(blocking=False):
            try:
                if self._thread is None:
                    run = contextvars.Context().run  # in the context of no request, though instrumentations of threads take that along
                    thread = threading.Thread(target=run, args=(self._run, self._queue), name="voight-spans", daemon=True)
                    thread.start()
                    self._thread = thread
            except RuntimeError:  # Python 3.12+ starts none while the process ends: flush() does its work
                pass
            finally:
                self._lock.release()

    # -- on a thread of its own ------------------------------------------------------------------------------------------------

    def flush(self, timeout: float = EXIT_SECONDS) -> bool:
        """
        Wait until the calls so far are priced and their spans have ended for OpenTelemetry; whether that happened within *timeout* seconds.

        Exporting them is up to OpenTelemetry: ``force_flush()`` of the tracer provider.
        """
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            current_meter().flush(
                min(left, 0.5)
            )  # not for longer: without a ledger it never comes to its end, and calls are priced all the same
            if self._look_through(threading.Event(), deadline) and not self._held and not self._unheard:
                return True
        return False

    def close(self, timeout: float = EXIT_SECONDS) -> None:
        """As ``flush()``; what has no cost by then ends without."""
        self.flush(timeout)
        self._look_through(_LetGo(), time.monotonic() + 1.0)

    def _look_through(self, asked: threading.Event, deadline: float) -> bool:
        """Have the queue worked off."""
        self._queue.put(asked)
        if self._thread is None or not self._thread.is_alive():
            self._work(self._queue, 0)
        return asked.wait(max(0.0, deadline - time.monotonic()))

    def _run(self, queue: SimpleQueue[Any]) -> None:
        while queue is self._queue:
            try:
                self._work(queue, 1.0 if self._held or self._unheard else None)
            except BaseException as error:  # an exporter's SystemExit would end the thread
                report_internal_error(error)

    def _work(self, queue: SimpleQueue[Any], wait: float | None) -> None:
        """Take what is in the queue, waiting *wait* seconds for something, and let go what has waited too long."""
        with contextlib.suppress(Empty):
            one = queue.get(timeout=wait) if wait != 0 else queue.get_nowait()
            while True:
                self._take(one)
                one = queue.get_nowait()
        now = time.monotonic()
        while self._held:
            first = next(iter(self._held))
            if self._held[first].deadline > now and len(self._held) <= MAX_HELD:
                break
            self._finish(self._held.pop(first), None)
        while self._unheard and (self._unheard[0][0] <= now or not self._unheard[0][1].is_open()):
            self._unheard.popleft()[1].give_up()

    def _take(self, one: Any) -> None:
        if isinstance(one, _Ended):
            before = self._held.pop(one.call.call_id, None)
            if before is not None:  # a call of the same id: recorded again, or a job that is seen twice
                self._finish(before, None)
            self._held[one.call.call_id] = one
        elif isinstance(one, Call):
            if (held := self._held.pop(one.call_id, None)) is not None:
                self._finish(held, one)
        elif isinstance(one, _Token):  # the SDK has ended its span, or nobody can any more: should no call come, it ends all the same
            self._unheard.append((time.monotonic() + PRICE_SECONDS, one))
        elif isinstance(one, threading.Event):
            while isinstance(one, _LetGo) and self._held:
                self._finish(self._held.pop(next(iter(self._held))), None)
            while self._unheard and (isinstance(one, _LetGo) or not self._unheard[0][1].is_open()):
                self._unheard.popleft()[1].give_up()
            one.set()

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
                return  # the SDK was to make a span, and its sampler did not take it
            name = span_name(call.endpoint, call.requested_model)
            span = self._tracer.start_span(name, ended.token.outer, SpanKind.CLIENT, start_time=ended.token.started_at)
        elif not span.is_recording():  # an SDK's middleware has sent the request again: that is a call, and a span, of its own
            assert self._tracer is not None
            name = span_name(call.endpoint, call.requested_model)
            span = self._tracer.start_span(name, ended.token.outer, SpanKind.CLIENT, start_time=ended.token.started_at)
        span.set_attributes(attributes)
        if call.outcome == "error":
            span.set_status(Status(StatusCode.ERROR, error_type(call)))
        span.end(ended.at)


class _LetGo(threading.Event):
    """Asks for the end of every span that waits."""


class _Adopter:
    """Finds the spans that the anthropic SDK makes for calls that are metered. A SpanProcessor by its shape: the SDK may be missing."""

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        token = contexts.get_value(_TOKEN, parent_context)
        if not isinstance(token, _Token) or token.real_end is not None:
            return
        scope = getattr(span, "instrumentation_scope", None)
        if scope is None or scope.name != _NATIVE:
            return
        token.span = span
        token.real_end = [span.end]
        span.end = _PutOffEnd(token)

    def _on_ending(self, span: Any) -> None: ...

    def on_end(self, span: Any) -> None: ...

    def shutdown(self) -> None: ...

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True


class _PutOffEnd:
    """Stands where the SDK's span keeps ``end``: notes when that was, and leaves the rest to the thread that waits for the cost."""

    __slots__ = ("finished", "token")

    def __init__(self, token: _Token) -> None:
        self.token = token
        self.finished = False
        """Whether the span has all its attributes, and may end when it likes."""

    def __call__(self, end_time: int | None = None) -> None:
        token = self.token
        if token.ended_at is None:
            token.ended_at = end_time or time.time_ns()
            if self.finished:
                token.end_native()
            else:
                token.tell()


def _finish_native(token: _Token, attributes: Attributes) -> None:
    """Give the SDK's span what it lacks; its own attributes stay. Then end it, or let the SDK, where it has not yet."""
    span: Any = token.span
    own = span.attributes or {}
    span.set_attributes({name: value for name, value in attributes.items() if name not in own})
    span.end.finished = True
    token.end_native()


def _at_exit(spans: weakref.ref[OTelSpans]) -> None:
    living = spans()
    if living is not None:
        with contextlib.suppress(Exception):
            living.close()
