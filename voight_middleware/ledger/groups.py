"""
The groups of calls that a report is about. It asks for the first of them, for sums over them, or
for single ones, and only that is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
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


class SqlGroups:
    """
    ``Groups`` of a ledger that answers SQL.

    Where a rollup by users serves the question, there are many groups, and each method asks for
    what it returns. Otherwise the first question reads the sums of all groups, and the others are
    answered from them: the calls are scanned once.

    Args:
        run: Runs a statement and returns its rows.
        snapshot: Makes several statements see the same moment.
        query: The queries of the ledger.
        dialect: The SQL of its engine.
        by: The dimensions, each once.
        where: The values that calls must have.
        window: The time range.
        original_prices: Use the first price of each call.
    """

    def __init__(
        self,
        run: Callable[[Sql], Sequence[Sequence[Any]]],
        snapshot: Callable[[], AbstractContextManager[None]],
        query: Query,
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
        self._rollup = None if original_prices else query.by_users(by, where, window)
        self._all: dict[Key, Spend] | None = None

    def spend(self, limit: int | None) -> list[Spend]:
        """See ``Ledger.spend``."""
        if limit is not None and self._rollup is not None and self._rollup.bucket == "month":
            with self._snapshot():
                found = self._candidates(self._rollup, limit)
                return self._spend(self._by, self._where, limit) if found is None else found
        return self._spend(self._by, self._where, limit)

    def foremost(self, limit: int | None) -> list[Spend]:
        """See ``Groups.foremost``."""
        if self._reads_all or limit is None:
            return list(islice(self._everything().values(), limit))
        return self.spend(limit)

    def of(self, keys: Collection[Key]) -> dict[Key, Spend]:
        """See ``Groups.of``."""
        if self._reads_all:
            groups = self._everything()
            return {key: groups[key] for key in keys if key in groups}
        found: dict[Key, Spend] = {}
        for some in _parts(keys, self._by):
            where: dict[str, Any] = dict(self._where)
            for name, values in zip(self._by, zip(*some, strict=True), strict=True):
                texts = dict.fromkeys(values)
                where[name] = tuple(None if text is None else literal(text) for text in texts)
            # The calls without a user are in the smaller rollups, too.
            unowned = where.get("user_id") == (None,)
            by = tuple(name for name in self._by if not (unowned and name == "user_id"))
            if unowned:
                where["user_id"] = None
            for group in self._spend(by, where):
                key = tuple(map(group.dimensions.get, self._by))
                if not group.calls:  # the sums over no dimension
                    continue
                found[key] = group if by == self._by else _with(group, self._by, key)
        return {key: found[key] for key in keys if key in found}

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
        sql = self._query.count(
            self._by, self._where, self._window, original_prices=self._original_prices
        )
        return int(self._run(sql)[0][0])

    def costs(self) -> Costs:
        """See ``Groups.costs``."""
        if self._reads_all:
            groups = self._everything()
            return Costs(
                tuple(zip(*groups, strict=True)) if groups else tuple(() for _ in self._by),
                [group.calls for group in groups.values()],
                [group.cost_femto for group in groups.values()],
                [group.unpriced_calls for group in groups.values()],
            )
        # A user seldom has several rows with all other names but one.
        assert self._rollup is not None
        for grouped in (False, True)[len(self._by) < len(self._rollup.names) - 1 :]:
            sql = self._query.costs(self._by, self._where, self._window, grouped=grouped)
            costs = _read_costs(self._by, self._run(sql)[0], self._dialect)
            if costs is not None:
                return costs
        raise AssertionError("unreachable")

    @property
    def _reads_all(self) -> bool:
        return self._rollup is None or self._all is not None

    def _everything(self) -> dict[Key, Spend]:
        if self._all is None:
            self._all = {
                tuple(group.dimensions.values()): group
                for group in self._spend(self._by, self._where)
            }
        return self._all

    def _spend(self, by: Sequence[str], where: Where, limit: int | None = None) -> list[Spend]:
        sql = self._query.spend(
            by, where, self._window, limit, original_prices=self._original_prices
        )
        return [read_spend(by, row, self._dialect) for row in self._run(sql)]

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
        sql = self._query.foremost(self._by, self._where, cover, size)
        rows = [_read_foremost(self._by, row, self._dialect) for row in self._run(sql)]
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
        for group in self._everything().values():
            if without is None or group.dimensions[without] is None:
                parts.setdefault(tuple(group.dimensions[name] for name in by), []).append(group)
        return [_with(add_up(groups), by, key) for key, groups in parts.items()]


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
    names = [(name is not None, name or "") for name in group.dimensions.values()]
    return group.cost_femto is None, -(group.cost_femto or 0), -group.calls, names


def _read_costs(by: Sequence[str], row: Sequence[Any], dialect: Dialect) -> Costs | None:
    """Return the result of ``Query.costs``, None if a group has several rows."""
    columns = dialect.read_arrays(row)
    calls, *parts, unpriced = columns[len(by) :]
    texts = [[name or "" for name in column] for column in columns[: len(by)]]
    if len({*map("\n".join, zip(*texts, strict=True))}) < len(calls):
        return None
    priced = [
        None if count == missing else cost
        for count, missing, cost in zip(calls, unpriced, dialect.costs_of(*parts), strict=True)
    ]
    names = tuple([text or None for text in column] for column in texts)
    return Costs(names, calls, priced, unpriced)


def _read_foremost(
    by: Sequence[str], row: Sequence[Any], dialect: Dialect
) -> tuple[Key, int | None]:
    """Return the key and the cost of one row of the result of ``Query.foremost``."""
    calls, *costs, unpriced = row[len(by) :]
    return tuple(row[: len(by)]), None if calls == unpriced else dialect.cost(costs)
