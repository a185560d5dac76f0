"""Spend reports: groups, an exact total, shares, and how much has no owner."""

from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from voight_middleware.ledger import Ledger, Spend, UnknownDimension, Window, open_ledger
from voight_middleware.records.call import Call, new_call_id
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage
from voight_middleware.reports.spend import as_row, spend
from voight_middleware.reports.unattributed_share import unattributed_share

USD = 10**15


def make_call(cost: int | None, user: str | None = None, at: int = 1, **tags: str) -> Call:
    return Call(
        call_id=new_call_id(),
        occurred_at=at,
        provider="openai",
        endpoint="chat",
        tags=Tags(user_id=user, **tags),
        usage=Usage(input=1, output=2),
        cost_femto=cost,
        cost_status="unpriced" if cost is None else "priced",
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(open_ledger(str(tmp_path / "ledger.db"))) as ledger:
        ledger.insert(
            [
                make_call(6 * USD, "u_1", plan="pro"),
                make_call(3 * USD, "u_2", plan="free"),
                make_call(1 * USD, None, plan="free", at=9),
                make_call(None, None),
            ]
        )
        yield ledger


def test_rows_shares_and_total(ledger: Ledger) -> None:
    """Each row has its share of the priced total, and the total is over all of them."""
    report = spend(ledger, ["user_id"])
    assert [(row.dimensions["user_id"], row.cost_femto, report.share(row)) for row in report.rows] == [
        ("u_1", 6 * USD, Decimal("0.6")),
        ("u_2", 3 * USD, Decimal("0.3")),
        (None, 1 * USD, Decimal("0.1")),
    ]
    assert (report.total.calls, report.total.cost_femto, report.total.unpriced_calls) == (4, 10 * USD, 1)
    assert (report.total.input_tokens, report.total.output_tokens, report.total.cache_read_tokens) == (4, 8, None)


def test_a_limit_hides_rows_and_not_their_cost(ledger: Ledger) -> None:
    """Rows behind the limit are counted, and are part of the total."""
    report = spend(ledger, ["user_id"], limit=1)
    assert (len(report.rows), report.more, report.total.cost_femto) == (1, 2, 10 * USD)


def test_filters_and_windows_reach_the_ledger(ledger: Ledger) -> None:
    """A filter and a window restrict rows and total alike."""
    report = spend(ledger, ["user_id"], {"plan": "free"}, Window(since=5))
    assert [row.dimensions for row in report.rows] == [{"user_id": None}]
    assert report.total.calls == 1
    with pytest.raises(UnknownDimension):
        spend(ledger, ["color"])


def test_shares_of_nothing() -> None:
    """There is no share of a total that is 0 or not priced, and none for a row without a price."""
    from voight_middleware.reports.spend import SpendReport

    for total in (None, 0):
        report = SpendReport((), Window(), (), Spend(cost_femto=total))
        assert report.share(Spend(cost_femto=0)) is None
    assert SpendReport((), Window(), (), Spend(cost_femto=5)).share(Spend()) is None


def test_a_row_as_data(ledger: Ledger) -> None:
    """A row has the dimensions, then the names of every export, in their order; money is a plain decimal string or null."""
    row = as_row(Spend(dimensions={"plan": "pro"}, calls=1, cost_femto=15, input_tokens=3))
    assert list(row.items()) == [
        ("plan", "pro"),
        ("calls", 1),
        ("input_tokens", 3),
        ("cache_read_tokens", None),
        ("cache_write_tokens", None),
        ("output_tokens", None),
        ("cost_usd", "0.000000000000015"),
        ("unpriced_calls", 0),
        ("partial_calls", 0),
        ("estimated_calls", 0),
        ("errors", 0),
    ]
    assert as_row(Spend(calls=1, unpriced_calls=1))["cost_usd"] is None
    assert as_row(Spend())["cost_usd"] == "0"
    assert as_row(Spend(cost_femto=20_000 * USD))["cost_usd"] == "20000"


def test_unowned(ledger: Ledger) -> None:
    """Calls without a user are counted by number and by cost, beside all calls."""
    report = unattributed_share(ledger)
    assert (report.unowned.calls, report.unowned.cost_femto) == (2, 1 * USD)
    assert (report.share_of_calls, report.share_of_spend) == (Decimal("0.5"), Decimal("0.1"))
    assert unattributed_share(ledger, {"plan": "pro"}).share_of_spend == 0


def test_unowned_of_nothing(ledger: Ledger) -> None:
    """Without calls there are no shares."""
    report = unattributed_share(ledger, window=Window(since=100))
    assert (report.share_of_calls, report.share_of_spend) == (None, None)


def test_as_priced(ledger: Ledger) -> None:
    """After a repricing the newest prices are reported, and on demand those of the time, in the shares of who has no owner too."""
    before, none_before = spend(ledger, ["user_id"]), unattributed_share(ledger)
    changes = [(call, msgspec.structs.replace(call, cost_femto=1, cost_status="priced")) for call in ledger.calls()]
    assert ledger.reprice(changes) == 4
    assert spend(ledger).total.cost_femto == 4
    assert unattributed_share(ledger).unowned.cost_femto == 2
    again = spend(ledger, ["user_id"], original_prices=True)
    assert (again.rows, again.total, again.original_prices) == (before.rows, before.total, True)
    assert unattributed_share(ledger, original_prices=True) == none_before
