"""`voight plans`, as a user sees it."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from voight_middleware.cli import main

from .commands import for_mistakes

Add = Callable[..., None]
Voight = Callable[..., Any]
NOVEMBER = ("--since", "2026-10", "--until", "2026-10")


def test_plans_as_a_table(add: Add, voight: Voight) -> None:
    """The table has users, mean, median, concentration, and with prices who pays for whom."""
    for user, cost in (("a", 1), ("b", 1), ("c", 22)):
        add(user, cost, "2026-10-10T00:00", plan="free")
    add("d", 2, "2026-10-10T00:00", plan="pro")
    text = voight("plans", *NOVEMBER, "--price", "free=0,pro=20", "--price", "x=3")
    assert re.search(r"free +3 +\$24\.00 +92\.3% █+▏? +3 +\$8\.00 +\$1\.00 +91\.7% +91\.7% +91\.7% +1 +\$0\.00 +- +-\$24\.00", text)
    assert re.search(r"pro +1 +\$2\.00 .* \$20\.00 +10\.0% +\+\$18\.00", text)
    assert re.search(r"total .* \$20\.00 +- +-\$6\.00", text)
    assert "free: 1 user above $10.00: c $22.00" in text
    assert "free costs $24.00 more than it brings in: pro pays for it" in text
    assert "x has a price, and no call" in text


@pytest.mark.slow
def test_plans_as_json_and_csv(add: Add, voight: Voight) -> None:
    """JSON lists the heavy users; CSV counts them."""
    add("c", 2, plan="free")
    report = voight("plans", "--threshold", "$1.50", "--format", "json")
    assert report["rows"][0]["heavy"] == [{"user_id": "c", "calls": 1, "cost_usd": "2"}]
    assert (report["rows"][0]["threshold_usd"], report["rows"][0]["top_1_percent"], report["total"]["unowned_calls"]) == ("1.5", 1.0, 0)
    header, row = voight("plans", "--threshold", "1.50", "--format", "csv").splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True))["heavy"] == "1"
    assert voight("plans", "--where", "plan=x", "--format", "csv").splitlines() == [header]


@pytest.mark.slow
@for_mistakes(
    [
        (["--price", "pro"], "cannot read the price 'pro'"),
        (["--price", "pro=1,pro=2"], "the plan 'pro' has two prices"),
        (["--price", "pro=-1"], "the price of 'pro' is '-1', not an amount"),
        (["--price", "pro=nan"], "not an amount"),
        (["--price", "pro=1e9"], "not an amount"),
        (["--price", "pro=٣"], "not an amount"),
        (["--price", "pro=20"], "a price is for a month: give the time with --since"),
        (["--threshold", "much"], "the threshold is 'much'"),
    ],
)
def test_mistakes_in_plans(add: Add, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """A mistake is one sentence and exit code 1."""
    add("u_1")
    assert main(["plans", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_no_value_drives_the_terminal_in_plans(add: Add, voight: Voight) -> None:
    """Escape sequences in plans and users are shown, never obeyed, in rows and notes."""
    evil = "\x1b]0;owned\x07[bold red]x"
    add(evil, 2, plan=evil)
    text = voight("plans", "--threshold", "1", "--since", "2026-11", "--price", f"{evil}=0")
    assert all(char.isprintable() for char in text.replace("\n", ""))
    assert text.count(r"\x1b]0;owned\x07[bold red]x") >= 2
