"""Margin: the cost of each customer, and their revenue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from decimal import Decimal
from heapq import nsmallest
from typing import TypeAlias

from voight_middleware.ledger import Groups, Key, Ledger, Spend, Where, Window
from voight_middleware.ledger.groups import add_up
from voight_middleware.reports.spend import ratio
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
class Part:
    """Some of the customers, including those beyond the limit."""

    customers: int = 0
    femto: int = 0


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
    more: int = 0
    """The number of customers beyond the limit."""
    idle: Part = Part()
    """The customers without calls, and their revenue."""
    unpaid: Part = Part()
    """The customers without revenue, and their cost."""
    unknown: int = 0
    """The number of customers whose cost is unknown."""

    @property
    def customers(self) -> int:
        """The number of customers, including those beyond the limit."""
        return len(self.rows) + self.more

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
    limit: int | None = None,
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
        limit: The number of rows to return.
        known_as: Returns all names of a customer in the ledger, such as pseudonyms.
        original_prices: Whether each call counts with its first price, before any repricing.
        zone: The time zone of days in *where*; None means UTC.

    Raises:
        AmbiguousCustomers: Two customers have the same name in the ledger.
        UnknownDimension: *on*, or a name in *where*, is neither a dimension nor an extra key of any
            call.
        LedgerError: The ledger cannot be read.
    """
    with ledger.snapshot():
        groups = ledger.groups((on,), where, window, original_prices=original_prices, zone=zone)
        if limit is None:
            groups.foremost(None)  # each of them is needed: read them once
        customers = _customers(groups, revenue, known_as)
        ordered = sorted(customers) if limit is None else nsmallest(limit, customers)
        names = [name for customer in ordered for name in customer[5]]
        spends = groups.of([(name,) for name in names])
        total, unowned = groups.total(), groups.of([(None,)]).get((None,), Spend())
    idle = [paid or 0 for *_, paid, _, calls, _ in customers if not calls]
    unpaid = [cost or 0 for *_, paid, _, _, cost in customers if paid is None]
    return MarginReport(
        on=on,
        window=window,
        rows=tuple(_row(customer, spends) for customer in ordered),
        total=total,
        revenue_femto=sum(revenue.values()),
        unowned=unowned,
        owners=Unattributed(unowned, total),
        original_prices=original_prices,
        more=len(customers) - len(ordered),
        idle=Part(len(idle), sum(idle)),
        unpaid=Part(len(unpaid), sum(unpaid)),
        unknown=sum(customer[0] for customer in customers),
    )


_Customer: TypeAlias = tuple[bool, int, str, int, int | None, tuple[str, ...], int, int | None]
"""
Whether the margin is unknown, the margin, the id, a number, the revenue, the names with calls, the
calls, and the cost. So they sort as the rows of the report.
"""


# Complex: one pass, as there are as many customers as users.
def _customers(groups: Groups, revenue: Mapping[str, int], known_as: KnownAs) -> list[_Customer]:
    costs = groups.costs()
    of_names = dict(
        zip(costs.dimensions[0], zip(costs.calls, costs.cost_femto, strict=True), strict=True)
    )
    of_names.pop(None, None)
    customers: list[_Customer] = []
    taken: dict[str, str] = {}
    for id_, paid in revenue.items():
        calls, cost, found = 0, None, []
        for name in dict.fromkeys(known_as(id_)):
            if name in taken:
                raise AmbiguousCustomers(
                    f"the customers {taken[name]!r} and {id_!r} are both {name!r} in the ledger"
                )
            taken[name] = id_
            if (one := of_names.pop(name, None)) is not None:
                found.append(name)
                calls += one[0]
                cost = one[1] if cost is None else cost + (one[1] or 0)
        if not calls:
            cost = 0
        place = len(customers)
        left = 0 if cost is None else paid - cost
        customers.append((cost is None, left, id_, place, paid, tuple(found), calls, cost))
    customers += [
        (cost is None, -(cost or 0), name, place, None, (name,), calls, cost)
        for place, (name, (calls, cost)) in enumerate(of_names.items(), len(customers))
        if name is not None
    ]
    return customers


def _row(customer: _Customer, spends: Mapping[Key, Spend]) -> MarginRow:
    _, _, id_, _, paid, names, _, _ = customer
    found = [spends[name,] for name in names]
    return MarginRow(id_, paid, found[0] if paid is None else add_up(found))
