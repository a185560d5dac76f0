"""Which calls have no owner, how that came, and what to do about it."""

from collections.abc import Callable
from decimal import Decimal

import pytest

from voight_middleware.ledger import Ledger, UnknownDimension
from voight_middleware.records.call import ATTRIBUTIONS
from voight_middleware.reports.unattributed import ADVICE, unattributed

USD = 10**15
Add = Callable[..., None]


def test_sources_and_sections(ledger: Ledger, add: Add) -> None:
    """Calls without a user are counted beside all calls: by how they came to have none, by route, and by model."""
    add("u_1", 6, route="/chat")
    add(None, 1, route="/chat")
    add(None, 3, route=None, attribution="error", model="x")
    add("u_2", 2, attribution="request")
    add(None, None, route="/chat")
    report = unattributed(ledger)
    assert (report.owners.unowned.calls, report.owners.unowned.cost_femto, report.owners.unowned.unpriced_calls) == (3, 4 * USD, 1)
    assert (report.owners.share_of_calls, report.owners.share_of_spend) == (Decimal("0.6"), pytest.approx(Decimal(4) / 12))
    assert [(source.attribution, source.spend.calls, source.unowned.calls, source.advice) for source in report.sources] == [
        ("none", 2, 2, ADVICE["none"]),
        ("error", 1, 1, ADVICE["error"]),
        ("tag", 1, 0, None),
        ("request", 1, 0, ADVICE["request"]),
    ]
    route, model = report.sections
    assert [(row.unowned.dimensions, row.unowned.calls, row.all.calls, row.share_of_spend) for row in route.rows] == [
        ({"route": None}, 1, 2, Decimal("0.75")),
        ({"route": "/chat"}, 2, 3, Decimal("0.25")),
    ]
    assert [row.unowned.dimensions["model"] for row in model.rows] == ["x", "m"]
    assert model.rows[1].share_of_calls == pytest.approx(Decimal(2) / 3)


def test_every_attribution_has_advice() -> None:
    """There is something to do about every way in which a call can have no owner."""
    assert ADVICE.keys() == set(ATTRIBUTIONS)


def test_limit_and_other_groupings(ledger: Ledger, add: Add) -> None:
    """A limit hides rows and says how many; calls can be grouped by anything that is a dimension."""
    for number in range(3):
        add(None, number + 1, tenant_id=f"t_{number}")
    (section,) = unattributed(ledger, [["tenant_id", "model"]], limit=1).sections
    assert (section.rows[0].unowned.dimensions, section.more) == ({"tenant_id": "t_2", "model": "m"}, 2)
    with pytest.raises(UnknownDimension):
        unattributed(ledger, [["x;--"]])


def test_nothing_without_an_owner(ledger: Ledger, add: Add) -> None:
    """Where every call has an owner there are no sections; in an empty ledger there is nothing at all."""
    assert (unattributed(ledger).sources, unattributed(ledger).owners.share_of_calls) == ((), None)
    add("u_1")
    report = unattributed(ledger)
    assert (report.sections, report.owners.share_of_calls, [source.advice for source in report.sources]) == ((), 0, [None])
