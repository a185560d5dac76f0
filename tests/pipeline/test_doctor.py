"""`voight doctor` of a ledger on a server, and of its journal."""

import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.cli import main
from voight_middleware.cli.findings import Finding, as_text
from voight_middleware.pipeline.ingest import Ingester
from voight_middleware.pipeline.supervisor import IngestSupervisor

from ..support.patching import Patch
from .journals import NewCall, write
from .switched_server import Connection, Server


def examined(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    """Return the exit code of `voight doctor`, and its findings by section and name."""
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
    with closing(IngestSupervisor("postgresql://h/d", place)) as delivery:
        assert delivery.run()
        _, found = examined(capsys)
        assert found["journal", "ingester"]["value"] == "a live process"
    write(place, new_call())
    code, found = examined(capsys)
    assert code == 0
    assert found["settings", "ledger"]["value"] == "postgresql://u:***@h/d (VOIGHT_LEDGER)"
    assert found["ledger", "engine"]["value"].startswith("SQLite 3.")
    assert found["ledger", "calls"]["value"] == "1"
    assert found["journal", "ingester"]["value"] == "none at the moment"
    assert re.fullmatch(r"20.*Z", found["journal", "last delivery"]["value"])
    assert re.match(r"[1-9][0-9]+ bytes of 1,000,000,000", found["journal", "room"]["value"])


def test_doctor_of_a_server_that_is_down(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the ledger says is shown once, as something to put right; beside a sidecar it is not this process's matter."""
    server.down = 'password authentication failed for user "u"'
    code, found = examined(capsys)
    assert code == 1
    assert found["ledger", "state"]["value"] == server.down
    assert sum(server.down in str(finding) for finding in found.values()) == 1
    monkeypatch.setenv("VOIGHT_INGEST", "no")
    code, found = examined(capsys)
    assert code == 0
    assert not found["ledger", "state"]["fatal"]


@pytest.mark.slow
def test_doctor_waits_for_no_server_for_ever(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str], patch: Patch, new_call: NewCall
) -> None:
    """A server that takes the connection and says nothing: after a while the rest is shown, and what is wrong."""
    patch("ANSWER_SECONDS", 0.2, within="doctor")
    write(place, new_call())
    server.going.clear()
    code, found = examined(capsys)
    assert code == 1
    assert found["ledger", "state"]["value"].startswith("no complete response within")
    assert ("journal", "room") in found


@pytest.mark.parametrize(("name", "fatal"), [("may write", True), ("may read", False)])
def test_doctor_of_a_role(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, fatal: bool
) -> None:
    """A role that may not write loses nothing yet and is to be put right; one that may not read is asked for no calls."""
    monkeypatch.setattr(Connection, "info", lambda self: [("engine", "PostgreSQL 15.4"), (name, "no: GRANT it")])
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
    last_line = as_text([Finding(**finding) for finding in found.values()]).splitlines()[-1]
    assert last_line.startswith("calls are stored, but calls were lost before; 0 to fix, ")
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
    assert found["settings", "ingest"]["value"].startswith("no: voight ingest")
