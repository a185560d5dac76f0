"""Unpack the body of a request, no further than it may reach."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from voight_middleware.otlp.framing import Malformed, TooLarge

MAX_MEMBERS = 64
"""How many parts a body of gzip may have: an empty one has 20 bytes."""


def _identity(packed: bytes, most: int) -> bytes:
    if len(packed) > most:
        raise TooLarge(f"a body has at most {most:,} bytes")
    return packed


def _inflate(packed: bytes, most: int, *windows: int) -> bytes:
    """
    Return what was packed, as far as *most* bytes: a thousandth of it on the wire may say all of it.

    Raises:
        Malformed: It was not packed so, or is not all there.
        TooLarge: It is more than *most* bytes, or has too many parts.
    """
    for number, window in enumerate(windows):
        out, rest, members = bytearray(), packed, 0
        try:
            while rest:
                members += 1
                if members > MAX_MEMBERS:
                    raise TooLarge(f"a body has at most {MAX_MEMBERS} parts of gzip")
                unpacking = zlib.decompressobj(window)
                out += unpacking.decompress(rest, most + 1 - len(out))
                if len(out) > most:
                    raise TooLarge(f"a body has at most {most:,} bytes when it is unpacked")
                if not unpacking.eof:
                    raise Malformed("a packed body that ends before its end")
                rest = unpacking.unused_data  # gzip may have several parts
            return bytes(out)
        except zlib.error as error:
            if number == len(windows) - 1:
                raise Malformed("a body that is not packed as it says") from error
    raise AssertionError


UNPACKERS: dict[str, Callable[[bytes, int], bytes]] = {
    "identity": _identity,
    "none": _identity,
    "gzip": lambda packed, most: _inflate(packed, most, zlib.MAX_WBITS | 16),
    # RFC 9110, 8.4.1.2: with zlib's frame; some senders leave it out.
    "deflate": lambda packed, most: _inflate(packed, most, zlib.MAX_WBITS, -zlib.MAX_WBITS),
}
