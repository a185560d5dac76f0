"""Every report over thousands of made-up calls equals an independent computation in DuckDB: every figure of every row, exactly."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from msgspec.structs import replace

from voight_middleware.ledger import DIMENSIONS, Spend, Window, open_ledger
from voight_middleware.reports.margin import margin
from voight_middleware.reports.plans import plans
from voight_middleware.reports.release import release
from voight_middleware.reports.release_queries import Side
from voight_middleware.reports.spend import spend
from voight_middleware.reports.timespan import parse_window
from voight_middleware.reports.top import top
from voight_middleware.reports.unattributed import unattributed
from voight_middleware.reports.unattributed_share import unattributed_share

from ..support.depth import DEEP, times
from ..support.made_up_ledger import LONG_RELEASE, RELEASES, fill, made_up_calls
from .duckdb_figures import ZONES, Both, Row, Where, assert_ratio, found, whole

pytestmark = pytest.mark.slow  # the calls take seconds to make

COUNT = times(12_000, 100_000)
NOW = datetime(2026, 11, 23, tzinfo=UTC)
NOVEMBER = Window(1_793_491_200_000_000, 1_796_083_200_000_000)
BEFORE = Window(1_790_812_800_000_000, 1_790_812_800_000_000 + 22 * 86_400_000_000)
"""October up to the day that NOW is of November."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    calls = list(made_up_calls(COUNT))
    both = Both(tmp_path_factory.mktemp("duckdb") / "ledger.db", calls)
    with closing(both.ledger), closing(both.db):
        assert fill(both.ledger, calls) == COUNT
        yield both


def grouping(by: Sequence[str]) -> str:
    """The id of dimensions."""
    return ", ".join(by) or "total"


def agree(
    both: Both,
    by: Sequence[str] = (),
    where: Where | None = None,
    condition: str = "true",
    window: Window = Window(),
    zone: str = "UTC",
) -> dict[Row, Row]:
    """Assert that the spend report is what DuckDB says, rows and total; answers its rows."""
    place: tzinfo = ZONES.get(zone, UTC)
    report = spend(both.ledger, by, where, window, zone=None if zone == "UTC" else place)
    expected = both.figures(by, condition, window, zone)
    rows = found(report.rows, by)
    if by or expected:
        assert rows == expected
    total = both.figures((), condition, window, zone)
    assert found([report.total], ()) == (total or {(): (0, None, None, None, None, None, 0, 0, 0, 0)})
    return rows


# -- spend ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DIMENSIONS, "feature", "experiment"])
def test_spend_by_each_dimension(both: Both, name: str) -> None:
    """Every dimension, extra keys too, has the groups and figures that DuckDB finds."""
    assert len(agree(both, [name])) > 1


@pytest.mark.parametrize(
    "by",
    [
        *((), ("day", "plan"), ("plan", "model"), ("provider", "model", "cost_status"), ("month", "user_id"), ("user_id", "plan")),
        *(("route", "release"), ("tenant_id", "user_id", "month"), ("hour", "attribution"), ("feature", "experiment", "plan")),
        *(("day", "release", "model"), ("model", "route", "release", "user_id")),
    ],
    ids=grouping,
)
def test_spend_by_several(both: Both, by: Sequence[str]) -> None:
    """So have combinations of dimensions, and the total."""
    agree(both, by)


def named(*filters: tuple[Where, str]) -> list[Any]:
    """Parameters whose ids are the conditions."""
    return [pytest.param(*one, id=one[1]) for one in filters]


