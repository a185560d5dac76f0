"""
The groups of calls that a report is about. It asks for the first of them, for sums over them, or
for single ones, and only that is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from heapq import nsmallest
from typing import Any

from msgspec.structs import replace

from voight_middleware.ledger.base import Costs, Key, Spend, Where, Window, literal
from voight_middleware.ledger.query import (
    Dialect,
    Query,
    Sql,
    read_spend,
)
from voight_middleware.ledger.rollups import Rollup

_STEPS = (4, 16, 64)
"""How many candidates to look up, as multiples of the groups that are asked for."""
_AT_ONCE = 500
"""How many groups to look up in one statement."""
_MANY = 10_000
"""With more groups to look up, all of them are read instead."""


class SqlGroups:
    """
    ``Groups`` of a ledger that answers SQL.

    Where a rollup by users serves the question, there are many groups, and each method asks for
    what it returns. Otherwise the first question reads the sums of all groups, and the others are
    answered from them: the calls are scanned once.

    Args:
        run: Runs the statement that a query makes of a question, and returns its rows.
        snapshot: Makes several statements see the same moment.
        query: The ledger's query, which says how to ask. None for a ledger without snapshots: the
            groups are always read at once.
        dialect: The SQL of its engine.
        by: The dimensions, each once.
        where: The values that calls must have.
        window: The time range.
        original_prices: Use the first price of each call.
    """

    def __init__(
        self,
        run: Callable[[Callable[[Query], Sql]], Sequence[Sequence[Any]]],
        snapshot: Callable[[], AbstractContextManager[None]],
        query: Query | None,
        dialect: Dialect,
        *,
        by: Sequence[str],
        where: Where,
        window: Window,
        original_prices: bool,
    ) -> None:
        self._run, self._snapshot, self._query, self._dialect = run, snapshot, query, dialect
        self._by, self._where, self._window = tuple(by), where, window
        self._original_prices = original_prices
        self._rollup = (
            None if original_prices or query is None else query.by_users(by, where, window)
        )
        self._all: list[Spend] | None = None
        self._costs: Costs | None = None

    def spend(self, limit: int | None) -> list[Spend]:
        """See ``Ledger.spend``."""
        if limit is None or self._query is None or self._rollup is None:
            return self._spend(self._by, self._where, limit)
        with self._snapshot():
            found = None
            if self._rollup.bucket == "month" and self._query.is_rolled(
                self._by, self._where, self._window
            ):
                found = self._candidates(self._rollup, limit)
            if found is None:  # the order follows from the costs of all
                costs = self.costs()
                columns = costs.cost_femto, costs.calls, costs.dimensions
                first = nsmallest(
                    limit,
                    zip(*columns[:2], zip(*columns[2], strict=True), strict=True),
                    key=lambda one: _order(*one),
                )
                found = sorted(self.of([key for *_, key in first]).values(), key=_by_cost)
            return found

    def foremost(self, limit: int | None) -> list[Spend]:
        """See ``Groups.foremost``."""
        if self._reads_all or limit is None:
            return self._everything()[:limit]
        return self.spend(limit)

    def of(self, keys: Collection[Key]) -> Mapping[Key, Spend]:
        """See ``Groups.of``."""
        if self._reads_all:
            groups = {tuple(group.dimensions.values()): group for group in self._everything()}
            return {key: groups[key] for key in keys if key in groups}
        rows: dict[Key, Sequence[Any]] = {}
        wanted = {*keys}
        for some in _parts(keys, self._by) if len(keys) <= _MANY else ((),):
            where: dict[str, Any] = dict(self._where)
            for name, values in zip(self._by, zip(*some, strict=True), strict=bool(some)):
                texts = dict.fromkeys(values)
                where[name] = tuple(None if text is None else literal(text) for text in texts)
            # The calls without a user are in the smaller rollups, too.
            unowned = bool(some) and where.get("user_id") == (None,)
            by = tuple(name for name in self._by if not (unowned and name == "user_id"))
            if unowned:
                where["user_id"] = None
            places = [by.index(name) if name in by else None for name in self._by]
            for row in self._sums(by, where, None):
                key = tuple([None if place is None else row[place] for place in places])
                if row[len(by)] and key in wanted:  # sums over no dimension may be of no calls
                    rows[key] = (*key, *row[len(by) :])
        return _Spends(self._by, rows, self._dialect)

    def total(self) -> Spend:
        """See ``Groups.total``."""
        (total,) = self.within(()) if self._rollup is None else self._spend((), self._where)
        return total

    def within(self, by: Sequence[str], *, without: str | None = None) -> list[Spend]:
        """See ``Groups.within``."""
        if self._reads_all and {*by, *filter(None, [without])} <= {*self._by}:
            return self._added_up(by, without)
        where = self._where
        if without is not None:
            wanted = where.get(without)
            if without in where and None not in (
                wanted if isinstance(wanted, tuple) else (wanted,)
            ):
                return [] if by else [Spend()]
            where = {**where, without: None}
        return self._spend(by, where)

    def count(self) -> int:
        """See ``Groups.count``."""
        if self._reads_all:
            return len(self._everything())
        if self._costs is not None:
            return len(self._costs.calls)
        rows = self._run(
            lambda query: query.count(
                self._by, self._where, self._window, original_prices=self._original_prices
            )
        )
        return int(rows[0][0])

    def costs(self) -> Costs:
        """See ``Groups.costs``."""
        if self._reads_all:
            groups = self._everything()
            return Costs(
                tuple([group.dimensions[name] for group in groups] for name in self._by),
                [group.calls for group in groups],
                [group.cost_femto for group in groups],
                [group.unpriced_calls for group in groups],
            )
        if self._costs is None:
            # A user seldom has several rows with all other names but one.
            rollup = self._rollup
            if rollup is not None and len(self._by) >= len(rollup.names) - 1:
                self._costs = self._read_costs(grouped=False)
            if self._costs is None or _has_repeated(self._costs):
                self._costs = self._read_costs(grouped=True)
        return self._costs

    def _read_costs(self, *, grouped: bool) -> Costs:
        (row,) = self._run(
            lambda query: query.costs(self._by, self._where, self._window, grouped=grouped)
        )
        return read_costs(self._by, row, self._dialect)

    @property
    def _reads_all(self) -> bool:
        return self._rollup is None or self._all is not None

    def _everything(self) -> list[Spend]:
        if self._all is None:
            self._all = self._spend(self._by, self._where)
        return self._all

    def _spend(self, by: Sequence[str], where: Where, limit: int | None = None) -> list[Spend]:
        rows = self._sums(by, where, limit)
        return [read_spend(by, row, self._dialect) for row in rows]

    def _sums(self, by: Sequence[str], where: Where, limit: int | None) -> Sequence[Sequence[Any]]:
        return self._run(
            lambda query: query.spend(
                by, where, self._window, limit, original_prices=self._original_prices
            )
        )

    def _candidates(self, months: Rollup, limit: int) -> list[Spend] | None:
        """
        Return the most expensive groups, found among those of the whole months that contain the
        window. Return None if these are not sure to contain them.

        A group costs at most what it costs in the whole months. So the rest can be left out once
        enough groups are more expensive than that.
        """
        cover = months.cover(self._window)
        exact = cover == self._window
        size = limit if exact else limit * _STEPS[-1] + 1
        rows = [
            _read_foremost(self._by, row, self._dialect)
            for row in self._run(lambda query: query.foremost(self._by, self._where, cover, size))
        ]
        keys = [key for key, _ in rows]
        if exact:
            return sorted(self.of(keys).values(), key=_by_cost)
        for step in _STEPS:
            found = sorted(self.of(keys[: limit * step]).values(), key=_by_cost)
            if len(keys) <= limit * step:
                return found[:limit]
            bound = rows[limit * step][1]
            last = found[limit - 1] if len(found) >= limit else None
            if (
                last is not None
                and last.cost_femto is not None
                and (bound is None or last.cost_femto > bound)
            ):
                return found[:limit]
        return None

    def _added_up(self, by: Sequence[str], without: str | None) -> list[Spend]:
        parts: dict[Key, list[Spend]] = {} if by else {(): []}
        for group in self._everything():
            if without is None or group.dimensions[without] is None:
                parts.setdefault(tuple(group.dimensions[name] for name in by), []).append(group)
        return [_with(add_up(groups), by, key) for key, groups in parts.items()]


class _Spends(Mapping[Key, Spend]):
    """Groups by their keys, from rows of ``Query.spend``."""

    def __init__(
        self, by: Sequence[str], rows: Mapping[Key, Sequence[Any]], dialect: Dialect
    ) -> None:
        self._by, self._rows, self._dialect = by, rows, dialect

    def __getitem__(self, key: Key) -> Spend:
        return read_spend(self._by, self._rows[key], self._dialect)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        return key in self._rows


def add_up(groups: Sequence[Spend]) -> Spend:
    """Return the total of several groups. A count or cost is None if it is None in all of them."""
    return Spend(
        calls=sum(group.calls for group in groups),
        input_tokens=_sum([group.input_tokens for group in groups]),
        cache_read_tokens=_sum([group.cache_read_tokens for group in groups]),
        cache_write_tokens=_sum([group.cache_write_tokens for group in groups]),
        output_tokens=_sum([group.output_tokens for group in groups]),
        cost_femto=_sum([group.cost_femto for group in groups]),
        unpriced_calls=sum(group.unpriced_calls for group in groups),
        partial_calls=sum(group.partial_calls for group in groups),
        estimated_calls=sum(group.estimated_calls for group in groups),
        errors=sum(group.errors for group in groups),
    )


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _with(group: Spend, names: Sequence[str], values: Sequence[str | None]) -> Spend:
    return replace(group, dimensions=dict(zip(names, values, strict=True)))


def _parts(keys: Iterable[Key], by: Sequence[str]) -> Iterable[Sequence[Key]]:
    """Yield keys to look up at once: those without a user apart from the others."""
    user = by.index("user_id") if "user_id" in by else None
    without = [key for key in keys if user is not None and key[user] is None]
    others = [key for key in keys if user is None or key[user] is not None]
    for kind in (without, others):
        for start in range(0, len(kind), _AT_ONCE):
            yield kind[start : start + _AT_ONCE]


def _by_cost(group: Spend) -> Any:
    """Sort as ``Ledger.spend`` does."""
    return _order(group.cost_femto, group.calls, group.dimensions.values())


def _order(cost: int | None, calls: int, names: Iterable[str | None]) -> Any:
    return cost is None, -(cost or 0), -calls, [(name is not None, name or "") for name in names]


def read_costs(by: Sequence[str], row: Sequence[Any], dialect: Dialect) -> Costs:
    """Return the result of ``Query.costs``."""
    columns = dialect.read_arrays(row)
    calls, *parts, unpriced = columns[len(by) :]
    priced = [
        None if count == missing else cost
        for count, missing, cost in zip(calls, unpriced, dialect.costs_of(*parts), strict=True)
    ]
    names = tuple([name or None for name in column] for column in columns[: len(by)])
    return Costs(names, calls, priced, unpriced)


def _has_repeated(costs: Costs) -> bool:
    """Return whether two rows may be of the same group. No set of tuples: it would be collected."""
    texts = ([name or "" for name in column] for column in costs.dimensions)
    return len({*map("\n".join, zip(*texts, strict=True))}) < len(costs.calls)


def _read_foremost(
    by: Sequence[str], row: Sequence[Any], dialect: Dialect
) -> tuple[Key, int | None]:
    """Return the key and the cost of one row of the result of ``Query.foremost``."""
    calls, *costs, unpriced = row[len(by) :]
    return tuple(row[: len(by)]), None if calls == unpriced else dialect.cost(costs)
