"""The SQLite ledger: one file, no server, many reading processes and one that writes."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import tzinfo
from itertools import chain
from pathlib import Path

import msgspec

from voight_middleware.call import Call, Record, Settlement, Submission
from voight_middleware.ledger.base import (
    SHORTEST_ID,
    Expired,
    ForeignLedger,
    FormerPrice,
    Holdings,
    LedgerError,
    Progress,
    Spend,
    Where,
    Window,
)
from voight_middleware.ledger.erasure import SHORTEST_SEARCHED
from voight_middleware.ledger.question import Question, read_spend
from voight_middleware.ledger.rollups import ROLLUPS, month_of
from voight_middleware.ledger.rows import Row, extra_text, from_row, the_one, within_range
from voight_middleware.ledger.sqlite import erasure, triggers
from voight_middleware.ledger.sqlite.dialect import DIALECT
from voight_middleware.ledger.sqlite.schema import (
    APPLICATION_ID,
    CALLS,
    CALLS_AS_PRICED,
    INSERT_ALL,
    INSERT_AS_IT_IS,
    INSERT_COMMON,
    INSERT_FORMER,
    KEEP_FORMER,
    REPRICE,
    SELECT,
    SELECT_FORMER,
    SELECT_FORMER_OF_MANY,
    SELECT_PRICE,
    TABLES,
    UPGRADES,
    VERSION,
    common_values,
    former_price,
    former_values,
    rare_values,
    read_values,
    repriced_values,
)
from voight_middleware.tags import Tags

BUSY_SECONDS = 30
"""How long a statement waits for another process's transaction."""
_FAR = 253_402_300_799_000_000
"""The last second of the year 9999, in microseconds."""

_SETTLE = """
UPDATE calls SET
    user_id = IIF(attribution = 'request', ?, COALESCE(user_id, ?)), plan = COALESCE(plan, ?), tenant_id = COALESCE(tenant_id, ?),
    route = COALESCE(route, ?), release = COALESCE(release, ?), session_id = COALESCE(session_id, ?),
    tags_extra = COALESCE(json_patch(NULLIF(?, ''), COALESCE(tags_extra, '{}')), tags_extra),
    attribution = ?
WHERE call_id = ? AND attribution IN ('none', 'error', 'request')"""

_OWN = """
UPDATE calls SET
    user_id = ?, plan = ?, tenant_id = ?, route = ?, release = ?, session_id = ?, tags_extra = NULLIF(?, ''), attribution = ?
WHERE job = ? OR (job > ? AND job < ?)"""
"""The parts of a job are between its name with a slash, and with the character behind that."""

_encode = msgspec.json.Encoder().encode
_decode_submission = msgspec.json.Decoder(Submission).decode


