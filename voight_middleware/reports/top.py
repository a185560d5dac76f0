"""Top: the groups of calls that cost most, and their trend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from decimal import Decimal

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.ledger.base import Key
from voight_middleware.records.money import CONTEXT
from voight_middleware.reports.spend import per, ratio
from voight_middleware.reports.timespan import preceding
from voight_middleware.reports.unattributed_share import Unattributed, unattributed_among


@dataclass(frozen=True, slots=True)
class TopRow:
    """A group of calls, and the same group in the time before."""

    spend: Spend
    before: Spend | None
    """None if nothing was compared; a group without calls if there were none."""
    share: Decimal | None
    """The share of the priced total, from 0 to 1."""

    @property
    def status(self) -> str | None:
        """``new`` without calls before, ``gone`` without calls now, otherwise None."""
        if self.before is None or (self.before.calls and self.spend.calls):
            return None
        return "new" if self.spend.calls else "gone"

    @property
    def cost_per_call_femto(self) -> int | None:
        """The mean cost of a priced call."""
        return cost_per_call(self.spend)

    @property
    def cache_hit_rate(self) -> Decimal | None:
        """The share of input tokens from the cache, from 0 to 1; None if it is unknown."""
        return cache_hit_rate(self.spend)

    @property
    def trend(self) -> Decimal | None:
        """The change of the cost: 0.5 is 50% more, -1 is nothing left. None if it is unknown."""
        return None if self.before is None else trend(self.before, self.spend)


@dataclass(frozen=True, slots=True)
class TopReport:
    """The most expensive groups and the total, each compared with the time before."""

    by: tuple[str, ...]
    window: Window
    rows: tuple[TopRow, ...]
    total: TopRow
    more: int
    """The number of groups beyond the limit."""
    gone: tuple[TopRow, ...]
    """Groups among the most expensive ones before, without calls now."""
    compared_with: Window | None
    """The time before; None if the window has no beginning."""
    begins: int | None
    """The time of the ledger's first call, if the ledger covers the time before only in part."""
    owners: Unattributed | None
    """The part of the total without a user; None if the filters select users."""
    original_prices: bool = False


def top(
    ledger: Ledger,
    by: Sequence[str] = ("user_id",),
    where: Where | None = None,
    window: Window = Window(),
    limit: int | None = 10,
    *,
    original_prices: bool = False,
    zone: tzinfo | None = None,
    now: datetime | None = None,
) -> TopReport:
    """
    Return the groups of calls that cost most, with their cost in the time before.

    Args:
        ledger: The ledger to read.
        by: Names of ``DIMENSIONS``, or extra keys.
        where: Filters: ``*`` stands for any text, None for calls without a value.
        window: The time of the calls. ``timespan.preceding`` returns the time to compare with.
        limit: The number of rows to return.
        original_prices: Whether each call counts with its first price, before any repricing.
        zone: The time zone of days and months; None means UTC.
        now: The end of a window that is still running. By default the current time.

    Raises:
        UnknownDimension: A name in *by* or *where* is neither a dimension nor an extra key of any
            call.
        LedgerError: The ledger cannot be read.
    """
    by = tuple(dict.fromkeys(by))
    earlier = preceding(window, now, zone or UTC)
    before: Mapping[Key, Spend] = {}
    gone: list[Spend] = []
    total_before: Spend | None = None
    with ledger.snapshot():
        groups = ledger.groups(by, where, window, original_prices=original_prices, zone=zone)
        rows = groups.foremost(limit)
        total = groups.total()
        if earlier is not None:
            past = ledger.groups(by, where, earlier, original_prices=original_prices, zone=zone)
            foremost = {_key(group): group for group in past.foremost(limit)}
            before = past.of([*map(_key, rows)])
            present = groups.of([key for key in foremost if key not in before])
            gone = [
                group for key, group in foremost.items() if key not in before and key not in present
            ]
            total_before = past.total()
        more = groups.count() - len(rows)
        begins = None if earlier is None else _begins_in(ledger, earlier)
        owners = unattributed_among(groups, total, where)

    def row(group: Spend, past: Spend | None) -> TopRow:
        return TopRow(group, past, ratio(group.cost_femto, total.cost_femto))

    return TopReport(
        by=by,
        window=window,
        rows=tuple(
            row(
                group,
                None if earlier is None else before.get(_key(group), Spend(group.dimensions)),
            )
            for group in rows
        ),
        total=TopRow(total, total_before, None),
        more=more,
        gone=tuple(row(Spend(group.dimensions), group) for group in gone),
        compared_with=earlier,
        begins=begins,
        owners=owners,
        original_prices=original_prices,
    )


def cost_per_call(group: Spend) -> int | None:
    """Return femto-dollars per priced call; None without any."""
    return per(group.cost_femto, group.calls - group.unpriced_calls)


def cache_hit_rate(group: Spend) -> Decimal | None:
    """Return the share of input tokens from the cache, from 0 to 1; None if it is unknown."""
    return ratio(group.cache_read_tokens, group.input_tokens)


def trend(before: Spend, after: Spend) -> Decimal | None:
    """Return the change relative to the cost before; None if a cost is unknown, or was 0."""
    if not after.calls and before.cost_femto:
        return Decimal(-1)
    if after.cost_femto is None or not before.cost_femto:
        return None
    return CONTEXT.divide(Decimal(after.cost_femto - before.cost_femto), Decimal(before.cost_femto))


def _begins_in(ledger: Ledger, window: Window) -> int | None:
    extent = ledger.time_range()
    return extent[0] if extent is not None and extent[0] > (window.since or 0) else None


def _key(group: Spend) -> Key:
    return tuple(group.dimensions.values())
