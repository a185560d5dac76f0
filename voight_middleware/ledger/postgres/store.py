"""The PostgreSQL ledger: a schema of its own in any database, and hosts, processes and pods that write at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import tzinfo
from functools import partial
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg import errors

from voight_middleware.call import Call, Record, Settlement, Submission
from voight_middleware.ledger.base import (
    SHORTEST_ID,
    Expired,
    FormerPrice,
    Holdings,
    LedgerError,
    Progress,
    Spend,
    Where,
    Window,
)
from voight_middleware.ledger.postgres import erasure, triggers
from voight_middleware.ledger.postgres.connection import connect, explained, place_of
from voight_middleware.ledger.postgres.dialect import DIALECT
from voight_middleware.ledger.postgres.schema import (
    CALLS,
    CALLS_AS_PRICED,
    FORMER,
    INSERT,
    LOCK,
    REPRICE,
    SELECT,
    SELECT_FORMER,
    SELECT_PRICE,
    STAGING,
    prepare,
)
from voight_middleware.ledger.postgres.values import (
    STORED,
    change,
    copied,
    former_price,
    former_values,
    has_changed,
    owner,
    prices_of,
    storable,
    to_stored,
    told,
)
from voight_middleware.ledger.question import Question, read_spend
from voight_middleware.ledger.rollups import ROLLUPS, month_of
from voight_middleware.ledger.rows import from_row, within_range
from voight_middleware.settings import shown_url

ATTEMPTS = 5
"""How often a transaction is tried that the server has chosen to end for another one's sake."""
_PAGE = 2_000
_FAR = 253_402_300_799_000_000
"""The last second of the year 9999, in microseconds."""
_REFUSED = (errors.DataError, errors.IntegrityError, errors.ProgramLimitExceeded)
"""What a call raises that no column holds."""

_Answer = TypeVar("_Answer")
_Item = TypeVar("_Item")
_encode = msgspec.json.Encoder().encode
_decode_submission = msgspec.json.Decoder(Submission).decode


