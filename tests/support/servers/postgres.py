"""A real PostgreSQL server, started from the binaries of this machine, stopped, and killed as a crash does it."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..depth import DEEP
from .ports import free_port

USER = "voight"
PASSWORD = "p@ss:w/rd %?#"
"""Of the superuser ``voight``. In a URL none of its signs may stand as it is."""


def binaries() -> Path | None:
    """The folder of the server's binaries: where ``initdb`` of the path is, or the newest that Debian has installed beside the path."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    installed = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in installed), key=lambda folder: float(folder.parent.name), default=None)


class PostgresServer:
    """
    A server with an empty data folder on a free port of this machine. It runs after ``start()``.

    What a ledger must not lean on is set as a careless administrator would: texts sort by the rules of a language (where the
    server is of version 15 or newer), and sessions begin in a time zone without whole hours and with dates written day first.

    Args:
        folder: That of the binaries, as ``binaries()`` answers.
        fsync: Whether a commit waits for the disk. Without it the server is faster, and all the same survives ``kill()``.
    """

    def __init__(self, folder: Path, *, fsync: bool = DEEP) -> None:
        self.port = free_port()
        self.binaries = folder
        self._account: dict[str, Any] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="voight-postgres-", dir=_enterable_by_all()))
        if os.getuid() == 0:  # the server refuses to run as root
            account = _another_account()
            self._account = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        self._data = self.folder / "data"
        self.log = self.folder / "log"
        self._options = [
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            f"fsync={'on' if fsync else 'off'}",
            "timezone=Asia/Kathmandu",
            "datestyle=SQL, DMY",
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._kept: _KeptLedger | None = None
        self._initialise()

    def url(self, database: str = "postgres", user: str = USER, password: str = PASSWORD) -> str:
        """The URL of a database."""
        return f"postgresql://{quote(user, safe='')}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def psql(self, sql: str, database: str = "postgres") -> str:
        """Run *sql* as the superuser; answers the rows, one to a line, columns apart by ``|``, and fails where the server refuses."""
        address = ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-d", database]
        environ = {**os.environ, "PGPASSWORD": PASSWORD, "PGCLIENTENCODING": "UTF8"}
        return self._run("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", *address, "-c", sql, env=environ).removesuffix("\n")

    def empty_ledger(self) -> str:
        """
        Return the URL of a ledger without calls, always of the same one: its tables are made once, and emptied each time.

        That costs a fifth of making them. Sessions that a test has left open in it are ended.
        """
        self.start()
        if self._kept is None:
            self.psql("CREATE DATABASE kept_ledger TEMPLATE template0")
            self._kept = _KeptLedger(self.url("kept_ledger"))
        self._kept.empty()
        return self._kept.url

    @property
    def running(self) -> bool:
        """Whether the server has been started and has not ended since."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server, after a crash on the data that the crash has left; no-op while it runs."""
        if self.running:
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.binaries / "postgres", "-D", self._data, *(word for option in self._options for word in ("-c", option))],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._account,
            )
        deadline = time.monotonic() + 60
        while not self._ready():
            assert self.running, self.log.read_text(errors="replace")[-5000:]
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-5000:]
            time.sleep(0.01)

    def stop(self) -> None:
        """Shut the server down as its administrator does: sessions are ended, what is committed is written."""
        if self._kept is not None:
            self._kept.close()
        if self.running:
            assert self._process is not None
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)

    def kill(self) -> None:
        """``kill -9`` of the server and of all its processes at once."""
        if not self.running:
            return
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)  # it must not clean up after its children
        for child in _children(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def remove(self) -> None:
        """Stop the server and remove its data."""
        self.stop()
        shutil.rmtree(self.folder)

    def _initialise(self) -> None:
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)  # only the account of the server can enter the folder
        (version,) = re.findall(r"\(PostgreSQL\) (\d+)", self._run("initdb", "--version"))
        language = ["--locale-provider=icu", "--icu-locale=en"] if int(version) >= 15 else []
        options = ["-A", "scram-sha-256", f"--pwfile={secret}", "-U", USER, "-E", "UTF8", "--locale=C", "--no-sync", *language]
        self._run("initdb", "-D", str(self._data), *options, **self._account)

    def _ready(self) -> bool:
        """Whether it takes connections: it says so in a file, which after a crash is there from before."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            assert self._process is not None
            return len(lines) > 7 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready"
        return False

    def _run(self, binary: str, *arguments: str, **options: Any) -> str:
        command = [self.binaries / binary, *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=100, check=False, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout


class _KeptLedger:
    """A ledger that is emptied again and again."""

    def __init__(self, url: str) -> None:
        from voight_middleware.ledger import open_ledger

        self.url = url
        self._connection: Any = None
        open_ledger(url).close()

    def empty(self) -> None:
        import psycopg

        try:
            rows = self._run(_LEFT_OPEN, _TABLES)
        except psycopg.OperationalError:  # the server has been killed since
            self.close()
            rows = self._run(_LEFT_OPEN, _TABLES)
        # To truncate a small table takes far longer than to delete its rows, whose triggers must not run.
        statements = [f"{'TRUNCATE' if size > _LARGE else 'DELETE FROM'} voight.{table}" for table, size in rows]
        self._run("SET session_replication_role = replica", *statements)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _run(self, *statements: str) -> list[tuple[Any, ...]]:
        import psycopg

        if self._connection is None:
            self._connection = psycopg.connect(self.url, autocommit=True)
        for statement in statements:
            cursor = self._connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


_LEFT_OPEN = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
_TABLES = """
SELECT relname, pg_relation_size(oid) FROM pg_class
WHERE relnamespace = 'voight'::regnamespace AND relkind = 'r' AND relname <> 'schema_version'"""
_LARGE = 2**20
"""Bytes."""


def _enterable_by_all() -> str:
    """A folder for temporary files into which another account can go."""
    places = (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"))
    return str(next(place for place in places if all(folder.stat().st_mode & 0o001 for folder in (place, *place.parents))))


def _another_account() -> pwd.struct_passwd:
    names = {account.pw_name: account for account in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


def _children(parent: int) -> list[int]:
    """The processes that *parent* has started. Without ``/proc`` none: they end by themselves when they miss it."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(status.parent.name))
    return found
