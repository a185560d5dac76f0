"""
The shape of a usage object: its text with a placeholder for each number.

Providers report few shapes and many numbers. So a shape is looked at once, and stored once.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache
from typing import Any

import msgspec

_split = re.compile(r":([1-9][0-9]{0,11})").split
_ODD = re.compile(r"^(?!{)|\0|%(?!d)|%d(?![,}\]])|[:,\[]\s*-?(?!0[,}\]])[0-9]")
"""
No object, a NUL, a percent sign, a placeholder inside a longer word, or a number that is left, 0
excepted.
"""

# Keep numbers with a fraction, such as a cost, exact.
decode = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode
"""Read the text of a usage object."""
_encode = msgspec.json.Encoder(decimal_format="number").encode


def encode(usage: dict[str, Any]) -> str:
    """Return the text of a usage object on one line, without spaces."""
    return _encode(usage).decode()


@lru_cache(4_096)  # who prices a call and who stores it split the same text
def split(text: str) -> tuple[str, tuple[int, ...]] | None:
    """
    Return the shape of a JSON text and its numbers. ``shape % numbers`` is the same text again.

    A zero is part of the shape. So are texts, which only hold few values in a usage. Return None
    for a text with a fraction, a negative number or a number in a list.
    """
    parts = _split(text)
    shape = ":%d".join(parts[::2])
    return (shape, tuple(map(int, parts[1::2]))) if _is_plain(shape) else None


@lru_cache(1_024)
def _is_plain(shape: str) -> bool:
    return _ODD.search(shape) is None
