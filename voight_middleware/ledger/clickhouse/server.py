"""A ClickHouse server: its URL, the connection, and explanations of its errors."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from urllib3.exceptions import HTTPError

from voight_middleware.ledger.base import LedgerError

CONNECT_SECONDS = 5
ANSWER_SECONDS = 120
"""How long to wait for a connection and for a response."""
DATABASE = "voight"
"""The database if the URL names none."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,127}")
_OPTIONS = ("cluster", "secure", "verify", "ca_cert", "ttl_days")


@dataclass(frozen=True, slots=True)
class Server:
    """
    A parsed URL:
    ``clickhouse://user:password@host:8123/database?secure=1&cluster=main&ttl_days=400``.
    """

    host: str
    port: int | None = None
    user: str | None = None
    password: str = ""
    database: str = DATABASE
    cluster: str | None = None
    """Create replicated tables on every server of this cluster."""
    ttl_days: int | None = None
    """
    After how many days the server itself deletes calls. 0 means never, None leaves the current
    value.
    """
    secure: bool = False
    verify: bool = True
    ca_cert: str | None = None

    @property
    def name(self) -> str:
        """The ledger in messages, without a password."""
        return f"clickhouse://{self.host}{f':{self.port}' if self.port else ''}/{self.database}"

    @property
    def quoted(self) -> str:
        """The database in SQL."""
        return f"`{self.database}`"

    @property
    def on_cluster(self) -> str:
        """The clause that runs a statement on the whole cluster."""
        return f"ON CLUSTER `{self.cluster}`" if self.cluster else ""


def read_url(url: str, environ: Mapping[str, str] = os.environ) -> Server:
    """
    Parse a URL. A missing password comes from ``CLICKHOUSE_PASSWORD``, as in ``clickhouse-client``.

    Raises:
        LedgerError: The URL is invalid. The message contains no password.
    """
    try:
        parts = urlsplit(url)
        port, options = parts.port, dict(parse_qsl(parts.query, keep_blank_values=True))
    except ValueError:  # its text may contain the password
        raise LedgerError(
            "the URL of the ledger cannot be read: write "
            "clickhouse://user:password@host:8123/voight"
        ) from None
    if unknown := [name for name in options if name not in _OPTIONS]:
        raise LedgerError(
            f"the URL of the ledger has an unknown option {unknown[0]!r}: use {', '.join(_OPTIONS)}"
        )
    database, cluster = unquote(parts.path.strip("/")) or DATABASE, options.get("cluster") or None
    for what, name in (("database", database), ("cluster", cluster)):
        if name is not None and not _NAME.fullmatch(name):
            # A slash in a password makes the rest of it the database.
            shown = "such a name" if "@" in name else repr(name)
            raise LedgerError(
                f"the {what} of the ledger cannot be named {shown}: use letters, digits, '_' and "
                "'-'"
            )
    ttl = options.get("ttl_days")
    if ttl is not None and not (ttl.isdecimal() and len(ttl) <= 5 and int(ttl) <= 36_500):
        raise LedgerError(
            "ttl_days in the URL of the ledger must be a number of days, or 0 for never, not "
            f"{ttl[:20]!r}"
        )
    return Server(
        host=parts.hostname or "localhost",
        port=port,
        user=unquote(parts.username) if parts.username else environ.get("CLICKHOUSE_USER"),
        password=unquote(parts.password)
        if parts.password is not None
        else environ.get("CLICKHOUSE_PASSWORD", ""),
        database=database,
        cluster=cluster,
        ttl_days=None if ttl is None else int(ttl),
        secure=_flag(options, "secure", default=port in (443, 8443)),
        verify=_flag(options, "verify", default=True),
        ca_cert=options.get("ca_cert") or None,
    )


def _flag(options: Mapping[str, str], name: str, *, default: bool) -> bool:
    value = options.get(name)
    if value is None:
        return default
    if value.lower() in ("1", "true", "yes", "on"):
        return True
    if value.lower() in ("0", "false", "no", "off"):
        return False
    raise LedgerError(f"{name} in the URL of the ledger must be 1 or 0, not {value!r}")


