"""What every ledger does: it answers several questions about the same groups of calls as one that reads them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from voight_middleware.ledger import Ledger, UnknownDimension, Where, Window
from voight_middleware.ledger.groups import add_up
from voight_middleware.records.tags import Tags

from ..support.factories import NOON, make_call

Opened = Callable[..., Ledger]
DAY = 24 * 3600 * 1_000_000
PLANS = ("pro", None, "free")


def some_calls() -> list[Any]:
    """Of seven users and nobody, on three plans, within two months; some without a price, and one user without any."""
    return [
        make_call(
            None if number % 8 == 3 or number % 11 == 5 else number * 10**14,
            at=NOON + number * 17 * DAY // 20,
            call_id=f"call-{number:03}",
            model=("m", "n")[number % 2],
            tags=Tags(user_id=None if number % 8 == 7 else f"u*{number % 8}", plan=PLANS[number % 3], release=f"r{number // 30}"),
        )
        for number in range(60)
    ]


WINDOWS = {"all": Window(), "days": Window(NOON + 3 * DAY, NOON + 30 * DAY + 5)}
QUESTIONS: list[tuple[tuple[str, ...], Where]] = [
    (("user_id",), {}),
    (("plan", "user_id"), {}),
    (("user_id", "model"), {"release": ("r0", "r1")}),
    (("user_id",), {"user_id!": "u**1"}),
    (("user_id", "session_id"), {}),
    (("release",), {"user_id": ("u**1", "u**2", None)}),
]


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_groups_are_those_of_spend(ledger: Ledger, window: Window) -> None:
    """The first ones, single ones, their sums, how many there are, and calls and costs of each."""
    ledger.insert(some_calls())
    for by, where in QUESTIONS:
        expected = ledger.spend(by, where, window)
        keys = [tuple(group.dimensions.values()) for group in expected]
        assert ledger.groups(by, where, window).foremost(2) == ledger.spend(by, where, window, 2) == expected[:2]
        groups = ledger.groups(by, where, window)
        asked = [*keys[1::2], *(tuple("no" for _ in by),), tuple(None for _ in by)]
        assert groups.of(asked) == {key: group for key, group in zip(keys, expected, strict=True) if key in asked}
        assert (groups.total(), groups.count()) == (add_up(expected), len(expected))
        costs = groups.costs()
        assert groups.foremost(None) == expected
        columns = costs.calls, costs.cost_femto, costs.unpriced_calls
        found = dict(zip(zip(*costs.dimensions, strict=True), zip(*columns, strict=True), strict=True))
        assert found == {key: (group.calls, group.cost_femto, group.unpriced_calls) for key, group in zip(keys, expected, strict=True)}
        by_plan = {group.dimensions["plan"]: group for group in groups.within(("plan",))}
        assert by_plan == {group.dimensions["plan"]: group for group in ledger.spend(("plan",), where, window)}
        if "user_id" not in where and "user_id!" not in where:
            without = {group.dimensions["plan"]: group for group in groups.within(("plan",), without="user_id")}
            unowned = ledger.spend(("plan",), {**where, "user_id": None}, window)
            assert without == {group.dimensions["plan"]: group for group in unowned}


def test_who_costs_most_in_some_days_of_a_month(ledger: Ledger) -> None:
    """Not those who cost most in the month, where others have had their calls on other days."""
    for number in range(30):
        user = Tags(user_id=f"u_{number}")
        ledger.insert([make_call(100 + number, at=NOON, tags=user), make_call(number % 7, at=NOON + 3 * DAY, tags=user)])
    ledger.insert([make_call(50, at=NOON + 3 * DAY, tags=Tags(user_id=name)) for name in ("late", "later")])
    begin = (NOON // DAY + 2) * DAY
    for limit in (1, 2, 5):
        window = Window(begin, begin + 3 * DAY)
        assert ledger.spend(["user_id"], {}, window, limit) == ledger.spend(["user_id"], {}, window)[:limit]


def test_calls_that_are_known_to_be_in_a_time(ledger: Ledger) -> None:
    """Told when the first and the last call of a release happened, the groups are the same."""
    ledger.insert(some_calls())
    for release in ("r0", "r1"):
        where: Where = {"release": release}
        known = ledger.time_range(where)
        assert known is not None
        for window in (Window(known[0], known[1] + 1), Window(known[0] + 5, known[1] - DAY), Window(None, known[1] - 3)):
            for by in (("user_id",), ("user_id", "model"), ("day",), ()):
                expected = ledger.spend(by, where, window)
                assert ledger.groups(by, where, window, known=known).foremost(None) == expected


def test_when_calls_happened(ledger: Ledger) -> None:
    """The times of the first and the last call of a filter and a window; None without any."""
    made = some_calls()
    ledger.insert(made)
    for where, window in (({"model": "m"}, Window()), ({"user_id": None}, WINDOWS["days"]), ({}, Window(NOON, NOON + DAY))):
        times = [call.occurred_at for call in ledger.calls(where, window)]
        assert ledger.time_range(where, window) == (min(times), max(times))
    assert ledger.time_range({"model": "x"}) is ledger.time_range({}, Window(1, 2)) is None
    with pytest.raises(UnknownDimension):
        ledger.time_range({"x": "y"})


def test_questions_in_a_snapshot(ledger: Ledger, opened: Opened) -> None:
    """They see the calls of the first one, whoever adds others. After it, and inside another one, everything goes on as before."""
    ledger.insert(some_calls())
    other = opened()
    with ledger.snapshot(), ledger.snapshot():
        before = ledger.groups(("user_id",)).total()
        other.insert([make_call(1, call_id="a-new-call", tags=Tags(user_id="new"))])
        if not ledger.url.startswith("clickhouse"):
            assert ledger.groups(("user_id",)).total() == before
            assert ledger.groups(("user_id",)).of([("new",)]) == {}
    assert ledger.groups(("user_id",)).total().calls == before.calls + 1
    assert ledger.insert([make_call(2, call_id="another-call")]) == 1
    with pytest.raises(UnknownDimension), ledger.snapshot():
        ledger.groups(("x",)).count()
    assert ledger.spend()[0].calls == before.calls + 2
