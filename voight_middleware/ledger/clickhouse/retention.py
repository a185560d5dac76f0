"""Retention in a ClickHouse ledger: by the server's own TTL, or by command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from voight_middleware.ledger.base import Expired
from voight_middleware.ledger.clickhouse.closed_days import day_of
from voight_middleware.ledger.clickhouse.dialect import literal
from voight_middleware.ledger.clickhouse.schema import SUMS

if TYPE_CHECKING:
    from voight_middleware.ledger.clickhouse.database import Database

_TIMES = {"calls": "occurred_at", "former_costs": "occurred_at", "jobs": "submitted_at"}
_DAY = 86_400_000_000
_LAST = 4_294_967_295
"""
The last second that the engine's ``DateTime`` holds, in the year 2106. Later values wrap around to
1970.
"""


def ttl(db: Database) -> int:
    """Return after how many days the server deletes calls, 0 for never."""
    return db.ttl("calls")


def keep_for(db: Database, days: int) -> None:
    """
    Have the server delete what is older than *days*, 0 for never. Existing rows go with the next
    merges.
    """
    moments = {
        table: f"toDateTime(least(intDiv({column}, 1000000), {_LAST} - {days} * 86400), 'UTC')"
        for table, column in _TIMES.items()
    }
    # Sums name users too. They go after the last call of their day.
    moments |= {rollup.table: "toDate(day) + 1" for rollup in SUMS}
    changed = [table for table in moments if db.ttl(table) != days]
    if changed:
        # Sums may contain calls that the server has deleted, or will have after this.
        db.days.mark_all()
    for table in changed:
        what = f"MODIFY TTL {moments[table]} + toIntervalDay({days})" if days else "REMOVE TTL"
        db.run(
            f"ALTER TABLE {db.name}.{table} {db.server.on_cluster} {what}",
            materialize_ttl_after_modify=0,
        )


def expired(db: Database, until: int) -> Expired:
    """Return the records from before *until*."""
    return Expired(
        *(_count(db, table, f"{column} < {int(until)}") for table, column in _TIMES.items())
    )


def expire(db: Database, until: int, limit: int) -> Expired:
    """
    Delete the oldest calls from before *until*: whole months at once, then the rest of a month in
    one pass.
    """
    begin, left = f"occurred_at < {int(until)}", limit
    # Sums go by whole days, the one that *until* cuts included.
    edge = -(-int(until) // _DAY) * _DAY
    rows = db.rows(
        f"SELECT DISTINCT intDiv(occurred_at, {_DAY}) * {_DAY} FROM {db.name}.calls WHERE "
        f"occurred_at < {edge}"
    )
    db.days.changing(at for (at,) in rows)
    counts = dict.fromkeys(_TIMES, 0)
    for month, end, calls in _months(db):
        if end >= until or calls > left:
            break
        counts["calls"] += calls
        counts["former_costs"] += _count(db, "former_costs", f"_partition_id = {literal(month)}")
        for table in ("former_costs", "calls"):
            db.alter(table, f"DROP PARTITION ID {literal(month)}")
        left -= calls
    oldest = db.rows(
        f"SELECT occurred_at, call_id FROM {db.name}.calls FINAL WHERE {begin} ORDER BY "
        "occurred_at, call_id LIMIT ?, 1",
        [left],
    )
    if oldest:  # the first call to keep for now
        begin = f"(occurred_at, call_id) < ({oldest[0][0]}, {literal(oldest[0][1])})"
    for table in ("former_costs", "calls"):
        if count := _count(db, table, begin):
            db.alter(table, f"DELETE WHERE {begin}")
            counts[table] += count
    if counts["calls"] < limit and (count := _count(db, "jobs", f"submitted_at < {int(until)}")):
        db.alter("jobs", f"DELETE WHERE submitted_at < {int(until)}")
        counts["jobs"] = count
    if edge > 0:
        after = day_of(edge)
        db.days.forget("1" if after is None else f"day < {literal(after)}")
    return Expired(*counts.values())


def _count(db: Database, table: str, condition: str) -> int:
    return int(db.rows(f"SELECT COUNT(*) FROM {db.name}.{table} FINAL WHERE {condition}")[0][0])


def _months(db: Database) -> Sequence[tuple[str, int, int]]:
    """
    Return the months, the oldest first: the partition's id, the time of the newest call, and the
    number of calls.
    """
    sql = (
        f"SELECT _partition_id, MAX(occurred_at) AS newest, COUNT(*) FROM {db.name}.calls FINAL "
        "GROUP BY _partition_id ORDER BY newest"
    )
    return [(month, newest, calls) for month, newest, calls in db.rows(sql)]
