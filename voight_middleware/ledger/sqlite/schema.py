"""The tables of a SQLite ledger, and the conversion between ``Call`` and their rows."""

from __future__ import annotations

import re
from collections.abc import Sequence

from voight_middleware.ledger.base import MAX_COUNT, PriceVersion
from voight_middleware.ledger.rollups import MODELS, PLANS, ROLLUPS, USER_DAYS, USER_MODELS, USERS
from voight_middleware.ledger.rows import (
    COUNTED,
    COUNTS,
    FIGURES,
    NO_USAGE,
    RESULT_COLUMNS,
    SELECTED,
    Row,
    components_text,
    decode_reasons,
    encode,
    extra_text,
    only,
    reasons_text,
)
from voight_middleware.ledger.sqlite import triggers
from voight_middleware.records.call import Call
from voight_middleware.records.usage import COUNT_NAMES

APPLICATION_ID = 0x564F4947
"""``VOIG``: the ``PRAGMA application_id`` of a ledger."""
VERSION = 4
"""The ``PRAGMA user_version`` of a ledger of this version."""

_JOBS = (
    "CREATE INDEX calls_of_jobs ON calls (job) WHERE job IS NOT NULL",
    """
CREATE TABLE jobs (
    job TEXT PRIMARY KEY,
    part_of TEXT,
    submitted_at INTEGER NOT NULL,
    submission TEXT NOT NULL
) STRICT, WITHOUT ROWID""",
    "CREATE INDEX parts_of_jobs ON jobs (part_of) WHERE part_of IS NOT NULL",
)
_FORMER_COSTS = """
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
_CALLS_OF_USERS = (
    "CREATE INDEX calls_of_users ON calls (user_id, occurred_at) WHERE user_id IS NOT NULL"
)

TABLES = (
    f"""
