"""What every ledger does: it is opened, closed, and used by several at once, and no call is lost or counted twice."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from voight_middleware.ledger import Ledger, LedgerError, Progress, open_ledger
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Tags

from ..support.depth import times
from ..support.factories import DAY, NOON, make_call, submission
from . import oracle

Opened = Callable[..., Ledger]


def everything(ledger: Ledger) -> list[Call]:
    return list(ledger.calls())


def test_reopening(opened: Opened) -> None:
    """A ledger that was closed has everything again when it is opened, for writing and for reports."""
    first = opened()
    call, job = make_call(5, tags=Tags(extra={"feature": "x"})), submission("openai/batch_1", "u")
    first.insert([call, job], Progress("s", 9))
    first.close()
    first.close()
    for create in (True, False):
        again = opened(create=create)
        assert everything(again) == [call]
        assert (again.progress("s"), again.submissions(["openai/batch_1"])) == (9, {job.job: job})
        assert again.spend(["feature"], {"feature": "x"})[0].cost_femto == 5
        assert again.insert([call]) == 0


def test_a_closed_ledger(ledger: Ledger) -> None:
    """It answers with an error that shows no password."""
    ledger.insert([make_call()])
    ledger.close()
    for ask in (ledger.spend, lambda: ledger.insert([make_call()]), lambda: list(ledger.calls()), ledger.time_range):
        with pytest.raises(LedgerError) as error:
            ask()
        assert "p@ss" not in str(error.value)
        assert "p%40ss" not in str(error.value)


def test_what_doctor_says(ledger: Ledger) -> None:
    """Names and values, engine and schema among them, no password, and nothing is written."""
    facts = ledger.info()
    assert {"engine", "schema"} <= {name for name, _ in facts}
    assert all(name and value for name, value in facts)
    assert not any("p@ss" in value or "p%40ss" in value for _, value in facts)
    assert ledger.time_range() is None


def test_one_writes_and_one_reads(opened: Opened) -> None:
    """A ledger that is open for reports sees calls, extra keys and prices that come in meanwhile, and may write too."""
    writer = opened()
    writer.insert([])
    reader = opened(create=False)
    assert reader.spend()[0].calls == 0
    with pytest.raises(ValueError, match="no call in this ledger has an extra key"):
        reader.spend(["feature"])
    for number in range(3):
        writer.insert([make_call(tags=Tags(extra={f"feature{number}": "x"}), price='{"p":1}')])
        assert reader.spend([f"feature{number}"], {f"feature{number}": "x"})[0].calls == 1
        assert len(everything(reader)) == number + 1
    assert reader.insert([make_call(price='{"p":1}')]) == 1
    assert [call.price for call in writer.calls()] == ['{"p":1}'] * 4


def test_reading_goes_on_while_another_writes(opened: Opened) -> None:
    """Who reads all calls, slowly, gets those that were there when it began, each once, and in order, whatever comes in."""
    writer, reader = opened(), opened()
    kept = [make_call(number, at=NOON + number) for number in range(300)]
    writer.insert(kept)
    found = []
    for number, call in enumerate(reader.calls()):
        found.append(call)
        if number % 100 == 0:
            writer.insert([make_call(1, at=NOON + 10**6 + number), make_call(1, at=NOON - 1 - number)])
    assert [call for call in found if NOON <= call.occurred_at < NOON + 300] == kept
    assert [call.call_id for call in found] == list(dict.fromkeys(call.call_id for call in found))
    assert writer.spend()[0].calls == 306


def test_writers_at_once(empty_ledger_url: str, ledger: Ledger) -> None:
    """Four threads with a ledger each tell of the same calls in batches of their own, and own progress: each call counts once."""
    kept = [make_call(number, at=NOON + number * DAY // 50, tags=Tags(user_id=f"u_{number % 3}")) for number in range(times(200, 400))]
    new: list[int] = []
    errors: list[BaseException] = []

    def write(seed: int) -> None:
        rng = random.Random(seed)
        try:
            with closing(open_ledger(empty_ledger_url)) as mine:
                told = rng.sample(kept, len(kept))
                batches = [(told[start : start + 50], Progress(f"segment-{seed}", start + 50)) for start in range(0, len(told), 50)]
                new.extend(mine.insert(*batch) for batch in batches)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert everything(ledger) == kept
    # Without transactions two may count a call as new.
    assert sum(new) == len(kept) or (empty_ledger_url.startswith("clickhouse") and sum(new) > len(kept))
    assert [ledger.progress(f"segment-{seed}") for seed in range(4)] == [len(kept)] * 4
    for by in ((), ("user_id",), ("day",), ("cost_status",)):
        assert ledger.spend(by) == oracle.spend(kept, by)


def test_openers_at_once(ledger_url: str) -> None:
    """Six threads that make the same new ledger at the same moment all get it, and none of their calls is lost."""
    barrier = threading.Barrier(6)
    errors: list[BaseException] = []

    def begin() -> None:
        try:
            barrier.wait()
            with closing(open_ledger(ledger_url)) as mine:
                assert mine.insert([make_call() for _ in range(10)]) == 10
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with closing(open_ledger(ledger_url, create=False)) as ledger:
        assert ledger.spend()[0].calls == 60


def test_reports_do_not_make_a_ledger(ledger_url: str, tmp_path: Path) -> None:
    """To open for reports what is not there is an error that helps, and leaves nothing behind; it can still be made."""
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"there is no ledger .* yet.*voight doctor") as error:
            open_ledger(ledger_url, create=False)
        assert "p%40ss" not in str(error.value)
    with closing(open_ledger(ledger_url)) as ledger:
        assert ledger.time_range() is None
