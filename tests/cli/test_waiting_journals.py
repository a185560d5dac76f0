"""Reports bring in what is still in a journal."""

import json
from pathlib import Path

import pytest

from voight_middleware.cli import main
from voight_middleware.ledger import LedgerError
from voight_middleware.pipeline.journal import Journal

from ..support.patching import Patch
from .kept_calls import Captured, keep, make_call


def leave_a_call(ledger: Path) -> None:
    """Write the journal of a process that is gone."""
    journal = Journal(Path(f"{ledger}.journal"))
    journal.append(make_call())
    journal.rotate()


def test_a_report_brings_in_what_dead_processes_left(ledger: Path, capsys: Captured) -> None:
    """Calls that are only in the journal of a process that is gone are in the report, and the ledger is made for them."""
    leave_a_call(ledger)
    assert main(["spend", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["rows"][0]["calls"] == 1
    assert err == ""


def test_a_long_drain_is_noted(ledger: Path, capsys: Captured, patch: Patch) -> None:
    """More than a thousand records brought in are noted on standard error."""
    keep(ledger, make_call())
    leave_a_call(ledger)
    patch("drain", lambda url, journal, prices: 1234)
    assert main(["spend"]) == 0
    assert "ingested 1,234 records from the journal" in capsys.readouterr().err


def test_a_drain_that_fails_does_not_stop_a_report(ledger: Path, capsys: Captured, patch: Patch) -> None:
    """Where the journal cannot be brought in, the report is of what the ledger has, with a warning."""
    keep(ledger, make_call())
    leave_a_call(ledger)

    def drain(url: str, journal: Path, prices: Path | None) -> int:
        raise LedgerError("the disk is full")

    patch("drain", drain)
    assert main(["spend", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["rows"][0]["calls"] == 1
    assert "are missing here: the disk is full" in err


def test_another_ledger_is_not_given_this_ones_journal(
    ledger: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look at a copy with `--ledger` does not move the configured journal into it; naming the configured ledger does."""
    monkeypatch.setenv("VOIGHT_JOURNAL", str(tmp_path / "journal"))
    keep(tmp_path / "copy.db", make_call())
    journal = Journal(tmp_path / "journal")
    journal.append(make_call())
    journal.rotate()
    for place, calls in [(tmp_path / "copy.db", 1), (ledger, 1)]:
        assert main(["spend", "--ledger", str(place), "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["rows"][0]["calls"] == calls
