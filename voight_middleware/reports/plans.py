"""Plans: what each plan costs, how much of it its heaviest users take, and who pays for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from fractions import Fraction

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.reports.spend import add_up, per, ratio
from voight_middleware.reports.timespan import months_in
from voight_middleware.reports.unattributed_share import Unattributed, unattributed_beside

TOP_PERCENT = (1, 5, 10)
TIMES_THE_MEDIAN = 10
"""Without a threshold and without a price, a user is heavy who costs more than this many times the median user of his plan."""


@dataclass(frozen=True, slots=True)
class HeavyUser:
    """A user who costs more than the threshold of his plan."""

    user_id: str
    spend: Spend


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One plan. Money is in femto-dollars (1e-15 USD)."""

    plan: str | None
    spend: Spend
    """All of its calls, those without a user included."""
    share: Decimal | None
    """Of the priced total over all plans, from 0 to 1."""
    users: int
    """Users with calls on this plan. Who has changed his plan is a user of each, with the calls that he made on it."""
    unpriced_users: int
    """Users of whom no call has a price: they are in none of the figures below."""
    unowned: Spend
    """Its calls without a user."""
    costs: tuple[int, ...]
    """What each user costs, the most expensive first."""
    threshold_femto: int | None
    """Above this a user is heavy; None where there is nothing to compare with."""
    heavy: tuple[HeavyUser, ...]
    """Users above the threshold, the most expensive first."""
    price_femto: int | None = None
    """What one user of the plan pays in the window; None where no price was given."""

    @property
    def mean_femto(self) -> int | None:
        """What a user costs on average."""
        return per(sum(self.costs), len(self.costs))

    @property
    def median_femto(self) -> int | None:
        """What the user in the middle costs; between two of them, the mean of both."""
        return median(self.costs)

    def concentration(self, percent: int) -> Decimal | None:
        """The part of what the users of the plan cost that the first *percent* of them take, at least one user, rounded up."""
        return ratio(sum(self.costs[: first_users(len(self.costs), percent)]), sum(self.costs)) if self.costs else None

    @property
    def revenue_femto(self) -> int | None:
        """The price times the users; None without a price."""
        return None if self.price_femto is None else self.price_femto * self.users

    @property
    def cost_to_revenue(self) -> Decimal | None:
        """The cost of the plan as a part of its revenue; None where one of them is unknown, or the revenue is 0."""
        return ratio(self.spend.cost_femto, self.revenue_femto)

    @property
    def margin_femto(self) -> int | None:
        """Revenue less cost: below 0, the others pay for this plan. None where one of them is unknown."""
        if self.revenue_femto is None or self.spend.cost_femto is None:
            return None
        return self.revenue_femto - self.spend.cost_femto

    @property
    def users_at_a_loss(self) -> int | None:
        """How many users cost more than they pay."""
        return None if self.price_femto is None else sum(cost > self.price_femto for cost in self.costs)


@dataclass(frozen=True, slots=True)
class PlansReport:
    """The plans, the most expensive first."""

    window: Window
    rows: tuple[PlanRow, ...]
    total: Spend
    owners: Unattributed | None
    months: Fraction | None
    """How many months of the prices the window has; None where no price was given."""
    unused_prices: tuple[str, ...]
    """Plans with a price and without a call."""
    original_prices: bool = False

    @property
    def revenue_femto(self) -> int | None:
        """What all plans with a price bring in; None where no price was given."""
        revenues = [row.revenue_femto for row in self.rows if row.revenue_femto is not None]
        return sum(revenues) if self.months is not None else None

    @property
    def margin_femto(self) -> int | None:
        """All revenue less all cost, that of plans without a price included; None where one of them is unknown."""
        revenue, cost = self.revenue_femto, self.total.cost_femto
        return None if revenue is None or cost is None else revenue - cost


