"""The loopback provider's own count: what was asked, what it reported, and for whom."""

from __future__ import annotations

import math
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

KEPT_REQUESTS = 1000
_DETAILED = ("prompt_tokens", "prompt_token", "input_tokens", "input_token")  # runs and realtime: without the s


@dataclass(slots=True)
class Count:
    """What the provider counted for one user; tokens as it reported them, in tokens, of all models that took part in an answer."""

    calls: int = 0
    """HTTP requests, retries of an SDK included; on a WebSocket, messages that ask for an answer."""
    completed: int = 0
    """Answers whose final usage (or last byte, where none is reported) was written to the socket."""
    broken: int = 0
    """Answers that were cut, ended too early, or left by the client."""
    errors: int = 0
    input_tokens: int = 0
    """All input of completed answers, cached and written tokens included."""
    cached_tokens: int = 0
    """The part of the input that was read from the cache."""
    output_tokens: int = 0
    images: int = 0
    """Images that were made, also those whose tokens are reported."""
    seconds: int = 0
    """Seconds of audio, video or a live session, where the answer says how many; started ones are whole ones."""
    characters: int = 0
    """Characters that were spoken."""
    web_searches: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """The provider's own count, by the ``[user:ID]`` in the prompt; ``-`` where there was none."""

    by_user: Mapping[str, Count]

    @property
    def total(self) -> Count:
        """All users together."""
        rows = [astuple(count) for count in self.by_user.values()]
        return Count(*map(sum, zip(*rows, strict=True)))


@dataclass(eq=False, slots=True)
class Charge:
    """What one piece of work costs. It is counted once, however often it is reported."""

    usage: Any = None
    """As it is reported."""
    user: str | None = None
    """None for whoever asks."""
    images: int = 0
    seconds: float = 0
    """Where the usage does not say it."""
    characters: int = 0
    web_searches: int = 0
    counted: bool = False


class Accounting:
    """The provider's own count, and what it received. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: defaultdict[str, Count] = defaultdict(Count)
        self._failed: Counter[str] = Counter()
        self._requests: deque[Any] = deque(maxlen=KEPT_REQUESTS)

    @property
    def requests(self) -> list[Any]:
        """The bodies that were received last, the oldest first."""
        with self._lock:
            return list(self._requests)

    def called(self, user: str) -> None:
        with self._lock:
            self._users[user].calls += 1

    def received(self, body: Any) -> None:
        with self._lock:
            self._requests.append(body)

    def still_failing(self, key: str, times: int | None) -> bool:
        """Whether a request that is to fail *times* times fails now, too."""
        with self._lock:
            self._failed[key] += 1
            return times is None or self._failed[key] <= times

    def refused(self, user: str) -> None:
        with self._lock:
            self._users[user].errors += 1

    def failed(self, user: str) -> None:
        with self._lock:
            self._users[user].broken += 1

    def completed(self, user: str, bills: Iterable[Charge]) -> None:
        with self._lock:
            self._users[user].completed += 1
        self.reported(user, bills)

    def reported(self, user: str, bills: Iterable[Charge]) -> None:
        """Count what was not counted yet."""
        with self._lock:
            for bill in bills:
                if not bill.counted:
                    bill.counted = True
                    _add(self._users[bill.user or user], bill)

    def counts(self) -> Counts:
        with self._lock:
            return Counts({user: replace(count) for user, count in sorted(self._users.items())})

    def reset(self) -> None:
        with self._lock:
            self._users.clear()
            self._failed.clear()
            self._requests.clear()


@dataclass(slots=True)
class Tokens:
    """A usage of any provider in one form."""

    input: int = 0
    """Cached and written tokens included."""
    cached: int = 0
    output: int = 0
    reasoning: int = 0
    """The part of the output that is not shown, where it is said."""


def tokens_of(usage: Any) -> Tokens:
    """The tokens of a usage; on purpose not by the library's own readers, which are checked against it."""
    found = Tokens()
    for part in (usage.get("iterations") or [usage]) if isinstance(usage, dict) else []:
        from_cache = _number(part, "cache_read_input_tokens")
        found.input += _number(part, "prompt_tokens", "input_tokens", "promptTokenCount") + _number(part, "toolUsePromptTokenCount")
        found.input += from_cache + _number(part, "cache_creation_input_tokens")
        found.cached += from_cache + _number(part, "cachedContentTokenCount")
        found.cached += sum(_number(part.get(f"{name}_details"), "cached_tokens") for name in _DETAILED)
        found.output += _number(part, "completion_tokens", "output_tokens", "candidatesTokenCount") + _number(part, "thoughtsTokenCount")
        found.reasoning += sum(_number(part.get(f"{name}_tokens_details"), "reasoning_tokens") for name in ("completion", "output"))
    return found


def _number(part: Any, *names: str) -> int:
    """The first of these counts that is there."""
    return next((part[name] for name in names if isinstance(part.get(name), int)), 0) if isinstance(part, dict) else 0


def _add(count: Count, bill: Charge) -> None:
    usage = bill.usage if isinstance(bill.usage, dict) else {}
    tokens = tokens_of(usage)
    count.input_tokens += tokens.input
    count.cached_tokens += tokens.cached
    count.output_tokens += tokens.output
    count.images += bill.images
    count.seconds += math.ceil(usage.get("seconds") or bill.seconds)
    count.characters += bill.characters
    count.web_searches += bill.web_searches + _number(usage.get("server_tool_use"), "web_search_requests")
