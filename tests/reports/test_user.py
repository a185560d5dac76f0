"""What one user has cost."""

from collections.abc import Callable
from zoneinfo import ZoneInfo

from voight_middleware.ledger import Ledger
from voight_middleware.reports.user import user

USD = 10**15
Add = Callable[..., None]


def test_one_user(ledger: Ledger, add: Add) -> None:
    """His calls only, by day in the order of time, by model and route by cost, and the last of them, the newest first."""
    add("u_1", 1, "2026-11-02T23:30", route="/a", model="x")
    add("u_1", 4, "2026-11-01T12:00", route="/b", model="y")
    add("u_1", None, "2026-11-03T12:00", route="/a", model="x")
    add("u_2", 9, "2026-11-03T12:00")
    report = user(ledger, "u_1", last=2)
    assert (report.total.calls, report.total.cost_femto, report.total.unpriced_calls) == (3, 5 * USD, 1)
    assert [(day.dimensions["day"], day.cost_femto) for day in report.days] == [
        ("2026-11-01", 4 * USD),
        ("2026-11-02", USD),
        ("2026-11-03", None),
    ]
    assert [(row.dimensions, row.calls, row.cost_femto) for row in report.parts["model"]] == [
        ({"model": "y"}, 1, 4 * USD),
        ({"model": "x"}, 2, USD),
    ]
    assert [row.dimensions["route"] for row in report.parts["route"]] == ["/b", "/a"]
    assert [call.cost_femto for call in report.last] == [None, USD]
    berlin = user(ledger, "u_1", zone=ZoneInfo("Europe/Berlin"))
    assert [(day.dimensions["day"], day.calls) for day in berlin.days] == [("2026-11-01", 1), ("2026-11-03", 2)]
    assert len(berlin.last) == 3


def test_a_star_stands_for_itself(ledger: Ledger, add: Add) -> None:
    """An id is no pattern: `*` is the user of that name, and nobody else."""
    add("u_1", 1)
    add("*", 2)
    add("u*", 4)
    assert [user(ledger, name).total.cost_femto for name in ("*", "u*", "u_*")] == [2 * USD, 4 * USD, None]
    assert [call.tags.user_id for call in user(ledger, "*").last] == ["*"]


def test_nobody(ledger: Ledger) -> None:
    """Of somebody without calls there is nothing."""
    report = user(ledger, "' OR 1=1 --")
    assert (report.total.calls, report.days, report.last) == (0, (), ())
