"""What every report of spend counts, filters and shows, in each format."""

import csv
import io
import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from voight_middleware.cli import main
from voight_middleware.records.tag_values import clean_value

from .kept_calls import USD, Captured, keep, make_call

ROW = [
    *("calls", "input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "cost_usd"),
    *("unpriced_calls", "partial_calls", "estimated_calls", "errors"),
]


def test_top_shows_users_and_what_the_total_hides(ledger: Path, capsys: Captured) -> None:
    """`voight top` is a table of users with calls, tokens, cost and share, and says what is unpriced, estimated and without an owner."""
    keep(ledger, make_call(3 * USD), make_call(15_300_000_000, "u_2"), make_call(1 * USD, None), make_call(None, estimated_output=3))
    assert main(["top"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"u_1 +2 +2,469,144 +10 +14 +\$3\.00 +75\.0% █+", text)
    assert re.search(r"u_2 +1 +1,234,572 +5 +7 +\$0\.0000153 +<0\.1%", text)
    assert re.search(r"\(none\) +1 .*\$1\.00 +25\.0%", text)
    assert re.search(r"total +4 +4,938,288 +20 +28 +\$4\.00", text)
    assert "1 call of 4 without a price, not in the cost" in text
    assert "1 call with estimated tokens" in text
    assert "1 call (25.0%), $1.00 (25.0% of the cost) without an owner: voight spend --by route --where user=-" in text


def test_points_stand_below_each_other(ledger: Path, capsys: Captured) -> None:
    """In a column of money, decimal points are aligned."""
    keep(ledger, make_call(1234 * USD), make_call(USD // 2, "u_2"), make_call(7, "u_3"))
    main(["top"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "$" in line]
    assert len({line.index(".", line.index("$")) for line in lines}) == 1
    assert "$0.00000000000000700" in lines[2]


@pytest.mark.slow
def test_top_by_anything(ledger: Path, capsys: Captured) -> None:
    """`--by` takes the short names, a dimension, or an extra key; `--limit` hides the rest and says so."""
    keep(ledger, *(make_call(n * USD, tags={"tenant_id": f"t_{n}", "extra": {"feature": "f"}}) for n in range(1, 5)))
    assert main(["top", "--by", "tenant", "--limit", "2"]) == 0
    text = capsys.readouterr().out
    assert "t_4" in text
    assert "t_2" not in text
    assert "2 more rows are in the total: --limit 4" in text
    assert "every call has an owner" in text
    assert main(["top", "--by", "feature"]) == 0
    assert "100.0%" in capsys.readouterr().out


def test_spend_without_dimensions_is_the_total(ledger: Path, capsys: Captured) -> None:
    """`voight spend` is one row over all calls, in every format."""
    keep(ledger, make_call(), make_call())
    assert main(["spend"]) == 0
    assert re.search(r"total +2 .*\$2\.00", capsys.readouterr().out)
    assert main(["spend", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert list(row) == ROW
    assert (row["calls"], row["cost_usd"]) == (2, "2")


@pytest.mark.slow
def test_spend_filters(ledger: Path, capsys: Captured) -> None:
    """`--where` takes several conditions in one or several options, patterns, and `-` or `none` for no value."""
    keep(ledger, make_call(1, tags={"plan": "free"}), make_call(2, tags={"plan": "free"}, model="x"), make_call(4, None))
    for options, cost in [
        (["--where", "plan=free,model=m"], 1),
        (["--where", "plan=free", "--where", "model=x"], 2),
        (["--where", "plan=f*"], 3),
        (["--where", "user=-"], 4),
        (["--where", "user_id=none"], 4),
        (["--where", "user=nobody"], None),
        (["--since", "today"], 7),
        (["--until", "2020-01"], None),
        (["--where", "plan=free,plan=-"], 7),
        (["--where", "plan!=free"], 4),
        (["--where", "plan!=-"], 3),
        (["--where", "plan!=free,plan!=-"], None),
        (["--where", "plan!=f*,model!=x"], 4),
        (["--where", "status=priced,session=-"], 7),
    ]:
        assert main(["spend", *options, "--format", "json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["rows"]
        assert row["cost_usd"] == ("0" if cost is None else f"{Decimal(cost).scaleb(-15):f}")


@pytest.mark.slow
def test_values_with_signs_of_filters(ledger: Path, capsys: Captured) -> None:
    r"""A comma is ``\\,``, a star ``**``, the id ``-`` is ``\\-``; an id with a star in it is meant itself, where there is one."""
    ids = ["a,b", "a*b", "aXb", "-", "none", "CORP\\alice", "line\nbreak"]
    keep(ledger, *(make_call(10**number, user=clean_value(user)) for number, user in enumerate(ids)))
    for where, cost in [
        (r"user=a\,b", 1),
        ("user=a**b", 10),
        ("user=a*b", 10),
        ("user=a*", 111),
        (r"user=\-", 1_000),
        (r"user=\none", 10_000),
        (r"user=CORP\*", 100_000),
        ("user=CORP\\alice", 100_000),
        ("user=line\nbreak", 1_000_000),
        (r"user=a\,b,user=\-", 1_001),
    ]:
        assert main(["spend", "--format", "json", "--where", where]) == 0
        output = capsys.readouterr()
        assert Decimal(json.loads(output.out)["total"]["cost_usd"]) == Decimal(cost).scaleb(-15), where
        assert ("is a user_id in this ledger" in output.err) is (where == "user=a*b")
    for user in ("a*b", "line\nbreak"):
        assert main(["user", user, "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["total"]["calls"] == 1
        assert main(["erase", user, "--yes"]) == 0
        assert capsys.readouterr().out.startswith("erased: 1 call")


@pytest.mark.slow
def test_weeks_and_the_zone_of_the_environment(ledger: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A week is named by its Monday; VOIGHT_TZ is as `--tz`, which wins."""
    monday = int(datetime(2026, 11, 16, 5, tzinfo=UTC).timestamp() * 1_000_000)  # still Sunday in New York
    keep(ledger, make_call(1, occurred_at=monday), make_call(2, occurred_at=monday + 6 * 86_400_000_000))
    weeks = []
    for zone, options in (("", []), ("America/Los_Angeles", []), ("America/Los_Angeles", ["--tz", "UTC"])):
        monkeypatch.setenv("VOIGHT_TZ", zone)
        assert main(["spend", "--by", "week", "--format", "json", *options]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["tz"] == (options[-1] if options else zone or "UTC")
        weeks.append([row["week"] for row in report["rows"]])
    assert weeks == [["2026-11-16"], ["2026-11-09", "2026-11-16"], ["2026-11-16"]]
    monkeypatch.setenv("VOIGHT_TZ", "Mars/Base")
    assert main(["spend"]) == 1
    assert "VOIGHT_TZ: tz is 'Mars/Base'" in capsys.readouterr().err


def test_a_report_that_finds_nothing_says_so(ledger: Path, capsys: Captured) -> None:
    """A report without calls says so, and as CSV it is the header."""
    keep(ledger, make_call())
    assert main(["spend", "--by", "plan", "--where", "plan=x"]) == 0
    assert "No call matches" in capsys.readouterr().out
    assert main(["spend", "--by", "plan", "--where", "plan=x", "--format", "csv"]) == 0
    assert capsys.readouterr().out == ",".join(["plan", *ROW]) + "\n"


def test_spend_as_csv(ledger: Path, capsys: Captured) -> None:
    """CSV has a header and empty cells for what is unknown; a text that a spreadsheet would run gets an apostrophe."""
    users = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", 'a"b,c', "plain", None]
    keep(ledger, *(make_call(10 - n, user) for n, user in enumerate(users)))
    assert main(["spend", "--by", "user", "--format", "csv"]) == 0
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["user_id", *ROW]
    assert [row[0] for row in rows] == ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\\tx", 'a"b,c', "plain", ""]
    assert rows[0][1:] == ["1", "1234572", "5", "", "7", "0.00000000000001", "0", "0", "0", "0"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_no_value_drives_the_terminal(ledger: Path, capsys: Captured, form: str) -> None:
    """Escape sequences, line breaks, direction overrides and markup in a value are shown, never obeyed."""
    evil = "\x1b]0;owned\x07\x9b31m\r\n\u202e[bold red]x[/]\U000e0041"
    keep(ledger, make_call(model=evil, tags={"extra": {"feature": evil}}))
    assert main(["spend", "--by", "model,feature", "--where", f"model={evil}", "--format", form]) == 0
    out = capsys.readouterr().out
    assert all(char.isprintable() for char in out.replace("\n", ""))
    assert "[bold red]x[/]" in out
    if form == "json":
        assert json.loads(out)["rows"][0]["model"] == evil
