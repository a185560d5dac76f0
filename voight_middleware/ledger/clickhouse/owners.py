"""Apply the late attributions and submissions of a batch to calls and jobs, in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from msgspec.structs import replace

from voight_middleware.ledger.clickhouse.changes import attributed_late
from voight_middleware.records.call import REATTRIBUTABLE, Call, LateAttribution, Submission
from voight_middleware.records.tags import Tags


@dataclass(frozen=True, slots=True)
class Owned:
    """Jobs and the owner of their calls."""

    jobs: set[str]
    tags: Tags
    attribution: str

    def has(self, job: str | None) -> bool:
        """Return whether *job* is one of the jobs, or a part of one by its name."""
        while job:
            if job in self.jobs:
                return True
            job = job.rpartition("/")[0]
        return False


Step: TypeAlias = list[Owned] | dict[str, LateAttribution]
"""Jobs with a new owner, or late attributions by the id of their call."""


@dataclass(slots=True)
class Owners:
    """The owners in a batch."""

    fresh: dict[str, Call]
    """Calls that are not in the ledger yet. They get their owners here."""
    known: dict[str, Submission]
    """The submissions named in the batch that are in the ledger."""
    wholes: dict[str, Submission]
    """The submissions of jobs that other jobs are parts of."""
    parts: dict[str, set[str]]
    """Parts of jobs whose names do not show it."""
    jobs: list[tuple[Submission, bool]] = field(default_factory=list)
    """Submissions to store, each with whether it replaces another one."""
    steps: list[Step] = field(default_factory=list)
    """The changes to make to calls in the ledger."""

    def submit(self, submission: Submission) -> None:
        """Add a submission. The first one of a job counts."""
        if submission.job not in self.known:
            self._store(submission, replaced=False)

    def attribute_late(self, late: LateAttribution) -> None:
        """Add the owner of earlier calls and jobs."""
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
                self._store(
                    replace(submission, tags=tags, attribution=late.attribution), replaced=True
                )

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
        owned = Owned(
            {submission.job, *self.parts.get(submission.job, ())}, owner.tags, owner.attribution
        )
        for call_id, call in self.fresh.items():
            if owned.has(call.job):
                self.fresh[call_id] = replace(call, tags=owned.tags, attribution=owned.attribution)
        if self.steps and isinstance(last := self.steps[-1], list):
            last.append(owned)
        else:
            self.steps.append([owned])
