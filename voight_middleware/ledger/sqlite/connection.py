"""The connection to a ledger's file: open, create and upgrade it, and explain its errors."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from voight_middleware.config.private_files import give_to_owner, make_folder
from voight_middleware.ledger.base import ForeignLedger, LedgerError
from voight_middleware.ledger.sqlite.schema import APPLICATION_ID, TABLES, VERSION
from voight_middleware.ledger.sqlite.upgrades import upgrade

BUSY_SECONDS = 30
"""How long a statement waits for another process's transaction."""


def connect(path: Path, create: bool) -> sqlite3.Connection:
    """
    Open the file at *path* in autocommit mode. With *create*, missing folders and the file are
    created for this user only.

    Raises:
        LedgerError: The file cannot be opened, or it is missing and *create* is False.
    """
    if sqlite3.sqlite_version_info < (3, 37):
        raise LedgerError(
            "the ledger needs SQLite 3.37 or later, and this Python has "
            f"{sqlite3.sqlite_version}: use another Python build"
        )
    try:
        if create:
            _make_file(path)
        if not path.exists():
            raise _missing(path)
    except (OSError, ValueError) as error:
        raise LedgerError(
            f"the ledger {path} cannot be opened ({error}): check the path and its permissions"
        ) from error
    with explained(path):
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )


def prepare(db: sqlite3.Connection, path: Path, create: bool) -> int:
    """
    Create the tables or upgrade them to this version. Return the version.

    Raises:
        ForeignLedger: The file is not a ledger.
        LedgerError: The ledger is from a newer version, or the file is empty and *create* is False.
    """
    # The tables first: another process that creates this ledger sets them and the id at once.
    (tables,) = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    application_id, version = _identity(db)
    if application_id != APPLICATION_ID:
        if application_id or tables:
            raise ForeignLedger(
                f"{path} is an SQLite file of another application, not a ledger: choose another "
                "path"
            )
        if not create:
            raise _missing(path)
        _create(db)
        application_id, version = _identity(db)
    if version > VERSION:
        raise LedgerError(
            f"the ledger {path} was written by a newer version (schema {version}, this one knows "
            f"{VERSION}): "
            "upgrade with pip install -U voight-middleware"
        )
    if version < VERSION:
        version = _upgrade(db)
    db.execute("PRAGMA synchronous = NORMAL")
    return version


@contextmanager
def transaction(
    db: sqlite3.Connection, rolled_back: Callable[[], None] | None = None
) -> Generator[None]:
    """Run one writing transaction. Call *rolled_back* if it fails."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if rolled_back is not None:
            rolled_back()
        # SQLite has rolled back by itself after some errors, such as a full disk
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def checkpoint(db: sqlite3.Connection, path: Path) -> None:
    """
    Move the whole WAL into the file and empty it.

    Raises:
        LedgerError: Another process has been reading for longer than ``BUSY_SECONDS``.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        if time.monotonic() > deadline:
            raise LedgerError(
                f"another process is reading the ledger {path}: find it with `fuser {path}`, stop "
                "it and try again"
            )
        time.sleep(0.05)


def file_at(path: Path) -> tuple[int, int] | None:
    """Return the identity of the file at *path*, None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def explained(path: Path) -> Generator[None]:
    """Convert the engine's errors to ``LedgerError``, with advice."""
    try:
        yield
    except sqlite3.Error as error:
        name: str = getattr(error, "sqlite_errorname", "")
        if name.startswith("SQLITE_NOTADB"):
            raise ForeignLedger(
                f"{path} is not an SQLite file, or it is encrypted: choose another path"
            ) from error
        if name.startswith("SQLITE_CORRUPT"):
            message = (
                f"the ledger {path} is damaged ({error}): restore a backup, or move it away to "
                "start a new one"
            )
        elif name.startswith("SQLITE_BUSY"):
            message = (
                f"the ledger {path} was locked by another process for {BUSY_SECONDS} seconds: "
                f"find it with `fuser {path}`"
            )
        elif name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
            message = (
                f"the ledger {path} cannot be opened or written ({error}): check the permissions "
                "of the file and its folder"
            )
        elif name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
            message = (
                f"the ledger {path} cannot be written ({error}): free some disk space or choose "
                "another place"
            )
        else:
            message = f"the ledger {path} failed: {error}"
        raise LedgerError(message) from error


def _identity(db: sqlite3.Connection) -> tuple[int, int]:
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return application_id, version


def _create(db: sqlite3.Connection) -> None:
    deadline = time.monotonic() + BUSY_SECONDS
    # The switch to WAL reports "locked" at once if two processes try it at the same time.
    while True:
        try:
            db.execute("PRAGMA page_size = 8192")
            db.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    with transaction(db):
        if _identity(db)[0] != APPLICATION_ID:
            for table in TABLES:
                db.execute(table)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {VERSION}")


def _upgrade(db: sqlite3.Connection) -> int:
    """Upgrade in one transaction: a ledger between two versions would miss its triggers."""
    with transaction(db):
        upgrade(db, _identity(db)[1])  # another process may have been faster
    return _identity(db)[1]


def _make_file(path: Path) -> None:
    make_folder(path.parent)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        give_to_owner(fd, path.resolve().parent)
    finally:
        os.close(fd)


def _missing(path: Path) -> LedgerError:
    return LedgerError(
        f"there is no ledger at {path} yet: the first stored call creates it (`voight doctor` "
        "shows where calls go, "
        "`voight demo` shows an example)"
    )
