"""The tables of a ClickHouse ledger, and the conversion between calls and their rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from voight_middleware.ledger.base import MAX_COUNT, PriceVersion
from voight_middleware.ledger.rollups import MODELS, PLANS, USER_DAYS, Rollup
from voight_middleware.ledger.rows import (
    COUNTS,
    FIGURES,
    NUMBERS,
    REQUIRED,
    SELECTED,
    Row,
    decode_reasons,
    encode,
    extra_text,
    to_row,
)
from voight_middleware.records.call import Call
from voight_middleware.records.money import CONTEXT, FEMTO_PER_USD, MAX_FEMTO

VERSION = 2
"""The schema version of this module, as in the table ``ledger``."""
SUMMED = 2
"""The schema version since which a ledger has the sums of closed days."""

MONEY = {"cost_femto": "cost", "list_femto": "list_cost"}
"""Columns with amounts in US dollars, named so for people who query the tables by hand."""
_MANY = frozenset(
    ("user_id", "session_id", "response_id", "job", "tool_calls", "components", "raw_usage")
)
"""Texts with nearly as many values as calls. The other text columns use a dictionary."""


def kept_as(name: str) -> str:
    """Return the column that stores a value of ``rows.SELECTED``."""
    return MONEY.get(name, name)


def type_of(name: str) -> str:
    """Return the type of a column of ``rows.SELECTED``."""
    if name in MONEY:
        return "Nullable(Decimal(38, 15))"
    if name == "tags_extra":
        return "Map(LowCardinality(String), String)"
    if name in ("streamed", "batch"):
        return "UInt8"
    if name in NUMBERS:
        return "Int64" if name in REQUIRED else "Nullable(Int64)"
    text = "String" if name in REQUIRED else "Nullable(String)"
    return text if name in _MANY or name == "call_id" else f"LowCardinality({text})"


def _codec(name: str) -> str:
    return " CODEC(Delta, ZSTD(1))" if name == "occurred_at" else " CODEC(ZSTD(1))"


_COLUMNS = ", ".join(f"{kept_as(name)} {type_of(name)}{_codec(name)}" for name in SELECTED)
_FIGURES = ", ".join(f"{kept_as(name)} {type_of(name)}" for name in FIGURES)
_MONTH = "toYYYYMM(fromUnixTimestamp64Micro(occurred_at, 'UTC'))"

USER_DETAILS = Rollup(
    "days_of_user_details",
    "day",
    ("user_id", "plan", "tenant_id", "release", "model", "route", "cost_status"),
)
"""
Nearly as many rows as calls, but sorted by user. Without it, the engine reads every call to find
those of one user.
"""
SUMS = (MODELS, PLANS, USER_DAYS, USER_DETAILS)
"""The sums of closed days."""
_MEASURES = {
    "cost": "Decimal(38, 15)",
    **dict.fromkeys(("input", "cache_read", "cache_write", "output"), "Int128"),
}


def _sums_of(rollup: Rollup) -> tuple[str, str]:
    first = [name for name in rollup.key if name in ("user_id", rollup.bucket)]
    key = [*reversed(first), *(name for name in rollup.key if name not in first)]
    names = dict.fromkeys(("day", *rollup.key))
    types = {"day": "String", "user_id": "String", "hour": "Int64", "owned": "UInt8"}
    columns = [f"{name} {types.get(name, 'LowCardinality(String)')}" for name in names]
    columns += [f"{name} {_MEASURES.get(name, 'Int64')}" for name in MEASURED]
    codec = " CODEC(ZSTD(1))"
    columns = [f"{column}{codec}" for column in (*columns, "version UInt64")]
    order = f"PARTITION BY substring(day, 1, 7) ORDER BY ({', '.join((*key, 'version'))})"
    # One user has few rows, and the engine reads all between two marks.
    return f"({', '.join(columns)})", f"{order} SETTINGS index_granularity = 1024"


MEASURED = (
    *("calls", "cost", "unpriced", "partial", "estimated", "errors"),
    *("known_input", "input", "known_read", "cache_read"),
    *("known_written", "cache_write", "known_output", "output"),
)
"""The columns of sums, as ``Dialect.sums`` names them."""

TABLES = {
    "ledger": ("(schema UInt32, version UInt64)", "ORDER BY schema"),
    "calls": (
        (
            f"({_COLUMNS}, version UInt64 CODEC(ZSTD(1)), INDEX times occurred_at TYPE minmax "
            "GRANULARITY 1)"
        ),
        f"PARTITION BY {_MONTH} ORDER BY call_id",
    ),
    "former_costs": (
        (
            f"(call_id String CODEC(ZSTD(1)), number UInt32, {_FIGURES}, replaced_at Int64, "
            "occurred_at Int64, state UInt64, version UInt64)"
        ),
        f"PARTITION BY {_MONTH} ORDER BY (call_id, number)",
    ),
    "jobs": (
        (
            "(job String, part_of Nullable(String), submitted_at Int64, submission String, version "
            "UInt64)"
        ),
        "ORDER BY job",
    ),
    "extra_keys": ("(key String, version UInt64)", "ORDER BY key"),
    "segments": ("(name String, offset UInt64, version UInt64)", "ORDER BY name"),
    "closed_days": ("(day String, closed UInt8, version UInt64)", "ORDER BY (day, closed)"),
    **{rollup.table: _sums_of(rollup) for rollup in SUMS},
}
"""
The columns and the order of each table. The first one, which is created first, marks the database
as a ledger. Of several rows with one key, the one with the highest ``version`` counts. The sums of
a day have the ``version`` of its closing.

