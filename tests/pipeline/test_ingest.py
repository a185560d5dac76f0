"""The ingester: everything that was written arrives once, whatever dies in between."""

import json
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from voight_middleware.ledger import LedgerError, Progress, open_ledger
from voight_middleware.pipeline.ingest import Ingester, drain
from voight_middleware.pipeline.journal import Journal, Segment, segments
from voight_middleware.pipeline.lock import IngestLock
from voight_middleware.pricing import PriceBook
from voight_middleware.pricing.price_call import price_call
from voight_middleware.records.call import Call, LateAttribution, Record
from voight_middleware.records.tags import Tags

from ..support.scripts import Scripts

NewCall = Callable[..., Call]

WRITER = """
import sys
from pathlib import Path
from voight_middleware.records.call import Call, new_call_id
from voight_middleware.pipeline.journal import Journal

journal = Journal(Path(sys.argv[1]))
while True:
    call = Call(call_id=new_call_id(), occurred_at=1_790_000_000_000_000, provider="openai", endpoint="chat", model="gpt-5-nano",
                raw_usage='{"prompt_tokens":10,"completion_tokens":2}')
    journal.append(call)
    print(call.call_id, flush=True)
    if len(sys.argv) > 2:
        journal.rotate()
"""


def faulty(ledger: Any) -> Any:
    """A real ledger, of any engine, which can be told to fail before or after an insert, or when a segment is forgotten."""
    insert, forget = ledger.insert, ledger.clear_progress
    ledger.fail = None

    def failing_insert(records: Sequence[Record], progress: Progress | None = None) -> int:
        if ledger.fail == "before":
            raise LedgerError("the disk is full")
        new: int = insert(records, progress)
        if ledger.fail == "after":
            raise KeyboardInterrupt
        return new

    def failing_forget(segment: str) -> None:
        if ledger.fail == "forget":
            raise KeyboardInterrupt
        forget(segment)

    ledger.insert, ledger.clear_progress = failing_insert, failing_forget
    return ledger


in_a_file = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
"""What is about journals, or about what becomes of a call before a ledger gets it."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the journals."""
    return tmp_path / "journal"


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    """A living writer."""
    one = Journal(folder)
    yield one
    one.rotate()


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Any]:
    """The ledger that the journals go to."""
    with closing(open_ledger(ledger_url)) as one:
        yield faulty(one)


def kept(ledger: Any) -> list[str]:
    """Return the ids in the ledger."""
    return sorted(call.call_id for call in ledger.calls())


def rejected(folder: Path) -> list[bytes]:
    """Return the lines that were set aside."""
    path = folder / "rejected.jsonl"
    return path.read_bytes().splitlines() if path.exists() else []


def test_a_closed_journal_is_brought_in_and_deleted(journal: Journal, ledger: Any, new_call: NewCall) -> None:
    """Calls arrive completed: with usage, cost and status; nothing of the segment is left."""
    call = new_call(tags=Tags(user_id="u"), attribution="tag")
    journal.append(call)
    journal.rotate()
    assert Ingester(ledger, journal.folder).run() == 1
    (found,) = ledger.calls()
    assert (found.call_id, found.tags.user_id, found.cost_status) == (call.call_id, "u", "priced")
    assert found.usage is not None
    assert (found.usage.input_tokens, found.usage.output_tokens) == (10, 2)
    assert segments(journal.folder) == []
    assert Ingester(ledger, journal.folder).run() == 0


@in_a_file
def test_a_living_writers_segment_is_read_up_to_its_last_whole_line(journal: Journal, ledger: Any, new_call: NewCall) -> None:
    """It is not deleted, not rejected, and read on where it was left off."""
    first, second = new_call(), new_call()
    journal.append(first)
    (segment,) = segments(journal.folder)
    line = msgspec.json.encode(second) + b"\n"
    with segment.path.open("ab") as file:
        file.write(line[:40])
    ingester = Ingester(ledger, journal.folder)
    assert ingester.run() == 1
    assert ingester.run() == 0
    with segment.path.open("ab") as file:
        file.write(line[40:])
    assert ingester.run() == 1
    assert kept(ledger) == sorted([first.call_id, second.call_id])
    assert segment.path.exists()
    assert ingester.rejected == 0


@in_a_file
def test_a_killed_writer_loses_nothing_and_doubles_nothing(ledger: Any, folder: Path, scripts: Scripts) -> None:
    """`kill -9` in the middle of writing: every call that the process had finished is in the ledger once."""
    ingester = Ingester(ledger, folder)
    finished: list[str] = []
    for _ in range(3):
        writer = scripts.start(WRITER, str(folder))
        assert writer.stdout is not None
        finished += [writer.stdout.readline().strip() for _ in range(200)]
        ingester.run()
        assert len(segments(folder)) == 1
        writer.send_signal(signal.SIGKILL)
        finished += writer.stdout.read().split()
        finished = [call_id for call_id in finished if len(call_id) == 32]
        ingester.run()
        assert segments(folder) == []
    found = kept(ledger)
    assert len(found) == len(set(found))
    assert set(finished) <= set(found)
    assert len(found) <= len(finished) + 3, "at most the call that each writer was about to report"


