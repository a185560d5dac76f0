"""Retention in a ClickHouse ledger: by the server itself after some days, or by command."""

from __future__ import annotations

import re
from collections.abc import Sequence

from voight_middleware.ledger.base import Expired
from voight_middleware.ledger.clickhouse.database import Database

_TIMES = {"calls": "occurred_at", "former_costs": "occurred_at", "jobs": "submitted_at"}
_DAYS = re.compile(r"TTL .*toIntervalDay\((\d+)\)")
_LAST = 4_294_967_295
"""The last second that the engine's ``DateTime`` holds, in the year 2106: what is later begins again in 1970 there."""


def ttl(db: Database) -> int:
    """After how many days the server deletes calls; 0 for never."""
    return _ttl(db, "calls")


def keep_for(db: Database, days: int) -> None:
    """Have the server delete what is older; 0 for never. What is there already goes with the next merges, and not now."""
    for table, column in _TIMES.items():
        if _ttl(db, table) == days:
            continue
        moment = f"toDateTime(least(intDiv({column}, 1000000), {_LAST} - {days} * 86400), 'UTC')"
        what = f"MODIFY TTL {moment} + toIntervalDay({days})" if days else "REMOVE TTL"
        db.run(f"ALTER TABLE {db.name}.{table} {db.server.on_cluster} {what}", materialize_ttl_after_modify=0)


def _ttl(db: Database, table: str) -> int:
    rows = db.rows("SELECT engine_full FROM system.tables WHERE database = ? AND name = ?", [db.server.database, table])
    found = _DAYS.search(rows[0][0]) if rows else None
    return int(found[1]) if found else 0


def expired(db: Database, until: int) -> Expired:
    """What happened before *until*."""
    return Expired(*(_count(db, table, f"{column} < {int(until)}") for table, column in _TIMES.items()))


def expire(db: Database, until: int) -> Expired:
    """Delete what happened before *until*: whole months at once, and what is left in one pass."""
    found = expired(db, until)
    for table, count in zip(("former_costs", "calls", "jobs"), (found.former_prices, found.calls, found.submissions), strict=True):
        if not count:
            continue
        if table != "jobs":
            for month in _months(db, table, until):
                db.alter(table, f"DROP PARTITION {int(month)}")
        left = f"{_TIMES[table]} < {int(until)}"
        if _count(db, table, left):
            db.alter(table, f"DELETE WHERE {left}")
    return found


def _count(db: Database, table: str, condition: str) -> int:
    return int(db.rows(f"SELECT COUNT(*) FROM {db.name}.{table} FINAL WHERE {condition}")[0][0])


def _months(db: Database, table: str, until: int) -> Sequence[str]:
    """The months in which nothing is younger."""
    sql = f"SELECT _partition_id FROM {db.name}.{table} GROUP BY _partition_id HAVING MAX(occurred_at) < ?"
    return [month for (month,) in db.rows(sql, [until])]
