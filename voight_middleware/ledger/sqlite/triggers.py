"""
The rollups of a SQLite ledger, updated in the transaction of each change to a call.

Triggers do that for late attributions, results of jobs, repricings, erasures and retention, from
any process. A batch of new calls adds its sums at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from voight_middleware.ledger.rollups import ROLLUPS, Bucket, Rollup
from voight_middleware.ledger.rows import INPUT, OUTPUT, READ, WRITTEN
from voight_middleware.ledger.sqlite.packed import CHANGE, REMOVE

LIMB = 1_000_000_000
"""Costs are summed in two limbs: a sum of femto-dollars exceeds SQLite's 64 bits at 9,223 USD."""


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
    "known_input": _known(INPUT),
    "input": _total(INPUT),
    "known_read": _known(READ),
    "cache_read": _total(READ),
    "known_written": _known(WRITTEN),
    "cache_write": _total(WRITTEN),
    "known_output": _known(OUTPUT),
    "output": _total(OUTPUT),
}
"""The measures of one call as SQL. ``@`` stands for NEW or OLD in a trigger."""


def _sum_known(counts: Sequence[str]) -> str:
    return f"COALESCE({', '.join(f'SUM({name})' for name in counts)}) IS NOT NULL"


def _count_known(counts: Sequence[str]) -> str:
    return f"COUNT(COALESCE({', '.join(counts)}))"


def _sum_total(counts: Sequence[str]) -> str:
    return " + ".join(f"COALESCE(SUM({name}), 0)" for name in counts)


SUMS = {name: f"SUM({sql.replace('@', '')})" for name, sql in MEASURES.items()} | {
    "calls": "COUNT(*)",
    "high": f"COALESCE(SUM(cost_femto / {LIMB}), 0)",
    "low": f"COALESCE(SUM(cost_femto % {LIMB}), 0)",
    "known_input": _sum_known(INPUT),
    "input": _sum_total(INPUT),
    "known_read": _sum_known(READ),
    "cache_read": _sum_total(READ),
    "known_written": _sum_known(WRITTEN),
    "cache_write": _sum_total(WRITTEN),
    "known_output": _sum_known(OUTPUT),
    "output": _sum_total(OUTPUT),
}
"""
The measures of many calls. Summing mostly empty columns one by one takes a third of the time of
summing their totals. It is enough here to know whether any call has a count.
"""
COUNTS = SUMS | {
    "known_input": _count_known(INPUT),
    "known_read": _count_known(READ),
    "known_written": _count_known(WRITTEN),
    "known_output": _count_known(OUTPUT),
}
"""The same, with the numbers of the calls that have a count: they can be subtracted."""
_BUCKETS = {
    # For times before 1970: a division truncates towards 0.
    "hour": "(@occurred_at + 3600000000000000) / 3600000000 - 1000000",
    "day": "COALESCE(strftime('%Y-%m-%d', @occurred_at / 1000000, 'unixepoch'), '')",
    "month": "COALESCE(strftime('%Y-%m', @occurred_at / 1000000, 'unixepoch'), '')",
}


def table(rollup: Rollup) -> str:
    """Return the statement that creates an empty rollup."""
    measures = ", ".join(f"{name} INTEGER NOT NULL" for name in MEASURES)
    key = ", ".join(
        f"{name} {'INTEGER' if name in ('owned', 'hour') else 'TEXT'} NOT NULL"
        for name in rollup.key
    )
    return (
        f"CREATE TABLE {rollup.table} ({key}, {measures}, PRIMARY KEY "
        f"({', '.join(rollup.key)})) STRICT, WITHOUT ROWID"
    )


def triggers() -> list[str]:
    """Return the statements that create the triggers of the view ``calls``."""
    take = [_change(rollup, "OLD.", "-") for rollup in ROLLUPS]
    give = [_change(rollup, "NEW.", "+") for rollup in ROLLUPS]
    return [
        (
            "CREATE TRIGGER call_removed INSTEAD OF DELETE ON calls BEGIN "
            f"{REMOVE} {' '.join(take)} END"
        ),
        (
            "CREATE TRIGGER call_changed INSTEAD OF UPDATE ON calls BEGIN "
            f"{CHANGE} {' '.join((*take, *give))} END"
        ),
    ]


