"""A question to an SQLite ledger as SQL: dimensions, filters, windows and time zones, and where the sums come from."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise

from voight_middleware.ledger.base import DIMENSIONS, Spend, UnknownDimension, Where, Window
from voight_middleware.ledger.rollups import LIMB, MEASURES, PLANS, ROLLUPS, SUMS, Bucket, Rollup, cover, is_one_user
from voight_middleware.ledger.schema import CALLS, CALLS_AS_PRICED, Row

Sql = tuple[str, list[str | int]]
"""A piece of SQL, and the values bound in it."""

_FORMS = {"hour": "%Y-%m-%dT%H:00", "day": "%Y-%m-%d", "month": "%Y-%m"}
_SUMMED = ", ".join(f"SUM({name})" for name in MEASURES)
_MOST_EXPENSIVE = f"SUM(unpriced) = SUM(calls), SUM(high) + SUM(low) / {LIMB} DESC, SUM(low) % {LIMB} DESC, SUM(calls) DESC"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Question:
    """
    What is asked of a ledger.

    Args:
        extra_keys: The extra keys of its calls, which are dimensions too.
        zone: The time zone in which hours, days and months are cut; None means UTC.
        extent: When the first and the last call happened, in microseconds.
    """

    def __init__(self, extra_keys: Collection[str] = (), zone: tzinfo | None = None, extent: tuple[int, int] | None = None) -> None:
        self._extra_keys = extra_keys
        self._zone = None if zone is UTC else zone
        self._extent = extent or (0, 0)

    def spend(self, by: Sequence[str], where: Where, window: Window, limit: int | None, *, as_priced: bool = False) -> Sql:
        """Sums by dimensions, the most expensive group first; ``read_spend`` reads a row."""
        timed = self._zone is not None and bool({"hour", "day", "month"} & {*by, *where})
        usable = () if as_priced else self._usable(timed)
        rolled, windows = cover(by, where, window, usable)
        parts = [self._from_rollup(rollup, by, where, first, end) for rollup, first, end in rolled]
        parts += [self._from_calls(by, where, edge, CALLS_AS_PRICED if as_priced else CALLS) for edge in windows]
        names = "".join(f"d{position}, " for position in range(len(by)))
        grouped = f"GROUP BY {names[:-2]} ORDER BY {_MOST_EXPENSIVE}, {names[:-2]} LIMIT ?" if by else "LIMIT ?"
        values = [value for _, bound in parts for value in bound]
        return (
            f"SELECT {names}{_SUMMED} FROM ({' UNION ALL '.join(sql for sql, _ in parts)}) {grouped}",
            [*values, -1 if limit is None else limit],
        )

    def condition(self, where: Where, window: Window) -> Sql:
        """Which calls are meant."""
        terms, values = ["1"], list[str | int]()
        for sql, bound in (("occurred_at >= ?", window.since), ("occurred_at < ?", window.until)):
            if bound is not None:
                terms.append(sql)
                values.append(bound)
        for name, value in where.items():
            sql, bindings = self._expression(name)
            if name == "user_id" and is_one_user(value):
                sql = name  # without the plus: the index finds the calls of one user
            _add_term(terms, values, sql, value, bindings)
        return " AND ".join(terms), values

    def _from_calls(self, by: Sequence[str], where: Where, window: Window, source: str) -> Sql:
        groups = [self._expression(name) for name in by]
        columns = "".join(f"{sql} AS d{position}, " for position, (sql, _) in enumerate(groups))
        sums = ", ".join(f"{sql} AS {name}" for name, sql in SUMS.items())
        condition, values = self.condition(where, window)
        grouped = f" GROUP BY {', '.join(str(position + 1) for position in range(len(by)))}" if by else ""
        bound = [value for _, bindings in groups for value in bindings]
        return f"SELECT {columns}{sums} FROM {source} WHERE {condition}{grouped}", [*bound, *values]

    def _usable(self, timed: bool) -> Collection[Rollup]:
        """The rollups whose buckets are not cut by the days of the zone."""
        if not timed or self._zone is None:
            return ROLLUPS
        whole_hours = all(offset.total_seconds() % 3600 == 0 for _, offset in _offsets(self._zone, *self._extent))
        return (PLANS,) if whole_hours else ()

    def _from_rollup(self, rollup: Rollup, by: Sequence[str], where: Where, first: Bucket | None, end: Bucket | None) -> Sql:
        terms, values = ["1"], list[str | int]()
        for sql, bound in ((f"{rollup.bucket} >= ?", first), (f"{rollup.bucket} < ?", end)):
            if bound is not None:
                terms.append(sql)
                values.append(bound)
        if "user_id" in rollup.names and "user_id" in where and is_one_user(where["user_id"]):
            # A look into each day finds one user's rows faster than a walk through everybody's.
            terms.append(f"{rollup.bucket} IN (SELECT value FROM json_each(?))")
            values.append(json.dumps(rollup.buckets(*self._extent)))
        for name, value in where.items():
            if name == "user_id" and rollup.owned:
                terms.append("owned = 0")
            elif name == "user_id" and is_one_user(value):
                _add_term(terms, values, name, value)
            else:
                _add_term(terms, values, self._of_rollup(rollup, name), value)
        columns = "".join(f"{self._of_rollup(rollup, name)} AS d{position}, " for position, name in enumerate(by))
        return f"SELECT {columns}{', '.join(MEASURES)} FROM {rollup.table} WHERE {' AND '.join(terms)}", values

    def _of_rollup(self, rollup: Rollup, name: str) -> str:
        """The SQL of a dimension of a rollup's row."""
        if name in rollup.names:
            return f"NULLIF({name}, '')"
        if rollup.bucket == "hour":
            return self._time(name, "(hour * 3600000000)")
        return name if name == rollup.bucket else "substr(day, 1, 7)"

    def _expression(self, name: str) -> Sql:
        """The SQL of a dimension of a call; nothing of *name* ever becomes SQL."""
        if name in _FORMS:
            return self._time(name), []
        if name in DIMENSIONS:
            # The unary plus keeps the planner on the scan of the time range: to group along the index on users takes ten times as long.
            return f"+{name}", []
        known = sorted(key for key in self._extra_keys if _addressable(key))
        if name not in known:
            extra = f"; extra keys in this ledger: {', '.join(known[:50])}" if known else "; no call in this ledger has an extra key"
            raise UnknownDimension(f"there is no dimension {name!r}; choose from {', '.join(DIMENSIONS)}{extra}")
        return "json_extract(tags_extra, ?)", [f'$."{name}"']

    def _time(self, name: str, at: str = "occurred_at") -> str:
        """The SQL of an hour, a day or a month, of a moment in microseconds."""
        if self._zone is None:
            ending = "Z" if name == "hour" else ""
            return f"strftime('{_FORMS[name]}{ending}', {at} / 1000000, 'unixepoch')"
        offsets = _offsets(self._zone, *self._extent)
        seconds = _case(at, [(begin, str(int(offset.total_seconds()))) for begin, offset in offsets])
        local = f"strftime('{_FORMS[name]}', {at} / 1000000 + {seconds}, 'unixepoch')"
        if name != "hour":  # in the hour that a clock is set back for there are two of each: they differ in their offset
            return local
        return f"{local} || {_case(at, [(begin, _text(offset)) for begin, offset in offsets])}"


