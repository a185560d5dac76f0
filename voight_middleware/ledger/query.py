"""
A ledger query as SQL: dimensions, filters, windows, time zones and the source of the sums. One for
all engines.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from typing import Any, Protocol

from voight_middleware.ledger.base import (
    DIMENSIONS,
    Spend,
    UnknownDimension,
    Where,
    Window,
    has_wildcard,
)
from voight_middleware.ledger.rollups import PLANS, Bucket, Part, Rollup, is_one_user, plan_query

Sql = tuple[str, list[Any]]
"""A piece of SQL with a ``?`` for each value, and the values to bind."""

TIMES = ("hour", "day", "week", "month")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Dialect(Protocol):
    """The SQL of one engine. Values of a query are always bound, never part of the SQL."""

    sums: Mapping[str, str]
    """
    The sums over many calls as SQL, by the names of the rollups' columns. First the calls, then the
    columns that ``cost`` reads, then the rest of what ``read_spend`` reads.
    """
    costs: int
    """The number of cost columns."""
    rollups: Collection[Rollup]
    """The rollups that the engine keeps."""
    schema: str
    """The prefix of their names, such as ``voight.``."""
    calls: str
    """The source of calls."""
    calls_at_original_prices: str
    """The source of calls with the first price of each."""

    def cost(self, columns: Sequence[Any]) -> int:
        """Return femto-dollars from the sums of the cost columns."""
        ...

    def by_cost(self, sums: Sequence[str]) -> str:
        """Return an ORDER BY term for the sums of the cost columns, the largest first."""
        ...

    def column(self, name: str, *, few: bool) -> str:
        """Return the SQL of a column. *few* means that few calls match, which an index finds."""
        ...

    def moment(self, form: str, at: str, ahead: str = "0") -> str:
        """
        Return the SQL of an ``hour`` (``2026-11-01T12:00``), ``day``, ``week`` (its Monday) or
        ``month``.

        Args:
            form: The kind of time.
            at: SQL for microseconds since 1970.
            ahead: SQL for the seconds that the clocks are ahead of UTC.
        """
        ...

    def extra(self, key: str) -> Sql:
        """Return the value of an extra key, NULL for calls without it."""
        ...

    def addressable(self, key: str) -> bool:
        """Return whether ``extra`` can name *key*."""
        ...

    def like(self, sql: str, pattern: str) -> Sql:
        """
        Return SQL that tests whether *sql* matches *pattern*: the texts of ``wildcard_parts`` with
        anything between them.
        """
        ...

    def among(self, sql: str, values: Sequence[Bucket]) -> Sql:
        """Return SQL that tests whether *sql* is one of *values*."""
        ...


class Query:
    """
    A query on a ledger.

    Args:
        dialect: The SQL of the ledger's engine.
        extra_keys: The extra keys of its calls, which are dimensions too.
        zone: The time zone of hours, days and months. None means UTC.
        extent: The times of the first and the last call, in microseconds.
    """

    def __init__(
        self,
        dialect: Dialect,
        extra_keys: Collection[str] = (),
        zone: tzinfo | None = None,
        extent: tuple[int, int] | None = None,
    ) -> None:
        self._dialect = dialect
        self._extra_keys = extra_keys
        self._zone = None if zone is UTC else zone
        self._extent = extent or (0, 0)

    def spend(
        self,
        by: Sequence[str],
        where: Where,
        window: Window,
        limit: int | None,
        *,
        original_prices: bool = False,
    ) -> Sql:
        """
        Return the sums by dimensions, the most expensive group first. ``read_spend`` reads a row.
        """
        dialect = self._dialect
        timed = self._zone is not None and bool({*TIMES} & {*by, *where})
        usable = () if original_prices else self._usable(timed)
        rolled, windows = self._plan(by, where, window, usable)
        parts = [self._from_rollup(rollup, by, where, first, end) for rollup, first, end in rolled]
        parts += [
            self._from_calls(
                by,
                where,
                edge,
                dialect.calls_at_original_prices if original_prices else dialect.calls,
            )
            for edge in windows
        ]
        groups = [f"d{position}" for position in range(len(by))]
        sums = [f"SUM(m{position})" for position in range(len(dialect.sums))]
        calls, costs, unpriced = sums[0], sums[1 : 1 + dialect.costs], sums[1 + dialect.costs]
        sql = (
            f"SELECT {', '.join((*groups, *sums))} FROM "
            f"({' UNION ALL '.join(sql for sql, _ in parts)}) AS parts"
        )
        values = [value for _, bound in parts for value in bound]
        if by:
            order = (
                f"CASE WHEN {unpriced} = {calls} THEN 1 ELSE 0 END, {dialect.by_cost(costs)}, "
                f"{calls} DESC"
            )
            sql += (
                f" GROUP BY {', '.join(groups)} ORDER BY {order}, "
                f"{', '.join(f'{name} NULLS FIRST' for name in groups)}"
            )
        if limit is not None:
            sql += " LIMIT ?"
            values.append(limit)
        return sql, values

    def _plan(
        self, by: Collection[str], where: Where, window: Window, usable: Collection[Rollup]
    ) -> tuple[list[Part], list[Window]]:
        """Return the rollups to read, and the windows of the calls to read."""
        return plan_query(by, where, window, usable)

    def condition(self, where: Where, window: Window) -> Sql:
        """Return the WHERE condition for calls."""
        terms, values = ["1 = 1"], list[Any]()
        for sql, bound in (("occurred_at >= ?", window.since), ("occurred_at < ?", window.until)):
            if bound is not None:
                terms.append(sql)
                values.append(bound)
        for name, value in where.items():
            plain = name.removesuffix("!")
            expression = self._expression(plain, few=name == "user_id" and is_one_user(value))
            if plain == name:
                self._add_term(terms, values, expression, value)
            else:
                self._add_no_term(terms, values, expression, value)
        return " AND ".join(terms), values

    def _from_calls(self, by: Sequence[str], where: Where, window: Window, source: str) -> Sql:
        groups = [self._expression(name) for name in by]
        columns = [f"{sql} AS d{position}" for position, (sql, _) in enumerate(groups)]
        columns += [
            f"{sql} AS m{position}" for position, sql in enumerate(self._dialect.sums.values())
        ]
        condition, values = self.condition(where, window)
        grouped = (
            f" GROUP BY {', '.join(str(position + 1) for position in range(len(by)))}" if by else ""
        )
        bound = [value for _, bindings in groups for value in bindings]
        return f"SELECT {', '.join(columns)} FROM {source} WHERE {condition}{grouped}", [
            *bound,
            *values,
        ]

    def _usable(self, timed: bool) -> Collection[Rollup]:
        """Return the rollups whose buckets the days of the zone don't cut."""
        rollups = self._dialect.rollups
        if not timed or self._zone is None:
            return rollups
        whole_hours = all(
            offset.total_seconds() % 3600 == 0 for _, offset in _offsets(self._zone, *self._extent)
        )
        return [rollup for rollup in rollups if rollup is PLANS] if whole_hours else ()

    def _from_rollup(
        self,
        rollup: Rollup,
        by: Sequence[str],
        where: Where,
        first: Bucket | None,
        end: Bucket | None,
    ) -> Sql:
        terms, values = ["1 = 1"], list[Any]()
        for sql, bound in ((f"{rollup.bucket} >= ?", first), (f"{rollup.bucket} < ?", end)):
            if bound is not None:
                terms.append(sql)
                values.append(bound)
        if "user_id" in rollup.names and "user_id" in where and is_one_user(where["user_id"]):
            # Looking up each day finds one user's rows faster than scanning the rows of all users.
            sql, bindings = self._dialect.among(rollup.bucket, rollup.buckets(*self._extent))
            terms.append(sql)
            values += bindings
        for name, value in where.items():
            if name == "user_id" and rollup.owned:
                terms.append("owned = 0")
            elif name == "user_id" and is_one_user(value):
                self._add_term(terms, values, (name, []), value)
            else:
                self._add_term(terms, values, (self._of_rollup(rollup, name), []), value)
        columns = [
            f"{self._of_rollup(rollup, name)} AS d{position}" for position, name in enumerate(by)
        ]
        columns += [f"{name} AS m{position}" for position, name in enumerate(self._dialect.sums)]
        return (
            (
                f"SELECT {', '.join(columns)} FROM {self._dialect.schema}{rollup.table} WHERE "
                f"{' AND '.join(terms)}"
            ),
            values,
        )

    def _of_rollup(self, rollup: Rollup, name: str) -> str:
        if name in rollup.names:
            return f"NULLIF({name}, '')"
        if rollup.bucket == "hour":
            return self._time(name, "(hour * 3600000000)")
        return name if name == rollup.bucket else "substr(day, 1, 7)"

    def _expression(self, name: str, *, few: bool = False) -> Sql:
        if name in TIMES:
            return self._time(name), []
        if name in DIMENSIONS:
            return self._dialect.column(name, few=few), []
        known = sorted(key for key in self._extra_keys if self._dialect.addressable(key))
        if name not in known:
            extra = (
                f"; extra keys in this ledger: {', '.join(known[:50])}"
                if known
                else "; no call in this ledger has an extra key"
            )
            raise UnknownDimension(
                f"there is no dimension {name!r}; choose from {', '.join(DIMENSIONS)}{extra}"
            )
        return self._dialect.extra(name)

    def _time(self, name: str, at: str = "occurred_at") -> str:
        """Return the SQL of an hour, day, week or month, for a moment in microseconds."""
        if self._zone is None:
            utc = self._dialect.moment(name, at)
            return f"{utc} || 'Z'" if name == "hour" else utc
        offsets = _offsets(self._zone, *self._extent)
        seconds = _case(
            at, [(begin, str(int(offset.total_seconds()))) for begin, offset in offsets]
        )
        local = self._dialect.moment(name, at, seconds)
        if name != "hour":  # when clocks are set back, an hour occurs twice, with two offsets
            return local
        return f"{local} || {_case(at, [(begin, _text(offset)) for begin, offset in offsets])}"

    def _add_no_term(
        self,
        terms: list[str],
        values: list[Any],
        expression: Sql,
        unwanted: str | tuple[str | None, ...] | None,
    ) -> None:
        sql, bound = expression
        rest = tuple(
            value
            for value in (unwanted if isinstance(unwanted, tuple) else (unwanted,))
            if value is not None
        )
        without_any = len(rest) != (len(unwanted) if isinstance(unwanted, tuple) else 1)
        values += bound
        if not rest:
            terms.append(f"{sql} IS NOT NULL")
            return
        one_of: list[str] = []
        self._add_term(one_of, values, expression, rest)
        terms.append(
            f"({sql} IS NOT NULL AND NOT {one_of[0]})"
            if without_any
            else f"({sql} IS NULL OR NOT {one_of[0]})"
        )

    def _add_term(
        self,
        terms: list[str],
        values: list[Any],
        expression: Sql,
        wanted: str | tuple[str | None, ...] | None,
    ) -> None:
        sql, bound = expression
        either: list[str] = []
        for value in wanted if isinstance(wanted, tuple) else (wanted,):
            values += bound
            if value is None:
                either.append(f"{sql} IS NULL")
            elif has_wildcard(value):
                like, bindings = self._dialect.like(sql, value)
                either.append(like)
                values += bindings
            else:
                either.append(f"{sql} = ?")
                values.append(value.replace("**", "*"))
        terms.append(f"({' OR '.join(either) or '1 = 0'})")


