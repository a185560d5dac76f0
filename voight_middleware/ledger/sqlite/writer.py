"""
Write a batch inside its transaction: insert calls, store prices and extra keys, attribute calls.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence

import msgspec

from voight_middleware.ledger.base import PriceVersion, Progress
from voight_middleware.ledger.rows import REATTRIBUTABLE_SQL, Row, extra_text
from voight_middleware.ledger.sqlite.intake import Intake
from voight_middleware.ledger.sqlite.packed import call_key
from voight_middleware.ledger.sqlite.schema import (
    COMPLETE,
    INSERT_FORMER,
    KEEP_FORMER,
    OPEN_JOB,
    REPRICE,
    former_values,
    read_values,
    repriced_values,
    result_values,
)
from voight_middleware.records.call import REATTRIBUTABLE, Call, LateAttribution, Submission
from voight_middleware.records.tags import Tags

_ATTRIBUTE_LATE = f"""
UPDATE calls SET
    user_id = IIF(attribution = 'request', ?, COALESCE(user_id, ?)), plan = COALESCE(plan, ?), tenant_id = COALESCE(tenant_id, ?),
    route = COALESCE(route, ?), release = COALESCE(release, ?), session_id = COALESCE(session_id, ?),
    tags_extra = COALESCE(json_patch(NULLIF(?, ''), COALESCE(tags_extra, '{{}}')), tags_extra),
    attribution = ?
WHERE call_key = ? AND attribution IN {REATTRIBUTABLE_SQL}"""

_OWN = """
UPDATE calls SET
    user_id = ?, plan = ?, tenant_id = ?, route = ?, release = ?, session_id = ?, tags_extra = NULLIF(?, ''), attribution = ?
