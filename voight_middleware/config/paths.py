"""Places: where a ledger, its journal and its key are, by URL and by default; and what may be printed of a URL."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from voight_middleware.config.ledger_url import sqlite_path
from voight_middleware.config.private_files import check_own, temporary_name
from voight_middleware.config.values import SettingsError


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """
    Return ``$XDG_STATE_HOME/voight``, by default ``~/.local/state/voight``. Without a home, return ``temporary_folder()``.

    A relative ``XDG_STATE_HOME`` is ignored. Source: XDG Base Directory Specification, "Environment variables".

    Raises:
        SettingsError: There is no home, and no folder for temporary files that is safe.
    """
    base = environ.get("XDG_STATE_HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "voight"
    try:
        return Path("~").expanduser() / ".local" / "state" / "voight"
    except RuntimeError:  # a container that runs as a user without a home
        return temporary_folder()


def temporary_folder() -> Path:
    """
    Return ``/tmp/voight-<uid>``, which ``private_files.make_folder`` makes.

    Raises:
        SettingsError: Another account may have made it, or may put something into it.
    """
    import tempfile

    try:
        folder = Path(tempfile.gettempdir()) / temporary_name()
        with contextlib.suppress(FileNotFoundError):
            check_own(folder)
    except OSError as error:
        raise SettingsError(
            f"there is no home, and no safe folder for temporary files ({error}): set XDG_STATE_HOME to a folder"
        ) from error
    return folder


def default_ledger(environ: Mapping[str, str] = os.environ) -> str:
    """The ledger that is used when nothing else is said: ``ledger.db`` in the state folder."""
    return str(state_folder(environ) / "ledger.db")


def pseudonym_key_file(url: str) -> Path | None:
    """Beside an SQLite ledger: ``ledger.db.key``; None for a ledger on a server, whose hosts would have a key each."""
    return Path(sqlite_path(url) + ".key") if url.startswith("sqlite:///") else None


def default_journal(url: str, environ: Mapping[str, str] = os.environ) -> Path:
    """
    Beside an SQLite ledger: ``ledger.db.journal/``. For a ledger on a server a folder of its own in the state folder, the same one
    whoever logs in: what two applications of one account write must not be brought into the ledger of one of them.
    """
    return Path(sqlite_path(url) + ".journal") if url.startswith("sqlite:///") else state_folder(environ) / _journal_name(url, environ)


def usable_journal(url: str, environ: Mapping[str, str] = os.environ) -> Path:
    """
    The default journal; of a ledger on a server, under the folder for temporary files where the state folder cannot be made, as on a
    read-only file system.
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
    """Whether *folder* can be written, or made where it is not there yet."""
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except OSError:  # a folder on the way may not even be looked into
        return False


_LIBPQ = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT", "dbname": "PGDATABASE", "service": "PGSERVICE"}
"""Where a PostgreSQL ledger is, by parameter and variable. Source: PostgreSQL documentation, "libpq: Environment Variables"."""


def _journal_name(url: str, environ: Mapping[str, str]) -> str:
    """
    Return a name for the place of a ledger on a server, the same for every role.

    It is a digest only: of a URL that is not in order, any part may be a password.
    """
    engine, _, rest = url.partition("://")
    address, _, query = rest.partition("?")
    place = address.rpartition("@")[2]
    given = {name: value for name, _, value in (pair.partition("=") for pair in query.split("&")) if value}
    parameters = {name: given[name] for name in (*_LIBPQ, "database", "cluster") if name in given}
    if engine.startswith("postgres"):
        engine = "postgresql"
        parameters = {name: value for name, variable in _LIBPQ.items() if (value := environ.get(variable))} | parameters
    digest = hashlib.blake2b(
        "\n".join([engine, place, *(f"{name}={parameters[name]}" for name in sorted(parameters))]).encode(), digest_size=4
    )
    return f"{engine}-{digest.hexdigest()}.journal"
