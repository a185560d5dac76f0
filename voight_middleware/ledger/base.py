"""The ledger: stores calls and answers reports. One protocol, one package per engine."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import tzinfo
from typing import Protocol, TypeAlias

import msgspec

from voight_middleware.records.call import Call, Record, Submission


class LedgerError(Exception):
    """The ledger cannot be opened, read or written. The message says what to do."""


class ForeignLedger(LedgerError):
    """The file or database exists but is not a ledger."""


class UnknownDimension(ValueError):
    """A report names a dimension or a filter key that no call has."""


MAX_COUNT = 10**12
"""The largest count of one call. A sum over nine million such calls still fits 64 bits."""
MIN_ID_LENGTH = 8
"""How many characters of a call's id are enough, if no other id begins with them."""

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
The dimensions that reports group by and filter on, besides the extra keys of the application's
tags. Times are in UTC. A week is named by its Monday.
"""


Where = Mapping[str, str | tuple[str | None, ...] | None]
"""
The values that calls must have, by dimension.

In a value, ``*`` stands for any text and ``**`` for a literal star. None means "no value". Of
several values, one must match. A ``!`` after the dimension's name negates: ``{"plan!": "free"}``
selects the calls of other plans, calls without a plan included.
"""
_STARS = re.compile(r"\*\*?")


def has_wildcard(value: str) -> bool:
    """Return whether a filter value contains a wildcard."""
    return "*" in value and "*" in _STARS.findall(value)


def wildcard_parts(value: str) -> list[str]:
    """Return the literal texts between the wildcards of a filter value."""
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
    """Return *value* escaped, so that a filter matches exactly that text."""
    return value.replace("*", "**")


@dataclass(frozen=True, slots=True)
class Progress:
    """
    How far a journal segment has been ingested: the offset after its last record in the ledger.
    """

    segment: str
    offset: int


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open time range, in microseconds since 1970 UTC. None means unbounded."""

    since: int | None = None
    until: int | None = None


class Spend(msgspec.Struct, frozen=True):
    """
    The sums of one group of calls. Money is in femto-dollars (1e-15 USD).

    ``cost_femto`` is None if no call of the group is priced. It lacks the cost of
    ``unpriced_calls`` calls.
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
        """The cost of the group: 0 without calls, None if it has calls and none is priced."""
        return self.cost_femto if self.calls or self.cost_femto is not None else 0


Key: TypeAlias = tuple[str | None, ...]
"""The values of a group's dimensions."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Calls and costs of many groups, in columns: the n-th value of each is of the n-th group."""

    dimensions: tuple[Sequence[str | None], ...]
    calls: Sequence[int]
    cost_femto: Sequence[int | None]
    """As in ``Spend``."""
    unpriced_calls: Sequence[int]


class Groups(Protocol):
    """
    The groups of calls by some dimensions, as ``Ledger.spend`` has them. Each method reads only
    what it returns.
    """

    def foremost(self, limit: int | None) -> list[Spend]:
        """Return the first *limit* groups in the order of ``Ledger.spend``, or all of them."""
        ...

    def of(self, keys: Collection[Key]) -> Mapping[Key, Spend]:
        """
        Return the groups with these keys. Those without calls are omitted. All of them are read,
        and made into ``Spend`` when they are asked for.
        """
        ...

    def total(self) -> Spend:
        """Return the sums over all groups."""
        ...

    def within(self, by: Sequence[str], *, without: str | None = None) -> list[Spend]:
        """
        Return the sums over all groups by other dimensions, in any order. With *without*, only over
        the groups without a value of that dimension.
        """
        ...

    def count(self) -> int:
        """Return the number of groups."""
        ...

    def costs(self) -> Costs:
        """Return calls and costs of all groups, in any order: a third of the time of all sums."""
        ...


@dataclass(frozen=True, slots=True)
class PriceVersion:
    """The price of a call before a repricing replaced it. Money is in femto-dollars (1e-15 USD)."""

    version: int
    """1 is the original price."""
    cost_femto: int | None
    list_femto: int | None
    cost_status: str
    cost_reasons: tuple[str, ...]
    price: str | None
    """Same as ``Call.price``."""
    replaced_at: int
    """Microseconds since 1970, UTC."""


