"""Delivery: whatever becomes of the ledger's server, requests are not affected, and every call arrives once."""

import asyncio
import itertools
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from voight_middleware import background
from voight_middleware import journal as journal_module
from voight_middleware.boundary.asgi import CostTagMiddleware
from voight_middleware.call import Call, Record, Settlement
from voight_middleware.cli import doctor, main
from voight_middleware.delivery import Delivery
from voight_middleware.ingest import Ingester, UnreadableJournal
from voight_middleware.journal import Election, Journal, Segment, closed_bytes, folder_bytes, reasons, segments
from voight_middleware.ledger import Ledger, LedgerError, Progress, open_ledger
from voight_middleware.ledger.sqlite import SQLiteLedger
from voight_middleware.meter import Meter, current_meter, swap_meter
from voight_middleware.pricing import PriceBook
from voight_middleware.settings import Settings
from voight_middleware.tags import NO_TAGS, Frame, Owner, Tags

NewCall = Callable[..., Call]
NOBODY, NOBODYS = Frame(None, NO_TAGS), Owner(NO_TAGS, "none")


class Server:
    """A ledger on a server that can be down, silent, or refuse single calls: an SQLite ledger behind a switch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.down: str | None = None
        self.refused: set[str] = set()
        self.cut = False
        self.fail_at: int | None = None
        self.tried = 0
        self.inserts = 0
        self.going = threading.Event()
        self.going.set()

    def open(self, url: str, *, create: bool = True) -> "Connection":
        self.tried += 1
        self.answer()
        return Connection(self)

    def answer(self) -> None:
        assert self.going.wait(60)
        if self.down is not None:
            raise LedgerError(self.down)
        if self.cut:
            self.cut = False
            raise LedgerError("the connection was closed")

    def kept(self) -> list[str]:
        with closing(SQLiteLedger(self.path)) as ledger:
            return sorted(call.call_id for call in ledger.calls())


class Connection(SQLiteLedger):
    """One connection to it."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.path)
        self.server = server

    def insert(self, records: Sequence[Record], progress: Progress | None = None) -> int:
        self.server.answer()
        self.server.inserts += 1
        if self.server.inserts == self.server.fail_at:
            raise LedgerError("the server went away")
        if any(isinstance(record, Call) and record.call_id in self.server.refused for record in records):
            raise ValueError("numeric field overflow")
        return super().insert(records, progress)

    def progress(self, segment: str) -> int:
        self.server.answer()
        return super().progress(segment)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server that every ledger of this process is on."""
    one = Server(tmp_path / "ledger.db")
    monkeypatch.setattr("voight_middleware.ledger.open_ledger", one.open)
    monkeypatch.setattr(doctor, "open_ledger", one.open)
    yield one
    one.going.set()


@pytest.fixture
def make_meter(tmp_path: Path) -> Iterator[Callable[..., Meter]]:
    """Makes meters on one journal, which are closed behind the test."""
    made: list[Meter] = []

    def make(*listeners: Callable[[Call], None], **values: Any) -> Meter:
        values = {"ledger": "postgresql://u:hunter2@h/d", "journal": tmp_path / "journal"} | values
        made.append(Meter(Settings.from_environment(**values, environ={"HOME": str(tmp_path)}), listeners))
        return made[-1]

    yield make
    for meter in made:
        meter.close(0.2)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds every 10 ms, and pauses of 50 to 400 ms in the place of 1 to 30 seconds."""
    monkeypatch.setattr(background, "INTERVAL", 0.01)
    monkeypatch.setattr("voight_middleware.delivery.FIRST_PAUSE", 0.05)
    monkeypatch.setattr("voight_middleware.delivery.LONGEST_PAUSE", 0.4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the journals."""
    return tmp_path / "journal"


def write(folder: Path, *calls: Record) -> None:
    """As a process that is gone by now."""
    journal = Journal(folder)
    for call in calls:
        journal.append(call)
    journal.rotate()


def finish(meter: Meter, call: Call) -> str:
    meter.finish(call, NOBODY, NOBODYS)
    return call.call_id


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- the server is down --------------------------------------------------------------------------------------------------------


def test_an_hour_without_the_server(server: Server, folder: Path, new_call: NewCall, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried after 1, 2, 4, … 30 seconds, each shortened at random; two sentences are said in all, and everything arrives once."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("voight_middleware.delivery.time", SimpleNamespace(monotonic=lambda: clock.now))
    told: list[str] = []
    delivery = Delivery("postgresql://h/d", folder, tell=told.append)
    write(folder, new_call())
    assert delivery.run()
    server.down = "connection refused"
    delivery.close_ledger()
    times: list[float] = []
    calls = [new_call() for _ in range(300)]
    for number in range(7_200):
        tried = server.tried
        if number % 24 == 0:
            write(folder, calls[number // 24])
        assert not delivery.run()
        if server.tried > tried:
            times.append(clock.now)
        clock.now += 0.5
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    for pause, longest in zip(pauses, [1.0, 2.0, 4.0, 8.0, 16.0, *[30.0] * len(pauses)], strict=False):
        assert longest / 2 <= pause <= longest + 0.5
    assert len(set(pauses[5:])) > 10, "many hosts must not come back at the same moment"
    assert told == ["calls stay in the journal for now: connection refused"]
    assert delivery.left() == 300
    server.down = None
    clock.now += 31
    assert delivery.run()
    assert told[1:] == ["the ledger can be used again; the 300 records that have waited are in it"]
    assert len(server.kept()) == 301
    assert set(server.kept()) > {call.call_id for call in calls}
    assert segments(folder) == []
    delivery.close()


@pytest.mark.usefixtures("hurried")
def test_requests_are_not_affected_and_the_log_is_short(
    server: Server, make_meter: Callable[..., Meter], new_call: NewCall, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls end as fast as ever while the server is down; each of two outages is said once when it begins and once when it is over."""
    meter = make_meter()
    ids = []
    for outage in (1, 2):
        server.down = f"outage {outage}"
        begun, tried = time.monotonic(), server.tried
        while time.monotonic() < begun + 1.5:
            before = time.thread_time()
            ids.append(finish(meter, new_call()))
            assert time.thread_time() - before < 0.05
            time.sleep(0.005)
        assert 2 <= server.tried - tried <= 14, "a server that is down is left alone longer and longer"
        server.down = None
        wait_until(lambda: server.path.exists() and len(server.kept()) == len(ids))
        assert meter.flush()
    assert server.kept() == sorted(ids)
    lines = said(caplog)
    assert [re.sub(r"[0-9,]+ records", "N records", line) for line in lines] == [
        "calls stay in the journal for now: outage 1",
        "the ledger can be used again; the N records that have waited are in it",
        "calls stay in the journal for now: outage 2",
        "the ledger can be used again; the N records that have waited are in it",
    ]
    assert meter.counters["internal_errors"] == 0


def test_flush_and_exit_try_at_once_and_keep_their_time(
    server: Server, make_meter: Callable[..., Meter], new_call: NewCall, caplog: pytest.LogCaptureFixture
) -> None:
    """However long the ledger is to be left alone: `flush()` and the end of the process ask it, and what stays behind is said once."""
    PriceBook()  # what a first round imports may take longer than this test gives it
    meter = make_meter(exit_timeout=0.3)
    server.down = "connection refused"
    ids = [finish(meter, new_call()) for _ in range(3)]
    begun = time.monotonic()
    assert not meter.flush(0.5)
    assert server.tried > 2
    assert not meter.close()
    assert not meter.close()
    assert time.monotonic() - begun < 5
    lines = said(caplog)
    assert [line for line in lines if line != "calls stay in the journal for now: connection refused"] == lines[1:2]
    assert lines[1] == f"up to 3 records of this process are not in the ledger yet, and stay in the journal {meter.settings.journal}"
    server.down = None
    assert meter.flush()
    assert server.kept() == sorted(ids)


def test_a_server_that_does_not_answer_holds_nobody_up(
    server: Server, make_meter: Callable[..., Meter], new_call: NewCall, caplog: pytest.LogCaptureFixture
) -> None:
    """Connected and silent: calls end, `flush()` and `close()` come back in their time, and nothing is lost or doubled when it wakes up."""
    meter = make_meter()
    ids = [finish(meter, new_call())]
    assert meter.flush()
    server.going.clear()
    for act in (lambda: meter.flush(0.3), lambda: meter.close(0.3)):
        ids += [finish(meter, new_call()) for _ in range(100)]
        begun = time.monotonic()
        assert not act()
        assert time.monotonic() - begun < 3
    assert said(caplog) == [f"up to 200 records are not in the ledger yet, and stay in the journal {meter.settings.journal}"]
    server.going.set()
    ids.append(finish(meter, new_call()))
    assert meter.flush(30)
    assert server.kept() == sorted(ids)


def test_a_connection_that_was_cut_while_idle_is_no_outage(
    server: Server, make_meter: Callable[..., Meter], new_call: NewCall, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that was restarted between two rounds: the next round connects again, and nothing is said."""
    meter = make_meter()
    ids = [finish(meter, new_call())]
    assert meter.flush()
    server.cut = True
    ids.append(finish(meter, new_call()))
    assert meter.flush()
    assert server.kept() == sorted(ids)
    assert said(caplog) == []
    assert meter.counters["ledger_errors"] == 0


def test_nothing_is_asked_while_there_is_nothing_to_bring(server: Server, folder: Path, new_call: NewCall) -> None:
    """Living processes without new calls cost the server no query: a run beyond the first does not need it."""
    journal = Journal(folder)
    journal.append(new_call())
    with closing(Delivery("postgresql://h/d", folder)) as delivery:
        assert delivery.run()
        server.down = "nobody may ask"
        assert delivery.run()
        journal.append(new_call())
        assert not delivery.run()
    journal.rotate()


def test_another_ledger_behind_the_same_url_begins_anew(server: Server, folder: Path, new_call: NewCall, tmp_path: Path) -> None:
    """A server that was set up anew knows nothing: what is still in the journals goes there from its beginning, once."""
    journal = Journal(folder)
    calls = [new_call() for _ in range(3)]
    for call in calls[:2]:
        journal.append(call)
    with closing(Delivery("postgresql://h/d", folder)) as delivery:
        assert delivery.run()
        server.path = tmp_path / "new.db"
        server.cut = True
        journal.append(calls[2])
        assert delivery.run()
    assert server.kept() == sorted(call.call_id for call in calls)
    journal.rotate()


def test_much_is_caught_up_with_in_rounds(server: Server, folder: Path, new_call: NewCall) -> None:
    """A run with little time stops between two batches, says that there is more, and the next one goes on there."""
    calls = [new_call() for _ in range(3000)]
    write(folder, *calls)
    told: list[str] = []
    server.down = "down"
    delivery = Delivery("postgresql://h/d", folder, tell=told.append)
    assert not delivery.run()
    server.down = None
    runs = 0
    while not delivery.run(0.01, now=True):
        assert delivery.behind
        assert len(told) == 1
        runs += 1
    assert runs > 1
    assert told[1:] == ["the ledger can be used again; the 3,000 records that have waited are in it"]
    assert server.kept() == sorted(call.call_id for call in calls)
    delivery.close()


def test_a_segment_that_cannot_be_read_is_no_outage(server: Server, folder: Path, new_call: NewCall) -> None:
    """The ledger is not left alone for it: all other segments go on at once."""
    write(folder, new_call())
    (folder / "1-blocked.jsonl").mkdir()
    with closing(Delivery("postgresql://h/d", folder)) as delivery:
        for count in (1, 2, 3):
            with pytest.raises(UnreadableJournal, match=r"1-blocked\.jsonl"):
                delivery.run()
            assert len(server.kept()) == count
            write(folder, new_call())


def test_the_last_delivery_is_noted(server: Server, folder: Path, new_call: NewCall) -> None:
    """In the lock's file, when records have arrived; not when the server was down."""
    write(folder, new_call())
    election = Election(folder)
    with closing(Delivery("postgresql://h/d", folder)) as delivery:
        server.down = "down"
        assert not delivery.run()
        assert election.last_delivery() is None
        assert election.taken()
        server.down = None
        assert delivery.run(now=True)
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", election.last_delivery() or "")
    assert not election.taken()


def test_who_is_not_elected_holds_no_connection(server: Server, make_meter: Callable[..., Meter], folder: Path, new_call: NewCall) -> None:
    """Of many workers one is connected: the others ask only while somebody flushes, and hang up."""
    other = Election(folder)
    assert other.win()
    meter = make_meter()
    finish(meter, new_call())
    opened: list[Connection] = []
    opening = server.open
    server.open = lambda url, *, create=True: opened.append(opening(url)) or opened[-1]  # type: ignore[func-returns-value,method-assign]
    import voight_middleware.ledger

    voight_middleware.ledger.open_ledger = server.open
    assert not meter.flush(0.2)
    assert opened
    wait_until(lambda: meter._background._delivery._ledger is None)  # type: ignore[union-attr]
    other.resign()


# -- one bad record ------------------------------------------------------------------------------------------------------------


def test_a_refused_batch_is_halved(server: Server, folder: Path, new_call: NewCall, caplog: pytest.LogCaptureFixture) -> None:
    """One of 500 that the engine refuses costs a score of inserts and not 500; the 499 arrive, and the one is set aside with its reason."""
    calls = [new_call(tags=Tags(user_id=f"u{number}"), attribution="tag") for number in range(500)]
    server.refused = {calls[321].call_id}
    write(folder, *calls)
    ingester = Ingester(server.open(""), folder)
    assert ingester.run() == 500
    assert server.inserts <= 2 * 9 + 2
    assert server.kept() == sorted(call.call_id for call in calls if call is not calls[321])
    assert segments(folder) == []
    (line,) = (folder / "rejected.jsonl").read_bytes().splitlines()
    assert msgspec.json.decode(line)["call_id"] == calls[321].call_id
    ((when, source, reason),) = reasons(folder)
    assert re.fullmatch(r"20\S+Z", when)
    assert re.fullmatch(r"\S+\.jsonl:[0-9]+", source)
    assert reason == "refused by the ledger: ValueError: numeric field overflow"
    assert ingester.rejected == 1
    assert [line for line in said(caplog) if "u321" in line or "overflow" in line] == []
    ingester.ledger.close()


@pytest.mark.parametrize("bad", [[0], [499], [0, 1], [0, 250, 499], list(range(0, 500, 2)), list(range(500))])
def test_any_bad_records_are_found(server: Server, folder: Path, new_call: NewCall, bad: list[int]) -> None:
    """Whichever they are and however many, all others arrive, and progress is at the end."""
    calls = [new_call() for _ in range(500)]
    server.refused = {calls[number].call_id for number in bad}
    journal = Journal(folder)
    for call in calls:
        journal.append(call)
    ledger = server.open("")
    assert Ingester(ledger, folder).run() == 500
    assert server.kept() == sorted(call.call_id for number, call in enumerate(calls) if number not in bad)
    rejected = [msgspec.json.decode(line)["call_id"] for line in (folder / "rejected.jsonl").read_bytes().splitlines()]
    assert rejected == [calls[number].call_id for number in bad]
    position = journal.position()
    assert position is not None
    assert ledger.progress(position[0]) == position[1]
    ledger.close()
    journal.rotate()


def test_a_server_that_goes_away_between_two_halves(server: Server, folder: Path, new_call: NewCall) -> None:
    """At every single insert of a batch with two bad records: what is there by then is not doubled, and each bad one is set aside once."""
    for fail_at in range(1, 45):
        calls = [new_call() for _ in range(100)]
        settlement = Settlement(call_ids=(calls[90].call_id,), tags=Tags(user_id="late"))
        server.refused = {calls[3].call_id, calls[77].call_id}
        write(folder, *calls[:50], settlement, *calls[50:])
        server.inserts, server.fail_at = 0, fail_at
        failed = False
        for _ in range(2):  # each as a process of its own
            with closing(server.open("")) as ledger:
                try:
                    Ingester(ledger, folder).run()
                except LedgerError:
                    failed = True
        assert {call.call_id for call in calls} - server.refused <= set(server.kept())
        with closing(server.open("")) as ledger:
            (owned,) = ledger.calls({"user_id": "late"})
            assert owned.call_id == calls[90].call_id
            assert ledger.spend()[0].calls == 98
            rejected = [msgspec.json.decode(line)["call_id"] for line in (folder / "rejected.jsonl").read_bytes().splitlines()]
            assert rejected == [calls[3].call_id, calls[77].call_id]
        assert segments(folder) == []
        server.path = server.path.with_name(f"ledger-{fail_at}.db")
        (folder / "rejected.jsonl").unlink()
        (folder / "rejected.log").unlink()
        if not failed:
            assert fail_at > 20
            return
    pytest.fail("the batch never came to an end without the fault")


def test_a_reason_is_one_bounded_line(folder: Path) -> None:
    """What an engine says may have lines, be long, and have surrogates in it."""
    folder.mkdir()
    journal_module.reject(folder, b"{}", "1-a.jsonl:0", "refused:\nDETAIL: \ud800" + "x" * 10_000)
    journal_module.reject(folder, b"{}", "1-a.jsonl:3", "no record: torn")
    assert [(source, len(reason) <= 510) for _, source, reason in reasons(folder)] == [("1-a.jsonl:0", True), ("1-a.jsonl:3", True)]


# -- the journal has a bound ---------------------------------------------------------------------------------------------------


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times at which the folder was looked at."""
    found: list[float] = []
    look = folder_bytes
    monkeypatch.setattr(journal_module, "folder_bytes", lambda folder: (found.append(time.monotonic()), look(folder))[1])
    return found


def test_the_journal_stops_at_its_limit_and_goes_on(
    folder: Path, new_call: NewCall, sweeps: list[float], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Beyond the limit calls wait in memory, then the oldest are lost, counted, logged and written down; once the segments are ingested,
    everything is written again. The folder is looked at once per segment, not per call.
    """
    limit = 1_000_000
    monkeypatch.setattr(journal_module, "BACKLOG_BYTES", 50_000)
    journal = Journal(folder, limit)
    line = len(msgspec.json.encode(new_call())) + 1
    count = limit // line + 2000
    begun = time.monotonic()
    for _ in range(count):
        journal.append(new_call())
    segment = limit // journal_module.SEGMENTS
    assert limit - 2 * segment < folder_bytes(folder) <= limit + segment + line
    assert journal.waiting == 50_000 // line
    assert journal.dropped == count - journal.written - journal.waiting > 1000
    assert len(sweeps) <= 2 * (journal_module.SEGMENTS + 3) + 2 * (time.monotonic() - begun)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "journal_limit" in said(caplog)[0]
    assert "are being lost" in said(caplog)[1]
    with closing(SQLiteLedger(folder.parent / "l.db")) as ledger:
        Ingester(ledger, folder, gentle=False).run()
        assert folder_bytes(folder) == 0, "the segment that was full is closed, and so can be deleted"
        monkeypatch.setattr(journal_module, "FULL_SECONDS", 0.0)
        wait_until(journal.retry, 3)
        assert (journal.waiting, journal.written) == (0, count - journal.dropped)
        journal.append(new_call())
        journal.rotate()
        Ingester(ledger, folder, gentle=False).run()
        assert ledger.spend()[0].calls == count - journal.dropped + 1
    (told,) = journal_module.lost(folder)
    assert told.split(" ")[1:] == [str(journal.dropped), "process", str(os.getpid())]
    assert f"{journal.dropped} records were lost" in said(caplog)[2]
    assert "is written again" in said(caplog)[3]
    journal.append(new_call())
    journal.rotate()
    assert len(journal_module.lost(folder)) == 1


def test_many_workers_and_a_small_limit(folder: Path, new_call: NewCall, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Each may write one more segment beyond the limit, and no more. Forty that are idle with a segment each keep nobody from writing once
    everything is in the ledger, though together they have more than the limit.
    """
    limit = 1_000_000
    segment = limit // journal_module.SEGMENTS
    clock = [0.0]
    monkeypatch.setattr(journal_module, "time", SimpleNamespace(**{**vars(time), "monotonic": lambda: clock[0]}))
    workers = [Journal(folder, limit) for _ in range(40)]
    while not all(worker.waiting for worker in workers):
        for worker in workers:
            worker.append(new_call())
    assert limit - segment < closed_bytes(folder) <= limit + 40 * (segment + 1000)
    assert folder_bytes(folder) == closed_bytes(folder), "a segment that is full is closed, so that it can be deleted"

    def look_again(*some: Journal) -> None:
        for worker in some:
            clock[0] += 2 * journal_module.FULL_SECONDS
            worker.retry()

    def written(worker: Journal) -> int:
        return place[1] if (place := worker.position()) is not None else 0

    with closing(SQLiteLedger(folder.parent / "l.db")) as ledger:
        ingester = Ingester(ledger, folder, gentle=False)
        ingester.run()
        look_again(*workers)
        assert all(worker.waiting == 0 for worker in workers)
        for worker in workers:
            while written(worker) < segment * 0.9:
                worker.append(new_call())
        ingester.run()
        assert folder_bytes(folder) > limit, "what living processes are writing into"
        for number in range(2000):
            workers[0].append(new_call())
            if number % 100 == 0:
                ingester.run()
                look_again(workers[0])
                assert not workers[0].waiting, "a worker that has to go on may"
        look_again(*workers)
        for worker in workers:
            worker.rotate()
        ingester.run()
        assert ledger.spend()[0].calls == sum(worker.written for worker in workers)
        assert sum(worker.dropped for worker in workers) == 0


def test_what_waits_in_memory_at_the_end_is_counted_as_lost(tmp_path: Path, new_call: NewCall, caplog: pytest.LogCaptureFixture) -> None:
    """A process that ends while nothing can be written says how many calls go with it."""
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "journal")
    for _ in range(7):
        journal.append(new_call())
    journal.end()
    assert journal.dropped == 7
    assert "7 records were lost" in said(caplog)[-1]


# -- voight ingest -------------------------------------------------------------------------------------------------------------

SIDECAR = """
import sys
from voight_middleware.cli import main
sys.exit(main(["ingest", *sys.argv[1:]]))
"""
APPLICATION = """
import os, sys, time
os.environ["VOIGHT_INGEST"] = "no"
import voight_middleware as voight
usage = {"prompt_tokens": 1, "completion_tokens": 1}
for number in range(int(sys.argv[1])):
    print(voight.record(provider="openai", model="gpt-5-nano", usage=usage), flush=True)
    time.sleep(float(sys.argv[2]))
"""


def ids_of(scripts: Any) -> list[str]:
    with closing(open_ledger(f"sqlite:///{scripts.ledger}")) as ledger:
        return sorted(call.call_id for call in ledger.calls())


def lines_until(process: Any, what: str) -> list[str]:
    lines: list[str] = []
    while not lines or what not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], f"ended before it said {what!r}: {lines} {process.stderr.read()}"
    return lines


def halfway(ledger: Ledger) -> Callable[[Segment], bool]:
    """Whether a segment is in the ledger in part."""
    return lambda segment: 100_000 < ledger.progress(segment.name) < segment.size() - 100_000


@pytest.mark.timeout(300)
def test_a_sidecar_that_is_killed_twenty_times(scripts: Any, new_call: NewCall) -> None:
    """`kill -9` in the middle of its batches, while an application writes on: nothing is lost and nothing is there twice."""
    application = scripts.start(APPLICATION, "1000000", "0.005")
    told: list[str] = []
    reader = threading.Thread(target=lambda: told.extend(line.strip() for line in application.stdout))
    reader.start()
    interrupted = 0
    for number in range(20):
        calls = [new_call(tags=Tags(user_id=f"u{number}"), attribution="tag") for _ in range(3000)]
        write(scripts.journal, *calls)
        told += [call.call_id for call in calls]
        sidecar = scripts.start(SIDECAR)
        lines_until(sidecar, "ingesting")
        with closing(open_ledger(f"sqlite:///{scripts.ledger}")) as ledger:
            if number % 4:  # the others before their first batch, or anywhere
                wait_until(lambda ledger=ledger: any(map(halfway(ledger), segments(scripts.journal))), 60)  # type: ignore[misc]
            sidecar.kill()
            sidecar.wait()
            interrupted += any(map(halfway(ledger), segments(scripts.journal)))
    application.kill()
    reader.join()
    assert interrupted >= 3, "the test kills too early or too late"
    assert scripts.run(SIDECAR, "--once").strip().endswith("nothing is left")
    told = [call_id for call_id in told if len(call_id) == 32]
    found = ids_of(scripts)
    assert len(set(told)) == len(told) > 60_000
    assert set(told) <= set(found)
    assert len(found) <= len(told) + 1, "at most the call that the application was about to report"
    with closing(open_ledger(f"sqlite:///{scripts.ledger}")) as ledger:
        (total,) = ledger.spend()
        assert total.calls == len(found)
        assert total.cost_femto == sum(call.cost_femto or 0 for call in ledger.calls())
        assert {row.calls for row in ledger.spend(["user_id"], {"user_id": "u*"})} == {3000}
    assert segments(scripts.journal) == []
    assert not (scripts.journal / "rejected.jsonl").exists() or application.returncode


def test_a_server_that_is_killed_while_a_sidecar_inserts(scripts: Any, new_call: NewCall, postgres_server: Any, postgres_url: str) -> None:
    """`kill -9` of all of PostgreSQL while a sidecar inserts: it waits, goes on by itself, and every call is there once."""
    sidecar = scripts.start(SIDECAR, "--ledger", postgres_url, "--journal", str(scripts.journal))
    lines_until(sidecar, "ingesting")
    told: list[str] = []
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(sidecar.stdout))
    reader.start()

    for number in range(5):
        calls = [new_call(tags=Tags(user_id=f"u{number}"), attribution="tag") for _ in range(1500)]
        write(scripts.journal, *calls)
        told += [call.call_id for call in calls]
        time.sleep(number % 5 * 0.3)
        postgres_server.kill()
        postgres_server.start()
    wait_until(lambda: not segments(scripts.journal), 100)
    sidecar.terminate()
    assert sidecar.wait(60) == 0
    reader.join()
    with closing(open_ledger(postgres_url)) as ledger:
        assert sorted(call.call_id for call in ledger.calls()) == sorted(told)
        (total,) = ledger.spend()
        assert (total.calls, total.cost_femto) == (7_500, sum(call.cost_femto or 0 for call in ledger.calls()))
        assert {row.calls for row in ledger.spend(["user_id"])} == {1500}
    assert any("can be used again" in line for line in said)
    assert sum("calls stay" in line for line in said) == sum("can be used again" in line for line in said)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_sidecar_drains_when_it_is_stopped(scripts: Any, how: signal.Signals) -> None:
    """It brings in what an application writes that is stopped at the same time, exits with 0, and says so line by line."""
    sidecar = scripts.start(SIDECAR)
    lines_until(sidecar, "ingesting")
    application = scripts.start(APPLICATION, "20", "0.02")
    first = application.stdout.readline()
    sidecar.send_signal(how)
    ids = [first.strip(), *application.stdout.read().split()]
    output, errors = sidecar.communicate(timeout=30)
    assert (sidecar.returncode, errors) == (0, "")
    assert output.splitlines() == [
        "voight: stopping: 5 seconds for the last calls of processes that end now",
        "voight: 20 records brought in; nothing is left",
    ]
    assert ids_of(scripts) == sorted(ids)


def test_a_sidecar_keeps_trying(scripts: Any) -> None:
    """A ledger that cannot be used yet: one line when that begins and one when it is over, and then everything is there."""
    scripts.ledger.mkdir(parents=True)
    sidecar = scripts.start(SIDECAR)
    ids = scripts.run(APPLICATION, "30", "0").split()
    lines = lines_until(sidecar, "calls stay")
    time.sleep(2)
    scripts.ledger.rmdir()
    lines += lines_until(sidecar, "can be used again")
    assert [re.sub(r":.*", "", line.removeprefix("voight: ").strip()) for line in lines] == [
        f"ingesting {scripts.journal} into sqlite",
        "calls stay in the journal for now",
        "the ledger can be used again; the 30 records that have waited are in it",
    ]
    assert ids_of(scripts) == sorted(ids)


def test_a_sidecar_waits_for_its_turn(scripts: Any) -> None:
    """While another process ingests it waits and says so; it takes over when that one ends."""
    first, second = scripts.start(SIDECAR), None
    lines_until(first, "ingesting")
    second = scripts.start(SIDECAR)
    assert lines_until(second, "voight:") == [f"voight: waiting: another process ingests {scripts.journal}\n"]
    once = scripts.start(SIDECAR, "--once")
    assert once.wait(30) == 0, "nothing waits"
    first.kill()
    lines_until(second, "the other process has ended")
    ids = scripts.run(APPLICATION, "5", "0").split()
    second.terminate()
    second.communicate(timeout=30)
    assert ids_of(scripts) == sorted(ids)


def test_once_says_what_stays_behind(scripts: Any) -> None:
    """With `--once` a ledger that cannot be used is exit code 1, and the calls stay."""
    scripts.run(APPLICATION, "3", "0")
    scripts.ledger.mkdir(parents=True)
    once = scripts.start(SIDECAR, "--once")
    output, _ = once.communicate(timeout=30)
    assert once.returncode == 1
    assert f"the rest stays in {scripts.journal}" in output
    scripts.ledger.rmdir()
    assert "3 records brought in; nothing is left" in scripts.run(SIDECAR, "--once")


@pytest.mark.parametrize(
    ("arguments", "environ", "named"),
    [
        (["--ledger", "mysql://u:hunter2@h/d"], {}, "mysql://u:***@h/d"),
        ([], {"VOIGHT_EXIT_TIMEOUT": "soon"}, "VOIGHT_EXIT_TIMEOUT"),
        (["--journal", "FILE/journal"], {}, "cannot be written"),
        (["--prices", "nowhere.toml"], {}, "nowhere.toml"),
    ],
)
def test_a_sidecar_that_can_never_work_ends_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    environ: dict[str, str],
    named: str,
) -> None:
    """A setting that cannot be used is one sentence and exit code 1; no password is in it."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VOIGHT_LEDGER", str(tmp_path / "ledger.db"))
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main(["ingest", *(argument.replace("FILE", str(tmp_path / "file")) for argument in arguments)]) == 1
    output = capsys.readouterr()
    assert named in output.err
    assert output.out == ""
    assert "hunter2" not in output.err


def test_a_missing_driver_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is tried again that only an installation can mend."""

    def missing(url: str, *, create: bool = True) -> Any:
        raise LedgerError("pip install 'voight-middleware[postgres]'") from ImportError("psycopg")

    monkeypatch.setattr("voight_middleware.ledger.open_ledger", missing)
    write(tmp_path / "journal", Call(call_id="c", occurred_at=1, provider="p", endpoint="chat"))
    assert main(["ingest", "--ledger", "postgresql://u:hunter2@h/d", "--journal", str(tmp_path / "journal")]) == 1
    output = capsys.readouterr()
    assert "pip install" in output.err
    assert "into postgresql://u:***@h/d" in output.out
    assert "hunter2" not in output.out + output.err


# -- an application that leaves it to a sidecar --------------------------------------------------------------------------------


def test_an_application_beside_a_sidecar_needs_nothing_of_the_ledger(scripts: Any) -> None:
    """No election, no ledger, no driver and no prices are imported; `flush()` is True as soon as the call is on disk."""
    source = """
    import os, sys
    os.environ |= {"VOIGHT_INGEST": "no", "VOIGHT_LEDGER": "postgresql://u:p@nowhere.invalid/d", "VOIGHT_JOURNAL": sys.argv[1]}
    import voight_middleware as voight
    print(voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1, "completion_tokens": 1}))
    assert voight.flush(5)
    import time
    time.sleep(1.5)
    needless = ("psycopg", "clickhouse", "sqlite3", "genai_prices", "voight_middleware.ledger", "voight_middleware.pricing")
    assert not [name for name in sys.modules if name.startswith(needless)], sys.modules.keys()
    """
    journal = scripts.folder / "shared"
    call_id = scripts.run(source, str(journal)).strip()
    assert not (journal / "ingest.lock").exists()
    assert "1 records brought in; nothing is left" in scripts.run(SIDECAR, "--once", "--journal", str(journal))
    assert ids_of(scripts) == [call_id]


def test_its_listeners_hear_all_the_same(make_meter: Callable[..., Meter], new_call: NewCall, folder: Path) -> None:
    """Listeners need no ledger: they hear priced calls, and `flush()` waits for that."""
    heard: list[Call] = []
    meter = make_meter(heard.append, ingest=False)
    call_id = finish(meter, new_call())
    assert meter.flush()
    assert [(call.call_id, call.cost_status) for call in heard] == [(call_id, "priced")]
    assert len(segments(folder)) == 1
    (folder / "x").write_text("")


def test_its_flush_is_false_while_nothing_can_be_written(make_meter: Callable[..., Meter], new_call: NewCall, folder: Path) -> None:
    """What is in memory only is not on disk."""
    folder.write_text("in the way")
    meter = make_meter(ingest=False)
    finish(meter, new_call())
    assert not meter.flush(0.1)
    folder.unlink()
    assert meter.flush()


# -- synchronous ---------------------------------------------------------------------------------------------------------------


def test_synchronous_calls_are_in_the_ledger_when_they_end(server: Server, make_meter: Callable[..., Meter], new_call: NewCall) -> None:
    """Each call and each late owner is in the ledger when the caller goes on, as the platform may freeze the process then."""
    meter = make_meter(delivery="synchronous")
    ids = []
    for _ in range(5):
        ids.append(finish(meter, new_call()))
        assert server.kept() == sorted(ids)
    meter.settle([ids[0]], Owner(Tags(user_id="late"), "settled"))
    with closing(SQLiteLedger(server.path)) as ledger:
        assert [call.call_id for call in ledger.calls({"user_id": "late"})] == [ids[0]]


def test_synchronous_delivery_waits_once_for_a_server_that_is_down(
    server: Server, make_meter: Callable[..., Meter], new_call: NewCall
) -> None:
    """The call that finds the ledger down returns at once, or after `exit_timeout` where nothing answers; those behind do not wait."""
    meter = make_meter(delivery="synchronous", exit_timeout=0.5)
    server.down = "down"
    begun = time.monotonic()
    ids = [finish(meter, new_call()) for _ in range(50)]
    assert time.monotonic() - begun < 3
    assert server.tried <= 5
    server.down = None
    assert meter.flush()
    server.going.clear()
    begun = time.monotonic()
    ids.append(finish(meter, new_call()))
    assert 0.4 < time.monotonic() - begun < 3
    server.going.set()
    assert meter.flush()
    assert server.kept() == sorted(ids)


async def test_synchronous_delivery_never_waits_on_an_event_loop(
    server: Server, make_meter: Callable[..., Meter], new_call: NewCall
) -> None:
    """There the round is only begun at once; a `flush` in a thread, or `hand_over`, waits for it."""
    meter = make_meter(delivery="synchronous", exit_timeout=30)
    server.going.clear()
    begun = time.monotonic()
    ids = [finish(meter, new_call()) for _ in range(20)]
    assert time.monotonic() - begun < 2
    server.going.set()
    await asyncio.to_thread(meter.hand_over)
    assert server.kept() == sorted(ids)
    ids.append(finish(meter, new_call()))
    for _ in range(90):
        if len(server.kept()) == 21:
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("the round was not begun at once")


async def test_synchronous_delivery_waits_at_the_end_of_an_asynchronous_request(
    server: Server, make_meter: Callable[..., Meter], new_call: NewCall
) -> None:
    """When the server is told that a request is over, and may be frozen, its calls are in the ledger; the loop has gone on meanwhile."""
    old = swap_meter(make_meter(delivery="synchronous", exit_timeout=30))
    ids: list[str] = []
    ticks = 0

    async def app(*_: Any) -> None:
        server.going.clear()
        ids.append(finish(current_meter(), new_call()))
        asyncio.get_running_loop().call_later(0.3, server.going.set)

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    try:
        middleware: Any = CostTagMiddleware(app)
        await middleware({"type": "http", "headers": []}, None, None)
        assert server.kept() == ids
        assert ticks > 5
    finally:
        ticking.cancel()
        swap_meter(old)


def test_a_stream_that_is_collected_while_delivery_is_synchronous(
    server: Server, make_meter: Callable[..., Meter], new_call: NewCall
) -> None:
    """A dropped stream's call may end inside any code of ours, wherever the collector runs: nothing waits for itself."""
    meter = make_meter(delivery="synchronous", exit_timeout=5)
    ids: list[str] = []

    def interrupt(frame: Any, event: str, arg: Any) -> Any:
        path = frame.f_code.co_filename
        if event == "call" and not busy and ("voight_middleware" in path or path.endswith(("queue.py", "threading.py"))):
            seen.add((Path(path).name, frame.f_code.co_name))
            if len(seen) > len(done):
                done.update(seen)
                busy.append(1)
                ids.append(finish(meter, new_call()))
                busy.clear()
        return None

    busy: list[int] = []
    seen: set[tuple[str, str]] = set()
    done: set[tuple[str, str]] = set()
    begun = time.monotonic()
    sys.setprofile(interrupt)
    try:
        for _ in range(3):
            call = new_call()
            ids.append(call.call_id)
            meter.finish(call, NOBODY, NOBODYS)
    finally:
        sys.setprofile(None)
    assert len(done) > 5
    assert time.monotonic() - begun < 4, "nothing waits for what it holds itself"
    assert meter.flush()
    assert server.kept() == sorted(set(ids))


