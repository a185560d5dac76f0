"""
The loopback provider's stored objects: responses, files, batches, videos, threads and their runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints.errors import Refusal
from voight_middleware.testing.fake_data import Json

MAX_OBJECTS = 10_000


@dataclass(eq=False, slots=True)
class Job:
    """
    A job that continues after its request. The first polls see it unfinished, and the next one
    finished.
    """

    initial: Json
    finished: Json
    polls: int
    """How many more polls see it unfinished."""
    charges: Sequence[Charge] = ()
    """Its cost when finished."""
    events: Callable[[], Sequence[Json]] = tuple
    """Its result as a stream."""
    seen: bool = False
    """Whether a poll has seen it finished."""

    @property
    def shown(self) -> Json:
        """The job as last shown."""
        return self.finished if self.seen else self.initial

    def poll(self, **unfinished: Any) -> Json:
        """Return the job as it is now. *unfinished* are fields of an unfinished job."""
        if self.polls > 0 and not self.seen:
            self.polls -= 1
            return {**self.initial, **unfinished}
        self.seen = True
        return self.finished

    def cancel(self, **cancelled: Any) -> None:
        """End the job without result and charge, unless a poll has seen the result."""
        if not self.seen:
            self.finished = {**self.initial, **cancelled}
            self.charges = ()
            self.events = tuple
            self.polls = 0


@dataclass(frozen=True, slots=True)
class _Stored:
    kind: str
    user: str
    value: Any


class Store:
    """Objects by their id. A full store drops the oldest. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stored: dict[str, _Stored] = {}

    def keep(self, kind: str, key: str, value: Any, user: str) -> None:
        """Store *value* of this user. It replaces an object with the same key."""
        with self._lock:
            self._stored.pop(key, None)
            self._stored[key] = _Stored(kind, user, value)
            if len(self._stored) > MAX_OBJECTS:
                del self._stored[next(iter(self._stored))]

    def find(self, kind: str, key: str) -> Any:
        """
        Return the object of this kind and key.

        Raises:
            Refusal: 404 if it does not exist.
        """
        with self._lock:
            stored = self._stored.get(key)
        if stored is None or stored.kind != kind:
            raise Refusal(404, f"No {kind} found with id '{key}'.")
        return stored.value

    def every(self, kind: str) -> list[Any]:
        """Return all objects of this kind, the newest first."""
        with self._lock:
            return [
                stored.value for stored in reversed(self._stored.values()) if stored.kind == kind
            ]

    def owner(self, keys: Iterable[str]) -> str | None:
        """Return the user of the last of these objects that has one."""
        with self._lock:
            users = [self._stored[key].user for key in keys if key in self._stored]
        return next((user for user in reversed(users) if user != "-"), None)

    def clear(self) -> None:
        """Remove all objects."""
        with self._lock:
            self._stored.clear()