@dataclass(frozen=True, slots=True)
class PersonalData:
    """The records about one person, kept or erased."""

    calls: int = 0
    cost_femto: int | None = None
    """The cost of the calls in femto-dollars (1e-15 USD). None if none is priced."""
    first: int | None = None
    """The time of the oldest call, in microseconds since 1970 UTC."""
    last: int | None = None
    elsewhere: int = 0
    """Calls of other users that name the person in another tag."""
    submissions: int = 0
    """Submitted jobs that name the person."""

    def __bool__(self) -> bool:
        return bool(self.calls or self.elsewhere or self.submissions)


@dataclass(frozen=True, slots=True)
class Expired:
    """The records that a retention period excludes, kept or deleted."""

    calls: int = 0
    former_prices: int = 0
    submissions: int = 0


class Ledger(Protocol):
    """
    A store of calls.

    Use an instance from one thread at a time. Every method raises ``LedgerError`` if the engine
    fails.

    ClickHouse has no transactions. Instead of one transaction, it takes steps in an order that can
    be repeated: after a crash, the same call of the method does the rest and duplicates nothing.
    The number of new calls may then be too high if two processes report the same calls at once.
    """

    url: str

    def info(self) -> list[tuple[str, str]]:
        """
        Return names and values for ``voight doctor``: engine and version, schema, role and
        permissions.
        """
        ...

    def time_range(
        self, where: Where | None = None, window: Window = Window()
    ) -> tuple[int, int] | None:
        """
        Return when the oldest and the newest call happened, in microseconds since 1970 UTC. Return
        None without calls.

        Args:
            where: The values that calls must have. Times are in UTC.
            window: The time range.

        Raises:
            UnknownDimension: A name in *where* is neither in ``DIMENSIONS`` nor an extra key of any
                call.
        """
        ...

    def snapshot(self) -> AbstractContextManager[None]:
        """
        Return a context in which every question sees the same calls, those of its first question.
        ClickHouse has none: a later question may see newer calls.
        """
        ...

    def groups(
        self,
        by: Sequence[str] = (),
        where: Where | None = None,
        window: Window = Window(),
        *,
        original_prices: bool = False,
        zone: tzinfo | None = None,
        known: tuple[int, int] | None = None,
    ) -> Groups:
        """
        Return the groups that ``spend`` would return, for several questions about them. Ask them in
        a ``snapshot``.

        Args:
            by: The dimensions to group by.
            where: The values that calls must have.
            window: The time range.
            original_prices: Use the first price of each call, not the newest one.
            zone: The time zone of hours, days and months, by default UTC.
            known: The times of the oldest and the newest call with the values of *where*, inside
                or outside of *window*, if they are known in the snapshot: no others are looked for.

        Raises:
            UnknownDimension: At the first question, as ``spend``.
        """
        ...

    def insert(self, records: Sequence[Record], progress: Progress | None = None) -> int:
        """
        Store calls and submissions, apply late attributions and save *progress*, in one
        transaction.

        Idempotent by ``call_id``. Submissions and late attributions are applied after all calls of
        *records*. A late attribution fills in missing tags and replaces no owner, except one from a
        request's body. A job's call without usage takes the usage of a second call with the same
        id. A submission that arrives after its calls becomes their owner. A call with a count or
        cost that no column can hold is stored without it, unpriced.

        Returns the number of calls that were new or got their usage.

        Raises:
            ValueError: A record cannot be stored at all. None of *records* was.
        """
        ...

    def submissions(self, jobs: Collection[str]) -> dict[str, Submission]:
        """Return the submissions of those *jobs* that are known, by job."""
        ...

    def progress(self, segment: str) -> int:
        """
        Return the offset in bytes up to which *segment* has been ingested, 0 for an unknown
        segment.
        """
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
        Return the sums of calls by dimensions: the most expensive group first, unpriced groups
        last, then by number of calls.

        Args:
            by: The dimensions to group by.
            where: The values that calls must have.
            window: The time range.
            limit: The maximum number of groups.
            original_prices: Use the first price of each call, not the newest one.
            zone: The time zone of hours, days and months, by default UTC. With a zone, hours carry
                their offset.

        Raises:
            UnknownDimension: A name in *by* or *where* is neither in ``DIMENSIONS`` nor an extra
                key of any call.
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
        Yield the calls, the oldest first.

        To read in pages, pass *limit* and *after*.

        Args:
            where: The values that calls must have.
            window: The time range.
            limit: The maximum number of calls.
            after: The ``occurred_at`` and ``call_id`` of the call to continue after.
            original_prices: Use the first price of each call, not the newest one.
            zone: The time zone of hours, days and months in *where*.

        Raises:
            UnknownDimension: A name in *where* is neither in ``DIMENSIONS`` nor an extra key of any
                call.
        """
        ...

    def call(self, call_id: str) -> Call | None:
        """
        Return the call with this id, or the only one whose id begins with it (8 characters or
        more). Return None if there is none.

        Raises:
            LedgerError: Several ids begin with *call_id*.
        """
        ...

    def reprice(self, changes: Sequence[tuple[Call, Call]]) -> int:
        """
        Give calls another price, in one transaction. Return the number of repriced calls.

        The previous price is kept as a version of its own. A call is skipped if its cost, status
        and reasons stay the same. It is also skipped if the ledger's call differs from the one
        read: another process has repriced it or added its usage.

        Args:
            changes: Pairs of a call as it was read and the same call as it is priced now.
        """
        ...

    def price_history(self, call_id: str) -> list[PriceVersion]:
        """Return the previous prices of a call, the original first."""
        ...

    def price_histories(self, call_ids: Collection[str]) -> dict[str, list[PriceVersion]]:
        """
        Return the previous prices of calls by ``call_id``, the original first. Calls without any
        are omitted.
        """
        ...

    def jobs(self, after: str = "", limit: int = 1_000) -> list[Submission]:
        """
        Return at most *limit* submitted jobs in the bytewise order of their names, from the first
        name after *after*.
        """
        ...

    def import_calls(
        self,
        calls: Sequence[Call],
        former: Mapping[str, Sequence[PriceVersion]] = {},
        *,
        replace: bool = False,
    ) -> int:
        """
        Store calls of another ledger unchanged, each with its previous prices, in one transaction.
        Return the number of calls written.

        Nothing is attributed, completed or repriced. A call that exists already is left as it is,
        with its previous prices.

        Args:
            calls: The calls to store.
            former: Their previous prices by ``call_id``.
            replace: Replace existing calls and their previous prices.

        Raises:
            ValueError: A call cannot be stored. None of *calls* was.
        """
        ...

    def personal_data(self, names: Collection[str]) -> PersonalData:
        """Return the records about the person known by any of *names*."""
        ...

    def erase(self, names: Collection[str], token: str) -> PersonalData:
        """
        Replace a person's ids by *token*, in one transaction. Return the records found.

        The session and response ids of the person's calls are removed. Costs and counts stay.
        """
        ...

    def purge(self, names: Collection[str]) -> list[str]:
        """
        Remove overwritten and deleted rows from the files if one of *names* is still in them.
        Return the files that still contain one.

        Raises:
            LedgerError: Another process is reading. Nothing was purged; try again.
        """
        ...

    def expired(self, until: int) -> Expired:
        """Return the records from before *until*, in microseconds since 1970 UTC."""
        ...

    def expire(self, until: int, limit: int) -> Expired:
        """
        Delete at most *limit* of the oldest calls from before *until*, in one transaction. With the
        last of them, delete the jobs too.
        """
        ...

    def rebuild(self) -> Iterator[str]:
        """
        Rebuild the rollups from the calls. Yield each month (``2026-11``) when it is done.

        Only needed after somebody has changed the tables by hand.
        """
        ...

    def close(self) -> None:
        """Close the connection. Harmless when repeated."""
        ...
