"""What plans cost, by their users."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voight_middleware.ledger import Ledger, Window
from voight_middleware.reports.plans import first_users, median, plans
from voight_middleware.reports.timespan import months_in, parse_window

USD = 10**15
Add = Callable[..., None]
NOVEMBER = parse_window("2026-11", "2026-11")
NOW = datetime(2026, 12, 20, tzinfo=UTC)


def test_users_mean_median_and_concentration(ledger: Ledger, add: Add) -> None:
    """Mean and median are over users, and the first 1, 5 and 10 % of them are rounded up to whole users."""
    for number in range(1, 22):  # 21 users: 1 % and 5 % are 1 and 2, 10 % are 3
        add(f"u_{number:02}", number, plan="free")
    add(None, 4, plan="free")
    add("new", None, plan="free")
    (row,) = plans(ledger).rows
    assert (row.plan, row.users, row.unpriced_users, row.unowned.calls, row.spend.cost_femto) == ("free", 22, 1, 1, 235 * USD)
    assert (row.mean_femto, row.median_femto, len(row.costs)) == (11 * USD, 11 * USD, 21)
    assert [row.concentration(percent) for percent in (1, 5, 10)] == [
        pytest.approx(Decimal(21) / 231),
        pytest.approx(Decimal(21 + 20) / 231),
        pytest.approx(Decimal(21 + 20 + 19) / 231),
    ]


def test_a_user_of_two_plans(ledger: Ledger, add: Add) -> None:
    """Who changed plans is a user of each, with the calls that he made on it; plans are sorted by what they cost."""
    add("u_1", 1, plan="free")
    add("u_1", 9, plan="pro")
    add("u_2", 3, plan="free")
    first, second = plans(ledger).rows
    assert (first.plan, first.users, first.costs, first.share) == ("pro", 1, (9 * USD,), pytest.approx(Decimal(9) / 13))
    assert (second.plan, second.users, second.costs, second.median_femto) == ("free", 2, (3 * USD, USD), 2 * USD)


def test_heavy_users(ledger: Ledger, add: Add) -> None:
    """Heavy is who costs more than the threshold; without one, than the plan's price; without that, than ten times the median."""
    for user, cost in (("a", 1), ("b", 1), ("c", 1), ("d", 10), ("e", 10.5)):
        add(user, cost, plan="free")
    names = lambda **options: [user.user_id for user in plans(ledger, window=NOVEMBER, now=NOW, **options).rows[0].heavy]  # noqa: E731
    assert names() == ["e"]
    assert names(threshold_femto=1 * USD) == ["e", "d"]
    assert names(prices={"free": Decimal("0.99")}) == ["e", "d", "a", "b", "c"]
    assert names(prices={"free": Decimal(0)}) == ["e"]  # who pays nothing always costs more than he pays
    assert names(threshold_femto=0, prices={"free": Decimal(20)}) == ["e", "d", "a", "b", "c"]


def test_a_user_who_costs_what_they_pay_is_no_loss(ledger: Ledger, add: Add) -> None:
    """A loss begins above the price."""
    add("u_1", 20, plan="pro")
    add("u_2", 20.000001, plan="pro")
    (pro,) = plans(ledger, window=NOVEMBER, now=NOW, prices={"pro": Decimal(20)}).rows
    assert pro.users_at_a_loss == 1


def test_who_pays_for_whom(ledger: Ledger, add: Add) -> None:
    """A price times the users is the revenue of a plan, and what is below its cost is paid by the others."""
    add("u_1", 6, plan="free")
    add("u_2", 5, plan="pro")
    add("u_3", 25, plan="pro")
    add(None, 2)
    report = plans(ledger, window=NOVEMBER, now=NOW, prices={"free": Decimal(0), "pro": Decimal(20), "gone": Decimal(1)})
    pro, free, none = report.rows
    assert (pro.revenue_femto, pro.cost_to_revenue, pro.margin_femto, pro.users_at_a_loss) == (40 * USD, Decimal("0.75"), 10 * USD, 1)
    assert (free.revenue_femto, free.cost_to_revenue, free.margin_femto, free.users_at_a_loss) == (0, None, -6 * USD, 1)
    assert (none.revenue_femto, none.margin_femto, none.users_at_a_loss) == (None, None, None)
    assert (report.revenue_femto, report.margin_femto, report.unused_prices) == (40 * USD, 2 * USD, ("gone",))
    assert report.owners is not None
    assert report.owners.unowned.cost_femto == 2 * USD


def test_a_price_is_for_a_month(ledger: Ledger, add: Add) -> None:
    """Of a window that is no whole month, the part of the months that it covers is paid; without a beginning that is unknown."""
    add("u_1", 1, plan="pro")
    days = parse_window("2026-11-10", "2026-11-12")
    assert plans(ledger, window=days, now=NOW, prices={"pro": Decimal(20)}).rows[0].price_femto == 2 * USD
    with pytest.raises(ValueError, match="a price is for a month"):
        plans(ledger, prices={"pro": Decimal(20)})


def test_months() -> None:
    """Months are counted by the calendar, and a window that is still running up to now."""
    assert months_in(parse_window("2026-01", "2026-12"), NOW) == 11 + Fraction(19, 31)
    assert months_in(parse_window("2026-10-16", "2026-11-15"), NOW) == Fraction(16, 31) + Fraction(15, 30)
    assert months_in(parse_window("2026-12-01", None), NOW) == Fraction(19, 31)
    assert months_in(parse_window("2027-01", None), NOW) == 0
    assert months_in(Window(None, 5)) is None


def test_empty_and_unpriced(ledger: Ledger, add: Add) -> None:
    """Without calls there are no plans; of users without a price there is no mean, no median and no share."""
    assert plans(ledger).rows == ()
    add("u_1", None, plan="free")
    (row,) = plans(ledger, window=NOVEMBER, now=NOW, prices={"free": Decimal(1)}).rows
    assert (row.users, row.unpriced_users, row.heavy) == (1, 1, ())
    assert (row.mean_femto, row.median_femto, row.concentration(1)) == (None, None, None)
    assert (row.revenue_femto, row.margin_femto, row.cost_to_revenue) == (1 * USD, None, None)


def test_one_user(ledger: Ledger, add: Add) -> None:
    """The only user is the first 1 % and takes all."""
    add("u_1", 1, plan="free")
    (row,) = plans(ledger).rows
    assert (row.concentration(1), row.median_femto, row.heavy) == (1, USD, ())


@given(st.integers(1, 10_000), st.sampled_from([1, 5, 10]))
def test_first_users(users: int, percent: int) -> None:
    """The first users are never fewer than their percentage, and never a whole user more."""
    assert users * percent <= first_users(users, percent) * 100 < users * percent + 100


def test_median() -> None:
    """Between two users it is their mean, half a femto-dollar to even."""
    assert [median(costs) for costs in ([], [5], [3, 2], [4, 3], [9, 5, 1])] == [None, 5, 2, 4, 5]
