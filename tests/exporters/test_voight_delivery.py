"""Events and the delivery: whoever ingests sends, and nothing that keeps events from being sent keeps calls out of the ledger."""

import signal
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from voight_middleware.config.values import EventsTarget
from voight_middleware.events import sender as events
from voight_middleware.events.outbox import open_outbox
from voight_middleware.ledger import LedgerError, open_ledger
from voight_middleware.ledger.find_call import find_call
from voight_middleware.ledger.postgres.connection import connect
from voight_middleware.ledger.postgres.roles import grants
from voight_middleware.ledger.sqlite import SQLiteLedger
from voight_middleware.pipeline.ingest import UnreadableJournal, drain
from voight_middleware.pipeline.journal import Journal
from voight_middleware.pipeline.supervisor import IngestSupervisor

from ..support.event_server import EventServer
from ..support.patching import Patch
from ..support.waiting import wait_until
from .sending import NewCall, kept, write


@pytest.fixture
def target(server: EventServer) -> EventsTarget:
    """Where events go, as fast as they can."""
    return EventsTarget(server.url, "vk_test", "tests", 60_000)


SIDECAR = """
import os, sys
from voight_middleware.cli import main
os.environ.update(VOIGHT_KEY="vk_test", VOIGHT_EVENTS_URL=sys.argv[1], VOIGHT_EVENTS_PER_MINUTE="60000")
sys.exit(main(["ingest", "--journal", sys.argv[2]]))
"""


def test_a_sidecar_sends(scripts: Any, server: EventServer, folder: Path, new_call: NewCall) -> None:
    """`voight ingest` with a key: what applications without one have written is in the ledger and sent, each once."""
    ids = write(folder, *(new_call(attribution="tag") for _ in range(20)))
    sidecar = scripts.start(SIDECAR, server.url, str(folder))
    server.wait_for(20)
    sidecar.send_signal(signal.SIGTERM)
    output, errors = sidecar.communicate(timeout=30)
    assert sidecar.returncode == 0, output + errors
    assert server.call_ids() == ids
    assert kept(folder).waiting == 0
    with closing(open_ledger(f"sqlite:///{scripts.ledger}")) as ledger:
        assert sorted(call.call_id for call in ledger.calls()) == sorted(ids)


def test_what_a_report_brings_in_is_sent_by_the_next(server: EventServer, target: EventsTarget, folder: Path, new_call: NewCall) -> None:
    """A command without a key queues where others queue: the outbox is the folder's."""
    url = f"sqlite:///{folder}.db"
    assert open_outbox(folder, create=True) is not None
    ids = write(folder, *(new_call(attribution="tag") for _ in range(3)))
    assert drain(url, folder) == 3
    assert kept(folder).waiting == 3
    with closing(IngestSupervisor(url, folder, events=target)) as delivery:
        wait_until(lambda: delivery.run() and len(server.events) == 3, every=0.05)
    assert server.call_ids() == ids


def test_a_segment_that_cannot_be_read_keeps_no_event_back(
    server: EventServer, target: EventsTarget, folder: Path, new_call: NewCall
) -> None:
    """All others are brought in, and sent."""
    (folder / "1-blocked.jsonl").mkdir(parents=True)
    ids = write(folder, new_call(attribution="tag"))
    with closing(IngestSupervisor(f"sqlite:///{folder}.db", folder, events=target)) as delivery:
        with pytest.raises(UnreadableJournal):
            delivery.run()
        server.wait_for(1)
    assert server.call_ids() == ids


def test_an_error_of_the_sender_is_no_outage(
    server: EventServer, target: EventsTarget, folder: Path, new_call: NewCall, patch: Patch
) -> None:
    """Whatever it raises: the calls are in the ledger, and the sender is left alone for a while."""
    patch("MAX_PAUSE", 0.0, within="supervisor")
    failures = [LedgerError("gone"), OSError("full"), RuntimeError("a defect")]
    refill = events.EventSender.refill

    def refilling(self: Any, ledger: Any) -> None:
        if failures:
            raise failures.pop()
        refill(self, ledger)

    patch("EventSender.refill", refilling)
    ids: list[str] = []
    with closing(IngestSupervisor(f"sqlite:///{folder}.db", folder, events=target)) as delivery:
        for _ in range(4):
            assert server.events == []
            ids += write(folder, new_call(attribution="tag"))
            assert delivery.run()
            assert (delivery.errors, delivery.error) == (0, None)
        server.wait_for(4)
    assert server.call_ids() == ids


