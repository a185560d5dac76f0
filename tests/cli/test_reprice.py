"""`voight reprice` and `--original-prices`, as a user sees them."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from voight_middleware.cli import main

from .kept_calls import Captured, keep, keep_priced, make_call


@pytest.mark.slow
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
    assert main(["spend", "--format", "json"]) == main(["spend", "--format", "json", "--original-prices"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r'"cost_usd": "(.*)"', out) == ["4.025", "4.025", "2.05", "2.05"], "the total, and one row"
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
    assert report == {"dry_run": False, "written": 1, "passed_over": 1, "priced_by_own": 0}


@pytest.mark.slow
def test_prices_of_your_own_stay_where_none_are_named(ledger: Path, prices: Path, tmp_path: Path, capsys: Captured) -> None:
    """A shell that does not know them must not bring the list price to calls that have a rate of their own."""
    keep_priced(ledger)
    options = ["reprice", "--since", "2026-11-01"]
    assert main([*options, "--prices", str(prices)]) == 0
    capsys.readouterr()
    assert main(options) == 0
    assert "1 call left as they are: they have prices of your own: use --prices FILE" in capsys.readouterr().out
    assert main([*options, "--format", "csv"]) == 0
    assert "1 call left as they are" in capsys.readouterr().err
    (tmp_path / "empty.toml").write_text("")
    assert main([*options, "--prices", str(tmp_path / "empty.toml"), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 1


@pytest.mark.slow
def test_as_priced(ledger: Path, prices: Path, capsys: Captured) -> None:
    """`--original-prices` is what reports and the export said before a repricing, and the table says which figures it has."""
    for number in range(5):
        keep_priced(ledger, f"u_{number % 2}", raw_usage=f'{{"prompt_tokens":{10**number},"completion_tokens":7}}')
    keep_priced(ledger, model="house-model")
    commands = [["top", "--format", "csv"], ["spend", "--by", "model,cost_status", "--format", "json"], ["export"], ["top"]]
    before = [(main(command), capsys.readouterr().out) for command in commands]
    assert main(["reprice", "--since", "2026-11-01", "--prices", str(prices)]) == 0
    capsys.readouterr()
    now = [(main(command), capsys.readouterr().out) for command in commands]
    then = [(main([*command, "--original-prices"]), capsys.readouterr().out) for command in commands]
    assert all(one != other for one, other in zip(now, before, strict=True))
    assert then[:3] == before[:3]
    assert then[3][1] == before[3][1].replace("Spend by user_id", "Spend by user_id, as first priced")
