"""
Taps on the SDKs' streams.

The SDK's own stream object goes to the caller. Its iterator is replaced by a tap, which shows every event to a reader, and its
response's byte stream by one that tells when it is closed. A tap is an object and no generator function: one that is dropped
before its first step must still report its end. Tap and byte stream share the ``Ending`` and do not know each other, so that no
cycle keeps a dropped stream alive.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, TypeVar

from voight_middleware.diagnostics import report_internal_error
from voight_middleware.instrumentation.bodies import AsyncPassing, Body, Passing
from voight_middleware.instrumentation.event_formats import viewed
from voight_middleware.instrumentation.usage_chunks import UsageChunks
from voight_middleware.pipeline import open_calls
from voight_middleware.providers.base import StreamParser

T = TypeVar("T")

Report = Callable[[StreamParser, str, BaseException | None, int | None], None]
"""
Told once how a stream ended: its reader, the outcome, the caller's exception, and when the first event came
(``time.perf_counter_ns``).
"""


def call_guarded(function: Callable[..., object], *args: Any) -> None:
    """Call *function*; an error in it is ours, and not the caller's."""
    try:
        function(*args)
    except Exception as error:
        report_internal_error(error)


class StreamCompletion:
    """The one end of a stream, whoever notices it first: the last event, an error, a cancellation, a close, or the garbage collector."""

    __slots__ = ("_report", "first_event", "hides_usage", "inside", "reader")

    def __init__(self, reader: StreamParser, report: Report, hides_usage: bool = False) -> None:
        self.reader = reader
        self.hides_usage = hides_usage
        """Whether usage is in this stream only because we asked for it."""
        self.inside = False
        """Whether an event is being waited for: the SDK closes the response before the end reaches the tap, which knows it better."""
        self.first_event: int | None = None
        self._report = [report]
        open_calls.begun(self)

    def end(self, outcome: str, error: BaseException | None = None) -> None:
        """Report the end, once."""
        try:
            report = self._report.pop()  # atomic: a finalizer may run here at any time, and in any thread
        except IndexError:
            return
        open_calls.ended(self)
        report(self.reader, outcome, error, self.first_event)

    def discard_after_fork(self) -> None:
        """Report nothing: in a forked child, the stream is its parent's."""
        self._report.clear()

    def complete(self) -> None:
        """The stream has no more events."""
        self.end(self._said() or "truncated")

    def fail(self, error: BaseException) -> None:
        """Waiting for the next event raised."""
        kind = type(error).__name__
        done = self.reader.done
        call_guarded(_see_failure, self.reader, error)
        if done and kind not in ("CancelledError", "Cancelled"):
            self.end(self._said() or "ok")
        elif isinstance(error, Exception):
            self.end("error", error)
        else:
            self.end("aborted" if isinstance(error, GeneratorExit) else "cancelled", error)

    def close(self) -> None:
        """The response was closed; while an event is being waited for, the tap will tell how that ends."""
        if not self.inside:
            self.drop()

    def drop(self) -> None:
        """Nobody will read on."""
        self.end(self._said() or "aborted")

    def _said(self) -> str | None:
        """What the provider itself said about the end of its answer."""
        return "error" if self.reader.failure else "ok" if self.reader.done else None


def _see_failure(reader: StreamParser, error: BaseException) -> None:
    """
    Show *reader* the event that openai made *error* of: a failure may be billed, and OpenRouter says how many tokens.

    The exception has only the event's ``error`` (openai 1 to 3). The whole event is a variable of the SDK's generator.
    """
    trace = error.__traceback__ if hasattr(error, "body") else None
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "__stream__":
            event = trace.tb_frame.f_locals.get("data")
            if type(event) is dict and event.get("error") and event.get("usage"):
                reader.feed(viewed(event))
                return
        trace = trace.tb_next


class MeteredIterator(Generic[T]):
    """Stands where the SDK keeps a stream's iterator."""

    __slots__ = ("_completion", "_hide", "_next", "_see")

    def __init__(self, iterator: Iterator[T], completion: StreamCompletion) -> None:
        self._next = iterator.__next__
        self._see = completion.reader.feed
        self._hide = UsageChunks().take_out if completion.hides_usage else None
        self._completion = completion

    def __iter__(self) -> Iterator[T]:
        return self

    def __getattr__(self, name: str) -> Any:  # close and throw, where the SDK's iterator is a generator
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._next.__self__, name)  # type: ignore[attr-defined]

    def send(self, _value: object) -> T:
        """Return the next event, as the SDK's generator does whatever it is sent."""
        return self.__next__()

    def __next__(self) -> T:
        completion = self._completion
        completion.inside = True
        while True:
            try:
                event = self._next()
            except StopIteration:
                call_guarded(completion.complete)
                raise
            except BaseException as error:
                call_guarded(completion.fail, error)
                raise
            if completion.first_event is None:
                completion.first_event = time.perf_counter_ns()
            try:
                self._see(viewed(event) if type(event) is dict else event)
            except Exception as fault:
                report_internal_error(fault)
            if self._hide is not None and self._hide(event):
                continue
            completion.inside = False
            return event

    def __del__(self) -> None:
        call_guarded(self._completion.drop)


