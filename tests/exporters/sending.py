"""Ways to have calls sent as events: by this process, and by a delivery that makes rounds on demand."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import voight_middleware as voight
from voight_middleware.config.settings import Settings
from voight_middleware.config.values import EventsTarget
from voight_middleware.events.outbox import Status, status
from voight_middleware.pipeline.journal import Journal
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.pipeline.send_waiting import send_waiting
from voight_middleware.pipeline.supervisor import IngestSupervisor
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Tags

from ..support.event_server import EventServer

NewCall = Callable[..., Call]
USAGE = {"prompt_tokens": 10, "completion_tokens": 2}
FAST = 60_000
"""Events per minute, where the test is about something else."""


def spend(user: str | None = "u_7", **values: Any) -> str:
    """Record a call of this process and return its id."""
    with voight.tag(user_id=user):
        return voight.record(**({"provider": "openai", "model": "gpt-5-nano", "usage": USAGE} | values))


def kept(journal: Path) -> Status:
    """Return the outbox as it is now."""
    found = status(journal)
    assert found is not None
    return found


def pump_until(done: Callable[[], object], seconds: float = 30) -> None:
    """Make rounds of this process until then."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{done} did not hold"
        voight.flush()
        time.sleep(0.01)


def pump(server: EventServer, count: int, seconds: float = 30) -> None:
    """Make rounds of this process until the server has *count* events."""
    pump_until(lambda: len(server.events) >= count, seconds)


def close() -> None:
    """End the meter of this process, as at the end of the process."""
    current_meter().close()


def write(folder: Path, *calls: Call) -> list[str]:
    """Write *calls* as a process does that is gone by now; return their ids."""
    journal = Journal(folder)
    for call in calls:
        journal.append(call)
    journal.rotate()
    return [call.call_id for call in calls]


class Sending:
    """A delivery that makes rounds on demand."""

    def __init__(self, server: EventServer, folder: Path, new_call: NewCall) -> None:
        self.server, self.folder, self.new_call = server, folder, new_call
        self.ledger = f"sqlite:///{folder}.db"
        self.target = EventsTarget(server.url, "vk_test", "tests", FAST)
        self.delivery = IngestSupervisor(self.ledger, folder, events=self.target)
        self._before = set(threading.enumerate())

    def threads(self) -> list[threading.Thread]:
        """Those that send here."""
        return [thread for thread in threading.enumerate() if thread.name == "voight-events" and thread not in self._before]

    def write(self, *users: str, **values: Any) -> list[str]:
        """Write a call of each user as a process does that is gone by now; return their ids."""
        return write(self.folder, *(self.new_call(**{"tags": Tags(user_id=user), "attribution": "tag", **values}) for user in users))

    def until(self, done: Callable[[], object], seconds: float = 20) -> None:
        """Make rounds until then."""
        deadline = time.monotonic() + seconds
        self.delivery.run()
        while not done():
            assert time.monotonic() < deadline
            time.sleep(0.01)
            self.delivery.run()

    def kept(self) -> Status:
        """Return the outbox as it is now."""
        return kept(self.folder)

    def send_waiting(self, seconds: float | None = 20) -> Status:
        """Do as `voight events send` does; return what is left."""
        settings = Settings.from_environment(
            ledger=self.ledger,
            journal=self.folder,
            environ={},
            voight_api_key="vk_test",
            events_url=self.server.url,
            events_per_minute=FAST,
        )
        left = send_waiting(settings, seconds)
        assert left is not None
        return left
