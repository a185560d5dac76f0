"""Workers of task queues, and whose the calls are that their tasks have made."""

from __future__ import annotations

import textwrap
from typing import Any

from voight_middleware.records.call import Call

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


CELERY: dict[str, list[str]] = {
    "prefork": ["-P", "prefork", "-c", "2"],
    "threads": ["-P", "threads", "-c", "8", "-B", "-s", "schedule"],  # with beat inside
    "gevent": ["-P", "gevent", "-c", "8"],
    "solo": ["-P", "solo"],
    "one process": ["-P", "prefork", "-c", "1", "--max-tasks-per-child", "2"],  # and a new one for every two tasks
}
"""The options of a Celery worker, by its pool."""


def celery_worker(pool: str, url: str, workers: Any, provider: Any) -> QueueWorker:
    """Start a worker of ``celery_app``."""
    environ = {"BROKER": url, "PROVIDER_OPENAI": provider.openai_base_url, "POOL": pool}
    command = ["celery", "-A", "celery_app", "worker", *CELERY[pool], "-l", "INFO", "--without-gossip", "--without-mingle"]
    return QueueWorker(workers, command, environ)
