"""Spend: the cost of calls by any dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from decimal import Decimal
from fractions import Fraction

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.records.money import CONTEXT, from_femto, usd_text

TIMES = ("hour", "day", "week", "month")
"""Dimensions that are sorted by time, not by cost."""


@dataclass(frozen=True, slots=True)
class SpendReport:
    """
    Groups of calls, and the total over all groups, including those beyond the limit.

    The most expensive group comes first. If the first dimension is a time, the oldest time comes
    first, with its most expensive group.
    """

    by: tuple[str, ...]
    window: Window
    rows: tuple[Spend, ...]
    total: Spend
    more: int = 0
    """The number of groups beyond the limit."""
    original_prices: bool = False
    """Whether each call counts with its first price, before any repricing."""
    zone: tzinfo | None = None
    """The time zone of days; None means UTC."""

    @property
    def over_time(self) -> bool:
        """Whether the rows are sorted by time."""
        return bool(self.by) and self.by[0] in TIMES

    def share(self, row: Spend) -> Decimal | None:
        """
        Return the share of *row* in the priced total, from 0 to 1.

        None if one of them has no price, or the total is 0.
        """
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
    Add up calls by dimensions.

    Args:
        ledger: The ledger to read.
        by: Names of ``DIMENSIONS``, or extra keys. Without any, one row with all calls.
        where: Filters: ``*`` stands for any text, None for calls without a value. One of several
            values is enough.
        window: The time of the calls.
        limit: The number of rows to return: the most expensive ones, or the newest if the first
            dimension is a time.
        original_prices: Whether each call counts with its first price, before any repricing.
        zone: The time zone of hours, days and months; None means UTC.

    Raises:
        UnknownDimension: A name in *by* or *where* is neither a dimension nor an extra key of any
            call.
        LedgerError: The ledger cannot be read.
    """
    by = tuple(dict.fromkeys(by))
    with ledger.snapshot():
        groups = ledger.groups(by, where, window, original_prices=original_prices, zone=zone)
        if by and by[0] in TIMES:
            in_time = sorted(
                groups.foremost(None), key=lambda group: _moment(group.dimensions[by[0]])
            )
            rows = in_time if limit is None else in_time[-limit:]
        else:
            rows = groups.foremost(limit)
        total, more = groups.total(), groups.count() - len(rows)
    return SpendReport(by, window, tuple(rows), total, more, original_prices, zone)


def as_row(group: Spend) -> dict[str, str | int | None]:
    """Return a group as JSON and CSV have it; the cost is a decimal string of US dollars."""
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
    """Return *part* divided by *whole*; None if one of them is unknown, or *whole* is 0."""
    return CONTEXT.divide(Decimal(part), Decimal(whole)) if part is not None and whole else None


def per(cost_femto: int | None, count: int) -> int | None:
    """Return a cost divided by a count, in whole femto-dollars; None without a count or a cost."""
    return round(Fraction(cost_femto, count)) if cost_femto is not None and count > 0 else None


def usd(femto: int | None) -> str | None:
    """Return femto-dollars as a decimal string of US dollars."""
    return None if femto is None else usd_text(from_femto(femto))


def _moment(text: str | None) -> str:
    """
    Return an hour, day or month as text that sorts by time.

    When clocks are set back, the hour with the larger offset from UTC comes first.
    """
    if text is None or len(text) <= len("2026-11-01T09:00Z"):
        return text or ""
    hour, sign, offset = text[:16], text[16], text[17:]
    minutes = int(offset[:2]) * 60 + int(offset[3:5])
    return f"{hour}{2000 - (minutes if sign == '+' else -minutes):04}"
