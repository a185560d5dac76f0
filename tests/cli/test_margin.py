"""`voight margin`, as a user sees it."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.cli import main

from .commands import for_mistakes

Add = Callable[..., None]
Voight = Callable[..., Any]


@pytest.fixture
def revenue(tmp_path: Path) -> str:
    """Revenue of u_1, and of one who makes no calls."""
    path = tmp_path / "revenue.csv"
    path.write_text("id,revenue\nu_1,20\nidle,5\n")
    return str(path)


def test_margin_as_a_table(add: Add, voight: Voight, revenue: str) -> None:
    """The table has revenue, cost, their ratio and the margin, and tells of who is only on one side."""
    add("u_1", 2, "2026-10-10T00:00")
    add("free", 3, "2026-10-10T00:00")
    add("u_1", 100, "2026-11-01T00:00")
    add(None, 1, "2026-10-10T00:00")
    text = voight("margin", "--revenue", revenue, "--month", "2026-10")
    assert re.search(r"free +1 +- +\$3\.00 +- +-\$3\.00 +no revenue", text)
    assert re.search(r"u_1 +1 +\$20\.00 +\$2\.00 +10\.0% +\+\$18\.00", text)
    assert re.search(r"idle +0 +\$5\.00 +\$0\.00 +0\.0% +\+\$5\.00 +no calls", text)
    assert re.search(r"total +3 +\$25\.00 +\$6\.00 +24\.0% +\+\$19\.00", text)
    assert "1 of 3 have calls and no revenue: they cost $3.00" in text
    assert "1 of 3 have revenue and no calls: they pay $5.00" in text
    assert "1 call ($1.00) without user_id, in the total and in no row" in text


def test_margin_as_json_and_csv(add: Add, voight: Voight, revenue: str) -> None:
    """The same as data, of the month that was asked for."""
    add("u_1", 2, "2026-10-10T00:00")
    report = voight("margin", "--revenue", revenue, "--since", "2026-10", "--until", "2026-10", "--format", "json")
    assert [(row["id"], row["margin_usd"], row["cost_to_revenue"], row["status"]) for row in report["rows"]] == [
        ("idle", "5", 0.0, "no calls"),
        ("u_1", "18", 0.1, None),
    ]
    assert (report["total"]["revenue_usd"], report["total"]["margin_usd"], report["since"]) == ("25", "23", "2026-10-01T00:00:00+00:00")
    lines = voight("margin", "--revenue", revenue, "--month", "2026-10", "--format", "csv", "--limit", "1").splitlines()
    assert lines[0].startswith("id,calls,")
    assert len(lines) == 2


@pytest.mark.slow
@for_mistakes(
    [
        (["--revenue", "/nowhere.csv"], "/nowhere.csv: cannot be read: No such file"),
        (["--revenue", "stripe"], "STRIPE_API_KEY"),
        (["--revenue", "REVENUE", "--on", "x'"], "there is no dimension"),
        (["--revenue", "REVENUE", "--on", "user,plan"], "--on takes one key"),
        (["--revenue", "REVENUE", "--month", "2026-11", "--since", "7d"], "--month is short for"),
        (["--revenue", "REVENUE", "--month", "soon"], "cannot read 'soon' as a time"),
        (["--revenue", "REVENUE", "--rate", "1.1"], "need no --rate"),
        (["--revenue", "REVENUE", "--rate", "x"], "the rate is 'x'"),
    ],
)
def test_mistakes_in_margin(add: Add, capsys: pytest.CaptureFixture[str], revenue: str, arguments: list[str], message: str) -> None:
    """A mistake is one sentence and exit code 1."""
    add("u_1")
    assert main(["margin", *(revenue if argument == "REVENUE" else argument for argument in arguments)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_mistakes_in_the_file(add: Add, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Every mistake in the file is named, and what is in it drives no terminal."""
    add("u_1")
    (tmp_path / "bad.csv").write_text("id,revenue\nu_1,\x1b[31mred\nu_1,-1\n")
    assert main(["margin", "--revenue", str(tmp_path / "bad.csv")]) == 1
    err = capsys.readouterr().err
    assert "line 2: the revenue" in err
    assert "line 3: the revenue -1 is negative" in err
    assert "\x1b" not in err


def test_formulas_are_harmless_in_margin(add: Add, voight: Voight, tmp_path: Path) -> None:
    """An id that a spreadsheet would run gets an apostrophe; a negative margin does not."""
    add("=cmd()", 2)
    (tmp_path / "r.csv").write_text("id,revenue\n=cmd(),1\n")
    line = voight("margin", "--revenue", str(tmp_path / "r.csv"), "--since", "2026-11", "--format", "csv").splitlines()[1]
    assert line.startswith("'=cmd(),1,")
    assert line.endswith(",1,2.0,-1,")


def test_margin_without_the_library(add: Add, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Stripe's library the error says what to install."""
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_1")
    monkeypatch.setitem(sys.modules, "stripe", None)
    add("u_1")
    assert main(["margin", "--revenue", "stripe"]) == 1
    assert "pip install 'voight-middleware[stripe]'" in capsys.readouterr().err
