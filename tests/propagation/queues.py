"""What the columns of the task queues share."""

from __future__ import annotations

from typing import Any

from .places import check_column

CLEAN = ("next task on the same worker", "task of a schedule", "task from a process without us")
"""Places that are nobody's: a task that has an owner there has somebody else's."""


def check_queue(framework: str, worker: str, calls: list[Any], order: list[str]) -> None:
    """
    Hold the column of one queue against what is written down; the tasks of its test were sent for alice, those of ``CLEAN`` for nobody.

    Args:
        framework: As its own documentation spells it.
        worker: The kind of worker.
        calls: All calls of the ledger, each tagged with its place.
        order: The places that are not those of ``tests/apps/places.py``, first.
    """
    owners: dict[str, set[str | None]] = {}
    for call in calls:
        owners.setdefault(call.tags.extra["place"], set()).add(call.tags.user_id)
    assert set(order) <= owners.keys(), "places without a call"
    found: dict[str, str] = {}
    for place in [*order, *(place for place in owners if place not in order)]:
        expected = None if place in CLEAN else "alice"
        found[place] = "works" if owners[place] == {expected} else "lost" if owners[place] == {None} else "wrong"
    check_column("queues", framework, worker, found)
