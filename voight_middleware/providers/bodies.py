"""
Bodies that the caller reads by hand: ``with_streaming_response``, and raw streams that are never parsed.

The SDK makes no answer of them that could be looked at. What passes by is kept, and read once it has passed.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

from voight_middleware.meter import note

MAX_BODY_BYTES = 32 * 1024 * 1024
"""A longer body is let pass; its usage stays unknown."""


class Body:
    """One body, as it passes by."""

    __slots__ = ("_answer", "_kept", "_size", "ended", "error", "first_part")

    def __init__(self, response: Any) -> None:
        self.first_part: int | None = None
        """When the first part came (``time.perf_counter_ns``)."""
        self.ended = False
        """Whether all of it has passed."""
        self.error: BaseException | None = None
        """What broke it off."""
        make: Callable[..., Any] = type(response)
        self._answer = partial(make, response.status_code, headers=response.headers)
        self._kept: list[bytes] | None = []
        self._size = 0

    def forget(self) -> None:
        """Keep nothing: the answer is seen in another way."""
        self._kept = None

    def take(self, part: bytes) -> None:
        """A part is passing by."""
        if self.first_part is None:
            self.first_part = time.perf_counter_ns()
        if self._kept is not None:
            self._size += len(part)
            self._kept.append(part)
            if self._size > MAX_BODY_BYTES:
                self._kept = None

    def content(self) -> bytes:
        """What has passed, with its content encoding undone; empty for one that was too long, or cannot be decoded."""
        try:
            return bytes(self._answer(content=b"".join(self._kept)).content) if self._kept else b""
        except Exception as error:
            if type(error).__name__ != "DecodingError":  # httpx's and httpx2's own, of a broken body
                note(error)
            return b""

    def events(self) -> Iterator[Any]:
        """The server-sent events in it."""
        import json

        for line in self.content().splitlines():
            if line.startswith(b"data:") and line[5:].lstrip().startswith(b"{"):
                yield json.loads(line[5:], object_hook=_Event)


class Lines(Body):
    """
    A body of JSON Lines, each handed on as it has passed. Nothing is kept: a batch's answers may be larger than the memory.

    Args:
        line: Takes a line; false where no more are wanted.
    """

    __slots__ = ("_decompress", "_line", "_rest")

    def __init__(self, response: Any, line: Callable[[bytes], bool]) -> None:
        super().__init__(response)
        self._kept = None
        self._rest: list[bytes] = []
        encoding = response.headers.get("content-encoding", "identity")
        self._decompress: Callable[[bytes], bytes] | None = None
        if encoding in ("gzip", "deflate"):
            self._decompress = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress
        self._line: Callable[[bytes], bool] | None = line if encoding in ("gzip", "deflate", "identity", "") else None

    def take(self, part: bytes) -> None:
        if self._line is not None:
            first, *others = (part if self._decompress is None else self._decompress(part)).split(b"\n")
            self._rest.append(first)
            for begun in others:
                self._hand_on(b"".join(self._rest))
                self._rest = [begun]

    def forget(self) -> None:
        self._line, self._rest = None, []

    def done(self) -> None:
        """The body is closed: its last line may have no end."""
        if self.ended:
            self._hand_on(b"".join(self._rest))

    def _hand_on(self, line: bytes) -> None:
        if self._line is not None and line.strip() and not self._line(line):
            self.forget()


class _Event(dict[str, Any]):
    """An event's JSON, to be read as the SDK's own event is."""

    __getattr__ = dict.get


class Passing:
    """The parts of a body, on their way to the caller."""

    __slots__ = ("_body", "_next")

    def __init__(self, parts: Iterator[bytes], body: Body) -> None:
        self._next = parts.__next__
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            part = self._next()
        except StopIteration:
            self._body.ended = True
            raise
        except BaseException as error:
            self._body.error = error
            raise
        try:
            self._body.take(part)
        except Exception as error:
            note(error)
            self._body.forget()
        return part


class AsyncPassing:
    """The parts of a body, on their way to an asynchronous caller."""

    __slots__ = ("_body", "_next")

    def __init__(self, parts: AsyncIterator[bytes], body: Body) -> None:
        self._next = parts.__anext__
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            part = await self._next()
        except StopAsyncIteration:
            self._body.ended = True
            raise
        except BaseException as error:
            self._body.error = error
            raise
        try:
            self._body.take(part)
        except Exception as error:
            note(error)
            self._body.forget()
        return part
