"""The statements that a ClickHouse ledger sends: questions, new rows and changes."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from clickhouse_connect.driver.client import Client

from voight_middleware.ledger.base import LedgerError
from voight_middleware.ledger.clickhouse.changes import Change
from voight_middleware.ledger.clickhouse.dialect import bound
from voight_middleware.ledger.clickhouse.schema import TABLES, create_table
from voight_middleware.ledger.clickhouse.server import Server, explained

_IDS = 2_000
"""How many ids are looked up at once."""
_LONG = {"max_query_size": 64 * 1024 * 1024}
_PATCHES_SINCE = (25, 8)
"""The version of the engine from which on an ``UPDATE`` that writes patches is no experiment."""
_PATCH = {"update_parallel_mode": "auto"}
"""Changes that depend on each other are made one after the other."""
_INSERT = {"async_insert": 0, "max_partitions_per_insert_block": 0, "insert_deduplicate": 0}
"""
An insert is done when it is answered, and over as many months as it has. The engine is not asked to pass over what it was given
before: it would do so with calls that have been deleted since.
"""


class Database:
    """
    The database of a ledger. Everything here raises ``LedgerError`` where the engine fails.

    Args:
        client: A connection to the server.
        server: Which one it is, and its database.
    """

    def __init__(self, client: Client, server: Server) -> None:
        self.client = client
        self.server = server
        self.name = server.quoted
        self.readonly = False
        """Whether the user may only read, and so not change a setting either."""
        self.patched = False
        """Whether a change is kept beside the rows until they are merged, instead of writing whole columns anew."""
        self.closed = False

    def rows(self, sql: str, values: Collection[Any] = (), **settings: Any) -> Sequence[Sequence[Any]]:
        """Ask a question, with a value for each ``?``."""
        with self._open():
            return self.client.query(bound(sql, values), settings=settings or None).result_rows

    def private(self, sql: str, values: Collection[Any] = ()) -> Sequence[Sequence[Any]]:
        """The same, of a person who wants to be forgotten: not to be found in the server's log of queries."""
        return self.rows(sql, values, **({} if self.readonly else {"log_queries": 0}))

    def about(self, call_ids: Collection[str], sql: str, suffix: str = "") -> Iterator[Sequence[Any]]:
        """The rows of a question about these calls; *sql* ends with WHERE."""
        ids = list(dict.fromkeys(call_ids))
        for start in range(0, len(ids), _IDS):
            batch = ids[start : start + _IDS]
            yield from self.rows(f"{sql} call_id IN ({', '.join('?' * len(batch))}) {suffix}", batch)

    def run(self, sql: str, **settings: Any) -> None:
        """Have something done."""
        with self._open():
            self.client.command(sql, settings=settings or None)

    def add(self, table: str, columns: Sequence[str], lines: Sequence[bytes]) -> None:
        """Add rows, each a line of ``JSONCompactEachRow``; answered when they are there."""
        if lines:
            with self._open():
                self.client.raw_insert(
                    f"{self.name}.{table}", columns, b"\n".join(lines), settings=_INSERT, fmt="JSONCompactEachRow", compression=None
                )

    def change(self, changes: Iterable[Change]) -> None:
        """
        Change calls; each change is done when it is answered.

        Of a million calls in a part, a column written anew for one of them takes a second, and a patch a hundredth of that.
        """
        for change in changes:
            if self.patched:
                self.run(f"UPDATE {self.name}.calls SET {change.sql}", **_LONG, **_PATCH)
            else:
                self.rewrite(change)

    def rewrite(self, change: Change) -> None:
        """Change calls, and leave nothing of what was there in the parts of the table, below patches either."""
        if self.patched:
            self.change([change])
            self.alter("calls", "APPLY PATCHES")
        else:
            self.alter("calls", f"UPDATE {change.sql}")

    def alter(self, table: str, what: str) -> None:
        """Have rows changed or deleted, and wait for it. Other replicas of a cluster do the same by themselves."""
        self.run(f"ALTER TABLE {self.name}.{table} {what}", mutations_sync=1, **_LONG)

    @contextmanager
    def _open(self) -> Generator[None]:
        if self.closed:
            raise LedgerError(f"the ledger {self.server.name} has been closed: open it again")
        with explained(self.server):
            yield

    def tables(self) -> set[str]:
        """The tables that are there."""
        return {name for (name,) in self.rows("SELECT name FROM system.tables WHERE database = ?", [self.server.database])}

    def create(self) -> None:
        """Make the database and what is missing in it; other processes may be doing the same."""
        cluster = self.server.on_cluster
        patches = not cluster and self._version() >= _PATCHES_SINCE
        if not self.rows("SELECT 1 FROM system.databases WHERE name = ?", [self.server.database]):
            self.run(f"CREATE DATABASE IF NOT EXISTS {self.name} {cluster}")
        for table in TABLES:
            self.run(create_table(table, self.name, cluster, patches=patches))

    def look_at(self) -> None:
        """Find out how calls can be changed here."""
        rows = self.rows("SELECT engine_full FROM system.tables WHERE database = ? AND name = 'calls'", [self.server.database])
        self.patched = bool(rows) and "enable_block_number_column = 1" in rows[0][0]

    def _version(self) -> tuple[int, ...]:
        return tuple(map(int, str(self.rows("SELECT version()")[0][0]).split(".")[:2]))
