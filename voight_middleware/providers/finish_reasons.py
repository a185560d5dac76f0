"""
Finish reasons: why a model stopped, in the provider's own word (``stop``, ``max_tokens``,
``SAFETY``, …).

A reason is one short word. If there is anything else in its place, all reasons of the response
count as unknown. So no text of a response can be kept as a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MAX_LENGTH = 64
"""The maximum length of a reason, in characters. A longer text is not a reason."""
MAX_REASONS = 16
"""The maximum number of choices whose reasons are kept: the first ones."""


def read_reason(value: object) -> str | None:
    """Return *value* if it is one word; None for a reason that is missing or odd."""
    if (
        isinstance(value, str)
        and len(value) <= MAX_LENGTH
        and value.isascii()
        and value.replace("-", "_").isidentifier()
    ):
        return value
    return None


_COMMON = {
    word: (word,) for word in ("stop", "length", "tool_calls", "end_turn", "max_tokens", "tool_use")
}
"""The reasons of most responses: nothing is made for these."""


def only_reason(value: object) -> tuple[str, ...] | None:
    """Return the reasons of a response that has one."""
    if type(value) is str and (common := _COMMON.get(value)) is not None:
        return common
    reason = read_reason(value)
    return None if reason is None else (reason,)


def note_reasons(
    noted: dict[int, str | None], choices: Iterable[object], name: str = "finish_reason"
) -> None:
    """
    Note in *noted*, by the index of the choice, the reasons of *choices*. A running choice has
    none.

    Args:
        noted: The reasons so far, changed in place.
        choices: The choices of a response or a chunk.
        name: The attribute that has the reason.
    """
    for position, choice in enumerate(choices):
        value = getattr(choice, name, None)
        if value:
            index = getattr(choice, "index", None)
            if type(index) is not int or index < 0:
                index = position
            if index < MAX_REASONS:
                noted[index] = read_reason(value)


def in_order(noted: Mapping[int, str | None]) -> tuple[str, ...] | None:
    """Return the noted reasons in order; None if one before the last is missing or odd."""
    reasons = [noted.get(index) for index in range(max(noted, default=-1) + 1)]
    known = tuple(reason for reason in reasons if reason is not None)
    return known if known and len(known) == len(reasons) else None
