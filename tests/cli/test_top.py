"""`voight top`, as a user sees it."""

import csv
import io
import re
from collections.abc import Callable
from typing import Any

import pytest

from voight_middleware.cli import main

from ..support.patching import Patch
from .commands import for_mistakes

Add = Callable[..., None]
Voight = Callable[..., Any]
WINDOW = ("--since", "2026-11-01", "--until", "2026-11-30T00:00:00Z")


def test_top_as_a_table(add: Add, voight: Voight) -> None:
    """The table has rates, the cost of a call and the trend, says what it was compared with, and who is gone."""
    add("u_1", 3, input=60, cached=40)
    add("u_2", 1)
    add("u_1", 2, "2026-10-02T00:00")
    add("u_9", 6, "2026-10-02T00:00")
    text = voight("top", "--since", "2026-11-01", "--until", "2026-11-15")
    assert re.search(r"u_1 +1 +100 +40 +10 +\$3\.00 +75\.0% █+ +40\.0% +\$3\.00 +\+50\.0%", text)
    assert re.search(r"u_2 +1 +100 +- +10 +\$1\.00 +25\.0% █+ +- +\$1\.00 +new", text)
    assert re.search(r"total +2 .*-50\.0%", text)
    assert "trend: against the time since 2026-10-01 00:00 until 2026-10-16 00:00 UTC ($8.00)" in text
    assert "its first call was at 2026-10-02T00:00:00+00:00" in text
    assert "gone: u_9, $6.00 (75.0% of the cost) then" in text


def test_top_as_json(add: Add, voight: Voight) -> None:
    """JSON has the window, what it was compared with, the rows, and a total with its unowned part."""
    add("u_1", 3)
    add(None, 1)
    add("u_9", 6, "2026-10-02T00:00")
    report = voight("top", "--since", "2026-11-01", "--until", "2026-11-15", "--tz", "Europe/Berlin", "--format", "json")
    assert (report["since"], report["until"], report["tz"]) == ("2026-11-01T00:00:00+01:00", "2026-11-16T00:00:00+01:00", "Europe/Berlin")
    assert report["compared_with"]["since"] == "2026-10-01T00:00:00+02:00"
    assert [(row["user_id"], row["cost_usd"], row["share"], row["status"]) for row in report["rows"]] == [
        ("u_1", "3", 0.75, "new"),
        (None, "1", 0.25, "new"),
        ("u_9", "0", None, "gone"),
    ]
    total = report["total"]
    assert (total["cost_usd"], total["unowned_calls"], total["unowned_cost_usd"], total["before_cost_usd"]) == ("4", 1, "1", "6")
    assert total["trend"] == pytest.approx(-1 / 3, abs=1e-6)


def test_top_as_csv(add: Add, voight: Voight) -> None:
    """CSV has the same columns, with rows and without."""
    add("=cmd()", 3)
    header, row = csv.reader(io.StringIO(voight("top", "--format", "csv")))
    assert row[0] == "'=cmd()"
    assert dict(zip(header, row, strict=True))["cost_per_call_usd"] == "3"
    assert next(csv.reader(io.StringIO(voight("top", "--where", "user=x", "--format", "csv")))) == header


def test_top_in_a_narrow_terminal(add: Add, voight: Voight, patch: Patch) -> None:
    """Where not all columns fit, user, calls, cost, share and trend stay whole."""
    patch("_WIDTH_OF_A_PIPE", 80)
    add("u_1", 1234.5)
    text = voight("top", "--since", "2026-11-01")
    assert re.search(r"u_1 +1 +100 +10 +\$1,234\.50 +100\.0% █+ +new", text)
    assert "…" not in text


@pytest.mark.slow
@for_mistakes(
    [
        (["--by", ""], "--by needs a dimension"),
        (["--tz", "Mars"], "there is no time zone 'Mars'; write a name of the IANA database"),
        (["--tz", "../../../etc/passwd"], "there is no time zone"),
        (["--by", "user_id UNION SELECT 1"], "there is no dimension"),
        (["--where", "user_id'--=1"], "there is no dimension"),
    ],
)
def test_mistakes_in_top(add: Add, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """A mistake is one sentence and exit code 1."""
    add("u_1")
    assert main(["top", *arguments]) == 1
    out, err = capsys.readouterr()
    assert (out, message in err, err.count("\n")) == ("", True, 1)