WHERE job = ? OR (job > ? AND job < ?)"""
"""The parts of a job sort between its name with a slash and its name with the next character."""

_encode = msgspec.json.Encoder().encode
_decode_submission = msgspec.json.Decoder(Submission).decode


class Writer:
    """Writes through one connection. Call every method inside a transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._intake = Intake(db, self._price_id)
        self._price_ids: dict[str, int] = {}
        self._extra_keys: set[str] = set()

    def prepare(self) -> None:
        """Prepare for inserts. Call it outside of a transaction."""
        self._intake.prepare()

    def forget(self) -> None:
        """Forget what was learned: the transaction was rolled back, or texts were erased."""
        self._intake.forget()
        self._price_ids.clear()
        self._extra_keys.clear()

    def insert(
        self,
        calls: Sequence[Call],
        others: Sequence[LateAttribution | Submission],
        progress: Progress | None,
        *,
        careful: bool = False,
    ) -> int:
        """
        See ``Ledger.insert``.

        Raises:
            KnownCalls: Some calls are there already. Repeat it in another transaction, *careful*.
        """
        self._intake.begin()
        jobs = [call for call in calls if call.job is not None] if careful else []
        others_ = [call for call in calls if call.job is None] if careful else calls
        new = self._insert_calls(others_, careful=careful) + sum(map(self._insert_job, jobs))
        for record in others:
            if isinstance(record, Submission):
                self._submit(record)
            else:
                self._attribute_late(record)
        if progress is not None:
            self._db.execute(
                "INSERT INTO segments (name, offset) VALUES (?, ?) ON CONFLICT (name) DO UPDATE "
                "SET offset = excluded.offset",
                (progress.segment, progress.offset),
            )
        return new

    def import_calls(
        self, calls: Sequence[Call], former: Mapping[str, Sequence[PriceVersion]], replace: bool
    ) -> int:
        """See ``Ledger.import_calls``."""
        self._intake.begin()
        single = [call for call in calls if replace or former.get(call.call_id)]
        others = [call for call in calls if not (replace or former.get(call.call_id))]
        new = sum(self._import_call(call, former.get(call.call_id, ()), replace) for call in single)
        return new + self._insert_calls(others, careful=True)

    def reprice(self, changes: Sequence[tuple[Call, Call]], now: int) -> int:
        """See ``Ledger.reprice``. *changes* has changed calls only."""
        count = 0
        for before, after in changes:
            if self._db.execute(KEEP_FORMER, (now, *read_values(before))).rowcount:
                price_id = None if after.price is None else self._price_id(after.price)
                self._db.execute(REPRICE, repriced_values(after, price_id))
                count += 1
        return count

    def _insert_calls(self, calls: Sequence[Call], *, careful: bool) -> int:
        for call in calls:
            if call.tags.extra:
                self._learn(call.tags.extra)
        return self._intake.insert(calls, careful=careful)

    def _insert_job(self, call: Call) -> int:
        """Insert the call of a job, or give the call of its submission its result."""
        row = self._db.execute(OPEN_JOB, (call_key(call.call_id),)).fetchone()
        if row is None:
            return self._insert_calls([call], careful=True)
        if not row[0] or (call.raw_usage is None and call.outcome == "ok"):
            return 0
        price_id = None if call.price is None else self._price_id(call.price)
        self._db.execute(COMPLETE, result_values(call, price_id))
        return 1

    def _import_call(self, call: Call, former: Sequence[PriceVersion], replace: bool) -> int:
        if replace:
            self._db.execute("DELETE FROM former_costs WHERE call_id = ?", (call.call_id,))
            self._db.execute("DELETE FROM calls WHERE call_key = ?", (call_key(call.call_id),))
        new = self._insert_calls([call], careful=True)
        if new:
            for price in former:
                price_id = None if price.price is None else self._price_id(price.price)
                self._db.execute(INSERT_FORMER, former_values(call.call_id, price, price_id))
        return new

    def _attribute_late(self, late: LateAttribution) -> None:
        self._learn(late.tags.extra)
        if late.tags.user_id is None:
            return
        values = (late.tags.user_id, *_owner_values(late.tags), late.attribution)
        self._db.executemany(_ATTRIBUTE_LATE, [(*values, call_key(id_)) for id_ in late.call_ids])
        jobs = [name for name in late.call_ids if "/" in name]
        for submission in submissions(self._db, jobs).values():
            if submission.attribution in REATTRIBUTABLE:
                tags = submission.tags.merge(late.tags)
                self._store(
                    msgspec.structs.replace(submission, tags=tags, attribution=late.attribution)
                )

    def _submit(self, submission: Submission) -> None:
        if not submissions(self._db, [submission.job]):
            self._store(submission)

    def _store(self, submission: Submission) -> None:
        """Store a submission and make it the owner of its job's existing calls."""
        self._learn(submission.tags.extra)
        self._db.execute(
            "INSERT OR REPLACE INTO jobs (job, part_of, submitted_at, submission) VALUES (?, ?, "
            "?, ?)",
            (
                submission.job,
                submission.part_of,
                submission.submitted_at,
                _encode(submission).decode(),
            ),
        )
        owner = submission
        if submission.tags.user_id is None and submission.part_of is not None:
            owner = submissions(self._db, [submission.part_of]).get(submission.part_of, submission)
        if owner.tags.user_id is None:
            return
        parts = self._db.execute(
            "SELECT job FROM jobs WHERE part_of = ? AND NOT (job LIKE ? || '/%')",
            (submission.job, submission.job),
        )
        for job in (submission.job, *(name for (name,) in parts.fetchall())):
            self._db.execute(
                _OWN, (*_owner_values(owner.tags), owner.attribution, job, f"{job}/", f"{job}0")
            )

    def _price_id(self, price: str) -> int:
        if price not in self._price_ids:
            self._db.execute(
                "INSERT INTO prices (price) VALUES (?) ON CONFLICT DO NOTHING", (price,)
            )
            (price_id,) = self._db.execute(
                "SELECT price_id FROM prices WHERE price = ?", (price,)
            ).fetchone()
            self._price_ids[price] = price_id
        return self._price_ids[price]

    def _learn(self, extra: Mapping[str, str]) -> None:
        for key in extra:
            if key not in self._extra_keys:
                self._db.execute(
                    "INSERT INTO extra_keys (key) VALUES (?) ON CONFLICT DO NOTHING", (key,)
                )
                self._extra_keys.add(key)


def submissions(db: sqlite3.Connection, jobs: Collection[str]) -> dict[str, Submission]:
    """Return the submissions of those *jobs* that are known."""
    known: dict[str, Submission] = {}
    for job in jobs:
        row = db.execute("SELECT submission FROM jobs WHERE job = ?", (job,)).fetchone()
        if row is not None:
            known[job] = _decode_submission(row[0])
    return known


def _owner_values(tags: Tags) -> Row:
    return (
        tags.user_id,
        tags.plan,
        tags.tenant_id,
        tags.route,
        tags.release,
        tags.session_id,
        extra_text(tags.extra),
    )