@in_a_file
def test_a_torn_tail_is_set_aside_and_counted(journal: Journal, ledger: Any, new_call: NewCall) -> None:
    """The line that was being written when the process died is kept as it is, in `rejected.jsonl`."""
    journal.append(new_call())
    (segment,) = segments(journal.folder)
    journal.rotate()
    with segment.path.open("ab") as file:
        file.write(b'{"type":"call","call_id":"to')
    ingester = Ingester(ledger, journal.folder)
    assert ingester.run() == 1
    assert (ingester.rejected, rejected(journal.folder)) == (1, [b'{"type":"call","call_id":"to'])
    assert segments(journal.folder) == []


@pytest.mark.slow
@in_a_file
@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"{", id="torn"),
        pytest.param(b"\xff\xfe\x00", id="bytes"),
        pytest.param(b'{"type":"call"}', id="no call"),
        pytest.param(b"x\ry", id="two lines"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"type":"from-the-future","a":1}', id="another type"),
    ],
)
def test_a_bad_line_in_the_middle_stops_nobody(journal: Journal, ledger: Any, new_call: NewCall, bad: bytes) -> None:
    """The lines around it arrive, empty ones are passed over, and the bad one is set aside."""
    first, second = new_call(), new_call()
    journal.append(first)
    (segment,) = segments(journal.folder)
    with segment.path.open("ab") as file:
        file.write(bad + b"\n\n" + msgspec.json.encode(second) + b"\n")
    ingester = Ingester(ledger, journal.folder)
    ingester.run()
    journal.rotate()
    ingester.run()
    assert kept(ledger) == sorted([first.call_id, second.call_id])
    assert b"".join(rejected(journal.folder)) == b"".join(bad.splitlines())
    assert ingester.rejected == len(bad.splitlines())


@in_a_file
def test_a_refusing_ledger_leaves_the_journals_alone(journal: Journal, ledger: Any, new_call: NewCall) -> None:
    """A LedgerError comes out, the segment stays as it is, and a later run brings everything in; a bad line is set aside once."""
    calls = [new_call() for _ in range(3)]
    for call in calls:
        journal.append(call)
    (segment,) = segments(journal.folder)
    with segment.path.open("ab") as file:
        file.write(b"garbage\n")
    content = segment.path.read_bytes()
    journal.rotate()
    ingester = Ingester(ledger, journal.folder)
    ledger.fail = "before"
    for _ in range(3):
        with pytest.raises(LedgerError, match="disk is full"):
            ingester.run()
    assert segment.path.read_bytes() == content
    ledger.fail = None
    assert ingester.run() == 4
    assert kept(ledger) == sorted(call.call_id for call in calls)
    assert (rejected(journal.folder), ingester.rejected) == ([b"garbage"], 1)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["after", "forget"])
def test_a_crash_between_insert_and_delete_doubles_nothing(journal: Journal, ledger: Any, new_call: NewCall, moment: str) -> None:
    """Work is repeated after a crash, calls are not."""
    calls = [new_call() for _ in range(700)]
    for call in calls:
        journal.append(call)
    journal.rotate()
    ledger.fail = moment
    with pytest.raises(KeyboardInterrupt):
        Ingester(ledger, journal.folder).run()
    ledger.fail = None
    Ingester(ledger, journal.folder).run()
    assert kept(ledger) == sorted(call.call_id for call in calls)
    assert ledger.spend()[0].calls == 700
    assert segments(journal.folder) == []


def test_a_segment_that_is_found_again_from_its_beginning_doubles_nothing(
    journal: Journal, ledger: Any, new_call: NewCall, folder: Path
) -> None:
    """A restored copy of a journal that is in the ledger already changes nothing: calls are idempotent by their id."""
    for _ in range(5):
        journal.append(new_call())
    (segment,) = segments(folder)
    content = segment.path.read_bytes()
    journal.rotate()
    Ingester(ledger, folder).run()
    before = ledger.spend()
    (folder / "9-restored.jsonl").write_bytes(content)
    assert Ingester(ledger, folder).run() == 5
    assert ledger.spend() == before


