"""Top: who costs most, and whether that is more than before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from decimal import Decimal

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.records.money import CONTEXT
from voight_middleware.reports.spend import add_up, per, ratio
from voight_middleware.reports.timespan import preceding
from voight_middleware.reports.unattributed_share import Unattributed, unattributed_beside


@dataclass(frozen=True, slots=True)
class TopRow:
    """One group of calls, beside the same group in the time before."""

    spend: Spend
    before: Spend | None
    """None where nothing was compared; a group without calls where it had none."""
    share: Decimal | None
    """Of the priced total, from 0 to 1."""

    @property
    def status(self) -> str | None:
        """``new`` where it had no calls before, ``gone`` where it has none any more, otherwise None."""
        if self.before is None or (self.before.calls and self.spend.calls):
            return None
        return "new" if self.spend.calls else "gone"

    @property
    def cost_per_call_femto(self) -> int | None:
        """What a call with a price costs."""
        return cost_per_call(self.spend)

    @property
    def cache_hit_rate(self) -> Decimal | None:
        """The part of all input tokens that was read from the cache, from 0 to 1; None where nobody reported it."""
        return cache_hit_rate(self.spend)

    @property
    def trend(self) -> Decimal | None:
        """How much more it costs than before: 0.5 is half as much again, -1 is nothing any more. None where that cannot be said."""
        return None if self.before is None else trend(self.before, self.spend)


@dataclass(frozen=True, slots=True)
class TopReport:
    """The most expensive groups, the total over all of them, and the same of the time before."""

    by: tuple[str, ...]
    window: Window
    rows: tuple[TopRow, ...]
    total: TopRow
    more: int
    """How many groups the limit has left out of ``rows``."""
    gone: tuple[TopRow, ...]
    """Groups that were among the most expensive ones before, and have no calls any more."""
    compared_with: Window | None
    """The time before; None where there is none to compare with."""
    begins: int | None
    """When the first call of the ledger happened, if that is within the time before, which is not whole then."""
    owners: Unattributed | None
    """What of the total has no user; None where certain users were asked for."""
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
    The groups of calls that cost most, with what they cost in the window before.

    Args:
        ledger: Where the calls are.
        by: Names out of ``DIMENSIONS``, or extra keys.
        where: Values that calls must have: ``*`` stands for any text, None for no value.
        window: The time that calls must lie in. ``timespan.preceding`` says which time it is compared with.
        limit: How many rows to keep.
        original_prices: By the price that each call was given first, whatever has replaced it.
        zone: Where days and months are cut; None means UTC.
        now: Up to when a window that is still running counts; by default the clock's time.

    Raises:
        UnknownDimension: A name in *by* or *where* is no dimension, and no extra key of any call.
        LedgerError: The ledger cannot be read.
    """
    by = tuple(dict.fromkeys(by))
    groups = ledger.spend(by, where, window, original_prices=original_prices, zone=zone)
    total = add_up(groups)
    earlier = preceding(window, now, zone or UTC)
    before: dict[tuple[str | None, ...], Spend] = {}
    if earlier is not None:
        before = {_key(group): group for group in ledger.spend(by, where, earlier, original_prices=original_prices, zone=zone)}

    def row(group: Spend) -> TopRow:
        past = None if earlier is None else before.get(_key(group), Spend(group.dimensions))
        return TopRow(group, past, ratio(group.cost_femto, total.cost_femto))

    rows = groups if limit is None else groups[:limit]
    present = set(map(_key, groups))
    foremost = list(before.items())[:limit]
    gone = [row(Spend(group.dimensions)) for key, group in foremost if key not in present]
    return TopReport(
        by=by,
        window=window,
        rows=tuple(map(row, rows)),
        total=TopRow(total, None if earlier is None else add_up([*before.values()]), None),
        more=len(groups) - len(rows),
        gone=tuple(gone),
        compared_with=earlier,
        begins=None if earlier is None else _begins_in(ledger, earlier),
        owners=unattributed_beside(ledger, total, groups, where, window, original_prices=original_prices, zone=zone),
        original_prices=original_prices,
    )


def cost_per_call(group: Spend) -> int | None:
    """Femto-dollars per call that has a price; None where none has."""
    return per(group.cost_femto, group.calls - group.unpriced_calls)


def cache_hit_rate(group: Spend) -> Decimal | None:
    """The part of all input tokens that was read from the cache, from 0 to 1; None where nobody reported it."""
    return ratio(group.cache_read_tokens, group.input_tokens)


def trend(before: Spend, after: Spend) -> Decimal | None:
    """The change of the cost as a part of what it was; None where one of them is unknown, or there was no cost before."""
    if not after.calls and before.cost_femto:
        return Decimal(-1)
    if after.cost_femto is None or not before.cost_femto:
        return None
    return CONTEXT.divide(Decimal(after.cost_femto - before.cost_femto), Decimal(before.cost_femto))


def _begins_in(ledger: Ledger, window: Window) -> int | None:
    first = next(iter(ledger.calls(limit=1)), None)
    return first.occurred_at if first is not None and first.occurred_at > (window.since or 0) else None


def _key(group: Spend) -> tuple[str | None, ...]:
    return tuple(group.dimensions.values())
