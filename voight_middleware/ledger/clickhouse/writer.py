"""
Write records to a ClickHouse ledger, which has no transactions.

Every step can be repeated. Existing calls are not inserted again, owners and results are only added
if missing, and the progress comes last. After a crash, the batch is ingested again from the
journal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from voight_middleware.ledger.base import Progress
from voight_middleware.ledger.clickhouse import changes
from voight_middleware.ledger.clickhouse.database import Database
from voight_middleware.ledger.clickhouse.dialect import literal
from voight_middleware.ledger.clickhouse.owners import Owned, Owners
from voight_middleware.ledger.clickhouse.schema import (
    INSERTED,
    checked,
    first_wins,
    insertable,
    last_wins,
    now,
)
from voight_middleware.ledger.rows import REATTRIBUTABLE_SQL, Row, encode
from voight_middleware.records.call import (
    Call,
    LateAttribution,
    Submission,
    is_open_job,
    with_result,
)

JOB = ("job", "part_of", "submitted_at", "submission", "version")
"""The columns of a submitted job."""
_decode = msgspec.json.Decoder(Submission).decode


class Writer:
    """Writes records to *db*."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._extra_keys: set[str] = set()

    def insert(
        self,
        calls: Sequence[Call],
        others: Sequence[LateAttribution | Submission],
        progress: Progress | None,
    ) -> int:
        """
        Store *calls*, apply *others* in their order, then save *progress*. Return the number of
        calls that were new or got their usage.

        Raises:
            ValueError: A record cannot be stored, and nothing was.
        """
        fresh, results, times, repeated = self._sort(calls)
        owners = self._owners(fresh, others)
        rows = {call_id: checked(call) for call_id, call in fresh.items()}
        result_rows = [checked(call) for call in results.values()]
        submitted = [job_row(submission, replaced) for submission, replaced in owners.jobs]
        self.learn([call.tags.extra for call in (*fresh.values(), *results.values())])
        self.learn([record.tags.extra for record in others])
        self.add(rows, fresh)
        self._drop_doubles([call_id for call_id, call in fresh.items() if call.job is not None])
        self._db.days.changing(times[call_id] for call_id in results)
        self._db.change(changes.results(result_rows))
        for step in owners.steps:
            if isinstance(step, list):
                self._attribute_jobs(step, fresh)
            else:
                self._attribute_late(step)
        if submitted:
            # From here on, writers of results know their owner.
            self._db.add("jobs", JOB, submitted)
            self._attribute_jobs(
                [owned for step in owners.steps if isinstance(step, list) for owned in step],
                fresh,
                lacking=True,
            )
        if progress is not None:
            self._db.add(
                "segments",
                ("name", "offset", "version"),
                [encode((progress.segment, progress.offset, last_wins(now())))],
            )
        return len(fresh) + len(result_rows) + repeated

    def add(self, rows: Mapping[str, Row], calls: Mapping[str, Call]) -> None:
        """Insert calls that are not there yet."""
        self._db.days.changing(call.occurred_at for call in calls.values())
        at = now()
        lines = [
            insertable(row, first_wins(at, complete=not is_open_job(calls[call_id])))
            for call_id, row in rows.items()
        ]
        self._db.add("calls", INSERTED, lines)

    def learn(self, extras: Iterable[Mapping[str, str]]) -> None:
        """Store the keys of the application's tags."""
        new = {key for extra in extras for key in extra} - self._extra_keys
        self._db.add("extra_keys", ("key", "version"), [encode((key, 0)) for key in sorted(new)])
        self._extra_keys |= new

    def submissions(self, jobs: Collection[str]) -> dict[str, Submission]:
        """Return the submissions of those *jobs* that are known."""
        if not jobs:
            return {}
        marks = ", ".join("?" * len(jobs))
        rows = self._db.rows(
            f"SELECT job, submission FROM {self._db.name}.jobs FINAL WHERE job IN ({marks})", jobs
        )
        return {job: _decode(text) for job, text in rows}

    def _sort(
        self, calls: Sequence[Call]
    ) -> tuple[dict[str, Call], dict[str, Call], dict[str, int], int]:
        """
        Return new calls, results of jobs in the ledger, the times of calls in the ledger, and the
        number of jobs with both submission and result in *calls*.
        """
        query = (
            f"SELECT call_id, {changes.OPEN}, occurred_at FROM {self._db.name}.calls FINAL WHERE"
        )
        kept, times = dict[str, bool](), dict[str, int]()
        for call_id, unread, at in self._db.about([call.call_id for call in calls], query):
            kept[call_id], times[call_id] = bool(unread), at
        fresh, results, repeated = dict[str, Call](), dict[str, Call](), 0
        for call in calls:
            if call.call_id in kept:
                if kept[call.call_id] and changes.has_result(call):
                    before = results.get(call.call_id)
                    if before is None or before.raw_usage is None:
                        results[call.call_id] = call
            elif (first := fresh.get(call.call_id)) is None:
                fresh[call.call_id] = call
            elif is_open_job(first) and changes.has_result(call):
                fresh[call.call_id] = with_result(first, call)
                repeated += 1
        return fresh, results, times, repeated

    def _owners(
        self, fresh: dict[str, Call], others: Sequence[LateAttribution | Submission]
    ) -> Owners:
        """
        Give *fresh* calls their owners. Collect the changes to calls and jobs that are in the
        ledger already.
        """
        named = {
            name
            for record in others
            if isinstance(record, LateAttribution)
            for name in record.call_ids
            if "/" in name
        }
        submitted = {record.job: record for record in others if isinstance(record, Submission)}
        known = self.submissions(named | submitted.keys())
        submissions = (*known.values(), *submitted.values())
        wholes = {
            submission.part_of for submission in submissions if submission.part_of is not None
        } - known.keys()
        owners = Owners(
            fresh, known, self.submissions(wholes), self._parts(known.keys() | submitted.keys())
        )
        for record in others:
            if isinstance(record, Submission):
                owners.submit(record)
            else:
                owners.attribute_late(record)
        return owners

    def _parts(self, jobs: Collection[str]) -> dict[str, set[str]]:
        """Return the parts of jobs whose names do not show it."""
        parts: dict[str, set[str]] = {}
        if jobs:
            marks = ", ".join("?" * len(jobs))
            for job, whole in self._db.rows(
                f"SELECT job, part_of FROM {self._db.name}.jobs FINAL WHERE part_of IN ({marks})",
                jobs,
            ):
                parts.setdefault(whole, set()).add(job)
        return parts

    def _attribute_jobs(
        self, owners: Sequence[Owned], fresh: Collection[str], *, lacking: bool = False
    ) -> None:
        """
        Give the calls of jobs to their submitters. The last of *owners* wins. With *lacking*, only
        calls without a user.
        """
        names = {name for owned in owners for name in owned.jobs}
        if not names:
            return
        either = []
        for slashes in sorted({name.count("/") for name in names}):
            jobs = ", ".join(literal(name) for name in sorted(names) if name.count("/") == slashes)
            either.append(
                "arrayStringConcat(arraySlice(splitByChar('/', assumeNotNull(job)), 1, "
                f"{slashes + 1}), '/') IN ({jobs})"
            )
        # Without FINAL, which would scan every call. The calls found are read again by id.
        rows = self._db.rows(
            f"SELECT DISTINCT call_id FROM {self._db.name}.calls WHERE job IS NOT NULL AND "
            f"({' OR '.join(either)})"
        )
        query = (
            "SELECT call_id, occurred_at, job, user_id, attribution FROM "
            f"{self._db.name}.calls FINAL WHERE"
        )
        given, times = dict[str, Owned](), list[int]()
        for call_id, at, job, user_id, attribution in self._db.about(
            [call_id for (call_id,) in rows if call_id not in fresh], query
        ):
            owned = next((owner for owner in reversed(owners) if owner.has(job)), None)
            if owned is not None and (
                user_id is None
                if lacking
                else (user_id, attribution) != (owned.tags.user_id, owned.attribution)
            ):
                given[call_id] = owned
                times.append(at)
        self._db.days.changing(times)
        self._db.change(
            changes.owners(
                {call_id: (owned.tags, owned.attribution) for call_id, owned in given.items()}
            )
        )

    def _attribute_late(self, owners: Mapping[str, LateAttribution]) -> None:
        query = (
            f"SELECT call_id, occurred_at FROM {self._db.name}.calls FINAL WHERE attribution IN "
            f"{REATTRIBUTABLE_SQL} AND"
        )
        times = {str(call_id): int(at) for call_id, at in self._db.about(owners, query)}
        self._db.days.changing(times.values())
        self._db.change(changes.late_attributions({call_id: owners[call_id] for call_id in times}))

    def _drop_doubles(self, call_ids: Collection[str]) -> None:
        """
        Keep one row of a job that two processes have reported at once.

        The rows may be in different months. A query on one of the months would not see the other
        row.
        """
        query = (
            "SELECT call_id, MAX(version), groupArray(occurred_at) FROM "
            f"{self._db.name}.calls WHERE"
        )
        for call_id, version, times in list(
            self._db.about(call_ids, query, "GROUP BY call_id HAVING COUNT(DISTINCT version) > 1")
        ):
            self._db.days.changing(times)
            self._db.alter(
                "calls", f"DELETE WHERE call_id = {literal(call_id)} AND version < {version}"
            )


def job_row(submission: Submission, replaced: bool) -> bytes:
    """
    Return a submission as a line of ``JSONCompactEachRow``. *replaced* means that it replaces
    another row.
    """
    version = last_wins(now()) if replaced else first_wins(now())
    return encode(
        (
            submission.job,
            submission.part_of,
            submission.submitted_at,
            encode(submission).decode(),
            version,
        )
    )
