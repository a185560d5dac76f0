"""`voight release`, as a user sees it."""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from voight_middleware.cli import main

from ..support.patching import Patch
from .commands import for_mistakes

Add = Callable[..., None]
Voight = Callable[..., Any]


@pytest.fixture
def releases(add: Add) -> Add:
    """Two releases of four days each: u_1 costs a dollar a day under the first, and five under the second."""
    for day in range(1, 9):
        name, cost = ("r1", 1) if day < 5 else ("r2", 5)
        add("u_1", cost, f"2026-11-{day:02}T12:00", release=name)
    add("u_0", 0, "2026-11-01T00:00", release="r1")
    add("u_0", 0, "2026-11-05T00:00", release="r2")
    add("u_0", 0, "2026-11-09T00:00", release="r2")
    return add


@pytest.mark.slow
def test_release_as_a_table(releases: Add, voight: Voight) -> None:
    """The table has before, after, the causes and the verdicts, and says which test with which threshold was used, over which times."""
    text = voight("release", "r2")
    assert "Release r2 against r1, US dollars per day" in text
    assert re.search(r"u_1 +\$1\.14 +\$5\.00 +\+\$3\.86 +.* more +\+400\.0% more", text)
    assert "Welch's t-test over whole days, for the 2 users who cost most; 1 changed by more, at 5% false discoveries" in text
    assert "r2: 6 calls, $20.00 in 4.00 days from 2026-11-05T00:00:00+00:00" in text
    assert "split by Shapley values" in text


@pytest.mark.slow
def test_release_as_json(releases: Add, voight: Voight) -> None:
    """In JSON the causes add up to the difference to the last digit."""
    report = voight("release", "r2", "--against", "r1", "--format", "json")
    for row in (report["total"], *report["rows"]):
        causes = [Decimal(row[f"by_{name}_usd"]) for name in ("users", "calls", "tokens", "mix", "price")]
        assert sum(causes) == Decimal(row["difference_per_day_usd"])
        assert Decimal(row["difference_per_day_usd"]) == Decimal(row["after_cost_per_day_usd"]) - Decimal(row["before_cost_per_day_usd"])
    assert (report["before"]["release"], report["after"]["release"], report["after"]["unowned_calls"]) == ("r1", "r2", 0)
    assert (report["test"]["tested"], report["test"]["changed"], report["test"]["false_discoveries"]) == (2, 1, 0.05)
    assert voight("release", "r2", "--format", "csv").startswith("user_id,before_calls,")


@pytest.mark.slow
@for_mistakes(
    [
        (["r9"], "there are no calls of the release 'r9'; there are 'r2', 'r1'"),
        (["r1"], "'r1' is the first release here"),
        (["r2", "--against", "x'; DROP TABLE calls; --"], "cannot be compared with"),
        (["r2", "--where", "release=r1"], "a release has its own time"),
        (["r2", "--where", "x;--=1"], "there is no dimension"),
        (["*"], "there are no calls of the release '*'"),
        (["\x1b[2J"], r"there are no calls of the release '\x1b[2J'"),
    ],
)
def test_mistakes_in_release(releases: Add, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """A mistake is one sentence and exit code 1."""
    assert main(["release", *arguments]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "\x1b" not in err


@pytest.mark.slow
def test_no_value_drives_the_terminal_in_release(add: Add, voight: Voight) -> None:
    """Escape sequences in the names of releases and users are shown, never obeyed."""
    evil = "\x1b]0;owned\x07[bold red]x"
    add(evil, 2, "2026-11-01T00:00", release="r1")
    add(evil, 2, "2026-11-02T00:00", release=evil)
    for form in ("table", "csv"):
        text = voight("release", evil, "--format", form)
        assert all(char.isprintable() for char in text.replace("\n", ""))
        assert r"\x1b]0;owned\x07[bold red]x" in text


def test_release_of_an_empty_ledger(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    """Without calls there are no releases."""
    assert main(["release", "r1"]) == 1
    assert "there are none" in capsys.readouterr().err


def test_release_at_80_columns(add: Add, voight: Voight, patch: Patch) -> None:
    """Columns that do not fit are named."""
    patch("_WIDTH_OF_A_PIPE", 80)
    for release, at in (("r1", "01"), ("r2", "05")):
        add("u_1", 1234, f"2026-11-{at}T12:00", release=release)
    text = voight("release", "r2")
    assert "not shown in 80 columns: by" in text
