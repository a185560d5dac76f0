"""
Rollups: sums over coarse groups of calls that a ledger keeps, and which of them serve a query.

They can be rebuilt from the calls at any time. Each engine decides how to update them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from voight_middleware.ledger.base import Where, Window, has_wildcard, wildcard_parts


@dataclass(frozen=True, slots=True)
class Rollup:
    """One table of sums: a row per time bucket and combination of *names*."""

    table: str
    bucket: str
    """``hour`` (hours since 1970), ``day`` or ``month`` (text), all in UTC."""
    names: tuple[str, ...]
    """Dimensions. An empty text means no value."""
    owned: bool = False
    """Whether calls with and without a user have separate rows, although users don't."""

    @property
    def key(self) -> tuple[str, ...]:
        """The key columns of a row."""
        return (self.bucket, *self.names, *(["owned"] if self.owned else []))

    @property
    def times(self) -> tuple[str, ...]:
        """The times that the rows distinguish."""
        return _TIMES[_TIMES.index(self.bucket) :]

    def supports(self, by: Collection[str], where: Where) -> bool:
        """Return whether the rollup can serve a query on these dimensions."""
        known = {*self.names, *self.times}
        unowned = self.owned and where.get("user_id", "") is None
        return known.issuperset(by) and all(
            name in known or (name == "user_id" and unowned) for name in where
        )

    def split_window(
        self, window: Window, extent: tuple[int, int] | None = None
    ) -> tuple[Bucket | None, Bucket | None, list[Edge]] | None:
        """
        Split *window* into whole buckets and its edges.

        An edge is added to the buckets, or subtracted from them, whichever is the shorter time with
        calls. Only calls in *extent* exist.

        Returns the first bucket, the first bucket after the last one, and the edges. None if no
        whole bucket is left.
        """
        if None not in (window.since, window.until) and window.since >= window.until:  # type: ignore[operator]
            return None
        oldest, newest = extent or (-(2**63), 2**63)
        edges: list[Edge] = []
        outside = 0
        since = until = None
        if window.since is not None:
            before, since = self.floor(window.since), self.ceil(window.since)
            if before != since:
                length = window.since - max(_microseconds(before), oldest)
                if length < _microseconds(since) - window.since:
                    outside += length
                    edges.append((Window(_microseconds(before), window.since), -1))
                    since = before
                else:
                    edges.append((Window(window.since, _microseconds(since)), 1))
        if window.until is not None:
            until = self.floor(window.until)
            if _microseconds(until) != window.until:
                after = self.ceil(window.until)
                length = min(_microseconds(after), newest + 1) - window.until
                if length < window.until - _microseconds(until):
                    outside += length
                    edges.append((Window(window.until, _microseconds(after)), -1))
                    until = after
                else:
                    edges.append((Window(_microseconds(until), window.until), 1))
        if since is not None and until is not None:
            within_one = self.ceil(_microseconds(since) + 1) == until
            whole = (window.until or 0) - (window.since or 0)
            if since >= until or (within_one and outside >= whole):
                return None
        return (
            None if since is None else self.name(since),
            None if until is None else self.name(until),
            edges,
        )

    def cover(self, window: Window) -> Window:
        """Return the shortest window of whole buckets that contains *window*."""
        return Window(
            None if window.since is None else _microseconds(self.floor(window.since)),
            None if window.until is None else _microseconds(self.ceil(window.until)),
        )

    def name(self, begin: datetime) -> Bucket:
        """Return the name of the bucket that begins at *begin*."""
        return (
            (begin - _EPOCH) // _HOUR
            if self.bucket == "hour"
            else begin.strftime("%Y-%m-%d" if self.bucket == "day" else "%Y-%m")
        )

    def floor(self, microseconds: int) -> datetime:
        """Return the beginning of the bucket that contains a moment."""
        begin = (_EPOCH + timedelta(microseconds=microseconds)).replace(
            minute=0, second=0, microsecond=0
        )
        if self.bucket == "hour":
            return begin
        return begin.replace(hour=0) if self.bucket == "day" else begin.replace(day=1, hour=0)

    def ceil(self, microseconds: int) -> datetime:
        """
        Return the beginning of the next bucket, or the moment itself if a bucket begins there.
        """
        begin = self.floor(microseconds)
        if _microseconds(begin) == microseconds:
            return begin
        if self.bucket != "month":
            return begin + (_HOUR if self.bucket == "hour" else timedelta(days=1))
        year, month = divmod(begin.year * 12 + begin.month, 12)
        return _LAST if year > _LAST.year else begin.replace(year=year, month=month + 1)

    def buckets(
        self, extent: tuple[int, int], first: Bucket | None, end: Bucket | None
    ) -> Iterator[Bucket]:
        """Yield the buckets that two moments span, from *first* until before *end*."""
        at = self.floor(extent[0])
        while _microseconds(at) <= extent[1]:
            name: Any = self.name(at)
            if end is not None and name >= end:
                return
            if first is None or name >= first:
                yield name
            at = self.ceil(_microseconds(at) + 1)


