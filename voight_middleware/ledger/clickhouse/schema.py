"""The tables of a ClickHouse ledger, and the translation between calls and their rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from voight_middleware.ledger.base import MAX_COUNT, PriceVersion
from voight_middleware.ledger.rows import COUNTS, FIGURES, NUMBERS, REQUIRED, SELECTED, Row, decode_reasons, encode, extra_text, to_row
from voight_middleware.records.call import Call
from voight_middleware.records.money import CONTEXT, FEMTO_PER_USD, MAX_FEMTO

VERSION = 1
"""The schema that this module writes, as the table ``ledger`` says it."""

MONEY = {"cost_femto": "cost", "list_femto": "list_cost"}
"""Amounts are kept in US dollars, and called so: whoever reads the table by hand shall not have to divide."""
_MANY = frozenset(("user_id", "session_id", "response_id", "job", "tool_calls", "components", "raw_usage"))
"""Texts of which there are nearly as many as calls; of the others a column keeps a dictionary."""


def kept_as(name: str) -> str:
    """The column of the table that keeps a value of ``rows.SELECTED``."""
    return MONEY.get(name, name)


def type_of(name: str) -> str:
    """The type of a column of ``rows.SELECTED``."""
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

TABLES = {
    "ledger": ("(schema UInt32, version UInt64)", "ORDER BY schema"),
    "calls": (
        f"({_COLUMNS}, version UInt64 CODEC(ZSTD(1)), INDEX times occurred_at TYPE minmax GRANULARITY 1)",
        f"PARTITION BY {_MONTH} ORDER BY call_id",
    ),
    "former_costs": (
        f"(call_id String CODEC(ZSTD(1)), number UInt32, {_FIGURES}, replaced_at Int64, occurred_at Int64, state UInt64, version UInt64)",
        f"PARTITION BY {_MONTH} ORDER BY (call_id, number)",
    ),
    "jobs": (
        "(job String, part_of Nullable(String), submitted_at Int64, submission String, version UInt64)",
        "ORDER BY job",
    ),
    "extra_keys": ("(key String, version UInt64)", "ORDER BY key"),
    "segments": ("(name String, offset UInt64, version UInt64)", "ORDER BY name"),
}
"""
The columns of each table, and how it is kept; the first one, which is made first, says that the database is a ledger. Of rows with one
key the one with the highest ``version`` is the row.

Calls are ordered by nothing but their id, as a call may be told of twice with different times, and is one call all the same.
"""
UPGRADES: Mapping[int, Sequence[str]] = {}
"""
What brings a ledger of an older version to the next one, ``{database}`` and ``{cluster}`` to be filled in. Several processes may do it
at once: every statement can be repeated.
"""


def create_table(name: str, database: str, cluster: str, *, patches: bool) -> str:
    """
    The statement that makes a table; *cluster* is ``ON CLUSTER …`` or nothing, and *patches* says whether the engine can keep a change of
    calls beside them.
    """
    columns, order = TABLES[name]
    engine = "ReplicatedReplacingMergeTree" if cluster else "ReplacingMergeTree"
    keeping = "enable_block_number_column = 1, enable_block_offset_column = 1" if patches else "finished_mutations_to_keep = 1"
    settings = f" SETTINGS {keeping}" if name == "calls" else ""  # without patches, the text of a change names whom a call is given to
    return f"CREATE TABLE IF NOT EXISTS {database}.{name} {cluster} {columns} ENGINE = {engine}(version) {order}{settings}"


# -- versions: which of two rows with one key is the row ------------------------------------------------------------------------------

_TOLD = 1 << 62
_AHEAD = 1 << 61


def now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def first_wins(at: int, *, told: bool = True) -> int:
    """
    A version that falls with time: of two processes that add the same row at once, the first counts, and one that comes again changes
    nothing. What tells of a job counts before what only says that it was begun: usage must not get lost.
    """
    return (_TOLD if told else 0) + _AHEAD - at


def last_wins(at: int) -> int:
    """A version that rises with time, above all that fall."""
    return _TOLD + _AHEAD + at


# -- rows ------------------------------------------------------------------------------------------------------------------------------

_EXTRA = SELECTED.index("tags_extra")
_AMOUNTS = tuple(SELECTED.index(name) for name in MONEY)
_WHOLE = tuple((SELECTED.index(name), name) for name in SELECTED if name in NUMBERS and name not in COUNTS and name not in MONEY)
_COUNTS = tuple(SELECTED.index(name) for name in COUNTS)
_LIMITED = (*((index, MAX_COUNT) for index in _COUNTS), *((index, MAX_FEMTO) for index in _AMOUNTS))
_NO_EXTRA = msgspec.Raw(b"{}")
SELECT = ", ".join(kept_as(name) for name in SELECTED)
"""The columns that ``read_call`` reads."""
INSERTED = (*(kept_as(name) for name in SELECTED), "version")
"""The columns of ``insertable``."""


def checked(call: Call) -> Row:
    """
    The row of a call, in the order of ``rows.SELECTED``, as it may be kept: the engine itself would cut off what a column does not hold.

    Raises:
        ValueError: It cannot be kept.
    """
    row = to_row(call)
    for index, name in _WHOLE:
        if (number := row[index]) is not None and not -(2**63) <= number < 2**63:
            raise ValueError(f"a call cannot be kept: {name} is {number}")
    for index, most in _LIMITED:
        if (number := row[index]) is not None and not 0 <= number <= most:
            raise ValueError(f"a call cannot be kept: {SELECTED[index]} is {number}")
    if (call.cost_femto is None) != (call.cost_status == "unpriced"):
        raise ValueError(f"a call cannot be kept: its cost is {call.cost_femto} and it is {call.cost_status}")
    return row


def insertable(row: Row, version: int) -> bytes:
    """A row as a line of ``JSONCompactEachRow``."""
    values = list(row)
    for index in _AMOUNTS:
        values[index] = usd(values[index])
    extra = values[_EXTRA]
    values[_EXTRA] = _NO_EXTRA if extra is None else msgspec.Raw(extra.encode())
    values.append(version)
    return encode(values)


def readable(row: Sequence[Any]) -> Row:
    """The columns of ``SELECT`` as ``rows.from_row`` reads them."""
    values = list(row)
    for index in _AMOUNTS:
        values[index] = femto(values[index])
    values[_EXTRA] = extra_text(values[_EXTRA]) or None
    return tuple(values)


def former_price(row: Sequence[Any]) -> PriceVersion:
    """Of ``FORMER``."""
    number, cost, list_cost, status, reasons, price, replaced_at = row
    return PriceVersion(
        number, femto(cost), femto(list_cost), status, () if reasons is None else decode_reasons(reasons), price, replaced_at
    )


FORMER = f"number, {', '.join(kept_as(name) for name in FIGURES)}, replaced_at"
"""The columns that ``former_price`` reads."""
INSERTED_FORMER = ("call_id", "number", *(kept_as(name) for name in FIGURES), "replaced_at", "occurred_at", "state", "version")


def usd(amount: int | None) -> str | None:
    """Femto-dollars as the text of a decimal of US dollars."""
    return None if amount is None else f"{amount // FEMTO_PER_USD}.{amount % FEMTO_PER_USD:015d}"


def femto(amount: Decimal | None) -> int | None:
    """Femto-dollars of US dollars."""
    return None if amount is None else int(CONTEXT.scaleb(amount, 15))
