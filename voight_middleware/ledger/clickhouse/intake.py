"""
How records get into a ClickHouse ledger, which has no transactions.

Every step can be done again: calls that are there are not added again, owners and answers are only filled in where they are missing, and
the progress comes last. What a crash has left half-way is finished by the repetition of the batch, which the journal still has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
from msgspec.structs import replace

from voight_middleware.call import Call, Settlement, Submission
from voight_middleware.ledger.base import Progress
from voight_middleware.ledger.clickhouse import changes
from voight_middleware.ledger.clickhouse.changes import UNSETTLED
from voight_middleware.ledger.clickhouse.database import Database
from voight_middleware.ledger.clickhouse.dialect import literal
from voight_middleware.ledger.clickhouse.schema import INSERTED, checked, first_wins, insertable, last_wins, now
from voight_middleware.ledger.rows import Row, encode
from voight_middleware.tags import Tags

JOB = ("job", "part_of", "submitted_at", "submission", "version")
"""The columns of a submitted job."""
_decode = msgspec.json.Decoder(Submission).decode


class Intake:
    """Brings records into *db*."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._extra_keys: set[str] = set()

    def insert(self, calls: Sequence[Call], others: Sequence[Settlement | Submission], progress: Progress | None) -> int:
        """
        Keep *calls*, then apply *others* in their order, then note *progress*; answers how many calls were new or told of.

        Raises:
            ValueError: A record cannot be kept, and nothing was.
        """
        fresh, told, repeated = self._sorted_out(calls)
        jobs, steps = self._owners(fresh, others)
        rows = {call_id: checked(call) for call_id, call in fresh.items()}
        answers = [checked(call) for call in told.values()]
        submitted = [job_row(submission, replaced) for submission, replaced in jobs]
        self.learn([call.tags.extra for call in (*fresh.values(), *told.values())])
        self.learn([record.tags.extra for record in others])
        self.add(rows, fresh)
        self._drop_doubles([call_id for call_id, call in fresh.items() if call.job is not None])
        self._db.change(changes.answers(answers))
        self._db.add("jobs", JOB, submitted)  # first: who adds an answer from here on finds its owner by himself
        for step in steps:
            if isinstance(step, _Owned):
                self._own(step)
            else:
                self._settle(step)
        if progress is not None:
            self._db.add("segments", ("name", "offset", "version"), [encode((progress.segment, progress.offset, last_wins(now())))])
        return len(fresh) + len(answers) + repeated

    def add(self, rows: Mapping[str, Row], calls: Mapping[str, Call]) -> None:
        """Add calls that are not there yet."""
        at = now()
        lines = [insertable(row, first_wins(at, told=not changes.is_open(calls[call_id]))) for call_id, row in rows.items()]
        self._db.add("calls", INSERTED, lines)

    def learn(self, extras: Iterable[Mapping[str, str]]) -> None:
        """Note the keys of the application's tags."""
        new = {key for extra in extras for key in extra} - self._extra_keys
        self._db.add("extra_keys", ("key", "version"), [encode((key, 0)) for key in sorted(new)])
        self._extra_keys |= new

    def submissions(self, jobs: Collection[str]) -> dict[str, Submission]:
        """Those of *jobs* that are known."""
        if not jobs:
            return {}
        marks = ", ".join("?" * len(jobs))
        rows = self._db.rows(f"SELECT job, submission FROM {self._db.name}.jobs FINAL WHERE job IN ({marks})", jobs)
        return {job: _decode(text) for job, text in rows}

    def _sorted_out(self, calls: Sequence[Call]) -> tuple[dict[str, Call], dict[str, Call], int]:
        """Calls that are not in the ledger, what is told of jobs that are, and how many jobs were begun and told of in *calls*."""
        asked = f"SELECT call_id, {changes.OPEN} FROM {self._db.name}.calls FINAL WHERE"
        kept = {call_id: bool(unread) for call_id, unread in self._db.about([call.call_id for call in calls], asked)}
        fresh, told, repeated = dict[str, Call](), dict[str, Call](), 0
        for call in calls:
            if call.call_id in kept:
                if kept[call.call_id] and changes.tells(call):
                    before = told.get(call.call_id)
                    if before is None or before.raw_usage is None:
                        told[call.call_id] = call
            elif (first := fresh.get(call.call_id)) is None:
                fresh[call.call_id] = call
            elif changes.is_open(first) and changes.tells(call):
                fresh[call.call_id] = changes.answered(first, call)
                repeated += 1
        return fresh, told, repeated

    def _owners(self, fresh: dict[str, Call], others: Sequence[Settlement | Submission]) -> tuple[list[_Kept], list[_Step]]:
        """Give *fresh* calls their owners; answers the jobs to be kept, and what is to be done to calls that are in the ledger already."""
        named = {name for record in others if isinstance(record, Settlement) for name in record.call_ids if "/" in name}
        known = self.submissions(named | {record.job for record in others if isinstance(record, Submission)})
        jobs, steps = list[_Kept](), list[_Step]()
        for record in others:
            if isinstance(record, Submission):
                if record.job not in known:
                    known[record.job] = record
                    jobs.append((record, False))
                steps.append(self._owned(known[record.job], known, fresh))
            elif record.tags.user_id is not None:
                for name in record.call_ids:
                    if name in fresh:
                        fresh[name] = changes.settled(fresh[name], record)
                    elif name in known:
                        submission = known[name]
                        if submission.attribution in UNSETTLED:
                            tags = submission.tags.merge(record.tags)
                            known[name] = replace(submission, tags=tags, attribution=record.attribution)
                            jobs.append((known[name], True))
                        steps.append(self._owned(known[name], known, fresh))
                    elif steps and isinstance(steps[-1], dict) and name not in steps[-1]:
                        steps[-1][name] = record
                    else:
                        steps.append({name: record})
        return jobs, steps

    def _owned(self, submission: Submission, known: dict[str, Submission], fresh: dict[str, Call]) -> _Owned:
        """Whose the answers of a submitted job are; *fresh* ones are given to him."""
        owner = submission
        if submission.tags.user_id is None and (whole := submission.part_of) is not None:
            owner = known.get(whole) or self.submissions([whole]).get(whole, submission)
        parts = self._db.rows(f"SELECT job FROM {self._db.name}.jobs FINAL WHERE part_of = ?", [submission.job])
        inside = [one.job for one in known.values() if one.part_of == submission.job]
        names = list(dict.fromkeys((submission.job, *(name for (name,) in parts), *inside)))
        step = _Owned(names if owner.tags.user_id is not None else [], owner.tags, owner.attribution)
        for call_id, call in fresh.items():
            if call.job is not None and any(call.job == name or call.job.startswith(f"{name}/") for name in step.jobs):
                fresh[call_id] = replace(call, tags=step.tags, attribution=step.attribution)
        return step

    def _own(self, step: _Owned) -> None:
        for job in step.jobs:
            asked = f"SELECT DISTINCT call_id FROM {self._db.name}.calls FINAL WHERE (job = ? OR (job > ? AND job < ?))"
            differs = "AND (user_id IS NULL OR user_id <> ? OR attribution <> ?)"
            rows = self._db.rows(f"{asked} {differs}", [job, f"{job}/", f"{job}0", step.tags.user_id, step.attribution])
            self._db.change(changes.owner([call_id for (call_id,) in rows], step.tags, step.attribution))

    def _settle(self, owners: Mapping[str, Settlement]) -> None:
        unsettled = ", ".join(map(literal, UNSETTLED))
        asked = f"SELECT call_id FROM {self._db.name}.calls FINAL WHERE attribution IN ({unsettled}) AND"
        here = [call_id for (call_id,) in self._db.about(owners, asked)]
        self._db.change(changes.settlements({call_id: owners[call_id] for call_id in here}))

    def _drop_doubles(self, call_ids: Collection[str]) -> None:
        """
        Of a job that two processes have told of at the same moment, perhaps at times in different months, one row stays: a question
        about one of the months would not see the other.
        """
        asked = f"SELECT call_id, MAX(version) FROM {self._db.name}.calls WHERE"
        for call_id, version in list(self._db.about(call_ids, asked, "GROUP BY call_id HAVING COUNT(DISTINCT version) > 1")):
            self._db.alter("calls", f"DELETE WHERE call_id = {literal(call_id)} AND version < {version}")


@dataclass(slots=True)
class _Owned:
    """Jobs, and whose their answers are."""

    jobs: list[str]
    tags: Tags
    attribution: str


_Step: TypeAlias = _Owned | dict[str, Settlement]
_Kept: TypeAlias = tuple[Submission, bool]
"""A submission, and whether it takes the place of another one."""


def job_row(submission: Submission, replaced: bool) -> bytes:
    """A submitted job as a line of ``JSONCompactEachRow``; *replaced* says that it takes the place of another row."""
    version = last_wins(now()) if replaced else first_wins(now())
    return encode((submission.job, submission.part_of, submission.submitted_at, encode(submission).decode(), version))