CREATE TABLE calls (
    occurred_at INTEGER NOT NULL,
    call_id TEXT NOT NULL UNIQUE,
    user_id TEXT,
    plan TEXT,
    tenant_id TEXT,
    route TEXT,
    release TEXT,
    session_id TEXT,
    tags_extra TEXT,
    attribution TEXT NOT NULL,
    provider TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    requested_model TEXT,
    model TEXT,
    host TEXT,
    streamed INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    error TEXT,
    http_status INTEGER,
    attempts INTEGER NOT NULL,
    duration INTEGER,
    ttft INTEGER,
    possibly_billed INTEGER,
    response_id TEXT,
    job TEXT,
    service_tier TEXT,
    batch INTEGER NOT NULL,
    {", ".join(f"{name} INTEGER CHECK ({name} BETWEEN 0 AND {MAX_COUNT})" for name in COUNTS)},
    tools TEXT,
    components TEXT,
    tool_calls TEXT,
    raw_usage TEXT,
    cost_femto INTEGER CHECK (cost_femto >= 0),
    list_femto INTEGER CHECK (list_femto >= 0),
    cost_status TEXT NOT NULL,
    cost_reasons TEXT,
    price_id INTEGER REFERENCES prices,
    PRIMARY KEY (occurred_at, call_id),
    CHECK ((cost_femto IS NULL) = (cost_status = 'unpriced'))
) STRICT, WITHOUT ROWID""",
    "CREATE TABLE prices (price_id INTEGER PRIMARY KEY, price TEXT NOT NULL UNIQUE) STRICT",
    "CREATE TABLE extra_keys (key TEXT PRIMARY KEY) STRICT, WITHOUT ROWID",
    "CREATE TABLE segments (name TEXT PRIMARY KEY, offset INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    *_JOBS,
    _FORMER_COSTS,
    _CALLS_OF_USERS,
    *map(triggers.table, ROLLUPS),
    *triggers.triggers(),
)
UPGRADES = {
    1: (
        "ALTER TABLE calls ADD COLUMN possibly_billed INTEGER",
        "ALTER TABLE calls ADD COLUMN job TEXT",
        "ALTER TABLE calls ADD COLUMN list_femto INTEGER CHECK (list_femto >= 0)",
        *(
            f"ALTER TABLE calls ADD COLUMN {name} INTEGER CHECK ({name} BETWEEN 0 AND {MAX_COUNT})"
            for name in ("cache_read_audio", "cache_read_image", "image_in", "image_out")
        ),
        *_JOBS,
        _FORMER_COSTS,
    ),
    2: (
        _CALLS_OF_USERS,
        *map(triggers.table, (MODELS, USERS, USER_DAYS)),
        *map(triggers.fill, (MODELS, USERS, USER_DAYS)),
    ),
    3: (
        *(
            f"DROP TRIGGER IF EXISTS {name}"
            for name in ("call_added", "call_removed", "call_changed")
        ),
        f"DROP TABLE IF EXISTS {PLANS.table}",
        *map(triggers.table, (PLANS, USER_MODELS)),
        *map(triggers.fill, (PLANS, USER_MODELS)),
        *triggers.triggers(),
    ),
}
"""The statements that upgrade a ledger from each older version to the next."""

_COMMON = (
    *(
        "occurred_at",
        "call_id",
        "user_id",
        "plan",
        "tenant_id",
        "route",
        "release",
        "session_id",
        "tags_extra",
        "attribution",
    ),
    *(
        "provider",
        "endpoint",
        "requested_model",
        "model",
        "host",
        "streamed",
        "outcome",
        "http_status",
        "attempts",
        "duration",
        "ttft",
    ),
    *(
        "response_id",
        "service_tier",
        "batch",
        "input",
        "cache_read",
        "cache_write",
        "cache_write_5m",
        "cache_write_1h",
        "output",
    ),
    *("reasoning", "audio_in", "audio_out", "raw_usage", "cost_femto", "cost_status", "price_id"),
)
_RARE = (
    *(
        "error",
        "possibly_billed",
        "job",
        "images",
        "seconds",
        "characters",
        "cache_read_audio",
        "cache_read_image",
    ),
    *(
        "image_in",
        "image_out",
        "estimated_input",
        "estimated_output",
        "tools",
        "components",
        "tool_calls",
        "cost_reasons",
        "list_femto",
    ),
)
_NULLABLE_NUMBERS = frozenset(COUNTS) | {
    "http_status",
    "possibly_billed",
    "duration",
    "ttft",
    "cost_femto",
    "list_femto",
    "price_id",
}
_REQUIRED = frozenset(re.findall(r"(\w+) (?:INTEGER|TEXT) NOT NULL", TABLES[0]))


def _placeholder(column: str) -> str:
    if column in _REQUIRED:
        return "?"
    return "NULLIF(?, -1)" if column in _NULLABLE_NUMBERS else "NULLIF(?, '')"


def _insert(columns: Sequence[str], rows: int = 1, conflict: str = "NOTHING") -> str:
    # OR IGNORE would also skip a call that breaks a CHECK. ON CONFLICT DO NOTHING skips duplicates
    # only.
    values = ", ".join([f"({', '.join(map(_placeholder, columns))})"] * rows)
    return f"INSERT INTO calls ({', '.join(columns)}) VALUES {values} ON CONFLICT DO {conflict}"


# Binding is most of the cost of an insert. A None takes three times as long as a value (sqlite3
# looks for an adapter), hence the NULLIFs. Most calls have no rare columns, hence two statements.
INSERT_COMMON = {rows: _insert(_COMMON, rows) for rows in (100, 10, 1)}
"""
Statements by the number of calls they insert.