class SQLiteLedger:
    """
    Calls in one SQLite file. Used from one thread at a time, and by the process that opened it.

    Args:
        path: The file. With *create*, it and its folder are made where they are missing, for this user only.
        create: False for reports: a ledger that is not there is an error.

    Raises:
        ForeignLedger: The file is no ledger.
        LedgerError: The file cannot be opened, is damaged, was written by a newer version, or is missing and not to be created.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"
        if sqlite3.sqlite_version_info < (3, 37):
            raise LedgerError(f"the ledger needs SQLite 3.37, and this Python has {sqlite3.sqlite_version}: use another build of Python")
        try:
            if create:
                _make_file(path)
            if not path.exists():
                raise _missing(path)
        except (OSError, ValueError) as error:
            raise LedgerError(f"the ledger {path} cannot be opened ({error}): check the path and its permissions") from error
        self._price_ids: dict[str, int] = {}
        self._extra_keys: set[str] = set()
        self.schema_version = 0
        with _explained(path):
            self._db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            with _explained(path):
                self._prepare(create)
            self._file = _file_at(path)
        except BaseException:
            self._db.close()
            raise

    def about(self) -> list[tuple[str, str]]:
        """What ``voight doctor`` says of the ledger."""
        return [("engine", f"SQLite {sqlite3.sqlite_version}"), ("schema", f"version {self.schema_version}")]

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
        self._check_file()
        with _explained(self.path):
            try:
                return self._insert(calls, others, progress)
            except (OverflowError, sqlite3.IntegrityError):
                calls = [within_range(call) for call in calls]
            try:
                return self._insert(calls, others, progress)
            except (OverflowError, sqlite3.IntegrityError) as error:
                raise ValueError(f"a call cannot be kept: {error}") from error

    def submissions(self, jobs: Collection[str]) -> dict[str, Submission]:
        """Those of *jobs* that are known."""
        found: dict[str, Submission] = {}
        with _explained(self.path):
            for job in jobs:
                row = self._db.execute("SELECT submission FROM jobs WHERE job = ?", (job,)).fetchone()
                if row is not None:
                    found[job] = _decode_submission(row[0])
        return found

    def progress(self, segment: str) -> int:
        """The offset in bytes up to which *segment* has been ingested; 0 for an unknown one."""
        with _explained(self.path):
            row = self._db.execute("SELECT offset FROM segments WHERE name = ?", (segment,)).fetchone()
        return row[0] if row else 0

    def forget(self, segment: str) -> None:
        """Drop the progress of a segment whose file is gone."""
        with _explained(self.path):
            self._db.execute("DELETE FROM segments WHERE name = ?", (segment,))

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
        Calls added up by dimensions, the most expensive first (unpriced groups last, then by calls).

        A value in *where* is compared exactly, ``*`` standing for any text; None means that the call has no value, and of several
        values one is enough. With *as_priced*, costs and statuses are those that each call was given first. Hours, days and months are
        cut in *zone*, by default UTC.

        Raises:
            UnknownDimension: A name in *by* or *where* is neither in ``DIMENSIONS`` nor an extra key of any call.
        """
        by = tuple(dict.fromkeys(by))
        with _explained(self.path):
            rows = self._db.execute(*self._question(zone).spend(by, where or {}, window, limit, as_priced=as_priced)).fetchall()
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

        Raises:
            UnknownDimension: As for ``spend``.
        """
        with _explained(self.path):
            if after is not None:  # a page begins where the last one ended, and not at the beginning of the window
                window = Window(after[0] if window.since is None else max(after[0], window.since), window.until)
            condition, values = self._question(zone).condition(where or {}, window)
            if after is not None:
                condition += " AND (occurred_at, call_id) > (?, ?)"
                values += after
            source = CALLS_AS_PRICED if as_priced else CALLS
            for row in self._db.execute(
                f"{SELECT} FROM {source} {SELECT_PRICE} WHERE {condition} ORDER BY occurred_at, call_id LIMIT ?",
                (*values, -1 if limit is None else limit),
            ):
                yield from_row(row)

    def call(self, call_id: str) -> Call | None:
        """
        The call of that id, or the only one whose id begins with it, if it has 8 characters or more; None where there is none.

        Raises:
            LedgerError: Several calls begin with it.
        """
        query = f"{SELECT} FROM {CALLS} {SELECT_PRICE} WHERE"
        with _explained(self.path):
            found = self._db.execute(f"{query} call_id = ?", (call_id,)).fetchall()
            if not found and len(call_id) >= SHORTEST_ID:
                range_ = (call_id, call_id + "\U0010ffff")
                found = self._db.execute(f"{query} call_id > ? AND call_id < ? ORDER BY call_id LIMIT 2", range_).fetchall()
        return the_one([from_row(row) for row in found], call_id)

    def reprice(self, changes: Sequence[tuple[Call, Call]]) -> int:
        """
        Give calls another price, in one transaction; each as it was read, and as it is priced now. Answers how many have got one.

        The price before is kept as a version of its own. A call is not touched where cost, status and reasons stay the same, nor where
        it is not in the ledger as it was read: another process has repriced it or told what it used.
        """
        now = time.time_ns() // 1000
        changes = [(before, within_range(after)) for before, after in changes]
        changed = [(read_values(before), after) for before, after in changes if read_values(before)[2:] != read_values(after)[2:]]
        if not changed:
            return 0
        self._check_file()
        count = 0
        with _explained(self.path), self._transaction():
            for before, after in changed:
                if self._db.execute(KEEP_FORMER, (now, *before)).rowcount:
                    price_id = None if after.price is None else self._price_id(after.price)
                    self._db.execute(REPRICE, repriced_values(after, price_id))
                    count += 1
        return count

    def versions(self, call_id: str) -> list[FormerPrice]:
        """The prices that a call had before its newest one, the original first."""
        with _explained(self.path):
            return [former_price(row) for row in self._db.execute(SELECT_FORMER, (call_id,))]

    def former(self, call_ids: Collection[str]) -> dict[str, list[FormerPrice]]:
        """The prices that calls had before their newest one, the original first, by ``call_id``; a call without any is missing."""
        found: dict[str, list[FormerPrice]] = {}
        with _explained(self.path):
            for call_id, *row in self._db.execute(SELECT_FORMER_OF_MANY, (json.dumps(list(call_ids)),)):
                found.setdefault(call_id, []).append(former_price(tuple(row)))
        return found

    def jobs(self, after: str = "", limit: int = 1_000) -> list[Submission]:
        """Submitted jobs in the bytewise order of their names: at most *limit*, from behind the name *after* on."""
        with _explained(self.path):
            rows = self._db.execute("SELECT submission FROM jobs WHERE job > ? ORDER BY job LIMIT ?", (after, limit))
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
        self._check_file()
        with _explained(self.path):
            try:
                with self._transaction():
                    single = [call for call in calls if anew or former.get(call.call_id)]
                    others = [call for call in calls if not (anew or former.get(call.call_id))]
                    new = sum(self._keep_call(call, former.get(call.call_id, ()), anew) for call in single)
                    return new + self._insert_calls(others, INSERT_AS_IT_IS)
            except (OverflowError, sqlite3.IntegrityError) as error:
                raise ValueError(f"a call cannot be kept: {error}") from error

    def extent(self) -> tuple[int, int] | None:
        """When the oldest and the newest call happened, in microseconds since 1970 UTC; None for an empty ledger."""
        with _explained(self.path):
            oldest, newest = self._db.execute(
                "SELECT (SELECT MIN(occurred_at) FROM calls), (SELECT MAX(occurred_at) FROM calls)"
            ).fetchone()
        return None if oldest is None else (oldest, newest)

    def holdings(self, names: Collection[str]) -> Holdings:
        """What is kept about the person who is known by any of *names*."""
        with _explained(self.path):
            return erasure.holdings(self._db, names)

    def erase(self, names: Collection[str], token: str) -> Holdings:
        """
        Put *token* in the place of a person's ids, in one transaction, and take sessions and answer ids off the person's calls; answers
        what was found. Costs and counts stay as they are.
        """
        self._check_file()
        with _explained(self.path), self._transaction():
            return erasure.erase(self._db, names, token)

    def purge(self, names: Collection[str]) -> list[str]:
        """
        Free the files of what was overwritten or deleted, as far as one of *names* is still in them; answers the files in which it remains.

        Ids that are too short to be looked for are purged all the same. The file is written anew: that takes its size in free space.

        Raises:
            LedgerError: Another process is reading: nothing was purged, try again.
        """
        self._check_file()
        with _explained(self.path):
            self._checkpoint()
            short = any(len(name) < SHORTEST_SEARCHED for name in names)
            if short or erasure.remains(self._files(), names):
                self._db.execute("VACUUM")
                self._checkpoint()
        return [str(path) for path in erasure.remains(self._files(), names)]

    def expired(self, until: int) -> Expired:
        """What happened before *until*, in microseconds since 1970 UTC."""
        with _explained(self.path):
            (calls,) = self._db.execute("SELECT COUNT(*) FROM calls WHERE occurred_at < ?", (until,)).fetchone()
            (former,) = self._db.execute(
                "SELECT COUNT(*) FROM former_costs WHERE call_id IN (SELECT call_id FROM calls WHERE occurred_at < ?)", (until,)
            ).fetchone()
            (jobs,) = self._db.execute("SELECT COUNT(*) FROM jobs WHERE submitted_at < ?", (until,)).fetchone()
        return Expired(calls, former, jobs)

    def expire(self, until: int, limit: int) -> Expired:
        """Delete at most *limit* of the oldest calls from before *until*, and with the last of them the jobs, in one transaction."""
        self._check_file()
        with _explained(self.path), self._transaction():
            oldest = "SELECT call_id FROM calls WHERE occurred_at < ? ORDER BY occurred_at, call_id LIMIT ?"
            former = self._db.execute(f"DELETE FROM former_costs WHERE call_id IN ({oldest})", (until, limit)).rowcount
            calls = self._db.execute(f"DELETE FROM calls WHERE call_id IN ({oldest})", (until, limit)).rowcount
            jobs = self._db.execute("DELETE FROM jobs WHERE submitted_at < ?", (until,)).rowcount if calls < limit else 0
        return Expired(calls, former, jobs)

    def _checkpoint(self) -> None:
        deadline = time.monotonic() + BUSY_SECONDS
        while self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if time.monotonic() > deadline:
                raise LedgerError(
                    f"another process is reading the ledger {self.path}: end it and try again (find it with `fuser {self.path}`)"
                )
            time.sleep(0.05)

    def _files(self) -> list[Path]:
        return [self.path, self.path.with_name(f"{self.path.name}-wal")]

    def rebuild(self) -> Iterator[str]:
        """Build the rollups anew from the calls, a month in a transaction; yields each month when it is done."""
        self._check_file()
        done = end = 0
        with _explained(self.path):
            while (
                first := self._db.execute("SELECT MIN(occurred_at) FROM calls WHERE occurred_at >= ?", (end,)).fetchone()[0]
            ) is not None:
                month, begin, end = month_of(first)
                with self._transaction():
                    for rollup in ROLLUPS:  # and what stands there for months that have no calls any more
                        self._db.execute(*triggers.empty(rollup, done, end))
                        self._db.execute(triggers.fill(rollup, "occurred_at >= ? AND occurred_at < ?"), (begin, end))
                done = end
                yield month
            with self._transaction():
                for rollup in ROLLUPS:
                    self._db.execute(*triggers.empty(rollup, done, _FAR))

    def close(self) -> None:
        """Release the connection; harmless when repeated."""
        self._db.close()

    def _check_file(self) -> None:
        if _file_at(self.path) != self._file:  # SQLite would go on writing into the file that was moved away or deleted
            raise LedgerError(f"the ledger {self.path} was moved or deleted under way: it is begun anew at the next try")

    def _prepare(self, create: bool) -> None:
        # The tables first: another process that is making this ledger sets them and the id at once.
        (tables,) = self._db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        application_id, version = self._identity()
        if application_id != APPLICATION_ID:
            if application_id or tables:
                raise ForeignLedger(f"{self.path} is an SQLite file of another application, not a ledger: choose another path")
            if not create:
                raise _missing(self.path)
            self._create()
            application_id, version = self._identity()
        if version > VERSION:
            raise LedgerError(
                f"the ledger {self.path} was written by a newer version (schema {version}, this one knows {VERSION}): "
                "upgrade with pip install -U voight-middleware"
            )
        while version < VERSION:
            version = self._upgrade(version)
        self.schema_version = version
        self._db.execute("PRAGMA synchronous = NORMAL")

    def _identity(self) -> tuple[int, int]:
        (application_id,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        return application_id, version

    def _create(self) -> None:
        deadline = time.monotonic() + BUSY_SECONDS
        while True:  # the change to WAL answers "locked" at once where two processes try it at the same time
            try:
                self._db.execute("PRAGMA page_size = 8192")
                self._db.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        with self._transaction():
            if self._identity()[0] != APPLICATION_ID:
                for table in TABLES:
                    self._db.execute(table)
                self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version = {VERSION}")

    def _upgrade(self, version: int) -> int:
        with self._transaction():
            if self._identity()[1] == version:  # or another process was faster
                for statement in UPGRADES[version]:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {version + 1}")
        return self._identity()[1]

    @contextmanager
    def _transaction(self) -> Generator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._price_ids.clear()
            self._extra_keys.clear()
            if self._db.in_transaction:  # SQLite has rolled back by itself after some errors, such as a full disk
                self._db.execute("ROLLBACK")
            raise

    def _insert(self, calls: Sequence[Call], others: Sequence[Settlement | Submission], progress: Progress | None) -> int:
        with self._transaction():
            new = self._insert_calls(calls)
            for record in others:
                if isinstance(record, Submission):
                    self._submit(record)
                else:
                    self._settle(record)
            if progress is not None:
                self._db.execute(
                    "INSERT INTO segments (name, offset) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET offset = excluded.offset",
                    (progress.segment, progress.offset),
                )
        return new

    def _insert_calls(self, calls: Sequence[Call], with_rare: str = INSERT_ALL) -> int:
        common: list[Row] = []
        others: list[Row] = []
        for call in calls:
            values = common_values(call, None if call.price is None else self._price_id(call.price))
            if (rare := rare_values(call)) is None:
                common.append(values)
            else:
                others.append(values + rare)
            if call.tags.extra:
                self._learn(call.tags.extra)
        new = 0
        for rows, statement in INSERT_COMMON.items():
            while len(common) >= rows:
                some, common = common[:rows], common[rows:]
                new += self._db.execute(statement, tuple(chain.from_iterable(some))).rowcount
        if others:
            new += self._db.executemany(with_rare, others).rowcount
        return new

    def _keep_call(self, call: Call, former: Sequence[FormerPrice], anew: bool) -> int:
        if anew:
            self._db.execute("DELETE FROM former_costs WHERE call_id = ?", (call.call_id,))
            self._db.execute("DELETE FROM calls WHERE call_id = ?", (call.call_id,))
        values, rare = common_values(call, None if call.price is None else self._price_id(call.price)), rare_values(call)
        new = self._db.execute(*((INSERT_COMMON[1], values) if rare is None else (INSERT_AS_IT_IS, values + rare))).rowcount
        if new:
            self._learn(call.tags.extra)
            for price in former:
                price_id = None if price.price is None else self._price_id(price.price)
                self._db.execute(INSERT_FORMER, former_values(call.call_id, price, price_id))
        return new

    def _settle(self, settlement: Settlement) -> None:
        self._learn(settlement.tags.extra)
        if settlement.tags.user_id is None:
            return
        values = (settlement.tags.user_id, *_owner_values(settlement.tags), settlement.attribution)
        self._db.executemany(_SETTLE, [(*values, call_id) for call_id in settlement.call_ids])
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
        self._learn(submission.tags.extra)
        self._db.execute(
            "INSERT OR REPLACE INTO jobs (job, part_of, submitted_at, submission) VALUES (?, ?, ?, ?)",
            (submission.job, submission.part_of, submission.submitted_at, _encode(submission).decode()),
        )
        owner = submission
        if submission.tags.user_id is None and submission.part_of is not None:
            owner = self.submissions([submission.part_of]).get(submission.part_of, submission)
        if owner.tags.user_id is None:
            return
        parts = self._db.execute("SELECT job FROM jobs WHERE part_of = ? AND NOT (job LIKE ? || '/%')", (submission.job, submission.job))
        for job in (submission.job, *(name for (name,) in parts.fetchall())):
            self._db.execute(_OWN, (*_owner_values(owner.tags), owner.attribution, job, f"{job}/", f"{job}0"))

    def _price_id(self, price: str) -> int:
        if price not in self._price_ids:
            self._db.execute("INSERT INTO prices (price) VALUES (?) ON CONFLICT DO NOTHING", (price,))
            (price_id,) = self._db.execute("SELECT price_id FROM prices WHERE price = ?", (price,)).fetchone()
            self._price_ids[price] = price_id
        return self._price_ids[price]

    def _learn(self, extra: Mapping[str, str]) -> None:
        for key in extra:
            if key not in self._extra_keys:
                self._db.execute("INSERT INTO extra_keys (key) VALUES (?) ON CONFLICT DO NOTHING", (key,))
                self._extra_keys.add(key)

    def _question(self, zone: tzinfo | None) -> Question:
        keys = [key for (key,) in self._db.execute("SELECT key FROM extra_keys")]
        return Question(DIALECT, keys, zone, self.extent())


def _owner_values(tags: Tags) -> Row:
    return (tags.user_id, tags.plan, tags.tenant_id, tags.route, tags.release, tags.session_id, extra_text(tags.extra))


def _file_at(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _make_file(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _missing(path: Path) -> LedgerError:
    return LedgerError(
        f"there is no ledger at {path} yet: it appears with the first call that is kept (`voight doctor` says where calls go, "
        "`voight demo` shows the whole line)"
    )


@contextmanager
def _explained(path: Path) -> Generator[None]:
    """Turn the engine's errors into ``LedgerError``, with what to do."""
    try:
        yield
    except sqlite3.Error as error:
        name: str = getattr(error, "sqlite_errorname", "")
        if name.startswith("SQLITE_NOTADB"):
            raise ForeignLedger(f"{path} is no SQLite file, or an encrypted one: choose another path") from error
        if name.startswith("SQLITE_CORRUPT"):
            message = f"the ledger {path} is damaged ({error}): restore a copy, or move it aside and a new one is begun"
        elif name.startswith("SQLITE_BUSY"):
            message = f"the ledger {path} was locked by another process for {BUSY_SECONDS} seconds: find it with `fuser {path}`"
        elif name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
            message = f"the ledger {path} cannot be opened or written ({error}): check the permissions of the file and its folder"
        elif name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
            message = f"the ledger {path} cannot be written ({error}): free some disk space or choose another place"
        else:
            message = f"the ledger {path} failed: {error}"
        raise LedgerError(message) from error
