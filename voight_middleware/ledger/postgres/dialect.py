"""The SQL of PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any

from voight_middleware.ledger.base import wildcard_parts
from voight_middleware.ledger.postgres import triggers
from voight_middleware.ledger.postgres.schema import CALLS, CALLS_AT_ORIGINAL_PRICES
from voight_middleware.ledger.query import Sql
from voight_middleware.ledger.rollups import ROLLUPS, Bucket, Rollup
from voight_middleware.records.money import CONTEXT

_SPECIAL = re.compile(r"[\\%_]")


class PostgresDialect:
    """A ``Dialect``. Costs are NUMERIC, with exact sums. Texts are compared bytewise."""

    sums: Mapping[str, str] = triggers.SUMS
    counted: Mapping[str, str] = triggers.SUMS
    costs = 1
    rollups: Collection[Rollup] = ROLLUPS
    schema = "voight."
    calls = CALLS
    calls_at_original_prices = CALLS_AT_ORIGINAL_PRICES

    def cost(self, columns: Sequence[Any]) -> int:
        """Return femto-dollars from the sum in dollars."""
        return femto(columns[0]) or 0

    def costs_of(self, *columns: Sequence[Any]) -> list[int]:
        return [femto(dollars) or 0 for dollars in columns[0]]

    def array(self, sql: str, *, count: bool = False) -> str:
        """Return an array. A sum of counts is NUMERIC before."""
        return f"array_agg({sql}{'::bigint' if count else ''})"

    def read_arrays(self, row: Sequence[Any]) -> list[list[Any]]:
        """Return the arrays. That of no rows is NULL."""
        return [column or [] for column in row]

    def by_cost(self, sums: Sequence[str]) -> str:
        return f"{sums[0]} DESC"

    def column(self, name: str, *, few: bool) -> str:
        """Return the column. The planner knows how many calls a user has."""
        return name

    def moment(self, form: str, at: str, ahead: str = "0") -> str:
        """Use the function that the rollups use."""
        return triggers.moment(form, at, ahead)

    def extra(self, key: str) -> Sql:
        return '(tags_extra ->> ?::text COLLATE "C")', [key]

    def addressable(self, key: str) -> bool:
        """
        Return whether a JSON path of SQLite can name *key*: both engines have the same dimensions.
        """
        return key.isprintable() and '"' not in key and "\\" not in key

    def like(self, sql: str, pattern: str) -> Sql:
        """Use LIKE, which is case-sensitive here."""
        return f"{sql} LIKE ?", [
            "%".join(_SPECIAL.sub(r"\\\g<0>", part) for part in wildcard_parts(pattern))
        ]

    def among(self, sql: str, values: Sequence[Bucket]) -> Sql:
        """Bind all values as one."""
        return f"{sql} = ANY(?)", [list(values)]


def femto(dollars: Decimal | None) -> int | None:
    """Return femto-dollars of a NUMERIC, exact in any decimal context of the application."""
    return None if dollars is None else int(CONTEXT.scaleb(dollars, 15))


DIALECT = PostgresDialect()
