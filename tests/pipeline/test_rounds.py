"""What a round asks of the server of the ledger, and what it says."""

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from voight_middleware.diagnostics import counters
from voight_middleware.pipeline.ingest import UnreadableJournal
from voight_middleware.pipeline.journal import Journal
from voight_middleware.pipeline.lock import IngestLock
from voight_middleware.pipeline.meter import Meter
from voight_middleware.pipeline.supervisor import IngestSupervisor

from ..support.patching import Patch
from ..support.waiting import wait_until
from .journals import NewCall, finish, said, write
from .switched_server import Server


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
    assert counters["ledger_errors"] == 0


def test_nothing_is_asked_while_there_is_nothing_to_bring(server: Server, folder: Path, new_call: NewCall) -> None:
    """Living processes without new calls cost the server no query: a run beyond the first does not need it."""
    journal = Journal(folder)
    journal.append(new_call())
    with closing(IngestSupervisor("postgresql://h/d", folder)) as supervisor:
        assert supervisor.run()
        server.down = "nobody may ask"
        assert supervisor.run()
        journal.append(new_call())
        assert not supervisor.run()
    journal.rotate()


def test_another_ledger_behind_the_same_url_begins_anew(server: Server, folder: Path, new_call: NewCall, tmp_path: Path) -> None:
    """A server that was set up anew knows nothing: what is still in the journals goes there from its beginning, once."""
    journal = Journal(folder)
    calls = [new_call() for _ in range(3)]
    for call in calls[:2]:
        journal.append(call)
    with closing(IngestSupervisor("postgresql://h/d", folder)) as supervisor:
        assert supervisor.run()
        server.path = tmp_path / "new.db"
        server.cut = True
        journal.append(calls[2])
        assert supervisor.run()
    assert server.kept() == sorted(call.call_id for call in calls)
    journal.rotate()


@pytest.mark.slow
def test_much_is_caught_up_with_in_rounds(server: Server, folder: Path, new_call: NewCall, patch: Patch) -> None:
    """A run with little time stops between two batches, says that there is more, and the next one goes on there."""
    patch("BATCH", 500, within="pipeline.ingest")
    calls = [new_call() for _ in range(3000)]
    write(folder, *calls)
    told: list[str] = []
    server.down = "down"
    supervisor = IngestSupervisor("postgresql://h/d", folder, report=told.append)
    assert not supervisor.run()
    server.down = None
    runs = 0
    while not supervisor.run(0.01, now=True):
        assert supervisor.behind
        assert len(told) == 1
        runs += 1
    assert runs > 1
    assert told[1:] == ["the ledger can be used again; it now has the 3,000 records that waited"]
    assert server.kept() == sorted(call.call_id for call in calls)
    supervisor.close()


def test_a_segment_that_cannot_be_read_is_no_outage(server: Server, folder: Path, new_call: NewCall) -> None:
    """The ledger is not left alone for it: all other segments go on at once."""
    write(folder, new_call())
    (folder / "1-blocked.jsonl").mkdir()
    with closing(IngestSupervisor("postgresql://h/d", folder)) as supervisor:
        for count in (1, 2, 3):
            with pytest.raises(UnreadableJournal, match=r"1-blocked\.jsonl"):
                supervisor.run()
            assert len(server.kept()) == count
            write(folder, new_call())


def test_the_last_delivery_is_noted(server: Server, folder: Path, new_call: NewCall) -> None:
    """In the lock's file, when records have arrived; not when the server was down."""
    write(folder, new_call())
    lock = IngestLock(folder)
    with closing(IngestSupervisor("postgresql://h/d", folder)) as supervisor:
        server.down = "down"
        assert not supervisor.run()
        assert lock.last_delivery() is None
        assert lock.is_locked()
        server.down = None
        assert supervisor.run(now=True)
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", lock.last_delivery() or "")
    assert not lock.is_locked()


@pytest.mark.slow
def test_who_is_not_elected_holds_no_connection(server: Server, make_meter: Callable[..., Meter], folder: Path, new_call: NewCall) -> None:
    """Of many workers one is connected: the others ask only while somebody flushes, and hang up."""
    other = IngestLock(folder)
    assert other.acquire()
    meter = make_meter()
    finish(meter, new_call())
    assert not meter.flush(0.5)
    assert server.opened
    wait_until(lambda: meter._worker._supervisor._ledger is None)  # type: ignore[union-attr]
    other.release()
