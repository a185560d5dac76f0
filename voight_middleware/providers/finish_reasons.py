"""
Finish reasons: why a model stopped, in the provider's own word for it (``stop``, ``max_tokens``, ``SAFETY``, …).

A reason is one short word. Where anything else stands in its place, the reasons of the whole answer are not known: so nothing of an
answer's text comes this way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MAX_LENGTH = 64
"""Characters of a reason; a longer one is none."""
MAX_REASONS = 16
"""Of an answer with more choices, the first."""


def read_reason(value: object) -> str | None:
    """*value* where it is one word; None for a reason that is missing or odd."""
    if isinstance(value, str) and len(value) <= MAX_LENGTH and value.isascii() and value.replace("-", "_").isidentifier():
        return value
    return None


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
            if index < MAX_REASONS:
                found[index] = read_reason(value)


def in_order(found: Mapping[int, str | None]) -> tuple[str, ...] | None:
    """What was noted, in the order of the choices; None where anything before the last of it is missing or odd."""
    reasons = [found.get(index) for index in range(max(found, default=-1) + 1)]
    known = tuple(reason for reason in reasons if reason is not None)
    return known if known and len(known) == len(reasons) else None
