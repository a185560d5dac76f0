"""Late owners: what the lates and submissions of a batch do to calls and jobs, in the order in which they were told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from msgspec.structs import replace

from voight_middleware.ledger.clickhouse.changes import attributed_late
from voight_middleware.records.call import REATTRIBUTABLE, Call, LateAttribution, Submission
from voight_middleware.records.tags import Tags


@dataclass(frozen=True, slots=True)
class Owned:
    """Jobs, and whose their answers are."""

    jobs: set[str]
    tags: Tags
    attribution: str

    def has(self, job: str | None) -> bool:
        """Whether *job* is one of them, or a part of one by its name."""
        while job:
            if job in self.jobs:
                return True
            job = job.rpartition("/")[0]
        return False


Step: TypeAlias = list[Owned] | dict[str, LateAttribution]
"""Jobs that have got an owner, or calls that are settled, by their id."""


@dataclass(slots=True)
class Owners:
    """The owners that a batch tells of."""

    fresh: dict[str, Call]
    """Calls that are not in the ledger yet: they are given their owners here."""
    known: dict[str, Submission]
    """The submissions that the batch speaks of, as far as they are in the ledger."""
    wholes: dict[str, Submission]
    """Those that others are parts of."""
    parts: dict[str, set[str]]
    """The parts of jobs whose names do not tell it."""
    jobs: list[tuple[Submission, bool]] = field(default_factory=list)
    """Submissions to be kept, each with whether it takes the place of another one."""
    steps: list[Step] = field(default_factory=list)
    """What is to be done to calls in the ledger."""

    def submit(self, submission: Submission) -> None:
        """Somebody has submitted a job; the first one counts."""
        if submission.job not in self.known:
            self._store(submission, replaced=False)

    def attribute_late(self, late: LateAttribution) -> None:
        """The owner of calls and jobs has become known."""
        if late.tags.user_id is None:
            return
        for name in late.call_ids:
            if name in self.fresh:
                self.fresh[name] = attributed_late(self.fresh[name], late)
            elif self.steps and isinstance(last := self.steps[-1], dict) and name not in last:
                last[name] = late
            else:
                self.steps.append({name: late})
        for name in late.call_ids:
            submission = self.known.get(name) if "/" in name else None
            if submission is not None and submission.attribution in REATTRIBUTABLE:
                tags = submission.tags.merge(late.tags)
                self._store(replace(submission, tags=tags, attribution=late.attribution), replaced=True)

    def _store(self, submission: Submission, *, replaced: bool) -> None:
        self.known[submission.job] = submission
        self.jobs.append((submission, replaced))
        whole = submission.part_of
        owner = submission
        if whole is not None:
            self.parts.setdefault(whole, set()).add(submission.job)
            if submission.tags.user_id is None:
                owner = self.known.get(whole) or self.wholes.get(whole, submission)
        if owner.tags.user_id is None:
            return
        owned = Owned({submission.job, *self.parts.get(submission.job, ())}, owner.tags, owner.attribution)
        for call_id, call in self.fresh.items():
            if owned.has(call.job):
                self.fresh[call_id] = replace(call, tags=owned.tags, attribution=owned.attribution)
        if self.steps and isinstance(last := self.steps[-1], list):
            last.append(owned)
        else:
            self.steps.append([owned])
