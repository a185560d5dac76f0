"""
A small HTTP server in front of chDB, the engine of ClickHouse as a library: what a ledger says over the wire is run by the real engine.

    python clickhouse_bridge.py PORT FOLDER

It is the double of the HTTP layer alone. What it does as the server does: the statement from ``query=`` and body together, chunked,
compressed and multipart bodies, ``database``, ``param_*``, settings for one statement, users and a read-only one, the codes, statuses and
texts of errors, written rows as the engine counts them. Every statement has a session of the engine to itself, which only statements of
the same database and settings had before it; several run at once.

What it does not imitate: streams (an answer is whole or an error, so nothing fails half-way through), compressed answers, bodies in
other compressions than lz4 and gzip, sessions (``session_id`` locks nothing and keeps nothing), quotas, ``query_id`` and KILL, progress,
``client_protocol_version`` (LowCardinality goes out as what it contains), the columns of an empty answer (Native without rows is
empty), external data, TLS, users that SQL makes, the server's limits of memory and disk, ON CLUSTER, replicas. A ``kill -9`` is one of
the engine with all that it holds; the real server's own start and recovery are more than this.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from urllib.parse import parse_qsl, urlsplit

USER, READER = "voight", "reader"
PASSWORD = "p@ss:w/rd %?#"
"""Of both users. In a URL none of its signs may stand as it is."""

TRANSPORT = {
    *("buffer_size", "client_protocol_version", "compress", "database", "decompress", "default_format", "enable_http_compression"),
    *("http_headers_progress_interval_ms", "password", "query", "query_id", "quota_key", "role", "send_progress_in_http_headers"),
    *("session_check", "session_id", "session_timeout", "user", "wait_end_of_query"),
}
"""Parameters that are for the HTTP layer, which this is; the others are settings of the engine."""

LONGEST_LINE, LONGEST_VALUE = 2**20, 2**17 + 1
"""In bytes, of a request and of a parameter: ``http_max_uri_size`` and ``http_max_field_value_size`` as the server has them by default."""

QUICK = "SET max_threads = 1, compile_expressions = 0, compile_aggregate_expressions = 0, compile_sort_description = 0"
"""Several threads, and machine code made for a question, only cost time where there are few rows. The deep run does as the server does."""

MOST_KEPT = 200
"""How many kinds of sessions are kept: each test has a database of its own."""

STATUSES = {60: 404, 62: 400, 81: 404, 115: 404, 516: 403}
"""Of errors that have another than 500."""


class Refused(Exception):
    """What the engine, or the HTTP layer in its stead, does not do; the text begins with the code."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(LONGEST_LINE)  # http.server's own allows 64 KiB
        if self.raw_requestline and self.parse_request():
            getattr(self, f"do_{self.command}")()
        else:
            self.close_connection = True

    def do_GET(self) -> None:
        if self.path == "/ping":
            self._answer(200, b"Ok.\n")
        else:
            self._statement(readonly=2)

    def do_POST(self) -> None:
        self._statement(readonly=0)

    def _statement(self, readonly: int) -> None:
        body = self._body()  # in any case: what is left unread would be taken for the next request
        try:
            body = _expand(body, self.headers.get("Content-Encoding"))
            parameters = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True, encoding="utf-8", errors="surrogateescape"))
            readonly = 1 if self._user(parameters) == READER else readonly
            if self.headers.get_content_type() == "multipart/form-data":
                head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                for part in message_from_bytes(head + body).get_payload():
                    parameters[part.get_param("name", header="content-disposition")] = part.get_payload(decode=True).decode()
                body = b""
            if any(len(value.encode(errors="surrogateescape")) > LONGEST_VALUE for value in parameters.values()):
                raise Refused("Code: 1000. DB::Exception: HTML Form Exception: Field value too long. (POCO_EXCEPTION)")
            text = parameters.get("query", "").encode(errors="surrogateescape")
            statement = text + b"\n" + body if text and body else text or body
            answer, headers = run(statement, parameters, readonly)
        except Exception as error:
            text = re.sub(r"^.*?(?=Code: \d+\. )", "", str(error), flags=re.DOTALL)
            if not text.startswith("Code: "):
                text = f"Code: 1001. DB::Exception: {text}. (STD_EXCEPTION)"
            code = int(text[6:].partition(".")[0])
            message = f"{text} (version {VERSION} (bridge))\n".encode()
            self._answer(STATUSES.get(code, 500), message, {"X-ClickHouse-Exception-Code": str(code)})
        else:
            self._answer(200, answer, headers)

    def _user(self, parameters: dict[str, str]) -> str:
        given = self.headers.get("Authorization", "")
        if given.startswith("Basic "):
            user, _, password = b64decode(given[6:]).decode().partition(":")
        else:
            user = self.headers.get("X-ClickHouse-User") or parameters.get("user") or "default"
            password = self.headers.get("X-ClickHouse-Key") or parameters.get("password") or ""
        if user not in (USER, READER) or password != PASSWORD:
            reason = "Authentication failed: password is incorrect, or there is no user with such name. (AUTHENTICATION_FAILED)"
            raise Refused(f"Code: 516. DB::Exception: {user}: {reason}")
        return user

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):  # the line is empty where the sender died: ValueError, and nothing is run
                chunks.append(self._read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self._read(int(self.headers.get("Content-Length", 0)))

    def _read(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionResetError("half a body")
        return data

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "X-ClickHouse-Server-Display-Name": "bridge", "X-ClickHouse-Timezone": ZONE}.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")  # clickhouse-connect 0.8 does not read another
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        pass


def run(statement: bytes, parameters: dict[str, str], readonly: int) -> tuple[bytes, dict[str, str]]:
    """Run one statement in a session that has it to itself; answers its result and the headers that tell of it."""
    bound = {name.removeprefix("param_"): value for name, value in parameters.items() if name.startswith("param_")}
    settings = {name: value for name, value in parameters.items() if name not in TRANSPORT and not name.startswith("param_")}
    with _session(parameters.get("database", ""), readonly, settings, keep=not bound and not _LASTING.match(statement)) as session:
        named = re.search(rb"\bFORMAT\s+(\w+)(\s+SETTINGS\s[^;]+)?\s*;?\s*$", statement, re.IGNORECASE)
        # The line of names tells an answer without rows from no answer; it does not go out.
        with _data_apart(statement) as whole:
            result = session.query(whole, "TabSeparatedWithNames", params=bound)
        answer = result.bytes() or b""
        counts = {
            "read_rows": result.rows_read(),
            "read_bytes": result.bytes_read(),
            "written_rows": result.rows_written(),
            "written_bytes": result.bytes_written(),
            "elapsed_ns": int(result.elapsed() * 1e9),
        }
    headers = {"X-ClickHouse-Summary": json.dumps({name: str(count) for name, count in counts.items()})}
    if answer:
        headers["X-ClickHouse-Format"] = named[1].decode() if named else "TabSeparated"
    return answer if named else answer.partition(b"\n")[2], headers


_free: dict[tuple[Any, ...], list[Any]] = {}
"""Sessions that no statement has now, by database and settings: to open one for each statement costs as much as the statement."""
_LASTING = re.compile(rb"\s*(SET|USE|CREATE\s+TEMPORARY)\b", re.IGNORECASE)
"""Statements that leave something in their session."""


@contextmanager
def _session(database: str, readonly: int, settings: dict[str, str], *, keep: bool) -> Iterator[Any]:
    """A session with these settings; the next statement has it if this one goes well and leaves nothing in it."""
    key = database, readonly, *sorted(settings.items())
    free = _free.setdefault(key, [])
    session = free.pop() if free else _new_session(database, readonly, settings)
    try:
        yield session
    except BaseException:
        session.close()
        raise
    if keep:
        free.append(session)
    else:
        session.close()
    while len(_free) > MOST_KEPT:
        for one in _free.pop(next(iter(_free)), []):
            one.close()


def _new_session(database: str, readonly: int, settings: dict[str, str]) -> Any:
    import chdb

    session = chdb.connect(FOLDER)
    try:
        if database:
            session.query("USE `" + database.replace("\\", "\\\\").replace("`", "\\`") + "`")
        if not os.environ.get("VOIGHT_TEST_DEEP"):
            session.query(QUICK)
        if readonly:
            session.query(f"SET readonly={readonly}")
        for name, value in settings.items():
            session.query(f"SET {name} = '" + value.replace("\\", "\\\\").replace("'", "\\'") + "'")
    except BaseException:
        session.close()
        raise
    return session


@contextmanager
def _data_apart(statement: bytes) -> Iterator[bytes]:
    """
    The statement with the data of an INSERT … FORMAT … in a file.

    Where data stands behind the statement the engine takes it for more text, and cuts binary data short.
    chdb 4.4: ``send_insert`` is no way either, as it reports rows as written that the engine has refused.
    """
    insert = re.match(rb"(\s*INSERT\s+INTO\s.*?)(\sSETTINGS\s.*?)?(\sFORMAT\s+\w+)\s*?\n", statement, re.IGNORECASE | re.DOTALL)
    if insert is None:
        yield statement
        return
    with NamedTemporaryFile(dir=Path(FOLDER).parent) as file:
        file.write(statement[insert.end() :])
        file.flush()
        yield b"%s FROM INFILE '%s'%s%s" % (insert[1], file.name.encode(), insert[2] or b"", insert[3])


def _expand(body: bytes, encoding: str | None) -> bytes:
    if encoding == "lz4":
        import lz4.frame

        return bytes(lz4.frame.decompress(body))
    if encoding not in (None, "gzip"):
        raise Refused(f"Code: 48. DB::Exception: The bridge does not expand {encoding}. (NOT_IMPLEMENTED)")
    return gzip.decompress(body) if encoding else body


class Server(ThreadingHTTPServer):
    """Serves every connection in a thread, and is silent about those that break."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, ValueError)):
            super().handle_error(request, client_address)


if __name__ == "__main__":
    import chdb

    FOLDER = sys.argv[2]
    engine = chdb.connect(FOLDER)  # is open for as long as this process lives: sessions come and go on it
    VERSION, ZONE = engine.query("SELECT version(), timezone()", "TabSeparated").bytes().decode().split()
    server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    # It ends with whoever has started it, as that holds the other end of its standard input.
    threading.Thread(target=lambda: (sys.stdin.read(), server.shutdown()), daemon=True).start()
    server.serve_forever(poll_interval=0.05)
    server.server_close()
    engine.close()
    os._exit(0)  # threads of the engine would keep it
