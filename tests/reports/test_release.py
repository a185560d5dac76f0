"""A release beside another one: windows, costs per day and per call, exact causes, and noise."""

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voight_middleware.ledger import Ledger
from voight_middleware.records.call import Call, new_call_id
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage
from voight_middleware.reports.cost_drivers import FACTORS, Causes, ModelUse, Period, causes
from voight_middleware.reports.release import NoSuchRelease, release
from voight_middleware.reports.significance import discoveries, student, welch
from voight_middleware.reports.timespan import parse_window

USD = 10**15
Add = Callable[..., None]
DOUBLED = '{"unit_usd":{"input":"0.02","output":"0.2"},"rules":[]}'
PRICE = '{"unit_usd":{"input":"0.01","output":"0.1"},"rules":[]}'


def parts(split: Causes | None) -> dict[str, int]:
    assert split is not None
    return {name: getattr(split, name) for name in FACTORS}


@pytest.fixture
def two_releases(add: Add) -> Add:
    """Release r1 from the 1st to the 5th of November, r2 to the 9th; each has a call at its beginning and its end."""
    for at, name in (("01", "r1"), ("05", "r2")):
        add("edge", 0, f"2026-11-{at}T00:00", release=name)
    add("edge", 0, "2026-11-04T23:59:59", release="r1")
    add("edge", 0, "2026-11-09T00:00", release="r2")
    return add


def test_cost_per_day_and_per_call(ledger: Ledger, two_releases: Add) -> None:
    """A user's cost is divided by the days of each release's time, and by his priced calls."""
    two_releases("u_1", 4, "2026-11-02T00:00", release="r1", times=2)
    two_releases("u_1", 3, "2026-11-06T00:00", release="r2", times=8)
    two_releases("u_1", None, "2026-11-06T00:00", release="r2")
    report = release(ledger, "r2")
    assert (report.before.release, report.after.release) == ("r1", "r2")
    assert report.before.window == parse_window("2026-11-01", "2026-11-04T23:59:59.000001")
    assert report.after.window == parse_window("2026-11-05", "2026-11-09T00:00:00.000001")
    row = next(row for row in report.rows if row.user_id == "u_1")
    assert row.per_call == (4 * USD, 3 * USD)
    assert row.after_per_day == round(Fraction(24 * USD) / (4 + Fraction(1, 86_400_000_000)))
    assert row.before_per_day == round(Fraction(8 * USD) / (4 - Fraction(999_999, 86_400_000_000)))
    assert (row.after.unpriced_calls, row.status, report.total.after.cost_femto) == (1, None, 24 * USD)
    assert sum(parts(row.causes).values()) == row.difference_per_day
    assert sum(parts(report.total.causes).values()) == report.total.difference_per_day


def test_a_process_that_goes_on_with_the_old_release(ledger: Ledger, two_releases: Add) -> None:
    """Calls of the old release after the new one has begun do not stretch its time, and are counted."""
    two_releases("u_1", 7, "2026-11-08T00:00", release="r1", times=3)
    report = release(ledger, "r2")
    assert (report.before.later, report.before.window.until) == (3, parse_window(None, "2026-11-04T23:59:59.000001").until)
    assert report.before.spend.cost_femto == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"times": 8}, "calls"),
        ({"cost": 4, "input": 200, "output": 20}, "tokens"),
        ({"cost": 4, "model": "big"}, "mix"),
        ({"cost": 4, "price": DOUBLED}, "price"),
        ({"cost": 4}, "tokens"),
    ],
)
def test_each_cause_by_itself(ledger: Ledger, two_releases: Add, change: dict[str, Any], cause: str) -> None:
    """Where only one thing has changed, all of the difference is due to it."""
    call = {"cost": 2, "times": 4, "input": 100, "output": 10, "price": PRICE}
    two_releases("u_1", at="2026-11-02T00:00", release="r1", **call)
    two_releases("u_1", at="2026-11-06T00:00", release="r2", **{**call, **change})
    row = release(ledger, "r2").rows[0]
    split = parts(row.causes)
    rest = abs(row.before_per_day) // 10_000  # the times of both releases differ by a second
    assert split[cause] == pytest.approx(row.difference_per_day, abs=rest)
    assert sum(split.values()) == row.difference_per_day > USD
    assert all(abs(amount) <= rest for name, amount in split.items() if name != cause)


