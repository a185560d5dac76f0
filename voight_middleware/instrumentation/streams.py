"""
Metered iterators of the SDKs' streams.

The caller gets the SDK's own stream object. Its iterator is replaced by a ``MeteredIterator``,
which shows every event to a stream parser. Its response's byte stream is replaced by one that
reports when it is closed.

A ``MeteredIterator`` is an object, not a generator function: one that is dropped before its first
step must still report its end. Iterator and byte stream share the ``StreamCompletion`` and do not
refer to each other. A cycle between them would keep a dropped stream alive.
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
Called once when a stream has ended, with its parser, the outcome, the caller's exception, and the
time of the first event (``time.perf_counter_ns``).
"""


def call_guarded(function: Callable[..., object], *args: Any) -> None:
    """Call *function*. An exception in it is reported as an error of ours, and not raised."""
    try:
        function(*args)
    except Exception as error:
        report_internal_error(error)


class StreamCompletion:
    """
    The one end of a stream, whichever event reports it first.

    That is the last event, an error, a cancellation, a close, or the garbage collector.
    """

    __slots__ = ("_report", "first_event", "hides_usage", "inside", "parser")

    def __init__(self, parser: StreamParser, report: Report, hides_usage: bool = False) -> None:
        self.parser = parser
        self.hides_usage = hides_usage
        """Whether the stream has usage only because we asked for it."""
        self.inside = False
        """
        Whether the iterator waits for an event. The SDK closes the response before the iterator
        sees the end, and the iterator knows the outcome better.
        """
        self.first_event: int | None = None
        self._report = [report]
        open_calls.begun(self)

    def end(self, outcome: str, error: BaseException | None = None) -> None:
        """Report the end, once."""
        try:
            # atomic: a finalizer may run here at any time and in any thread
            report = self._report.pop()
        except IndexError:
            return
        open_calls.ended(self)
        report(self.parser, outcome, error, self.first_event)

    def discard_after_fork(self) -> None:
        """Report nothing. In a forked child, the stream belongs to the parent."""
        self._report.clear()

    def complete(self) -> None:
        """Report a stream that has no more events."""
        self.end(self._reported_outcome() or "truncated")

    def fail(self, error: BaseException) -> None:
        """Report a stream whose next event raised *error*."""
        kind = type(error).__name__
        done = self.parser.done
        call_guarded(_feed_failure, self.parser, error)
        if done and kind not in ("CancelledError", "Cancelled"):
            self.end(self._reported_outcome() or "ok")
        elif isinstance(error, Exception):
            self.end("error", error)
        else:
            self.end("aborted" if isinstance(error, GeneratorExit) else "cancelled", error)

    def close(self) -> None:
        """Report a closed response. While an event is awaited, the iterator will report the end."""
        if not self.inside:
            self.drop()

    def drop(self) -> None:
        """Report a stream that is not read any further."""
        self.end(self._reported_outcome() or "aborted")

    def _reported_outcome(self) -> str | None:
        """Return the outcome that the provider reported, or None."""
        return "error" if self.parser.failure else "ok" if self.parser.done else None


def _feed_failure(parser: StreamParser, error: BaseException) -> None:
    """
    Feed *parser* the event that openai made *error* from. A failure may be billed: OpenRouter
    reports its tokens.

    The exception has only the event's ``error`` (openai 1 to 3). The whole event is a variable of
    the SDK's generator.
    """
    trace = error.__traceback__ if hasattr(error, "body") else None
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "__stream__":
            event = trace.tb_frame.f_locals.get("data")
            if type(event) is dict and event.get("error") and event.get("usage"):
                parser.feed(viewed(event))
                return
        trace = trace.tb_next


