"""The loopback provider's own counts of requests and reported usage, by user."""

from __future__ import annotations

import math
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

KEPT_REQUESTS = 1000
# runs and realtime: without the s
_DETAILED = ("prompt_tokens", "prompt_token", "input_tokens", "input_token")


@dataclass(slots=True)
class Count:
    """
    The provider's counts for one user, as reported. Tokens include all models that worked on a
    response.
    """

    calls: int = 0
    """
    HTTP requests, with the retries of an SDK. On a WebSocket, messages that ask for a response.
    """
    completed: int = 0
    """Responses whose final usage was written to the socket; without usage, their last byte."""
    broken: int = 0
    """Responses that were cut, ended too early, or were abandoned by the client."""
    errors: int = 0
    input_tokens: int = 0
    """All input of completed responses, with cached and written tokens."""
    cached_tokens: int = 0
    """The part of the input that was read from the cache."""
    output_tokens: int = 0
    images: int = 0
    """Generated images, also those whose tokens are reported."""
    seconds: int = 0
    """Reported seconds of audio, video or a live session, rounded up."""
    characters: int = 0
    """Characters that were spoken."""
    web_searches: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """The provider's own counts, by the ``[user:ID]`` in the prompt; ``-`` without one."""

    by_user: Mapping[str, Count]

    @property
    def total(self) -> Count:
        """The sum of all users."""
        rows = [astuple(count) for count in self.by_user.values()]
        return Count(*map(sum, zip(*rows, strict=True)))


@dataclass(eq=False, slots=True)
class Charge:
    """The cost of one piece of work. It is counted once, even if it is reported several times."""

    usage: Any = None
    """The reported usage."""
    user: str | None = None
    """The user. None for the user of the request."""
    images: int = 0
    seconds: float = 0
    """Seconds that the usage does not contain."""
    characters: int = 0
    web_searches: int = 0
    counted: bool = False


class Accounting:
    """The provider's own counts, and the received requests. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: defaultdict[str, Count] = defaultdict(Count)
        self._failed: Counter[str] = Counter()
        self._requests: deque[Any] = deque(maxlen=KEPT_REQUESTS)

    @property
    def requests(self) -> list[Any]:
        """The last received bodies, the oldest first."""
        with self._lock:
            return list(self._requests)

    def called(self, user: str) -> None:
        with self._lock:
            self._users[user].calls += 1

    def received(self, body: Any) -> None:
        with self._lock:
            self._requests.append(body)

    def still_failing(self, key: str, times: int | None) -> bool:
        """Return whether a request that must fail *times* times fails now. None means always."""
        with self._lock:
            self._failed[key] += 1
            return times is None or self._failed[key] <= times

    def refused(self, user: str) -> None:
        with self._lock:
            self._users[user].errors += 1

    def failed(self, user: str) -> None:
        with self._lock:
            self._users[user].broken += 1

    def completed(self, user: str, charges: Iterable[Charge]) -> None:
        with self._lock:
            self._users[user].completed += 1
        self.reported(user, charges)

    def reported(self, user: str, charges: Iterable[Charge]) -> None:
        """Count the charges that were not counted yet."""
        with self._lock:
            for charge in charges:
                if not charge.counted:
                    charge.counted = True
                    _add(self._users[charge.user or user], charge)

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
    """The usage of any provider, in one format."""

    input: int = 0
    """With cached and written tokens."""
    cached: int = 0
    output: int = 0
    reasoning: int = 0
    """The hidden part of the output, if reported."""


def tokens_of(usage: Any) -> Tokens:
    """
    Return the tokens of a usage. It must not use the library's parsers, which tests compare with
    it.
    """
    tokens = Tokens()
    for part in (usage.get("iterations") or [usage]) if isinstance(usage, dict) else []:
        from_cache = _number(part, "cache_read_input_tokens")
        tokens.input += _number(
            part, "prompt_tokens", "input_tokens", "promptTokenCount"
        ) + _number(part, "toolUsePromptTokenCount")
        tokens.input += from_cache + _number(part, "cache_creation_input_tokens")
        tokens.cached += from_cache + _number(part, "cachedContentTokenCount")
        tokens.cached += sum(
            _number(part.get(f"{name}_details"), "cached_tokens") for name in _DETAILED
        )
        tokens.output += _number(
            part, "completion_tokens", "output_tokens", "candidatesTokenCount"
        ) + _number(part, "thoughtsTokenCount")
        tokens.reasoning += sum(
            _number(part.get(f"{name}_tokens_details"), "reasoning_tokens")
            for name in ("completion", "output")
        )
    return tokens


def _number(part: Any, *names: str) -> int:
    """Return the first of these counts that exists."""
    return (
        next((part[name] for name in names if isinstance(part.get(name), int)), 0)
        if isinstance(part, dict)
        else 0
    )


def _add(count: Count, charge: Charge) -> None:
    usage = charge.usage if isinstance(charge.usage, dict) else {}
    tokens = tokens_of(usage)
    count.input_tokens += tokens.input
    count.cached_tokens += tokens.cached
    count.output_tokens += tokens.output
    count.images += charge.images
    count.seconds += math.ceil(usage.get("seconds") or charge.seconds)
    count.characters += charge.characters
    count.web_searches += charge.web_searches + _number(
        usage.get("server_tool_use"), "web_search_requests"
    )
