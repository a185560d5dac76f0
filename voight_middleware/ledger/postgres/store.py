"""
The PostgreSQL ledger: its own schema in any database, written by many hosts and processes at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import tzinfo
from functools import partial
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus

from voight_middleware.config.ledger_url import shown_url
from voight_middleware.ledger.base import (
    MIN_ID_LENGTH,
    Expired,
    PersonalData,
    PriceVersion,
    Progress,
    Spend,
    Where,
    Window,
)
from voight_middleware.ledger.groups import SqlGroups
from voight_middleware.ledger.postgres import erasure, triggers
from voight_middleware.ledger.postgres.connection import (
    bound,
    connect,
    explained,
    place_of,
    row,
    run,
)
from voight_middleware.ledger.postgres.dialect import DIALECT
from voight_middleware.ledger.postgres.roles import grants
from voight_middleware.ledger.postgres.schema import (
    CALLS,
    CALLS_AT_ORIGINAL_PRICES,
    LOCK,
    SELECT,
    SELECT_FORMER,
    SELECT_PRICE,
    prepare,
)
from voight_middleware.ledger.postgres.values import former_price, has_changed, storable
from voight_middleware.ledger.postgres.writer import Writer, submissions
from voight_middleware.ledger.query import Query, Sql
from voight_middleware.ledger.rollups import ROLLUPS, month_of
from voight_middleware.ledger.rows import from_row, only_match, within_range
from voight_middleware.records.call import Call, Record, Submission

ATTEMPTS = 5
"""How often to try a transaction that the server ends because of a conflict."""
_PAGE = 2_000
_FAR = 253_402_300_799_000_000
"""The last second of the year 9999, in microseconds."""
_REFUSED = (errors.DataError, errors.IntegrityError, errors.ProgramLimitExceeded)
"""The errors for a call that no column can hold."""

_Answer = TypeVar("_Answer")
_decode_submission = msgspec.json.Decoder(Submission).decode


class PostgresLedger:
    """
    Calls in the schema ``voight`` of a PostgreSQL database. Use it from one thread at a time, in
    the process that opened it.

    Args:
        url: A libpq URL: ``postgresql://user@host/database?sslmode=verify-full``.
        create: False for reports: a missing ledger is an error.

    Raises:
        ForeignLedger: The schema ``voight`` of the database is not a ledger.
        LedgerError: The server cannot be reached or refuses. Or the ledger is from a newer version,
            or missing and *create* is False.
    """

    def __init__(self, url: str, *, create: bool = True) -> None:
        self.url = shown_url(url)
        self._given = url
        self._db = connect(url)
        self._writer = Writer(self._db)
        self._place = place_of(self._db)
        try:
            self.schema_version = prepare(self._db, create)
        except BaseException:
            self._db.close()
            raise

    def info(self) -> list[tuple[str, str]]:
        rights = "SELECT " + ", ".join(
            f"has_table_privilege('voight.calls', '{right}')"
            for right in ("SELECT", "INSERT", "DELETE")
        )
        with explained(self._place):
            reads, writes, deletes = self._row(rights)
            (writable,) = self._row(
                "SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = "
                "'off'"
            )
        may = [
            word
            for right, word in (
                (writes, "insert calls"),
                (deletes, "change and delete them"),
                (reads, "read them"),
            )
            if right
        ]
        info = self._db.info
        return [
            ("engine", f"PostgreSQL {info.parameter_status('server_version')}"),
            ("schema", f"version {self.schema_version}, in the schema voight of {self._place}"),
            (
                "role",
                f"{info.user}, who may {', '.join(may) or 'do nothing'}{'' if writable else '; the server is read-only'}",
            ),
            ("connection", "encrypted" if self._db.pgconn.ssl_in_use else "not encrypted"),
        ]

    def grant(self, *, writer: str | None = None, reader: str | None = None) -> None:
        """
        Give roles their rights, in one transaction; see ``roles.grants``. Run it as the owner of
        the schema, again after each upgrade.

        Raises:
            LedgerError: A role does not exist, or this role is not the owner.
        """
        with explained(self._place), self._db.transaction():
            for statement in grants(writer=writer, reader=reader):
                self._db.execute(statement.encode())

    def insert(self, records: Sequence[Record], progress: Progress | None = None) -> int:
        calls = [record for record in records if isinstance(record, Call)]
        others = [record for record in records if not isinstance(record, Call)]
        with explained(self._place):
            try:
                return self._write(lambda: self._writer.insert(calls, others, progress))
            except _REFUSED:
                calls = [within_range(call) for call in calls]
            try:
                return self._write(lambda: self._writer.insert(calls, others, progress))
            except _REFUSED as error:
                raise ValueError(
                    f"a call cannot be stored: {error.diag.message_primary or error}"
                ) from error

    def submissions(self, jobs: Collection[str]) -> dict[str, Submission]:
        with explained(self._place):
            return submissions(self._db, jobs)

    def progress(self, segment: str) -> int:
        with explained(self._place):
            row = self._run(
                "SELECT ingested FROM voight.segments WHERE name = ?", [segment]
            ).fetchone()
        return row[0] if row else 0

    def clear_progress(self, segment: str) -> None:
        with explained(self._place):
            self._run("DELETE FROM voight.segments WHERE name = ?", [segment])

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
        with explained(self._place):
            if self._db.info.transaction_status != TransactionStatus.IDLE:
                yield
                return
            with self._db.transaction():
                self._run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                yield

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
        """
        Read more than a page through a connection of their own, in one transaction.

        The calls are then those of one moment, however long it takes, and the ledger stays usable.
        """
        with explained(self._place):
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
            query = (
                f"{SELECT} FROM {source} {SELECT_PRICE} WHERE {condition} ORDER BY occurred_at, "
                "call_id"
            )
            if limit is not None and limit <= _PAGE:
                yield from map(from_row, self._run(f"{query} LIMIT ?", [*values, limit]).fetchall())
                return
            with closing(connect(self._given)) as db:
                db.read_only, db.isolation_level = True, psycopg.IsolationLevel.REPEATABLE_READ
                with db.transaction(), db.cursor("voight") as cursor:
                    cursor.itersize = _PAGE
                    cursor.execute(bound(f"{query} LIMIT ?"), [*map(storable, values), limit])
                    yield from map(from_row, cursor)

    def call(self, call_id: str) -> Call | None:
        query = f"{SELECT} FROM {CALLS} {SELECT_PRICE} WHERE"
        with explained(self._place):
            rows = self._run(f"{query} call_id = ?", [call_id]).fetchall()
            if not rows and len(call_id) >= MIN_ID_LENGTH:
                range_ = (call_id, call_id + "\U0010ffff")
                rows = self._run(
                    f"{query} call_id > ? AND call_id < ? ORDER BY call_id LIMIT 2", range_
                ).fetchall()
        return only_match([from_row(row) for row in rows], call_id)

    def reprice(self, changes: Sequence[tuple[Call, Call]]) -> int:
        now = time.time_ns() // 1000
        changes = [(before, within_range(after)) for before, after in changes]
        changes = [(before, after) for before, after in changes if has_changed(before, after)]
        if not changes:
            return 0
        with explained(self._place):
            return self._write(lambda: self._writer.reprice(changes, now))

    def price_history(self, call_id: str) -> list[PriceVersion]:
        return self.price_histories([call_id]).get(call_id, [])

    def price_histories(self, call_ids: Collection[str]) -> dict[str, list[PriceVersion]]:
        histories: dict[str, list[PriceVersion]] = {}
        with explained(self._place):
            for call_id, *row in self._run(SELECT_FORMER, [list(call_ids)]).fetchall():
                histories.setdefault(call_id, []).append(former_price(row))
        return histories

    def jobs(self, after: str = "", limit: int = 1_000) -> list[Submission]:
        with explained(self._place):
            rows = self._run(
                "SELECT submission FROM voight.jobs WHERE job > ? ORDER BY job LIMIT ?",
                [after, limit],
            ).fetchall()
        return [_decode_submission(text) for (text,) in rows]

    def import_calls(
        self,
        calls: Sequence[Call],
        former: Mapping[str, Sequence[PriceVersion]] = {},
        *,
        replace: bool = False,
    ) -> int:
        with explained(self._place):
            try:
                return self._write(lambda: self._writer.import_calls(calls, former, replace))
            except _REFUSED as error:
                raise ValueError(
                    f"a call cannot be stored: {error.diag.message_primary or error}"
                ) from error

    def time_range(
        self, where: Where | None = None, window: Window = Window()
    ) -> tuple[int, int] | None:
        if where or window != Window():
            sql = self._query(None).time_range(where or {}, window)
            ((count, oldest, newest),) = self._answer(sql)
            return (oldest, newest) if count else None
        with explained(self._place):
            oldest, newest = self._row(
                "SELECT MIN(occurred_at), MAX(occurred_at) FROM voight.calls"
            )
        return None if oldest is None else (oldest, newest)

    def personal_data(self, names: Collection[str]) -> PersonalData:
        with explained(self._place):
            return erasure.personal_data(self._run, names)

    def erase(self, names: Collection[str], token: str) -> PersonalData:

        def work() -> PersonalData:
            self._run(LOCK)
            return erasure.erase(self._run, names, token)

        with explained(self._place):
            return self._write(work)

    def purge(self, names: Collection[str]) -> list[str]:
        """
        Have the server remove overwritten and deleted rows (VACUUM) that no older transaction can
        still see.

        The result is always empty. The server's write-ahead log, replicas and backups are out of
        reach. So are bytes that the server has freed and not used again yet.
        """
        with explained(self._place):
            for table in ("calls", "jobs", "former_costs", *(rollup.table for rollup in ROLLUPS)):
                self._run(f"VACUUM voight.{table}")
        return []

    def expired(self, until: int) -> Expired:
        with explained(self._place):
            (calls,) = self._row("SELECT COUNT(*) FROM voight.calls WHERE occurred_at < ?", until)
            (former,) = self._row(
                "SELECT COUNT(*) FROM voight.former_costs JOIN voight.calls USING (call_id) WHERE "
                "occurred_at < ?",
                until,
            )
            (jobs,) = self._row("SELECT COUNT(*) FROM voight.jobs WHERE submitted_at < ?", until)
        return Expired(calls, former, jobs)

    def expire(self, until: int, limit: int) -> Expired:

        def work() -> Expired:
            self._run(LOCK)
            oldest = (
                "SELECT call_id FROM voight.calls WHERE occurred_at < ? ORDER BY occurred_at, "
                "call_id LIMIT ?"
            )
            ids = [call_id for (call_id,) in self._run(oldest, [until, limit]).fetchall()]
            former = self._run(
                "DELETE FROM voight.former_costs WHERE call_id = ANY(?)", [ids]
            ).rowcount
            calls = self._run("DELETE FROM voight.calls WHERE call_id = ANY(?)", [ids]).rowcount
            jobs = (
                self._run("DELETE FROM voight.jobs WHERE submitted_at < ?", [until]).rowcount
                if calls < limit
                else 0
            )
            return Expired(calls, former, jobs)

        with explained(self._place):
            return self._write(work)

    def rebuild(self) -> Iterator[str]:
        """Rebuild the rollups, a month in each transaction."""
        done = end = 0

        def work(begin: int, until: int) -> None:
            self._run(LOCK)
            for rollup in ROLLUPS:  # also drops rows of months that have no calls any more
                self._run(*triggers.empty(rollup, done, until))
                if begin < until:
                    self._run(
                        triggers.fill(
                            rollup, "voight.calls WHERE occurred_at >= ? AND occurred_at < ?"
                        ),
                        [begin, until],
                    )

        with explained(self._place):
            while (
                first := self._row(
                    "SELECT MIN(occurred_at) FROM voight.calls WHERE occurred_at >= ?", end
                )[0]
            ) is not None:
                month, begin, end = month_of(first)
                self._write(partial(work, begin, end))
                done = end
                yield month
            self._write(partial(work, _FAR, _FAR))

    def close(self) -> None:
        self._db.close()

    def _run(self, query: str, values: Sequence[Any] = ()) -> psycopg.Cursor[tuple[Any, ...]]:
        return run(self._db, query, values)

    def _row(self, query: str, *values: Any) -> tuple[Any, ...]:
        return row(self._db, query, *values)

    def _write(self, work: Callable[[], _Answer]) -> _Answer:
        """Do *work* in a transaction. Try again if the server ends it because of a conflict."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._db.transaction():
                    return work()
            except BaseException as error:
                self._writer.rolled_back()
                if (
                    not isinstance(error, errors.DeadlockDetected | errors.SerializationFailure)
                    or attempt == ATTEMPTS
                ):
                    raise
        raise AssertionError("unreachable")

    def _query(self, zone: tzinfo | None, known: tuple[int, int] | None = None) -> Query:
        with explained(self._place):
            keys = [key for (key,) in self._run("SELECT key FROM voight.extra_keys").fetchall()]
        return Query(DIALECT, keys, zone, self.time_range(), known)

    def _answer(self, sql: Sql) -> list[Any]:
        with explained(self._place):
            return self._run(*sql).fetchall()