Bucket: TypeAlias = str | int
Edge: TypeAlias = tuple[Window, int]
"""A window, and 1 if it is added or -1 if it is subtracted."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_HOUR = timedelta(hours=1)
_TIMES = ("hour", "day", "month")

MODELS = Rollup(
    "days_of_models",
    "day",
    ("plan", "provider", "model", "endpoint", "route", "release", "attribution"),
    owned=True,
)
PLANS = Rollup(
    "hours_of_plans",
    "hour",
    ("plan", "provider", "model", "release", "cost_status"),
    owned=True,
)
USERS = Rollup("months_of_users", "month", ("user_id", "plan", "tenant_id"))
USER_DAYS = Rollup("days_of_users", "day", ("user_id", "plan", "tenant_id", "release"))
USER_MODELS = Rollup(
    "months_of_user_models", "month", ("user_id", "release", "model", "cost_status")
)
ROLLUPS = (MODELS, PLANS, USERS, USER_DAYS, USER_MODELS)
_CHAINS = ((MODELS, PLANS), (USERS, USER_DAYS), (USER_MODELS,))
"""
The smaller tables first, and in each chain the coarser one. The next one serves the edges of a
window.
"""
_SELECTIVE = 8
"""With at least this many characters, the beginning of an id is assumed to match few users."""


def is_one_user(value: str | tuple[str | None, ...] | None) -> bool:
    """Return whether a filter on users selects single users, whose few calls an index finds."""
    values = value if isinstance(value, tuple) else (value,)
    return all(
        user is not None and (not has_wildcard(user) or len(wildcard_parts(user)[0]) >= _SELECTIVE)
        for user in values
    )


Part: TypeAlias = tuple[Rollup, Bucket | None, Bucket | None, int]
"""
A rollup, its first bucket that counts, the first one after it that doesn't, and the sign of
``Edge``.
"""


def plan_query(
    by: Collection[str],
    where: Where,
    window: Window,
    usable: Collection[Rollup] = ROLLUPS,
    extent: tuple[int, int] | None = None,
) -> tuple[list[Part], list[Edge]]:
    """Return the rollups that serve a query, and the windows that only the calls can serve."""
    for chain in _CHAINS:
        parts: list[Part] = []
        windows: list[Edge] = [(window, 1)]
        for rollup in chain:
            if rollup not in usable or not rollup.supports(by, where):
                continue
            left: list[Edge] = []
            for part, sign in windows:
                if (whole := rollup.split_window(part, extent)) is None:
                    left.append((part, sign))
                else:
                    parts.append((rollup, whole[0], whole[1], sign))
                    left += [(edge, sign * side) for edge, side in whole[2]]
            windows = left
        if parts:
            return parts, windows
    return [], [(window, 1)]


def month_of(microseconds: int) -> tuple[str, int, int]:
    """Return the month of a moment (``2026-11``), its first microsecond, and the next month's."""
    begin = USERS.floor(microseconds)
    return str(USERS.name(begin)), _microseconds(begin), _microseconds(USERS.ceil(microseconds + 1))


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