sqlite3 releases the GIL for each statement, and in a busy application waits milliseconds to get it
back. One statement for a hundred calls disturbs the application a hundred times less.
"""
_RESULT = (*RESULT_COLUMNS[:-1], "price_id")
INSERT_AS_IT_IS = _insert(_COMMON + _RARE)
INSERT_ALL = _insert(
    _COMMON + _RARE,
    conflict=f"UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _RESULT)} "
    "WHERE calls.job IS NOT NULL AND calls.raw_usage IS NULL AND (excluded.raw_usage IS NOT NULL "
    "OR excluded.outcome <> 'ok')",
)
"""A job's call from its submission gets its result, and keeps its owner and its time."""
CALLS = "calls"
_FIGURES = (*FIGURES[:-1], "price_id")
CALLS_AT_ORIGINAL_PRICES = (
    f"(SELECT {', '.join(f'calls.{name}' for name in (*_COMMON, *_RARE) if name not in _FIGURES)}, "
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
FROM calls WHERE call_id = ? AND raw_usage IS ? AND cost_femto IS ? AND list_femto IS ? AND cost_status = ? AND cost_reasons IS ?"""
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
REPRICE = (
    f"UPDATE calls SET {', '.join(f'{name} = ?' for name in (*COUNTED, *_FIGURES))} WHERE call_id "
    "= ?"
)


# Complex: one expression for each column, as a loop over columns is slower for each call.
def common_values(call: Call, price_id: int | None) -> Row:
    """Return the values for ``INSERT_COMMON``. An empty text or -1 means no value."""
    tags = call.tags
    usage = call.usage or NO_USAGE
    return (
        call.occurred_at,
        call.call_id,
        tags.user_id or "",
        tags.plan or "",
        tags.tenant_id or "",
        tags.route or "",
        tags.release or "",
        tags.session_id or "",
        extra_text(tags.extra),
        call.attribution,
        call.provider,
        call.endpoint,
        call.requested_model or "",
        call.model or "",
        call.host or "",
        1 if call.streamed else 0,
        call.outcome,
        -1 if (number := call.http_status) is None else number,
        call.attempts,
        -1 if (number := call.duration) is None else number,
        -1 if (number := call.ttft) is None else number,
        call.response_id or "",
        call.service_tier or "",
        1 if call.batch else 0,
        -1 if (number := usage.input) is None else number,
        -1 if (number := usage.cache_read) is None else number,
        -1 if (number := usage.cache_write) is None else number,
        -1 if (number := usage.cache_write_5m) is None else number,
        -1 if (number := usage.cache_write_1h) is None else number,
        -1 if (number := usage.output) is None else number,
        -1 if (number := usage.reasoning) is None else number,
        -1 if (number := usage.audio_in) is None else number,
        -1 if (number := usage.audio_out) is None else number,
        "" if (raw := call.raw_usage) is None else raw,
        -1 if (number := call.cost_femto) is None else number,
        call.cost_status,
        -1 if price_id is None else price_id,
    )


# Complex: one expression for each column, as a loop over columns is slower for each call.
def rare_values(call: Call) -> Row | None:
    """
    Return the values for ``INSERT_ALL`` after the common ones. Return None for the many calls
    without any.
    """
    usage = call.usage or NO_USAGE
    components = call.components
    plain = (
        components[0].usage is call.usage and components[0].model is None
        if len(components) == 1
        else components == only(call.usage)
    )
    if (
        plain
        and not (call.error or call.cost_reasons)
        and usage.tools is None
        and call.tool_calls is None
        and call.job is None
        and call.possibly_billed is usage.images is usage.seconds is usage.characters is None
        and usage.cache_read_audio
        is usage.cache_read_image
        is usage.image_in
        is usage.image_out
        is None
        and call.estimated_input is call.estimated_output is call.list_femto is None
    ):
        return None
    return (
        call.error or "",
        -1 if (number := call.possibly_billed) is None else number,
        call.job or "",
        -1 if (number := usage.images) is None else number,
        -1 if (number := usage.seconds) is None else number,
        -1 if (number := usage.characters) is None else number,
        -1 if (number := usage.cache_read_audio) is None else number,
        -1 if (number := usage.cache_read_image) is None else number,
        -1 if (number := usage.image_in) is None else number,
        -1 if (number := usage.image_out) is None else number,
        -1 if (number := call.estimated_input) is None else number,
        -1 if (number := call.estimated_output) is None else number,
        "" if usage.tools is None else encode(usage.tools).decode(),
        "" if plain else components_text(call) or "",
        "" if call.tool_calls is None else encode(call.tool_calls).decode(),
        encode(call.cost_reasons).decode() if call.cost_reasons else "",
        -1 if (number := call.list_femto) is None else number,
    )


def read_values(call: Call) -> Row:
    """
    Return the values by which ``KEEP_FORMER`` recognizes a call: its id, its usage and its price.
    """
    return (
        call.call_id,
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
        call.call_id,
    )


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