# -- doctor --------------------------------------------------------------------------------------------------------------------


def examined(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    code = main(["doctor", "--format", "json", *arguments])
    text = capsys.readouterr().out
    assert "hunter2" not in text
    return code, {(finding["section"], finding["name"]): finding for finding in json.loads(text)["findings"]}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """A ledger on a server and a journal, as the environment says."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("VOIGHT_LEDGER", "postgresql://u:hunter2@h/d")
    monkeypatch.setenv("VOIGHT_JOURNAL", str(folder))
    folder.mkdir()
    return folder


def test_doctor_of_a_server(server: Server, place: Path, new_call: NewCall, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the ledger is, what it is, what waits for it, and when something last arrived there; no password."""
    write(place, new_call())
    with closing(Delivery("postgresql://h/d", place)) as delivery:
        assert delivery.run()
        _, found = examined(capsys)
        assert found["journal", "ingester"]["value"] == "a living process"
    write(place, new_call())
    code, found = examined(capsys)
    assert code == 0
    assert found["settings", "ledger"]["value"] == "postgresql://u:***@h/d (VOIGHT_LEDGER)"
    assert found["ledger", "engine"]["value"].startswith("SQLite 3.")
    assert found["ledger", "calls"]["value"] == "1"
    assert found["journal", "ingester"]["value"] == "none at the moment"
    assert re.fullmatch(r"20.*Z", found["journal", "last delivery"]["value"])
    assert re.match(r"[1-9][0-9]+ bytes of 1,000,000,000", found["journal", "room"]["value"])


def test_doctor_of_a_server_that_is_down(server: Server, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the ledger says is shown once, as something to put right; beside a sidecar it is not this process's matter."""
    server.down = 'password authentication failed for user "u"'
    code, found = examined(capsys)
    assert code == 1
    assert found["ledger", "state"]["value"] == server.down
    assert sum(server.down in str(finding) for finding in found.values()) == 1
    os.environ["VOIGHT_INGEST"] = "no"
    try:
        code, found = examined(capsys)
    finally:
        del os.environ["VOIGHT_INGEST"]
    assert code == 0
    assert not found["ledger", "state"]["fatal"]


def test_doctor_waits_for_no_server_for_ever(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, new_call: NewCall
) -> None:
    """A server that takes the connection and says nothing: after a while the rest is shown, and what is wrong."""
    monkeypatch.setattr(doctor, "ANSWER_SECONDS", 0.2)
    write(place, new_call())
    server.going.clear()
    code, found = examined(capsys)
    assert code == 1
    assert found["ledger", "state"]["value"].startswith("no whole answer within")
    assert ("journal", "room") in found


@pytest.mark.parametrize(("name", "fatal"), [("may write", True), ("may read", False)])
def test_doctor_of_a_role(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, fatal: bool
) -> None:
    """A role that may not write loses nothing yet and is to be put right; one that may not read is asked for no calls."""
    monkeypatch.setattr(Connection, "about", lambda self: [("engine", "PostgreSQL 15.4"), (name, "no: GRANT it")])
    code, found = examined(capsys)
    assert code == fatal
    assert found["ledger", name]["fatal"] is fatal
    if fatal:
        assert found["ledger", name]["advice"] == "GRANT it"
    assert (("ledger", "calls") in found) is (name != "may read")
    assert (("the last 7 days", "calls") in found) is (name != "may read")


def test_doctor_of_what_was_set_aside_and_lost(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str], new_call: NewCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reasons are shown with their number, most frequent first; lost records with their number and the last time."""
    calls = [new_call() for _ in range(4)]
    server.refused = {call.call_id for call in calls[:2]}
    write(place, *calls)
    with (place / "1-torn.jsonl").open("wb") as file:
        file.write(b'{"type":"ca')
    with closing(server.open("")) as ledger:
        Ingester(ledger, place).run()
    (place / "lost.log").write_text("2026-11-20T10:00:00Z 12 process 7\n2026-11-21T10:00:00Z 1000 process 8\n")
    code, found = examined(capsys)
    assert code == 0
    assert found["journal", "rejected lines"]["value"] == "3"
    assert found["journal", "  2 of them"]["value"] == "refused by the ledger: ValueError: numeric field overflow"
    assert found["journal", "  1 of them"]["value"].startswith("torn")
    assert found["journal", "lost records"]["value"] == "1,012, the last 2026-11-21T10:00:00Z"
    monkeypatch.setenv("VOIGHT_JOURNAL_LIMIT", "1MB")
    (place / "1-full.jsonl").write_bytes(b"\n" * 1_100_000)
    code, found = examined(capsys)
    assert code == 1
    assert found["journal", "room"]["fatal"]
    assert "VOIGHT_JOURNAL_LIMIT" in found["journal", "room"]["advice"]


def test_doctor_of_applications_without_a_sidecar(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str], new_call: NewCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With VOIGHT_INGEST=no and nobody who ingests, what waits is pointed out."""
    monkeypatch.setenv("VOIGHT_INGEST", "no")
    write(place, new_call())
    _, found = examined(capsys)
    assert "start one" in found["journal", "ingester"]["advice"]
    assert found["settings", "ingest"]["value"].startswith("no: a voight ingest")
