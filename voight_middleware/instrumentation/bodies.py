"""
Bodies that the caller reads themselves: ``with_streaming_response``, and raw streams that are never
parsed.

The SDK makes no object from them. Their parts are kept as they pass, and parsed at the end.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

from voight_middleware.diagnostics import counters, report_internal_error

MAX_BODY_BYTES = 32 * 1024 * 1024
"""A longer body, compressed or not, is not read; its usage stays unknown."""
PLAIN = ("identity", "")
ZIPPED = ("gzip", "deflate")
_STEP = 1024 * 1024
"""How many bytes of a stream are decompressed at a time."""
_MAX_PACKED = 200
"""
How many times its size a stream may decompress to, beyond its first ``_SLACK`` bytes.

The chunks of a chat are compressed to a thirtieth.
"""
_SLACK = 4 * 1024 * 1024
_PIECES = {"gzip": 1024, "deflate": 1024}
"""
How many compressed bytes are decompressed at a time, so that the result stays small.

Deflate makes at most a thousand bytes from one.
"""
_PIECE = 16
"""The same for other encodings, which may make megabytes from a few bytes."""


class Body:
    """One body, as it passes."""

    __slots__ = ("_encoding", "_kept", "_make_response", "_size", "ended", "error", "first_part")

    def __init__(self, response: Any) -> None:
        self.first_part: int | None = None
        """When the first part came (``time.perf_counter_ns``)."""
        self.ended = False
        """Whether the whole body has passed."""
        self.error: BaseException | None = None
        """The exception that ended it early."""
        response_class: Callable[..., Any] = type(response)
        self._make_response = partial(
            response_class, response.status_code, headers=response.headers
        )
        self._encoding = response.headers.get("content-encoding", "identity").lower()
        self._kept: list[bytes] | None = []
        self._size = 0

    def forget(self) -> None:
        """Keep nothing: the response is read in another way."""
        self._kept = None

    def take(self, part: bytes) -> None:
        """Take a part that passes."""
        if self.first_part is None:
            self.first_part = time.perf_counter_ns()
        if self._kept is not None:
            self._size += len(part)
            self._kept.append(part)
            if self._size > MAX_BODY_BYTES:
                self._kept = None

    def content(self) -> bytes:
        """
        Return the content that has passed, with its content encoding undone.

        Return nothing for a body that was too long, or cannot be decoded.
        """
        try:
            return self._unpacked(b"".join(self._kept)) if self._kept else b""
        except Exception as error:
            # httpx's and httpx2's own error for a broken body
            if type(error).__name__ != "DecodingError":
                report_internal_error(error)
            return b""

    def _unpacked(self, packed: bytes) -> bytes:
        """Undo the encoding with the caller's HTTP library, in pieces: 1 MB may become 1 GB."""
        if self._encoding in PLAIN:
            return packed
        piece = _PIECES.get(self._encoding, _PIECE)
        out = bytearray()
        pieces = (packed[at : at + piece] for at in range(0, len(packed), piece))
        for part in self._make_response(content=pieces).iter_bytes():
            out += part
            if len(out) > MAX_BODY_BYTES:
                return b""
        return bytes(out)

    def events(self) -> Iterator[Any]:
        """Return the server-sent events in the body."""
        import json

        for line in self.content().splitlines():
            if line.startswith(b"data:") and line[5:].lstrip().startswith(b"{"):
                yield json.loads(line[5:], object_hook=_Event)


class Unpacking:
    """Decompresses the parts of a body with gzip or deflate encoding."""

    __slots__ = ("_packed", "_unpacked", "_zlib")

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._packed = self._unpacked = 0

    def feed(self, part: bytes) -> Iterator[bytes]:
        """
        Return the decompressed *part*, a megabyte at a time.

        Raises:
            ValueError: So much comes from so few bytes only in an attack.
            zlib.error: The part has another encoding.
        """
        while not self._zlib.eof:
            data = self._zlib.decompress(part, _STEP)
            self._packed += len(part) - len(self._zlib.unconsumed_tail)
            self._unpacked += len(data)
            if self._unpacked > _SLACK + _MAX_PACKED * self._packed:
                raise ValueError("the body decompresses to hundreds of times its size")
            yield data
            part = self._zlib.unconsumed_tail
            if not part and len(data) < _STEP:
                return


class Lines(Body):
    """
    A body of JSON Lines. Each line is passed on as soon as it has passed.

    Nothing is kept, as a batch output file may be larger than the memory.

    Args:
        line: Called with each line; returns False if it wants no more.
    """

    __slots__ = ("_line", "_rest", "_rest_size", "_unpack")

    def __init__(self, response: Any, line: Callable[[bytes], bool]) -> None:
        super().__init__(response)
        self._kept = None
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._unpack = Unpacking() if self._encoding in ZIPPED else None
        self._line: Callable[[bytes], bool] | None = (
            line if self._encoding in (*ZIPPED, *PLAIN) else None
        )

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
            self._rest, self._rest_size = [], 0
            for line in filter(None, map(bytes.strip, lines)):
                self._hand_on(line)
        self._rest.append(begun)
        self._rest_size += len(begun)
        if self._rest_size > MAX_BODY_BYTES:
            raise ValueError("a line has no end")

    def forget(self) -> None:
        self._line, self._rest = None, []

    def done(self) -> None:
        """Pass on the last line of a closed body, which may have no line end."""
        if self.ended and (line := b"".join(self._rest).strip()):
            self._hand_on(line)

    def _hand_on(self, line: bytes) -> None:
        if self._line is not None and not self._line(line):
            self.forget()


class _Event(dict[str, Any]):
    """An event's JSON with attribute access, as the SDK's own event has."""

    __getattr__ = dict.get


class Passing:
    """Iterates the parts of a body for the caller, and shows them to a ``Body``."""

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
    """As ``Passing``, for an asynchronous caller."""

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