Calls are ordered by their id only: a call may be reported twice with different times, and is still
one call.
"""
UPGRADES: Mapping[int, Sequence[str]] = {}
"""
The statements that upgrade a ledger from each older version to the next, with ``{database}`` and
``{cluster}``, after missing tables have been created. Every statement must be repeatable: several
processes may upgrade at once. Version 2 only has more tables.
"""


def create_table(name: str, database: str, cluster: str, *, patches: bool) -> str:
    """
    Return the statement that creates a table.

    Args:
        name: The table.
        database: The quoted database.
        cluster: ``ON CLUSTER …`` or empty.
        patches: Whether the engine can store changes of calls as patches.
    """
    columns, order = TABLES[name]
    # Rows of sums with the same key add up.
    summed = any(name == rollup.table for rollup in SUMS)
    engine = "MergeTree" if summed else "ReplacingMergeTree(version)"
    keeping = (
        "enable_block_number_column = 1, enable_block_offset_column = 1"
        if patches
        else "finished_mutations_to_keep = 1"
    )
    # Without patches, the text of a change names the owner of a call.
    settings = f" SETTINGS {keeping}" if name == "calls" else ""
    return (
        f"CREATE TABLE IF NOT EXISTS {database}.{name} {cluster} {columns} ENGINE = "
        f"{'Replicated' if cluster else ''}{engine} {order}{settings}"
    )


# -- versions: which of several rows with one key counts -------------------------------------------

_COMPLETE = 1 << 62
_AHEAD = 1 << 61


def now() -> int:
    """Return microseconds since 1970."""
    return time.time_ns() // 1000


def first_wins(at: int, *, complete: bool = True) -> int:
    """
    Return a version that decreases with time: of two rows, the first one counts, and repeating an
    insert changes nothing.

    A job's result beats its submission, so that its usage cannot get lost.
    """
    return (_COMPLETE if complete else 0) + _AHEAD - at


def last_wins(at: int) -> int:
    """Return a version that increases with time, above all that decrease."""
    return _COMPLETE + _AHEAD + at


# -- rows ------------------------------------------------------------------------------------------

_EXTRA = SELECTED.index("tags_extra")
_AMOUNTS = tuple(SELECTED.index(name) for name in MONEY)
_WHOLE = tuple(
    (SELECTED.index(name), name)
    for name in SELECTED
    if name in NUMBERS and name not in COUNTS and name not in MONEY
)
_COUNTS = tuple(SELECTED.index(name) for name in COUNTS)
_LIMITED = (*((index, MAX_COUNT) for index in _COUNTS), *((index, MAX_FEMTO) for index in _AMOUNTS))
_NO_EXTRA = msgspec.Raw(b"{}")
SELECT = ", ".join(kept_as(name) for name in SELECTED)
"""The columns that ``readable`` reads."""
INSERTED = (*(kept_as(name) for name in SELECTED), "version")
"""The columns of ``insertable``."""


def checked(call: Call) -> Row:
    """
    Return the row of a call in the order of ``rows.SELECTED``. The engine itself would truncate
    values that no column can hold.

    Raises:
        ValueError: The call cannot be stored.
    """
    row = to_row(call)
    for index, name in _WHOLE:
        if (number := row[index]) is not None and not -(2**63) <= number < 2**63:
            raise ValueError(f"a call cannot be stored: {name} is {number}")
    for index, most in _LIMITED:
        if (number := row[index]) is not None and not 0 <= number <= most:
            raise ValueError(f"a call cannot be stored: {SELECTED[index]} is {number}")
    if (call.cost_femto is None) != (call.cost_status == "unpriced"):
        raise ValueError(
            f"a call cannot be stored: its cost is {call.cost_femto} and it is {call.cost_status}"
        )
    return row


def insertable(row: Row, version: int) -> bytes:
    """Return a row as a line of ``JSONCompactEachRow``."""
    values = list(row)
    for index in _AMOUNTS:
        values[index] = usd(values[index])
    extra = values[_EXTRA]
    values[_EXTRA] = _NO_EXTRA if extra is None else msgspec.Raw(extra.encode())
    values.append(version)
    return encode(values)


def readable(row: Sequence[Any]) -> Row:
    """Return a row of ``SELECT`` in the form of ``rows.from_row``."""
    values = list(row)
    for index in _AMOUNTS:
        values[index] = femto(values[index])
    values[_EXTRA] = extra_text(values[_EXTRA]) or None
    return tuple(values)


def former_price(row: Sequence[Any]) -> PriceVersion:
    """Return a row of ``FORMER``."""
    number, cost, list_cost, status, reasons, price, replaced_at = row
    return PriceVersion(
        number,
        femto(cost),
        femto(list_cost),
        status,
        () if reasons is None else decode_reasons(reasons),
        price,
        replaced_at,
    )


FORMER = f"number, {', '.join(kept_as(name) for name in FIGURES)}, replaced_at"
"""The columns that ``former_price`` reads."""
INSERTED_FORMER = (
    "call_id",
    "number",
    *(kept_as(name) for name in FIGURES),
    "replaced_at",
    "occurred_at",
    "state",
    "version",
)


def usd(amount: int | None) -> str | None:
    """Return femto-dollars as the text of US dollars."""
    return None if amount is None else f"{amount // FEMTO_PER_USD}.{amount % FEMTO_PER_USD:015d}"


def femto(amount: Decimal | None) -> int | None:
    """Return US dollars as femto-dollars."""
    return None if amount is None else int(CONTEXT.scaleb(amount, 15))
