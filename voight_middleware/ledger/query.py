"""
A ledger query as SQL: dimensions, filters, windows, time zones and the source of the sums. One for
all engines.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, tzinfo
from itertools import islice
from typing import Any, Protocol

from voight_middleware.ledger.base import (
    DIMENSIONS,
    Spend,
    UnknownDimension,
    Where,
    Window,
    has_wildcard,
)
from voight_middleware.ledger.offsets import case, offset_text, offsets
from voight_middleware.ledger.rollups import (
    PLANS,
    Bucket,
    Edge,
    Part,
    Rollup,
    is_one_user,
    plan_query,
)

Sql = tuple[str, list[Any]]
"""A piece of SQL with a ``?`` for each value, and the values to bind."""

TIMES = ("hour", "day", "week", "month")
_EMPTY = "''"


class Dialect(Protocol):
    """The SQL of one engine. Values of a query are always bound, never part of the SQL."""

    sums: Mapping[str, str]
    """
    The sums over many calls as SQL, by the names of the rollups' columns. First the calls, then the
    columns that ``cost`` reads, then the rest of what ``read_spend`` reads.
    """
    counted: Mapping[str, str]
    """
    The same where some calls are subtracted: the number of calls that have a count, of which
    ``sums`` may say only whether there are any. Empty without rollups.
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

    def costs_of(self, *columns: Sequence[Any]) -> list[int]:
        """Return the femto-dollars of many rows, from all rows of each cost column."""
        ...

    def array(self, sql: str, *, count: bool = False) -> str:
        """
        Return the SQL of all values of a column, or of a *count*, as one. Only used with rollups.
        """
        ...

    def read_arrays(self, row: Sequence[Any]) -> list[list[Any]]:
        """Return a row of arrays: texts, None and whole numbers, the costs as they are."""
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
        known: The times of the first and the last call that can match, if they are known exactly.
    """

    def __init__(
        self,
        dialect: Dialect,
        extra_keys: Collection[str] = (),
        zone: tzinfo | None = None,
        extent: tuple[int, int] | None = None,
        known: tuple[int, int] | None = None,
    ) -> None:
        self._dialect = dialect
        self._extra_keys = extra_keys
        self._zone = None if zone is UTC else zone
        self._extent = known or extent or (0, 0)
        self._known = known

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
        sql, values, sums = self._grouped(by, where, window, original_prices, [*self._dialect.sums])
        return self._ordered(sql, values, sums, by, limit)

    def foremost(self, by: Sequence[str], where: Where, window: Window, limit: int) -> Sql:
        """
        Return the dimensions and the cost columns of the groups that ``spend`` would return, in
        half the time. ``read_foremost`` reads a row.
        """
        names = [*self._dialect.sums][: 2 + self._dialect.costs]
        sql, values, sums = self._grouped(by, where, window, False, names)
        return self._ordered(sql, values, sums, by, limit)

    def costs(self, by: Sequence[str], where: Where, window: Window, *, grouped: bool) -> Sql:
        """
        Return the calls, the cost columns and the unpriced calls by dimensions, from rollups: one
        row of arrays, so that there is no object for each of many groups. ``read_costs`` reads it.

        Not *grouped*, a group may have several rows. That takes half the time where most groups
        have one row in a rollup.
        """
        names = [*self._dialect.sums][: 2 + self._dialect.costs]
        parts, edges = self._plan(by, where, window, original_prices=False)
        if not grouped and len(parts) == 1 and not edges:
            rollup = parts[0][0]
            columns = [
                name if name in rollup.names else self._of_rollup(rollup, name) for name in by
            ]
            condition, values = self._rows_of_rollup(parts[0], where)
            source = f"{self._dialect.schema}{rollup.table} WHERE {condition}"
            return f"SELECT {self._arrays(columns, names)} FROM {source}", values
        sql, values, sums = self._grouped(by, where, window, False, names)
        columns = [f"d{position}" for position in range(len(by))]
        totals = [f"s{position}" for position in range(len(sums))]
        return f"SELECT {self._arrays(columns, totals)} FROM ({sql}) AS groups", values

    def _arrays(self, columns: Sequence[str], sums: Sequence[str]) -> str:
        array = self._dialect.array
        calls, *costs, unpriced = sums
        counts = [array(sql, count=True) for sql in (calls, unpriced)]
        return ", ".join((*map(array, columns), counts[0], *map(array, costs), counts[1]))

    def count(
        self, by: Sequence[str], where: Where, window: Window, *, original_prices: bool = False
    ) -> Sql:
        """Return the number of groups."""
        sql, values, _ = self._grouped(
            by, where, window, original_prices, [*self._dialect.sums][:1]
        )
        return f"SELECT COUNT(*) FROM ({sql}) AS groups", values

    def time_range(self, where: Where, window: Window) -> Sql:
        """Return the number of calls, and when the oldest and the newest of them happened."""
        condition, values = self.condition(where, window)
        times = "COUNT(*), MIN(occurred_at), MAX(occurred_at)"
        return f"SELECT {times} FROM {self._dialect.calls} WHERE {condition}", values

    def by_users(self, by: Sequence[str], where: Where, window: Window) -> Rollup | None:
        """
        Return the coarsest rollup by users that serves a query, None if none does. Such a query has
        so many groups that it is worth asking for a few of them only.
        """
        rolled, _ = self._plan(by, where, window, original_prices=False)
        return rolled[0][0] if rolled and "user_id" in rolled[0][0].names else None

    def is_rolled(self, by: Sequence[str], where: Where, window: Window) -> bool:
        """Return whether rollups serve a query without reading calls."""
        parts, edges = self._plan(by, where, window, original_prices=False)
        return bool(parts) and not edges

    def _plan(
        self, by: Sequence[str], where: Where, window: Window, original_prices: bool
    ) -> tuple[list[Part], list[Edge]]:
        """Return the rollups to read, and the windows of the calls to read."""
        usable = () if original_prices else self._usable(by, where)
        parts, edges = plan_query(by, where, window, usable, self._extent)
        return parts, self._among_known(parts, edges)

    def _among_known(self, parts: Sequence[Part], edges: list[Edge]) -> list[Edge]:
        """
        Return *edges* without the time in which no call can match. A query without *parts* keeps
        one of them.
        """
        if self._known is None:
            return edges
        oldest, newest = self._known
        clipped: list[Edge] = []
        for edge, sign in edges:
            since = oldest if edge.since is None else max(oldest, edge.since)
            until = newest + 1 if edge.until is None else min(newest + 1, edge.until)
            if since < until or not (parts or clipped):
                clipped.append((Window(since, until), sign))
        return clipped

    def _grouped(
        self,
        by: Sequence[str],
        where: Where,
        window: Window,
        original_prices: bool,
        sums: Sequence[str],
    ) -> tuple[str, list[Any], list[str]]:
        """Return the groups without an order: the SQL, its values, and the SQL of the sums."""
        dialect = self._dialect
        rolled, edges = self._plan(by, where, window, original_prices)
        if len(rolled) == 1 and not edges:
            return self._from_one_rollup(rolled[0], by, where, sums)
        less = any(part[-1] < 0 for part in rolled) or any(sign < 0 for _, sign in edges)
        # Grouping texts as they are in rollups, where none means no value, is a third faster.
        texts = [bool(rolled) and all(name in part[0].names for part in rolled) for name in by]
        parts = [self._from_rollup(part, by, where, sums) for part in rolled]
        source = dialect.calls_at_original_prices if original_prices else dialect.calls
        of_calls = [(dialect.counted if less else dialect.sums)[name] for name in sums]
        keys = [*zip(by, texts, strict=True)]
        parts += [self._from_calls(edge, keys, where, of_calls, source) for edge in edges]
        groups = [
            f"{f'NULLIF(k{position}, {_EMPTY})' if text else f'k{position}'} AS d{position}"
            for position, text in enumerate(texts)
        ]
        totals = [f"SUM(m{position})" for position in range(len(sums))]
        sql = (
            f"SELECT {', '.join((*groups, *_named(totals)))} FROM "
            f"({' UNION ALL '.join(sql for sql, _ in parts)}) AS parts"
        )
        if by:
            sql += f" GROUP BY {', '.join(f'k{position}' for position in range(len(by)))}"
            if less:
                sql += f" HAVING {totals[0]} > 0"
        return sql, [value for _, bound in parts for value in bound], totals

    def _ordered(
        self, sql: str, values: list[Any], sums: Sequence[str], by: Sequence[str], limit: int | None
    ) -> Sql:
        costs = 1 + self._dialect.costs
        calls, unpriced = sums[0], sums[costs]
        if by:
            names = ", ".join(f"d{position} NULLS FIRST" for position in range(len(by)))
            sql += (
                f" ORDER BY CASE WHEN {unpriced} = {calls} THEN 1 ELSE 0 END, "
                f"{self._dialect.by_cost(sums[1:costs])}, {calls} DESC, {names}"
            )
        if limit is not None:
            sql += " LIMIT ?"
            values = [*values, limit]
        return sql, values

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

    def _from_calls(
        self,
        edge: Edge,
        keys: Sequence[tuple[str, bool]],
        where: Where,
        sums: Sequence[str],
        source: str,
    ) -> Sql:
        window, sign = edge
        groups = [self._expression(name) for name, _ in keys]
        columns = [
            f"{f'COALESCE({sql}, {_EMPTY})' if text else sql} AS k{position}"
            for position, ((sql, _), (_, text)) in enumerate(zip(groups, keys, strict=True))
        ]
        columns += [
            f"{sql if sign > 0 else f'-({sql})'} AS m{position}"
            for position, sql in enumerate(sums)
        ]
        condition, values = self.condition(where, window)
        grouped = (
            f" GROUP BY {', '.join(str(position + 1) for position in range(len(keys)))}"
            if keys
            else ""
        )
        bound = [value for _, bindings in groups for value in bindings]
        return f"SELECT {', '.join(columns)} FROM {source} WHERE {condition}{grouped}", [
            *bound,
            *values,
        ]

    def _usable(self, by: Collection[str], where: Where) -> Collection[Rollup]:
        """Return the rollups whose buckets the days of the zone don't cut."""
        rollups = self._dialect.rollups
        if self._zone is None or not {*TIMES} & {*by, *where}:
            return rollups
        whole_hours = all(
            offset.total_seconds() % 3600 == 0 for _, offset in offsets(self._zone, *self._extent)
        )
        return [rollup for rollup in rollups if rollup is PLANS] if whole_hours else ()

    def _from_rollup(self, part: Part, by: Sequence[str], where: Where, sums: Sequence[str]) -> Sql:
        rollup, *_, sign = part
        columns = [
            f"{name if name in rollup.names else self._of_rollup(rollup, name)} AS k{position}"
            for position, name in enumerate(by)
        ]
        columns += [
            f"{'' if sign > 0 else '-'}{name} AS m{position}" for position, name in enumerate(sums)
        ]
        condition, values = self._rows_of_rollup(part, where)
        source = f"{self._dialect.schema}{rollup.table}"
        return f"SELECT {', '.join(columns)} FROM {source} WHERE {condition}", values

    def _from_one_rollup(
        self, part: Part, by: Sequence[str], where: Where, sums: Sequence[str]
    ) -> tuple[str, list[Any], list[str]]:
        """
        Return what ``_grouped`` returns. Grouped by the columns of the key, the rows of one bucket
        need no sorting.
        """
        rollup = part[0]
        columns = [self._of_rollup(rollup, name) for name in by]
        totals = [f"SUM({name})" for name in sums]
        condition, values = self._rows_of_rollup(part, where)
        selected = [f"{sql} AS d{position}" for position, sql in enumerate(columns)]
        sql = (
            f"SELECT {', '.join((*selected, *_named(totals)))} FROM "
            f"{self._dialect.schema}{rollup.table} WHERE {condition}"
        )
        if by:
            groups = (
                name
                if name in rollup.names or (name, self._zone) == (rollup.bucket, None)
                else column
                for name, column in zip(by, columns, strict=True)
            )
            sql += f" GROUP BY {', '.join(groups)}"
        return sql, values, totals

    def _rows_of_rollup(self, part: Part, where: Where) -> Sql:
        """Return the WHERE condition for the rows of a rollup."""
        rollup, first, end, _ = part
        terms, values = ["1 = 1"], list[Any]()
        buckets = rollup.buckets(self._extent, first, end)
        if len(few := list(islice(buckets, 2))) == 1:
            # The rows of one bucket are in the order of the other names.
            terms.append(f"{rollup.bucket} = ?")
            values += few
        elif "user_id" in rollup.names and _few_users(where):
            # Looking up each day finds one user's rows faster than scanning the rows of all users.
            sql, bindings = self._dialect.among(rollup.bucket, [*few, *buckets])
            terms.append(sql)
            values += bindings
        else:
            for sql, bound in ((f"{rollup.bucket} >= ?", first), (f"{rollup.bucket} < ?", end)):
                if bound is not None:
                    terms.append(sql)
                    values.append(bound)
        for name, value in where.items():
            if name == "user_id" and rollup.owned:
                terms.append("owned = 0")
            elif name in rollup.names and (texts := _exact(value)) is not None:
                # In a rollup, an empty text means no value. No call has an empty text.
                keys = ["" if text is None else text for text in texts if text != ""]
                terms.append(_one_of(name, len(keys)))
                values += keys
            elif name == "user_id" and is_one_user(value):
                self._add_term(terms, values, (name, []), value)
            else:
                self._add_term(terms, values, (self._of_rollup(rollup, name), []), value)
        return " AND ".join(terms), values

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
        changes = offsets(self._zone, *self._extent)
        seconds = case(at, [(begin, str(int(offset.total_seconds()))) for begin, offset in changes])
        local = self._dialect.moment(name, at, seconds)
        if name != "hour":  # when clocks are set back, an hour occurs twice, with two offsets
            return local
        return f"{local} || {case(at, [(begin, offset_text(offset)) for begin, offset in changes])}"

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
        exact: list[str] = []
        for value in wanted if isinstance(wanted, tuple) else (wanted,):
            if value is None:
                either.append(f"{sql} IS NULL")
                values += bound
            elif has_wildcard(value):
                like, bindings = self._dialect.like(sql, value)
                either.append(like)
                values += [*bound, *bindings]
            else:
                exact.append(value.replace("**", "*"))
        if exact:
            either.append(_one_of(sql, len(exact)))
            values += [*bound, *exact]
        terms.append(f"({' OR '.join(either) or '1 = 0'})")


def _named(sums: Sequence[str]) -> list[str]:
    return [f"{sql} AS s{position}" for position, sql in enumerate(sums)]


def _one_of(sql: str, count: int) -> str:
    """Return SQL that tests whether *sql* is one of *count* values."""
    if count == 1:
        return f"{sql} = ?"
    return f"{sql} IN ({', '.join('?' * count)})" if count else "1 = 0"


def _exact(wanted: str | tuple[str | None, ...] | None) -> list[str | None] | None:
    """Return the values of a filter as calls have them, None if one of them has a wildcard."""
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    if any(value is not None and has_wildcard(value) for value in wanted):
        return None
    return [None if value is None else value.replace("**", "*") for value in wanted]


def _few_users(where: Where) -> bool:
    if "user_id" not in where:
        return False
    return is_one_user(where["user_id"]) or _exact(where["user_id"]) is not None


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
