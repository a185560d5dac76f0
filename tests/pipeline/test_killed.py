"""Kill a sidecar, and the server it inserts into: nothing is lost and nothing is there twice."""

import threading
from collections.abc import Callable
from contextlib import closing

import pytest

from voight_middleware.ledger import Ledger, open_ledger
from voight_middleware.pipeline.journal import Segment, segments
from voight_middleware.records.tags import Tags

from ..support.depth import times
from ..support.scripts import Scripts
from ..support.servers.postgres import PostgresServer
from ..support.waiting import wait_until
from .journals import NewCall, write
from .sidecar import APPLICATION, HURRIED, SIDECAR, ids_of, lines_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
KILLS = times(3, 20)
CUT_SHORT = times(1, 4)
"""How many kills must hit a sidecar in the middle of a segment."""
SERVER_KILLS = times(2, 5)


def halfway(ledger: Ledger) -> Callable[[Segment], bool]:
    """Return a test whether a segment is in the ledger in part."""
    return lambda segment: 100_000 < ledger.progress(segment.name) < segment.size() - 100_000


def test_a_sidecar_that_is_killed_again_and_again(scripts: Scripts, new_call: NewCall) -> None:
    """`kill -9` in the middle of its batches, while an application writes on: nothing is lost and nothing is there twice."""
    application = scripts.start(APPLICATION, "1000000", "0.005")
    told: list[str] = []
    reader = threading.Thread(target=lambda: told.extend(line.strip() for line in application.stdout or ()))
    reader.start()
    number = cut_short = 0
    while number < KILLS or cut_short < CUT_SHORT:
        assert number < 30, "the test kills too early or too late"
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
            cut_short += any(map(halfway(ledger), segments(scripts.journal)))
        number += 1
    application.kill()
    reader.join()
    assert scripts.run(SIDECAR, "--once").strip().endswith("nothing is left")
    told = [call_id for call_id in told if len(call_id) == 32]
    found = ids_of(scripts)
    assert len(set(told)) == len(told) > 3000 * KILLS
    assert set(told) <= set(found)
    assert len(found) <= len(told) + 1, "at most the call that the application was about to report"
    with closing(open_ledger(f"sqlite:///{scripts.ledger}")) as ledger:
        (total,) = ledger.spend()
        assert total.calls == len(found)
        assert total.cost_femto == sum(call.cost_femto or 0 for call in ledger.calls())
        assert {row.calls for row in ledger.spend(["user_id"], {"user_id": "u*"})} == {3000}
    assert segments(scripts.journal) == []
    assert not (scripts.journal / "rejected.jsonl").exists() or application.returncode


def test_a_server_that_is_killed_while_a_sidecar_inserts(
    scripts: Scripts, new_call: NewCall, postgres_server: PostgresServer, postgres_url: str
) -> None:
    """`kill -9` of all of PostgreSQL while a sidecar inserts: it waits, goes on by itself, and every call is there once."""
    sidecar = scripts.start(HURRIED, "--ledger", postgres_url, "--journal", str(scripts.journal))
    lines_until(sidecar, "ingesting")
    told: list[str] = []
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(sidecar.stdout or ()))
    reader.start()

    for number in range(SERVER_KILLS):
        calls = [new_call(tags=Tags(user_id=f"u{number}"), attribution="tag") for _ in range(1500)]
        write(scripts.journal, *calls)
        told += [call.call_id for call in calls]
        if number % 2 == 0:  # the others at once
            with closing(open_ledger(postgres_url)) as ledger:
                wait_until(lambda ledger=ledger: ledger.spend(where={"user_id": f"u{number}"})[0].calls, 60)  # type: ignore[misc] # noqa: B023
        postgres_server.kill()
        postgres_server.start()
    wait_until(lambda: not segments(scripts.journal), 100)
    sidecar.terminate()
    assert sidecar.wait(60) == 0
    reader.join()
    with closing(open_ledger(postgres_url)) as ledger:
        assert sorted(call.call_id for call in ledger.calls()) == sorted(told)
        (total,) = ledger.spend()
        assert (total.calls, total.cost_femto) == (len(told), sum(call.cost_femto or 0 for call in ledger.calls()))
        assert {row.calls for row in ledger.spend(["user_id"])} == {1500}
    assert any("can be used again" in line for line in said)
    assert sum("calls stay" in line for line in said) == sum("can be used again" in line for line in said)
