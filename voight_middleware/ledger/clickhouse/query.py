"""A query on a ClickHouse ledger: closed days from their sums, everything else from the calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import tzinfo

from voight_middleware.ledger.base import Where, Window
from voight_middleware.ledger.clickhouse.closed_days import runs
from voight_middleware.ledger.clickhouse.dialect import ClickHouseDialect
from voight_middleware.ledger.clickhouse.schema import USER_DETAILS
from voight_middleware.ledger.query import Query, Sql
from voight_middleware.ledger.rollups import Edge, Part, Rollup, plan_query

_MOST_RUNS = 8
"""How many runs of closed days a query tells apart. It reads the calls of the others."""


class ClickHouseQuery(Query):
    """
    A query that knows the closed days.

    Args:
        dialect: The SQL of ClickHouse.
        extra_keys: The extra keys of the calls.
        zone: The time zone of hours, days and months. None means UTC.
        extent: The times of the first and the last call, in microseconds.
        known: The times of the first and the last call that can match, if they are known.
        closed: The closed days, each with the number of its closing.
    """

    def __init__(
        self,
        dialect: ClickHouseDialect,
        extra_keys: Collection[str],
        zone: tzinfo | None,
        extent: tuple[int, int] | None,
        known: tuple[int, int] | None,
        closed: Mapping[str, int],
    ) -> None:
        super().__init__(dialect, extra_keys, zone, extent)
        self._known = known
        self._closed = closed

    def _plan(
        self, by: Sequence[str], where: Where, window: Window, original_prices: bool
    ) -> tuple[list[Part], list[Edge]]:
        usable = () if original_prices else self._usable(by, where)
        parts: list[Part] = []
        edges: list[Edge] = []
        gaps: list[Edge] = []
        read: int | None = window.since
        for begin, end in runs(self._closed, _MOST_RUNS):
            since = begin if window.since is None else max(begin, window.since)
            until = end if window.until is None else min(end, window.until)
            if since >= until:
                continue
            # A day that the window cuts is closed as a whole, so calls can be subtracted from it.
            rolled, rest = _plan_run(by, where, Window(since, until), usable, self._extent)
            if rolled:
                parts += rolled
                edges += rest
                if read != since:
                    gaps.append((Window(read, since), 1))
                read = until
        if not parts or read != window.until:
            gaps.append((Window(read, window.until), 1))
        # Edges stay whole: a call that came after this was known is in the sums, too.
        return parts, [*edges, *self._among_known(parts, gaps)]

    def _rows_of_rollup(self, part: Part, where: Where) -> Sql:
        sql, values = super()._rows_of_rollup(part, where)
        return f"{sql} AND version IN ({', '.join(map(str, self._closed.values()))})", values


def _plan_run(
    by: Collection[str],
    where: Where,
    window: Window,
    usable: Collection[Rollup],
    extent: tuple[int, int],
) -> tuple[list[Part], list[Edge]]:
    parts, edges = plan_query(by, where, window, usable, extent)
    if not parts and USER_DETAILS in usable and USER_DETAILS.supports(by, where):
        whole = USER_DETAILS.split_window(window, extent)
        if whole is not None:
            first, end, edges = whole
            return [(USER_DETAILS, first, end, 1)], edges
    return parts, edges
