"""Spend: what calls cost, by any dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from decimal import Decimal
from fractions import Fraction

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.records.money import CONTEXT, from_femto, usd_text

TIMES = ("hour", "day", "week", "month")
"""Dimensions that have an order of their own."""


@dataclass(frozen=True, slots=True)
class SpendReport:
    """
    Groups of calls, and the total over all groups, those behind the limit included.

    The most expensive comes first; where the first dimension is a time, the oldest, and the most expensive of each time.
    """

    by: tuple[str, ...]
    window: Window
    rows: tuple[Spend, ...]
    total: Spend
    more: int = 0
    """How many groups the limit has left out of ``rows``."""
    original_prices: bool = False
    """Whether costs are those that calls were given first, whatever has replaced them."""
    zone: tzinfo | None = None
    """Where days begin; None means UTC."""

    @property
    def over_time(self) -> bool:
        """Whether the rows are in the order of time."""
        return bool(self.by) and self.by[0] in TIMES

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
    original_prices: bool = False,
    zone: tzinfo | None = None,
) -> SpendReport:
    """
    Calls added up by dimensions.

    Args:
        ledger: Where the calls are.
        by: Names out of ``DIMENSIONS``, or extra keys; without any, one row over all calls.
        where: Values that calls must have: ``*`` stands for any text, None for no value, and of several one is enough.
        window: The time that calls must lie in.
        limit: How many rows to keep: the most expensive ones; the newest, where the first dimension is a time.
        original_prices: By the price that each call was given first, whatever has replaced it.
        zone: Where hours, days and months are cut; None means UTC.

    Raises:
        UnknownDimension: A name in *by* or *where* is no dimension, and no extra key of any call.
        LedgerError: The ledger cannot be read.
    """
    # All groups are fetched and added up here: a second query for the total might see calls that came in between.
    by = tuple(dict.fromkeys(by))
    groups = ledger.spend(by, where, window, original_prices=original_prices, zone=zone)
    total = add_up(groups)
    if by and by[0] in TIMES:
        groups = sorted(groups, key=lambda group: _moment(group.dimensions[by[0]]))
        rows = groups if limit is None else groups[-limit:]
    else:
        rows = groups if limit is None else groups[:limit]
    return SpendReport(by, window, tuple(rows), total, len(groups) - len(rows), original_prices, zone)


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
        "cost_usd": usd(group.sum_femto),
        "unpriced_calls": group.unpriced_calls,
        "partial_calls": group.partial_calls,
        "estimated_calls": group.estimated_calls,
        "errors": group.errors,
    }


def ratio(part: int | None, whole: int | None) -> Decimal | None:
    """*part* of *whole*; None where one of them is unknown, or there is no whole."""
    return CONTEXT.divide(Decimal(part), Decimal(whole)) if part is not None and whole else None


def per(cost_femto: int | None, count: int) -> int | None:
    """A cost divided by a count, to the femto-dollar; None where one of them is unknown, or nothing was counted."""
    return round(Fraction(cost_femto, count)) if cost_femto is not None and count > 0 else None


def usd(femto: int | None) -> str | None:
    """Femto-dollars as a decimal string of US dollars."""
    return None if femto is None else usd_text(from_femto(femto))


def _moment(text: str | None) -> str:
    """
    An hour, day or month as text that sorts like time.

    Of the two hours that a clock is set back for, the one with the larger offset from UTC comes first.
    """
    if text is None or len(text) <= len("2026-11-01T09:00Z"):
        return text or ""
    hour, sign, offset = text[:16], text[16], text[17:]
    minutes = int(offset[:2]) * 60 + int(offset[3:5])
    return f"{hour}{2000 - (minutes if sign == '+' else -minutes):04}"


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