def test_a_connection_that_is_cut_is_no_role(folder: Path, new_call: NewCall, patch: Patch, target: EventsTarget) -> None:
    """Whether a call is news is asked again where the ledger was gone: an id that is known is not queued a second time."""
    cut: list[bool] = []

    class Cut(SQLiteLedger):
        def calls(self, *args: Any, **values: Any) -> Any:
            self.answer()
            return super().calls(*args, **values)

        def progress(self, segment: str) -> int:
            self.answer()
            return super().progress(segment)

        def answer(self) -> None:
            if cut:
                raise LedgerError("the connection was closed")

    def connecting(url: str) -> Cut:
        cut.clear()
        return Cut(Path(f"{folder}.db"))

    patch("open_ledger", connecting)
    patch("EventSender.refill", lambda self, ledger: None)
    patch("EventSender._loop", lambda self: None)
    call = new_call(call_id="import-1", attribution="tag")
    write(folder, call)
    with closing(IngestSupervisor("postgresql://h/d", folder, events=target)) as delivery:
        assert delivery.run()
        assert kept(folder).waiting == 1
        journal = Journal(folder)
        journal.append(call)
        assert delivery.run()
        journal.append(call)
        cut.append(True)
        assert delivery.run()
        assert kept(folder).waiting == 1
        journal.rotate()


def test_a_role_that_reads_no_calls(
    server: EventServer,
    folder: Path,
    new_call: NewCall,
    postgres_server: Any,
    postgres_url: str,
    patch: Patch,
) -> None:
    """It brings in all calls, those with ids of others too; who may read sends them, and looks each up through the one connection."""
    target = EventsTarget(server.url, "vk_test", "tests", 60_000)
    open_ledger(postgres_url).close()
    connections: list[str] = []

    def connecting(url: str) -> Any:
        connections.append(url)
        return connect(url)

    patch("connect", connecting, within="postgres.store")
    database = urlsplit(postgres_url).path[1:]
    for statement in ("""CREATE ROLE events_writer LOGIN PASSWORD 'x'""", *grants(writer="events_writer")):
        postgres_server.psql(statement, database)
    try:
        ids = write(folder, *(new_call(call_id=f"import-{number}", attribution="tag") for number in range(30)))
        ids += write(folder, new_call(attribution="tag"))
        with closing(IngestSupervisor(postgres_server.url(database, "events_writer", "x"), folder, events=target)) as delivery:
            assert delivery.run()
            assert delivery.errors == 0
        assert server.events == []
        assert kept(folder).waiting == 31
        with closing(open_ledger(postgres_url)) as ledger:
            assert sorted(call.call_id for call in ledger.calls()) == sorted(ids)
        connections.clear()
        with closing(IngestSupervisor(postgres_url, folder, events=target)) as delivery:
            wait_until(lambda: delivery.run() and len(server.events) == 31, every=0.05)  # a round looks up for a second
        assert len(connections) == 1
        assert sorted(server.call_ids()) == sorted(ids)
    finally:
        postgres_server.psql("DROP OWNED BY events_writer CASCADE", database)
        postgres_server.psql("DROP ROLE events_writer")


def test_a_call_is_found_among_those_that_are_like_it(tmp_path: Path, new_call: NewCall) -> None:
    """By id and time, whatever else has that time; and one that is not there is not found."""
    ids = [f"row-1{letter}" for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"] + ["row-1", "row-1aa", "row-2", "é", "😀"]
    with closing(open_ledger(f"sqlite:///{tmp_path}/ledger.db")) as ledger:
        ledger.insert([new_call(call_id=call_id, occurred_at=1_000) for call_id in ids])
        assert [found.call_id for call_id in ids if (found := find_call(ledger, call_id, 1_000)) is not None] == ids
        assert find_call(ledger, "row-1~", 1_000) is None
        assert find_call(ledger, "row-0", 1_000) is None
        assert find_call(ledger, "row-1", 1_001) is None
