"""The outbox: files that are torn, deleted, full or in the way, and clocks that go wrong."""

import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.config.values import EventsTarget
from voight_middleware.events import sender as events
from voight_middleware.events.outbox import FOLDER, Entry, Outbox, open_outbox, status
from voight_middleware.ledger import LedgerError, Progress, open_ledger
from voight_middleware.pipeline.ingest import Ingester
from voight_middleware.pipeline.journal import Journal

from ..support.depth import times
from ..support.event_server import EventServer
from ..support.patching import Patch
from .sending import FAST, Sending, kept, spend

pytestmark = pytest.mark.usefixtures("impatient")


def entries(count: int, start: int = 0) -> list[Entry]:
    return [Entry(f"{number:032x}", number, number * 10, False) for number in range(start, start + count)]


def test_what_is_read_again_is_not_queued_again(tmp_path: Path) -> None:
    """After a crash the journal is read from before, perhaps in other pieces."""
    Outbox(tmp_path).append("s", 100, entries(10))
    outbox = Outbox(tmp_path)
    outbox.append("s", 150, entries(15))
    outbox.append("t", 50, entries(5, 100))
    outbox.append("s", 100, entries(10))
    assert [waiting.entry for waiting in outbox.read()] == [*entries(15), *entries(5, 100)]


@pytest.mark.slow
def test_a_torn_line_is_written_anew(tmp_path: Path) -> None:
    """Killed within a write: that batch is not in the ledger either, and comes again."""
    Outbox(tmp_path).append("s", 100, entries(10))
    (path,) = (tmp_path / FOLDER).glob("*.ids")
    whole = path.read_bytes()
    Outbox(tmp_path).append("s", 150, entries(15))
    for length in range(len(whole), path.stat().st_size):
        path.write_bytes(path.read_bytes()[:length])
        outbox = Outbox(tmp_path)
        assert [waiting.entry for waiting in outbox.read()] == entries(10)
        outbox.append("s", 150, entries(15))
        assert [waiting.entry for waiting in outbox.read()] == entries(15)


@pytest.mark.slow
def test_it_goes_on_where_it_was(tmp_path: Path, patch: Patch) -> None:
    """In the middle of a line, at the end of a file, with a state that was kept; and what has been sent takes no room."""
    patch("FILE_BYTES", 1000)
    outbox = Outbox(tmp_path)
    everything = entries(300)
    for start in range(0, 300, 7):
        outbox.append("s", (start + 7) * 10, everything[start : start + 7])
    assert len(list((tmp_path / FOLDER).glob("*.ids"))) > 5
    sent: list[Entry] = []
    while waiting := next(Outbox(tmp_path).read(), None):
        sent.append(waiting.entry)
        Outbox(tmp_path).advance(waiting.next)
    assert sent == everything
    assert len(list((tmp_path / FOLDER).glob("*.ids"))) == 1


@pytest.mark.slow
def test_the_oldest_give_way(tmp_path: Path, patch: Patch) -> None:
    """The disk is bounded: they are counted, and the ledger has them all."""
    patch("FILE_BYTES", 1000)
    patch("MAX_BYTES", 5000)
    outbox = Outbox(tmp_path)
    for start in range(0, 1000, 10):
        outbox.append("s", (start + 10) * 10, entries(10, start))
    left = [waiting.entry for waiting in outbox.read()]
    assert left == entries(len(left), 1000 - len(left))
    assert outbox.state.dropped == 1000 - len(left) > 0
    assert sum(path.stat().st_size for path in (tmp_path / FOLDER).glob("*.ids")) < 7000
    assert kept(tmp_path).waiting == len(left)


def test_a_disk_that_refuses_does_not_hold_up_the_ledger(server: EventServer, configured: Any, voight_calls: Any) -> None:
    """What could not be queued is counted as dropped."""
    journal = configured()
    (journal / FOLDER).mkdir(parents=True)
    (journal / FOLDER / "000000000001.ids").symlink_to(journal / "nowhere" / "file")
    spend()
    assert len(voight_calls.all()) == 1
    assert kept(journal).state.dropped == 1


def test_what_the_ledger_refuses_for_now_waits(tmp_path: Path, new_call: Any) -> None:
    """Queued before the insert: neither sent nor skipped until the ledger has it, and then once."""

    class Down:
        def __init__(self, ledger: Any) -> None:
            self.ledger, self.down = ledger, True

        def insert(self, records: Any, progress: Progress | None = None) -> int:
            if self.down:
                raise LedgerError("down")
            return int(self.ledger.insert(records, progress))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.ledger, name)

    folder = tmp_path / "journal"
    journal, ledger = Journal(folder), Down(open_ledger(f"sqlite:///{tmp_path}/ledger.db"))
    ids = []
    with EventServer() as server:
        outbox = open_outbox(folder, create=True)
        assert outbox is not None
        sender = events.EventSender(EventsTarget(server.url, "vk_test", "a", FAST), outbox)
        for _ in range(5):
            call = new_call(attribution="tag")
            ids.append(call.call_id)
            journal.append(call)
            with pytest.raises(LedgerError):
                Ingester(ledger, folder, outbox=Outbox(folder)).run()
            sender.refill(ledger)
        time.sleep(0.1)
        assert server.events == []
        ledger.down = False
        Ingester(ledger, folder, outbox=Outbox(folder)).run()
        sender.refill(ledger)
        server.wait_for(5)
        sender.stop(5)
        assert server.call_ids() == ids
    assert outbox.state.gone == 0
    ledger.close()
    journal.rotate()


