"""Plans: the cost of each plan, its heaviest users, and its margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import TypeAlias

from msgspec.structs import replace

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.ledger.base import Groups
from voight_middleware.ledger.groups import add_up
from voight_middleware.reports.lazy import LazySequence
from voight_middleware.reports.spend import per, ratio
from voight_middleware.reports.timespan import months_in
from voight_middleware.reports.unattributed_share import Unattributed, unattributed_among

TOP_PERCENT = (1, 5, 10)
TIMES_THE_MEDIAN = 10
"""The default threshold of heavy users: this many times the cost of the plan's median user."""


@dataclass(frozen=True, slots=True)
class HeavyUser:
    """A user who costs more than the threshold of their plan."""

    user_id: str
    spend: Spend


@dataclass(frozen=True, slots=True)
class PlanRow:
    """A plan. Money is in femto-dollars (1e-15 USD)."""

    plan: str | None
    spend: Spend
    """All of its calls, including those without a user."""
    share: Decimal | None
    """The share of the priced total over all plans, from 0 to 1."""
    users: int
    """Users with calls on this plan. After a change of plan, a user counts in both."""
    unpriced_users: int
    """Users without a priced call: they are in none of the figures below."""
    unowned: Spend
    """Its calls without a user."""
    costs: tuple[int, ...]
    """The cost of each user, the most expensive first."""
    threshold_femto: int | None
    """The cost above which a user is heavy; None if there is no threshold."""
    heavy: Sequence[HeavyUser]
    """Users above the threshold, the most expensive first."""
    price_femto: int | None = None
    """The price of the plan for one user in the window; None without a price."""

    @property
    def mean_femto(self) -> int | None:
        """The mean cost of a user."""
        return per(sum(self.costs), len(self.costs))

    @property
    def median_femto(self) -> int | None:
        """The median cost of a user."""
        return median(self.costs)

    def concentration(self, percent: int) -> Decimal | None:
        """
        Return the share of the first *percent* of users, rounded up, in the cost of all users.
        """
        return (
            ratio(sum(self.costs[: first_users(len(self.costs), percent)]), sum(self.costs))
            if self.costs
            else None
        )

    @property
    def revenue_femto(self) -> int | None:
        """Price times users; None without a price."""
        return None if self.price_femto is None else self.price_femto * self.users

    @property
    def cost_to_revenue(self) -> Decimal | None:
        """Cost divided by revenue; None if one of them is unknown, or the revenue is 0."""
        return ratio(self.spend.cost_femto, self.revenue_femto)

    @property
    def margin_femto(self) -> int | None:
        """Revenue minus cost; None if one of them is unknown."""
        if self.revenue_femto is None or self.spend.cost_femto is None:
            return None
        return self.revenue_femto - self.spend.cost_femto

    @property
    def users_at_a_loss(self) -> int | None:
        """The number of users who cost more than they pay."""
        return (
            None
            if self.price_femto is None
            else sum(cost > self.price_femto for cost in self.costs)
        )


