"""The URL of a ledger: parse and check it, and show it without its password."""

from __future__ import annotations

import re

from voight_middleware.config.values import SettingsError, absolute
from voight_middleware.lazy import lazy_pattern

SCHEMES = ("sqlite", "postgresql", "postgres", "clickhouse")
_FORMS = (
    "write sqlite:////var/lib/app/ledger.db, postgresql://user@host/database or "
    "clickhouse://user@host/database"
)
_SERVER = (
    "user:password@host/database, with the special characters of a password percent-encoded (@ as "
    "%40, / as %2F, : as %3A, ? as %3F)"
)
_SCHEME = lazy_pattern(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_WITHOUT_SLASHES = lazy_pattern(
    r"(postgres(ql)?|clickhouse|mysql|mariadb|https?)(\+[a-z0-9]+)?:", re.IGNORECASE
)
_CONNECTION_STRING = lazy_pattern(
    r"\s*[A-Za-z_ ]{1,40}=.*\b(host|hostaddr|server|service|dbname|database|user|password|port)\s*=|"  # noqa: E501
    r"\s*(host|hostaddr|service|dbname|user|password|port)\s*=",
    re.IGNORECASE | re.DOTALL,
)
"""
``host=db password=…``, a connection string of libpq and other drivers. As a path, it would put the
password into a file name.
"""
_ADDRESS = lazy_pattern(r".*://|/{0,2}[^/\s]*:[^\s]*@", re.DOTALL)
"""Text that no path contains: a nested URL, or ``user:password@host/database``."""


def ledger_url(place: str) -> str:
    """
    Return *place* as a URL, with an absolute path for SQLite.

    Raises:
        SettingsError: *place* is empty, a connection string, a SQLite URL without a path, or names
            an unknown engine. The message contains no password.
    """
    match = _SCHEME.match(place)
    scheme = match[1].lower() if match is not None else "sqlite"
    if scheme not in SCHEMES or (match is None and _WITHOUT_SLASHES.match(place)):
        raise SettingsError(f"{shown_url(place)!r} is not a ledger URL; {_FORMS}")
    if match is not None and scheme != "sqlite":
        if not _has_port(place[match.end() :]):
            raise SettingsError(
                f"the port of the ledger {shown_url(place)!r} is not a number: write "
                f"{scheme}://{_SERVER}"
            )
        return scheme + place[len(scheme) :]
    path = sqlite_path(place) if place.startswith("sqlite:") else place
    if _CONNECTION_STRING.match(path):
        raise SettingsError(
            f"a connection string, such as host=… password=…, is not a ledger URL; {_FORMS}"
        )
    if _ADDRESS.match(path):
        raise SettingsError(f"a ledger URL must begin with its engine; {_FORMS}")
    if not path or path == ":memory:":
        raise SettingsError(
            f"the ledger needs a file, such as sqlite:////var/lib/app/ledger.db, not {place!r}"
        )
    return f"sqlite:///{absolute(path, 'the ledger')}"


def _has_port(rest: str) -> bool:
    """
    Return whether the ports of a URL's hosts are numbers. ``owner:secret?host=db`` has a password
    in that position.
    """
    hosts = rest.partition("?")[0].partition("/")[0].rpartition("@")[2]
    ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts.split(",")]
    return all(not port or (port.isascii() and port.isdigit()) for port in ports)


_URL = lazy_pattern(r"([A-Za-z][A-Za-z0-9+.\-]*:)(/*)(.*)", re.DOTALL)
_SECRET = lazy_pattern(r"passw|pwd|secret|token|key$", re.IGNORECASE)


def shown_url(url: str) -> str:
    """
    Return *url* for printing, with ``***`` for passwords before the host and in the query.

    An invalid URL, such as one with a slash in the password, may lose more than the password.
    """
    match = _URL.fullmatch(url)
    if match is None or url.startswith("sqlite:///"):
        return url
    scheme, slashes, rest = match[1], match[2], match[3]
    if len(slashes) < 2:  # postgres:secret@host
        return f"{scheme}***@{rest.rpartition('@')[2]}" if "@" in rest else url
    address, mark, query = rest.partition("?")
    names, at, host = address.rpartition("@")
    user, colon, _ = names.partition(":")
    if not at:
        server, colon, port = host.partition("/")[0].rpartition(":")
        # A password: the host is missing, or comes after the question mark.
        no_port = bool(colon and port) and not port.isdigit() and not port.endswith("]")
        if no_port or ("@" in query and "=" not in query.partition("@")[0]):
            return f"{scheme}{slashes}{server}:***"
        return f"{scheme}{slashes}{host}{mark}{_shown_query(query)}"
    return f"{scheme}{slashes}{user}{':***' if colon else ''}@{host}{mark}{_shown_query(query)}"


def _shown_query(query: str) -> str:
    from urllib.parse import unquote

    parts = [part.partition("=") for part in query.split("&")]
    return "&".join(
        f"{name}=***" if equals and _SECRET.search(unquote(name)) else name + equals + value
        for name, equals, value in parts
    )


def sqlite_path(url: str) -> str:
    """
    Return the file of a ``sqlite:///path`` URL: three slashes and a relative path, or four and an
    absolute one.

    Raises:
        SettingsError: The URL has another form.
    """
    if not url.startswith("sqlite:///"):
        raise SettingsError(
            "write an SQLite ledger as sqlite:///relative/path or sqlite:////absolute/path, not "
            f"{shown_url(url)!r}"
        )
    return url.removeprefix("sqlite:///")
