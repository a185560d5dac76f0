"""
Reports read what they show, and show what a plain computation over all groups gives: each report beside its definition, on a small
made-up ledger, over windows that cut days and months.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest

from voight_middleware.ledger import Ledger, Spend, Where, Window, open_ledger
from voight_middleware.ledger.groups import add_up
from voight_middleware.records.call import LateAttribution
from voight_middleware.records.tags import Tags
from voight_middleware.reports.margin import margin
from voight_middleware.reports.plans import median, plans
from voight_middleware.reports.spend import ratio
from voight_middleware.reports.timespan import parse_window, preceding
from voight_middleware.reports.top import top
from voight_middleware.reports.unattributed_share import Unattributed, unattributed_beside

from ..support.made_up_ledger import fill, made_up_calls

NOW = datetime(2026, 11, 23, 14, 35, tzinfo=UTC)
WINDOWS = {
    "month": parse_window("2026-11", "2026-11"),
    "running month": parse_window("2026-11-01", now=NOW),
    "seven days": Window(1_794_500_000_000_001, 1_795_104_800_000_001),
    "days": parse_window("2026-11-03", "2026-11-19"),
    "across months": parse_window("2026-10-20T13:20", "2026-11-09T05:01"),
    "hours": parse_window("2026-11-10T10:07:00", "2026-11-10T15:30:00"),
    "nothing": parse_window("2026-12-24", "2026-12-25"),
    "all": Window(),
}
WHERES: dict[str, Where] = {
    "plan": {"plan": "pro"},
    "prefix": {"user_id": "u_00*"},
    "some": {"user_id": ("u_00011", "u_00012", None)},
    "not one": {"user_id!": "u_00011"},
    "route": {"route": "POST /chat"},
    "nobody": {"user_id": "nobody"},
}


CASES = [
    *(pytest.param({}, window, id=name) for name, window in WINDOWS.items()),
    *(pytest.param(where, WINDOWS["across months"], id=name) for name, where in WHERES.items()),
    pytest.param(WHERES["prefix"], WINDOWS["seven days"], id="prefix, seven days"),
]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """A few thousand calls of forty users, some of whom have become known later."""
    with closing(open_ledger(str(tmp_path_factory.mktemp("shown") / "ledger.db"))) as opened:
        made = list(made_up_calls(2_000, users=60))
        fill(opened, made)
        late = [call.call_id for call in made if call.attribution == "none"][::5]
        opened.insert([LateAttribution(call_ids=tuple(late), tags=Tags(user_id="u_*", plan="pro"))])
        yield opened


def key(group: Spend) -> tuple[str | None, ...]:
    return tuple(group.dimensions.values())


@pytest.mark.parametrize("limit", [1, 10, None])
@pytest.mark.parametrize(("where", "window"), CASES)
def test_top(ledger: Ledger, where: Where, window: Window, limit: int | None) -> None:
    """The first rows of all, their shares, the same rows before, and who is gone."""
    for by in (("user_id",), ("user_id", "plan"), ("model", "user_id"), ("tenant_id",), ("route",)):
        groups, earlier = ledger.spend(by, where, window), preceding(window, NOW)
        before = {} if earlier is None else {key(group): group for group in ledger.spend(by, where, earlier)}
        total, present = add_up(groups), set(map(key, groups))
        report = top(ledger, by, where, window, limit, now=NOW)
        assert [row.spend for row in report.rows] == groups[:limit]
        assert [row.share for row in report.rows] == [ratio(group.cost_femto, total.cost_femto) for group in groups[:limit]]
        assert report.total.spend == total
        assert report.total.before == (None if earlier is None else add_up([*before.values()]))
        assert report.more == len(groups) - len(report.rows)
        expected = [None if earlier is None else before.get(key(group), Spend(group.dimensions)) for group in groups[:limit]]
        assert [row.before for row in report.rows] == expected
        gone = [(Spend(group.dimensions), group) for name, group in [*before.items()][:limit] if name not in present]
        assert [(row.spend, row.before) for row in report.gone] == gone
        assert report.owners == unattributed_beside(ledger, total, groups, where, window)


@pytest.mark.parametrize(("where", "window"), CASES)
def test_plans(ledger: Ledger, where: Where, window: Window) -> None:
    """The sums, users, costs and heavy users of each plan."""
    groups = ledger.spend(("plan", "user_id"), where, window)
    report = plans(ledger, where, window, now=NOW)
    assert report.total == add_up(groups)
    assert report.owners == unattributed_beside(ledger, report.total, groups, where, window)
    assert {row.plan for row in report.rows} == {group.dimensions["plan"] for group in groups}
    for row in report.rows:
        of_plan = [group for group in groups if group.dimensions["plan"] == row.plan]
        owned = [group for group in of_plan if group.dimensions["user_id"] is not None]
        costs = sorted((group.cost_femto for group in owned if group.cost_femto is not None), reverse=True)
        middle = median(costs)
        threshold = None if middle is None else 10 * middle
        heavy = [group for group in owned if threshold is not None and (group.cost_femto or 0) > threshold]
        assert (row.spend, row.share) == (add_up(of_plan), ratio(add_up(of_plan).cost_femto, report.total.cost_femto))
        assert (row.users, row.unpriced_users, row.costs) == (len(owned), len(owned) - len(costs), tuple(costs))
        assert row.unowned == add_up([group for group in of_plan if group.dimensions["user_id"] is None])
        assert row.threshold_femto == threshold
        assert {user.user_id: user.spend for user in row.heavy} == {group.dimensions["user_id"]: group for group in heavy}
        assert [user.spend.cost_femto for user in row.heavy] == sorted((group.cost_femto or 0 for group in heavy), reverse=True)


@pytest.mark.parametrize("on", ["user_id", "tenant_id", "feature"])
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_margin(ledger: Ledger, window: Window, on: str) -> None:
    """Each customer once, the worst margin first, and the figures of those beyond the limit."""
    groups = ledger.spend((on,), {}, window)
    named = {group.dimensions[on]: group for group in groups}
    revenue = {name: number * 10**13 for number, name in enumerate(sorted(filter(None, named)))} | {"idle": 5, "u_00003": 7}
    aliases: dict[str, Any] = {"idle": ("idle", "nobody"), "u_00003": ("u_00003", "zoë")}
    paid = {name: amount for name, amount in revenue.items() if name != "zoë"}
    report = margin(ledger, paid, on, {}, window, known_as=lambda name: aliases.get(name, (name,)))
    assert report.total == add_up(groups)
    assert report.unowned == named.get(None, Spend())
    assert report.owners == Unattributed(report.unowned, report.total)
    taken = {alias for name in paid for alias in aliases.get(name, (name,))}
    expected = {name: add_up([named[alias] for alias in aliases.get(name, (name,)) if alias in named]) for name in paid}
    expected |= {name: group for name, group in named.items() if name is not None and name not in taken}
    assert {row.id: row.spend for row in report.rows} == expected
    assert {row.id: row.revenue_femto for row in report.rows} == {name: paid.get(name) for name in expected}
    order = [(row.margin_femto is None, row.margin_femto or 0, row.id) for row in report.rows]
    assert order == sorted(order)
    idle = [row.revenue_femto or 0 for row in report.rows if row.status == "no calls"]
    unpaid = [row.cost_femto or 0 for row in report.rows if row.revenue_femto is None]
    assert (report.idle.customers, report.idle.femto) == (len(idle), sum(idle))
    assert (report.unpaid.customers, report.unpaid.femto) == (len(unpaid), sum(unpaid))
    assert report.unknown == sum(row.cost_femto is None for row in report.rows)
    first = margin(ledger, paid, on, {}, window, 4, known_as=lambda name: aliases.get(name, (name,)))
    assert (first.rows, first.more, first.customers) == (report.rows[:4], max(0, len(report.rows) - 4), len(report.rows))
    assert (first.total, first.unowned, first.idle, first.unpaid) == (report.total, report.unowned, report.idle, report.unpaid)