def plans(
    ledger: Ledger,
    where: Where | None = None,
    window: Window = Window(),
    *,
    threshold_femto: int | None = None,
    prices: Mapping[str | None, Decimal] | None = None,
    original_prices: bool = False,
    zone: tzinfo | None = None,
    now: datetime | None = None,
) -> PlansReport:
    """
    What plans cost, by their users.

    Args:
        ledger: Where the calls are.
        where: Values that calls must have: ``*`` stands for any text, None for no value.
        window: The time that calls must lie in. With *prices* it needs a beginning.
        threshold_femto: Users who cost more in the window are heavy. By default, who costs more than he pays where the price of his
            plan is known and above 0, otherwise more than ``TIMES_THE_MEDIAN`` times the median user of his plan.
        prices: What a user of a plan pays for a month, in US dollars; for other windows, the part of the months that they cover.
        original_prices: By the price that each call was given first, whatever has replaced it.
        zone: Where months begin; None means UTC.
        now: Up to when a window that is still running counts; by default the clock's time.

    Raises:
        ValueError: There are prices, and the window has no beginning.
        UnknownDimension: A name in *where* is no dimension, and no extra key of any call.
        LedgerError: The ledger cannot be read.
    """
    months = months_in(window, now, zone or UTC) if prices else None
    if prices and months is None:
        raise ValueError("a price is for a month: say with --since from when on users have paid it, such as --since month")
    groups = ledger.spend(("plan", "user_id"), where, window, original_prices=original_prices, zone=zone)
    total = add_up(groups)
    by_plan: dict[str | None, list[Spend]] = {}
    for group in groups:
        by_plan.setdefault(group.dimensions["plan"], []).append(group)
    rows = []
    for plan, users in by_plan.items():
        price = (prices or {}).get(plan)
        paid = None if price is None or months is None else round(Fraction(price) * months * 10**15)
        rows.append(_row(plan, users, total, threshold_femto, paid))
    rows.sort(key=lambda row: (row.spend.cost_femto is None, -(row.spend.cost_femto or 0), -row.spend.calls, row.plan or ""))
    return PlansReport(
        window=window,
        rows=tuple(rows),
        total=total,
        owners=unattributed_beside(ledger, total, groups, where, window, original_prices=original_prices, zone=zone),
        months=months,
        unused_prices=tuple("-" if plan is None else plan for plan in prices or () if plan not in by_plan),
        original_prices=original_prices,
    )


def _row(plan: str | None, groups: Sequence[Spend], total: Spend, threshold: int | None, paid: int | None) -> PlanRow:
    owned = [group for group in groups if group.dimensions["user_id"] is not None]
    spend = add_up(groups)
    costs = sorted((group.cost_femto for group in owned if group.cost_femto is not None), reverse=True)
    if threshold is None:
        middle = median(costs)
        threshold = paid or (None if middle is None else TIMES_THE_MEDIAN * middle)
    heavy = [
        HeavyUser(str(group.dimensions["user_id"]), group)
        for group in owned
        if threshold is not None and group.cost_femto is not None and group.cost_femto > threshold
    ]
    return PlanRow(
        plan=plan,
        spend=spend,
        share=ratio(spend.cost_femto, total.cost_femto),
        users=len(owned),
        unpriced_users=len(owned) - len(costs),
        unowned=add_up([group for group in groups if group.dimensions["user_id"] is None]),
        costs=tuple(costs),
        threshold_femto=threshold,
        heavy=tuple(sorted(heavy, key=lambda user: (-(user.spend.cost_femto or 0), user.user_id))),
        price_femto=paid,
    )


def first_users(users: int, percent: int) -> int:
    """How many users *percent* of them are, rounded up: 1 % of 101 users are 2."""
    return -(-users * percent // 100)


def median(costs: Sequence[int]) -> int | None:
    """The middle of sorted costs, half a femto-dollar rounded to even; None of none."""
    if not costs:
        return None
    middle = len(costs) // 2
    return costs[middle] if len(costs) % 2 else round(Fraction(costs[middle - 1] + costs[middle], 2))
