"""Spend: what calls cost, by any dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.money import CONTEXT, from_femto, usd_text


@dataclass(frozen=True, slots=True)
class SpendReport:
    """Groups of calls, the most expensive first, and the total over all groups, those behind the limit included."""

    by: tuple[str, ...]
    window: Window
    rows: tuple[Spend, ...]
    total: Spend
    more: int = 0
    """How many groups the limit has left out of ``rows``."""
    as_priced: bool = False
    """Whether costs are those that calls were given first, whatever has replaced them."""

    def share(self, row: Spend) -> Decimal | None:
        """The part of the priced total that *row* costs, from 0 to 1; None where one of them is not priced, or the total is 0."""
        return ratio(row.cost_femto, self.total.cost_femto)


def spend(
    ledger: Ledger,
    by: Sequence[str] = (),
    where: Where | None = None,
    window: Window = Window(),
    limit: int | None = None,
    *,
    as_priced: bool = False,
) -> SpendReport:
    """
    Calls added up by dimensions.

    Args:
        ledger: Where the calls are.
        by: Names out of ``DIMENSIONS``, or extra keys; without any, one row over all calls.
        where: Values that calls must have: ``*`` stands for any text, None for no value, and of several one is enough.
        window: The time that calls must lie in.
        limit: How many rows to keep.
        as_priced: By the price that each call was given first, whatever has replaced it.

    Raises:
        UnknownDimension: A name in *by* or *where* is no dimension, and no extra key of any call.
        LedgerError: The ledger cannot be read.
    """
    # All groups are fetched and added up here: a second query for the total might see calls that came in between.
    groups = ledger.spend(by, where, window, as_priced=as_priced)
    rows = groups if limit is None else groups[:limit]
    return SpendReport(tuple(dict.fromkeys(by)), window, tuple(rows), add_up(groups), len(groups) - len(rows), as_priced)


def add_up(groups: Sequence[Spend]) -> Spend:
    """The total of several groups. A count or cost is None where it is None in all of them."""
    return Spend(
        calls=sum(group.calls for group in groups),
        input_tokens=_sum([group.input_tokens for group in groups]),
        cache_read_tokens=_sum([group.cache_read_tokens for group in groups]),
        cache_write_tokens=_sum([group.cache_write_tokens for group in groups]),
        output_tokens=_sum([group.output_tokens for group in groups]),
        cost_femto=_sum([group.cost_femto for group in groups]),
        unpriced_calls=sum(group.unpriced_calls for group in groups),
        partial_calls=sum(group.partial_calls for group in groups),
        estimated_calls=sum(group.estimated_calls for group in groups),
        errors=sum(group.errors for group in groups),
    )


def as_row(group: Spend) -> dict[str, str | int | None]:
    """A group as it leaves the house: dimensions, calls, tokens, and the cost as a decimal string of US dollars."""
    return {
        **group.dimensions,
        "calls": group.calls,
        "input_tokens": group.input_tokens,
        "cache_read_tokens": group.cache_read_tokens,
        "cache_write_tokens": group.cache_write_tokens,
        "output_tokens": group.output_tokens,
        "cost_usd": None if group.cost_femto is None else usd_text(from_femto(group.cost_femto)),
        "unpriced_calls": group.unpriced_calls,
        "partial_calls": group.partial_calls,
        "estimated_calls": group.estimated_calls,
        "errors": group.errors,
    }


def ratio(part: int | None, whole: int | None) -> Decimal | None:
    """*part* of *whole*; None where one of them is unknown, or there is no whole."""
    return CONTEXT.divide(Decimal(part), Decimal(whole)) if part is not None and whole else None


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
