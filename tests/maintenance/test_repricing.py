"""Repricing: every call gets the price of today's book once, whatever dies or happens in between, and keeps the ones before."""

import gc
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from voight_middleware.ledger import Ledger, UnknownDimension, Where, Window, open_ledger
from voight_middleware.ledger.sqlite import SQLiteLedger
from voight_middleware.maintenance.repricing import Repricing, reprice, repriced
from voight_middleware.pricing import Overrides, PriceBook, open_book
from voight_middleware.pricing.price_call import price_call
from voight_middleware.records.call import Call, LateAttribution
from voight_middleware.records.tags import Tags

from ..support.factories import NOON
from ..support.servers.ledgers import ENGINES, empty_ledger

NewCall = Callable[..., Call]
HALF = """
[[price]]
provider = "openai"
model = "gpt-5-nano"
discount = "50%"

[[price]]
provider = "openai"
model = "house-model"
input = 2
output = 6
"""


@pytest.fixture(scope="module")
def book() -> PriceBook:
    """The list prices."""
    return PriceBook()


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    """A file of one's own prices: half of everything, and a model that nobody else knows."""
    path = tmp_path / "prices.toml"
    path.write_text(HALF)
    return path


@pytest.fixture
def half(prices: Path) -> PriceBook:
    """A book with those prices."""
    return open_book(prices)


in_a_file = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
"""What looks into SQLite's file, or stands between it and a repricing."""


