"""What the columns of the task queues share."""

from __future__ import annotations

import signal
from typing import Any

from ..support.queue_places import wait_for_places
from .matrix import check_column

CLEAN = ("next task on the same worker", "task of a schedule", "task from a process without us")
"""Places that are nobody's: a task that has an owner there has somebody else's."""
LAST = "Thread(target=carry(fn))"
"""The last of the places of ``tests/apps/places.py``."""


def environment(url: str, provider: Any, **more: str) -> dict[str, str]:
    """The environment of a worker: it only writes its calls down, and the test brings them into the ledger."""
    return {"BROKER": url, "PROVIDER_OPENAI": provider.openai_base_url, "VOIGHT_INGEST": "0", **more}


def check_queue(framework: str, worker: str, workers: Any, order: list[str], how: signal.Signals = signal.SIGTERM) -> None:
    """
    Wait for a call in every place, end the workers, and hold the column of one queue against what is written down.

    The tasks of its test were sent for alice, those of ``CLEAN`` for nobody.

    Args:
        framework: As its own documentation spells it.
        worker: The kind of worker.
        workers: Those that run; their calls are each tagged with its place.
        order: The places that are not those of ``tests/apps/places.py``, first.
        how: The signal that ends the workers.
    """
    wait_for_places(workers, [*order, LAST])
    owners: dict[str, set[str | None]] = {}
    for call in workers.calls(how):
        owners.setdefault(call.tags.extra["place"], set()).add(call.tags.user_id)
    found: dict[str, str] = {}
    for place in [*order, *(place for place in owners if place not in order)]:
        expected = None if place in CLEAN else "alice"
        found[place] = "works" if owners[place] == {expected} else "lost" if owners[place] == {None} else "wrong"
    check_column("queues", framework, worker, found)