class AsyncMeteredIterator(Generic[T]):
    """Stands where the SDK keeps an asynchronous stream's iterator."""

    __slots__ = ("_completion", "_hide", "_next", "_see")

    def __init__(self, iterator: AsyncIterator[T], completion: StreamCompletion) -> None:
        self._next = iterator.__anext__
        self._see = completion.reader.feed
        self._hide = UsageChunks().take_out if completion.hides_usage else None
        self._completion = completion

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    def __getattr__(self, name: str) -> Any:  # aclose and athrow, where the SDK's iterator is a generator
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._next.__self__, name)  # type: ignore[attr-defined]

    async def asend(self, _value: object) -> T:
        """Return the next event, as the SDK's generator does whatever it is sent."""
        return await self.__anext__()

    async def __anext__(self) -> T:
        completion = self._completion
        completion.inside = True
        while True:
            try:
                event = await self._next()
            except StopAsyncIteration:
                call_guarded(completion.complete)
                raise
            except BaseException as error:
                call_guarded(completion.fail, error)
                raise
            if completion.first_event is None:
                completion.first_event = time.perf_counter_ns()
            try:
                self._see(viewed(event) if type(event) is dict else event)
            except Exception as fault:
                report_internal_error(fault)
            if self._hide is not None and self._hide(event):
                continue
            completion.inside = False
            return event

    def __del__(self) -> None:
        call_guarded(self._completion.drop)


def hide_usage(result: Any) -> None:
    """Hide what we asked for where no tap could be placed, in an SDK's stream or in the one that its raw response will make."""
    if hasattr(type(result), "__stream__"):
        iterator, hide = result._iterator, UsageChunks().take_out
        if hasattr(iterator, "__anext__"):
            result._iterator = (event async for event in iterator if not hide(event))
        else:
            result._iterator = (event for event in iterator if not hide(event))
    elif "parse" not in result.__dict__ and hasattr(result, "parse"):
        parse = result.parse

        def parse_and_hide(*args: Any, **kwargs: Any) -> Any:
            stream = parse(*args, **kwargs)
            call_guarded(hide_usage, stream)
            return stream

        result.parse = parse_and_hide


def watch_close(response: Any, closed: Callable[[], None], body: Body | None = None) -> None:
    """
    Call *closed* once, when the byte stream of an httpx or httpx2 *response* is closed or dropped.

    Its iteration stays the transport's own, unless *body* is to see what passes.
    """
    response.stream = _closing_class(type(response), type(response.stream))(response.stream, closed, body)


class _Closing:
    """Stands where a response keeps its byte stream."""

    def __init__(self, inner: Any, closed: Callable[[], None], body: Body | None) -> None:
        self._inner = inner
        self._closed: Callable[[], None] | None = closed
        self._body = body
        self.stream_observer = getattr(inner, "stream_observer", None)  # anthropic 2.x asks for it at every event
        _open.add(self)

    def __iter__(self) -> Iterator[bytes]:
        parts = iter(self._inner)
        return parts if self._body is None else Passing(parts, self._body)

    def __aiter__(self) -> AsyncIterator[bytes]:
        parts = aiter(self._inner)
        return parts if self._body is None else AsyncPassing(parts, self._body)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            self.tell()

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            self.tell()

    def __del__(self) -> None:
        self.tell()

    def discard_after_fork(self) -> None:
        """Never report the end."""
        self._closed = None

    def tell(self) -> None:
        """Report the end, once."""
        _open.discard(self)
        closed, self._closed = self._closed, None
        if closed is not None:
            call_guarded(closed)


_open: weakref.WeakSet[_Closing] = weakref.WeakSet()
"""The byte streams that nobody has closed."""


def _close_all() -> None:
    """Report what has passed of each byte stream that is still open."""
    for stream in list(_open):
        stream.tell()


def _forget_all() -> None:
    """In a forked child: the byte streams are its parent's to report."""
    for stream in list(_open):
        stream.discard_after_fork()
    _open.clear()


open_calls.on_end_all(_close_all)
os.register_at_fork(after_in_child=_forget_all)
_closing_classes: dict[tuple[type, type], Any] = {}


def _closing_class(response_class: type, stream_class: type) -> Any:
    """
    A class for the HTTP library (httpx or httpx2) that *response_class* is of; ours imports neither.

    It is synchronous, asynchronous or both, as *stream_class* is: the library's own errors for a wrong use stay the same.
    """
    made = _closing_classes.get((response_class, stream_class))
    if made is None:
        libraries = (sys.modules.get(cls.__module__.partition(".")[0]) for cls in response_class.__mro__)
        library: Any = next(library for library in libraries if hasattr(library, "AsyncByteStream"))
        bases = tuple(base for base in (library.SyncByteStream, library.AsyncByteStream) if issubclass(stream_class, base))
        made = _closing_classes[response_class, stream_class] = type("ClosingStream", (_Closing, *bases), {})
    return made
