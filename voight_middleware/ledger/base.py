"""The ledger: where calls are kept and questions are answered. One protocol, one module per engine."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Protocol

import msgspec

from voight_middleware.records.call import Call, Record, Submission


class LedgerError(Exception):
    """The ledger cannot be opened, read or written; the message says what to do."""


class ForeignLedger(LedgerError):
    """The file exists, and is no ledger of ours."""


class UnknownDimension(ValueError):
    """A report was asked for a dimension or a filter key that no call can have."""


MAX_COUNT = 10**12
"""The largest count that one call can have, so that a sum over nine million such calls still fits 64 bits."""
MIN_ID_LENGTH = 8
"""How many characters of a call's id are enough, where no other begins with them."""

DIMENSIONS = (
    "user_id",
    "plan",
    "tenant_id",
    "route",
    "release",
    "session_id",
    "provider",
    "model",
    "requested_model",
    "endpoint",
    "outcome",
    "attribution",
    "cost_status",
    "hour",
    "day",
    "week",
    "month",
)
"""
What a report can be grouped by and filtered on, besides the extra keys of the application's tags. Times are in UTC. A week is named by its
Monday.
"""


Where = Mapping[str, str | tuple[str | None, ...] | None]
"""
Values that calls must have, by dimension: ``*`` stands for any text (and ``**`` for a star), None for no value, and of several one is
enough. Behind the name of a dimension ``!`` is for calls that have none of them: ``{"plan!": "free"}``, those without a plan included.
"""
_STARS = re.compile(r"\*\*?")


def has_wildcard(value: str) -> bool:
    """Return whether a value of a filter stands for more than itself."""
    return "*" in _STARS.findall(value)


def wildcard_parts(value: str) -> list[str]:
    """Return the texts between the wildcards of a filter's value, as they are."""
    parts, end = [""], 0
    for match in _STARS.finditer(value):
        parts[-1] += value[end : match.start()]
        end = match.end()
        if match[0] == "*":
            parts.append("")
        else:
            parts[-1] += "*"
    parts[-1] += value[end:]
    return parts


def literal(value: str) -> str:
    """Return a value as a filter means exactly that one."""
    return value.replace("*", "**")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a journal segment has been ingested: the byte behind the last record that is in the ledger."""

    segment: str
    offset: int


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open span of time, in microseconds since 1970 UTC; None means unbounded."""

    since: int | None = None
    until: int | None = None


class Spend(msgspec.Struct, frozen=True):
    """
    One group of calls, added up. Money is in femto-dollars (1e-15 USD), tokens in tokens.

    ``cost_femto`` is None where nothing in the group is priced; ``unpriced_calls`` says how many calls it lacks.
    """

    dimensions: Mapping[str, str | None] = {}
    calls: int = 0
    input_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    cost_femto: int | None = None
    unpriced_calls: int = 0
    partial_calls: int = 0
    estimated_calls: int = 0
    errors: int = 0

    @property
    def sum_femto(self) -> int | None:
        """What the calls cost: 0 for no calls, None where there are some and none of them is priced."""
        return self.cost_femto if self.calls or self.cost_femto is not None else 0


@dataclass(frozen=True, slots=True)
class PriceVersion:
    """What a call cost until a repricing replaced it. Money is in femto-dollars (1e-15 USD)."""

    version: int
    """1 for the original."""
    cost_femto: int | None
    list_femto: int | None
    cost_status: str
    cost_reasons: tuple[str, ...]
    price: str | None
    """As ``Call.price``."""
    replaced_at: int
    """Microseconds since 1970, UTC."""


@dataclass(frozen=True, slots=True)
class PersonalData:
    """What is kept about one person, or has been erased."""

    calls: int = 0
    cost_femto: int | None = None
    """What the calls cost, in femto-dollars (1e-15 USD); None where none of them is priced."""
    first: int | None = None
    """When the oldest of them happened, in microseconds since 1970 UTC."""
    last: int | None = None
    elsewhere: int = 0
    """Calls of others that name the person in another tag."""
    submissions: int = 0
    """Submitted jobs that name the person."""

    def __bool__(self) -> bool:
        return bool(self.calls or self.elsewhere or self.submissions)


@dataclass(frozen=True, slots=True)
class Expired:
    """What is older than a retention allows, or has been deleted."""

    calls: int = 0
    former_prices: int = 0
    submissions: int = 0


