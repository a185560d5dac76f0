"""The UTC offsets of a time zone, as SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def offsets(zone: tzinfo, first: int, last: int) -> list[tuple[int, timedelta]]:
    """
    Return the UTC offsets of *zone* between two times, each with the microsecond from which it
    applies.
    """

    def offset_at(microseconds: int) -> timedelta:
        return (_EPOCH + timedelta(microseconds=microseconds)).astimezone(
            zone
        ).utcoffset() or timedelta()

    found = [(first, offset_at(first))]
    week = 7 * 24 * 3600 * 1_000_000
    for begin, end in pairwise([*range(first, last, week), last]):
        while found[-1][1] != offset_at(end):  # the offset stays changed for longer than a week
            low, high = begin, end
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset_at(middle) == found[-1][1] else (low, middle)
            found.append((high, offset_at(high)))
    return found


def case(at: str, values: Sequence[tuple[int, str]]) -> str:
    """Return SQL that selects the value for a moment."""
    if len(values) == 1:
        return values[0][1]
    cases = " ".join(f"WHEN {at} >= {begin} THEN {value}" for begin, value in reversed(values[1:]))
    return f"(CASE {cases} ELSE {values[0][1]} END)"


def offset_text(offset: timedelta) -> str:
    """Return an offset as a text of SQL: ``'+05:45'``."""
    minutes = int(offset.total_seconds()) // 60
    return f"'{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}'"