def test_progress_is_kept_across_ingesters(journal: Journal, ledger: Any, new_call: NewCall) -> None:
    """A new ingester goes on where the last one was, in the middle of a segment."""
    journal.append(new_call())
    assert Ingester(ledger, journal.folder).run() == 1
    journal.append(new_call())
    assert Ingester(ledger, journal.folder).run() == 1
    position = journal.position()
    assert position is not None
    assert ledger.progress(position[0]) == position[1]
    journal.rotate()
    Ingester(ledger, journal.folder).run()
    assert ledger.progress(position[0]) == 0, "nothing is remembered of a segment that is gone"


@pytest.mark.parametrize("runs", [1, 2])
def test_a_settlement_gives_a_call_its_owner(journal: Journal, ledger: Any, new_call: NewCall, runs: int) -> None:
    """In the batch of the call or in a later one; an owner that is there already stays."""
    nobodys, failed, owned = new_call(), new_call(attribution="error"), new_call(tags=Tags(user_id="mine"), attribution="tag")
    for call in (nobodys, failed, owned):
        journal.append(call)
    ingester = Ingester(ledger, journal.folder)
    if runs == 2:
        ingester.run()
    journal.append(
        LateAttribution(call_ids=(nobodys.call_id, failed.call_id, owned.call_id, "unknown"), tags=Tags(user_id="late", plan="pro"))
    )
    ingester.run()
    found = {call.call_id: (call.tags.user_id, call.tags.plan, call.attribution) for call in ledger.calls()}
    assert found == {
        nobodys.call_id: ("late", "pro", "settled"),
        failed.call_id: ("late", "pro", "settled"),
        owned.call_id: ("mine", None, "tag"),
    }


ABSURD: dict[str, dict[str, Any]] = {
    "far future": {"occurred_at": 10**18},
    "far past": {"occurred_at": -(10**17)},
    "no time": {"occurred_at": 10**30},
    "deep usage": {"raw_usage": '{"a":' + "[" * 5000 + "]" * 5000 + "}"},
    "many tokens": {"raw_usage": '{"prompt_tokens":9007199254740991,"completion_tokens":9007199254740991}'},
    "infinite tokens": {"raw_usage": '{"prompt_tokens":1e400}'},
    "no usage": {"raw_usage": "not json"},
    "a list of models": {"endpoint": "messages", "raw_usage": '{"iterations":[{"model":["x"],"input_tokens":1}]}'},
    "negative tool calls": {"tool_calls": {"web_search": -5}},
    "many tool calls": {"tool_calls": {"web_search": 10**30}},
    "many attempts": {"attempts": 10**30},
    "negative estimate": {"estimated_output": -1},
    "negative duration": {"duration": -(10**40)},
}


def bring_in_around(absurd: Sequence[Call], journal: Journal, ledger: Any, new_call: NewCall) -> None:
    """Bring in *absurd* calls with a good one before and behind each, and check what became of them."""
    good = [new_call() for _ in range(len(absurd) + 1)]
    for number, call in enumerate(good):
        for record in [call, *absurd[number : number + 1]]:
            journal.append(record)
    journal.rotate()
    ingester = Ingester(ledger, journal.folder)
    ingester.run()
    assert {call.call_id for call in good} <= set(kept(ledger))
    assert len(kept(ledger)) + ingester.rejected == len(good) + len(absurd)
    assert segments(journal.folder) == []
    ids = {call.call_id for call in absurd}
    for call in ledger.calls():
        if call.call_id in ids:
            assert (call.cost_femto is None) == (call.cost_status == "unpriced")
            assert call.cost_femto is None or call.cost_femto >= 0


@pytest.mark.slow
@in_a_file
@pytest.mark.parametrize("values", ABSURD.values(), ids=ABSURD)
def test_a_call_that_nobody_thought_of_does_not_stop_the_others(
    journal: Journal, ledger: Any, new_call: NewCall, values: dict[str, Any]
) -> None:
    """A line that decodes and is absurd is kept, unpriced, or set aside; the calls before and behind it arrive."""
    bring_in_around([new_call(**values)], journal, ledger, new_call)


def test_calls_that_nobody_thought_of_do_not_stop_the_others_in_any_engine(journal: Journal, ledger: Any, new_call: NewCall) -> None:
    """All of them in one batch: what one engine keeps, another one refuses."""
    bring_in_around([new_call(**values) for values in ABSURD.values()], journal, ledger, new_call)


@in_a_file
def test_a_segment_that_cannot_be_read_does_not_stop_the_others(journal: Journal, ledger: Any, new_call: NewCall) -> None:
    """The other segments are brought in first; then the error says what is wrong."""
    call = new_call()
    journal.append(call)
    journal.rotate()
    blocked = journal.folder / "1-blocked.jsonl"
    blocked.mkdir()
    os.utime(blocked, (1, 1))
    with pytest.raises(LedgerError, match=r"1-blocked\.jsonl"):
        Ingester(ledger, journal.folder).run()
    assert kept(ledger) == [call.call_id]


