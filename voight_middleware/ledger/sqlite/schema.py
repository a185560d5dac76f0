"""
The tables of a SQLite ledger, and the statements on single calls and their former prices.
``packed.py`` says how calls are stored.
"""

from __future__ import annotations

from voight_middleware.ledger.base import PriceVersion
from voight_middleware.ledger.rollups import ROLLUPS
from voight_middleware.ledger.rows import (
    COUNTED,
    FIGURES,
    NO_USAGE,
    RESULT_COLUMNS,
    SELECTED,
    Row,
    components_text,
    decode_reasons,
    encode,
    reasons_text,
    to_row,
)
from voight_middleware.ledger.sqlite import triggers
from voight_middleware.ledger.sqlite.packed import (
    INDEXES,
    KINDS,
    PACKED_CALLS,
    PLACES,
    SHAPES,
    VIEW,
    call_key,
)
from voight_middleware.records.call import Call
from voight_middleware.records.usage import COUNT_NAMES

APPLICATION_ID = 0x564F4947
"""``VOIG``: the ``PRAGMA application_id`` of a ledger."""
VERSION = 5
"""The ``PRAGMA user_version`` of a ledger of this version."""

JOBS = (
    """
CREATE TABLE jobs (
    job TEXT PRIMARY KEY,
    part_of TEXT,
    submitted_at INTEGER NOT NULL,
    submission TEXT NOT NULL
) STRICT, WITHOUT ROWID""",
    "CREATE INDEX parts_of_jobs ON jobs (part_of) WHERE part_of IS NOT NULL",
)
FORMER_COSTS = """
CREATE TABLE former_costs (
    call_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    cost_femto INTEGER,
    list_femto INTEGER,
    cost_status TEXT NOT NULL,
    cost_reasons TEXT,
    price_id INTEGER REFERENCES prices,
    replaced_at INTEGER NOT NULL,
    PRIMARY KEY (call_id, version)
) STRICT, WITHOUT ROWID"""
"""
Replaced prices. Rows are added and never changed. Version 1 is the original, and the newest price
is in ``calls``.
"""
PACKED = (
    *(table for dictionary in (KINDS, PLACES, SHAPES) for table in dictionary.tables),
    PACKED_CALLS,
    VIEW,
    *triggers.triggers(),
)
"""The statements that create the tables of calls and the view, without ``INDEXES``."""
TABLES = (
    "CREATE TABLE prices (price_id INTEGER PRIMARY KEY, price TEXT NOT NULL UNIQUE) STRICT",
    "CREATE TABLE extra_keys (key TEXT PRIMARY KEY) STRICT, WITHOUT ROWID",
    "CREATE TABLE segments (name TEXT PRIMARY KEY, offset INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    *JOBS,
    FORMER_COSTS,
    *map(triggers.table, ROLLUPS),
    *PACKED,
    *INDEXES,
)

CALLS = "calls"
_FIGURES = (*FIGURES[:-1], "price_id")
CALLS_AT_ORIGINAL_PRICES = (
    f"(SELECT calls.call_key, {', '.join(f'calls.{name}' for name in SELECTED if name not in FIGURES)}, "
    f"{', '.join(f'IIF(original.version IS NULL, calls.{name}, original.{name}) AS {name}' for name in _FIGURES)} "
    "FROM calls LEFT JOIN former_costs AS original ON original.call_id = calls.call_id AND "
    "original.version = 1) AS calls"
)
"""Instead of ``CALLS``: the calls with their first price."""
SELECT = f"SELECT {', '.join(SELECTED)}"
SELECT_PRICE = "LEFT JOIN prices USING (price_id)"
KEEP_FORMER = f"""
INSERT INTO former_costs (call_id, version, {", ".join(_FIGURES)}, replaced_at)
SELECT call_id, (SELECT COUNT(*) + 1 FROM former_costs WHERE former_costs.call_id = calls.call_id), {", ".join(_FIGURES)}, ?
FROM calls WHERE call_key = ? AND raw_usage IS ? AND cost_femto IS ? AND list_femto IS ? AND cost_status = ? AND cost_reasons IS ?"""
"""Skips calls that have changed since they were read. Binds the time and ``read_values``."""
_FORMER = "version, cost_femto, list_femto, cost_status, cost_reasons"
SELECT_FORMER = (
    f"SELECT {_FORMER}, price, replaced_at FROM former_costs {SELECT_PRICE} WHERE call_id = ? "
    "ORDER BY version"
)
SELECT_FORMER_OF_MANY = (
    f"SELECT call_id, {_FORMER}, price, replaced_at FROM json_each(?) CROSS JOIN former_costs ON "
    f"call_id = value {SELECT_PRICE} "
    "ORDER BY call_id, version"
)
INSERT_FORMER = (
    f"INSERT INTO former_costs (call_id, {_FORMER}, price_id, replaced_at) VALUES (?, ?, ?, ?, ?, "
    "?, ?, ?)"
)
OPEN_JOB = "SELECT job IS NOT NULL AND raw_usage IS NULL FROM calls WHERE call_key = ?"
"""Whether the call of a job has no usage yet. No row if there is no such call."""
COMPLETE = (
    f"UPDATE calls SET {', '.join(f'{name} = ?' for name in (*RESULT_COLUMNS[:-1], 'price_id'))} "
    "WHERE call_key = ?"
)
"""A job's call from its submission gets its result, and keeps its owner and its time."""
REPRICE = (
    f"UPDATE calls SET {', '.join(f'{name} = ?' for name in (*COUNTED, *_FIGURES))} WHERE call_key "
    "= ?"
)


def read_values(call: Call) -> Row:
    """
    Return the values by which ``KEEP_FORMER`` recognizes a call: its id, its usage and its price.
    """
    return (
        call_key(call.call_id),
        call.raw_usage,
        call.cost_femto,
        call.list_femto,
        call.cost_status,
        reasons_text(call.cost_reasons),
    )


def repriced_values(call: Call, price_id: int | None) -> Row:
    """
    Return the values for ``REPRICE``: the counts, which a newer parser may fill better, and the
    price.
    """
    usage = call.usage or NO_USAGE
    return (
        *(getattr(usage, name) for name in COUNT_NAMES),
        None if usage.tools is None else encode(usage.tools).decode(),
        components_text(call),
        call.cost_femto,
        call.list_femto,
        call.cost_status,
        reasons_text(call.cost_reasons),
        price_id,
        call_key(call.call_id),
    )


def result_values(call: Call, price_id: int | None) -> Row:
    """Return the values for ``COMPLETE``."""
    value = dict(zip(SELECTED, to_row(call), strict=True))
    return (*(value[name] for name in RESULT_COLUMNS[:-1]), price_id, call_key(call.call_id))


def former_price(row: Row) -> PriceVersion:
    """Return one row of ``SELECT_FORMER``."""
    version, cost_femto, list_femto, cost_status, reasons, price, replaced_at = row
    return PriceVersion(
        version,
        cost_femto,
        list_femto,
        cost_status,
        () if reasons is None else decode_reasons(reasons),
        price,
        replaced_at,
    )


def former_values(call_id: str, price: PriceVersion, price_id: int | None) -> Row:
    """Return the values for ``INSERT_FORMER``."""
    figures = (
        price.cost_femto,
        price.list_femto,
        price.cost_status,
        reasons_text(price.cost_reasons),
    )
    return (call_id, price.version, *figures, price_id, price.replaced_at)
