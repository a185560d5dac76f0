"""Margin: the cost of each customer, and their revenue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from decimal import Decimal

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.reports.spend import add_up, ratio
from voight_middleware.reports.unattributed_share import Unattributed

KnownAs = Callable[[str], Sequence[str]]


class AmbiguousCustomers(ValueError):
    """Two customers of the revenue are the same user or tenant in the ledger."""


@dataclass(frozen=True, slots=True)
class MarginRow:
    """A customer. Money is in femto-dollars (1e-15 USD)."""

    id: str
    """The id in the revenue, or in the ledger for customers without revenue."""
    revenue_femto: int | None
    """None if the customer is not in the revenue."""
    spend: Spend

    @property
    def status(self) -> str | None:
        """``no revenue`` or ``no calls`` if one of them is missing, otherwise None."""
        if self.revenue_femto is None:
            return "no revenue"
        return None if self.spend.calls else "no calls"

    @property
    def cost_femto(self) -> int | None:
        """The cost of the calls: 0 without calls, None if no call has a price."""
        return self.spend.cost_femto if self.spend.calls else 0

    @property
    def margin_femto(self) -> int | None:
        """Revenue minus cost; without revenue, minus the cost. None if the cost is unknown."""
        return None if self.cost_femto is None else (self.revenue_femto or 0) - self.cost_femto

    @property
    def cost_to_revenue(self) -> Decimal | None:
        """Cost divided by revenue; None if one of them is unknown, or the revenue is 0."""
        return ratio(self.cost_femto, self.revenue_femto)


@dataclass(frozen=True, slots=True)
class MarginReport:
    """Customers, the worst margin first; those with unknown costs last."""

    on: str
    window: Window
    rows: tuple[MarginRow, ...]
    total: Spend
    """All calls, including those without an id."""
    revenue_femto: int
    unowned: Spend
    """Calls without an id: they are in the total, and in no row."""
    owners: Unattributed
    original_prices: bool = False

    @property
    def margin_femto(self) -> int | None:
        """All revenue minus all cost; None if no call has a price."""
        if not self.total.calls:
            return self.revenue_femto
        return None if self.total.cost_femto is None else self.revenue_femto - self.total.cost_femto

    @property
    def cost_to_revenue(self) -> Decimal | None:
        """All cost divided by all revenue."""
        return ratio(self.total.cost_femto, self.revenue_femto)


def margin(
    ledger: Ledger,
    revenue: Mapping[str, int],
    on: str = "user_id",
    where: Where | None = None,
    window: Window = Window(),
    *,
    known_as: KnownAs = lambda id_: (id_,),
    original_prices: bool = False,
    zone: tzinfo | None = None,
) -> MarginReport:
    """
    Compare costs and revenue by customer.

    Args:
        ledger: The ledger to read.
        revenue: The revenue of each customer in the window, in femto-dollars (1e-15 USD).
        on: The dimension of customers: ``user_id``, ``tenant_id``, or an extra key.
        where: Filters: ``*`` stands for any text, None for calls without a value.
        window: The time of the calls.
        known_as: Returns all names of a customer in the ledger, such as pseudonyms.
        original_prices: Whether each call counts with its first price, before any repricing.
        zone: The time zone of days in *where*; None means UTC.

    Raises:
        AmbiguousCustomers: Two customers have the same name in the ledger.
        UnknownDimension: *on*, or a name in *where*, is neither a dimension nor an extra key of any
            call.
        LedgerError: The ledger cannot be read.
    """
    groups = ledger.spend((on,), where, window, original_prices=original_prices, zone=zone)
    by_name = {group.dimensions[on]: group for group in groups}
    rows = []
    taken: dict[str, str] = {}
    for id_, paid in revenue.items():
        names = list(dict.fromkeys(known_as(id_)))
        for name in names:
            if name in taken:
                raise AmbiguousCustomers(
                    f"the customers {taken[name]!r} and {id_!r} are both {name!r} in the ledger"
                )
            taken[name] = id_
        rows.append(
            MarginRow(id_, paid, add_up([by_name[name] for name in names if name in by_name]))
        )
    rows += [
        MarginRow(name, None, group)
        for name, group in by_name.items()
        if name is not None and name not in taken
    ]
    rows.sort(key=lambda row: (row.margin_femto is None, row.margin_femto or 0, row.id))
    total, unowned = add_up(groups), by_name.get(None, Spend())
    return MarginReport(
        on=on,
        window=window,
        rows=tuple(rows),
        total=total,
        revenue_femto=sum(revenue.values()),
        unowned=unowned,
        owners=Unattributed(unowned, total),
        original_prices=original_prices,
    )
