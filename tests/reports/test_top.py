"""Who costs most, and whether that is more than before."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest

from voight_middleware.ledger import Ledger, UnknownDimension, Window
from voight_middleware.reports.timespan import parse_window
from voight_middleware.reports.top import top

USD = 10**15
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
Add = Callable[..., None]


def test_figures_of_a_row(ledger: Ledger, add: Add) -> None:
    """A row has its share, its cache hit rate over all input, what a priced call costs, and the change since the month before."""
    add("u_1", 3, "2026-11-02T10:00", input=60, cached=40)
    add("u_1", 1, "2026-11-03T10:00", input=100, cached=None)
    add("u_1", None, "2026-11-03T11:00", input=0)
    add("u_2", 12, "2026-11-04T10:00", input=50)
    add("u_1", 5, "2026-10-20T10:00")
    add("u_1", 100, "2026-10-21T13:00")  # behind the same part of the month before
    add("u_2", 3, "2026-10-01T00:00")
    report = top(ledger, window=parse_window("month", None, NOW), now=NOW)
    second, first = report.rows[1], report.rows[0]
    assert [row.spend.dimensions["user_id"] for row in report.rows] == ["u_2", "u_1"]
    assert (second.share, second.cache_hit_rate, second.cost_per_call_femto) == (Decimal("0.25"), Decimal("0.2"), 2 * USD)
    assert (second.spend.calls, second.spend.unpriced_calls) == (3, 1)
    assert (second.trend, first.trend, report.total.trend) == (Decimal("-0.2"), Decimal(3), Decimal(1))
    assert (first.cache_hit_rate, first.status, second.status) == (None, None, None)
    assert (report.total.spend.cost_femto, report.more, report.gone) == (16 * USD, 0, ())
    assert report.compared_with == parse_window("2026-10-01", "2026-10-21T12:00")


def test_new_and_gone(ledger: Ledger, add: Add) -> None:
    """Who had no calls before is new and has no trend; who was among the first before and has none any more is gone."""
    add("new", 1)
    add("stays", 2)
    add("stays", 2, "2026-10-02T10:00")
    add("gone", 9, "2026-10-02T10:00")
    add("small", 1, "2026-10-02T10:00")
    report = top(ledger, window=parse_window("month", None, NOW), now=NOW, limit=2)
    assert [(row.spend.dimensions["user_id"], row.status, row.trend) for row in report.rows] == [("stays", None, 0), ("new", "new", None)]
    (gone,) = report.gone  # `small` was none of the first two
    assert (gone.spend.dimensions["user_id"], gone.status, gone.trend, gone.spend.calls) == ("gone", "gone", -1, 0)
    assert gone.before is not None
    assert gone.before.cost_femto == 9 * USD


def test_a_limit_hides_rows_and_not_their_cost(ledger: Ledger, add: Add) -> None:
    """Shares and total are over all rows, those behind the limit included."""
    for number in range(1, 5):
        add(f"u_{number}", number)
    report = top(ledger, limit=1)
    assert (report.rows[0].share, report.total.spend.cost_femto, report.more) == (Decimal("0.4"), 10 * USD, 3)


def test_all_time_has_no_trend(ledger: Ledger, add: Add) -> None:
    """Without a beginning nothing is compared, and nothing is new."""
    add("u_1")
    report = top(ledger)
    assert (report.compared_with, report.rows[0].before, report.rows[0].status, report.rows[0].trend) == (None, None, None, None)


def test_what_has_no_owner(ledger: Ledger, add: Add) -> None:
    """The part of the total without a user is known, whatever the rows are by; where certain users were asked for it is no question."""
    add(None, 1, plan="free")
    add("u_1", 3, plan="free")
    for by in (["user_id"], ["plan"], ["model", "user_id"]):
        report = top(ledger, by)
        assert report.owners is not None
        assert (report.owners.unowned.calls, report.owners.share_of_spend) == (1, Decimal("0.25"))
    assert top(ledger, ["plan"], {"user_id": "u_1"}).owners is None


def test_days_of_a_zone(ledger: Ledger, add: Add) -> None:
    """A call in the last hour of October in UTC is of November in Berlin."""
    add("u_1", 2, "2026-10-31T23:30")
    berlin = ZoneInfo("Europe/Berlin")
    now = datetime(2026, 11, 21, tzinfo=UTC)
    assert top(ledger, window=parse_window("month", None, now, berlin), zone=berlin, now=now).total.spend.cost_femto == 2 * USD
    assert top(ledger, window=parse_window("month", None, now), now=now).total.spend.calls == 0
    assert top(ledger, ["month"], zone=berlin).rows[0].spend.dimensions == {"month": "2026-11"}


def test_a_time_before_that_is_not_whole(ledger: Ledger, add: Add) -> None:
    """Where the ledger begins within the time before, the report says when."""
    add("u_1", 1, "2026-10-20T00:00")
    add("u_1", 1)
    assert top(ledger, window=parse_window("month", None, NOW), now=NOW).begins == parse_window("2026-10-20").since
    add("u_1", 1, "2026-09-20T00:00")
    assert top(ledger, window=parse_window("month", None, NOW), now=NOW).begins is None


def test_unpriced_and_empty(ledger: Ledger, add: Add) -> None:
    """Without any call there are no rows; where nothing is priced, costs, shares and trends are unknown, not 0."""
    report = top(ledger, window=parse_window("month", None, NOW), now=NOW)
    assert (report.rows, report.total.spend.calls, report.total.trend, report.total.cost_per_call_femto) == ((), 0, None, None)
    add("u_1", None)
    add("u_1", 5, "2026-10-02T00:00")
    (row,) = top(ledger, window=parse_window("month", None, NOW), now=NOW).rows
    assert (row.spend.cost_femto, row.share, row.trend, row.cost_per_call_femto, row.status) == (None, None, None, None, None)


@pytest.mark.parametrize("by", ["x", "user_id)--", "cost_femto", "1", '$."a"', ""])
def test_no_such_dimension(ledger: Ledger, add: Add, by: str) -> None:
    """A name that is no dimension is an error, and never SQL."""
    add("u_1")
    with pytest.raises(UnknownDimension):
        top(ledger, [by])
    with pytest.raises(UnknownDimension):
        top(ledger, where={by: "x"}, window=Window(0))