def test_completing_a_call_twice_is_completing_it_once(new_call: NewCall) -> None:
    """Usage, cost, reasons and provenance are the same the second time."""
    book = PriceBook()
    for call in (new_call(), new_call(model="unheard-of"), new_call(raw_usage=None), new_call(raw_usage="{"), new_call(service_tier="x")):
        price_call(call, book)
        once = msgspec.structs.asdict(call)
        price_call(call, book)
        assert msgspec.structs.asdict(call) == once


@pytest.mark.slow
@in_a_file
def test_each_batch_is_delivered_once_it_is_in_the_ledger(journal: Journal, ledger: Any, new_call: NewCall) -> None:
    """Whoever listens is handed completed calls that a report would already show, and no settlements."""
    heard: list[str] = []

    def delivered(calls: list[Call]) -> None:
        assert {call.call_id for call in calls} <= set(kept(ledger))
        assert all(call.cost_status == "priced" for call in calls)
        heard.extend(call.call_id for call in calls)

    calls = [new_call() for _ in range(700)]
    for call in calls:
        journal.append(call)
    journal.append(LateAttribution(call_ids=(calls[0].call_id,), tags=Tags(user_id="u")))
    Ingester(ledger, journal.folder, delivered).run()
    assert heard == [call.call_id for call in calls]


@in_a_file
def test_segments_that_are_being_made_are_never_deleted(ledger: Any, folder: Path, scripts: Scripts) -> None:
    """Two writers begin a segment for every single call while the ingester deletes as fast as it can: nothing is lost."""
    writers = [scripts.start(WRITER, str(folder), "rotate") for _ in range(2)]
    finished: list[list[str]] = [[], []]
    readers = [
        threading.Thread(target=lambda mine=mine, writer=writer: mine.extend(line.strip() for line in writer.stdout or ()))
        for mine, writer in zip(finished, writers, strict=True)
    ]
    for reader in readers:
        reader.start()
    ingester = Ingester(ledger, folder)
    while min(map(len, finished)) < 500:
        ingester.run()
    for writer in writers:
        writer.kill()
    for reader in readers:
        reader.join()
    ingester.run()
    told = {call_id for mine in finished for call_id in mine if len(call_id) == 32}
    assert len(told) >= 1000
    assert told <= set(kept(ledger))
    assert ingester.rejected == 0


def test_drain_brings_in_what_dead_processes_left(folder: Path, tmp_path: Path, new_call: NewCall) -> None:
    """`drain` needs no meter; without journals it makes no ledger, and while another process is elected it does nothing."""
    url = f"sqlite:///{tmp_path / 'drained.db'}"
    assert drain(url, folder) == 0
    assert not (tmp_path / "drained.db").exists()
    dead = Journal(folder)
    dead.append(new_call())
    dead.rotate()
    other = IngestLock(folder)
    assert other.acquire()
    assert drain(url, folder) == 0
    other.release()
    assert drain(url, folder) == 1
    assert drain(url, folder) == 0
    with sqlite3.connect(tmp_path / "drained.db") as db:
        assert db.execute("SELECT COUNT(*) FROM calls").fetchone() == (1,)
    db.close()


def test_drain_gives_the_election_back_when_the_ledger_fails(folder: Path, tmp_path: Path, new_call: NewCall) -> None:
    """After a LedgerError another process can be elected, and the journal is untouched."""
    (tmp_path / "foreign").write_bytes(b"this is no database, and long enough to be told from an empty one" * 100)
    journal = Journal(folder)
    journal.append(new_call())
    with pytest.raises(LedgerError):
        drain(f"sqlite:///{tmp_path / 'foreign'}", folder)
    next_one = IngestLock(folder)
    assert next_one.acquire()
    next_one.release()
    (segment,) = segments(folder)
    assert json.loads(Segment(segment.path).read(0))["type"] == "call"
    journal.rotate()


@in_a_file
def test_calls_wait_while_the_users_prices_cannot_be_used(journal: Journal, ledger: Any, new_call: NewCall, tmp_path: Path) -> None:
    """Nothing is priced without a rate that was meant, and nothing is lost: once the file is mended, everything comes in at that rate."""
    prices = tmp_path / "prices.toml"
    prices.write_text("[[price]]\nmodel = 'gpt-5-nano'\nimput = 1\n")
    journal.append(new_call())
    with pytest.raises(LedgerError, match=r"calls wait in the journal.*prices\.toml:3"):
        Ingester(ledger, journal.folder, prices=prices).run()
    assert list(ledger.calls()) == []
    prices.write_text("[[price]]\nmodel = 'gpt-5-nano'\ninput = 1\noutput = 1\n")
    Ingester(ledger, journal.folder, prices=prices).run()
    (call,) = ledger.calls()
    assert call.cost_femto == 12_000_000_000
