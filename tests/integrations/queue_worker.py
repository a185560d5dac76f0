"""Workers of task queues, and whose the calls are that their tasks have made."""

from __future__ import annotations

import textwrap
from typing import Any

from voight_middleware.call import Call

from ..support.queue_places import wait_for_places

Owners = dict[str, tuple[str | None, str]]
"""Owner and attribution by place."""


def owners(calls: list[Call]) -> Owners:
    """Return owner and attribution by place; fails where a place is there twice."""
    places = sorted(call.tags.extra["place"] for call in calls)
    assert places == sorted(set(places)), "one call in each place"
    return {call.tags.extra["place"]: (call.tags.user_id, call.attribution) for call in calls}


class QueueWorker:
    """A worker with a ledger of its own: several tests send it tasks, and each knows its own by their places."""

    def __init__(self, workers: Any, command: list[str], environ: dict[str, str]) -> None:
        self.workers = workers
        self._environ = environ
        self._expected: Owners = {}
        self.ignored: set[str] = set()
        """Places that no test has sent a task to."""
        self.process = workers.start(*command, **environ)

    def send(self, source: str) -> str:
        """Run *source* as a process that sends tasks; answers what it printed."""
        return str(self.workers.run(textwrap.dedent(source), BROKER=self._environ["BROKER"]))

    def expect(self, expected: Owners) -> dict[str, Call]:
        """Wait for a call in each of these places; each has its owner and attribution, and nothing else was called. The calls by place."""
        self._expected |= expected
        wait_for_places(self.workers, expected)
        calls = [call for call in self.workers.calls_so_far() if call.tags.extra["place"] not in self.ignored]
        assert owners(calls) == self._expected
        return {call.tags.extra["place"]: call for call in calls}
