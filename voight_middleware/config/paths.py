"""Paths: the default locations of a ledger, its journal and its key."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from voight_middleware.config.ledger_url import sqlite_path
from voight_middleware.config.private_files import check_own, temporary_name
from voight_middleware.config.values import SettingsError


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """
    Return ``$XDG_STATE_HOME/voight``, by default ``~/.local/state/voight``. Without a home
    directory, return ``temporary_folder()``.

    A relative ``XDG_STATE_HOME`` is ignored. Source: XDG Base Directory Specification, "Environment
    variables".

    Raises:
        SettingsError: There is no home directory and no safe folder for temporary files.
    """
    base = environ.get("XDG_STATE_HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "voight"
    try:
        return Path("~").expanduser() / ".local" / "state" / "voight"
    except RuntimeError:  # a container whose user has no home directory
        return temporary_folder()


def temporary_folder() -> Path:
    """
    Return ``/tmp/voight-<uid>``, which ``private_files.make_folder`` creates.

    Raises:
        SettingsError: Another account may have created it or may write to it.
    """
    import tempfile

    try:
        folder = Path(tempfile.gettempdir()) / temporary_name()
        with contextlib.suppress(FileNotFoundError):
            check_own(folder)
    except OSError as error:
        raise SettingsError(
            f"there is no home directory and no safe folder for temporary files ({error}): set "
            "XDG_STATE_HOME to a folder"
        ) from error
    return folder


def default_ledger(environ: Mapping[str, str] = os.environ) -> str:
    """Return the default ledger: ``ledger.db`` in the state folder."""
    return str(state_folder(environ) / "ledger.db")


def pseudonym_key_file(url: str) -> Path | None:
    """
    Return the key file next to an SQLite ledger: ``ledger.db.key``. Return None for a server, whose
    hosts would each have a different key.
    """
    return Path(sqlite_path(url) + ".key") if url.startswith("sqlite:///") else None


def default_journal(url: str, environ: Mapping[str, str] = os.environ) -> Path:
    """
    Return the default journal of a ledger.

    For SQLite it is ``ledger.db.journal/`` next to the ledger. For a server it is a separate folder
    in the state folder, the same for every role. So the calls of one application never get into the
    ledger of another one of the same account.
    """
    return (
        Path(sqlite_path(url) + ".journal")
        if url.startswith("sqlite:///")
        else state_folder(environ) / _journal_name(url, environ)
    )


def usable_journal(url: str, environ: Mapping[str, str] = os.environ) -> Path:
    """
    Return the default journal. If the state folder cannot be created, as on a read-only file
    system, return a folder for temporary files.

    The fallback applies to ledgers on a server only.
    """
    place = default_journal(url, environ)
    if url.startswith("sqlite:///") or can_be_made(place):
        return place
    with contextlib.suppress(SettingsError):
        base = temporary_folder()
        if can_be_made(base / place.name):
            return base / place.name
    return place


def can_be_made(folder: Path) -> bool:
    """Return whether *folder* is writable, or can be created."""
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except OSError:  # a parent folder may not be accessible
        return False


_LIBPQ = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "dbname": "PGDATABASE",
    "service": "PGSERVICE",
}
"""
The location parameters of a PostgreSQL ledger, and their variables. Source: PostgreSQL
documentation, "libpq: Environment Variables".
"""


def _journal_name(url: str, environ: Mapping[str, str]) -> str:
    """
    Return a name for the location of a ledger on a server, the same for every role.

    It is only a digest: any part of an invalid URL may be a password.
    """
    engine, _, rest = url.partition("://")
    address, _, query = rest.partition("?")
    place = address.rpartition("@")[2]
    given = {
        name: value
        for name, _, value in (pair.partition("=") for pair in query.split("&"))
        if value
    }
    parameters = {name: given[name] for name in (*_LIBPQ, "database", "cluster") if name in given}
    if engine.startswith("postgres"):
        engine = "postgresql"
        parameters = {
            name: value for name, variable in _LIBPQ.items() if (value := environ.get(variable))
        } | parameters
    import hashlib

    digest = hashlib.blake2b(
        "\n".join(
            [engine, place, *(f"{name}={parameters[name]}" for name in sorted(parameters))]
        ).encode(),
        digest_size=4,
    )
    return f"{engine}-{digest.hexdigest()}.journal"