class MeteredIterator(Generic[T]):
    """Replaces the iterator of an SDK's stream."""

    __slots__ = ("_completion", "_feed", "_hide", "_next")

    def __init__(self, iterator: Iterator[T], completion: StreamCompletion) -> None:
        self._next = iterator.__next__
        self._feed = completion.parser.feed
        self._hide = UsageChunks().take_out if completion.hides_usage else None
        self._completion = completion

    def __iter__(self) -> Iterator[T]:
        return self

    # close and throw, if the SDK's iterator is a generator
    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._next.__self__, name)  # type: ignore[attr-defined]

    def send(self, _value: object) -> T:
        """Return the next event, as the SDK's generator does for any value."""
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
                self._feed(viewed(event) if type(event) is dict else event)
            except Exception as fault:
                report_internal_error(fault)
            if self._hide is not None and self._hide(event):
                continue
            completion.inside = False
            return event

    def __del__(self) -> None:
        call_guarded(self._completion.drop)


class AsyncMeteredIterator(Generic[T]):
    """Replaces the iterator of an SDK's asynchronous stream."""

    __slots__ = ("_completion", "_feed", "_hide", "_next")

    def __init__(self, iterator: AsyncIterator[T], completion: StreamCompletion) -> None:
        self._next = iterator.__anext__
        self._feed = completion.parser.feed
        self._hide = UsageChunks().take_out if completion.hides_usage else None
        self._completion = completion

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    # aclose and athrow, if the SDK's iterator is a generator
    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._next.__self__, name)  # type: ignore[attr-defined]

    async def asend(self, _value: object) -> T:
        """Return the next event, as the SDK's generator does for any value."""
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
                self._feed(viewed(event) if type(event) is dict else event)
            except Exception as fault:
                report_internal_error(fault)
            if self._hide is not None and self._hide(event):
                continue
            completion.inside = False
            return event

    def __del__(self) -> None:
        call_guarded(self._completion.drop)


def hide_usage(result: Any) -> None:
    """
    Hide the usage that we asked for in a stream without a ``MeteredIterator``.

    *result* is an SDK's stream, or a raw response that will make one.
    """
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

    Its iteration stays the transport's own unless *body* is to see its parts.
    """
    response.stream = _closing_class(type(response), type(response.stream))(
        response.stream, closed, body
    )


class _Closing:
    """Replaces the byte stream of a response."""

    def __init__(self, inner: Any, closed: Callable[[], None], body: Body | None) -> None:
        self._inner = inner
        self._closed: Callable[[], None] | None = closed
        self._body = body
        # anthropic 2.x reads it at every event
        self.stream_observer = getattr(inner, "stream_observer", None)
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
            self.report_once()

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            self.report_once()

    def __del__(self) -> None:
        self.report_once()

    def discard_after_fork(self) -> None:
        """Report nothing. In a forked child, the byte stream belongs to the parent."""
        self._closed = None

    def report_once(self) -> None:
        """Report the end, once."""
        _open.discard(self)
        closed, self._closed = self._closed, None
        if closed is not None:
            call_guarded(closed)


_open: weakref.WeakSet[_Closing] = weakref.WeakSet()
"""The byte streams that are not closed yet."""


def _close_all() -> None:
    """Report each byte stream that is still open, with the parts that have passed."""
    for stream in list(_open):
        stream.report_once()


def _discard_all() -> None:
    """Drop the byte streams in a forked child. The parent reports them."""
    for stream in list(_open):
        stream.discard_after_fork()
    _open.clear()


open_calls.on_end_all(_close_all)
os.register_at_fork(after_in_child=_discard_all)
_closing_classes: dict[tuple[type, type], Any] = {}


def _closing_class(response_class: type, stream_class: type) -> Any:
    """
    Return a closing stream class of the HTTP library (httpx or httpx2) of *response_class*.

    We import neither. The class is synchronous, asynchronous or both, as *stream_class* is, so that
    the library's own errors for wrong use stay the same.
    """
    closing_class = _closing_classes.get((response_class, stream_class))
    if closing_class is None:
        libraries = (
            sys.modules.get(cls.__module__.partition(".")[0]) for cls in response_class.__mro__
        )
        library: Any = next(library for library in libraries if hasattr(library, "AsyncByteStream"))
        bases = tuple(
            base
            for base in (library.SyncByteStream, library.AsyncByteStream)
            if issubclass(stream_class, base)
        )
        closing_class = _closing_classes[response_class, stream_class] = type(
            "ClosingStream", (_Closing, *bases), {}
        )
    return closing_class
