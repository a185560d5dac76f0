"""The statements of a ClickHouse ledger: queries, inserts and changes."""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from clickhouse_connect.driver.client import Client

from voight_middleware.ledger.base import LedgerError
from voight_middleware.ledger.clickhouse.changes import Change
from voight_middleware.ledger.clickhouse.closed_days import ClosedDays
from voight_middleware.ledger.clickhouse.dialect import bound
from voight_middleware.ledger.clickhouse.schema import TABLES, create_table
from voight_middleware.ledger.clickhouse.server import Server, explained

_TTL = re.compile(r"TTL .*toIntervalDay\((\d+)\)")
_IDS = 2_000
"""How many ids to look up at once."""
_LONG = {"max_query_size": 64 * 1024 * 1024}
_PATCHES_SINCE = (25, 8)
"""The first version in which an ``UPDATE`` with patches is stable."""
_PATCH = {"update_parallel_mode": "auto"}
"""Run dependent changes one after the other."""
_INSERT = {"async_insert": 0, "max_partitions_per_insert_block": 0, "insert_deduplicate": 0}
"""
Wait for each insert, whatever number of months it has. Don't let the engine deduplicate inserts: it
would drop calls that have been deleted since.
"""


class Database:
    """
    The database of a ledger. Every method raises ``LedgerError`` if the engine fails.

    Args:
        client: A connection to the server.
        server: The server and its database.
    """

    def __init__(self, client: Client, server: Server) -> None:
        self.client = client
        self.server = server
        self.name = server.quoted
        self.readonly = False
        """Whether the user may only read. Such a user cannot change settings either."""
        self.patched = False
        """
        Whether a change is stored as a patch until the next merge. Otherwise it rewrites whole
        columns.
        """
        self.closed = False
        self.days = ClosedDays(self)
        """The closed days. Every change of calls marks their days first."""

    def rows(
        self, sql: str, values: Collection[Any] = (), **settings: Any
    ) -> Sequence[Sequence[Any]]:
        """Run a query with a value for each ``?``."""
        with self._open():
            return self.client.query(bound(sql, values), settings=settings or None).result_rows

    def private(self, sql: str, values: Collection[Any] = ()) -> Sequence[Sequence[Any]]:
        """Run a query about a person to erase, without a trace in the server's query log."""
        return self.rows(sql, values, **({} if self.readonly else {"log_queries": 0}))

    def about(
        self, call_ids: Collection[str], sql: str, suffix: str = ""
    ) -> Iterator[Sequence[Any]]:
        """Yield the rows of a query about these calls. *sql* ends with WHERE."""
        ids = list(dict.fromkeys(call_ids))
        for start in range(0, len(ids), _IDS):
            batch = ids[start : start + _IDS]
            yield from self.rows(
                f"{sql} call_id IN ({', '.join('?' * len(batch))}) {suffix}", batch
            )

    def run(self, sql: str, **settings: Any) -> None:
        """Run a statement."""
        with self._open():
            self.client.command(sql, settings=settings or None)

    def add(self, table: str, columns: Sequence[str], lines: Sequence[bytes]) -> None:
        """Insert rows, each a line of ``JSONCompactEachRow``, and wait for it."""
        if lines:
            with self._open():
                self.client.raw_insert(
                    f"{self.name}.{table}",
                    columns,
                    b"\n".join(lines),
                    settings=_INSERT,
                    fmt="JSONCompactEachRow",
                    compression=None,
                )

    def change(self, changes: Iterable[Change]) -> None:
        """
        Change calls, and wait for each change.

        In a part with a million calls, rewriting a column for one call takes a second. A patch
        takes a hundredth of that.
        """
        for change in changes:
            if self.patched:
                self.run(f"UPDATE {self.name}.calls SET {change.sql}", **_LONG, **_PATCH)
            else:
                self.rewrite(change)

    def rewrite(self, change: Change) -> None:
        """
        Change calls, and leave none of the old values in the table's parts, not even below patches.
        """
        if self.patched:
            self.change([change])
            self.alter("calls", "APPLY PATCHES")
        else:
            self.alter("calls", f"UPDATE {change.sql}")

    def alter(self, table: str, what: str) -> None:
        """
        Change or delete rows, and wait for it. The other replicas of a cluster follow by
        themselves.
        """
        self.run(f"ALTER TABLE {self.name}.{table} {what}", mutations_sync=1, **_LONG)

    @contextmanager
    def _open(self) -> Generator[None]:
        if self.closed:
            raise LedgerError(f"the ledger {self.server.name} has been closed: open it again")
        with explained(self.server):
            yield

    def ttl(self, table: str) -> int:
        """Return after how many days the server deletes rows of *table*, 0 for never."""
        rows = self.rows(
            "SELECT engine_full FROM system.tables WHERE database = ? AND name = ?",
            [self.server.database, table],
        )
        match = _TTL.search(rows[0][0]) if rows else None
        return int(match[1]) if match else 0

    def tables(self) -> set[str]:
        """Return the existing tables."""
        return {
            name
            for (name,) in self.rows(
                "SELECT name FROM system.tables WHERE database = ?", [self.server.database]
            )
        }

    def create(self) -> None:
        """Create the database and its missing tables. Other processes may do the same."""
        cluster = self.server.on_cluster
        patches = not cluster and self._version() >= _PATCHES_SINCE
        if not self.rows("SELECT 1 FROM system.databases WHERE name = ?", [self.server.database]):
            self.run(f"CREATE DATABASE IF NOT EXISTS {self.name} {cluster}")
        for table in TABLES:
            self.run(create_table(table, self.name, cluster, patches=patches))

    def look_at(self) -> None:
        """Find out how calls can be changed here."""
        rows = self.rows(
            "SELECT engine_full FROM system.tables WHERE database = ? AND name = 'calls'",
            [self.server.database],
        )
        self.patched = bool(rows) and "enable_block_number_column = 1" in rows[0][0]

    def _version(self) -> tuple[int, ...]:
        return tuple(map(int, str(self.rows("SELECT version()")[0][0]).split(".")[:2]))
