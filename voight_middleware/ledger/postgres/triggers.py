"""
The rollups of a PostgreSQL ledger: triggers update them in the transaction of each statement that
changes calls.

That covers new calls, late attributions, results of jobs, repricings, erasures and deletions, from
any client. Writers take one lock for a transaction, so that they never wait for each other's sums.
"""

from __future__ import annotations

from collections.abc import Sequence

from voight_middleware.ledger.rollups import ROLLUPS, Bucket, Rollup
from voight_middleware.ledger.rows import INPUT, OUTPUT, READ, WRITTEN

_FORMS = {
    "hour": 'YYYY-MM-DD"T"HH24":00"',
    "day": "YYYY-MM-DD",
    "week": "YYYY-MM-DD",
    "month": "YYYY-MM",
}
_YEARS = "BETWEEN -62135596800 AND 253402300799"
"""The years 1 to 9999. Other moments have no name."""


def moment(form: str, at: str, ahead: str = "0") -> str:
    """
    Return the SQL of an hour, day, week or month, as ``Dialect.moment``. The session's time zone
    and language don't matter.
    """
    seconds = f"({at} / 1000000 + {ahead})"
    local = f"to_timestamp({seconds}) AT TIME ZONE 'UTC'"
    if form == "week":
        local = f"date_trunc('week', {local})"
    text = f"to_char({local}, '{_FORMS[form]}')"
    return f'(CASE WHEN {seconds} {_YEARS} THEN {text} END COLLATE "C")'


def _known(counts: Sequence[str]) -> str:
    return f"COUNT(COALESCE({', '.join(counts)}))"


def _total(counts: Sequence[str]) -> str:
    return " + ".join(f"COALESCE(SUM({name}), 0)" for name in counts)


SUMS = {
    "calls": "COUNT(*)",
    "cost": "COALESCE(SUM(cost), 0)",
    "unpriced": "COUNT(*) FILTER (WHERE cost_status = 'unpriced')",
    "partial": "COUNT(*) FILTER (WHERE cost_status = 'partial')",
    "estimated": "COUNT(COALESCE(estimated_input, estimated_output))",
    "errors": "COUNT(*) FILTER (WHERE outcome = 'error')",
    "known_input": _known(INPUT),
    "input": _total(INPUT),
    "known_read": _known(READ),
    "cache_read": _total(READ),
    "known_written": _known(WRITTEN),
    "cache_write": _total(WRITTEN),
    "known_output": _known(OUTPUT),
    "output": _total(OUTPUT),
}
"""The sums over many calls as SQL, by the names of the rollups' columns."""

_BUCKETS = {
    # For times before 1970: a division truncates towards 0.
    "hour": "(occurred_at + 3600000000000000) / 3600000000 - 1000000",
    "day": f"COALESCE({moment('day', 'occurred_at')}, '')",
    "month": f"COALESCE({moment('month', 'occurred_at')}, '')",
}


def statements() -> list[str]:
    """Return the statements that create empty rollups and their triggers."""
    return [
        *map(table, ROLLUPS),
        *functions(),
        _trigger("INSERT", "count_added", "NEW TABLE AS added"),
        _trigger("DELETE", "count_removed", "OLD TABLE AS removed"),
        _trigger("UPDATE", "count_changed", "NEW TABLE AS added OLD TABLE AS removed"),
    ]


def functions() -> list[str]:
    """Return the statements that create or replace the functions of the triggers."""
    return [
        _function(
            "count_added", "added", [_add(rollup, sums(rollup, "added")) for rollup in ROLLUPS]
        ),
        _function(
            "count_removed",
            "removed",
            [_add(rollup, _less(rollup)) + _drop(rollup) for rollup in ROLLUPS],
        ),
        _function(
            "count_changed",
            "added",
            [_add(rollup, _difference(rollup)) + _drop(rollup) for rollup in ROLLUPS],
        ),
    ]


def table(rollup: Rollup) -> str:
    """Return the statement that creates an empty rollup."""
    text = 'text COLLATE "C"'
    key = ", ".join(
        f"{name} { {'hour': 'bigint', 'owned': 'smallint'}.get(name, text) } NOT NULL"
        for name in rollup.key
    )
    measures = ", ".join(
        f"{name} {'numeric(38, 15)' if name == 'cost' else 'bigint'} NOT NULL" for name in SUMS
    )
    unique = ", ".join(_unique(rollup))
    # Rows are updated in place if their page has room, without touching the index.
    return (
        f"CREATE TABLE voight.{rollup.table} ({measures}, {key}, rest bytea NOT NULL, PRIMARY KEY "
        f"({unique})) WITH (fillfactor = 85)"
    )


