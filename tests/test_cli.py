"""The command line: every command from its arguments to its exit code, as a user sees it."""

import csv
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import voight_middleware.testing
from voight_middleware import __version__
from voight_middleware.call import Call, new_call_id
from voight_middleware.cli import doctor, main
from voight_middleware.cli.render import aligned, exact, money, percent, printable
from voight_middleware.ingest import complete
from voight_middleware.journal import Journal
from voight_middleware.ledger import LedgerError, open_ledger
from voight_middleware.pricing import PriceBook
from voight_middleware.pseudonyms import Guard
from voight_middleware.settings import Settings
from voight_middleware.tags import Tags
from voight_middleware.usage import Usage

USD = 10**15
ROW = [
    *("calls", "input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "cost_usd"),
    *("unpriced_calls", "partial_calls", "estimated_calls", "errors"),
]

Captured = pytest.CaptureFixture[str]


def make_call(cost: int | None = USD, user: str | None = "u_1", **values: Any) -> Call:
    tags = Tags(user_id=user, **values.pop("tags", {}))
    return Call(
        **{
            "call_id": new_call_id(),
            "occurred_at": time.time_ns() // 1000,
            "provider": "openai",
            "endpoint": "chat",
            "model": "m",
            **values,
        },
        tags=tags,
        usage=Usage(input=1_234_567, cache_read=5, output=7),
        cost_femto=cost,
        cost_status="unpriced" if cost is None else "priced",
    )


def keep(ledger: Path, *calls: Call) -> None:
    with closing(open_ledger(str(ledger))) as opened:
        opened.insert(calls)


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing is configured but the ledger's place."""
    for name in [name for name in os.environ if name.startswith("VOIGHT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("VOIGHT_LEDGER", str(tmp_path / "ledger.db"))
    return tmp_path / "ledger.db"


# -- reports -------------------------------------------------------------------------------------------------------------------


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
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row) == ROW
    assert (row["calls"], row["cost_usd"]) == (2, "2")


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
    ]:
        assert main(["spend", *options, "--format", "json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert row["cost_usd"] == (None if cost is None else f"{Decimal(cost).scaleb(-15):f}")


def test_nothing_found(ledger: Path, capsys: Captured) -> None:
    """A report without calls says so, and as CSV it is the header."""
    keep(ledger, make_call())
    assert main(["spend", "--by", "plan", "--where", "plan=x"]) == 0
    assert "No call matches" in capsys.readouterr().out
    assert main(["spend", "--by", "plan", "--where", "plan=x", "--format", "csv"]) == 0
    assert capsys.readouterr().out == ",".join(["plan", *ROW]) + "\n"


def test_csv(ledger: Path, capsys: Captured) -> None:
    """CSV has a header and empty cells for what is unknown; a text that a spreadsheet would run gets an apostrophe."""
    users = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", 'a"b,c', "plain", None]
    keep(ledger, *(make_call(10 - n, user) for n, user in enumerate(users)))
    assert main(["spend", "--by", "user", "--format", "csv"]) == 0
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["user_id", *ROW]
    assert [row[0] for row in rows] == ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\\tx", 'a"b,c', "plain", ""]
    assert rows[0][1:] == ["1", "1234572", "5", "", "7", "0.00000000000001", "0", "0", "0", "0"]


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
        assert json.loads(out)[0]["model"] == evil


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["spend", "--by", "color"], "there is no dimension 'color'; choose from user_id, plan"),
        (["spend", "--by", "user_id; DROP TABLE calls"], "there is no dimension"),
        (["top", "--where", "x'); DROP TABLE calls; --=1"], "there is no dimension"),
        (["top", "--where", "plan"], "cannot read the filter 'plan'; write --where key=value"),
        (["top", "--where", "=x"], "cannot read the filter"),
        (["top", "--where", "user=a,user_id=b"], "the filter on user_id is given twice"),
        (["top", "--where", "user=\udcff"], "not text in the encoding"),
        (["top", "--since", "soon"], "cannot read 'soon' as a time; write it like one of: today, yesterday"),
        (["top", "--since", "today", "--until", "yesterday"], "ends before it begins"),
        (["spend", "--ledger", "mysql://db"], "postgresql://"),
        (["spend", "--ledger", ":memory:"], "the ledger needs a file"),
        (["export", "-o", "/nowhere/calls.jsonl"], "/nowhere/calls.jsonl cannot be written: No such file"),
        (["explain", "01234567"], "there is no call '01234567' in this ledger; voight export shows their ids"),
        (["reprice", "--since", "soon"], "cannot read 'soon' as a time"),
        (["reprice", "--since", "today", "--where", "color=red"], "there is no dimension 'color'"),
        (["reprice", "--since", "today", "--prices", "/nowhere.toml"], "your prices cannot be used: /nowhere.toml: cannot be read"),
        (["prices", "show", "x", "--provider", "\x1b[31mred"], r"there is no price for 'x' of \x1b[31mred"),
        (["prices", "show", "x", "--at", "soon"], "cannot read 'soon' as a time"),
        (["spend", "--by", "\x1b[31mred"], r"there is no dimension '\x1b[31mred'"),
    ],
)
def test_errors_are_for_people(ledger: Path, capsys: Captured, arguments: list[str], message: str) -> None:
    """A mistake is one sentence on standard error and exit code 1, and harms nothing."""
    keep(ledger, make_call())
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("voight: ")
    assert message in err
    assert "\x1b" not in err
    assert main(["spend", "--format", "json"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["top", "--limit", "0"], ["top", "--limit", "many"], ["spend", "--format", "xml"], ["reprice"], ["prices"], ["explain"]],
)
def test_wrong_usage(capsys: Captured, arguments: list[str]) -> None:
    """What argparse cannot read exits with 2."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: voight" in capsys.readouterr().err


def test_no_command(capsys: Captured) -> None:
    """`voight` alone shows the help, and exits with 2."""
    assert main([]) == 2
    assert "voight demo" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["top"],
        ["spend"],
        ["export"],
        ["reprice"],
        ["explain"],
        ["prices", "show"],
        ["prices", "check"],
        ["events"],
        ["ingest"],
        ["doctor"],
        ["demo"],
    ],
)
def test_help_teaches(capsys: Captured, arguments: list[str]) -> None:
    """The help of every command says what it does, by examples that its own parser reads."""
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert arguments == ["demo"] or f"\n  voight {' '.join(arguments)}".rstrip() in text


def test_version(capsys: Captured) -> None:
    """`--version` names the distribution and its version."""
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"voight-middleware {__version__}\n"


def test_no_ledger_yet(ledger: Path, capsys: Captured) -> None:
    """Without a ledger, a report says that there is none yet, and makes none."""
    assert main(["top"]) == 1
    assert f"there is no ledger at {ledger} yet" in capsys.readouterr().err
    assert list(ledger.parent.iterdir()) == []


@pytest.mark.parametrize("command", ["top", "spend", "export"])
def test_a_foreign_file(ledger: Path, capsys: Captured, command: str) -> None:
    """A file that is no ledger is refused by every report."""
    ledger.write_text("Dear diary, " * 100)
    assert main([command]) == 1
    assert "no SQLite file" in capsys.readouterr().err


def test_without_rich(ledger: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rich a table is refused with what to install; JSON, CSV, the export and the doctor work."""
    keep(ledger, make_call())
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main(["top"]) == 1
    assert "pip install 'voight-middleware[cli]'" in capsys.readouterr().err
    for arguments in (["top", "--format", "json"], ["top", "--format", "csv"], ["export"], ["doctor"]):
        assert main(arguments) == 0


