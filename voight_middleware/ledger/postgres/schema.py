"""
The tables of a PostgreSQL ledger, and their numbered migrations. Any number of processes may start
at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from voight_middleware.ledger.base import MAX_COUNT, ForeignLedger, LedgerError
from voight_middleware.ledger.postgres import functions, triggers
from voight_middleware.ledger.postgres.connection import (
    LOCK_SECONDS,
    Connection,
    explained,
    place_of,
    quoted,
)
from voight_middleware.ledger.postgres.values import STORED, stored
from voight_middleware.ledger.rollups import PLANS, USER_MODELS
from voight_middleware.ledger.rows import COUNTED, COUNTS, FIGURES, REQUIRED

OLDEST_SERVER = 130_000
LOCK = (
    f"SELECT set_config('lock_timeout', '{LOCK_SECONDS}s', true), "
    f"pg_advisory_xact_lock({0x564F494748540000})"
)
"""``VOIGHT``: the lock that every writer takes for a transaction, to avoid deadlocks."""

_COST = "numeric(38, 15) CHECK ({name} BETWEEN 0 AND 9223.372036854775807)"
_TYPES = {
    **dict.fromkeys(("occurred_at", "duration", "ttft", "price_id"), "bigint"),
    **{name: f"bigint CHECK ({name} BETWEEN 0 AND {MAX_COUNT})" for name in COUNTS},
    **dict.fromkeys(("attempts", "http_status", "possibly_billed"), "integer"),
    **dict.fromkeys(("streamed", "batch"), "smallint"),
    **{name: _COST.format(name=name) for name in ("cost", "list_cost")},
    "tags_extra": "jsonb",
}
_TEXT = 'text COLLATE "C"'
_REQUIRED = frozenset(stored(REQUIRED))
_COLUMNS = [
    f"{name} {_TYPES.get(name, _TEXT)}{' NOT NULL' if name in _REQUIRED else ''}"
    # The numbers first, to save padding.
    for name in (*_TYPES, *(name for name in STORED if name not in _TYPES))
]
FORMER = ("call_id", "version", *stored(FIGURES), "replaced_at")

MIGRATIONS: tuple[Sequence[str], ...] = (
    (
        f"""CREATE TABLE voight.calls ({", ".join(_COLUMNS)}, PRIMARY KEY (call_id),
            CHECK ((cost IS NULL) = (cost_status = 'unpriced')))""",
        "CREATE INDEX calls_in_time ON voight.calls (occurred_at)",
        (
            "CREATE INDEX calls_of_users ON voight.calls (user_id, occurred_at) WHERE user_id IS NOT "
            "NULL"
        ),
        "CREATE INDEX calls_of_jobs ON voight.calls (job) WHERE job IS NOT NULL",
        f"CREATE TABLE voight.prices (price_id bigint PRIMARY KEY, price {_TEXT} NOT NULL)",
        f"CREATE TABLE voight.extra_keys (key {_TEXT} PRIMARY KEY)",
        f"CREATE TABLE voight.segments (name {_TEXT} PRIMARY KEY, ingested bigint NOT NULL)",
        f"""CREATE TABLE voight.jobs (job {_TEXT} PRIMARY KEY, part_of {_TEXT}, submitted_at bigint NOT NULL,
            submission {_TEXT} NOT NULL)""",
        "CREATE INDEX parts_of_jobs ON voight.jobs (part_of) WHERE part_of IS NOT NULL",
        f"""CREATE TABLE voight.former_costs (call_id {_TEXT}, version integer, cost numeric(38, 15), list_cost numeric(38, 15),
            cost_status {_TEXT} NOT NULL, cost_reasons {_TEXT}, price_id bigint, replaced_at bigint NOT NULL,
            PRIMARY KEY (call_id, version))""",
        *triggers.statements(),
        *functions.STATEMENTS,
        (
            f"CREATE TABLE voight.schema_version (ledger {_TEXT} PRIMARY KEY, version integer NOT "
            "NULL)"
        ),
        "INSERT INTO voight.schema_version VALUES ('voight-middleware', 0)",
    ),
    (
        # A call that a client adds without the writers' lock would miss in the new rollups.
        "LOCK TABLE voight.calls IN SHARE ROW EXCLUSIVE MODE",
        f"DROP TABLE IF EXISTS voight.{PLANS.table}, voight.{USER_MODELS.table}",
        *map(triggers.table, (PLANS, USER_MODELS)),
        *(triggers.fill(rollup, "voight.calls") for rollup in (PLANS, USER_MODELS)),
        *triggers.functions(),
    ),
)
"""
The statements that upgrade a ledger from each version to the next. The first ones create it. Never
change a released one.
"""

_PLAIN = ", ".join(
    f"{name} {_TYPES.get(name, 'text').split()[0].partition('(')[0]}" for name in STORED
)
STAGING = f"CREATE TEMPORARY TABLE voight_calls ({_PLAIN}) ON COMMIT DELETE ROWS"
"""The target of COPY, which cannot skip existing calls."""
INSERT = (
    f"INSERT INTO voight.calls ({', '.join(STORED)}) SELECT {', '.join(STORED)} FROM "
    "pg_temp.voight_calls ON CONFLICT DO NOTHING"
)

CALLS = "voight.calls AS calls"
_FIGURES = stored(FIGURES)
CALLS_AT_ORIGINAL_PRICES = (
    f"(SELECT {', '.join(f'calls.{name}' for name in STORED if name not in _FIGURES)}, "
    f"{', '.join(f'CASE WHEN original.version IS NULL THEN calls.{name} ELSE original.{name} END AS {name}' for name in _FIGURES)} "
    "FROM voight.calls LEFT JOIN voight.former_costs AS original ON original.call_id = "
    "calls.call_id AND original.version = 1) AS calls"
)
"""Instead of ``CALLS``: the calls with their first price."""
_READ = {name: f"({name} * 1000000000000000)::bigint" for name in ("cost", "list_cost")} | {
    "price_id": "price",
    "tags_extra": "tags_extra::text",
}
SELECT = f"SELECT {', '.join(_READ.get(name, name) for name in STORED)}"
SELECT_PRICE = "LEFT JOIN voight.prices USING (price_id)"
SELECT_FORMER = (
    f"SELECT {', '.join(_READ.get(name, name) for name in FORMER)} FROM voight.former_costs "
    f"{SELECT_PRICE} "
    "WHERE call_id = ANY(?) ORDER BY call_id, version"
)
_READ_AS = ("raw_usage", "cost", "list_cost", "cost_status", "cost_reasons")
_GIVEN = stored((*COUNTED, *FIGURES))
REPRICE = f"""
WITH changes AS MATERIALIZED (
    SELECT one -> 'before' ->> 'call_id' AS call_id, one -> 'before' AS before, one -> 'after' AS after
    FROM jsonb_array_elements(?::jsonb) AS one
), kept AS (
    INSERT INTO voight.former_costs ({", ".join(FORMER)})
    SELECT calls.call_id, (SELECT COUNT(*) + 1 FROM voight.former_costs AS former WHERE former.call_id = calls.call_id),
        {", ".join(f"calls.{name}" for name in _FIGURES)}, ?
    FROM changes JOIN voight.calls USING (call_id), jsonb_populate_record(NULL::voight.calls, before) AS read
    WHERE {" AND ".join(f"calls.{name} IS NOT DISTINCT FROM read.{name}" for name in _READ_AS)}
    RETURNING call_id
)
UPDATE voight.calls SET ({", ".join(_GIVEN)}) = (SELECT {", ".join(f"given.{name}" for name in _GIVEN)})
FROM kept JOIN changes USING (call_id), jsonb_populate_record(NULL::voight.calls, after) AS given
WHERE calls.call_id = kept.call_id"""
"""
Skips calls that have changed since they were read. Binds the JSON of ``values.change``, each call
once, and the time.
"""


def prepare(db: Connection, create: bool) -> int:
    """
    Upgrade the schema of a database to this version. With *create*, create a missing one. Return
    the version.

    Raises:
        ForeignLedger: The database has another schema of that name.
        LedgerError: There is no ledger, or a newer one, or this role may not create or upgrade it.
    """
    place = place_of(db)
    if db.info.server_version < OLDEST_SERVER:
        raise LedgerError(
            f"the ledger {place} needs PostgreSQL {OLDEST_SERVER // 10_000}, and that is "
            f"{db.info.server_version // 10_000}"
        )
    with explained(place):
        version = _version(db, place)
        if version is None and not create:
            raise LedgerError(
                f"there is no ledger at {place} yet: the first stored call creates it (`voight "
                "doctor` shows where calls go, "
                "`voight demo` shows an example)"
            )
        if version is None or version < len(MIGRATIONS):
            version = _migrate(db, place)
    if version > len(MIGRATIONS):
        raise LedgerError(
            f"the ledger {place} was written by a newer version (schema {version}, this one knows "
            f"{len(MIGRATIONS)}): "
            "upgrade with pip install -U voight-middleware"
        )
    return version


def _version(db: Connection, place: str) -> int | None:
    """Return the version of the schema. Return None if it is missing, or empty and ours."""
    encoding, schema, usable, ours, others = _one(
        db,
        """
        SELECT current_setting('server_encoding'), n.oid, has_schema_privilege(n.oid, 'USAGE'),
            EXISTS (SELECT FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'ledger'
                    WHERE c.relnamespace = n.oid AND c.relname = 'schema_version'),
            EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid)
        FROM (SELECT) AS one LEFT JOIN pg_namespace n ON n.nspname = 'voight'
        """,
    )
    if encoding != "UTF8":
        raise LedgerError(
            f"the ledger needs a database in UTF8, and {place} is in {encoding}: make one with "
            "CREATE DATABASE … ENCODING 'UTF8'"
        )
    if schema is None:
        return None
    if not ours:
        if others:
            raise ForeignLedger(
                f"{place} has a schema voight of another application, not a ledger: choose "
                "another database"
            )
        return None
    if not usable:
        raise LedgerError(
            f"the role {db.info.user} may not use the ledger {place}: ask its owner to run "
            "`voight migrate --writer ROLE --reader ROLE`"
        )
    return int(
        _one(db, "SELECT version FROM voight.schema_version WHERE ledger = 'voight-middleware'")[0]
    )


def _migrate(db: Connection, place: str) -> int:
    version: int | None = None
    try:
        with db.transaction():
            db.execute(LOCK.encode())
            version = _version(db, place)  # another process may have been faster
            if (
                version is None
                and _one(
                    db, "SELECT NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'voight')"
                )[0]
            ):
                db.execute("CREATE SCHEMA voight")
            for statements in MIGRATIONS[version or 0 :]:
                for statement in statements:
                    db.execute(statement.encode())
            if (version or 0) < len(MIGRATIONS):
                db.execute(f"UPDATE voight.schema_version SET version = {len(MIGRATIONS)}".encode())
            return max(version or 0, len(MIGRATIONS))
    except psycopg.errors.InsufficientPrivilege as error:
        role, text = db.info.user, error.diag.message_primary
        if version is None:
            raise LedgerError(
                f"there is no ledger at {place} yet, and the role {role} may not make one "
                f"({text}): run `voight migrate` once as a role "
                "that may, or let an administrator run: CREATE SCHEMA voight AUTHORIZATION "
                f"{quoted(role)}"
            ) from error
        (owner,) = _one(
            db,
            "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'voight.calls'::regclass",
        )
        raise LedgerError(
            f"the ledger {place} is of an older version (schema {version}, this one needs "
            f"{len(MIGRATIONS)}), and the role {role} may "
            f"not upgrade it: run `voight migrate` of this version once as {owner}, who owns it"
        ) from error


def _one(db: Connection, query: str) -> tuple[Any, ...]:
    row = db.execute(query.encode()).fetchone()
    assert row is not None
    return row