def test_files_that_somebody_deletes_hide_nothing(tmp_path: Path, patch: Patch) -> None:
    """What is queued afterwards is sent: the place is not in front of it."""
    patch("FILE_BYTES", 300)
    outbox = Outbox(tmp_path)
    for start in range(0, 100, 5):
        outbox.append("s", (start + 5) * 10, [Entry(f"{number:032x}", number, number * 10, False) for number in range(start, start + 5)])
    for waiting in list(outbox.read()):
        outbox.advance(waiting.next)
    for path in (tmp_path / FOLDER).glob("*.ids"):
        path.unlink()
    new = [Entry("a" * 32, 1, 0, False), Entry("b" * 32, 2, 10, False)]
    Outbox(tmp_path).append("t", 20, new)
    assert [waiting.entry for waiting in Outbox(tmp_path).read()] == new


@pytest.mark.slow
def test_processes_that_come_and_go_leave_nothing_in_memory(tmp_path: Path) -> None:
    """A sidecar lives for months, beside programs that end after a call; what a living one has queued is known all the same."""
    outbox = Outbox(tmp_path)
    living = tmp_path / "9-living.jsonl"
    living.touch()
    outbox.append(living.name, 20, [Entry("a" * 32, 1, 0, False)])
    tracemalloc.start()
    try:
        for number in range(times(1500, 5000)):
            outbox.append(f"{number:060}.jsonl", 10, [Entry(f"{number:032x}", number, 0, False)])
        ours = [tracemalloc.Filter(True, path) for path in (__file__, "*/outbox.py")]  # other threads have memory of their own
        held = tracemalloc.take_snapshot().filter_traces(ours)
        assert sum(trace.size for trace in held.traces) < times(120_000, 400_000), "bytes"
    finally:
        tracemalloc.stop()
    outbox.append(living.name, 20, [Entry("a" * 32, 1, 0, False)])
    assert sum(waiting.entry.call_id == "a" * 32 for waiting in outbox.read()) == 1


def test_a_state_that_may_not_be_read_sends_nothing(tmp_path: Path) -> None:
    """From its beginning everything would go a second time."""
    Outbox(tmp_path).append("s", 20, [Entry("a" * 32, 1, 0, False)])
    (tmp_path / FOLDER / "state.json").mkdir()  # as if it were another account's, for an account that may read everything
    assert open_outbox(tmp_path) is None
    with pytest.raises(OSError, match="directory"):
        status(tmp_path)


@pytest.mark.slow
def test_a_disk_that_is_full_sends_nothing_twice(server: EventServer, sending: Sending) -> None:
    """What was accepted cannot be kept: nothing else goes until it can, and then what is behind it."""
    outbox = open_outbox(sending.folder, create=True)
    assert outbox is not None
    (outbox.folder / "state.new").mkdir()
    ids = sending.write("u_1", "u_2", "u_3")
    sending.until(lambda: server.events)
    time.sleep(0.3)  # more than the longest pause
    assert server.call_ids() == ids[:1]
    (outbox.folder / "state.new").rmdir()
    sending.until(lambda: sending.kept().waiting == 0)
    assert server.call_ids() == ids
    assert sending.kept().state.sent == 3


@pytest.mark.slow
def test_a_call_of_the_future_without_an_owner_waits_no_longer(server: EventServer, sending: Sending, patch: Patch) -> None:
    """The clock was put back an hour: its owner is waited for as long as any other's."""
    patch("SETTLE_SECONDS", 0.3, within="sender")
    ids = sending.write("u_1", attribution="none", occurred_at=(time.time_ns() // 1000) + 3_600_000_000)
    sending.until(lambda: server.events, 5)
    assert server.call_ids() == ids


@pytest.mark.slow
def test_a_clock_that_was_put_back_holds_nothing_up(server: EventServer, sending: Sending) -> None:
    """The newest event was accepted tomorrow: the next goes when its turn is, and not then."""
    outbox = open_outbox(sending.folder, create=True)
    assert outbox is not None
    outbox.note(sent_at=(time.time_ns() // 1000) + 86_400_000_000)
    ids = sending.write("u_1", occurred_at=(time.time_ns() // 1000) + 3_600_000_000)
    sending.until(lambda: server.events, 5)
    assert server.call_ids() == ids
