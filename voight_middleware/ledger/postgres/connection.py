"""The connection to a PostgreSQL server, and explanations of its errors."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from voight_middleware.ledger.base import LedgerError
from voight_middleware.ledger.postgres.values import storable

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

CONNECT_SECONDS = 5
LOCK_SECONDS = 30
"""How long a writing statement waits for another session's lock."""
_KEPT_ALIVE = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""Detect a lost server within a minute instead of the hours of the system's defaults."""


def connect(url: str) -> Connection:
    """
    Open a connection in autocommit mode: it holds no transaction open between statements.

    Everything in libpq works: its variables (``PGHOST``, ``PGSSLMODE``, …), ``PGPASSFILE``, service
    files, several hosts.

    Raises:
        LedgerError: The connection fails. The message contains no password.
    """
    parameters = _parameters(url)
    values: dict[str, Any] = {"fallback_application_name": "voight", "client_encoding": "UTF8"}
    # The service may set other values.
    if "service" not in parameters and "PGSERVICE" not in os.environ:
        values |= _KEPT_ALIVE
        if "PGCONNECT_TIMEOUT" not in os.environ:
            values["connect_timeout"] = CONNECT_SECONDS
    host = (
        parameters.get("host")
        or parameters.get("hostaddr")
        or os.environ.get("PGHOST")
        or "this machine"
    )
    place = f"{host}/{parameters.get('dbname') or os.environ.get('PGDATABASE') or ''}"
    try:
        # No prepared statements: a pooler may give the next transaction another session.
        db = psycopg.connect(
            "", autocommit=True, prepare_threshold=None, **{**values, **parameters}
        )
    except psycopg.Error as error:
        raise LedgerError(_of_connecting(f"the ledger {place}", error)) from error
    # Regardless of the role's default: writers wait for each other.
    db.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    return db


def run(db: Connection, query: str, values: Sequence[Any] = ()) -> psycopg.Cursor[tuple[Any, ...]]:
    """Execute a statement with a ``?`` for each value."""
    return db.execute(bound(query), [storable(value) for value in values])


def run_many(db: Connection, query: str, rows: Sequence[Sequence[Any]]) -> None:
    """Execute a statement for each of *rows*, which must be storable."""
    db.cursor().executemany(bound(query), rows)


def row(db: Connection, query: str, *values: Any) -> tuple[Any, ...]:
    """Return the only row of a statement's result."""
    result = run(db, query, values).fetchone()
    assert result is not None
    return result


def bound(query: str) -> bytes:
    """Return a statement with a ``?`` for each value in psycopg's syntax."""
    return query.replace("%", "%%").replace("?", "%s").encode()


def place_of(db: Connection) -> str:
    """Return the location of the ledger for messages."""
    return f"{db.info.host}:{db.info.port}/{db.info.dbname}"


def quoted(name: str) -> str:
    """Return the name of a role as SQL."""
    return '"' + name.replace('"', '""') + '"'


def _parameters(url: str) -> dict[str, Any]:
    """Parse the URL. libpq's own message about an invalid URL may quote the password."""
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        parameters = {"host": "@"}
    ports = str(parameters.get("port") or "").split(",")
    if "@" in str(parameters.get("host") or "") or not all(
        port.isdecimal() or not port for port in ports
    ):
        raise LedgerError(
            "the URL of the ledger cannot be read: write "
            "postgresql://user:password@host:5432/database, with the characters of the "
            "password that are special in a URL percent-encoded (@ as %40, / as %2F, : as %3A, # "
            "as %23, ? as %3F, % as %25)"
        ) from None
    return dict(parameters)


def _of_connecting(ledger: str, error: psycopg.Error) -> str:
    """Return advice about a refused connection. libpq's errors differ only in their text."""
    text = " ".join(str(error).split())
    advice = (
        (
            (
                "password authentication failed",
                "no password supplied",
                "no pg_hba.conf entry",
                "authentication failed",
            ),
            _AUTHENTICATION,
        ),
        (("remaining connection slots", "too many clients", "too many connections"), _CONNECTIONS),
        (
            ("does not exist",),
            (
                "check the names of the database and of the role in the URL; create the database with "
                "CREATE DATABASE"
            ),
        ),
        (
            ("could not translate host name", "resolve host", "Name or service"),
            "check the host in the URL",
        ),
        (
            ("SSL", "certificate"),
            "check sslmode and sslrootcert in the URL, and that the server has TLS on",
        ),
        (
            ("starting up", "shutting down", "recovery"),
            "the server is not ready yet: the next attempt connects again",
        ),
    )
    for words, action in advice:
        if any(word in text for word in words):
            return f"{ledger} cannot be opened ({text}): {action}"
    return (
        f"{ledger} cannot be reached ({text}): check that the server runs, and check host and "
        "port in the URL"
    )


_AUTHENTICATION = (
    "check user and password in the URL, PGPASSWORD or PGPASSFILE, and the server's pg_hba.conf"
)
_CONNECTIONS = "raise max_connections on the server, or put a pooler in front of it"


@contextmanager
def explained(place: str) -> Generator[None]:
    """Convert the engine's errors to ``LedgerError``, with advice."""
    try:
        yield
    except psycopg.Error as error:
        raise LedgerError(f"the ledger {place} {_meaning(error)}") from error


def _meaning(error: psycopg.Error) -> str:
    text = " ".join((error.diag.message_primary or str(error)).split())
    match error:
        case errors.ReadOnlySqlTransaction():
            action = (
                "use the URL of the primary server (target_session_attrs=read-write finds it), or "
                "a role"
            )
            return (
                f"cannot be written ({text}): {action} whose default_transaction_read_only is off"
            )
        case errors.InsufficientPrivilege():
            action = (
                "ask its owner to run `voight migrate --writer ROLE --reader ROLE`, also after "
                "each upgrade"
            )
            return f"refuses this role ({text}): {action}"
        case errors.UndefinedObject():
            return f"cannot grant rights ({text}): create the role first, with CREATE ROLE … LOGIN"
        case errors.DiskFull():
            return (
                f"cannot be written, as the server's disk is full ({text}): free some space there"
            )
        case errors.LockNotAvailable():
            return (
                f"was locked by another session for {LOCK_SECONDS} seconds: find it with SELECT * "
                "FROM pg_stat_activity"
            )
        case errors.TooManyConnections():
            return f"has no connection left ({text}): {_CONNECTIONS}"
        case (
            errors.UndefinedTable()
            | errors.InvalidSchemaName()
            | errors.UndefinedFunction()
            | errors.UndefinedColumn()
        ):
            return (
                f"does not match this version's schema ({text}): restore the schema voight, or "
                "drop it to start a new ledger"
            )
        case errors.DataCorrupted() | errors.IndexCorrupted():
            return f"is damaged ({text}): restore a backup"
        case psycopg.OperationalError() if error.sqlstate is None or error.sqlstate[:2] in (
            "08",
            "57",
        ):
            return f"lost its connection ({text}): the next attempt opens a new one"
        case _:
            return f"failed: {text}"
