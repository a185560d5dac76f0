"""Moving: a ledger arrives whole in another one, of any engine, once, whatever dies under way, and what differs is said."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from voight_middleware.ledger import Ledger, LedgerError, open_ledger
from voight_middleware.maintenance.transfer import Transfer, move
from voight_middleware.records.call import Call, LateAttribution, Submission, job_call_id
from voight_middleware.records.tags import Tags

from ..support.depth import times
from ..support.factories import DAY, NOON, make_call, priced
from ..support.factories import submission as made_submission
from ..support.patching import Patch
from ..support.scripts import Scripts
from ..support.servers.ledgers import ENGINES, empty_ledger

TOKEN = "erased:0123456789abcdef"


@pytest.fixture(autouse=True)
def small_batches(patch: Patch) -> None:
    """So that a few hundred calls are several of them."""
    patch("BATCH", 100, within="transfer")


@pytest.fixture(params=ENGINES)
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger of each engine."""
    return empty_ledger(request, request.param, tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger in a file."""
    with closing(open_ledger(str(tmp_path / "source.db"))) as ledger:
        yield ledger


@pytest.fixture
def target(ledger_url: str) -> Iterator[Ledger]:
    """An empty ledger of each engine."""
    with closing(open_ledger(ledger_url)) as ledger:
        yield ledger


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger in another file, where the engine does not matter."""
    with closing(open_ledger(str(tmp_path / "target.db"))) as ledger:
        yield ledger


def fill(ledger: Ledger, count: int = times(250, 450), seed: int = 1) -> list[Call]:
    """Calls over months with owners of every kind, repriced up to three times, some of them jobs, some of them unpriced or partial."""
    rng = random.Random(seed)
    calls = []
    for number in range(count):
        cost = rng.choice([None, 0, rng.randrange(10**15), 2**63 - 1])
        extra = rng.choice([{}, {"feature": "it's"}, {"feature": "🦔", 'odd "key"': "%"}])
        owner = Tags(user_id=rng.choice([None, "u_1", "u_2"]), plan=rng.choice([None, "pro"]), session_id="s", extra=extra)
        values: dict[str, Any] = {"job": f"openai/batch_{number % 5}/{number}"} if number % 9 == 0 else {}
        if number % 7 == 0 and cost is not None:
            values |= {"cost_status": "partial", "cost_reasons": ("tier",)}
        at = NOON + number // 3 * (DAY // 4)  # several at the same time
        call = make_call(cost, at=at, tags=owner, attribution=rng.choice(["tag", "none", "request"]), response_id=f"r{number}", **values)
        calls.append(call)
    ledger.insert([*calls, *(submission(f"openai/batch_{number}", f"u_{number}") for number in range(5)), submission("openai/open", None)])
    for _ in range(3):
        some = rng.sample(list(ledger.calls()), count // 4)
        ledger.reprice([(call, priced(call, rng.choice([None, rng.randrange(10**12)]), price='{"p":1}')) for call in some])
    return list(ledger.calls())


def submission(job: str, user: str | None) -> Submission:
    return made_submission(job, user, attribution="none" if user is None else "tag")


def contents(ledger: Ledger) -> dict[str, Any]:
    """Everything that there is to move, and what is answered from it."""
    calls = list(ledger.calls())
    return {
        "calls": calls,
        "first": list(ledger.calls(original_prices=True)),
        "former": ledger.price_histories([call.call_id for call in calls]),
        "jobs": ledger.jobs(),
        "days": ledger.spend(["day"]),
        "users": ledger.spend(["user_id", "plan", "month"]),
        "statuses": ledger.spend(
            ["cost_status", *dict.fromkeys(key for call in calls for key in sorted(call.tags.extra) if key.isidentifier())],
            original_prices=True,
        ),
        "expired": ledger.expired(NOON + 10_000 * DAY),
    }


@pytest.mark.slow
def test_everything_arrives(source: Ledger, target: Ledger) -> None:
    """Calls with every price they had, extra keys and jobs; the source stays as it was, and a second run finds nothing to do."""
    calls = fill(source)
    before = contents(source)
    seen: list[int] = []
    report = move(source, target, done=seen.append)
    assert report == Transfer(calls=len(calls), copied=len(calls), jobs=6)
    assert (sum(seen), max(seen), report.complete) == (len(calls), 100, True)
    assert contents(target) == before == contents(source)
    assert move(source, target) == Transfer(calls=len(calls))
    assert contents(target) == before


@pytest.mark.slow
def test_there_and_back(source: Ledger, target: Ledger, file: Ledger) -> None:
    """What has gone through another engine is what it was."""
    fill(source, 150)
    assert move(source, target).complete
    assert move(target, file).complete
    assert contents(file) == contents(source)


@pytest.mark.slow
def test_a_dry_run(source: Ledger, target: Ledger) -> None:
    """It says how many, and writes nothing: into an empty target, a half filled one, and none at all."""
    calls = fill(source, 250)
    assert move(source, target, dry_run=True) == Transfer(True, calls=250, copied=250, jobs=6)
    assert move(source, None, dry_run=True) == Transfer(True, calls=250, copied=250, jobs=6)
    assert (target.time_range(), target.jobs()) == (None, [])
    target.import_calls(calls[:120])
    source.insert([LateAttribution(call_ids=tuple(call.call_id for call in calls[:50]), tags=Tags(user_id="late"))])
    before = contents(target)
    report = move(source, target, dry_run=True)
    late = sum(call.attribution in ("none", "request") for call in calls[:50])
    repriced = len(source.price_histories([call.call_id for call in calls[:120]]))
    assert (report.calls, report.copied, report.jobs) == (250, 130, 6)
    assert late <= report.changed <= late + repriced
    assert contents(target) == before


def test_an_empty_source(source: Ledger, target: Ledger) -> None:
    """Is moved at once."""
    assert move(source, target) == Transfer()


@pytest.mark.slow
def test_a_target_with_calls_of_its_own(source: Ledger, target: Ledger) -> None:
    """They stay and count, on the same days too; what is compared is what the source has."""
    fill(source, 200)
    own = [make_call(5, at=NOON + number * DAY // 3, tags=Tags(user_id="mine", extra={"team": "x"})) for number in range(90)]
    target.insert([*own, submission("openai/mine", "mine")])
    report = move(source, target)
    assert (report.copied, report.complete) == (200, True)
    assert list(target.calls({"team": "x"})) == own
    assert [call for call in target.calls() if call.tags.user_id != "mine"] == list(source.calls())
    assert target.spend(["user_id"], {"user_id": "mine"})[0].cost_femto == 450


@pytest.mark.slow
def test_what_the_source_gets_meanwhile(source: Ledger, target: Ledger) -> None:
    """New calls, also for earlier times, owners, answers, prices, jobs and erasures of after the first run are brought by the next."""
    kept = fill(source, 300)
    begun = make_call(None, at=NOON + 1, call_id=job_call_id("openai/resp_1"), job="openai/resp_1", usage=None, tags=Tags(user_id="u_7"))
    unowned = [make_call(3, at=NOON + number) for number in range(5)]
    person = [make_call(3, at=NOON + number * DAY, tags=Tags(user_id="alice"), attribution="tag", response_id="r") for number in range(5)]
    named = make_call(4, tags=Tags(user_id="bob", extra={"by": "alice"}), attribution="tag")
    source.insert([begun, *unowned, *person, named, submission("openai/hers", "alice")])
    assert move(source, target).complete

    told = msgspec.structs.replace(make_call(9, raw_usage="{}"), call_id=begun.call_id, job=begun.job)
    late = [make_call(1, at=kept[20].occurred_at + number) for number in range(7)]
    source.insert(
        [told, *late, LateAttribution(call_ids=tuple(call.call_id for call in unowned), tags=Tags(user_id="u_8", extra={"k": "v"}))]
    )
    source.insert([submission("openai/new", "u_9"), LateAttribution(call_ids=("openai/open",), tags=Tags(user_id="u_5"))])
    dear = [call for call in source.calls(limit=50) if call.cost_femto is not None]
    source.reprice([(call, priced(call, 77)) for call in dear])
    source.erase(["alice"], TOKEN)

    report = move(source, target)
    assert (report.copied, report.left, report.jobs, report.complete) == (7, 0, 2, True)
    assert contents(target) == contents(source)
    assert not target.personal_data(["alice"])
    assert move(source, target) == Transfer(calls=319)


def test_what_the_target_knows_more_of(source: Ledger, target: Ledger) -> None:
    """An owner, a usage, a price or an erasure that came to the target since stays, and is said."""
    begun = make_call(None, call_id=job_call_id("openai/resp_1"), job="openai/resp_1", usage=None)
    unowned, dear, person = make_call(3), make_call(5), make_call(7, tags=Tags(user_id="alice"), attribution="tag")
    source.insert([begun, unowned, dear, person])
    assert move(source, target).complete
    told = msgspec.structs.replace(make_call(9, raw_usage="{}"), call_id=begun.call_id, job=begun.job)
    target.insert([told, LateAttribution(call_ids=(unowned.call_id,), tags=Tags(user_id="u_1"))])
    target.reprice([(dear, priced(dear, 50))])
    target.erase(["alice"], TOKEN)
    before = contents(target)
    report = move(source, target)
    assert (report.copied, report.changed, report.left) == (0, 0, 4)
    assert contents(target) == before
    (difference,) = report.differences
    assert (difference.day, difference.source.cost_femto, difference.target.cost_femto) == ("2026-11-01", 15, 69)
    assert (difference.source.unpriced_calls, difference.target.unpriced_calls) == (1, 0)


def test_an_erasure_is_carried_over_by_nothing_but_an_id(source: Ledger, target: Ledger) -> None:
    """A user that was only named in a request, and was somebody else, is not erased with whom the call was settled to."""
    call, others = (
        make_call(3, tags=Tags(user_id="anonymous"), attribution="request"),
        [make_call(4, tags=Tags(user_id="anonymous"), attribution="tag") for _ in range(3)],
    )
    source.insert([call, *others])
    assert move(source, target).complete
    source.insert([LateAttribution(call_ids=(call.call_id,), tags=Tags(user_id="alice"))])
    source.erase(["alice"], TOKEN)
    assert move(source, target).complete
    assert contents(target) == contents(source)
    assert target.personal_data(["anonymous"]).calls == 3


@pytest.mark.slow
def test_what_was_deleted_or_changed_by_hand(source: Ledger, file: Ledger) -> None:
    """A day whose calls are not those of the source, or whose sums do not agree with its calls, is listed."""
    calls = fill(source, 120)
    move(source, file)
    with closing(sqlite3.connect(str(file.url).removeprefix("sqlite:///"))) as db, db:
        db.execute("UPDATE calls SET cost_femto = cost_femto + 1 WHERE call_id = ?", (calls[3].call_id,))
        db.execute("UPDATE days_of_models SET calls = calls + 1 WHERE day = '2026-11-05'")
    report = move(source, file)
    assert [one.day for one in report.differences] == ["2026-11-01", "2026-11-05"]
    first, second = report.differences
    assert first.target.cost_femto - first.source.cost_femto == 1
    assert second.target.calls > second.source.calls
    assert not report.complete


@pytest.mark.slow
def test_a_call_that_the_target_refuses(source: Ledger, file: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and does not stop the others; the day is listed too."""
    calls = fill(source, 250)
    keep = file.import_calls

    def refuse(some: Any, *values: Any, **names: Any) -> int:
        if any(call.call_id == calls[5].call_id for call in some):
            raise ValueError("a call cannot be stored: too long")
        return keep(some, *values, **names)

    monkeypatch.setattr(file, "import_calls", refuse)
    report = move(source, file)
    assert report.refused == {calls[5].call_id: "a call cannot be stored: too long"}
    assert (report.copied, len(report.differences)) == (249, 1)
    assert [call for call in calls if call.call_id != calls[5].call_id] == list(file.calls())


def test_the_same_ledger(source: Ledger) -> None:
    """By whatever name: it is refused, and nothing is left in it."""
    fill(source, 50)
    before = contents(source)
    with closing(open_ledger(source.url)) as other, pytest.raises(LedgerError, match="the same ledger"):
        move(source, other)
    assert contents(source) == before


@pytest.mark.slow
def test_a_source_that_is_written_all_the_time(source: Ledger, file: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Days that differ at the end are gone through again, so a call that came meanwhile does not make the run fail."""
    fill(source, 250)
    with closing(open_ledger(source.url)) as application:
        late = iter([make_call(5, at=NOON + 3), make_call(6, at=NOON + 5 * DAY)])

        def work(_calls: int) -> None:
            if (call := next(late, None)) is not None:
                application.insert([call])

        report = move(source, file, done=work)
    assert report.complete
    assert contents(file) == contents(source)


@pytest.mark.slow
def test_memory_is_that_of_a_batch(source: Ledger, file: Ledger) -> None:
    """The calls of a long ledger are never all in memory."""
    import gc

    fill(source, 800)
    gc.collect()
    others = sum(type(one) is Call for one in gc.get_objects())
    alive: list[int] = []
    for _ in range(2):  # the second time everything is compared
        move(source, file, done=lambda _: alive.append(sum(type(one) is Call for one in gc.get_objects())))
    assert max(alive) - others <= 500


KILLED = """
import sys
from contextlib import closing
from voight_middleware.maintenance import transfer
from voight_middleware.ledger import open_ledger

transfer.BATCH, left = int(sys.argv[3]), int(sys.argv[4])

def done(calls):
    global left
    print(calls, flush=True)
    left -= 1
    if not left:  # however late the kill comes, there is something left to move
        sys.stdin.read()

with closing(open_ledger(sys.argv[1], create=False)) as source, closing(open_ledger(sys.argv[2])) as target:
    print("begun", flush=True)
    transfer.move(source, target, done=done)
print("done", flush=True)
"""


@pytest.mark.slow
def test_killed_many_times(source: Ledger, ledger_url: str, target: Ledger, scripts: Scripts) -> None:
    """At any moment, in the middle of a batch or between two: nothing is lost or there twice, and the end is the source exactly."""
    count, batch = times(1_200, 8_000), 50
    fill(source, count)
    rng = random.Random(3)
    arrived = 0
    for kill in range(times(3, 20)):
        process = scripts.start(KILLED, source.url, ledger_url, str(batch), str(arrived // batch + 7))
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        for _ in range(arrived // batch + (1, 0, 2)[kill % 3]):  # what is there already is compared, then come new calls
            assert process.stdout.readline() == f"{batch}\n"
        time.sleep(rng.random() * 0.02)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        found = target.spend()[0].calls
        assert arrived <= found <= count
        arrived = found
        assert [call.call_id for call in target.calls(limit=found)] == [call.call_id for call in source.calls(limit=found)]
    assert 0 < arrived < count
    report = move(source, target)
    assert (report.copied, report.complete) == (count - arrived, True)
    assert contents(target) == contents(source)
