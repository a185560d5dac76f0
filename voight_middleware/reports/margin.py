"""Margin: the cost of each customer, and their revenue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from decimal import Decimal
from heapq import nsmallest
from typing import TypeAlias

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.ledger.base import Groups, Key
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
    tally = _Tally()
    with ledger.snapshot():
        groups = ledger.groups((on,), where, window, original_prices=original_prices, zone=zone)
        if limit is None:
            groups.foremost(None)  # each of them is needed: read them once
        customers = _customers(groups, revenue, known_as, tally)
        ordered = sorted(customers) if limit is None else nsmallest(limit, customers)
        names = [name for *_, found in ordered for name in found]
        spends = groups.of([(name,) for name in names])
        total, unowned = groups.total(), groups.of([(None,)]).get((None,), Spend())
    return MarginReport(
        on=on,
        window=window,
        rows=tuple(_row(customer, spends) for customer in ordered),
        total=total,
        revenue_femto=sum(revenue.values()),
        unowned=unowned,
        owners=Unattributed(unowned, total),
        original_prices=original_prices,
        more=tally.customers - len(ordered),
        idle=Part(tally.idle, tally.idle_paid),
        unpaid=Part(tally.unpaid, tally.unpaid_cost),
        unknown=tally.unknown,
    )


_Customer: TypeAlias = tuple[bool, int, str, int, int | None, tuple[str, ...]]
"""
Whether the margin is unknown, the margin, the id, a number, the revenue, and the names with calls.
So they sort as the rows of the report.
"""


@dataclass(slots=True)
class _Tally:
    """The counts of ``MarginReport``, after all customers."""

    customers: int = 0
    idle: int = 0
    idle_paid: int = 0
    unpaid: int = 0
    unpaid_cost: int = 0
    unknown: int = 0


# Complex: one pass, as there are as many customers as users.
def _customers(
    groups: Groups, revenue: Mapping[str, int], known_as: KnownAs, tally: _Tally
) -> Iterator[_Customer]:
    """Yield the customers: most of them are not shown, and need not be kept."""
    costs = groups.costs()
    calls, femto = costs.calls, costs.cost_femto
    places = dict(zip(costs.dimensions[0], range(len(calls)), strict=True))
    places.pop(None, None)
    taken: dict[str, str] = {}
    unknown = 0
    for number, (id_, paid) in enumerate(revenue.items()):
        cost: int | None = None
        found: tuple[str, ...] = ()
        for name in dict.fromkeys(known_as(id_)):
            if name in taken:
                raise AmbiguousCustomers(
                    f"the customers {taken[name]!r} and {id_!r} are both {name!r} in the ledger"
                )
            taken[name] = id_
            if (place := places.pop(name, None)) is not None:
                found += (name,)
                cost = femto[place] if cost is None else cost + (femto[place] or 0)
        if not found:
            tally.idle += 1
            tally.idle_paid += paid
            cost = 0
        unknown += cost is None
        yield cost is None, 0 if cost is None else paid - cost, id_, number, paid, found
    whole = 0
    for number, (rest, place) in enumerate(places.items(), len(revenue)):
        cost = femto[place]
        unknown += cost is None
        whole += cost or 0
        yield cost is None, -(cost or 0), str(rest), number, None, (str(rest),)
    tally.customers, tally.unknown = len(revenue) + len(places), unknown
    tally.unpaid, tally.unpaid_cost = len(places), whole


def _row(customer: _Customer, spends: Mapping[Key, Spend]) -> MarginRow:
    _, _, id_, _, paid, names = customer
    found = [spends[name,] for name in names]
    return MarginRow(id_, paid, found[0] if paid is None else add_up(found))