def test_more_input_is_not_a_lower_price(ledger: Ledger, two_releases: Add) -> None:
    """A call with more tokens of the cheap kind costs less per token, but prices are as they were."""
    two_releases("u_1", 2, "2026-11-02T00:00", release="r1", input=100, output=10, price=PRICE)
    two_releases("u_1", 4, "2026-11-06T00:00", release="r2", input=300, output=10, price=PRICE)
    split = parts(release(ledger, "r2").rows[0].causes)
    assert split["price"] == 0
    assert split["tokens"] > 0.49 * USD


def test_a_cache_that_is_kept_longer_is_no_higher_price(ledger: Ledger, two_releases: Add) -> None:
    """Writes of 5 minutes and of an hour have prices of their own, and one sum in the report; neither has changed."""
    price = '{"unit_usd":{"input":"0.01","cache_write_5m":"0.0125","cache_write_1h":"0.02","output":"0.1"},"rules":[]}'
    for at, name, written in (("02", "r1", "cache_write_5m"), ("06", "r2", "cache_write_1h")):
        cost = 1 + 1 + 100 * (0.0125 if name == "r1" else 0.02)
        ledger.insert(
            [
                Call(
                    call_id=new_call_id(),
                    occurred_at=int(datetime.fromisoformat(f"2026-11-{at}T00:00+00:00").timestamp()) * 1_000_000,
                    provider="anthropic",
                    endpoint="messages",
                    model="m",
                    tags=Tags(user_id="u_1", release=name),
                    usage=Usage(input=200, output=10, **{written: 100}),
                    cost_femto=round(cost * USD),
                    cost_status="priced",
                    price=price,
                )
            ]
        )
    split = parts(next(row for row in release(ledger, "r2").rows if row.user_id == "u_1").causes)
    assert split["price"] == 0
    assert split["tokens"] > 0.1 * USD


def test_a_batch_is_no_lower_price(ledger: Ledger, two_releases: Add) -> None:
    """Other terms are not another price: they have been on the list before."""
    half = '{"unit_usd":{"input":"0.005","output":"0.05"},"rules":[]}'
    two_releases("u_1", 2, "2026-11-02T00:00", release="r1", price=PRICE)
    two_releases("u_1", 1, "2026-11-06T00:00", release="r2", price=half, batch=True)
    assert parts(next(row for row in release(ledger, "r2").rows if row.user_id == "u_1").causes)["price"] == 0


def test_a_bill_that_rises_is_a_price(ledger: Ledger, two_releases: Add) -> None:
    """Where the provider says itself what a call costs, the list's prices are no proof that none has changed."""
    two_releases("u_1", 2, "2026-11-02T00:00", release="r1", price=PRICE, list_femto=2 * USD)
    two_releases("u_1", 4, "2026-11-06T00:00", release="r2", price=PRICE, list_femto=2 * USD)
    split = parts(next(row for row in release(ledger, "r2").rows if row.user_id == "u_1").causes)
    assert split["price"] > 0.4 * USD
    assert split["tokens"] == 0


def test_new_and_gone_users(ledger: Ledger, two_releases: Add) -> None:
    """Who had no calls before is new, and all of what he costs is due to there being him; likewise for who is gone."""
    two_releases("new", 5, "2026-11-06T00:00", release="r2")
    two_releases("gone", 3, "2026-11-02T00:00", release="r1")
    rows = {row.user_id: row for row in release(ledger, "r2").rows}
    for name, status in (("new", "new"), ("gone", "gone"), ("edge", None)):
        assert rows[name].status == status
        assert parts(rows[name].causes) == {**dict.fromkeys(FACTORS, 0), "users": rows[name].difference_per_day}