class PostgresLedger:
    """
    Calls in the schema ``voight`` of a PostgreSQL database. Used from one thread at a time, and by the process that opened it.

    Args:
        url: As libpq understands it: ``postgresql://user@host/database?sslmode=verify-full``.
        create: False for reports: a ledger that is not there is an error.

    Raises:
        ForeignLedger: The database has a schema ``voight`` that is no ledger.
        LedgerError: The server cannot be reached or refuses, or the ledger is of a newer version, or missing and not to be created.
    """

    def __init__(self, url: str, *, create: bool = True) -> None:
        self.url = shown_url(url)
        self._given = url
        self._prices: set[int] = set()
        self._extra_keys: set[str] = set()
        self._db = connect(url)
        self._place = place_of(self._db)
        try:
            self.schema_version = prepare(self._db, create)
        except BaseException:
            self._db.close()
            raise

    def about(self) -> list[tuple[str, str]]:
        """What ``voight doctor`` says of the ledger."""
        rights = "SELECT " + ", ".join(f"has_table_privilege('voight.calls', '{right}')" for right in ("SELECT", "INSERT", "DELETE"))
        with explained(self._place):
            reads, writes, deletes = self._row(rights)
            (writable,) = self._row("SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off'")
        may = [word for right, word in ((writes, "bring calls in"), (deletes, "change and delete them"), (reads, "read them")) if right]
        info = self._db.info
        return [
            ("engine", f"PostgreSQL {info.parameter_status('server_version')}"),
            ("schema", f"version {self.schema_version}, in the schema voight of {self._place}"),
            ("role", f"{info.user}, who may {', '.join(may) or 'do nothing'}{'' if writable else '; the server is read-only'}"),
            ("connection", "encrypted" if self._db.pgconn.ssl_in_use else "not encrypted"),
        ]

    def insert(self, records: Sequence[Record], progress: Progress | None = None) -> int:
        """
        Keep calls and submissions and apply settlements, in one transaction together with *progress*; answers how many calls were
        new, or told of for the first time.

        Submissions and settlements are applied after all calls of *records*. A call with a count or cost that no column holds is kept
        without it, unpriced.

        Raises:
            ValueError: A record cannot be kept at all, and nothing of *records* was.
        """
        calls = [record for record in records if isinstance(record, Call)]
        others = [record for record in records if not isinstance(record, Call)]
        with explained(self._place):
            try:
                return self._write(lambda: self._insert(calls, others, progress))
            except _REFUSED:
                calls = [within_range(call) for call in calls]
            try:
                return self._write(lambda: self._insert(calls, others, progress))
            except _REFUSED as error:
                raise ValueError(f"a call cannot be kept: {error.diag.message_primary or error}") from error

    def submissions(self, jobs: Collection[str]) -> dict[str, Submission]:
        """Those of *jobs* that are known."""
        if not jobs:
            return {}
        with explained(self._place):
            rows = self._run("SELECT job, submission FROM voight.submitted(?::text[])", [list(jobs)]).fetchall()
        return {job: _decode_submission(text) for job, text in rows}

    def progress(self, segment: str) -> int:
        """The offset in bytes up to which *segment* has been ingested; 0 for an unknown one."""
        with explained(self._place):
            row = self._run("SELECT ingested FROM voight.segments WHERE name = ?", [segment]).fetchone()
        return row[0] if row else 0

    def forget(self, segment: str) -> None:
        """Drop the progress of a segment whose file is gone."""
        with explained(self._place):
            self._run("DELETE FROM voight.segments WHERE name = ?", [segment])

    def spend(
        self,
        by: Sequence[str] = (),
        where: Where | None = None,
        window: Window = Window(),
        limit: int | None = None,
        *,
        as_priced: bool = False,
        zone: tzinfo | None = None,
    ) -> list[Spend]:
        """
        Calls added up by dimensions, the most expensive first (unpriced groups last, then by calls), as ``Ledger.spend``.

        Raises:
            UnknownDimension: A name in *by* or *where* is neither in ``DIMENSIONS`` nor an extra key of any call.
        """
        by = tuple(dict.fromkeys(by))
        with explained(self._place):
            rows = self._run(*self._question(zone).spend(by, where or {}, window, limit, as_priced=as_priced)).fetchall()
        return [read_spend(by, row, DIALECT) for row in rows]

    def calls(
        self,
        where: Where | None = None,
        window: Window = Window(),
        limit: int | None = None,
        *,
        after: tuple[int, str] | None = None,
        as_priced: bool = False,
        zone: tzinfo | None = None,
    ) -> Iterator[Call]:
        """
        Every call, the oldest first; at most *limit*, from behind the one of this ``occurred_at`` and ``call_id`` on.

        More than a page of them are read through a connection of their own, in one transaction: however long that takes, they are the
        calls of one moment, and this ledger can be used meanwhile.

        Raises:
            UnknownDimension: As for ``spend``.
        """
        with explained(self._place):
            if after is not None:  # a page begins where the last one ended, and not at the beginning of the window
                window = Window(after[0] if window.since is None else max(after[0], window.since), window.until)
            condition, values = self._question(zone).condition(where or {}, window)
            if after is not None:
                condition += " AND (occurred_at, call_id) > (?, ?)"
                values += after
            query = (
                f"{SELECT} FROM {CALLS_AS_PRICED if as_priced else CALLS} {SELECT_PRICE} WHERE {condition} ORDER BY occurred_at, call_id"
            )
            if limit is not None and limit <= _PAGE:
                yield from map(from_row, self._run(f"{query} LIMIT ?", [*values, limit]).fetchall())
                return
            with closing(connect(self._given)) as db:
                db.read_only, db.isolation_level = True, psycopg.IsolationLevel.REPEATABLE_READ
                with db.transaction(), db.cursor("voight") as cursor:
                    cursor.itersize = _PAGE
                    cursor.execute(_bound(f"{query} LIMIT ?"), [*map(storable, values), limit])
                    yield from map(from_row, cursor)

    def call(self, call_id: str) -> Call | None:
        """
        The call of that id, or the only one whose id begins with it, if it has 8 characters or more; None where there is none.

        Raises:
            LedgerError: Several calls begin with it.
        """
        query = f"{SELECT} FROM {CALLS} {SELECT_PRICE} WHERE"
        with explained(self._place):
            found = self._run(f"{query} call_id = ?", [call_id]).fetchall()
            if not found and len(call_id) >= SHORTEST_ID:
                range_ = (call_id, call_id + "\U0010ffff")
                found = self._run(f"{query} call_id > ? AND call_id < ? ORDER BY call_id LIMIT 2", range_).fetchall()
        calls = [from_row(row) for row in found]
        if len(calls) > 1:
            several = " and ".join(call.call_id for call in calls)
            raise LedgerError(f"several calls begin with {call_id!r}, such as {several}: give more of the id")
        return calls[0] if calls else None

    def reprice(self, changes: Sequence[tuple[Call, Call]]) -> int:
        """
        Give calls another price, in one transaction; each as it was read, and as it is priced now. Answers how many have got one.

        The price before is kept as a version of its own. A call is not touched where cost, status and reasons stay the same, nor where
        it is not in the ledger as it was read: another process has repriced it or told what it used.
        """
        now = time.time_ns() // 1000
        changes = [(before, within_range(after)) for before, after in changes]
        changes = [(before, after) for before, after in changes if has_changed(before, after)]

        def work() -> int:
            self._lock()
            self._learn((), prices_of(after for _, after in changes))
            count = 0
            for some in _rounds(changes, lambda one: one[0].call_id):
                count += self._run(REPRICE, [_encode([change(*one) for one in some]).decode(), now]).rowcount
            return count

        if not changes:
            return 0
        with explained(self._place):
            return self._write(work)

    def versions(self, call_id: str) -> list[FormerPrice]:
        """The prices that a call had before its newest one, the original first."""
        return self.former([call_id]).get(call_id, [])

    def former(self, call_ids: Collection[str]) -> dict[str, list[FormerPrice]]:
        """The prices that calls had before their newest one, the original first, by ``call_id``; a call without any is missing."""
        found: dict[str, list[FormerPrice]] = {}
        with explained(self._place):
            for call_id, *row in self._run(SELECT_FORMER, [list(call_ids)]).fetchall():
                found.setdefault(call_id, []).append(former_price(row))
        return found

    def jobs(self, after: str = "", limit: int = 1_000) -> list[Submission]:
        """Submitted jobs in the bytewise order of their names: at most *limit*, from behind the name *after* on."""
        with explained(self._place):
            rows = self._run("SELECT submission FROM voight.jobs WHERE job > ? ORDER BY job LIMIT ?", [after, limit]).fetchall()
        return [_decode_submission(text) for (text,) in rows]

    def keep(self, calls: Sequence[Call], former: Mapping[str, Sequence[FormerPrice]] = {}, *, anew: bool = False) -> int:
        """
        Keep calls of another ledger as they are there, each with the prices that it had before, in one transaction; answers how many
        were written.

        Nothing is settled, completed or repriced by it. A call whose id is here already is left as it is, and its former prices with
        it; with *anew* it is replaced, together with them.

        Raises:
            ValueError: A call cannot be kept, and nothing of *calls* was.
        """

        def work() -> int:
            written = 0
            for some in _rounds(calls, lambda call: call.call_id):
                self._copy(some)
                self._lock()
                self._learn((key for call in some for key in call.tags.extra), prices_of(some, former))
                if anew:
                    ids = [call.call_id for call in some]
                    self._run("DELETE FROM voight.former_costs WHERE call_id = ANY(?)", [ids])
                    self._run("DELETE FROM voight.calls WHERE call_id = ANY(?)", [ids])
                new = [call_id for (call_id,) in self._run(f"{INSERT} RETURNING call_id").fetchall()]
                self._run("TRUNCATE pg_temp.voight_calls")
                rows = [former_values(call_id, price) for call_id in new for price in former.get(call_id, ())]
                if rows:
                    self._run_many(f"INSERT INTO voight.former_costs ({', '.join(FORMER)}) VALUES ({', '.join('?' * len(FORMER))})", rows)
                written += len(new)
            return written

        with explained(self._place):
            try:
                return self._write(work)
            except _REFUSED as error:
                raise ValueError(f"a call cannot be kept: {error.diag.message_primary or error}") from error

    def extent(self) -> tuple[int, int] | None:
        """When the oldest and the newest call happened, in microseconds since 1970 UTC; None for an empty ledger."""
        with explained(self._place):
            oldest, newest = self._row("SELECT MIN(occurred_at), MAX(occurred_at) FROM voight.calls")
        return None if oldest is None else (oldest, newest)

    def holdings(self, names: Collection[str]) -> Holdings:
        """What is kept about the person who is known by any of *names*."""
        with explained(self._place):
            return erasure.holdings(self._run, names)

    def erase(self, names: Collection[str], token: str) -> Holdings:
        """
        Put *token* in the place of a person's ids, in one transaction, and take sessions and answer ids off the person's calls; answers
        what was found. Costs and counts stay as they are.
        """

        def work() -> Holdings:
            self._lock()
            return erasure.erase(self._run, names, token)

        with explained(self._place):
            return self._write(work)

    def purge(self, names: Collection[str]) -> list[str]:
        """
        Have the server clear out the rows that were overwritten or deleted (VACUUM), as far as no older transaction can still see them.

        What the server's write-ahead log, its replicas and its backups keep is not in reach from here, nor are bytes that it has freed
        and not yet used again: they go as those are recycled. So the answer is always empty.
        """
        with explained(self._place):
            for table in ("calls", "jobs", "former_costs", *(rollup.table for rollup in ROLLUPS)):
                self._run(f"VACUUM voight.{table}")
        return []

    def expired(self, until: int) -> Expired:
        """What happened before *until*, in microseconds since 1970 UTC."""
        with explained(self._place):
            (calls,) = self._row("SELECT COUNT(*) FROM voight.calls WHERE occurred_at < ?", until)
            (former,) = self._row("SELECT COUNT(*) FROM voight.former_costs JOIN voight.calls USING (call_id) WHERE occurred_at < ?", until)
            (jobs,) = self._row("SELECT COUNT(*) FROM voight.jobs WHERE submitted_at < ?", until)
        return Expired(calls, former, jobs)

    def expire(self, until: int, limit: int) -> Expired:
        """Delete at most *limit* of the oldest calls from before *until*, and with the last of them the jobs, in one transaction."""

        def work() -> Expired:
            self._lock()
            oldest = "SELECT call_id FROM voight.calls WHERE occurred_at < ? ORDER BY occurred_at, call_id LIMIT ?"
            ids = [call_id for (call_id,) in self._run(oldest, [until, limit]).fetchall()]
            former = self._run("DELETE FROM voight.former_costs WHERE call_id = ANY(?)", [ids]).rowcount
            calls = self._run("DELETE FROM voight.calls WHERE call_id = ANY(?)", [ids]).rowcount
            jobs = self._run("DELETE FROM voight.jobs WHERE submitted_at < ?", [until]).rowcount if calls < limit else 0
            return Expired(calls, former, jobs)

        with explained(self._place):
            return self._write(work)

    def rebuild(self) -> Iterator[str]:
        """Build the rollups anew from the calls, a month in a transaction; yields each month when it is done."""
        done = end = 0

        def work(begin: int, until: int) -> None:
            self._lock()
            for rollup in ROLLUPS:  # and what stands there for months that have no calls any more
                self._run(*triggers.empty(rollup, done, until))
                if begin < until:
                    self._run(triggers.fill(rollup, "voight.calls WHERE occurred_at >= ? AND occurred_at < ?"), [begin, until])

        with explained(self._place):
            while (first := self._row("SELECT MIN(occurred_at) FROM voight.calls WHERE occurred_at >= ?", end)[0]) is not None:
                month, begin, end = month_of(first)
                self._write(partial(work, begin, end))
                done = end
                yield month
            self._write(partial(work, _FAR, _FAR))

    def close(self) -> None:
        """Release the connection; harmless when repeated."""
        self._db.close()

    def _run(self, query: str, values: Sequence[Any] = ()) -> psycopg.Cursor[tuple[Any, ...]]:
        """Execute a statement with a ``?`` for each value."""
        return self._db.execute(_bound(query), [storable(value) for value in values])

    def _run_many(self, query: str, rows: Sequence[Sequence[Any]]) -> None:
        self._db.cursor().executemany(_bound(query), rows)

    def _row(self, query: str, *values: Any) -> tuple[Any, ...]:
        row = self._run(query, values).fetchone()
        assert row is not None
        return row

    def _write(self, work: Callable[[], _Answer]) -> _Answer:
        """Do *work* in a transaction, and again where the server has ended it for another one's sake."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._db.transaction():
                    return work()
            except BaseException as error:
                self._prices.clear()
                self._extra_keys.clear()
                if not isinstance(error, errors.DeadlockDetected | errors.SerializationFailure) or attempt == ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def _lock(self) -> None:
        self._run(LOCK)

    def _insert(self, calls: Sequence[Call], others: Sequence[Settlement | Submission], progress: Progress | None) -> int:
        plain = [call for call in calls if call.job is None]
        if plain:
            self._copy(plain)
        self._lock()
        self._learn((key for record in (*calls, *others) for key in record.tags.extra), prices_of(calls))
        new = self._run(INSERT).rowcount if plain else 0
        for some in _rounds([call for call in calls if call.job is not None], lambda call: call.call_id):
            new += self._row("SELECT voight.tell(?::jsonb)", told(map(to_stored, some)))[0]
        for record in others:
            if isinstance(record, Submission):
                self._submit(record)
            else:
                self._settle(record)
        if progress is not None:
            self._run(
                "INSERT INTO voight.segments VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET ingested = excluded.ingested",
                [progress.segment, progress.offset],
            )
        return new

    def _copy(self, calls: Sequence[Call]) -> None:
        """Put calls where they are inserted from: a table of this session, which a pooler may have changed since the last time."""
        if self._row("SELECT to_regclass('pg_temp.voight_calls') IS NULL")[0]:
            self._run(STAGING)
        with self._db.cursor().copy(f"COPY pg_temp.voight_calls ({', '.join(STORED)}) FROM STDIN".encode()) as copy:
            copy.write(copied(map(to_stored, calls)))

    def _settle(self, settlement: Settlement) -> None:
        if settlement.tags.user_id is None:
            return
        values = owner(settlement.tags, settlement.attribution)
        rows = [{"call_id": storable(call_id), **values} for call_id in dict.fromkeys(settlement.call_ids)]
        self._run("SELECT voight.settle(?::jsonb)", [_encode(rows).decode()])
        jobs = [name for name in settlement.call_ids if "/" in name]
        for submission in self.submissions(jobs).values():
            if submission.attribution in ("none", "error", "request"):
                tags = submission.tags.merge(settlement.tags)
                self._keep(msgspec.structs.replace(submission, tags=tags, attribution=settlement.attribution))

    def _submit(self, submission: Submission) -> None:
        if not self.submissions([submission.job]):
            self._keep(submission)

    def _keep(self, submission: Submission) -> None:
        """Keep who has submitted a job, and make it the owner of the answers that were here before."""
        owned = submission
        if submission.tags.user_id is None and submission.part_of is not None:
            owned = self.submissions([submission.part_of]).get(submission.part_of, submission)
        values = None if owned.tags.user_id is None else _encode(owner(owned.tags, owned.attribution)).decode()
        self._run(
            "SELECT voight.submit(?, ?, ?, ?, ?::jsonb)",
            [submission.job, submission.part_of, submission.submitted_at, _encode(submission).decode(), values],
        )

    def _learn(self, keys: Iterable[str], prices: Mapping[int, str]) -> None:
        """Keep extra keys and prices that this ledger has not written yet."""
        if new_keys := {*map(storable, keys)} - self._extra_keys:
            self._run_many("INSERT INTO voight.extra_keys VALUES (?) ON CONFLICT DO NOTHING", [(key,) for key in new_keys])
            self._extra_keys |= new_keys
        if new_prices := prices.keys() - self._prices:
            rows = [(number, prices[number]) for number in new_prices]
            self._run_many("INSERT INTO voight.prices VALUES (?, ?) ON CONFLICT DO NOTHING", rows)
            self._prices |= new_prices

    def _question(self, zone: tzinfo | None) -> Question:
        keys = [key for (key,) in self._run("SELECT key FROM voight.extra_keys").fetchall()]
        return Question(DIALECT, keys, zone, self.extent())


def _bound(query: str) -> bytes:
    """A statement with a ``?`` for each value as psycopg reads it."""
    return query.replace("%", "%%").replace("?", "%s").encode()


def _rounds(items: Sequence[_Item], key: Callable[[_Item], str]) -> Iterator[list[_Item]]:
    """*items* in their order, in lists in which no key is twice: what a statement does to a row, it does once."""
    while items:
        some, rest = dict[str, _Item](), list[_Item]()
        for item in items:
            if some.setdefault(key(item), item) is not item:
                rest.append(item)
        yield list(some.values())
        items = rest