@pytest.fixture(params=ENGINES)
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger of each engine."""
    return empty_ledger(request, request.param, tmp_path)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """Where the calls are."""
    with closing(open_ledger(ledger_url)) as ledger:
        yield ledger


@pytest.fixture
def keep(ledger: Ledger, book: PriceBook, new_call: NewCall) -> Callable[..., Call]:
    """Prices a call by the list, and keeps it."""

    def one(**values: Any) -> Call:
        call = new_call(**{"occurred_at": NOON, **values})
        price_call(call, book)
        ledger.insert([call])
        return call

    return one


def rows(ledger: SQLiteLedger) -> list[tuple[Any, ...]]:
    """Everything that is in the file."""
    with closing(sqlite3.connect(ledger.path)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return [(table, *row) for table in tables for row in db.execute(f"SELECT * FROM {table}")]


def versions(ledger: Ledger) -> list[int]:
    return [len(ledger.price_history(call.call_id)) for call in ledger.calls()]


def test_the_difference_by_user_and_model(ledger: Ledger, half: PriceBook, keep: Callable[..., Call]) -> None:
    """Who pays what more or less, the largest difference first, and what has a price now that had none."""
    usage = '{"prompt_tokens":1000000,"completion_tokens":0}'
    for user in ("u_1", "u_1", "u_2"):
        keep(tags=Tags(user_id=user), raw_usage=usage)
    keep(tags=Tags(user_id="u_2"), model="gpt-4.1", raw_usage=usage)
    keep(tags=Tags(user_id="u_3"), model=None, requested_model="house-model", raw_usage=usage)
    keep(model="unknown", raw_usage=usage)
    report = reprice(ledger, half)
    micro = 10**9
    assert [
        (row.user_id, row.model, row.calls, row.changed, row.before_femto, row.after_femto, row.difference_femto) for row in report.rows
    ] == [
        ("u_3", "house-model", 1, 1, None, 2_000_000 * micro, 2_000_000 * micro),
        ("u_1", "gpt-5-nano", 2, 2, 100_000 * micro, 50_000 * micro, -50_000 * micro),
        ("u_2", "gpt-5-nano", 1, 1, 50_000 * micro, 25_000 * micro, -25_000 * micro),
    ]
    total = report.total
    assert (total.calls, total.changed, report.written, report.passed_over) == (6, 4, 4, 0)
    assert (total.before_femto, total.after_femto) == (2_150_000 * micro, 4_075_000 * micro)
    assert (total.unpriced_before, total.unpriced_after) == (2, 1)
    assert ledger.spend()[0].cost_femto == total.after_femto
    assert ledger.spend(original_prices=True)[0].cost_femto == total.before_femto


@in_a_file
def test_a_dry_run_changes_nothing(ledger: SQLiteLedger, half: PriceBook, keep: Callable[..., Call]) -> None:
    """It reports what would change, to the last digit, and writes not a byte."""
    for number in range(20):
        keep(tags=Tags(user_id=f"u_{number % 3}"))
    with closing(sqlite3.connect(ledger.path)) as watcher:
        version, before = watcher.execute("PRAGMA data_version").fetchone(), rows(ledger)
        dry = reprice(ledger, half, dry_run=True)
        assert (watcher.execute("PRAGMA data_version").fetchone(), rows(ledger)) == (version, before)
    assert (dry.dry_run, dry.written, dry.total.changed) == (True, 0, 20)
    real = reprice(ledger, half)
    assert (real.rows, real.total, real.written) == (dry.rows, dry.total, 20)
    assert rows(ledger) != before


def test_twice_and_back(ledger: Ledger, book: PriceBook, half: PriceBook, keep: Callable[..., Call]) -> None:
    """Two repricings make three versions; the same one again makes none; and the original figures stay through all of it."""
    keep()
    keep(model="unknown")
    original = list(ledger.calls())
    plain = PriceBook(Overrides())  # a file without prices: without any file, prices of the user's own stay
    assert [reprice(ledger, one).written for one in (half, half, book, plain, plain)] == [1, 0, 0, 1, 0]
    assert sorted(versions(ledger)) == [0, 2]
    assert list(ledger.calls()) == original
    assert list(ledger.calls(original_prices=True)) == original
    (call_id,) = [call.call_id for call in original if call.cost_femto]
    cost = original[0].cost_femto or original[1].cost_femto or 0
    assert [price.cost_femto for price in ledger.price_history(call_id)] == [cost, cost // 2]


def test_only_what_was_chosen(ledger: Ledger, half: PriceBook, keep: Callable[..., Call]) -> None:
    """A window and a filter choose the calls, also one on what the repricing itself changes."""
    for number in range(4):
        keep(occurred_at=NOON + number, tags=Tags(plan="pro" if number % 2 else "free"))
    assert reprice(ledger, half, {"plan": "pro"}, Window(NOON, NOON + 3)).written == 1
    assert versions(ledger) == [0, 1, 0, 0]
    keep(model="house-model")
    assert reprice(ledger, half, {"cost_status": "unpriced"}).written == 1
    with pytest.raises(UnknownDimension):
        reprice(ledger, half, {"color": "red"})


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "anthropic": {
        "provider": "anthropic",
        "endpoint": "messages",
        "model": "claude-sonnet-4-6",
        "raw_usage": '{"input_tokens":7,"output_tokens":5,"service_tier":"batch","server_tool_use":{"web_search_requests":2}}',
    },
    "components": {
        "provider": "anthropic",
        "endpoint": "messages",
        "model": "claude-sonnet-4-6",
        "raw_usage": '{"input_tokens":9,"iterations":[{"input_tokens":7},{"model":"claude-opus-4-6","output_tokens":5}]}',
    },
    "batch": {"batch": True, "model": "gpt-4.1", "service_tier": "default"},
    "tools": {"tool_calls": {"web_search": 3}},
    "tools alone": {"tool_calls": {"web_search": 3}, "raw_usage": None},
    "estimated": {"raw_usage": None, "estimated_input": 70, "estimated_output": 5, "outcome": "aborted"},
    "estimated in part": {"estimated_output": 5, "outcome": "aborted"},
    "free": {"endpoint": "moderations", "raw_usage": None},
    "refused": {"raw_usage": None, "outcome": "error", "http_status": 429, "error": "RateLimitError"},
    "without usage": {"raw_usage": None},
    "unreadable": {"raw_usage": '{"prompt_tokens":-1}'},
    "beyond reason": {"raw_usage": '{"prompt_tokens":4000000000000000}'},
    "tier": {"service_tier": "golden"},
    "retried": {"possibly_billed": 2},
    "regional": {"host": "eu.api.openai.com"},
    "reported": {"provider": "openrouter", "model": "openai/gpt-5-nano", "raw_usage": '{"prompt_tokens":9,"cost":0.00000123}'},
    "minimum": {"provider": "groq", "endpoint": "transcriptions", "model": "whisper-large-v3", "raw_usage": '{"seconds":4}'},
    "pictures": {"endpoint": "images", "model": "dall-e-3", "raw_usage": '{"images":2,"size":"1024x1024","quality":"hd"}'},
    "job": {"raw_usage": None, "job": "openai/resp_1"},
}


def test_the_same_book_finds_the_same_price(ledger: Ledger, book: PriceBook, new_call: NewCall) -> None:
    """What is stored of a call is enough to price it again: everything of the first price comes out, for every kind of call."""
    kinds = {}
    for kind, values in CALLS.items():
        call = new_call(**{"occurred_at": NOON, **values})
        price_call(call, book)
        kinds[call.call_id] = kind
        ledger.insert([call])
    report = reprice(ledger, book)
    assert (report.total.calls, report.total.changed) == (len(CALLS), 0)
    kept = list(ledger.calls())
    assert len(kept) == len(CALLS)
    for call in kept:
        again = msgspec.structs.replace(call, cost_femto=1, cost_status="priced", list_femto=None, price=None, cost_reasons=())
        found = repriced(again, book)
        assert found == (None if kinds[call.call_id] == "job" else call), kinds[call.call_id]


def test_what_nothing_is_known_of_is_left_alone(ledger: Ledger, half: PriceBook, keep: Callable[..., Call], new_call: NewCall) -> None:
    """A job that nobody has read yet, and counts without the provider's report, keep what they have, and are counted."""
    keep(**CALLS["job"])
    kept = keep()
    bare = msgspec.structs.replace(kept, call_id="bare", raw_usage=None)
    total = msgspec.structs.replace(bare, call_id="total", components=())
    ledger.insert([bare, total])
    report = reprice(ledger, half)
    assert (report.total.calls, report.written, report.passed_over) == (4, 1, 3)
    assert (ledger.call("bare"), ledger.call("total")) == (bare, total)


