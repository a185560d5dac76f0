"""A query on a ClickHouse ledger: closed days from their sums, everything else from the calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import tzinfo

from voight_middleware.ledger.base import Where, Window
from voight_middleware.ledger.clickhouse.closed_days import runs
from voight_middleware.ledger.clickhouse.dialect import ClickHouseDialect
from voight_middleware.ledger.clickhouse.schema import USER_DETAILS
from voight_middleware.ledger.query import Query, Sql
from voight_middleware.ledger.rollups import Bucket, Part, Rollup, plan_query

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
        closed: The closed days, each with the number of its closing.
    """

    def __init__(
        self,
        dialect: ClickHouseDialect,
        extra_keys: Collection[str],
        zone: tzinfo | None,
        extent: tuple[int, int] | None,
        closed: Mapping[str, int],
    ) -> None:
        super().__init__(dialect, extra_keys, zone, extent)
        self._closed = closed

    def _plan(
        self, by: Collection[str], where: Where, window: Window, usable: Collection[Rollup]
    ) -> tuple[list[Part], list[Window]]:
        parts: list[Part] = []
        windows: list[Window] = []
        read: int | None = window.since
        for begin, end in runs(self._closed, _MOST_RUNS):
            since = begin if window.since is None else max(begin, window.since)
            until = end if window.until is None else min(end, window.until)
            if since >= until:
                continue
            rolled, rest = _plan_run(by, where, Window(since, until), usable)
            parts += rolled
            windows += [Window(read, since), *sorted(rest, key=lambda edge: edge.since or 0)]
            read = until
        if not parts:
            return [], [window]
        return parts, _joined([*windows, Window(read, window.until)])

    def _from_rollup(
        self,
        rollup: Rollup,
        by: Sequence[str],
        where: Where,
        first: Bucket | None,
        end: Bucket | None,
    ) -> Sql:
        sql, values = super()._from_rollup(rollup, by, where, first, end)
        return f"{sql} AND version IN ({', '.join(map(str, self._closed.values()))})", values


def _plan_run(
    by: Collection[str], where: Where, window: Window, usable: Collection[Rollup]
) -> tuple[list[Part], list[Window]]:
    parts, windows = plan_query(by, where, window, usable)
    if not parts and USER_DETAILS in usable and USER_DETAILS.supports(by, where):
        whole = USER_DETAILS.split_window(window)
        if whole is not None:
            return [(USER_DETAILS, whole[0], whole[1])], whole[2]
    return parts, windows


def _joined(windows: Sequence[Window]) -> list[Window]:
    """Return *windows* without empty ones, and each as one with the next one if they meet."""
    joined: list[Window] = []
    for window in windows:
        if window.since is not None and window.since == window.until:
            continue
        if joined and joined[-1].until is not None and joined[-1].until == window.since:
            joined.append(Window(joined.pop().since, window.until))
        else:
            joined.append(window)
    return joined
