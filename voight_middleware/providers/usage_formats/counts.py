"""Read single counts of a usage object. A count that was not reported is None, never 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from voight_middleware.records.usage import Count, UsageError, sum_counts

Doubts: TypeAlias = list[str]
"""Doubts about a usage, each a sentence for people. A call with doubts is priced in part."""
MAX_COUNT = 2**53
"""Counts from here on are not exact in the JSON of every client, and no provider reports them."""


def read_count(raw: Mapping[str, Any], key: str) -> Count:
    """
    Return the count of *key*, or None if it is missing or null.

    Raises:
        UsageError: It is not a whole number from 0 to below ``MAX_COUNT``.
    """
    value = raw.get(key)
    if value is None or (type(value) is int and 0 <= value < MAX_COUNT):
        return value
    raise UsageError(f"{key} is {value!r}, not a count")


def read_text(raw: Mapping[str, Any], key: str) -> str | None:
    """Return the text of *key*, or None for anything else."""
    value = raw.get(key)
    return value if isinstance(value, str) else None


def read_part(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the object of *key*, or an empty one for anything else."""
    value = raw.get(key)
    return value if type(value) is dict or isinstance(value, Mapping) else {}


def split_total(total: Count, name: str, doubts: Doubts, *parts: Count) -> tuple[Count, ...]:
    """Return the rest of *total*, then its *parts*. Parts that exceed their total are dropped."""
    if total is None:
        return (None, *parts)
    rest = total
    for part in parts:
        if part:
            rest -= part
    if rest < 0:
        doubts.append(
            f"usage contradicts itself: the parts of {name} add up to more than its {total}, so "
            "they are left out"
        )
        return (total, *(None for _ in parts))
    return (rest, *parts)


def split_kinds(
    cached: Count, text: Count, audio: Count, image: Count, doubts: Doubts
) -> tuple[Count, Count]:
    """
    Return the cached tokens of audio and of images, if the provider does not report them.

    They are certain if the input is of one kind only. Otherwise, as many as possible count as text,
    and the rest is billed in full.
    """
    if not cached or text is None or not (audio or image):
        return None, None
    left = cached - min(cached, max(text, 0))
    of_audio = min(left, audio or 0)
    of_image = min(left - of_audio, image or 0)
    if sum(1 for kind in (text, audio, image) if kind) > 1:
        doubts.append(
            f"usage does not say whether its {cached} cached tokens are text, audio or images"
        )
    return of_audio or None, of_image or None


def count_or_zero(raw: Mapping[str, Any], key: str) -> int:
    """Return a count that only confirms others; 0 if it is missing or odd."""
    value = raw.get(key)
    return value if type(value) is int and 0 <= value < MAX_COUNT else 0


def doubt_reasoning(reasoning: Count, output: Count, name: str, doubts: Doubts) -> None:
    """Doubt reasoning tokens that exceed *output*, of which they are a part."""
    if reasoning and output is not None and reasoning > output:
        doubts.append(
            f"usage contradicts itself: its {reasoning} reasoning tokens are more than {name} = "
            f"{output}, of which they are a part"
        )


def remainder(total: Count, name: str, doubts: Doubts, *parts: Count) -> Count:
    """
    Return the part of *total* that is in none of its *parts*.

    Parts that exceed their total win, with a doubt: they are more precise.
    """
    known = sum_counts(*parts)
    if total is None or known is None or known <= total:
        return None if total is None else total - (known or 0)
    doubts.append(
        f"usage contradicts itself: the parts of {name} add up to more than its {total}, so they "
        "are counted instead of it"
    )
    return None
