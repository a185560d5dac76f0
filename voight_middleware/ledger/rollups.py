"""
Rollups: sums over coarse groups of calls, beside them in the SQLite file.

Triggers keep them in the transaction of every change of a call, whoever makes it: a new call, a late owner, an answer to a job, another
price, an erasure. They hold nothing that the calls do not say, and can be built anew from them at any time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from voight_middleware.ledger.base import Where, Window

LIMB = 1_000_000_000
"""Costs are added up in two limbs: a sum of femto-dollars leaves SQLite's 64 bits at 9,223 USD."""

_READ = ("cache_read", "cache_read_audio", "cache_read_image")
_WRITTEN = ("cache_write", "cache_write_5m", "cache_write_1h")
_INPUT = ("input", "audio_in", "image_in", *_READ, *_WRITTEN)
_OUTPUT = ("output", "audio_out", "image_out")


def _known(counts: Sequence[str]) -> str:
    return f"COALESCE({', '.join(f'@{name}' for name in counts)}) IS NOT NULL"


def _total(counts: Sequence[str]) -> str:
    return " + ".join(f"COALESCE(@{name}, 0)" for name in counts)


MEASURES = {
    "calls": "1",
    "high": f"COALESCE(@cost_femto / {LIMB}, 0)",
    "low": f"COALESCE(@cost_femto % {LIMB}, 0)",
    "unpriced": "@cost_status = 'unpriced'",
    "partial": "@cost_status = 'partial'",
    "estimated": "@estimated_input IS NOT NULL OR @estimated_output IS NOT NULL",
    "errors": "@outcome = 'error'",
    "known_input": _known(_INPUT),
    "input": _total(_INPUT),
    "known_read": _known(_READ),
    "cache_read": _total(_READ),
    "known_written": _known(_WRITTEN),
    "cache_write": _total(_WRITTEN),
    "known_output": _known(_OUTPUT),
    "output": _total(_OUTPUT),
}
"""What is added up, as SQL over the columns of one call; ``@`` stands where a trigger says NEW or OLD."""


def _sum_known(counts: Sequence[str]) -> str:
    return f"COALESCE({', '.join(f'SUM({name})' for name in counts)}) IS NOT NULL"


def _sum_total(counts: Sequence[str]) -> str:
    return " + ".join(f"COALESCE(SUM({name}), 0)" for name in counts)


SUMS = {name: f"SUM({sql.replace('@', '')})" for name, sql in MEASURES.items()} | {
    "calls": "COUNT(*)",
    "high": f"COALESCE(SUM(cost_femto / {LIMB}), 0)",
    "low": f"COALESCE(SUM(cost_femto % {LIMB}), 0)",
    "known_input": _sum_known(_INPUT),
    "input": _sum_total(_INPUT),
    "known_read": _sum_known(_READ),
    "cache_read": _sum_total(_READ),
    "known_written": _sum_known(_WRITTEN),
    "cache_write": _sum_total(_WRITTEN),
    "known_output": _sum_known(_OUTPUT),
    "output": _sum_total(_OUTPUT),
}
"""
The same over many calls. To add up columns one by one, most of them empty, takes a third of the time of adding up their totals; whether
a count is known of any call is enough here.
"""
_COUNTED = (*_INPUT, *_OUTPUT, "cost_femto", "cost_status", "estimated_input", "estimated_output", "outcome", "occurred_at")