@dataclass(frozen=True, slots=True)
class PlansReport:
    """The plans, the most expensive first."""

    window: Window
    rows: tuple[PlanRow, ...]
    total: Spend
    owners: Unattributed | None
    months: Fraction | None
    """The length of the window in months; None without prices."""
    unused_prices: tuple[str, ...]
    """Plans with a price, but without calls."""
    original_prices: bool = False

    @property
    def revenue_femto(self) -> int | None:
        """The revenue of all plans with a price; None without prices."""
        revenues = [row.revenue_femto for row in self.rows if row.revenue_femto is not None]
        return sum(revenues) if self.months is not None else None

    @property
    def margin_femto(self) -> int | None:
        """All revenue minus all cost, including plans without a price; None if one is unknown."""
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
    Compare plans by cost, users and revenue.

    Args:
        ledger: The ledger to read.
        where: Filters: ``*`` stands for any text, None for calls without a value.
        window: The time of the calls. With *prices*, it needs a beginning.
        threshold_femto: The cost in the window above which a user is heavy. By default the price of
            the plan if it is above 0, otherwise ``TIMES_THE_MEDIAN`` times its median user.
        prices: The price of each plan for one user and month, in US dollars. Other windows count as
            parts of months.
        original_prices: Whether each call counts with its first price, before any repricing.
        zone: The time zone of months; None means UTC.
        now: The end of a window that is still running. By default the current time.

    Raises:
        ValueError: There are prices, but the window has no beginning.
        UnknownDimension: A name in *where* is neither a dimension nor an extra key of any call.
        LedgerError: The ledger cannot be read.
    """
    months = months_in(window, now, zone or UTC) if prices else None
    if prices and months is None:
        raise ValueError(
            "a price is for a month: give the time with --since, such as --since month"
        )
    with ledger.snapshot():
        groups = ledger.groups(
            ("plan", "user_id"), where, window, original_prices=original_prices, zone=zone
        )
        users: dict[str | None, _Users] = {}
        costs = groups.costs()
        for plan, user, cost in zip(*costs.dimensions, costs.cost_femto, strict=True):
            if user is not None:
                if (of_plan := users.get(plan)) is None:
                    of_plan = users[plan] = [], []
                of_plan[0].append(user)
                of_plan[1].append(cost)
        spends = {group.dimensions["plan"]: _plain(group) for group in groups.within(("plan",))}
        unowned = {
            group.dimensions["plan"]: _plain(group)
            for group in groups.within(("plan",), without="user_id")
        }
        total = add_up([*spends.values()])
        rows = []
        for plan, spend in spends.items():
            price = (prices or {}).get(plan)
            paid = (
                None
                if price is None or months is None
                else round(Fraction(price) * months * 10**15)
            )
            rows.append(
                _row(
                    groups,
                    plan,
                    users.get(plan, ([], [])),
                    spend,
                    unowned=unowned.get(plan, Spend()),
                    total=total,
                    threshold=threshold_femto,
                    paid=paid,
                )
            )
        owners = unattributed_among(groups, total, where)
    rows.sort(
        key=lambda row: (
            row.spend.cost_femto is None,
            -(row.spend.cost_femto or 0),
            -row.spend.calls,
            row.plan or "",
        )
    )
    return PlansReport(
        window=window,
        rows=tuple(rows),
        total=total,
        owners=owners,
        months=months,
        unused_prices=tuple(
            "-" if plan is None else plan for plan in prices or () if plan not in spends
        ),
        original_prices=original_prices,
    )


_Users: TypeAlias = tuple[list[str], list[int | None]]
"""The users of a plan, and the cost of each."""


def _row(
    groups: Groups,
    plan: str | None,
    users: _Users,
    spend: Spend,
    *,
    unowned: Spend,
    total: Spend,
    threshold: int | None,
    paid: int | None,
) -> PlanRow:
    names, each = users
    costs = sorted([cost for cost in each if cost is not None], reverse=True)
    if threshold is None:
        middle = median(costs)
        threshold = paid or (None if middle is None else TIMES_THE_MEDIAN * middle)
    above = sorted(
        (-cost, user)
        for user, cost in zip(names, each, strict=True)
        if threshold is not None and cost is not None and cost > threshold
    )
    spends = groups.of([(plan, user) for _, user in above])
    heavy = LazySequence(
        [user for _, user in above], lambda user: HeavyUser(user, spends[plan, user])
    )
    return PlanRow(
        plan=plan,
        spend=spend,
        share=ratio(spend.cost_femto, total.cost_femto),
        users=len(names),
        unpriced_users=len(names) - len(costs),
        unowned=unowned,
        costs=tuple(costs),
        threshold_femto=threshold,
        heavy=heavy,
        price_femto=paid,
    )


def _plain(group: Spend) -> Spend:
    return replace(group, dimensions={})


def first_users(users: int, percent: int) -> int:
    """Return *percent* of the users, rounded up: 1% of 101 users are 2."""
    return -(-users * percent // 100)


def median(costs: Sequence[int]) -> int | None:
    """Return the median of sorted costs, rounded half to even; None without any."""
    if not costs:
        return None
    middle = len(costs) // 2
    return (
        costs[middle] if len(costs) % 2 else round(Fraction(costs[middle - 1] + costs[middle], 2))
    )