def _unique(rollup: Rollup) -> tuple[str, ...]:
    """
    Return the unique key. The texts of a whole key may exceed an index entry, so most of them are
    hashed.
    """
    return (*rollup.key[:2], "rest")


def _key(rollup: Rollup) -> dict[str, str]:
    """Return the SQL of a rollup's key, by column."""
    values = [_BUCKETS[rollup.bucket], *(f"COALESCE({name}, '')" for name in rollup.names)]
    values += ["(user_id IS NOT NULL)::int::smallint"] if rollup.owned else []
    rest = f"substr(sha256(convert_to(ROW({', '.join(values[2:])})::text, 'UTF8')), 1, 16)"
    return dict(zip((*rollup.key, "rest"), (*values, rest), strict=True))


def sums(rollup: Rollup, source: str) -> str:
    """Return a query for the rows of a rollup from the calls in *source*."""
    columns = ", ".join(f"{sql} AS {name}" for name, sql in (_key(rollup) | SUMS).items())
    return f"SELECT {columns} FROM {source} GROUP BY {_first(len(rollup.key))}"


def fill(rollup: Rollup, source: str) -> str:
    """Return the statement that fills an empty rollup, or an empty part of it."""
    return (
        f"INSERT INTO voight.{rollup.table} ({', '.join((*rollup.key, 'rest', *SUMS))}) "
        f"{sums(rollup, source)}"
    )


def empty(rollup: Rollup, begin: int, end: int) -> tuple[str, list[Bucket]]:
    """
    Return the statement that deletes the buckets between two bucket beginnings, and its values.
    """
    bounds = [rollup.name(rollup.floor(at)) for at in (begin, end)]
    return (
        f"DELETE FROM voight.{rollup.table} WHERE {rollup.bucket} >= ? AND {rollup.bucket} < ?",
        bounds,
    )


def _less(rollup: Rollup) -> str:
    """Return a query for the rows of removed calls, negated."""
    columns = ", ".join((*rollup.key, "rest", *(f"-{name} AS {name}" for name in SUMS)))
    return f"SELECT {columns} FROM ({sums(rollup, 'removed')}) AS less"


def _difference(rollup: Rollup) -> str:
    """Return a query for the changes of an update. It has no rows if the update changes no sum."""
    both = f"{sums(rollup, 'added')} UNION ALL {_less(rollup)}"
    columns = ", ".join((*rollup.key, "rest", *(f"SUM({name})" for name in SUMS)))
    changed = " OR ".join(f"SUM({name}) <> 0" for name in SUMS)
    return (
        f"SELECT {columns} FROM ({both}) AS both_sides GROUP BY {_first(len(rollup.key) + 1)} "
        f"HAVING {changed}"
    )


def _add(rollup: Rollup, rows: str) -> str:
    """
    Add rows in the order of their key, so that clients without the writers' lock change sums in the
    same order.
    """
    columns = ", ".join((*rollup.key, "rest", *SUMS))
    added = ", ".join(f"{name} = rollup.{name} + excluded.{name}" for name in SUMS)
    return (
        f"INSERT INTO voight.{rollup.table} AS rollup ({columns}) {rows} ORDER BY "
        f"{_first(len(rollup.key))} "
        f"ON CONFLICT ({', '.join(_unique(rollup))}) DO UPDATE SET {added};"
    )


def _drop(rollup: Rollup) -> str:
    """Drop the rows without calls."""
    keys = ", ".join(f"{sql} AS {name}" for name, sql in _key(rollup).items())
    same = " AND ".join(f"rollup.{name} = gone.{name}" for name in _unique(rollup))
    return (
        f"DELETE FROM voight.{rollup.table} AS rollup USING (SELECT DISTINCT {keys} FROM removed) "
        f"AS gone WHERE {same} AND calls = 0;"
    )


def _first(number: int) -> str:
    return ", ".join(str(position + 1) for position in range(number))


def _function(name: str, rows: str, body: Sequence[str]) -> str:
    # Runs as its owner: a writer role needs no right to the sums. The fixed path excludes other
    # users' tables.
    return (
        f"CREATE OR REPLACE FUNCTION voight.{name}() RETURNS trigger LANGUAGE plpgsql SECURITY "
        "DEFINER SET search_path = pg_catalog, pg_temp "
        f"AS $body$ BEGIN IF EXISTS (SELECT FROM {rows}) THEN {' '.join(body)} END IF; RETURN "
        "NULL; END $body$"
    )


def _trigger(event: str, function: str, tables: str) -> str:
    return (
        f"CREATE TRIGGER {function} AFTER {event} ON voight.calls REFERENCING {tables} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION voight.{function}()"
    )
