"""Days of a ClickHouse ledger that are closed: their sums say what their calls say, at every moment and whatever is done to the calls."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("clickhouse_connect")
pytest.importorskip("chdb")

from voight_middleware.ledger import Progress, Spend, Where, Window
from voight_middleware.ledger.clickhouse import ClickHouseLedger, closed_days, schema
from voight_middleware.ledger.groups import add_up
from voight_middleware.records.call import LateAttribution, Record
from voight_middleware.records.tags import Tags

from ..support.depth import times
from ..support.factories import DAY, NOON, job_call, make_call, priced, submission, unread
from ..support.patching import Patch
from .oracle import spend
from .test_clickhouse import Crash, add, count, crashing, emptied
from .test_rollups import START, steps

pytestmark = pytest.mark.slow

QUESTIONS: list[tuple[tuple[str, ...], Where]] = [
    ((), {}),
    (("user_id",), {}),
    (("plan", "user_id", "month"), {"user_id": "u*"}),
    (("day", "model", "plan"), {"route": "GET /"}),
    (("route",), {"user_id": None}),
    (("hour", "model"), {"user_id": None}),
    (("day", "model", "route", "cost_status"), {"user_id": "u_1"}),
    (("plan",), {"user_id": ("u_1", "x")}),
    (("release", "user_id"), {"tenant_id": "t_1"}),
    (("outcome",), {"day": "2026-11-01"}),
]
"""What sums answer, of each table, and what only calls answer."""
SUMMED = QUESTIONS[:-1]


@pytest.fixture
def no_wait(patch: Patch) -> None:
    """Days can be closed as soon as they were marked."""
    patch("QUIET", 0, within="clickhouse.closed_days")
    patch("_FRESH", 0, within="clickhouse.closed_days")


@pytest.fixture
def ledger(chdb_connection: Any, chdb_ledgers: dict[str, str], no_wait: None) -> ClickHouseLedger:
    """An empty ledger."""
    return emptied("patches", chdb_connection, chdb_ledgers)


@pytest.fixture
def opened(ledger: ClickHouseLedger) -> Callable[..., ClickHouseLedger]:
    """Opens that ledger again."""

    def again(options: str = "", *, create: bool = True) -> ClickHouseLedger:
        return ClickHouseLedger(f"clickhouse:///{ledger.server.database}{options}", create=create, client=ledger._client)

    return again


def close(ledger: ClickHouseLedger) -> list[str]:
    """Close every day that can be; answers all closed days."""
    if days := ledger._db.days.closable():
        ledger._db.days.close(days)
    return sorted(ledger._db.days.closed())


def check(ledger: ClickHouseLedger, questions: Sequence[tuple[tuple[str, ...], Where]] = QUESTIONS, *windows: Window, **zone: Any) -> None:
    """Every answer is what the calls say."""
    calls = list(ledger.calls())
    for by, where in questions:
        for window in windows or (Window(),):
            assert ledger.spend(by, where, window, **zone) == spend(calls, by, where, window, **zone), (by, where, window)


def spoil(ledger: ClickHouseLedger) -> None:
    """Change the sums, so that one sees where they are read."""
    for rollup in schema.SUMS:
        ledger._db.alter(rollup.table, "UPDATE calls = calls + 1000 WHERE 1")


def read_from_sums(ledger: ClickHouseLedger) -> bool:
    return ledger.spend()[0].calls >= 1000


# -- they say what the calls say -------------------------------------------------------------------------------------------------------


@settings(max_examples=times(3, 200), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps, st.lists(st.booleans(), min_size=12, max_size=12), st.tuples(st.integers(-1, 7 * DAY), st.integers(-1, 7 * DAY)))
def test_sums_say_what_the_calls_say(
    chdb_connection: Any,
    chdb_ledgers: dict[str, str],
    no_wait: None,
    steps: list[Any],
    closing: list[bool],
    window: tuple[int, int],
) -> None:
    """After new calls, calls told of again, late owners, late submissions and other prices, with days that are closed in between."""
    ledger = emptied("patches", chdb_connection, chdb_ledgers)
    low, high = sorted(window)
    for step, closes in zip(steps, closing, strict=False):
        if isinstance(step, tuple):
            cost, status = step[1], "unpriced" if step[1] is None else "priced"
            changed = [(call, msgspec.structs.replace(call, cost_femto=cost, cost_status=status)) for call in list(ledger.calls())[:2]]
            ledger.reprice(changed)
        else:
            ledger.insert([step])
        if closes:
            close(ledger)
    check(ledger, QUESTIONS, Window(), Window(START + low if low >= 0 else None, START + high + 1 if high >= 0 else None))
    close(ledger)
    check(ledger, QUESTIONS[:3])


def test_each_question_above_reads_sums(ledger: ClickHouseLedger) -> None:
    """The test above is about sums: they are read for all of its questions but the last."""
    tags = Tags(user_id="u_1", tenant_id="t_1", route="GET /")
    ledger.insert([make_call(1, tags=tags, attribution="tag"), make_call(1, tags=Tags(route="GET /"), attribution="none")])
    assert len(close(ledger)) == 1
    spoil(ledger)
    for by, where in SUMMED:
        assert all(row.calls > 1000 for row in ledger.spend(by, where)), by
        assert all(row.calls < 3 for row in ledger.spend(by, where, original_prices=True)), by
    assert all(row.calls < 3 for row in ledger.spend(("outcome",)))


def test_the_order_of_groups_without_a_price(ledger: ClickHouseLedger) -> None:
    """It is by calls, whether their day is closed or open."""
    ledger.insert([make_call(None, at=NOON + number * DAY, tags=Tags(user_id=f"u{number}")) for number in (0, 1, 1, 2, 2, 2)])
    close(ledger)
    ledger._db.days.changing([NOON + DAY, NOON + 2 * DAY])
    assert len(ledger._db.days.closed()) == 1
    check(ledger, [(("user_id",), {})])


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Asia/Kolkata"])
def test_windows_and_zones(ledger: ClickHouseLedger, zone: str) -> None:
    """Open days between closed ones, windows that cut days, hours and runs of days, and clocks ahead of UTC."""
    calls = [make_call(number, at=NOON + number * DAY // 3, tags=Tags(plan="p", user_id="u"), attribution="tag") for number in range(30)]
    ledger.insert(calls)
    assert len(close(ledger)) == 11
    ledger._db.days.changing(call.occurred_at for call in calls[10:13])
    assert len(ledger._db.days.closed()) == 9
    edges = [NOON - 1, NOON + DAY // 2, NOON + DAY // 2 + 7, NOON + 3 * DAY, NOON + 4 * DAY + 3_600_000_001, NOON + 30 * DAY]
    windows = [Window(since, until) for since, until in itertools.combinations([*edges, None], 2)] + [Window(None, edge) for edge in edges]
    check(ledger, [((), {}), (("user_id",), {}), (("day", "plan"), {})], *windows[:: 4 if zone == "Europe/Berlin" else 9])
    check(ledger, [(("day", "plan"), {}), (("hour",), {})], windows[0], windows[7], zone=ZoneInfo(zone))


@pytest.mark.parametrize("by", [(), ("user_id",), ("hour", "model")])
def test_calls_that_came_after_their_times_were_known(ledger: ClickHouseLedger, by: tuple[str, ...]) -> None:
    """They are in the sums of their day, and are subtracted from them where a window cuts it."""
    hour = DAY // 24
    calls = [
        make_call(number, at=NOON + at, tags=Tags(user_id="u"), attribution="tag") for number, at in enumerate([0, 5 * hour, 6 * hour])
    ]
    ledger.insert(calls)
    close(ledger)
    window = Window(None, NOON + 9 * hour // 2)
    assert ledger.groups(by, {}, window, known=(NOON, NOON)).foremost(None) == spend(calls[:1], by, {}, window)
    spoil(ledger)
    assert ledger.groups(by, {}, window, known=(NOON, NOON)).total().calls != 1


def test_more_runs_than_a_question_tells_apart(ledger: ClickHouseLedger) -> None:
    """Of many runs of closed days the short ones are read from the calls."""
    calls = [make_call(number, at=NOON + number * DAY) for number in range(30)]
    ledger.insert(calls)
    assert len(close(ledger)) == 30
    ledger._db.days.changing(call.occurred_at for call in calls[1:30:3])
    check(ledger, SUMMED[:2])
    assert len(closed_days.runs(ledger._db.days.closed(), 8)) == 8


# -- at every moment -------------------------------------------------------------------------------------------------------------------


def test_a_day_opens_before_its_calls_change(ledger: ClickHouseLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a batch does first, its days are open by then: new calls, results of jobs, late owners and submissions, other prices."""
    earlier, job, part = make_call(1, attribution="none"), unread("openai/r1", at=NOON + DAY), job_call("openai/b1/a", at=NOON + 2 * DAY)
    ledger.insert([earlier, job, part])
    for change in (
        lambda: ledger.insert([make_call(2, at=NOON + 3 * DAY)]),
        lambda: ledger.insert([job_call("openai/r1", cost=8, raw_usage="{}", at=NOON + DAY)]),
        lambda: ledger.insert([LateAttribution(call_ids=(earlier.call_id,), tags=Tags(user_id="u"))]),
        lambda: ledger.insert([submission("openai/b1", "batch-user")]),
        lambda: ledger.reprice([(call, priced(call, 99)) for call in ledger.calls(limit=1)]),
        lambda: ledger.import_calls([make_call(5, at=NOON + 4 * DAY, call_id=earlier.call_id)], replace=True),
        lambda: ledger.erase(["batch-user"], "erased:1"),
        lambda: ledger.expire(NOON + 2 * DAY, 1),
    ):
        close(ledger)
        with monkeypatch.context() as patched:
            for name in ("add", "change", "alter"):
                patched.setattr(ledger._db, name, watched(ledger, getattr(ledger._db, name)))
            change()
        check(ledger, [QUESTIONS[3]])


