"""Unattributed: calls without a user, the reasons, and the remedies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from decimal import Decimal

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.ledger.groups import add_up
from voight_middleware.reports.spend import ratio
from voight_middleware.reports.unattributed_share import Unattributed

ADVICE = {
    "none": (
        "no user was set: add the middleware with a user_getter, or voight.tag(user_id=…) around "
        "jobs and scripts"
    ),
    "error": (
        "the getter raised: the application's log has the first error of each kind, under "
        "voight_middleware"
    ),
    "request": (
        "the user comes from the request's body, which any code can set: give the middleware a "
        "user_getter, which wins"
    ),
    "getter": (
        "the getter returned no user: visitors, health checks; tag such calls by their route or "
        "feature"
    ),
    "dependency": (
        "the dependency returned no user: visitors; tag such calls by their route or feature"
    ),
    "tag": (
        "tagged without a user_id: add it to voight.tag(…), or report them by plan, tenant or "
        "feature"
    ),
    "settled": "attributed at the end of the request: the getter returned no user",
}
"""The remedy for calls without a user, by attribution."""
UNKNOWN = "this version does not know the attribution: upgrade voight-middleware"


@dataclass(frozen=True, slots=True)
class Source:
    """One attribution: a way in which calls get their owner."""

    attribution: str
    spend: Spend
    """All of its calls."""
    unowned: Spend
    """Those without a user."""
    advice: str | None
    """Advice for the user, or None if nothing is wrong."""


@dataclass(frozen=True, slots=True)
class UnattributedRow:
    """A group of calls without a user, and all calls of the group."""

    unowned: Spend
    all: Spend
    share_of_calls: Decimal | None
    """The share of all calls without a user, from 0 to 1."""
    share_of_spend: Decimal | None
    """The share of the cost of all calls without a user, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Section:
    """Calls without a user by some dimensions, the most expensive first."""

    by: tuple[str, ...]
    rows: tuple[UnattributedRow, ...]
    more: int


@dataclass(frozen=True, slots=True)
class UnattributedReport:
    """The calls without a user, by attribution and by dimensions."""

    window: Window
    owners: Unattributed
    sources: tuple[Source, ...]
    sections: tuple[Section, ...]
    original_prices: bool = False


def unattributed(
    ledger: Ledger,
    by: Sequence[Sequence[str]] = (("route",), ("model",)),
    where: Where | None = None,
    window: Window = Window(),
    limit: int | None = 10,
    *,
    original_prices: bool = False,
    zone: tzinfo | None = None,
) -> UnattributedReport:
    """
    Return the calls without a ``user_id``, by attribution and by each of several groupings.

    Args:
        ledger: The ledger to read.
        by: Groupings, each of names of ``DIMENSIONS`` or extra keys.
        where: Filters, without ``user_id``: ``*`` stands for any text, None for calls without a
            value.
        window: The time of the calls.
        limit: The number of rows of each grouping.
        original_prices: Whether each call counts with its first price, before any repricing.
        zone: The time zone of hours, days and months; None means UTC.

    Raises:
        UnknownDimension: A name in *by* or *where* is neither a dimension nor an extra key of any
            call.
        LedgerError: The ledger cannot be read.
    """
    where = {name: value for name, value in (where or {}).items() if name != "user_id"}

    def groups(names: Sequence[str], *, unowned: bool) -> list[Spend]:
        only: dict[str, str | tuple[str | None, ...] | None] = (
            {**where, "user_id": None} if unowned else where
        )
        return ledger.spend(names, only, window, original_prices=original_prices, zone=zone)

    everything = groups(("attribution",), unowned=False)
    without = {
        group.dimensions["attribution"]: group for group in groups(("attribution",), unowned=True)
    }
    owners = Unattributed(add_up([*without.values()]), add_up(everything))
    sources = []
    for group in everything:
        attribution = str(group.dimensions["attribution"])
        unowned = without.get(attribution, Spend())
        advice = (
            ADVICE.get(attribution, UNKNOWN) if unowned.calls or attribution == "request" else None
        )
        sources.append(Source(attribution, group, unowned, advice))
    sources.sort(key=lambda source: (-source.unowned.calls, -source.spend.calls))
    sections = []
    for names in by if owners.unowned.calls else ():
        rows = groups(names, unowned=True)
        of_all = {tuple(group.dimensions.values()): group for group in groups(names, unowned=False)}
        shown = rows if limit is None else rows[:limit]
        kept = tuple(_row(row, of_all, owners.unowned) for row in shown)
        sections.append(Section(tuple(dict.fromkeys(names)), kept, len(rows) - len(shown)))
    return UnattributedReport(window, owners, tuple(sources), tuple(sections), original_prices)


def _row(
    group: Spend, of_all: Mapping[tuple[str | None, ...], Spend], total: Spend
) -> UnattributedRow:
    beside = of_all.get(tuple(group.dimensions.values()), group)
    return UnattributedRow(
        group, beside, ratio(group.calls, total.calls), ratio(group.cost_femto, total.cost_femto)
    )