@dataclass(frozen=True, slots=True)
class Rollup:
    """One table of sums: a row for each bucket of time and each combination of *names*."""

    table: str
    bucket: str
    """``hour``, as hours since 1970, ``day`` or ``month``, as text; all in UTC."""
    names: tuple[str, ...]
    """Dimensions; an empty text stands for no value."""
    owned: bool = False
    """Whether calls with and without a user are kept apart, though users are not."""

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that make a row."""
        return (self.bucket, *self.names, *(["owned"] if self.owned else []))

    @property
    def times(self) -> tuple[str, ...]:
        """The times that it can tell apart."""
        return _TIMES[_TIMES.index(self.bucket) :]

    def answers(self, by: Collection[str], where: Where) -> bool:
        """Whether a question after these dimensions can be answered from here."""
        known = {*self.names, *self.times}
        unowned = self.owned and where.get("user_id", "") is None
        return known.issuperset(by) and all(name in known or (name == "user_id" and unowned) for name in where)

    def whole(self, window: Window) -> tuple[Bucket | None, Bucket | None, list[Window]] | None:
        """The first bucket that lies in *window*, the first that does no more, and what of the window is left beside; None without one."""
        since = None if window.since is None else self.ceil(window.since)
        until = None if window.until is None else self.floor(window.until)
        if since is not None and until is not None and since >= until:
            return None
        rest = []
        if since is not None and _microseconds(since) != window.since:
            rest.append(Window(window.since, _microseconds(since)))
        if until is not None and _microseconds(until) != window.until:
            rest.append(Window(_microseconds(until), window.until))
        return None if since is None else self.name(since), None if until is None else self.name(until), rest

    def name(self, begin: datetime) -> Bucket:
        """How the bucket is called that begins then."""
        return (begin - _EPOCH) // _HOUR if self.bucket == "hour" else begin.strftime("%Y-%m-%d" if self.bucket == "day" else "%Y-%m")

    def floor(self, microseconds: int) -> datetime:
        """When the bucket begins that a moment is in."""
        begin = (_EPOCH + timedelta(microseconds=microseconds)).replace(minute=0, second=0, microsecond=0)
        if self.bucket == "hour":
            return begin
        return begin.replace(hour=0) if self.bucket == "day" else begin.replace(day=1, hour=0)

    def ceil(self, microseconds: int) -> datetime:
        """When the next bucket begins, or this one where the moment is its beginning."""
        begin = self.floor(microseconds)
        if _microseconds(begin) == microseconds:
            return begin
        if self.bucket != "month":
            return begin + (_HOUR if self.bucket == "hour" else timedelta(days=1))
        year, month = divmod(begin.year * 12 + begin.month, 12)
        return begin.replace(year=year, month=month + 1)

    def buckets(self, first: int, last: int) -> list[Bucket]:
        """Every bucket between two moments."""
        found, at = [], self.floor(first)
        while _microseconds(at) <= last:
            found.append(self.name(at))
            at = self.ceil(_microseconds(at) + 1)
        return found

    def key_of(self, row: str = "") -> tuple[str, ...]:
        """The SQL of the key over the columns of a call; *row* is ``NEW.`` or ``OLD.`` in a trigger."""
        names = [f"COALESCE({row}{name}, '')" for name in self.names]
        owned = [f"({row}user_id IS NOT NULL)"] if self.owned else []
        return (_BUCKETS[self.bucket].replace("@", row), *names, *owned)


Bucket: TypeAlias = str | int
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR = timedelta(hours=1)
_TIMES = ("hour", "day", "month")
_BUCKETS = {
    "hour": "(@occurred_at + 3600000000000000) / 3600000000 - 1000000",  # before 1970 too: a division cuts towards 0
    "day": "COALESCE(strftime('%Y-%m-%d', @occurred_at / 1000000, 'unixepoch'), '')",
    "month": "COALESCE(strftime('%Y-%m', @occurred_at / 1000000, 'unixepoch'), '')",
}

MODELS = Rollup("days_of_models", "day", ("plan", "provider", "model", "endpoint", "route", "release", "attribution"), owned=True)
PLANS = Rollup("hours_of_plans", "hour", ("plan", "provider", "model", "release"), owned=True)
USERS = Rollup("months_of_users", "month", ("user_id", "plan", "tenant_id"))
USER_DAYS = Rollup("days_of_users", "day", ("user_id", "plan", "tenant_id", "release"))
ROLLUPS = (MODELS, PLANS, USERS, USER_DAYS)
_CHAINS = ((MODELS, PLANS), (USERS, USER_DAYS))
"""The smaller tables first, and of each chain the coarser one: what it leaves at the edges of a window, the next one has."""
_TELLING = 8
"""From how many characters on the beginning of an id is taken to mean few users."""


def is_one_user(value: str | tuple[str, ...] | None) -> bool:
    """Whether a filter on users is about single ones, whose few calls an index finds."""
    values = value if isinstance(value, tuple) else (value,)
    return all(one is not None and ("*" not in one or one.index("*") >= _TELLING) for one in values)


Part: TypeAlias = tuple[Rollup, Bucket | None, Bucket | None]
"""A rollup, the first of its buckets that counts, and the first that does not any more."""


def cover(by: Collection[str], where: Where, window: Window, usable: Collection[Rollup] = ROLLUPS) -> tuple[list[Part], list[Window]]:
    """The rollups that answer a question, and the windows that only the calls can tell."""
    for chain in _CHAINS:
        parts: list[Part] = []
        windows = [window]
        for rollup in chain:
            if rollup not in usable or not rollup.answers(by, where):
                continue
            left: list[Window] = []
            for one in windows:
                if (whole := rollup.whole(one)) is None:
                    left.append(one)
                else:
                    parts.append((rollup, whole[0], whole[1]))
                    left += whole[2]
            windows = left
        if parts:
            return parts, windows
    return [], [window]


def tables() -> list[str]:
    """The statements that make the rollups of an empty ledger, and what keeps them."""
    measures = ", ".join(f"{name} INTEGER NOT NULL" for name in MEASURES)
    made = []
    for rollup in ROLLUPS:
        key = ", ".join(f"{name} {'INTEGER' if name in ('owned', 'hour') else 'TEXT'} NOT NULL" for name in rollup.key)
        made.append(f"CREATE TABLE {rollup.table} ({key}, {measures}, PRIMARY KEY ({', '.join(rollup.key)})) STRICT, WITHOUT ROWID")
    names = sorted({*_COUNTED, "user_id", *(name for rollup in ROLLUPS for name in rollup.names)})
    take, give = [_change(rollup, "OLD.", "-") for rollup in ROLLUPS], [_change(rollup, "NEW.", "+") for rollup in ROLLUPS]
    return [
        *made,
        f"CREATE TRIGGER call_added AFTER INSERT ON calls BEGIN {' '.join(give)} END",
        f"CREATE TRIGGER call_removed AFTER DELETE ON calls BEGIN {' '.join(take)} END",
        f"CREATE TRIGGER call_changed AFTER UPDATE OF {', '.join(names)} ON calls BEGIN {' '.join((*take, *give))} END",
    ]


def _change(rollup: Rollup, row: str, sign: str) -> str:
    key, values = rollup.key_of(row), [sql.replace("@", row) for sql in MEASURES.values()]
    if sign == "+":
        added = ", ".join(f"{name} = {name} + excluded.{name}" for name in MEASURES)
        return f"INSERT INTO {rollup.table} VALUES ({', '.join((*key, *values))}) ON CONFLICT DO UPDATE SET {added};"
    less = ", ".join(f"{name} = {name} - ({sql})" for name, sql in zip(MEASURES, values, strict=True))
    same = " AND ".join(f"{name} = {sql}" for name, sql in zip(rollup.key, key, strict=True))
    return f"UPDATE {rollup.table} SET {less} WHERE {same}; DELETE FROM {rollup.table} WHERE {same} AND calls = 0;"


def fill(rollup: Rollup, condition: str = "1") -> str:
    """The statement that builds the rows of an empty rollup, or of a part of it, from the calls that *condition* is true for."""
    positions = ", ".join(str(position + 1) for position in range(len(rollup.key)))
    sums = ", ".join(f"SUM({sql.replace('@', '')})" for sql in MEASURES.values())
    return f"INSERT INTO {rollup.table} SELECT {', '.join(rollup.key_of())}, {sums} FROM calls WHERE {condition} GROUP BY {positions}"


def month_of(microseconds: int) -> tuple[str, int, int]:
    """The month of a moment (``2026-11``), its first microsecond, and the next month's."""
    begin = USERS.floor(microseconds)
    return str(USERS.name(begin)), _microseconds(begin), _microseconds(USERS.ceil(microseconds + 1))


def empty(rollup: Rollup, begin: int, end: int) -> tuple[str, list[Bucket]]:
    """The statement that deletes the rows of a rollup between two times that are the beginnings of buckets, and what it binds."""
    bounds = [rollup.name(rollup.floor(at)) for at in (begin, end)]
    return f"DELETE FROM {rollup.table} WHERE {rollup.bucket} >= ? AND {rollup.bucket} < ?", bounds


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
