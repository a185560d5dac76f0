"""A ledger on a server that can be down, silent, or refuse single calls."""

import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from voight_middleware.ledger import LedgerError, Progress
from voight_middleware.ledger.sqlite import SQLiteLedger
from voight_middleware.records.call import Call, Record


class Server:
    """A ledger on a server that can be down, silent, or refuse single calls: an SQLite ledger behind a switch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.down: str | None = None
        self.refused: set[str] = set()
        self.cut = False
        self.fail_at: int | None = None
        self.tried = 0
        self.inserts = 0
        self.opened: list[Connection] = []
        self.going = threading.Event()
        self.going.set()

    def open(self, url: str, *, create: bool = True) -> "Connection":
        self.tried += 1
        self.answer()
        self.opened.append(Connection(self))
        return self.opened[-1]

    def answer(self) -> None:
        assert self.going.wait(60)
        if self.down is not None:
            raise LedgerError(self.down)
        if self.cut:
            self.cut = False
            raise LedgerError("the connection was closed")

    def kept(self) -> list[str]:
        with closing(SQLiteLedger(self.path)) as ledger:
            return sorted(call.call_id for call in ledger.calls())


class Connection(SQLiteLedger):
    """One connection to it."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.path)
        self.server = server

    def insert(self, records: Sequence[Record], progress: Progress | None = None) -> int:
        self.server.answer()
        self.server.inserts += 1
        if self.server.inserts == self.server.fail_at:
            raise LedgerError("the server went away")
        if any(isinstance(record, Call) and record.call_id in self.server.refused for record in records):
            raise ValueError("numeric field overflow")
        return super().insert(records, progress)

    def progress(self, segment: str) -> int:
        self.server.answer()
        return super().progress(segment)
