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

from voight_middleware.diagnostics import counters, report_internal_error

MAX_BODY_BYTES = 32 * 1024 * 1024
"""A longer body, packed or not, is let pass; its usage stays unknown."""
PLAIN = ("identity", "")
ZIPPED = ("gzip", "deflate")
_STEP = 1024 * 1024
"""How many bytes of a stream are unpacked at a time."""
_MAX_PACKED = 200
"""How many times its size a stream may have unpacked, beyond its first ``_SLACK`` bytes. Chunks of a chat shrink to a thirtieth."""
_SLACK = 4 * 1024 * 1024
_PIECES = {"gzip": 1024, "deflate": 1024}
"""How many packed bytes are unpacked at a time, so that none of it becomes too much. Deflate makes at most a thousand of one."""
_PIECE = 16
"""The same of other encodings, which make megabytes of some bytes."""


class Body:
    """One body, as it passes by."""

    __slots__ = ("_answer", "_encoding", "_kept", "_size", "ended", "error", "first_part")

    def __init__(self, response: Any) -> None:
        self.first_part: int | None = None
        """When the first part came (``time.perf_counter_ns``)."""
        self.ended = False
        """Whether all of it has passed."""
        self.error: BaseException | None = None
        """What broke it off."""
        make: Callable[..., Any] = type(response)
        self._answer = partial(make, response.status_code, headers=response.headers)
        self._encoding = response.headers.get("content-encoding", "identity").lower()
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
        """Return what has passed, with its content encoding undone; empty for one that was too long, or cannot be decoded."""
        try:
            return self._unpacked(b"".join(self._kept)) if self._kept else b""
        except Exception as error:
            if type(error).__name__ != "DecodingError":  # httpx's and httpx2's own, of a broken body
                report_internal_error(error)
            return b""

    def _unpacked(self, packed: bytes) -> bytes:
        """Undo the encoding by the caller's own HTTP library, piece by piece: a megabyte may be a gigabyte."""
        if self._encoding in PLAIN:
            return packed
        piece = _PIECES.get(self._encoding, _PIECE)
        out = bytearray()
        pieces = (packed[at : at + piece] for at in range(0, len(packed), piece))
        for part in self._answer(content=pieces).iter_bytes():
            out += part
            if len(out) > MAX_BODY_BYTES:
                return b""
        return bytes(out)

    def events(self) -> Iterator[Any]:
        """The server-sent events in it."""
        import json

        for line in self.content().splitlines():
            if line.startswith(b"data:") and line[5:].lstrip().startswith(b"{"):
                yield json.loads(line[5:], object_hook=_Event)


class Unpacking:
    """Undoes gzip or deflate of a body that passes by."""

    __slots__ = ("_packed", "_unpacked", "_zlib")

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._packed = self._unpacked = 0

    def feed(self, part: bytes) -> Iterator[bytes]:
        """
        Return what *part* unpacks to, a megabyte at a time.

        Raises:
            ValueError: So much comes out of so little only where it is meant to do harm.
            zlib.error: It is not packed so.
        """
        while not self._zlib.eof:
            data = self._zlib.decompress(part, _STEP)
            self._packed += len(part) - len(self._zlib.unconsumed_tail)
            self._unpacked += len(data)
            if self._unpacked > _SLACK + _MAX_PACKED * self._packed:
                raise ValueError("a body that unpacks to hundreds of times its size")
            yield data
            part = self._zlib.unconsumed_tail
            if not part and len(data) < _STEP:
                return


class Lines(Body):
    """
    A body of JSON Lines, each handed on as it has passed. Nothing is kept: a batch's answers may be larger than the memory.

    Args:
        line: Takes a line; false where no more are wanted.
    """

    __slots__ = ("_line", "_rest", "_size_of_rest", "_unpack")

    def __init__(self, response: Any, line: Callable[[bytes], bool]) -> None:
        super().__init__(response)
        self._kept = None
        self._rest: list[bytes] = []
        self._size_of_rest = 0
        self._unpack = Unpacking() if self._encoding in ZIPPED else None
        self._line: Callable[[bytes], bool] | None = line if self._encoding in (*ZIPPED, *PLAIN) else None

    def take(self, part: bytes) -> None:
        if self._line is None:
            return
        try:
            for data in (part,) if self._unpack is None else self._unpack.feed(part):
                self._split(data)
        except (ValueError, zlib.error):
            counters["unreadable_responses"] += 1
            self.forget()

    def _split(self, data: bytes) -> None:
        *lines, begun = data.split(b"\n")
        if lines:
            lines[0] = b"".join((*self._rest, lines[0]))
            self._rest, self._size_of_rest = [], 0
            for line in filter(None, map(bytes.strip, lines)):
                self._hand_on(line)
        self._rest.append(begun)
        self._size_of_rest += len(begun)
        if self._size_of_rest > MAX_BODY_BYTES:
            raise ValueError("a line without an end")

    def forget(self) -> None:
        self._line, self._rest = None, []

    def done(self) -> None:
        """The body is closed: its last line may have no end."""
        if self.ended and (line := b"".join(self._rest).strip()):
            self._hand_on(line)

    def _hand_on(self, line: bytes) -> None:
        if self._line is not None and not self._line(line):
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
            report_internal_error(error)
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
            report_internal_error(error)
            self._body.forget()
        return part