def test_a_reader_that_stops_reading(ledger: Path) -> None:
    """`voight export | head` ends quietly."""
    keep(ledger, *(make_call() for _ in range(2000)))
    script = "import sys; from voight_middleware.cli import main; sys.exit(main())"
    with subprocess.Popen([sys.executable, "-c", script, "export"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_a_terminal_without_unicode(ledger: Path) -> None:
    """A terminal that cannot show a name gets it escaped, not a traceback."""
    keep(ledger, make_call(user="zoë"))
    script = "import sys; from voight_middleware.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, "top"], env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=True
    )
    assert b"zo\\xeb" in done.stdout


# -- the journal ---------------------------------------------------------------------------------------------------------------


def test_a_report_brings_in_what_dead_processes_left(ledger: Path, capsys: Captured) -> None:
    """Calls that are only in the journal of a process that is gone are in the report, and the ledger is made for them."""
    journal = Journal(Path(f"{ledger}.journal"))
    journal.append(make_call())
    journal.rotate()
    assert main(["spend", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["calls"] == 1
    assert err == ""


def test_a_long_drain_is_noted(ledger: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a thousand records brought in are noted on standard error."""
    keep(ledger, make_call())
    monkeypatch.setattr("voight_middleware.ingest.drain", lambda url, journal, prices: 1234)
    assert main(["spend"]) == 0
    assert "brought in 1,234 records from the journal" in capsys.readouterr().err


def test_a_drain_that_fails_does_not_stop_a_report(ledger: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the journal cannot be brought in, the report is of what the ledger has, with a warning."""
    keep(ledger, make_call())

    def drain(url: str, journal: Path, prices: Path | None) -> int:
        raise LedgerError("the disk is full")

    monkeypatch.setattr("voight_middleware.ingest.drain", drain)
    assert main(["spend", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["calls"] == 1
    assert "is missing here: the disk is full" in err


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
        assert json.loads(capsys.readouterr().out)[0]["calls"] == calls


# -- export --------------------------------------------------------------------------------------------------------------------


def test_export(ledger: Path, tmp_path: Path, capsys: Captured) -> None:
    """The export is one JSON object per line, filtered like a report, on standard output or in a file."""
    keep(ledger, make_call(user="zoë"), make_call(None, user=None))
    assert main(["export", "--format", "jsonl", "--where", "user=*"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert (json.loads(line)["user_id"], json.loads(line)["cost_usd"]) == ("zoë", "1")
    assert main(["export", "-o", str(tmp_path / "calls.jsonl")]) == 0
    assert capsys.readouterr().out == ""
    assert [json.loads(line)["cost_status"] for line in (tmp_path / "calls.jsonl").read_text().splitlines()] == ["priced", "unpriced"]


def test_export_to_a_terminal(ledger: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the export is pure ASCII."""
    keep(ledger, make_call(user="zoë\x9b31m"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["export"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out)["user_id"] == "zoë\x9b31m"


# -- prices --------------------------------------------------------------------------------------------------------------------

NOON = 1_793_534_400_000_000  # 2026-11-01 12:00 UTC
HALF = """\
[[price]]
provider = "openai"
model = "gpt-5-nano"
discount = "50%"

[[price]]
provider = "openai"
model = "house-model"
input = 2
output = 6
"""


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    """A file of one's own prices."""
    path = tmp_path / "prices.toml"
    path.write_text(HALF)
    return path


def keep_priced(ledger: Path, user: str | None = "u_1", **values: Any) -> Call:
    """A call as the ingester keeps it, priced by the list."""
    call = Call(
        **{
            "call_id": new_call_id(),
            "occurred_at": NOON,
            "provider": "openai",
            "endpoint": "chat",
            "model": "gpt-5-nano",
            "raw_usage": '{"prompt_tokens":1000000,"completion_tokens":0}',
            "tags": Tags(user_id=user),
            **values,
        }
    )
    complete(call, PriceBook())
    keep(ledger, call)
    return call


def test_reprice(ledger: Path, prices: Path, capsys: Captured) -> None:
    """The dry run shows what would change, by user and model; the real one shows the same and does it, once; and back."""
    keep_priced(ledger)
    keep_priced(ledger, "u_2", model="house-model")
    keep_priced(ledger, "u_2", model="gpt-4.1")
    options = ["reprice", "--since", "2026-11-01", "--prices", str(prices)]
    assert main([*options, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Repricing, dry run · since 2026-11-01 00:00 UTC\n")
    first, second, total = [line.split() for line in text.splitlines() if "$" in line]
    assert first == ["u_2", "house-model", "1", "1", "unpriced", "$2.00", "+$2.00"]
    assert second == ["u_1", "gpt-5-nano", "1", "1", "$0.0500", "$0.0250", "-$0.0250"]
    assert total == ["total", "3", "2", "$2.05", "$4.02", "+$1.98"]
    assert "2 calls would get a new price; nothing was written: run it without --dry-run" in text
    assert "without a price: 1 call before, 0 after" in text
    assert main(options) == 0
    again = capsys.readouterr().out
    assert [line.split() for line in again.splitlines() if "$" in line] == [first, second, total]
    assert "2 calls got a new price" in again
    assert main(options) == 0
    assert "3 calls looked at: no price has changed" in capsys.readouterr().out
    assert main(["spend", "--format", "json"]) == main(["spend", "--format", "json", "--as-priced"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r'"cost_usd": "(.*)"', out) == ["4.025", "2.05"]
    assert main(["reprice", "--since", "2026-12-01"]) == 0
    assert "No call matches" in capsys.readouterr().out


def test_reprice_as_data(ledger: Path, prices: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON has the totals and the rows, CSV the rows, with amounts to the last digit; VOIGHT_PRICES is used where nothing is said."""
    monkeypatch.setenv("VOIGHT_PRICES", str(prices))
    keep(ledger, make_call(None))
    keep_priced(ledger, "=1+1")
    assert main(["reprice", "--since", "2026-11", "--where", "model=gpt-*", "--dry-run", "--format", "csv"]) == 0
    header, row = csv.reader(io.StringIO(capsys.readouterr().out))
    columns = ["calls", "changed", "before_usd", "after_usd", "difference_usd"]
    counts = ["unpriced_before", "unpriced_after", "partial_before", "partial_after"]
    assert header == ["user_id", "model", *columns, *counts]
    assert row == ["'=1+1", "gpt-5-nano", "1", "1", "0.05", "0.025", "-0.025", "0", "0", "0", "0"]
    assert main(["reprice", "--since", "2026-11", "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (row,) = report.pop("rows")
    assert list(row) == header
    assert (row["user_id"], row["before_usd"], row["after_usd"]) == ("=1+1", "0.05", "0.025")
    assert report.pop("total")["difference_usd"] == "-0.025"
    assert report == {"dry_run": False, "written": 1, "passed_over": 1}


def test_as_priced(ledger: Path, prices: Path, capsys: Captured) -> None:
    """`--as-priced` is what reports and the export said before a repricing, and the table says which figures it has."""
    for number in range(5):
        keep_priced(ledger, f"u_{number % 2}", raw_usage=f'{{"prompt_tokens":{10**number},"completion_tokens":7}}')
    keep_priced(ledger, model="house-model")
    commands = [["top", "--format", "csv"], ["spend", "--by", "model,cost_status", "--format", "json"], ["export"], ["top"]]
    before = [(main(command), capsys.readouterr().out) for command in commands]
    assert main(["reprice", "--since", "2026-11-01", "--prices", str(prices)]) == 0
    capsys.readouterr()
    now = [(main(command), capsys.readouterr().out) for command in commands]
    then = [(main([*command, "--as-priced"]), capsys.readouterr().out) for command in commands]
    assert all(one != other for one, other in zip(now, before, strict=True))
    assert then[:3] == before[:3]
    assert then[3][1] == before[3][1].replace("Spend by user_id", "Spend by user_id, as first priced")


def test_explain(ledger: Path, prices: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who, what and when; each count times its price; the sum; where the prices are from; and what it cost before."""
    call = keep_priced(
        ledger,
        call_id="019a8f3b52c77d41a7e1c2f3d4e5f607",
        requested_model="gpt-5-nano",
        model="gpt-5-nano-2025-08-07",
        host="api.openai.com",
        service_tier="flex",
        tags=Tags(user_id="u_1", plan="pro", tenant_id="t_1"),
        raw_usage='{"prompt_tokens":10000,"completion_tokens":2500,"prompt_tokens_details":{"cached_tokens":4096}}',
        tool_calls={"web_search": 2},
    )
    record = json.loads(call.price or "")
    golden = f"""\
call 019a8f3b52c77d41a7e1c2f3d4e5f607
  user      u_1, plan pro, tenant t_1
  model     gpt-5-nano-2025-08-07 (gpt-5-nano was asked for) of openai, api.openai.com
  time      2026-11-01 12:00:00.000000 UTC
  endpoint  chat
  tier      flex
  outcome   ok

gpt-5-nano of openai, genai-prices {record["version"]} (data {record["data"]}), service_tier=flex
  input       5,904 x $0.025 / 1M tokens  = $0.0001476
  cache_read  4,096 x $0.0025 / 1M tokens = $0.00001024
  output      2,500 x $0.20 / 1M tokens   = $0.0005
  web_search      2 x $0.01 / call        = $0.02
  sum                                     = $0.02065784
cost $0.02065784, {call.cost_status}
"""
    monkeypatch.setitem(sys.modules, "genai_prices", None)  # nothing is looked up in the price book
    assert main(["explain", "019a8f3b52c7"]) == 0
    assert capsys.readouterr().out == golden + "".join(f"  {reason}\n" for reason in call.cost_reasons)


def test_explain_what_came_before(ledger: Path, prices: Path, capsys: Captured) -> None:
    """Earlier prices are listed with the time when they were replaced, in text and as data."""
    call = keep_priced(ledger, model="house-model")
    for options in ([], ["--prices", str(prices)], []):
        assert main(["reprice", "--since", "2026-11-01", *options]) == 0
    capsys.readouterr()
    assert main(["explain", call.call_id]) == 0
    text = capsys.readouterr().out
    assert "house-model, without a price\n  input  1,000,000 x no price\ncost unknown, unpriced\n  no price for model" in text
    one, two = text.splitlines()[-2:]
    assert re.fullmatch(r"  version 1, until 20\d\d-.* UTC: unknown, unpriced \(no price for model 'house-model' of openai\)", one)
    assert re.fullmatch(r"  version 2, until 20\d\d-.* UTC: \$2\.00, priced", two)
    assert main(["explain", call.call_id, "--format", "json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["call_id"], value["cost_usd"], value["cost_status"], value["sum_usd"]) == (call.call_id, None, "unpriced", None)
    assert [(price["version"], price["cost_usd"]) for price in value["former"]] == [(1, None), (2, "2")]


KINDS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "components": (
        {
            "provider": "anthropic",
            "endpoint": "messages",
            "model": "claude-sonnet-4-6",
            "raw_usage": '{"iterations":[{"input_tokens":7},{"model":"claude-opus-4-6","output_tokens":5}],'
            '"server_tool_use":{"web_fetch_requests":3}}',
        },
        [
            "claude-sonnet-4-6 of anthropic, genai-prices ",
            "  input      7 x $3.00 / 1M tokens  = $0.000021\n  web_fetch  3 x free of charge\nclaude-opus-4-6 of anthropic",
            "  sum                               = $0.000146\ncost $0.000146, priced\n",
        ],
    ),
    "partial": (
        {"tool_calls": {"seance": 1}},
        [
            "1 x no price\n  sum                                   = $0.05\n",
            "cost $0.05, partial\n  no price for seance\n",
        ],
    ),
    "batch": ({"batch": True}, ["  tier      standard, batch\n", ", processing=batch\n", "1,000,000 x $0.025 / 1M tokens = $0.025"]),
    "estimated": (
        {"raw_usage": None, "estimated_output": 20, "outcome": "aborted"},
        ["  outcome   aborted\n", "  tokens    estimated", "  output  20 x $0.40 / 1M tokens = $0.000008\n"],
    ),
    "free": ({"endpoint": "moderations", "raw_usage": None}, ["cost $0.00, priced\n  moderations is free\n"]),
    "refused": (
        {"raw_usage": None, "outcome": "error", "http_status": 429, "error": "RateLimitError"},
        ["  outcome   error (RateLimitError)\n", "cost $0.00, priced\n  not billed: HTTP 429\n"],
    ),
    "reported": (
        {"provider": "openrouter", "model": "openai/gpt-5-nano", "raw_usage": '{"prompt_tokens":10,"cost":0.0000123}'},
        ["  sum                           = $0.0000005\ncost $0.0000123, priced\n  as openrouter reported it; ours comes to $0.0000005\n"],
    ),
    "reported only": (
        {"provider": "openrouter", "model": "nobody/knows", "raw_usage": '{"prompt_tokens":10,"cost":0.0000123}'},
        ["  input  10 x no price\ncost $0.0000123, priced\n  as openrouter reported it; no price of ours\n"],
    ),
    "by the hour": (
        {"provider": "groq", "endpoint": "transcriptions", "model": "whisper-large-v3", "raw_usage": '{"seconds":40}'},
        ["  seconds  40 x $0.111 / hour = $0.001233333333333333\n"],
    ),
    "a rule": (
        {"endpoint": "images", "model": "dall-e-3", "raw_usage": '{"images":2,"size":"1024x1024"}'},
        [
            "dall-e-3 of openai, rules\n  rule openai-dall-e-3-1024x1024: https://developers.openai.com/api/docs/models/dall-e-3\n",
            "  images  2 x $0.04 / picture = $0.08\n",
        ],
    ),
    "without an owner": ({"tags": Tags()}, ["  user      (none)\n"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_explain_every_kind(ledger: Path, capsys: Captured, kind: str) -> None:
    """Every kind of call is explained, and its sum is its cost."""
    values, parts = KINDS[kind]
    call = keep_priced(ledger, **values)
    assert main(["explain", call.call_id]) == 0
    text = capsys.readouterr().out
    for part in parts:
        assert part in text
    assert "!" not in text
    assert main(["explain", call.call_id, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["sum_agrees"] is True


def test_explain_says_what_is_wrong(ledger: Path, capsys: Captured) -> None:
    """A stored figure that the stored prices do not come to is named, as is one without prices, and nothing drives the terminal."""
    call = keep_priced(ledger, call_id="changed-by-hand")
    keep(ledger, make_call(7, call_id="without-prices", model="\x1b[31mred"))
    with closing(sqlite3.connect(ledger)) as db, db:
        db.execute("UPDATE calls SET cost_femto = cost_femto + 1 WHERE call_id = ?", (call.call_id,))
    assert main(["explain", call.call_id]) == 0
    assert "! the sum does not equal what is stored: $0.05 is not $0.050000000000001" in capsys.readouterr().out
    assert main(["explain", "without-prices"]) == 0
    text = capsys.readouterr().out
    assert "! no unit prices are stored with this call: its $0.000000000000007 cannot be computed again" in text
    assert "\x1b" not in text


def test_prices_show(prices: Path, capsys: Captured) -> None:
    """The unit prices of a model at a time and under some terms, with their source, rules and doubts."""
    assert main(["prices", "show", "gpt-5.4-pro", "--at", "2026-11-01"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("gpt-5.4-pro of openai, 2026-11-01 00:00 UTC\n")
    assert re.search(r"  input +\$30\.00 / 1M tokens\n  output +\$180\.00 / 1M tokens\n(.*\n)+more than 272,000 input tokens\n", text)
    assert re.search(r"from genai-prices [0-9.]+ \(data [0-9a-f]{16}\), as gpt-5\.4-pro\n", text)
    assert main(["prices", "show", "gpt-5-nano", "--tier", "flex", "--prices", str(prices)]) == 0
    text = capsys.readouterr().out
    assert "UTC, tier flex\n" in text
    assert re.search(r"  input +\$0\.0125 / 1M tokens\n", text)
    assert f"rule override-prices.toml:1: {prices}:1\n" in text
    assert main(["prices", "show", "gpt-5-nano", "--tier", "golden"]) == 0
    assert "partial: service_tier 'golden' has no price of its own" in capsys.readouterr().out
    assert main(["prices", "show", "whisper-large-v3", "--provider", "groq"]) == 0
    assert "  seconds  $0.111 / hour, at least 10 seconds\n" in capsys.readouterr().out


def test_prices_show_as_data(capsys: Captured) -> None:
    """JSON has US dollars for one unit, as decimal strings."""
    assert main(["prices", "show", "claude-opus-4-6", "--batch", "--at", "2026-11-01T09:00:00Z", "--format", "json"]) == 0
    value = json.loads(capsys.readouterr().out)
    (rates,) = value.pop("rates")
    assert value == {
        "model": "claude-opus-4-6",
        "provider": "anthropic",
        "host": None,
        "at": "2026-11-01T09:00:00Z",
        "terms": {"batch": "yes"},
    }
    assert (rates["unit_usd"]["input"], rates["unit_usd"]["output"], rates["above_input_tokens"]) == ("0.0000025", "0.0000125", 0)
    assert rates["source"] == "genai-prices"


def test_prices_show_of_an_unknown_model(prices: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that nobody has is said so; one of one's own is found by its file."""
    assert main(["prices", "show", "house-model"]) == 1
    assert "there is no price for 'house-model' of openai, anthropic, " in capsys.readouterr().err
    monkeypatch.setenv("VOIGHT_PRICES", str(prices))
    assert main(["prices", "show", "house-model"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"  input +\$2\.00 / 1M tokens\n  output +\$6\.00 / 1M tokens\n", text)
    assert "from rules, as house-model\nrule override-prices.toml:6: " in text


def test_prices_check(prices: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much is in the file; or every mistake with its line, and exit code 1; or where the file would be."""
    assert main(["prices", "check"]) == 0
    assert capsys.readouterr().out == "no prices of your own: set VOIGHT_PRICES to the path of a TOML file, or give --prices FILE\n"
    assert main(["prices", "check", "--prices", str(prices)]) == 0
    assert capsys.readouterr().out == f"{prices} (--prices): 2 prices, 0 deployments\n"
    prices.write_text(HALF.replace("input = 2", "input = -2") + "tax = 1\n")
    monkeypatch.setenv("VOIGHT_PRICES", str(prices))
    assert main(["prices", "check"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    *mistakes, verdict = err.splitlines()
    assert [re.sub(": (there is no key 'tax'|input must be US dollars).*", r": \1", line) for line in sorted(mistakes)] == [
        f"{prices}:11: there is no key 'tax'",
        f"{prices}:9: input must be US dollars",
    ]
    assert verdict == f"{prices} (VOIGHT_PRICES): 2 mistakes, so nothing of it is used"
    assert main(["prices", "check", "--prices", "/nowhere.toml"]) == 1
    assert "/nowhere.toml: cannot be read: No such file or directory" in capsys.readouterr().err


# -- demo ----------------------------------------------------------------------------------------------------------------------


def test_demo_is_handed_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """`voight demo` hands its options on, and its answer is the exit code."""
    seen: list[Any] = []

    def run(args: Any) -> int:
        seen.append(args)
        return 7

    stub = SimpleNamespace(main=run)
    monkeypatch.setitem(sys.modules, "voight_middleware.testing.demo", stub)
    monkeypatch.setattr(voight_middleware.testing, "demo", stub, raising=False)
    assert main(["demo", "--requests", "12", "--keep"]) == 7
    assert (seen[0].requests, seen[0].keep) == (12, True)


# -- personal data -------------------------------------------------------------------------------------------------------------

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def alice(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of Alice's, kept by an old key, by the newest one, inside another value, and as she is; and what the ledger calls her."""
    settings = [Settings.from_environment(pseudonym_key=key) for key in (f"v1:{SECRET}", f"v2:{SECRET[::-1]}", None)]
    monkeypatch.setenv("VOIGHT_PSEUDONYM_KEY", f"v2:{SECRET[::-1]},v1:{SECRET}")
    guards = [Guard(one) for one in settings]
    names = [str(guard(Tags(user_id="alice@example.com")).user_id) for guard in guards]
    within = str(guards[1](Tags(user_id="auth0|alice@example.com")).user_id)
    users = [*names, within, "alice@example.com", str(guards[1](Tags(user_id="bob@example.com")).user_id), "u_7"]
    keep(ledger, *(make_call(10**number, user) for number, user in enumerate(users)))
    return names


@pytest.mark.usefixtures("alice")
def test_her_address_finds_what_is_kept_under_her_pseudonyms(capsys: Captured) -> None:
    """`--where` looks for all pseudonyms and the address itself; another user, another spelling and a pattern find what they say."""
    for where, cost in [
        ("user=alice@example.com", 11111),
        ("user_id=Alice <ALICE@example.com>", 1111),
        ("user=auth0|alice@example.com", 1000),
        ("user=bob@example.com", 100000),
        ("user=carol@example.com", None),
        ("user=alice@*", 10000),
        ("user=u_7", 1000000),
        ("user=alice@example.com,model=m", 11111),
        ("model=alice@example.com", None),
    ]:
        assert main(["spend", "--format", "json", "--where", where]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert row["cost_usd"] == (None if cost is None else f"{Decimal(cost) / USD:f}"), where


@pytest.mark.usefixtures("alice")
def test_every_report_finds_her(capsys: Captured) -> None:
    """`top`, `export` and `reprice` take the same filter, and a table's title shows what was asked for."""
    assert main(["top", "--where", "user=alice@example.com"]) == 0
    text = capsys.readouterr().out
    assert "user_id=alice@example.com" in text.splitlines()[0]
    assert text.count("email:v") == 4
    assert main(["export", "--where", "user=alice@example.com"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert main(["reprice", "--since", "today", "--dry-run", "--format", "json", "--where", "user=alice@example.com"]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["calls"] == 5


def test_what_the_ledger_calls_her(alice: list[str], capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """`voight pseudonym` says it, by the newest key first; an id has no other name, and the policy is heeded."""
    assert main(["pseudonym", "Alice@example.com"]) == 0
    assert capsys.readouterr().out.split() == [alice[1], alice[0], alice[2]]
    for policy, value, name in [
        ("pseudonym", "u_7", "u_7"),
        ("allow", "a@example.com", "a@example.com"),
        ("redact", "a@b.cd", "redacted:email"),
    ]:
        monkeypatch.setenv("VOIGHT_PII", policy)
        assert main(["pseudonym", value]) == 0
        assert capsys.readouterr().out == f"{name}\n"


def test_without_a_key_she_is_not_found_in_silence(ledger: Path, capsys: Captured) -> None:
    """The command line of another account may lack the application's key: it says so, and makes none."""
    keep(ledger, make_call())
    assert main(["spend", "--format", "json", "--where", "user=alice@example.com"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)[0]["calls"] == 0
    assert "VOIGHT_PSEUDONYM_KEY is not set here" in output.err
    assert main(["pseudonym", "alice@example.com"]) == 1
    assert "VOIGHT_PSEUDONYM_KEY is not set here" in capsys.readouterr().err
    assert not Path(f"{ledger}.key").exists()
    Path(f"{ledger}.key").write_text("spoiled")
    assert main(["spend", "--where", "user=alice@example.com"]) == 1
    assert f"{ledger}.key" in capsys.readouterr().err


# -- doctor --------------------------------------------------------------------------------------------------------------------


def findings(capsys: Captured, *arguments: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    code = main(["doctor", "--format", "json", *arguments])
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == (code == 0)
    return code, {(finding["section"], finding["name"]): finding for finding in report["findings"]}


def test_doctor_of_a_machine_without_calls(ledger: Path, capsys: Captured) -> None:
    """On a new machine nothing is wrong: the doctor names the places and makes nothing."""
    code, found = findings(capsys)
    assert code == 0
    assert found["settings", "ledger"]["value"] == f"sqlite:///{ledger} (VOIGHT_LEDGER)"
    assert found["settings", "journal"]["value"] == f"{ledger}.journal (default)"
    assert found["ledger", "calls"]["value"].startswith("no ledger yet")
    assert "covered by wrap() and instrument()" in found["installed", "openai"]["value"]
    assert list(ledger.parent.iterdir()) == []


def test_doctor_of_the_default_place(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any setting the ledger is in the state folder, and the doctor says that this is the default."""
    monkeypatch.delenv("VOIGHT_LEDGER")
    _, found = findings(capsys)
    assert found["settings", "ledger"]["value"] == f"sqlite:///{tmp_path}/state/voight/ledger.db (default)"
    _, found = findings(capsys, "--ledger", str(tmp_path / "x.db"))
    assert found["settings", "ledger"]["value"] == f"sqlite:///{tmp_path}/x.db (--ledger)"


def test_doctor_of_a_ledger_in_use(ledger: Path, capsys: Captured) -> None:
    """With calls the doctor counts them, and says how many have no price and no owner, and what to ask next."""
    keep(ledger, make_call(), make_call(None), make_call(user=None), make_call(USD, occurred_at=1_793_534_400_000_000))
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"✓ calls +4\n", text)
    assert re.search(r"✓ oldest, newest +2026-11-01 12:00 UTC, 20", text)
    assert re.search(r"! without a price +1 calls\n +→ voight spend --by provider,model", text)
    assert re.search(r"! without an owner +1 calls \(.*of the cost\)\n +→ voight spend --by route", text)
    assert "calls are kept; 0 to put right, 2 to look at" in text


def test_doctor_of_a_journal(ledger: Path, capsys: Captured) -> None:
    """Waiting segments are listed with their bytes and whether their process lives; rejected lines are counted."""
    folder = Path(f"{ledger}.journal")
    living, dead = Journal(folder), Journal(folder)
    living.append(make_call())
    dead.append(make_call())
    dead.rotate()
    (folder / "rejected.jsonl").write_text("{torn\n{torn\n")
    code, found = findings(capsys)
    values = [finding["value"] for (section, name), finding in found.items() if section == "journal" and name.endswith(".jsonl")]
    assert code == 0
    assert sorted(value.partition("waiting, ")[2][:15] for value in values) == ["of a living pro", "of a process th"]
    assert all(re.match(r"[1-9][0-9]+ bytes", value) for value in values)
    assert found["journal", "rejected lines"]["value"] == "2"
    assert "rejected.jsonl" in found["journal", "rejected lines"]["advice"]
    living.rotate()


def test_doctor_when_nothing_can_be_kept(tmp_path: Path, capsys: Captured) -> None:
    """A ledger and a journal in a place that cannot be written are named, with what to do, and the exit code is 1."""
    (tmp_path / "file").write_text("")
    code, found = findings(capsys, "--ledger", str(tmp_path / "file" / "ledger.db"))
    assert code == 1
    assert found["ledger", "writable"]["fatal"]
    assert found["journal", "writable"]["fatal"]
    assert f"make {tmp_path / 'file'} writable, or choose another place" in found["ledger", "writable"]["advice"]
    assert main(["doctor", "--ledger", str(tmp_path / "file" / "ledger.db")]) == 1
    assert "calls are lost or not stored; 2 to put right" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["Dear diary, " * 100, None])
def test_doctor_of_a_ledger_that_is_none(ledger: Path, capsys: Captured, content: str | None) -> None:
    """A foreign file or a folder in the ledger's place is a problem with exit code 1, and the rest is still examined."""
    if content is None:
        ledger.mkdir()
    else:
        ledger.write_text(content)
    code, found = findings(capsys)
    assert code == 1
    assert found["ledger", "state"]["fatal"]
    assert ("journal", "rejected lines") in found


def test_doctor_when_switched_off(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """VOIGHT_ENABLED=false is a problem that names the variable."""
    monkeypatch.setenv("VOIGHT_ENABLED", "false")
    code, found = findings(capsys)
    assert code == 1
    assert "unset VOIGHT_ENABLED" in found["settings", "enabled"]["advice"]


def test_doctor_of_prices(prices: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of one's own prices is counted; with a mistake in it calls wait, and the doctor says what shows the mistakes."""
    _, found = findings(capsys)
    assert found["settings", "prices"]["value"] == "none of your own (default)"
    monkeypatch.setenv("VOIGHT_PRICES", str(prices))
    code, found = findings(capsys)
    assert (code, found["settings", "prices"]["value"]) == (0, f"{prices}, 2 of your own (VOIGHT_PRICES)")
    prices.write_text("[[price]]")
    code, found = findings(capsys)
    assert (code, found["settings", "prices"]["fatal"]) == (1, True)
    assert "voight prices check" in found["settings", "prices"]["advice"]


def test_doctor_of_personal_data(ledger: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy, where the key is and its versions; never the key."""
    _, found = findings(capsys)
    assert found["settings", "pii"]["value"] == "pseudonym (default)"
    assert found["settings", "pseudonym key"]["value"] == f"none yet: {ledger}.key is made when personal data first occurs"
    Path(f"{ledger}.key").write_text(f"v0:{SECRET}")
    Path(f"{ledger}.key").chmod(0o644)
    _, found = findings(capsys)
    assert found["settings", "pseudonym key"]["value"] == f"v0, in {ledger}.key"
    assert found["settings", "pseudonym key"]["advice"] == f"chmod 600 {ledger}.key"
    monkeypatch.setenv("VOIGHT_PII", "user_id=allow")
    monkeypatch.setenv("VOIGHT_PSEUDONYM_KEY", f"v2:{SECRET[::-1]},v1:{SECRET}")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "user_id=allow, *=pseudonym (VOIGHT_PII)" in text
    assert "v2; found by too: v1, v0 (VOIGHT_PSEUDONYM_KEY)" in text
    assert SECRET not in text
    assert SECRET[::-1] not in text
    monkeypatch.setenv("VOIGHT_PII", "redact")
    _, found = findings(capsys)
    assert ("settings", "pseudonym key") not in found


def test_doctor_of_a_key_that_is_missing(ledger: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger on a server without a key, and a key that cannot be read, are something to look at."""
    _, found = findings(capsys, "--ledger", "postgresql://h/d")
    assert "VOIGHT_PSEUDONYM_KEY on every host" in found["settings", "pseudonym key"]["advice"]
    Path(f"{ledger}.key").mkdir()
    code, found = findings(capsys)
    assert code == 0
    assert f"{ledger}.key cannot be read" in found["settings", "pseudonym key"]["value"]


def test_doctor_says_where_the_release_is_from(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the deployment's own variables, where you have named none."""
    monkeypatch.setenv("RENDER_GIT_COMMIT", "c0ffee")
    _, found = findings(capsys)
    assert found["settings", "release"]["value"] == "c0ffee (RENDER_GIT_COMMIT)"


def test_doctor_of_a_wrong_setting(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that cannot be used is one sentence and exit code 1."""
    monkeypatch.setenv("VOIGHT_ENABLED", "perhaps")
    assert main(["doctor"]) == 1
    assert "VOIGHT_ENABLED: enabled is 'perhaps'" in capsys.readouterr().err


def test_doctor_of_old_and_missing_packages(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """An SDK that is too old is a problem, a missing one is not while the other is there, and missing helpers say what to install."""
    versions = {"openai": "1.55.3", "starlette": "1.0"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    code, found = findings(capsys)
    assert code == 1
    assert found["installed", "openai"]["fatal"]
    assert "pip install 'openai>=1.109'" in found["installed", "openai"]["advice"]
    assert found["installed", "anthropic"]["advice"] is None
    assert "voight-middleware[cli]" in found["installed", "rich"]["advice"]
    assert "genai-prices" in found["installed", "genai-prices"]["advice"]
    versions.clear()
    code, found = findings(capsys)
    assert code == 0
    assert "voight.record() only" in found["installed", "openai"]["advice"]


# -- how amounts read ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        ("0", "$0.00"),
        ("1234567.891", "$1,234,567.89"),
        ("1", "$1.00"),
        ("0.5", "$0.5000"),
        ("0.01234", "$0.0123"),
        ("0.00123456", "$0.00123"),
        ("0.0000153", "$0.0000153"),
        ("0.000000000000001", "$0.00000000000000100"),
    ],
)
def test_money(usd: str, text: str) -> None:
    """Amounts have as many decimals as they need."""
    assert money(Decimal(usd)) == text


@given(st.integers(1, 10**25))
def test_money_never_reads_as_nothing(femto: int) -> None:
    """No amount but zero reads as zero, and all in a column have the same width."""
    amount = Decimal(femto).scaleb(-15)
    assert re.search("[1-9]", money(amount))
    assert len({len(line) for line in aligned([amount, Decimal(1), None])}) == 1


@given(st.decimals(0, 10**12, places=18, allow_nan=False))
def test_exact_is_exact(usd: Decimal) -> None:
    """Every digit of an amount is shown, and cents where there are none."""
    text = exact(usd)
    assert Decimal(text.removeprefix("$").replace(",", "")) == usd
    assert re.fullmatch(r"\$[0-9,]+\.[0-9]{2,18}", text)


@given(st.fractions(0, 1))
def test_percent_never_reads_as_nothing(share: Any) -> None:
    """No share but zero reads as zero."""
    text = percent(Decimal(share.numerator) / Decimal(share.denominator))
    assert bool(re.search("[1-9]", text)) == (share > 0)


@given(st.text())
def test_printable(text: str) -> None:
    """Whatever a value holds, what is shown of it is printable."""
    assert printable(text).isprintable()