def test_previous_is_the_last_to_begin_before(ledger: Ledger, add: Add) -> None:
    """`previous` goes by first calls to the microsecond, not by names, nor by last calls; --against takes any other one."""
    for name, at in (("c", "01T00:00"), ("a", "02T10:00"), ("z", "02T09:00"), ("b", "02T11:00"), ("z", "04T00:00"), ("d", "03T00:00")):
        add("u", 1, f"2026-11-{at}", release=name)
    assert [release(ledger, name).before.release for name in ("b", "a", "z", "d")] == ["a", "z", "c", "b"]
    assert release(ledger, "d", "c").before.release == "c"
    assert release(ledger, "c", "d").before.release == "d"


def test_no_such_release(ledger: Ledger, two_releases: Add) -> None:
    """Without calls of a release, or any before it, the error says which ones there are."""
    with pytest.raises(NoSuchRelease, match="no calls of the release 'r9'; there are 'r2', 'r1'"):
        release(ledger, "r9")
    with pytest.raises(NoSuchRelease, match="'r1' is the first release here"):
        release(ledger, "r1")
    for against in ("r9", "r2"):
        with pytest.raises(NoSuchRelease, match=f"cannot be compared with '{against}'; there are 'r1'"):
            release(ledger, "r2", against)
    with pytest.raises(ValueError, match="a release has its own time"):
        release(ledger, "r2", where={"day": "2026-11-06"})


def test_names_with_a_star(ledger: Ledger, two_releases: Add) -> None:
    """A star in the name of a release or a user stands for itself."""
    two_releases("u*", 1, "2026-11-10T00:00", release="r*")
    two_releases("u_1", 8, "2026-11-10T12:00", release="r*")
    report = release(ledger, "r*", "r2")
    assert (report.after.spend.calls, report.before.spend.calls) == (2, 2)
    row = next(row for row in report.rows if row.user_id == "u*")
    assert (row.after.cost_femto, parts(row.causes)["users"]) == (USD, row.after_per_day)
    with pytest.raises(NoSuchRelease):
        release(ledger, "*")


def days(add: Add, user: str, name: str, first: str, costs: list[float]) -> None:
    for number, cost in enumerate(costs):
        add(user, cost, (datetime.fromisoformat(first) + timedelta(days=number, hours=12)).isoformat(), release=name)


def test_noise_and_change(ledger: Ledger, two_releases: Add) -> None:
    """A cost that varies from day to day is noise where it goes on doing so; one that leaves its range is a change."""
    days(two_releases, "noisy", "r1", "2026-11-01", [1, 9, 4])
    days(two_releases, "noisy", "r2", "2026-11-05", [8, 2, 7, 6])
    days(two_releases, "dear", "r1", "2026-11-01", [1, 1.1, 0.9])
    days(two_releases, "dear", "r2", "2026-11-05", [5, 5.1, 4.9, 5])
    report = release(ledger, "r2")
    rows = {row.user_id: row for row in report.rows}
    assert report.grain == "day"
    assert (rows["noisy"].per_day.verdict, rows["dear"].per_day.verdict, rows["dear"].of_a_call.verdict) == ("noise", "more", "more")
    assert rows["dear"].per_day.p_value == pytest.approx(welch([1, 1.1, 0.9], [5, 5.1, 4.9, 5]))
    assert (report.tested, report.changed) == (3, 1)


def test_too_short_to_tell(ledger: Ledger, add: Add) -> None:
    """Hours are compared where there are no three days, and nothing where there are no twelve hours."""
    for name, first in (("r1", "2026-11-01T00:00"), ("r2", "2026-11-02T00:00"), ("r3", "2026-11-03T00:00")):
        for hour in range(24 if name != "r3" else 5):
            add(
                "u_1",
                2 if name == "r2" else 1,
                (datetime.fromisoformat(first) + timedelta(hours=hour, minutes=5)).isoformat(),
                release=name,
            )
    report = release(ledger, "r2", zone=ZoneInfo("Asia/Kolkata"))
    assert (report.grain, report.rows[0].of_a_call.verdict) == ("hour", "more")
    report = release(ledger, "r3")
    assert (report.grain, report.rows[0].per_day.verdict, report.tested) == (None, "untested", 0)


