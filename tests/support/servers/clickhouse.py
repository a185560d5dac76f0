"""ClickHouse for tests: chDB behind HTTP, in a process that can be killed. In the tests' own process it is the fixture ``chdb_client``."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

from .clickhouse_bridge import PASSWORD, READER, USER
from .ports import free_port

__all__ = ["PASSWORD", "READER", "USER", "ClickHouseBridge", "connect"]


def connect(url: str, **options: Any) -> Any:
    """A client of clickhouse-connect at *url*; *options* go before what the URL says. Without the package the test is skipped."""
    parts = urlsplit(url)
    given: dict[str, Any] = {
        "host": parts.hostname,
        "port": parts.port,
        "username": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),  # clickhouse-connect before 1.12 takes it from a URL as it stands
        "database": parts.path[1:] or None,
        "secure": parse_qs(parts.query).get("secure", ["false"])[0],
    }
    return pytest.importorskip("clickhouse_connect").get_client(**{**given, **options})


class ClickHouseBridge:
    """
    The bridge of ``clickhouse_bridge.py``, on a free port of this machine, with its data in *folder*. It runs after ``start()``.

    Its users are ``voight`` and ``reader``, who can change neither data nor settings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._kept = False

    def url(self, database: str = "default", user: str = USER, password: str = PASSWORD) -> str:
        """The URL of a database."""
        return f"clickhouse://{quote(user, safe='')}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def sql(self, statement: str, database: str = "default") -> str:
        """Run *statement*; answers its rows, one to a line, columns apart by tabs, and fails where the engine refuses."""
        headers = {"X-ClickHouse-User": USER, "X-ClickHouse-Key": PASSWORD}
        status, body = self._request("POST", f"/?database={quote(database)}", statement.encode(), headers)
        assert status == 200, body
        return body.removesuffix("\n")

    def empty_ledger(self) -> str:
        """Return the URL of a ledger without calls, always of the same one: its tables are made once, and emptied each time."""
        self.start()
        url = self.url("kept_ledger")
        if not self._kept:
            from voight_middleware.ledger import open_ledger

            open_ledger(url).close()
            self._kept = True
        else:
            full = self.sql("SELECT DISTINCT table FROM system.parts WHERE database = 'kept_ledger' AND active AND table <> 'ledger'")
            for table in full.splitlines():
                self.sql(f"TRUNCATE TABLE {table}", "kept_ledger")
        return url

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended since."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, after a crash on the data that the crash has left; no-op while it runs."""
        if self.running:
            return
        script = Path(__file__).with_name("clickhouse_bridge.py")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", script, str(self.port), self.folder / "data"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self.running, self.log.read_text(errors="replace")[-5000:]
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-5000:]
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in good order."""
        if self.running:
            assert self._process is not None
            self._process.terminate()
            self._process.communicate(timeout=60)

    def kill(self) -> None:
        """``kill -9``."""
        if self.running:
            assert self._process is not None
            self._process.kill()
            self._process.communicate()

    def _answers(self) -> bool:
        try:
            return self._request("GET", "/ping", b"", {})[0] == 200
        except OSError:
            return False

    def _request(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=100)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()