def watched(ledger: ClickHouseLedger, done: Callable[..., Any]) -> Callable[..., Any]:
    """*done*, with a look at the sums before and after."""

    def write(*args: Any) -> None:
        look()
        done(*args)
        look()

    def look() -> None:
        users = ledger._db.rows(f"SELECT user_id, COUNT(*), SUM(cost) FROM {ledger._db.name}.calls FINAL GROUP BY user_id")
        found = {(row.dimensions["user_id"], row.calls, row.cost_femto) for row in ledger.spend(["user_id"])}
        assert found == {(user, calls, schema.femto(cost)) for user, calls, cost in users}

    return write


@pytest.mark.parametrize("after", range(10))
def test_a_batch_that_was_broken_off(ledger: ClickHouseLedger, opened: Any, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """After a crash behind any step, the sums say what the calls say, before and after the batch is told again and its days are closed."""
    earlier, job, answer = make_call(1, attribution="none"), unread("openai/r1"), job_call("openai/b1/a", cost=16, raw_usage="{}")
    ledger.insert([earlier, job, answer])
    close(ledger)
    new = make_call(2, attribution="none")
    batch: list[Record] = [new, job_call("openai/r1", cost=8, raw_usage="{}"), submission("openai/b1", "batch-user")]
    batch += [LateAttribution(call_ids=(one.call_id,), tags=Tags(user_id=user)) for one, user in ((earlier, "a"), (new, "b"))]
    with monkeypatch.context() as patched:
        crashing(ledger, patched, after)
        with pytest.raises(Crash):
            ledger.insert(batch, Progress("s", 9))
    for again in (opened(), opened()):
        check(again, SUMMED[:4])
        close(again)
        check(again, SUMMED[:4])
        again.insert(batch, Progress("s", 9))
    check(again, SUMMED[:4])
    assert again.spend()[0].cost_femto == 27


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_batch_that_is_there_twice(ledger: ClickHouseLedger, opened: Any, when: str) -> None:
    """In two parts, before any merge: a day has each call once, whether it is closed before or after the second part."""
    ledger._db.run(f"SYSTEM STOP MERGES {ledger._db.name}.calls")
    try:
        calls = [make_call(number, at=NOON + number) for number in range(20)]
        ledger.insert(calls)
        if when == "before":
            close(ledger)
        other = opened()
        other._db.days.changing(call.occurred_at for call in calls)
        add(other, *(priced(call, 77) for call in calls), ahead=1_000_000)
        add(other, make_call(7, at=NOON + DAY, call_id=calls[0].call_id), ahead=1_000_000)
        assert count(ledger) == 41
        check(ledger)
        assert len(close(ledger)) == 2
        check(ledger)
        assert (ledger.spend()[0].calls, ledger.spend()[0].cost_femto) == (20, sum(range(20)))
    finally:
        ledger._db.run(f"SYSTEM START MERGES {ledger._db.name}.calls")


@pytest.mark.parametrize("piece", [1, 2, 1000])
def test_a_closing_in_pieces(ledger: ClickHouseLedger, patch: Patch, piece: int) -> None:
    """However many steps it takes; not if a statement has been sent twice."""
    patch("_PIECE", piece, within="clickhouse.closed_days")
    tags = Tags(user_id="u", plan="p")
    ledger.insert([make_call(number, at=NOON + number * DAY // 3, tags=tags, attribution="tag") for number in range(9)])
    days = ledger._db.days.closable()
    run, sent = ledger._db.run, list[str]()

    def twice(sql: str, **options: Any) -> None:
        for _ in range(2):
            run(sql, **options)
        sent.append(sql)

    ledger._db.run = twice  # type: ignore[method-assign]
    ledger._db.days.close(days)
    del ledger._db.run
    assert len(sent) == {1: 40, 2: 20, 1000: 4}[piece]
    check(ledger, SUMMED[:2])
    assert ledger._db.days.closed() == {}
    assert close(ledger) == days
    check(ledger, SUMMED[:3])


@pytest.mark.parametrize("after", range(6))
def test_a_closing_that_was_broken_off(ledger: ClickHouseLedger, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Its sums don't count, and go with the next closing."""
    ledger.insert([make_call(number, at=NOON + number) for number in range(9)])
    (day,) = close(ledger)
    ledger.insert([make_call(5, at=NOON + 100)])
    with monkeypatch.context() as patched:
        crashing(ledger, patched, after)
        with pytest.raises(Crash):
            ledger._db.days.close([day])
    check(ledger)
    close(ledger)
    ledger._db.days.close([day])
    check(ledger)
    for rollup in schema.SUMS:
        assert len(ledger._db.rows(f"SELECT DISTINCT version FROM {ledger._db.name}.{rollup.table}")) == 1


def test_two_processes_that_close_a_day_at_once(ledger: ClickHouseLedger, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within any step of the one, the other closes the day, and later a third adds a call."""
    ledger.insert([make_call(number, at=NOON + number) for number in range(9)])
    other, run = opened(), ledger._db.run
    writer = opened()
    (day,) = ledger._db.days.closable()

    def closing(sql: str, **options: Any) -> None:
        other._db.days.close([day])
        run(sql, **options)
        check(ledger, QUESTIONS[:1])

    with monkeypatch.context() as patched:
        patched.setattr(ledger._db, "run", closing)
        ledger._db.days.close([day])
    assert day in ledger._db.days.closed()

    def writing(sql: str, **options: Any) -> None:
        writer.insert([make_call(1, at=NOON + next(numbers))])
        run(sql, **options)
        check(ledger, QUESTIONS[:1])

    numbers = itertools.count(1000)
    with monkeypatch.context() as patched:
        patched.setattr(ledger._db, "run", writing)
        ledger._db.days.close([day])
    assert day in close(ledger)
    check(ledger)


ASKED: dict[str, Callable[[Any], Any]] = {
    "spend": lambda ledger: ledger.spend()[0],
    "total": lambda ledger: ledger.groups(("user_id",)).total(),
    "within": lambda ledger: ledger.groups(("user_id",)).within(())[0],
    "groups": lambda ledger: add_up(ledger.groups(("model", "user_id")).foremost(None)),
    "costs": lambda ledger: Spend(calls=sum(ledger.groups(("plan", "user_id")).costs().calls)),
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_sums_that_go_while_a_report_reads(
    ledger: ClickHouseLedger, opened: Any, monkeypatch: pytest.MonkeyPatch, asked: Callable[[Any], Any]
) -> None:
    """The report asks again, and in the end the calls."""
    ledger.insert([make_call(1, tags=Tags(user_id="alice-5b0c"), attribution="tag"), make_call(1, at=NOON + DAY)])
    reader, rows = opened(create=False), ledger._db.rows
    closed_before = []

    def erasing(sql: str, *args: Any, **options: Any) -> Any:
        if "months" not in sql and " AS parts" in sql:
            closed_before.append("days_of_" in sql)
            ledger._db.days.mark(list(ledger._db.days.closed()))
            ledger._db.days.forget("1")
        return rows(sql, *args, **options)

    close(ledger)
    with monkeypatch.context() as patched:
        patched.setattr(reader._db, "rows", erasing)
        assert asked(reader).calls == 2
    assert closed_before == [True, False]