FILTERS: list[tuple[Where, str]] = [
    ({"plan": "free"}, "plan = 'free'"),
    ({"user_id": None}, "user_id IS NULL"),
    ({"model": "gpt-*"}, "model LIKE 'gpt-%'"),
    ({"model": None}, "model IS NULL"),
    ({"tenant_id": "t_000*", "plan": "pro"}, "starts_with(tenant_id, 't_000') AND plan = 'pro'"),
    ({"user_id": "*'*"}, "contains(user_id, '''')"),
    ({"user_id": "u_0000*"}, "starts_with(user_id, 'u_0000')"),
    ({"user_id": "o'brien"}, "user_id = 'o''brien'"),
    ({"user_id": "u 100%"}, "user_id = 'u 100%'"),
    ({"feature": "search"}, "feature = 'search'"),
    ({"experiment": None, "route": "POST /chat"}, "experiment IS NULL AND route = 'POST /chat'"),
    ({"cost_status": "unpriced"}, "cost_status = 'unpriced'"),
    ({"outcome": "error", "provider": "openai"}, "outcome = 'error' AND provider = 'openai'"),
    ({"day": "2026-11-01"}, "\"day@UTC\" = '2026-11-01'"),
    ({"month": "2026-1*", "attribution": "none"}, "attribution = 'none'"),
    ({"user_id": "nobody"}, "false"),
]


@pytest.mark.parametrize(("where", "condition"), named(*FILTERS))
@pytest.mark.parametrize("by", [(), ("user_id",), ("plan", "month"), ("model", "day"), ("cost_status",)], ids=grouping)
def test_filters(both: Both, where: Where, condition: str, by: Sequence[str]) -> None:
    """Every filter leaves the calls that DuckDB leaves, whatever they are grouped by."""
    agree(both, by, where, condition)


WINDOWS = [
    ("2020-01", "2020-02"),
    (None, "2026-10-31"),
    ("2026-11-01", None),
    ("2026-10", "2026-10"),
    ("2026-11", "2026-11"),
    ("2026-10-31T23:59:59.999999", "2026-11-01T00:00:00.000001"),
    ("2026-10-31T12:34:56", "2026-11-01T07:00:00.123456"),
    ("2026-10-12T10:00:00", "2026-10-12T10:00:01"),
    ("2026-10-07T18:00:00", "2026-11-19T03:15:00"),
]


@pytest.mark.parametrize(("since", "until"), WINDOWS)
@pytest.mark.parametrize("by", [(), ("user_id",), ("plan", "model"), ("month", "plan"), ("day",), ("attribution",)], ids=grouping)
def test_windows(both: Both, since: str | None, until: str | None, by: Sequence[str]) -> None:
    """Days, months, and times to the microsecond around a month boundary; what lies at the beginning is in, what lies at the end is not."""
    agree(both, by, window=parse_window(since, until))


