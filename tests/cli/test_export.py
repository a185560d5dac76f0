"""`voight export`, as a user sees it."""

import json
import sys
from pathlib import Path

import pytest

from voight_middleware.cli import main

from .kept_calls import Captured, keep, make_call


def test_export_is_a_json_object_per_line(ledger: Path, tmp_path: Path, capsys: Captured) -> None:
    """The export is one JSON object per line, filtered like a report, on standard output or in a file."""
    keep(ledger, make_call(user="zoë"), make_call(None, user=None))
    assert main(["export", "--format", "jsonl", "--where", "user=*"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert (json.loads(line)["user_id"], json.loads(line)["cost_usd"]) == ("zoë", "1")
    assert main(["export", "-o", str(tmp_path / "calls.jsonl")]) == 0
    assert capsys.readouterr().out == ""
    assert [json.loads(line)["cost_status"] for line in (tmp_path / "calls.jsonl").read_text().splitlines()] == ["priced", "unpriced"]


def test_export_to_a_terminal_is_ascii(ledger: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the export is pure ASCII."""
    keep(ledger, make_call(user="zoë\x9b31m"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["export"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out)["user_id"] == "zoë\x9b31m"
