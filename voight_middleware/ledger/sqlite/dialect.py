"""The SQL of SQLite."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from voight_middleware.ledger.base import wildcard_parts
from voight_middleware.ledger.query import Sql
from voight_middleware.ledger.rollups import ROLLUPS, Bucket, Rollup
from voight_middleware.ledger.sqlite.schema import CALLS, CALLS_AT_ORIGINAL_PRICES
from voight_middleware.ledger.sqlite.triggers import COUNTS, LIMB, SUMS

_FORMS = {"hour": "%Y-%m-%dT%H:00", "day": "%Y-%m-%d", "week": "%Y-%m-%d", "month": "%Y-%m"}
_array = msgspec.json.Decoder(list[Any]).decode
_SPECIAL = re.compile(r"[*?\[]")


class SQLiteDialect:
    """
    A ``Dialect``. Costs are summed in two limbs, because a sum of femto-dollars exceeds 64 bits.
    """

    sums: Mapping[str, str] = SUMS
    counted: Mapping[str, str] = COUNTS
    costs = 2
    rollups: Collection[Rollup] = ROLLUPS
    schema = ""
    calls = CALLS
    calls_at_original_prices = CALLS_AT_ORIGINAL_PRICES

    def cost(self, columns: Sequence[Any]) -> int:
        """Return femto-dollars from the two limbs."""
        high, low = columns
        return int(high * LIMB + low)

    def costs_of(self, *columns: Sequence[Any]) -> list[int]:
        return [high * LIMB + low for high, low in zip(*columns, strict=True)]

    def array(self, sql: str, *, count: bool = False) -> str:
        return f"json_group_array({sql})"

    def read_arrays(self, row: Sequence[Any]) -> list[list[Any]]:
        return [_array(text) for text in row]

    def by_cost(self, sums: Sequence[str]) -> str:
        """Carry the lower limb over: it may have grown beyond ``LIMB``."""
        high, low = sums
        return f"{high} + {low} / {LIMB} DESC, {low} % {LIMB} DESC"

    def column(self, name: str, *, few: bool) -> str:
        """
        Return the column. The unary plus keeps the planner on the scan of the time range: grouping
        along the index on users takes ten times as long.
        """
        return name if few else f"+{name}"

    def moment(self, form: str, at: str, ahead: str = "0") -> str:
        """Return a time. SQLite truncates integer division towards 0."""
        monday = ", 'weekday 0', '-6 days'" if form == "week" else ""
        return f"strftime('{_FORMS[form]}', {at} / 1000000 + {ahead}, 'unixepoch'{monday})"

    def extra(self, key: str) -> Sql:
        return "json_extract(tags_extra, ?)", [f'$."{key}"']

    def addressable(self, key: str) -> bool:
        """
        Return whether a JSON path can name *key*. SQLite has no escape for a quote, and compares
        other special characters in their encoded form.
        """
        return key.isprintable() and '"' not in key and "\\" not in key

    def like(self, sql: str, pattern: str) -> Sql:
        """Use GLOB: unlike LIKE, it is case-sensitive."""
        return f"{sql} GLOB ?", [
            "*".join(_SPECIAL.sub(r"[\g<0>]", part) for part in wildcard_parts(pattern))
        ]

    def among(self, sql: str, values: Sequence[Bucket]) -> Sql:
        """Bind all values as one."""
        return f"{sql} IN (SELECT value FROM json_each(?))", [json.dumps(list(values))]


DIALECT = SQLiteDialect()
