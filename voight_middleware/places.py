"""Places: where a ledger, its journal and its key are, by URL and by default; and what may be printed of a URL."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from voight_middleware.private_files import check_own, temporary_name
from voight_middleware.settings_values import SettingsError


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


def absolute(path: str, what: str) -> Path:
    """
    Return a path as it is meant, ``~`` included.

    Raises:
        SettingsError: It cannot be one; the message begins with *what*.
    """
    try:
        if path and "\0" not in path:
            return Path(path).expanduser().absolute()
    except RuntimeError:  # ~user, who does not exist
        pass
    raise SettingsError(f"{what} needs a path that can be used, not {path!r}")


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
        place = next(one for one in (folder, *folder.parents) if one.exists())
        return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
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
    said = {name: given[name] for name in (*_LIBPQ, "database", "cluster") if name in given}
    if engine.startswith("postgres"):
        engine = "postgresql"
        said = {name: value for name, variable in _LIBPQ.items() if (value := environ.get(variable))} | said
    digest = hashlib.blake2b("\n".join([engine, place, *(f"{name}={said[name]}" for name in sorted(said))]).encode(), digest_size=4)
    return f"{engine}-{digest.hexdigest()}.journal"


SCHEMES = ("sqlite", "postgresql", "postgres", "clickhouse")
_FORMS = "write sqlite:////var/lib/app/ledger.db, postgresql://user@host/database or clickhouse://user@host/database"
_SERVER = "user:password@host/database, with the special characters of a password percent-encoded (@ as %40, / as %2F, : as %3A, ? as %3F)"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_WITHOUT_SLASHES = re.compile(r"(postgres(ql)?|clickhouse|mysql|mariadb|https?)(\+[a-z0-9]+)?:", re.IGNORECASE)
_CONNECTION_STRING = re.compile(
    r"\s*[A-Za-z_ ]{1,40}=.*\b(host|hostaddr|server|service|dbname|database|user|password|port)\s*=|"
    r"\s*(host|hostaddr|service|dbname|user|password|port)\s*=",
    re.IGNORECASE | re.DOTALL,
)
"""``host=db password=…``, as libpq and other drivers read it: taken for a path, it would be a file with the password in its name."""
_ADDRESS = re.compile(r".*://|/{0,2}[^/\s]*:[^\s]*@", re.DOTALL)
"""What no path has: a URL inside of another, or ``user:password@host/database``."""


def ledger_url(place: str) -> str:
    """
    Return *place* as a URL, an SQLite path made absolute.

    Raises:
        SettingsError: *place* is empty, an SQLite URL without a path, a connection string, or of an engine that there is not. The message
            shows no password.
    """
    found = _SCHEME.match(place)
    scheme = found[1].lower() if found is not None else "sqlite"
    if scheme not in SCHEMES or (found is None and _WITHOUT_SLASHES.match(place)):
        raise SettingsError(f"a ledger cannot be {shown_url(place)!r}; {_FORMS}")
    if found is not None and scheme != "sqlite":
        if not _has_port(place[found.end() :]):
            raise SettingsError(f"the port of the ledger {shown_url(place)!r} is not a number: write {scheme}://{_SERVER}")
        return scheme + place[len(scheme) :]
    path = sqlite_path(place) if place.startswith("sqlite:") else place
    if _CONNECTION_STRING.match(path):
        raise SettingsError(f"a ledger cannot be a connection string, such as host=… password=…; {_FORMS}")
    if _ADDRESS.match(path):
        raise SettingsError(f"a ledger cannot be the address of a server without its engine in front; {_FORMS}")
    if not path or path == ":memory:":
        raise SettingsError(f"the ledger needs a file, such as sqlite:////var/lib/app/ledger.db, not {place!r}")
    return f"sqlite:///{absolute(path, 'the ledger')}"


def _has_port(rest: str) -> bool:
    """Return whether the ports of a URL's hosts are numbers. ``owner:secret?host=db`` has a password there."""
    hosts = rest.partition("?")[0].partition("/")[0].rpartition("@")[2]
    ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts.split(",")]
    return all(not port or (port.isascii() and port.isdigit()) for port in ports)


_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*:)(/*)(.*)", re.DOTALL)
_SECRET = re.compile(r"passw|pwd|secret|token|key$", re.IGNORECASE)


def shown_url(url: str) -> str:
    """
    *url* as it may be printed: ``***`` in the place of a password, in front of the host and in the query.

    A URL that is not in order, such as one whose password has a slash in it, loses more than the password rather than less.
    """
    found = _URL.fullmatch(url)
    if found is None or url.startswith("sqlite:///"):
        return url
    scheme, slashes, rest = found[1], found[2], found[3]
    if len(slashes) < 2:  # postgres:secret@host
        return f"{scheme}***@{rest.rpartition('@')[2]}" if "@" in rest else url
    address, mark, query = rest.partition("?")
    names, at, host = address.rpartition("@")
    user, colon, _ = names.partition(":")
    if not at:
        server, colon, port = host.partition("/")[0].rpartition(":")
        no_port = bool(colon and port) and not port.isdigit() and not port.endswith("]")  # a password: the host is missing, or behind its ?
        if no_port or ("@" in query and "=" not in query.partition("@")[0]):
            return f"{scheme}{slashes}{server}:***"
        return f"{scheme}{slashes}{host}{mark}{_shown_query(query)}"
    return f"{scheme}{slashes}{user}{':***' if colon else ''}@{host}{mark}{_shown_query(query)}"


def _shown_query(query: str) -> str:
    from urllib.parse import unquote

    parts = [part.partition("=") for part in query.split("&")]
    return "&".join(f"{name}=***" if equals and _SECRET.search(unquote(name)) else name + equals + value for name, equals, value in parts)


def sqlite_path(url: str) -> str:
    """
    The file of an ``sqlite:///path`` URL: three slashes and a relative path, or four and an absolute one.

    Raises:
        SettingsError: The URL has another form.
    """
    if not url.startswith("sqlite:///"):
        raise SettingsError(f"write an SQLite ledger as sqlite:///relative/path or sqlite:////absolute/path, not {shown_url(url)!r}")
    return url.removeprefix("sqlite:///")
