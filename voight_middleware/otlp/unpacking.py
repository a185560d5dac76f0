"""Unpack the body of a request, up to a limit."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from voight_middleware.otlp.framing import Malformed, TooLarge

MAX_MEMBERS = 64
"""How many parts a gzip body may have. An empty part has 20 bytes."""


def _identity(packed: bytes, limit: int) -> bytes:
    if len(packed) > limit:
        raise TooLarge(f"a body may have at most {limit:,} bytes")
    return packed


def _inflate(packed: bytes, limit: int, *windows: int) -> bytes:
    """
    Return the unpacked body. A body may unpack to a thousand times its size on the wire.

    Raises:
        Malformed: The body has another format, or is incomplete.
        TooLarge: It unpacks to more than *limit* bytes, or has too many parts.
    """
    for number, window in enumerate(windows):
        out, rest, members = bytearray(), packed, 0
        try:
            while rest:
                members += 1
                if members > MAX_MEMBERS:
                    raise TooLarge(f"a gzip body may have at most {MAX_MEMBERS} parts")
                unpacking = zlib.decompressobj(window)
                out += unpacking.decompress(rest, limit + 1 - len(out))
                if len(out) > limit:
                    raise TooLarge(f"an unpacked body may have at most {limit:,} bytes")
                if not unpacking.eof:
                    raise Malformed("an incomplete packed body")
                rest = unpacking.unused_data  # gzip may have several parts
            return bytes(out)
        except zlib.error as error:
            if number == len(windows) - 1:
                raise Malformed("a body whose packing differs from its content-encoding") from error
    raise AssertionError


UNPACKERS: dict[str, Callable[[bytes, int], bytes]] = {
    "identity": _identity,
    "none": _identity,
    "gzip": lambda packed, limit: _inflate(packed, limit, zlib.MAX_WBITS | 16),
    # RFC 9110, 8.4.1.2: with zlib's header, which some senders omit.
    "deflate": lambda packed, limit: _inflate(packed, limit, zlib.MAX_WBITS, -zlib.MAX_WBITS),
}
