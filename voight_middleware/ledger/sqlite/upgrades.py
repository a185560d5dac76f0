"""Upgrades of a SQLite ledger of an older version, in place."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from voight_middleware.ledger.base import MAX_COUNT
from voight_middleware.ledger.rollups import MODELS, PLANS, USER_DAYS, USER_MODELS, USERS
from voight_middleware.ledger.sqlite import triggers
from voight_middleware.ledger.sqlite.intake import Intake
from voight_middleware.ledger.sqlite.packed import (
    COLUMNS,
    INDEXES,
    KIND,
    PLACE,
    RARE,
    TEXTS,
)
from voight_middleware.ledger.sqlite.schema import FORMER_COSTS, JOBS, PACKED, VERSION

SLICE = 2_000
"""
How many calls are read at once. In a busy application, each statement waits milliseconds for the
interpreter.
"""
_STATEMENTS = {
    1: (
        "ALTER TABLE calls ADD COLUMN possibly_billed INTEGER",
        "ALTER TABLE calls ADD COLUMN job TEXT",
        "ALTER TABLE calls ADD COLUMN list_femto INTEGER CHECK (list_femto >= 0)",
        *(
            f"ALTER TABLE calls ADD COLUMN {name} INTEGER CHECK ({name} BETWEEN 0 AND {MAX_COUNT})"
            for name in ("cache_read_audio", "cache_read_image", "image_in", "image_out")
        ),
        *JOBS,
        FORMER_COSTS,
    ),
    2: (
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
    ),
    4: (
        *(
            f"DROP TRIGGER IF EXISTS {name}"
            for name in ("call_added", "call_removed", "call_changed")
        ),
        "ALTER TABLE calls RENAME TO old_calls",
        "DROP INDEX IF EXISTS calls_of_users",
        "DROP INDEX IF EXISTS calls_of_jobs",
    ),
}
"""The statements of the upgrade from each older version to the next, before calls are packed."""


_RARE = (
    f"IIF(COALESCE({', '.join(RARE)}) IS NULL, '', json_patch('{{}}', json_object("
    f"{', '.join(f'{name!r}, {name}' for name in RARE)})) || '')"
)
"""The text is appended to: else it would become a part of the JSON around it."""
_PLAIN = COLUMNS[COLUMNS.index("cost_femto") : COLUMNS.index("shape_id")]


def _value(name: str) -> str:
    if name == "rare":
        return _RARE
    return f"COALESCE({name}, '')" if name in TEXTS else f"COALESCE({name}, -1)"


_READ = f"""
SELECT CAST(json_group_array(json_array(
    {", ".join((*KIND, *PLACE))}, occurred_at, call_id, {", ".join(map(_value, _PLAIN))},
    COALESCE(raw_usage, '')
)) AS BLOB)
FROM (SELECT * FROM old_calls WHERE (occurred_at, call_id) > (?, ?) ORDER BY occurred_at, call_id LIMIT ?)"""
_decode = msgspec.json.Decoder(list[list[Any]]).decode


def upgrade(db: sqlite3.Connection, version: int) -> None:
    """
    Upgrade a ledger of an older version, inside a transaction.

    Calls move into other tables. Until the end, the file holds both. Then it has free pages, which
    new calls use.
    """
    for step in range(version, VERSION):
        for statement in _STATEMENTS[step]:
            db.execute(statement)
    if version < VERSION:
        db.execute("PRAGMA cache_size = -65536")  # KiB
        for statement in PACKED:
            db.execute(statement)
        _pack(db)
        for statement in INDEXES:  # sorted once, in place of a search for each call
            db.execute(statement)
        db.execute("DROP TABLE old_calls")
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("PRAGMA cache_size = -2000")  # SQLite's own


def _pack(db: sqlite3.Connection) -> None:
    intake = Intake(db)
    kind, place = len(KIND), len(KIND) + len(PLACE)
    after: tuple[int, str] = (-(2**63), "")
    while True:
        (text,) = db.execute(_READ, (*after, SLICE)).fetchone()
        try:
            rows = _decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):  # a text that is no UTF-8
            rows = _decode(text.decode(errors="replace"))
        if not rows:
            return
        intake.copy(
            [
                (
                    tuple(row[:kind]),
                    tuple(row[kind:place]),
                    row[place],
                    row[place + 1],
                    row[place + 2 : -1],
                    row[-1],
                )
                for row in rows
            ]
        )
        after = rows[-1][place], rows[-1][place + 1]
