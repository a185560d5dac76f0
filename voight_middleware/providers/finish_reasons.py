"""
Finish reasons: why a model stopped, in the provider's own word for it (``stop``, ``max_tokens``, ``SAFETY``, …).

A reason is one short word. Where anything else stands in its place, the reasons of the whole answer are not known: so nothing of an
answer's text comes this way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

MOST_REASONS = 16
"""Of an answer with more choices, the first."""

_is_word = re.compile(r"[\w.:/-]{1,64}", re.ASCII).fullmatch
_is_json_word = re.compile(rb'"([\w.:/-]{1,64})"').fullmatch


def read_reason(value: object) -> str | None:
    """The reason in *value*, which is plain or JSON; None for one that is missing or odd."""
    if isinstance(value, msgspec.Raw):
        found = _is_json_word(value)
        return None if found is None else found[1].decode()
    return value if isinstance(value, str) and _is_word(value) else None


def only_reason(value: object) -> tuple[str, ...] | None:
    """The reasons of an answer that has one."""
    reason = read_reason(value)
    return None if reason is None else (reason,)


def note_reasons(found: dict[int, str | None], choices: Iterable[object], name: str = "finish_reason") -> None:
    """
    Note in *found*, by the index of the choice, what *choices* say of their end. One that is going on says nothing.

    Args:
        name: Of the attribute that has the reason.
    """
    for place, choice in enumerate(choices):
        value = getattr(choice, name, None)
        if value:
            index = getattr(choice, "index", None)
            if type(index) is not int or index < 0:
                index = place
            if index < MOST_REASONS:
                found[index] = read_reason(value)


def in_order(found: Mapping[int, str | None]) -> tuple[str, ...] | None:
    """What was noted, in the order of the choices; None where anything before the last of it is missing or odd."""
    reasons = [found.get(index) for index in range(max(found, default=-1) + 1)]
    known = tuple(reason for reason in reasons if reason is not None)
    return known if known and len(known) == len(reasons) else None