def connect(server: Server) -> Client:
    """
    Return a client of *server*. It does not use the database yet, which may not exist.

    Raises:
        LedgerError: The server does not respond, or it rejects the user.
    """
    with explained(server):
        return clickhouse_connect.get_client(
            host=server.host,
            port=server.port or (8443 if server.secure else 8123),
            username=server.user,
            password=server.password,
            interface="https" if server.secure else "http",
            verify=server.verify,
            ca_cert=server.ca_cert,
            connect_timeout=CONNECT_SECONDS,
            send_receive_timeout=ANSWER_SECONDS,
            # A session allows one statement at a time, and is lost with its server.
            autogenerate_session_id=False,
            client_name="voight-middleware",
        )


_ADVICE = {
    81: "the database does not exist: create it, or grant the user the right to",
    60: (
        "one of its tables is missing: open it for writing once, with the application or `voight "
        "ingest`"
    ),
    701: (
        "the cluster does not exist: check `cluster` in the URL of the ledger against "
        "system.clusters"
    ),
    164: "this user may only read: use one that may write",
    497: "this user lacks a right: grant it, as the deployment documentation describes",
    516: "the user or the password is wrong: check the URL of the ledger, or CLICKHOUSE_PASSWORD",
    192: "the user or the password is wrong: check the URL of the ledger",
    193: "the user or the password is wrong: check the URL of the ledger",
    243: "its disk is full: free some space; calls wait in the journal",
    241: "it has too little memory for this: use a shorter time range, or raise max_memory_usage",
    252: "it has too many parts and needs time to merge them: calls wait in the journal",
    159: "it took too long: use a shorter time range, or raise max_execution_time",
    242: "the table is read-only on this replica: check its connection to ClickHouse Keeper",
    999: "it lost its connection to ClickHouse Keeper: calls wait in the journal",
}
_CODE = re.compile(r"\bCode: (\d+)")
_NOISE = re.compile(
    r"Code: \d+\. |DB::Exception: |Received ClickHouse exception, code: \d+, server response: |\(version .*|\([A-Z_]{5,}\).*|\(for url .*|"
    r", Stack trace.*",
    re.DOTALL,
)
_CAUSE = re.compile(r"Caused by \w+\(['\"]?(?:<.*?>|\w+\(.*?\)): (.*?)['\"]?\)\)", re.DOTALL)
"""
The cause of a failed connection. The driver's message around it contains the whole address of the
request.
"""
_READING = re.compile(r"Setting \w+ is readonly")
_asking = ContextVar("voight_asking_clickhouse", default=False)


def _unsaid(_: logging.LogRecord) -> bool:
    """
    Mute the driver's log of failed connections, one for each attempt. We log the error it raises
    once.
    """
    return not _asking.get()


logging.getLogger("clickhouse_connect.driver._backend.http_sync").addFilter(_unsaid)


@contextmanager
def explained(server: Server) -> Generator[None]:
    """
    Convert the driver's errors to ``LedgerError``: one line, with advice and without a password.
    """
    token = _asking.set(True)
    try:
        yield
    except ClickHouseError as error:
        text = str(error)
        code = 164 if _READING.search(text) else code_of(error)
        if code in _ADVICE:
            message = f"the ledger {server.name} refused ({code}): {_ADVICE[code]}"
        elif code is None:
            message = (
                f"the ledger {server.name} does not respond ({_short(text, server)}): check that "
                "the server runs and can be reached"
            )
        else:
            message = f"the ledger {server.name} failed ({code}): {_short(text, server)}"
        raise LedgerError(message) from error
    except (OSError, HTTPError) as error:  # network errors that the driver passes on
        raise LedgerError(
            f"the ledger {server.name} does not respond ({_short(str(error), server)}): check the "
            "server"
        ) from error
    finally:
        _asking.reset(token)


def code_of(error: BaseException) -> int | None:
    """Return the number of a server error, None for other errors."""
    code: Any = getattr(error, "code", None)
    if isinstance(code, int):
        return code
    match = _CODE.search(str(error))
    return int(match[1]) if match else None


def _short(text: str, server: Server) -> str:
    if cause := _CAUSE.search(text):
        text = cause[1]
    text = " ".join(_NOISE.sub("", text).split())
    if server.password:
        text = text.replace(server.password, "…").replace(quote(server.password, safe=""), "…")
    return text[:300]
