"""One record that the engine refuses does not keep back the others."""

import re
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from voight_middleware.ledger import LedgerError
from voight_middleware.pipeline import journal as journal_module
from voight_middleware.pipeline.ingest import Ingester
from voight_middleware.pipeline.journal import Journal, reasons, segments
from voight_middleware.records.call import LateAttribution
from voight_middleware.records.tags import Tags

from .journals import NewCall, said, write
from .switched_server import Server


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "bad",
    [
        pytest.param([0], id="the first"),
        pytest.param([499], id="the last"),
        pytest.param([0, 1], id="two neighbors"),
        pytest.param([0, 250, 499], id="three far apart"),
        pytest.param(list(range(0, 500, 2)), id="every other one"),
        pytest.param(list(range(500)), id="all"),
    ],
)
def test_any_bad_records_are_found(server: Server, folder: Path, new_call: NewCall, bad: list[int]) -> None:
    """Whichever they are and however many, all others arrive, and progress is at the end."""
    calls = [new_call() for _ in range(500)]
    server.refused = {calls[number].call_id for number in bad}
    journal = Journal(folder)
    for call in calls:
        journal.append(call)
    ledger = server.open("")
    assert Ingester(ledger, folder, gentle=False).run() == 500
    assert server.kept() == sorted(call.call_id for number, call in enumerate(calls) if number not in bad)
    rejected = [msgspec.json.decode(line)["call_id"] for line in (folder / "rejected.jsonl").read_bytes().splitlines()]
    assert rejected == [calls[number].call_id for number in bad]
    position = journal.position()
    assert position is not None
    assert ledger.progress(position[0]) == position[1]
    ledger.close()
    journal.rotate()


@pytest.mark.slow
def test_a_server_that_goes_away_between_two_halves(server: Server, folder: Path, new_call: NewCall) -> None:
    """At every single insert of a batch with two bad records: what is there by then is not doubled, and each bad one is set aside once."""
    for fail_at in range(1, 45):
        calls = [new_call() for _ in range(40)]
        settlement = LateAttribution(call_ids=(calls[36].call_id,), tags=Tags(user_id="late"))
        server.refused = {calls[3].call_id, calls[31].call_id}
        write(folder, *calls[:20], settlement, *calls[20:])
        server.inserts, server.fail_at = 0, fail_at
        failed = False
        for _ in range(2):  # each as a process of its own
            with closing(server.open("")) as ledger:
                try:
                    Ingester(ledger, folder, gentle=False).run()
                except LedgerError:
                    failed = True
        assert {call.call_id for call in calls} - server.refused <= set(server.kept())
        with closing(server.open("")) as ledger:
            (owned,) = ledger.calls({"user_id": "late"})
            assert owned.call_id == calls[36].call_id
            assert ledger.spend()[0].calls == 38
            rejected = [msgspec.json.decode(line)["call_id"] for line in (folder / "rejected.jsonl").read_bytes().splitlines()]
            assert rejected == [calls[3].call_id, calls[31].call_id]
        assert segments(folder) == []
        server.path = server.path.with_name(f"ledger-{fail_at}.db")
        (folder / "rejected.jsonl").unlink()
        (folder / "rejected.log").unlink()
        if not failed:
            assert fail_at > 15
            return
    pytest.fail("the batch never came to an end without the fault")


def test_a_reason_is_one_bounded_line(folder: Path) -> None:
    """What an engine says may have lines, be long, and have surrogates in it."""
    folder.mkdir()
    journal_module.reject(folder, b"{}", "1-a.jsonl:0", "refused:\nDETAIL: \ud800" + "x" * 10_000)
    journal_module.reject(folder, b"{}", "1-a.jsonl:3", "no record: torn")
    assert [(source, len(reason) <= 510) for _, source, reason in reasons(folder)] == [("1-a.jsonl:0", True), ("1-a.jsonl:3", True)]