def _change(rollup: Rollup, row: str, sign: str) -> str:
    key, values = _key(rollup, row), [sql.replace("@", row) for sql in MEASURES.values()]
    if sign == "+":
        return f"INSERT INTO {rollup.table} VALUES ({', '.join((*key, *values))}) {_ADDED};"
    less = ", ".join(
        f"{name} = {name} - ({sql})" for name, sql in zip(MEASURES, values, strict=True)
    )
    same = " AND ".join(f"{name} = {sql}" for name, sql in zip(rollup.key, key, strict=True))
    return (
        f"UPDATE {rollup.table} SET {less} WHERE {same}; DELETE FROM {rollup.table} WHERE {same} "
        "AND calls = 0;"
    )


_ADDED = "ON CONFLICT DO UPDATE SET " + ", ".join(
    f"{name} = {name} + excluded.{name}" for name in MEASURES
)


_NAMES = sorted({name for rollup in ROLLUPS for name in rollup.names})
MEASURED = (*_BUCKETS, *_NAMES, "owned", *MEASURES)
"""The columns of ``measured``: everything that a rollup needs of a call."""


def measured(source: str) -> str:
    """Return the query that gives ``MEASURED`` for each call of *source*."""
    columns = [sql.replace("@", "") for sql in _BUCKETS.values()]
    columns += [f"COALESCE({name}, '')" for name in _NAMES]
    columns += ["user_id IS NOT NULL", *(sql.replace("@", "") for sql in MEASURES.values())]
    return f"SELECT {', '.join(columns)} FROM {source}"


def grouped(source: str) -> str:
    """
    Return the query that sums rows of ``MEASURED`` by everything that rollups without users
    distinguish. Its columns are ``MEASURED`` again.
    """
    keys = {name for rollup in ROLLUPS if "user_id" not in rollup.names for name in rollup.key}
    sums = [f"SUM({name})" if name in MEASURES else name for name in MEASURED]
    return f"SELECT {', '.join(sums)} FROM {source} GROUP BY {', '.join(sorted(keys))}"


def add(rollup: Rollup, source: str) -> str:
    """Return the statement that adds rows of ``MEASURED`` to a rollup."""
    columns = ", ".join((*rollup.key, *MEASURES))
    return f"INSERT INTO {rollup.table} SELECT {columns} FROM {source} WHERE 1 {_ADDED}"


def fill(rollup: Rollup, condition: str = "1") -> str:
    """
    Return the statement that fills an empty rollup, or a part of it, from the calls that match
    *condition*.
    """
    positions = ", ".join(str(position + 1) for position in range(len(rollup.key)))
    sums = ", ".join(f"SUM({sql.replace('@', '')})" for sql in MEASURES.values())
    return (
        f"INSERT INTO {rollup.table} SELECT {', '.join(_key(rollup))}, {sums} FROM calls WHERE "
        f"{condition} GROUP BY {positions}"
    )


def empty(rollup: Rollup, begin: int, end: int) -> tuple[str, list[Bucket]]:
    """
    Return the statement that deletes the buckets between two bucket beginnings, and its values.
    """
    bounds = [rollup.name(rollup.floor(at)) for at in (begin, end)]
    return f"DELETE FROM {rollup.table} WHERE {rollup.bucket} >= ? AND {rollup.bucket} < ?", bounds


def _key(rollup: Rollup, row: str = "") -> tuple[str, ...]:
    """Return the SQL of a rollup's key. *row* is ``NEW.`` or ``OLD.`` in a trigger."""
    names = [f"COALESCE({row}{name}, '')" for name in rollup.names]
    owned = [f"({row}user_id IS NOT NULL)"] if rollup.owned else []
    return (_BUCKETS[rollup.bucket].replace("@", row), *names, *owned)
