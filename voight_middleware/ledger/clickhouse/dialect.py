"""The SQL of ClickHouse."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from voight_middleware.ledger.base import wildcard_parts
from voight_middleware.ledger.clickhouse.schema import SELECT, SUMS, femto, kept_as
from voight_middleware.ledger.query import Sql
from voight_middleware.ledger.rollups import Bucket, Rollup
from voight_middleware.ledger.rows import FIGURES, INPUT, OUTPUT, READ, SELECTED, WRITTEN

_FORMS = {"hour": "%Y-%m-%dT%H:00", "day": "%Y-%m-%d", "week": "%Y-%m-%d", "month": "%Y-%m"}
_ESCAPED = re.compile(r"[\\%_]")


def _known(counts: Sequence[str]) -> str:
    return _count(" OR ".join(f"{name} IS NOT NULL" for name in counts))


def _count(condition: str) -> str:
    return f"toInt64(SUM({condition}))"


def _total(counts: Sequence[str]) -> str:
    # In 128 bits: the engine's own sum of 64 bits overflows silently. The counts of one call don't.
    return f"SUM(toInt128({' + '.join(f'ifNull({name}, 0)' for name in counts)}))"


def literal(value: Any) -> str:
    """Return the SQL of text, a whole number, None or a list of them."""
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        value = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{value}'"
    return f"[{', '.join(map(literal, value))}]"


def bound(sql: str, values: Collection[Any]) -> str:
    """
    Return *sql* with each ``?`` replaced by a value, unchanged if there are no values.

    The engine's own parameters go into the URL, which proxies cut off.
    """
    if not values:
        return sql
    head, *pieces = sql.split("?")
    return head + "".join(
        f"{literal(value)}{piece}" for value, piece in zip(values, pieces, strict=True)
    )


class ClickHouseDialect:
    """
    A ``Dialect`` whose rollups only have closed days.

    Args:
        database: The name of the database, quoted.
    """

    sums: Mapping[str, str] = {
        "calls": "toInt64(COUNT(*))",
        "cost": "SUM(cost)",
        "unpriced": _count("cost_status = 'unpriced'"),
        "partial": _count("cost_status = 'partial'"),
        "estimated": _count("estimated_input IS NOT NULL OR estimated_output IS NOT NULL"),
        "errors": _count("outcome = 'error'"),
        "known_input": _known(INPUT),
        "input": _total(INPUT),
        "known_read": _known(READ),
        "cache_read": _total(READ),
        "known_written": _known(WRITTEN),
        "cache_write": _total(WRITTEN),
        "known_output": _known(OUTPUT),
        "output": _total(OUTPUT),
    }
    counted: Mapping[str, str] = sums
    costs = 1
    rollups: Collection[Rollup] = SUMS

    def __init__(self, database: str) -> None:
        self.schema = f"{database}."
        self.calls = f"{database}.calls FINAL"
        columns = ", ".join(
            f"IF(original.number = 1, original.{name}, calls.{name}) AS {name}"
            if name in _FIGURES
            else f"calls.{name} AS {name}"
            for name in SELECT.split(", ")
        )
        self.calls_at_original_prices = (
            f"(SELECT {columns} FROM {database}.calls AS calls FINAL LEFT JOIN "
            f"(SELECT * FROM {database}.former_costs FINAL WHERE number = 1) AS original ON "
            "original.call_id = calls.call_id)"
        )

    def cost(self, columns: Sequence[Any]) -> int:
        """Return femto-dollars from US dollars."""
        return femto(columns[0]) or 0

    # Arrays are for engines that have snapshots, and can answer a report in several statements.
    # ClickHouse reads all groups in one, so nothing asks for these.

    def costs_of(self, *columns: Sequence[Any]) -> list[int]:
        raise NotImplementedError("groups are read at once")

    def array(self, sql: str, *, count: bool = False) -> str:
        raise NotImplementedError("groups are read at once")

    def read_arrays(self, row: Sequence[Any]) -> list[list[Any]]:
        raise NotImplementedError("groups are read at once")

    def by_cost(self, sums: Sequence[str]) -> str:
        """Return a term for which no cost is 0, as in the sums of closed days."""
        return f"ifNull({sums[0]}, 0) DESC"

    def column(self, name: str, *, few: bool) -> str:
        """Return the column. No index gets in the way."""
        return name

    def moment(self, form: str, at: str, ahead: str = "0") -> str:
        """Return a time. The integer division truncates towards 0."""
        local = f"fromUnixTimestamp64Second(toInt64(intDiv({at}, 1000000) + {ahead}), 'UTC')"
        return (
            f"formatDateTime({f'toMonday({local})' if form == 'week' else local}, '{_FORMS[form]}')"
        )

    def extra(self, key: str) -> Sql:
        return "IF(mapContains(tags_extra, ?), tags_extra[?], NULL)", [key, key]

    def addressable(self, key: str) -> bool:
        """Return whether SQLite can name *key*: both engines have the same dimensions."""
        return key.isprintable() and '"' not in key and "\\" not in key

    def like(self, sql: str, pattern: str) -> Sql:
        """Use LIKE, which is case-sensitive here."""
        return f"{sql} LIKE ?", [
            "%".join(_ESCAPED.sub(r"\\\g<0>", part) for part in wildcard_parts(pattern))
        ]

    def among(self, sql: str, values: Sequence[Bucket]) -> Sql:
        """Bind all values as one."""
        return f"has(?, {sql})", [list(values)]


_FIGURES = frozenset(kept_as(name) for name in FIGURES)
assert ", ".join(map(kept_as, SELECTED)) == SELECT
