"""What the loopback provider remembers of earlier requests: responses, files, batches, videos, threads and their runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints.errors import Refusal
from voight_middleware.testing.fake_data import Json

KEPT_THINGS = 10_000


@dataclass(eq=False, slots=True)
class Job:
    """Work that goes on after its request was answered: shown unfinished to some polls, and finished to the next one."""

    begun: Json
    finished: Json
    polls: int
    """How many more polls show it unfinished."""
    bills: Sequence[Charge] = ()
    """What it costs, once it is finished."""
    events: Callable[[], Sequence[Json]] = tuple
    """The same as a stream."""
    seen: bool = False
    """Whether somebody was shown that it is finished."""

    @property
    def shown(self) -> Json:
        """The work as it was seen last."""
        return self.finished if self.seen else self.begun

    def poll(self, **unfinished: Any) -> Json:
        """The work as it stands now; *unfinished* is what an unfinished one says of itself."""
        if self.polls > 0 and not self.seen:
            self.polls -= 1
            return {**self.begun, **unfinished}
        self.seen = True
        return self.finished

    def cancel(self, **cancelled: Any) -> None:
        """End it without a result and without a bill, where nobody has seen the result yet."""
        if not self.seen:
            self.finished, self.bills, self.events, self.polls = {**self.begun, **cancelled}, (), tuple, 0


@dataclass(frozen=True, slots=True)
class _Kept:
    kind: str
    user: str
    thing: Any


class Store:
    """Things by their id; the oldest is forgotten first. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}

    def keep(self, kind: str, key: str, thing: Any, user: str) -> None:
        """Remember *thing*, of this user; also instead of what has the same key."""
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = _Kept(kind, user, thing)
            if len(self._kept) > KEPT_THINGS:
                del self._kept[next(iter(self._kept))]

    def find(self, kind: str, key: str) -> Any:
        """
        The thing of this kind.

        Raises:
            Refusal: 404, there is none.
        """
        with self._lock:
            kept = self._kept.get(key)
        if kept is None or kept.kind != kind:
            raise Refusal(404, f"No {kind} found with id '{key}'.")
        return kept.thing

    def every(self, kind: str) -> list[Any]:
        """All things of this kind, the newest first."""
        with self._lock:
            return [kept.thing for kept in reversed(self._kept.values()) if kept.kind == kind]

    def owner(self, keys: Iterable[str]) -> str | None:
        """The user of the last of these things that has one."""
        with self._lock:
            users = [self._kept[key].user for key in keys if key in self._kept]
        return next((user for user in reversed(users) if user != "-"), None)

    def forget(self) -> None:
        """Everything."""
        with self._lock:
            self._kept.clear()