class Ledger(Protocol):
    """
    A place to keep calls.

    Implementations are used from one thread at a time. Every method raises ``LedgerError`` where the engine fails.

    Where a method promises one transaction and the engine has none (ClickHouse), it does its steps in an order in which the same again,
    after a crash, does the rest and doubles nothing; the number of new calls may then be too high where two processes tell of the same
    calls at once.
    """

    url: str

    def info(self) -> list[tuple[str, str]]:
        """What ``voight doctor`` says of the ledger, as names and values: engine and version, schema, role, what it may do."""
        ...

    def time_range(self) -> tuple[int, int] | None:
        """When the oldest and the newest call happened, in microseconds since 1970 UTC; None for an empty ledger."""
        ...

    def insert(self, records: Sequence[Record], progress: Progress | None = None) -> int:
        """
        Keep calls and submissions and apply settlements, in one transaction together with *progress*; answers how many calls were
        new, or told of for the first time.

        Idempotent by ``call_id``. A settlement fills in what a call lacks and never replaces an owner. A call of a job that has no
        usage yet takes that of another one with its id. A submission that comes after its calls becomes their owner.
        """
        ...

    def submissions(self, jobs: Collection[str]) -> dict[str, Submission]:
        """Those of *jobs* that are known."""
        ...

    def progress(self, segment: str) -> int:
        """The offset up to which *segment* has been ingested; 0 for an unknown one."""
        ...

    def clear_progress(self, segment: str) -> None:
        """Drop the progress of a segment whose file is gone."""
        ...

    def spend(
        self,
        by: Sequence[str] = (),
        where: Where | None = None,
        window: Window = Window(),
        limit: int | None = None,
        *,
        original_prices: bool = False,
        zone: tzinfo | None = None,
    ) -> list[Spend]:
        """
        Calls added up by dimensions, the most expensive first (unpriced groups last, then by calls).

        With *original_prices*, by the price that each was given first, whatever has replaced it. Hours, days and months are cut in *zone*, by
        default UTC; an hour is written with its offset then.

        Raises:
            UnknownDimension: A name in *by* or *where* is neither in ``DIMENSIONS`` nor an extra key of any call.
        """
        ...

    def calls(
        self,
        where: Where | None = None,
        window: Window = Window(),
        limit: int | None = None,
        *,
        after: tuple[int, str] | None = None,
        original_prices: bool = False,
        zone: tzinfo | None = None,
    ) -> Iterator[Call]:
        """
        Every call, the oldest first, with the price that *original_prices* says; *zone* is what days in *where* are cut in.

        For reading in pieces: at most *limit* calls, from behind the one of this ``occurred_at`` and ``call_id`` on.
        """
        ...

    def call(self, call_id: str) -> Call | None:
        """
        The call of that id, or the only one whose id begins with it, if it has 8 characters or more; None where there is none.

        Raises:
            LedgerError: Several calls begin with it.
        """
        ...

    def reprice(self, changes: Sequence[tuple[Call, Call]]) -> int:
        """
        Give calls another price, in one transaction; each as it was read, and as it is priced now. Answers how many have got one.

        The price before is kept as a version of its own. A call is not touched where cost, status and reasons stay the same, nor where
        it is not in the ledger as it was read: another process has repriced it or told what it used.
        """
        ...

    def price_history(self, call_id: str) -> list[PriceVersion]:
        """The prices that a call had before its newest one, the original first."""
        ...

    def price_histories(self, call_ids: Collection[str]) -> dict[str, list[PriceVersion]]:
        """The prices that calls had before their newest one, the original first, by ``call_id``; a call without any is missing."""
        ...

    def jobs(self, after: str = "", limit: int = 1_000) -> list[Submission]:
        """Submitted jobs in the bytewise order of their names: at most *limit*, from behind the name *after* on."""
        ...

    def import_calls(self, calls: Sequence[Call], former: Mapping[str, Sequence[PriceVersion]] = {}, *, replace: bool = False) -> int:
        """
        Keep calls of another ledger as they are there, each with the prices that it had before, in one transaction; answers how many
        were written.

        Nothing is settled, completed or repriced by it. A call whose id is here already is left as it is, and its former prices with
        it; with *replace* it is replaced, together with them.

        Raises:
            ValueError: A call cannot be kept, and nothing of *calls* was.
        """
        ...

    def personal_data(self, names: Collection[str]) -> PersonalData:
        """What is kept about the person who is known by any of *names*."""
        ...

    def erase(self, names: Collection[str], token: str) -> PersonalData:
        """
        Put *token* in the place of a person's ids, in one transaction, and take sessions and answer ids off the person's calls; answers
        what was found. Costs and counts stay as they are.
        """
        ...

    def purge(self, names: Collection[str]) -> list[str]:
        """
        Free the files of what was overwritten or deleted, as far as one of *names* is still in them; answers the files in which it remains.

        Raises:
            LedgerError: Another process is reading: nothing was purged, try again.
        """
        ...

    def expired(self, until: int) -> Expired:
        """What happened before *until*, in microseconds since 1970 UTC."""
        ...

    def expire(self, until: int, limit: int) -> Expired:
        """Delete at most *limit* of the oldest calls from before *until*, and with the last of them the jobs, in one transaction."""
        ...

    def rebuild(self) -> Iterator[str]:
        """
        Build anew from the calls what answers are read from faster; yields each month (``2026-11``) when it is done.

        Never needed, unless somebody has changed the tables by hand.
        """
        ...

    def close(self) -> None:
        """Release the connection; harmless when repeated."""
        ...