def read_spend(by: Sequence[str], row: Sequence[Any], dialect: Dialect) -> Spend:
    """Return one row of the result of ``Query.spend``."""
    behind = len(by) + 1 + dialect.costs
    calls = row[len(by)] or 0
    unpriced, partial, estimated, errors, *tokens = row[behind:]
    known_input, input_, known_read, read, known_written, written, known_output, output = tokens
    return Spend(
        dimensions=dict(zip(by, row, strict=False)),
        calls=int(calls),
        input_tokens=int(input_) if known_input else None,
        cache_read_tokens=int(read) if known_read else None,
        cache_write_tokens=int(written) if known_written else None,
        output_tokens=int(output) if known_output else None,
        cost_femto=None if calls == (unpriced or 0) else dialect.cost(row[len(by) + 1 : behind]),
        unpriced_calls=int(unpriced or 0),
        partial_calls=int(partial or 0),
        estimated_calls=int(estimated or 0),
        errors=int(errors or 0),
    )


def _offsets(zone: tzinfo, first: int, last: int) -> list[tuple[int, timedelta]]:
    """
    Return the UTC offsets of *zone* between two times, each with the microsecond from which it
    applies.
    """

    def offset_at(microseconds: int) -> timedelta:
        return (_EPOCH + timedelta(microseconds=microseconds)).astimezone(
            zone
        ).utcoffset() or timedelta()

    offsets = [(first, offset_at(first))]
    week = 7 * 24 * 3600 * 1_000_000
    for begin, end in pairwise([*range(first, last, week), last]):
        while offsets[-1][1] != offset_at(end):  # the offset stays changed for longer than a week
            low, high = begin, end
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset_at(middle) == offsets[-1][1] else (low, middle)
            offsets.append((high, offset_at(high)))
    return offsets


def _case(at: str, values: Sequence[tuple[int, str]]) -> str:
    """Return SQL that selects the value for a moment."""
    if len(values) == 1:
        return values[0][1]
    cases = " ".join(f"WHEN {at} >= {begin} THEN {value}" for begin, value in reversed(values[1:]))
    return f"(CASE {cases} ELSE {values[0][1]} END)"


def _text(offset: timedelta) -> str:
    minutes = int(offset.total_seconds()) // 60
    return f"'{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}'"