def read_spend(by: Sequence[str], row: Row) -> Spend:
    """One row of what ``Question.spend`` asks."""
    calls, high, low, unpriced, partial, estimated, errors, *tokens = row[len(by) :]
    known_input, input_, known_read, read, known_written, written, known_output, output = tokens
    return Spend(
        dimensions=dict(zip(by, row, strict=False)),
        calls=calls or 0,
        input_tokens=input_ if known_input else None,
        cache_read_tokens=read if known_read else None,
        cache_write_tokens=written if known_written else None,
        output_tokens=output if known_output else None,
        cost_femto=None if (calls or 0) == (unpriced or 0) else high * LIMB + low,
        unpriced_calls=unpriced or 0,
        partial_calls=partial or 0,
        estimated_calls=estimated or 0,
        errors=errors or 0,
    )


def _add_term(
    terms: list[str], values: list[str | int], sql: str, wanted: str | tuple[str, ...] | None, bound: Sequence[str | int] = ()
) -> None:
    either: list[str] = []
    for value in wanted if isinstance(wanted, tuple) else (wanted,):
        values += bound
        if value is None:
            either.append(f"{sql} IS NULL")
        elif "*" in value:
            either.append(f"{sql} GLOB ?")
            values.append(value.replace("[", "[[]").replace("?", "[?]"))
        else:
            either.append(f"{sql} = ?")
            values.append(value)
    terms.append(f"({' OR '.join(either) or '0'})")


def _offsets(zone: tzinfo, first: int, last: int) -> list[tuple[int, timedelta]]:
    """The offsets of *zone* from UTC between two times, each with the microsecond from which on it holds."""

    def offset_at(microseconds: int) -> timedelta:
        return (_EPOCH + timedelta(microseconds=microseconds)).astimezone(zone).utcoffset() or timedelta()

    found = [(first, offset_at(first))]
    week = 7 * 24 * 3600 * 1_000_000
    for begin, end in pairwise([*range(first, last, week), last]):
        while found[-1][1] != offset_at(end):  # a clock is changed for longer than a week
            low, high = begin, end
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset_at(middle) == found[-1][1] else (low, middle)
            found.append((high, offset_at(high)))
    return found


def _case(at: str, values: Sequence[tuple[int, str]]) -> str:
    """SQL for what holds at a moment."""
    if len(values) == 1:
        return values[0][1]
    cases = " ".join(f"WHEN {at} >= {begin} THEN {value}" for begin, value in reversed(values[1:]))
    return f"(CASE {cases} ELSE {values[0][1]} END)"


def _text(offset: timedelta) -> str:
    minutes = int(offset.total_seconds()) // 60
    return f"'{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}'"


def _addressable(key: str) -> bool:
    """Whether SQLite's JSON paths can name *key*: they have no escape for a quote, and compare others as they are encoded."""
    return key.isprintable() and '"' not in key and "\\" not in key