def test_the_edges_of_a_window(both: Both) -> None:
    """A call at the very beginning of a window is in it, and one at its very end is not."""
    first, last = both.calls[COUNT // 3].occurred_at, both.calls[COUNT // 2].occurred_at
    for window in (Window(first, last), Window(first + 1, last), Window(first, last + 1), Window(first, first + 1), Window(first, first)):
        agree(both, ("plan",), window=window)
        agree(both, ("month", "user_id"), window=window)
    assert agree(both, window=Window(first, first + 1))[()][0] == 1


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("by", [("hour",), ("day",), ("month",), ("month", "user_id"), ("day", "plan", "model")], ids=grouping)
def test_time_zones(both: Both, zone: str, by: Sequence[str]) -> None:
    """Hours, days and months are those of the zone, on the days when clocks change too, and at an offset of five hours and 45 minutes."""
    agree(both, by, zone=zone)


CHANGES = [("Europe/Berlin", "2026-10-25", 25), ("America/Los_Angeles", "2026-11-01", 25), ("Asia/Kathmandu", "2026-11-01", 24)]


@pytest.mark.parametrize(("zone", "day", "hours"), CHANGES)
def test_days_on_which_clocks_change(both: Both, zone: str, day: str, hours: int) -> None:
    """A day of a zone has all of its hours, the repeated one twice, and none of its neighbours' calls."""
    window = parse_window(day, day, zone=ZONES[zone])
    assert window.since is not None
    assert window.until is not None
    assert window.until - window.since == hours * 3_600_000_000
    found_hours = len(agree(both, ("hour",), window=window, zone=zone))
    assert found_hours == hours if DEEP else hours / 2 < found_hours <= hours  # of few calls there may be none in an hour of the night
    rows = agree(both, ("day",), window=window, zone=zone)
    assert list(rows) == [(day,)]
    assert rows[(day,)] == both.figures(("day",), zone=zone)[(day,)]
    assert agree(both, ("user_id",), {"day": day}, f"\"day@{zone}\" = '{day}'", zone=zone)


@pytest.mark.parametrize("zone", ZONES)
def test_a_month_of_a_zone(both: Both, zone: str) -> None:
    """November begins with the zone's midnight: by window, by filter and by group it is the same calls."""
    window = parse_window("2026-11", "2026-11", zone=ZONES[zone])
    rows = agree(both, ("plan",), window=window, zone=zone)
    assert rows == agree(both, ("plan",), {"month": "2026-11"}, f"\"month@{zone}\" = '2026-11'", zone=zone)
    assert rows != agree(both, ("plan",), window=parse_window("2026-11", "2026-11"))


def test_no_money_is_lost(both: Both) -> None:
    """The total is what plain Python adds up over the calls themselves."""
    costs = [call.cost_femto for call in both.calls if call.cost_femto is not None]
    (total,) = both.ledger.spend()
    assert (total.calls, total.cost_femto, total.unpriced_calls) == (COUNT, sum(costs), COUNT - len(costs))


def test_after_a_repricing_and_late_owners(both: Both, tmp_path: Path) -> None:
    """Sums follow every change of a call: another price, none any more, a late price; and those as first priced stay."""
    both.ledger.spend()
    copy = tmp_path / "copy.db"
    shutil.copy(both.path, copy)
    for ending in ("-wal", "-shm"):
        if (other := both.path.with_name(both.path.name + ending)).exists():
            shutil.copy(other, copy.with_name(copy.name + ending))
    with closing(open_ledger(str(copy))) as ledger:
        changes = []
        for number, call in enumerate(both.calls):
            if number % 40 == 0:
                changes.append((call, replace(call, cost_femto=7 * (call.cost_femto or 10**12) + 1, cost_status="priced", cost_reasons=())))
            elif number % 71 == 0:
                changes.append((call, replace(call, cost_femto=None, cost_status="unpriced", cost_reasons=("gone",), price=None)))
        assert ledger.reprice(changes) > 3 * COUNT // 100
        both.load("repriced", list(ledger.calls()), zones={})
        for by in ((), ("user_id",), ("month", "plan"), ("day", "model"), ("cost_status",), ("feature",)):
            now, then = spend(ledger, by), spend(ledger, by, original_prices=True)
            assert found(now.rows, by) == both.figures(by, table="repriced")
            assert found(then.rows, by) == both.figures(by)
        assert spend(ledger).total.cost_femto != spend(ledger, original_prices=True).total.cost_femto
    both.db.execute("DROP TABLE repriced")


# -- unowned -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "condition"), named(({}, "true"), *FILTERS[2:5], FILTERS[9]))
@pytest.mark.parametrize("window", [Window(), parse_window("2026-10-31T12:34:56", "2026-11-08")], ids=["ever", "a week"])
def test_unowned(both: Both, where: Where, condition: str, window: Window) -> None:
    """What has no user, and all there is beside it, by number and by cost."""
    report = unattributed_share(both.ledger, where, window)
    nothing = {(): (0, None, None, None, None, None, 0, 0, 0, 0)}
    assert found([report.unowned], ()) == (both.figures((), f"({condition}) AND user_id IS NULL", window) or nothing)
    assert found([report.total], ()) == both.figures((), condition, window)
    assert_ratio(report.share_of_spend, report.unowned.cost_femto or 0, report.total.cost_femto)


# -- top -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 7])
@pytest.mark.parametrize(
    ("where", "condition", "by"),
    [
        ({}, "true", ("user_id",)),
        ({"plan": "free"}, "plan = 'free'", ("user_id",)),
        ({}, "true", ("release",)),
        ({}, "true", ("feature",)),
        ({"user_id": "u_000*"}, "starts_with(user_id, 'u_000')", ("tenant_id", "model")),
    ],
    ids=["users", "users on free", "releases", "features", "tenants and models"],
)
def test_top(both: Both, where: Where, condition: str, by: Sequence[str], limit: int | None) -> None:
    """This month's groups, what each had cost by the same day of the month before, shares, trends, and who is gone."""
    report = top(both.ledger, by, where, NOVEMBER, limit, now=NOW)
    after, before = both.figures(by, condition, NOVEMBER), both.figures(by, condition, BEFORE)
    (total,), (former,) = both.figures((), condition, NOVEMBER).values(), both.figures((), condition, BEFORE).values()
    assert report.compared_with == BEFORE
    assert (found([report.total.spend], ())[()], found([report.total.before or Spend()], ())[()]) == (total, former)
    rows = found([row.spend for row in report.rows], by)
    assert rows.items() <= after.items()
    assert (len(rows), len(rows) + report.more) == (min(limit or len(after), len(after)), len(after))
    assert report.owners is None or found([report.owners.unowned], ())[()][:6] == _unowned_of(both, condition)
    for row in report.rows:
        key = tuple(row.spend.dimensions.values())
        past, cost = before.get(key), after[key][5]
        assert row.before is not None
        assert row.before.calls == (past[0] if past else 0)
        assert row.before.cost_femto == (past[5] if past else None)
        assert row.status == (None if past else "new")
        assert_ratio(row.share, cost, total[5])
        assert_ratio(row.cache_hit_rate, after[key][2], after[key][1])
        assert_ratio(row.trend, None if cost is None or not past or not past[5] else cost - past[5], past[5] if past else None)
        priced = after[key][0] - after[key][6]
        assert row.cost_per_call_femto == (None if cost is None else round(Fraction(cost, priced)))
    gone = {tuple(row.spend.dimensions.values()) for row in report.gone}
    assert gone <= before.keys() - after.keys()
    assert limit is not None or gone == before.keys() - after.keys()


def _unowned_of(both: Both, condition: str) -> Row:
    (row,) = both.figures((), f"({condition}) AND user_id IS NULL", NOVEMBER).values() or [(0, *[None] * 5)]
    return row[:6]


# -- plans ---------------------------------------------------------------------------------------------------------------------

PRICES = {"free": Decimal(0), "pro": Decimal("0.99"), "enterprise": Decimal(20)}


@pytest.mark.parametrize("prices", [None, PRICES], ids=["no prices", "prices"])
@pytest.mark.parametrize(
    ("where", "condition", "window"),
    [({}, "true", NOVEMBER), ({"model": "gpt-*"}, "model LIKE 'gpt-%'", NOVEMBER), ({}, "true", BEFORE)],
    ids=["November", "some models", "October"],
)
def test_plans(both: Both, where: Where, condition: str, window: Window, prices: Mapping[str | None, Decimal] | None) -> None:
    """Each plan's cost, the share that its first users take, the middle one, who is heavy, and what is left of its price."""
    report = plans(both.ledger, where, window, prices=prices, now=datetime(2027, 1, 1, tzinfo=UTC))
    expected = both.figures(("plan",), condition, window)
    (total,) = both.figures((), condition, window).values()
    assert {row.plan: found([row.spend], ())[()] for row in report.rows} == {key[0]: figures for key, figures in expected.items()}
    assert found([report.total], ())[()] == total
    months = Fraction(1) if window is NOVEMBER else Fraction(22, 31)
    users = both.figures(("plan", "user_id"), condition, window)
    for row in report.rows:
        mine = {user: figures for (plan, user), figures in users.items() if plan == row.plan and user is not None}
        costs = sorted((figures[5] for figures in mine.values() if figures[5] is not None), reverse=True)
        assert (row.users, row.unpriced_users, list(row.costs)) == (len(mine), len(mine) - len(costs), costs)
        unowned_calls = sum(figures[0] for (plan, user), figures in users.items() if plan == row.plan and user is None)
        assert row.unowned.calls == unowned_calls
        for percent in (1, 5, 10):
            first = sum(costs[: (len(costs) * percent + 99) // 100])
            assert_ratio(row.concentration(percent), first if costs else None, sum(costs))
        assert_ratio(row.share, row.spend.cost_femto, total[5])
        price = None if prices is None or row.plan not in prices else round(Fraction(prices[row.plan]) * months * 10**15)
        assert row.price_femto == price
        middle = None if not costs else (costs[(len(costs) - 1) // 2] + costs[len(costs) // 2]) / Fraction(2)
        assert row.median_femto == (None if middle is None else round(middle))
        threshold = price or (None if middle is None else 10 * round(middle))
        heavy = {user for user, figures in mine.items() if threshold is not None and (figures[5] or 0) > threshold}
        assert {user.user_id for user in row.heavy} == heavy
        assert row.users_at_a_loss == (None if price is None else sum(cost > price for cost in costs))
        assert row.margin_femto == (None if price is None else price * len(mine) - (row.spend.cost_femto or 0))


# -- release -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "against"), [(LONG_RELEASE, None), ("2026.10.3", "2026.10.1"), ("2026.11.3", None)])
@pytest.mark.parametrize(("where", "condition"), named(({}, "true"), ({"plan": "free"}, "plan = 'free'")))
def test_release(both: Both, name: str, against: str | None, where: Where, condition: str) -> None:
    """Both releases in their time, each user before and after, per day; and the causes add up to the difference."""
    limit = None if name == LONG_RELEASE and where else 25
    report = release(both.ledger, name, against, where, limit=limit)
    before = against or list(RELEASES)[list(RELEASES).index(name) - 1]
    users = [_side(both, side, condition) for side in (report.before, report.after)]
    assert (report.before.release, report.after.release) == (before, name)
    everybody = {key[0] for side in users for key in side}
    assert {row.user_id for row in report.rows} <= everybody
    assert len(report.rows) + report.more == len(everybody)
    assert (report.more == 0) == (limit is None)
    for row in report.rows:
        for group, side, figures, per_day in (
            (row.before, report.before, users[0], row.before_per_day),
            (row.after, report.after, users[1], row.after_per_day),
        ):
            expected = figures.get((row.user_id,), (0, None, None, None, None, None, 0, 0, 0, 0))
            assert found([group], ())[()] == expected
            assert per_day == _per_day(expected[5], side)
    differences = [abs(row.after_per_day - row.before_per_day) for row in report.rows]
    assert differences == sorted(differences, reverse=True)
    total = report.total
    assert total.before_per_day == _per_day(total.before.cost_femto, report.before)
    assert total.after_per_day == _per_day(total.after.cost_femto, report.after)
    for row in (total, *report.rows[:40]):
        assert row.causes is not None
        parts = (row.causes.users, row.causes.calls, row.causes.tokens, row.causes.mix, row.causes.price)
        assert sum(parts) == row.after_per_day - row.before_per_day
    if name == LONG_RELEASE:
        causes = total.causes
        assert causes is not None
        assert causes.tokens == max(causes.users, causes.calls, causes.tokens, causes.mix, causes.price) > 0


def _side(both: Both, side: Side, condition: str) -> dict[Row, Row]:
    """The users of a release in its time, after asserting that its time and totals are right."""
    starts = dict(both.db.execute(f"SELECT release, min(occurred_at) FROM calls WHERE {condition} GROUP BY release").fetchall())
    until = min((at for at in starts.values() if at > starts[side.release]), default=2**62)
    mine = f"release = '{side.release}' AND ({condition})"
    ((last, later),) = both.db.execute(
        f"SELECT max(occurred_at) FILTER (occurred_at < {until}), count(*) FILTER (occurred_at >= {until}) FROM calls WHERE {mine}"
    ).fetchall()
    assert (side.window, side.later) == (Window(starts[side.release], last + 1), later)
    assert found([side.spend], ()) == both.figures((), mine, side.window)
    figures = both.figures(("user_id",), mine, side.window)
    assert found([side.unowned], ())[()][:6] == figures.get((None,), (0, *[None] * 5))[:6]
    return figures


def _per_day(cost: int | None, side: Side) -> int:
    hours = Fraction((side.window.until or 0) - (side.window.since or 0), 3_600_000_000)
    return round(Fraction(cost or 0) * 24 / hours)


# -- margin --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["user_id", "tenant_id"])
@pytest.mark.parametrize("window", [Window(), NOVEMBER], ids=["ever", "November"])
def test_margin(both: Both, on: str, window: Window) -> None:
    """Every customer's revenue less his cost, with those who pay and do not call, and those who call and do not pay."""
    customers = [name for (name,) in both.db.execute(f"SELECT DISTINCT {on} FROM calls WHERE {on} IS NOT NULL ORDER BY 1").fetchall()]
    revenue = {name: 10**13 * number + 1 for number, name in enumerate(customers) if number % 3}
    revenue |= {"pays and does not call": 10**15, "' OR 1=1 --": 0}
    paid = pa.table({"id": list(revenue), "paid": pa.array(map(Decimal, revenue.values()), pa.decimal128(38, 0))})
    both.db.register("revenue", paid)
    times = f"occurred_at >= {window.since or 0} AND occurred_at < {window.until or 2**62}"
    expected = both.db.execute(
        f"WITH costs AS (SELECT {on} AS id, count(*) AS calls, sum(cost) AS cost FROM calls WHERE {times} AND {on} IS NOT NULL GROUP BY 1) "
        "SELECT coalesce(costs.id, revenue.id), paid, coalesce(calls, 0), CASE WHEN calls IS NULL THEN 0 ELSE cost END, "
        "coalesce(paid, 0) - CASE WHEN calls IS NULL THEN 0 ELSE cost END FROM costs FULL JOIN revenue ON costs.id = revenue.id"
    ).fetchall()
    report = margin(both.ledger, revenue, on, window=window)
    rows = [(row.id, row.revenue_femto, row.spend.calls, row.cost_femto, row.margin_femto) for row in report.rows]
    assert len(rows) == len(expected) > len(revenue)
    assert set(rows) == {(name, *map(whole, figures)) for name, *figures in expected}
    margins = [row[4] for row in rows if row[4] is not None]
    assert margins == sorted(margins)
    (total,) = both.figures((), window=window).values()
    assert found([report.total], ())[()] == total
    assert found([report.unowned], ())[()] == both.figures((on,), window=window)[(None,)]
    assert report.margin_femto == sum(revenue.values()) - (total[5] or 0)
    for row in report.rows:
        assert_ratio(row.cost_to_revenue, row.cost_femto, row.revenue_femto)


# -- unattributed --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "condition"), named(({}, "true"), FILTERS[2], FILTERS[9]))
@pytest.mark.parametrize("window", [Window(), NOVEMBER], ids=["ever", "November"])
def test_unattributed(both: Both, where: Where, condition: str, window: Window) -> None:
    """The calls without a user by attribution, route, and model with release: beside all calls, and their shares of what has no user."""
    groupings = (("route",), ("model", "release"))
    report = unattributed(both.ledger, groupings, where, window, limit=None)
    nobody = f"({condition}) AND user_id IS NULL"
    nothing = (0, None, None, None, None, None, 0, 0, 0, 0)
    (total,) = both.figures((), nobody, window).values()
    assert found([report.owners.unowned], ())[()] == total
    assert found([report.owners.total], ()) == both.figures((), condition, window)
    everything, without = both.figures(("attribution",), condition, window), both.figures(("attribution",), nobody, window)
    assert {(source.attribution,): found([source.spend], ())[()] for source in report.sources} == everything
    for source in report.sources:
        assert found([source.unowned], ())[()] == without.get((source.attribution,), nothing)
    for by, section in zip(groupings, report.sections, strict=True):
        of_all, of_nobody = both.figures(by, condition, window), both.figures(by, nobody, window)
        assert found([row.unowned for row in section.rows], by) == of_nobody
        for row in section.rows:
            assert found([row.all], ())[()] == of_all[tuple(row.unowned.dimensions.values())]
            assert_ratio(row.share_of_calls, row.unowned.calls, total[0])
            assert_ratio(row.share_of_spend, row.unowned.cost_femto, total[5])
