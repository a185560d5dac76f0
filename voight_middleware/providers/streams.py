"""
Taps on the SDKs' streams.

The SDK's own stream object goes to the caller. Its iterator is replaced by a tap, which shows every event to a reader, and its
response's byte stream by one that tells when it is closed. A tap is an object and no generator function: one that is dropped
before its first step must still report its end. Tap and byte stream share the ``Ending`` and do not know each other, so that no
cycle keeps a dropped stream alive.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, TypeVar

from voight_middleware.providers.answers import StreamReader

T = TypeVar("T")

Report = Callable[[StreamReader, str, BaseException | None, int | None], None]
"""
Told once how a stream ended: its reader, the outcome, the caller's exception, and when the first event came
(``time.perf_counter_ns``).
"""


class Ending:
    """The one end of a stream, whoever notices it first: the last event, an error, a cancellation, a close, or the garbage collector."""

    __slots__ = ("_report", "first_event", "inside", "reader")

    def __init__(self, reader: StreamReader, report: Report) -> None:
        self.reader = reader
        self.inside = False
        """Whether an event is being waited for: the SDK closes the response before the end reaches the tap, which knows it better."""
        self.first_event: int | None = None
        self._report = [report]

    def end(self, outcome: str, error: BaseException | None = None) -> None:
        """Report the end, once."""
        try:
            report = self._report.pop()  # atomic: a finalizer may run here at any time, and in any thread
        except IndexError:
            return
        report(self.reader, outcome, error, self.first_event)

    def exhausted(self) -> None:
        """The stream has no more events."""
        self.end("error" if self.reader.failure else "ok" if self.reader.done else "truncated")

    def failed(self, error: BaseException) -> None:
        """Waiting for the next event raised."""
        kind = type(error).__name__
        if self.reader.done and kind not in ("CancelledError", "Cancelled"):
            self.end("ok")
        elif isinstance(error, Exception):
            self.end("error", error)
        else:
            self.end("aborted" if isinstance(error, GeneratorExit) else "cancelled", error)

    def closed(self) -> None:
        """The response was closed; while an event is being waited for, the tap will tell how that ends."""
        if not self.inside:
            self.dropped()

    def dropped(self) -> None:
        """Nobody will read on."""
        self.end("ok" if self.reader.done else "aborted")


class Tap(Generic[T]):
    """Stands where the SDK keeps a stream's iterator."""

    __slots__ = ("_ending", "_next", "_see")

    def __init__(self, iterator: Iterator[T], ending: Ending) -> None:
        self._next = iterator.__next__
        self._see = ending.reader.see
        self._ending = ending

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        ending = self._ending
        ending.inside = True
        try:
            event = self._next()
            if ending.first_event is None:
                ending.first_event = time.perf_counter_ns()
            while self._see(event):
                event = self._next()
        except StopIteration:
            ending.exhausted()
            raise
        except BaseException as error:
            ending.failed(error)
            raise
        ending.inside = False
        return event

    def __del__(self) -> None:
        self._ending.dropped()


class AsyncTap(Generic[T]):
    """Stands where the SDK keeps an asynchronous stream's iterator."""

    __slots__ = ("_ending", "_next", "_see")

    def __init__(self, iterator: AsyncIterator[T], ending: Ending) -> None:
        self._next = iterator.__anext__
        self._see = ending.reader.see
        self._ending = ending

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        ending = self._ending
        ending.inside = True
        try:
            event = await self._next()
            if ending.first_event is None:
                ending.first_event = time.perf_counter_ns()
            while self._see(event):
                event = await self._next()
        except StopAsyncIteration:
            ending.exhausted()
            raise
        except BaseException as error:
            ending.failed(error)
            raise
        ending.inside = False
        return event

    def __del__(self) -> None:
        self._ending.dropped()


_closing_classes: dict[type, type] = {}


def watch_close(response: Any, closed: Callable[[], None]) -> None:
    """Call *closed* when the byte stream of an httpx or httpx2 *response* is closed; its iteration stays the transport's own."""
    response.stream = _closing_class(response)(response.stream, closed)


def _closing_class(response: Any) -> Any:
    """A byte-stream class for the HTTP library (httpx or httpx2) that *response* is of; ours imports neither."""
    response_class = type(response)
    if response_class not in _closing_classes:
        library: Any = sys.modules[response_class.__module__.partition(".")[0]]

        class ClosingStream(library.SyncByteStream, library.AsyncByteStream):  # type: ignore[misc]
            def __init__(self, inner: Any, closed: Callable[[], None]) -> None:
                self._inner = inner
                self._closed = closed
                self.stream_observer = getattr(inner, "stream_observer", None)  # anthropic 2.x asks for it at every event

            def __iter__(self) -> Iterator[bytes]:
                return iter(self._inner)

            def __aiter__(self) -> AsyncIterator[bytes]:
                return self._inner.__aiter__()  # type: ignore[no-any-return]

            def __getattr__(self, name: str) -> Any:
                return getattr(self._inner, name)

            def close(self) -> None:
                try:
                    self._inner.close()
                finally:
                    self._closed()

            async def aclose(self) -> None:
                try:
                    await self._inner.aclose()
                finally:
                    self._closed()

        _closing_classes[response_class] = ClosingStream
    return _closing_classes[response_class]
