"""
Rollups: sums over coarse groups of calls that a ledger keeps, and which of them serve a query.

They can be rebuilt from the calls at any time. Each engine decides how to update them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

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
        self, window: Window
    ) -> tuple[Bucket | None, Bucket | None, list[Window]] | None:
        """
        Split *window* into whole buckets and the rest.

        Returns the first bucket inside, the first bucket after it, and the windows at the edges.
        None if no whole bucket fits.
        """
        since = None if window.since is None else self.ceil(window.since)
        until = None if window.until is None else self.floor(window.until)
        if since is not None and until is not None and since >= until:
            return None
        rest = []
        if since is not None and _microseconds(since) != window.since:
            rest.append(Window(window.since, _microseconds(since)))
        if until is not None and _microseconds(until) != window.until:
            rest.append(Window(_microseconds(until), window.until))
        return (
            None if since is None else self.name(since),
            None if until is None else self.name(until),
            rest,
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
        return begin.replace(year=year, month=month + 1)

    def buckets(self, first: int, last: int) -> list[Bucket]:
        """Return every bucket between two moments."""
        buckets, at = [], self.floor(first)
        while _microseconds(at) <= last:
            buckets.append(self.name(at))
            at = self.ceil(_microseconds(at) + 1)
        return buckets


Bucket: TypeAlias = str | int
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
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


Part: TypeAlias = tuple[Rollup, Bucket | None, Bucket | None]
"""A rollup, its first bucket that counts, and the first one after it that doesn't."""


def plan_query(
    by: Collection[str], where: Where, window: Window, usable: Collection[Rollup] = ROLLUPS
) -> tuple[list[Part], list[Window]]:
    """Return the rollups that serve a query, and the windows that only the calls can serve."""
    for chain in _CHAINS:
        parts: list[Part] = []
        windows = [window]
        for rollup in chain:
            if rollup not in usable or not rollup.supports(by, where):
                continue
            left: list[Window] = []
            for part in windows:
                if (whole := rollup.split_window(part)) is None:
                    left.append(part)
                else:
                    parts.append((rollup, whole[0], whole[1]))
                    left += whole[2]
            windows = left
        if parts:
            return parts, windows
    return [], [window]


def month_of(microseconds: int) -> tuple[str, int, int]:
    """Return the month of a moment (``2026-11``), its first microsecond, and the next month's."""
    begin = USERS.floor(microseconds)
    return str(USERS.name(begin)), _microseconds(begin), _microseconds(USERS.ceil(microseconds + 1))


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
