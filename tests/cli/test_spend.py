"""`voight spend` over time, and pictures of it."""

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
def days(add: Add) -> Add:
    """Two plans over three days, the dearest day in the middle."""
    add("u_1", 1, "2026-11-03T12:00", plan="free")
    add("u_1", 8, "2026-11-02T12:00", plan="free")
    add("u_2", 2, "2026-11-02T12:00", plan="pro")
    add("u_2", 3, "2026-11-01T23:30", plan="pro")
    return add


@pytest.mark.slow
def test_rows_of_times_are_in_the_order_of_time(days: Add, voight: Voight) -> None:
    """Where the first dimension is a time, the oldest comes first, and the most expensive of each; a limit keeps the newest."""
    rows = voight("spend", "--by", "day,plan", "--format", "json")["rows"]
    assert [(row["day"], row["plan"], row["cost_usd"]) for row in rows] == [
        ("2026-11-01", "pro", "3"),
        ("2026-11-02", "free", "8"),
        ("2026-11-02", "pro", "2"),
        ("2026-11-03", "free", "1"),
    ]
    assert [row["day"] for row in voight("spend", "--by", "day", "--limit", "2", "--format", "json")["rows"]] == [
        "2026-11-02",
        "2026-11-03",
    ]
    assert [row["plan"] for row in voight("spend", "--by", "plan,day", "--format", "json")["rows"]] == ["free", "pro", "pro", "free"]


def test_days_are_cut_in_the_zone_asked_for(days: Add, voight: Voight) -> None:
    """Days are cut in the zone that was asked for."""
    rows = voight("spend", "--by", "day", "--tz", "Europe/Berlin", "--format", "json")["rows"]
    assert [(row["day"], row["cost_usd"]) for row in rows] == [("2026-11-02", "13"), ("2026-11-03", "1")]


def test_an_hour_that_is_there_twice(add: Add, voight: Voight) -> None:
    """When clocks are set back, the first of the two hours comes first."""
    add("u_1", 1, "2026-10-25T01:30")
    add("u_1", 2, "2026-10-25T00:30")
    rows = voight("spend", "--by", "hour", "--tz", "Europe/Berlin", "--format", "json")["rows"]
    assert [row["hour"] for row in rows] == ["2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00"]


def test_lines_of_bars_over_time(days: Add, voight: Voight) -> None:
    """Below the table there is a line of bars for each plan, a blank where it has no calls."""
    text = voight("spend", "--by", "day,plan")
    assert re.search(r"free +  █▂  \$9\.00", text)
    assert re.search(r"pro +█▆   \$5\.00", text)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_a_picture_of_spend_is_drawn(days: Add, voight: Voight, tmp_path: Path, name: str) -> None:
    """A picture is drawn, of names that would be formulas or markup too."""
    pytest.importorskip("matplotlib")
    days("u_1", 5, plan="$\\frac{1}")
    days("u_1", 5, plan="_<script>\x1b日本")
    for command in (["spend", "--by", "day,plan"], ["plans"]):
        voight(*command, "--plot", str(tmp_path / name))
        content = (tmp_path / name).read_bytes()
        assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
        assert b"<script>" not in content


@pytest.mark.slow
@for_mistakes(
    [
        (["spend", "--by", "day", "--plot", "x.pdf"], "--plot writes FILE.png or FILE.svg, not 'x.pdf'"),
        (["spend", "--by", "plan", "--plot", "x.png"], "give --by day, or --by day,plan"),
        (["spend", "--plot", "x.png"], "give --by day, or --by day,plan"),
        (["spend", "--by", "day", "--plot", "/nowhere/x.png"], "/nowhere/x.png cannot be written: No such file"),
        (["plans", "--plot", "x"], "--plot writes FILE.png"),
    ],
)
def test_mistakes_in_spend(days: Add, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """A mistake is one sentence and exit code 1."""
    pytest.importorskip("matplotlib")
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_picture_without_matplotlib(
    days: Add, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without matplotlib the error says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["spend", "--by", "day", "--plot", str(tmp_path / "x.png")]) == 1
    assert "pip install 'voight-middleware[plot]'" in capsys.readouterr().err
