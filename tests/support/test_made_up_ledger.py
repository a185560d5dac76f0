"""The made-up ledger: the same calls every time, priced as the price book prices them, and with everything that reports look for."""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from voight_middleware.ledger import open_ledger
from voight_middleware.ledger.rollups import ROLLUPS
from voight_middleware.pricing import PriceBook
from voight_middleware.pricing.price_call import price_call
from voight_middleware.records.call import ATTRIBUTIONS, Call

from ..support.depth import times
from .made_up_ledger import LONG_FACTOR, LONG_MODEL, LONG_RELEASE, PLANS, RELEASES, fill, fill_file, made_up_calls

pytestmark = pytest.mark.slow  # a sweep over many cases

COUNT = 20_000


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    return list(made_up_calls(COUNT))


def test_the_same_seed_gives_the_same_calls() -> None:
    """Two runs with a seed agree in every field, and another seed gives other calls."""
    count = times(2_000, COUNT)
    calls = list(made_up_calls(count))
    assert list(made_up_calls(count)) == calls
    assert list(made_up_calls(count, seed=2)) != calls


def test_as_many_as_asked_for_in_the_order_of_time(calls: Sequence[Call]) -> None:
    """The number is exact, the ids are unique, and the calls go by their time over a month boundary."""
    assert len(calls) == COUNT == len({call.call_id for call in calls})
    assert [call.occurred_at for call in calls] == sorted(call.occurred_at for call in calls)
    assert (calls[0].time.month, calls[-1].time.month) == (10, 11)
    assert [len(list(made_up_calls(count))) for count in (0, 1, 999)] == [0, 1, 999]


def test_every_call_is_what_the_ingester_makes_of_it(calls: Sequence[Call]) -> None:
    """Usage, cost, status, reasons and provenance are those of the ingester and its price book, for every call."""
    book = PriceBook()
    for call in calls[:: times(5, 1)]:
        again = msgspec.structs.replace(
            call, usage=None, components=(), cost_femto=None, cost_status="unpriced", cost_reasons=(), price=None
        )
        price_call(again, book)
        assert again == call


def test_a_ledger_gives_back_what_was_filled_in(tmp_path: Path, calls: Sequence[Call]) -> None:
    """Every call comes back out of SQLite as it went in, and a second filling adds nothing."""
    counts: list[int] = []
    with closing(open_ledger(str(tmp_path / "ledger.db"))) as ledger:
        assert fill(ledger, calls[:3_000], batch=1_000, done=counts.append) == 3_000
        assert fill(ledger, calls[:3_000]) == 0
        assert list(ledger.calls()) == calls[:3_000]
    assert counts == [1_000] * 3


def test_the_fast_way_makes_the_same_file(tmp_path: Path, calls: Sequence[Call]) -> None:
    """Tables, rows, indexes and triggers are those of the plain way, and a ledger that was filled fast goes on like any other."""

    def contents(path: Path) -> list[object]:
        """The schema, the calls and their sums; numbers that stand for texts depend on the batches."""
        with closing(sqlite3.connect(path)) as db:
            schema = db.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
            names = [name for _, name, *_ in db.execute("PRAGMA table_info(calls)")]
            columns = [name for name in names if name not in ("kind_id", "place_id", "price_id")]
            calls = f"SELECT {', '.join(columns)}, price FROM calls LEFT JOIN prices USING (price_id) ORDER BY call_id"
            sums = [sorted(db.execute(f"SELECT * FROM {rollup.table}")) for rollup in ROLLUPS]
            return [schema, db.execute(calls).fetchall(), *sums]

    plain, fast = tmp_path / "plain.db", tmp_path / "fast.db"
    with closing(open_ledger(str(plain))) as ledger:
        fill(ledger, calls[:2_000])
    assert fill_file(fast, calls[:2_000], batch=800) == 2_000
    assert contents(fast) == contents(plain)
    for path in (plain, fast):
        with closing(open_ledger(str(path))) as ledger:
            fill(ledger, calls[1_900:2_500])
    assert contents(fast) == contents(plain)


def test_everything_that_reports_look_for_is_there(calls: Sequence[Call]) -> None:
    """Every plan, release, attribution and status occurs, and so do errors, estimates, cached tokens, sessions, extra keys, ten models."""
    assert {call.tags.plan for call in calls} == {*PLANS, None}
    assert {call.tags.release for call in calls} == set(RELEASES)
    assert {call.attribution for call in calls} == set(ATTRIBUTIONS)
    assert {call.cost_status for call in calls} == {"priced", "partial", "unpriced"}
    assert {call.outcome for call in calls} == {"ok", "error", "aborted"}
    assert {key for call in calls for key in call.tags.extra} == {"feature", "experiment"}
    assert len({call.model for call in calls if call.cost_femto}) == 10
    assert {call.provider for call in calls} == {"openai", "anthropic", "local"}
    for share in (
        sum(call.cost_status == "unpriced" for call in calls),
        sum(call.estimated for call in calls),
        sum(call.tags.user_id is None for call in calls),
        sum(call.outcome == "error" for call in calls),
    ):
        assert 0.003 < share / COUNT < 0.05
    assert sum(bool(call.usage and call.usage.cache_read) for call in calls) > COUNT / 5
    assert sum(call.tags.session_id is not None for call in calls) > COUNT / 5


def test_users_are_skewed_and_change_their_plan_once_at_most(calls: Sequence[Call]) -> None:
    """A tenth of the users make a third of the calls; some change their plan, once; a user has one tenant."""
    of_users = Counter(call.tags.user_id for call in calls if call.tags.user_id)
    assert sum(count for _, count in of_users.most_common(len(of_users) // 10)) > sum(of_users.values()) * 0.3
    plans, tenants = defaultdict(list), defaultdict(set)
    for call in calls:
        if call.tags.plan is not None and plans[call.tags.user_id][-1:] != [call.tags.plan]:
            plans[call.tags.user_id].append(call.tags.plan)
            tenants[call.tags.user_id].add(call.tags.tenant_id)
    assert {len(changes) for changes in plans.values()} == {1, 2}
    assert {len(some) for some in tenants.values()} == {1}
    assert len({tenant for some in tenants.values() for tenant in some}) > 2


def test_a_release_makes_one_models_calls_longer(calls: Sequence[Call]) -> None:
    """The mean input of the model grows by the factor with the release, and is back after it; other models stay."""

    def mean(release: str, model: str) -> float:
        inputs = [
            call.usage.input_tokens
            for call in calls
            if call.usage and call.usage.input_tokens and call.requested_model == model and call.tags.release == release
        ]
        return sum(inputs) / len(inputs)

    before, during, after = (mean(release, LONG_MODEL) for release in ("2026.11.1", LONG_RELEASE, "2026.11.3"))
    assert during / before == pytest.approx(LONG_FACTOR, rel=0.1)
    assert after / before == pytest.approx(1, rel=0.3)
    assert mean(LONG_RELEASE, "gpt-5-nano") / mean("2026.11.1", "gpt-5-nano") == pytest.approx(1, rel=0.15)


def test_days_have_a_rhythm(calls: Sequence[Call]) -> None:
    """Noon is busier than the night, and a working day than a Sunday."""
    by_hour = Counter(call.time.hour for call in calls)
    by_weekday = Counter(call.time.weekday() for call in calls)
    assert by_hour[10] > 5 * by_hour[3]
    assert by_weekday[1] > 2 * by_weekday[6]
    assert calls[0].time >= datetime(2026, 10, 5, tzinfo=UTC)