def test_new_rules_for_old_estimates(ledger: Ledger, half: PriceBook, keep: Callable[..., Call]) -> None:
    """A stream that was broken off is repriced by its estimates."""
    call = keep(**CALLS["estimated"])
    assert reprice(ledger, half).written == 1
    (now,) = ledger.calls()
    assert (now.cost_femto, now.usage) == ((call.cost_femto or 0) // 2, call.usage)


KILLED = """
import sys
from pathlib import Path
from voight_middleware.ledger.sqlite import SQLiteLedger, store
from voight_middleware.ledger.sqlite.writer import Writer
from voight_middleware.pricing import open_book
from voight_middleware.maintenance.repricing import reprice

class Ledger(SQLiteLedger):
    batches = 0

    def reprice(self, changes):
        self.batches += 1
        count = super().reprice(changes)
        print(count, flush=True)
        return count

class Slow(Writer):
    def _price_id(self, price):
        if ledger.batches == 3:  # in the middle of the third transaction
            print("writing", flush=True)
            sys.stdin.read()
        return super()._price_id(price)

store.Writer = Slow
ledger = Ledger(Path(sys.argv[1]))
reprice(ledger, open_book(Path(sys.argv[2])))
"""


@in_a_file
def test_killed_in_the_middle(
    ledger: SQLiteLedger, half: PriceBook, prices: Path, book: PriceBook, new_call: NewCall, scripts: Any
) -> None:
    """What was done stays done, the rest is as it was, and another run finishes it: every call changes once."""
    calls = [new_call(occurred_at=NOON + number // 7) for number in range(2_200)]
    for call in calls:
        price_call(call, book)
    ledger.insert(calls)
    before = ledger.spend()
    process = scripts.start(KILLED, str(ledger.path), str(prices))
    assert [process.stdout.readline() for _ in range(3)] == ["500\n", "500\n", "writing\n"]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert versions(ledger) == [1] * 1_000 + [0] * 1_200
    report = reprice(ledger, half)
    assert (report.total.calls, report.total.changed, report.written) == (2_200, 1_200, 1_200)
    assert versions(ledger) == [1] * 2_200
    assert reprice(ledger, half).written == 0
    assert ledger.spend(original_prices=True) == before
    assert ledger.spend()[0].cost_femto == (before[0].cost_femto or 0) // 2


class Busy(SQLiteLedger):
    """The real ledger, in which an application is at work between the reading of a batch and its repricing."""

    other: SQLiteLedger
    work: Callable[[SQLiteLedger], None]

    def calls(self, where: Where | None = None, window: Window = Window(), *values: Any, **names: Any) -> Iterator[Call]:
        page = list(super().calls(where, window, *values, **names))
        self.work(self.other)
        yield from page

    def reprice(self, changes: Sequence[tuple[Call, Call]]) -> int:
        assert not self._db.in_transaction
        return super().reprice(changes)


@pytest.mark.slow
def test_an_application_goes_on_writing(tmp_path: Path, book: PriceBook, half: PriceBook, new_call: NewCall) -> None:
    """New calls, owners and answers of jobs come in meanwhile; none is lost, held up or priced with what is no longer true."""
    with closing(SQLiteLedger(tmp_path / "busy.db")) as other, closing(Busy(tmp_path / "busy.db")) as ledger:
        first = [new_call(occurred_at=NOON + number) for number in range(1_200)]
        for call in first:
            price_call(call, book)
        other.insert(first)
        later = iter([new_call(occurred_at=NOON + 10_000 + number) for number in range(3)])

        def work(application: SQLiteLedger) -> None:
            if (call := next(later, None)) is not None:
                price_call(call, book)
                application.insert([call, LateAttribution(call_ids=tuple(one.call_id for one in first), tags=Tags(user_id="u_1"))])
                reprice(application, half, window=Window(until=NOON + 100))  # another repricing, which is faster

        ledger.other, ledger.work = other, work
        report = reprice(ledger, half)
        assert (report.total.changed - report.written, report.total.calls) == (100, 1_203)
        assert versions(other) == [1] * 1_203
        assert other.spend(where={"user_id": "u_1"})[0].calls == 1_200
        assert reprice(other, half).written == 0


@pytest.mark.slow
@in_a_file
def test_only_a_batch_is_held(ledger: SQLiteLedger, half: PriceBook, book: PriceBook, new_call: NewCall) -> None:
    """The calls of a long ledger are never all in memory: those of a batch and the one before it, as they were and as they are priced."""
    calls = [new_call(occurred_at=NOON + number) for number in range(3_000)]
    for call in calls:
        price_call(call, book)
    ledger.insert(calls)
    del calls, call
    gc.collect()
    others = sum(type(one) is Call for one in gc.get_objects())
    sizes: list[int] = []
    alive: list[int] = []

    class Watched(Busy):
        def reprice(self, changes: Sequence[tuple[Call, Call]]) -> int:
            sizes.append(len(changes))
            alive.append(sum(type(one) is Call for one in gc.get_objects()))
            return super().reprice(changes)

    with closing(Watched(ledger.path)) as watched:
        watched.other, watched.work = ledger, lambda _: None
        report: Repricing = reprice(watched, half)
    assert 1_000 <= max(alive) - others <= 2_000
    assert (sizes, len(report.groups), report.written) == ([500] * 6, 1, 3_000)
