"""The journal has a bound, and what is lost beyond it is counted."""

import os
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from voight_middleware.ledger.sqlite import SQLiteLedger
from voight_middleware.pipeline import journal as journal_module
from voight_middleware.pipeline.ingest import Ingester
from voight_middleware.pipeline.journal import Journal, closed_bytes, folder_bytes

from ..support.patching import Patch
from ..support.waiting import wait_until
from .journals import NewCall, said


@pytest.fixture
def sweeps(patch: Patch) -> list[float]:
    """The times at which the folder was looked at."""
    found: list[float] = []
    look = folder_bytes
    patch("folder_bytes", lambda folder: (found.append(time.monotonic()), look(folder))[1])
    return found


@pytest.mark.slow
def test_the_journal_stops_at_its_limit_and_goes_on(
    folder: Path, new_call: NewCall, sweeps: list[float], caplog: pytest.LogCaptureFixture, patch: Patch
) -> None:
    """
    Beyond the limit calls wait in memory, then the oldest are lost, counted, logged and written down; once the segments are ingested,
    everything is written again. The folder is looked at once per segment, not per call.
    """
    limit = 1_000_000
    patch("BACKLOG_BYTES", 50_000)
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
        patch("FULL_SECONDS", 0.0)
        wait_until(journal.retry, 3)
        assert (journal.waiting, journal.written) == (0, count - journal.dropped)
        journal.append(new_call())
        journal.rotate()
        Ingester(ledger, folder, gentle=False).run()
        assert ledger.spend()[0].calls == count - journal.dropped + 1
    (told,) = journal_module.lost(folder)
    assert told.split(" ")[1:] == [str(journal.dropped), "process", str(os.getpid())]
    assert f"{journal.dropped} records were lost" in said(caplog)[2]
    assert "can be written again" in said(caplog)[3]
    journal.append(new_call())
    journal.rotate()
    assert len(journal_module.lost(folder)) == 1


@pytest.mark.slow
def test_many_workers_and_a_small_limit(folder: Path, new_call: NewCall, patch: Patch) -> None:
    """
    Each may write one more segment beyond the limit, and no more. Forty that are idle with a segment each keep nobody from writing once
    everything is in the ledger, though together they have more than the limit.
    """
    limit, count = 200_000, 40
    segment = limit // journal_module.SEGMENTS
    clock = [0.0]
    patch("time", SimpleNamespace(**{**vars(time), "monotonic": lambda: clock[0]}), within="journal")
    workers = [Journal(folder, limit) for _ in range(count)]
    while not all(worker.waiting for worker in workers):
        for worker in workers:
            worker.append(new_call())
    assert limit - segment < closed_bytes(folder) <= limit + count * (segment + 1000)
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
        for number in range(500):
            workers[0].append(new_call())
            if number % 25 == 0:
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