def test_one_call_each(ledger: Ledger, add: Add) -> None:
    """A release of one call has lasted an hour, and not no time at all."""
    add("u_1", 1, "2026-11-01T00:00", release="r1")
    add("u_1", 1, "2026-11-02T00:00", release="r2")
    assert release(ledger, "r2").total.after_per_day == 24 * USD


def test_nothing_is_priced(ledger: Ledger, add: Add) -> None:
    """Without prices there is no difference, and the calls are counted as unpriced."""
    add("u_1", None, "2026-11-01T00:00", release="r1")
    add("u_1", None, "2026-11-02T00:00", release="r2")
    total = release(ledger, "r2").total
    assert (total.difference_per_day, total.per_call, total.after.unpriced_calls) == (0, (None, None), 1)


uses = st.builds(
    ModelUse,
    st.integers(1, 1000),
    st.tuples(*[st.integers(0, 10**6)] * 4),
    st.integers(0, 10**18),
    st.none() | st.tuples(*[st.fractions(0, 1, max_denominator=1000)] * 4),
)
periods = st.builds(
    Period,
    st.fractions(Fraction(1, 24), 90, max_denominator=86_400),
    st.integers(1, 50),
    st.dictionaries(st.sampled_from(["a", "b", "c", None]), uses, max_size=4),
)


@pytest.mark.slow
@given(periods, periods)
@settings(deadline=None)
def test_causes_add_up(before: Period, after: Period) -> None:
    """Whatever has changed, the causes add up to the difference to the femto-dollar, and swap their signs with the releases."""
    split, back = causes(before, after), causes(after, before)
    assert sum(parts(split).values()) == round(after.cost_per_day) - round(before.cost_per_day)
    assert all(abs(parts(split)[name] + parts(back)[name]) <= 5 for name in FACTORS)


def test_two_causes_share_what_they_do_together() -> None:
    """Twice the calls at twice the price are 4 times the cost: each has done as much of it as the other."""
    before = Period(Fraction(1), 1, {"m": ModelUse(10, (10, 0, 0, 0), 1000)})
    after = Period(Fraction(1), 1, {"m": ModelUse(20, (20, 0, 0, 0), 4000)})
    assert parts(causes(before, after)) == {**dict.fromkeys(FACTORS, 0), "calls": 1500, "price": 1500}


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [(12.706204736, 1, 0.05), (2.776445105, 4, 0.05), (1.812461123, 10, 0.1), (2.749995654, 30, 0.01), (0, 7, 1), (1, 1, 0.5)],
)
def test_student(t: float, freedom: float, p: float) -> None:
    """The p-values are those of the printed tables."""
    assert student(t, freedom) == pytest.approx(p, rel=1e-7)


def test_welch() -> None:
    """The usual example of two samples of unequal variance has a p-value of 0.021."""
    first = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
    second = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4]
    assert welch(first, second) == pytest.approx(0.021, abs=0.0005)
    assert (welch([1], [1, 2]), welch([1, 1], [1, 1]), welch([1, 1], [2, 2])) == (None, 1.0, 0.0)


def test_false_discoveries() -> None:
    """Of Benjamini and Hochberg's own 15 p-values, four are discoveries; of a thousand tests of nothing, hardly any."""
    published = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    assert discoveries(published) == [True] * 4 + [False] * 11
    rng = random.Random(7)
    nothing = [welch([rng.expovariate(1) for _ in range(8)], [rng.expovariate(1) for _ in range(8)]) or 1.0 for _ in range(1000)]
    assert sum(discoveries(nothing)) <= 1
    assert discoveries([]) == []
