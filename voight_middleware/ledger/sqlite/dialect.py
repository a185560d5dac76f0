"""How SQLite says what a question needs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from voight_middleware.ledger.base import wildcard_parts
from voight_middleware.ledger.query import Sql
from voight_middleware.ledger.rollups import ROLLUPS, Bucket, Rollup
from voight_middleware.ledger.sqlite.schema import CALLS, CALLS_AT_ORIGINAL_PRICES
from voight_middleware.ledger.sqlite.triggers import LIMB, SUMS

_FORMS = {"hour": "%Y-%m-%dT%H:00", "day": "%Y-%m-%d", "week": "%Y-%m-%d", "month": "%Y-%m"}
_SPECIAL = re.compile(r"[*?\[]")


class SQLiteDialect:
    """A ``Dialect``. Costs are added up in two limbs, as a sum of femto-dollars leaves 64 bits."""

    sums: Mapping[str, str] = SUMS
    costs = 2
    rollups: Collection[Rollup] = ROLLUPS
    schema = ""
    calls = CALLS
    calls_at_original_prices = CALLS_AT_ORIGINAL_PRICES

    def cost(self, columns: Sequence[Any]) -> int:
        """Femto-dollars, of the two limbs."""
        high, low = columns
        return int(high * LIMB + low)

    def by_cost(self, sums: Sequence[str]) -> str:
        """The limbs may have grown over each other."""
        high, low = sums
        return f"{high} + {low} / {LIMB} DESC, {low} % {LIMB} DESC"

    def column(self, name: str, *, few: bool) -> str:
        """The unary plus keeps the planner on the scan of the time range: to group along the index on users takes ten times as long."""
        return name if few else f"+{name}"

    def moment(self, form: str, at: str, ahead: str = "0") -> str:
        """SQLite cuts a division of whole numbers towards 0."""
        monday = ", 'weekday 0', '-6 days'" if form == "week" else ""
        return f"strftime('{_FORMS[form]}', {at} / 1000000 + {ahead}, 'unixepoch'{monday})"

    def extra(self, key: str) -> Sql:
        """The value of a key of the JSON text."""
        return "json_extract(tags_extra, ?)", [f'$."{key}"']

    def addressable(self, key: str) -> bool:
        """SQLite's JSON paths have no escape for a quote, and compare others as they are encoded."""
        return key.isprintable() and '"' not in key and "\\" not in key

    def like(self, sql: str, pattern: str) -> Sql:
        """GLOB: unlike LIKE, it knows capital letters."""
        return f"{sql} GLOB ?", ["*".join(_SPECIAL.sub(r"[\g<0>]", part) for part in wildcard_parts(pattern))]

    def among(self, sql: str, values: Sequence[Bucket]) -> Sql:
        """In one value, however many they are."""
        return f"{sql} IN (SELECT value FROM json_each(?))", [json.dumps(list(values))]


DIALECT = SQLiteDialect()
