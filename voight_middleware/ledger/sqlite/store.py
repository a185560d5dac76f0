"""The SQLite ledger: one file, no server, many reading processes and one writer."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import tzinfo
from pathlib import Path
from typing import Any

import msgspec

from voight_middleware.ledger.base import (
    MIN_ID_LENGTH,
    Expired,
    LedgerError,
    PersonalData,
    PriceVersion,
    Progress,
    Spend,
    Where,
    Window,
)
from voight_middleware.ledger.erasure import MIN_SEARCHED_LENGTH
from voight_middleware.ledger.groups import SqlGroups
from voight_middleware.ledger.query import Query, Sql
from voight_middleware.ledger.rollups import ROLLUPS, month_of
from voight_middleware.ledger.rows import SELECTED, from_row, only_match, within_range
from voight_middleware.ledger.sqlite import erasure, triggers
from voight_middleware.ledger.sqlite.connection import (
    checkpoint,
    connect,
    explained,
    file_at,
    prepare,
    transaction,
)
from voight_middleware.ledger.sqlite.dialect import DIALECT
from voight_middleware.ledger.sqlite.intake import KnownCalls
from voight_middleware.ledger.sqlite.packed import call_key, key_ranges
from voight_middleware.ledger.sqlite.schema import (
    CALLS,
    CALLS_AT_ORIGINAL_PRICES,
    SELECT,
    SELECT_FORMER,
    SELECT_FORMER_OF_MANY,
    SELECT_PRICE,
    former_price,
    read_values,
)
from voight_middleware.ledger.sqlite.writer import Writer, submissions
from voight_middleware.records.call import Call, LateAttribution, Record, Submission

_FAR = 253_402_300_799_000_000
"""The last second of the year 9999, in microseconds."""

_decode_submission = msgspec.json.Decoder(Submission).decode


class SQLiteLedger:
    """
    Calls in one SQLite file. Use it from one thread at a time, in the process that opened it.

    Args:
        path: The file. With *create*, missing folders and the file are created for this user only.
        create: False for reports: a missing ledger is an error.

    Raises:
        ForeignLedger: The file is not a ledger.
        LedgerError: The file cannot be opened, is damaged, was written by a newer version, or is
            missing and *create* is False.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"
        self._db = connect(path, create)
        self._writer = Writer(self._db)
        try:
            with explained(path):
                self.schema_version = prepare(self._db, path, create)
            self._file = file_at(path)
        except BaseException:
            self._db.close()
            raise

    def info(self) -> list[tuple[str, str]]:
        return [
            ("engine", f"SQLite {sqlite3.sqlite_version}"),
            ("schema", f"version {self.schema_version}"),
        ]

    def insert(self, records: Sequence[Record], progress: Progress | None = None) -> int:
        calls = [record for record in records if isinstance(record, Call)]
        others = [record for record in records if not isinstance(record, Call)]
        self._check_file()
        with explained(self.path):
            try:
                return self._insert(calls, others, progress)
            except (OverflowError, sqlite3.IntegrityError):
                calls = [within_range(call) for call in calls]
            try:
                return self._insert(calls, others, progress)
            except (OverflowError, sqlite3.IntegrityError) as error:
                raise ValueError(f"a call cannot be stored: {error}") from error

    def _insert(
        self,
        calls: Sequence[Call],
        others: Sequence[LateAttribution | Submission],
        progress: Progress | None,
    ) -> int:
        self._writer.prepare()
        try:
            with self._transaction():
                return self._writer.insert(calls, others, progress)
        except KnownCalls:
            with self._transaction():
                return self._writer.insert(calls, others, progress, careful=True)

    def submissions(self, jobs: Collection[str]) -> dict[str, Submission]:
        with explained(self.path):
            return submissions(self._db, jobs)

    def progress(self, segment: str) -> int:
        with explained(self.path):
            row = self._db.execute(
                "SELECT offset FROM segments WHERE name = ?", (segment,)
            ).fetchone()
        return row[0] if row else 0

    def clear_progress(self, segment: str) -> None:
        with explained(self.path):
            self._db.execute("DELETE FROM segments WHERE name = ?", (segment,))

    def spend(
        self,
        by: Sequence[str] = (),
        where: Where | None = None,
        window: Window = Window(),
        limit: int | None = None,
        *,
        original_prices: bool = False,
        zone: tzinfo | None = None,
    ) -> list[Spend]:
        groups = self.groups(by, where, window, original_prices=original_prices, zone=zone)
        return groups.spend(limit)

    def groups(
        self,
        by: Sequence[str] = (),
        where: Where | None = None,
        window: Window = Window(),
        *,
        original_prices: bool = False,
        zone: tzinfo | None = None,
        known: tuple[int, int] | None = None,
    ) -> SqlGroups:
        query = self._query(zone, known)
        return SqlGroups(
            lambda ask: self._answer(ask(query)),
            self.snapshot,
            query,
            DIALECT,
            by=tuple(dict.fromkeys(by)),
            where=where or {},
            window=window,
            original_prices=original_prices,
        )

    @contextmanager
    def snapshot(self) -> Generator[None]:
        with explained(self.path):
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                if self._db.in_transaction:
                    self._db.execute("COMMIT")

    def calls(
        self,
        where: Where | None = None,
        window: Window = Window(),
        limit: int | None = None,
        *,
        after: tuple[int, str] | None = None,
        original_prices: bool = False,
        zone: tzinfo | None = None,
    ) -> Iterator[Call]:
        with explained(self.path):
            # A page begins where the last one ended, not at the beginning of the window.
            if after is not None:
                window = Window(
                    after[0] if window.since is None else max(after[0], window.since), window.until
                )
            condition, values = self._query(zone).condition(where or {}, window)
            if after is not None:
                condition += " AND (occurred_at, call_id) > (?, ?)"
                values += after
            source = CALLS_AT_ORIGINAL_PRICES if original_prices else CALLS
            for row in self._db.execute(
                f"{SELECT} FROM {source} {SELECT_PRICE} WHERE {condition} ORDER BY occurred_at, "
                "call_id LIMIT ?",
                (*values, -1 if limit is None else limit),
            ):
                yield from_row(row)

    def call(self, call_id: str) -> Call | None:
        query = f"{SELECT} FROM {CALLS} {SELECT_PRICE} WHERE"
        with explained(self.path):
            rows = self._db.execute(f"{query} call_key = ?", (call_key(call_id),)).fetchall()
            if not rows and len(call_id) >= MIN_ID_LENGTH:
                for first, last in key_ranges(call_id):
                    rows += self._db.execute(
                        f"{query} call_key BETWEEN ? AND ? ORDER BY call_key LIMIT 2",
                        (first, last),
                    ).fetchall()
                rows.sort(key=lambda row: row[SELECTED.index("call_id")])
        return only_match([from_row(row) for row in rows], call_id)

    def reprice(self, changes: Sequence[tuple[Call, Call]]) -> int:
        now = time.time_ns() // 1000
        changes = [(before, within_range(after)) for before, after in changes]
        changed = [
            (before, after)
            for before, after in changes
            if read_values(before)[2:] != read_values(after)[2:]
        ]
        if not changed:
            return 0
        self._check_file()
        with explained(self.path), self._transaction():
            return self._writer.reprice(changed, now)

    def price_history(self, call_id: str) -> list[PriceVersion]:
        with explained(self.path):
            return [former_price(row) for row in self._db.execute(SELECT_FORMER, (call_id,))]

    def price_histories(self, call_ids: Collection[str]) -> dict[str, list[PriceVersion]]:
        histories: dict[str, list[PriceVersion]] = {}
        with explained(self.path):
            for call_id, *row in self._db.execute(
                SELECT_FORMER_OF_MANY, (json.dumps(list(call_ids)),)
            ):
                histories.setdefault(call_id, []).append(former_price(tuple(row)))
        return histories

    def jobs(self, after: str = "", limit: int = 1_000) -> list[Submission]:
        with explained(self.path):
            rows = self._db.execute(
                "SELECT submission FROM jobs WHERE job > ? ORDER BY job LIMIT ?", (after, limit)
            )
            return [_decode_submission(text) for (text,) in rows]

    def import_calls(
        self,
        calls: Sequence[Call],
        former: Mapping[str, Sequence[PriceVersion]] = {},
        *,
        replace: bool = False,
    ) -> int:
        self._check_file()
        with explained(self.path):
            self._writer.prepare()
            try:
                with self._transaction():
                    return self._writer.import_calls(calls, former, replace)
            except (OverflowError, sqlite3.IntegrityError) as error:
                raise ValueError(f"a call cannot be stored: {error}") from error

    def time_range(
        self, where: Where | None = None, window: Window = Window()
    ) -> tuple[int, int] | None:
        if where or window != Window():
            sql = self._query(None).time_range(where or {}, window)
            ((count, oldest, newest),) = self._answer(sql)
            return (oldest, newest) if count else None
        with explained(self.path):
            oldest, newest = self._db.execute(
                "SELECT (SELECT MIN(occurred_at) FROM packed_calls), "
                "(SELECT MAX(occurred_at) FROM packed_calls)"
            ).fetchone()
        return None if oldest is None else (oldest, newest)

    def personal_data(self, names: Collection[str]) -> PersonalData:
        with explained(self.path):
            return erasure.personal_data(self._db, names)

    def erase(self, names: Collection[str], token: str) -> PersonalData:
        self._check_file()
        with explained(self.path), self._transaction():
            self._writer.forget()
            return erasure.erase(self._db, names, token)

    def purge(self, names: Collection[str]) -> list[str]:
        """
        Rewrite the file if one of *names* is still in it, or too short to search for. That needs
        the file's size in free space.
        """
        self._check_file()
        with explained(self.path):
            checkpoint(self._db, self.path)
            short = any(len(name) < MIN_SEARCHED_LENGTH for name in names)
            if short or erasure.remains(self._files(), names):
                self._db.execute("VACUUM")
                checkpoint(self._db, self.path)
        return [str(path) for path in erasure.remains(self._files(), names)]

    def expired(self, until: int) -> Expired:
        with explained(self.path):
            (calls,) = self._db.execute(
                "SELECT COUNT(*) FROM packed_calls WHERE occurred_at < ?", (until,)
            ).fetchone()
            (former,) = self._db.execute(
                "SELECT COUNT(*) FROM former_costs WHERE call_id IN (SELECT call_id FROM calls "
                "WHERE occurred_at < ?)",
                (until,),
            ).fetchone()
            (jobs,) = self._db.execute(
                "SELECT COUNT(*) FROM jobs WHERE submitted_at < ?", (until,)
            ).fetchone()
        return Expired(calls, former, jobs)

    def expire(self, until: int, limit: int) -> Expired:
        self._check_file()
        with explained(self.path), self._transaction():
            oldest = "FROM calls WHERE occurred_at < ? ORDER BY occurred_at, call_key LIMIT ?"
            former = self._db.execute(
                f"DELETE FROM former_costs WHERE call_id IN (SELECT call_id {oldest})",
                (until, limit),
            ).rowcount
            # SQLite does not count what a trigger does instead
            (calls,) = self._db.execute(
                f"SELECT COUNT(*) FROM (SELECT 1 {oldest})", (until, limit)
            ).fetchone()
            self._db.execute(
                f"DELETE FROM calls WHERE call_key IN (SELECT call_key {oldest})", (until, limit)
            )
            jobs = (
                self._db.execute("DELETE FROM jobs WHERE submitted_at < ?", (until,)).rowcount
                if calls < limit
                else 0
            )
        return Expired(calls, former, jobs)

    def _files(self) -> list[Path]:
        return [self.path, self.path.with_name(f"{self.path.name}-wal")]

    def rebuild(self) -> Iterator[str]:
        """Rebuild the rollups, a month in each transaction."""
        self._check_file()
        done = end = 0
        with explained(self.path):
            while (
                first := self._db.execute(
                    "SELECT MIN(occurred_at) FROM packed_calls WHERE occurred_at >= ?", (end,)
                ).fetchone()[0]
            ) is not None:
                month, begin, end = month_of(first)
                with self._transaction():
                    for rollup in ROLLUPS:  # also drops rows of months that have no calls any more
                        self._db.execute(*triggers.empty(rollup, done, end))
                        self._db.execute(
                            triggers.fill(rollup, "occurred_at >= ? AND occurred_at < ?"),
                            (begin, end),
                        )
                done = end
                yield month
            with self._transaction():
                for rollup in ROLLUPS:
                    self._db.execute(*triggers.empty(rollup, done, _FAR))

    def close(self) -> None:
        self._db.close()

    def _check_file(self) -> None:
        # SQLite would keep writing to the file that was moved or deleted
        if file_at(self.path) != self._file:
            raise LedgerError(
                f"the ledger {self.path} was moved or deleted while in use: the next attempt "
                "creates a new one"
            )

    def _transaction(self) -> AbstractContextManager[None]:
        return transaction(self._db, self._writer.forget)

    def _query(self, zone: tzinfo | None, known: tuple[int, int] | None = None) -> Query:
        with explained(self.path):
            keys = [key for (key,) in self._db.execute("SELECT key FROM extra_keys")]
        return Query(DIALECT, keys, zone, self.time_range(), known)

    def _answer(self, sql: Sql) -> list[Any]:
        with explained(self.path):
            return self._db.execute(*sql).fetchall()
