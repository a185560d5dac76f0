"""`voight unattributed`, as a user sees it."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from voight_middleware.cli import main

from .commands import for_mistakes

Add = Callable[..., None]
Voight = Callable[..., Any]


def test_unattributed_as_a_table(add: Add, voight: Voight) -> None:
    """The table says how much has no owner, why, what to do, and where it comes from."""
    add("u_1", 6, route="/chat")
    add(None, 2, route="/chat\x1b[31m")
    text = voight("unattributed")
    assert re.search(r"none +1 +1 +100\.0% +\$2\.00", text)
    assert "1 call of 2 (50.0%, 25.0% of the cost) without an owner" in text
    assert "none: no user was set: add the middleware with a user_getter" in text
    assert re.search(r"/chat\\x1b\[31m +1 +100\.0% +\$2\.00 +100\.0%", text)
    assert "\x1b" not in text


@pytest.mark.slow
def test_unattributed_as_data(add: Add, voight: Voight) -> None:
    """JSON has sources and sections; CSV one row for each group, of source, route and model if nothing else is said."""
    add(None, 2, route="=1+1")
    add("u_1", 6)
    report = voight("unattributed", "--format", "json")
    assert (report["share_of_calls"], report["share_of_spend"]) == (0.5, 0.25)
    assert [section["by"] for section in report["sections"]] == [["route"], ["model"]]
    header, row = voight("unattributed", "--format", "csv").splitlines()
    assert header.startswith("attribution,route,model,calls,")
    assert row.startswith("none,'=1+1,m,1,")
    assert voight("unattributed", "--by", "model", "--format", "json")["rows"][0]["model"] == "m"


@pytest.mark.slow
def test_everything_has_an_owner(add: Add, voight: Voight) -> None:
    """Where there is nothing to do, it says so; without calls too."""
    assert "No call matches" in voight("unattributed")
    add("u_1")
    assert "every call has an owner" in voight("unattributed")
    assert voight("unattributed", "--format", "csv").count("\n") == 1


@pytest.mark.slow
@for_mistakes(
    [
        (["--where", "user=x"], "filter by other dimensions"),
        (["--by", "x"], "there is no dimension 'x'"),
        (["--tz", "x"], "no time zone 'x'"),
    ],
)
def test_mistakes_in_unattributed(add: Add, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """A mistake is one sentence and exit code 1."""
    add(None)
    assert main(["unattributed", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_where_every_call_has_an_owner_the_rest_costs_nothing(add: Add, voight: Voight) -> None:
    """The cost of no calls is known: it is 0."""
    add("u_1", 1)
    out = voight("unattributed")
    assert re.search(r"total +1 +0 +0\.0% +\$0\.00", out)
    assert "unpriced" not in out
    assert voight("unattributed", "--format", "json")["unowned"]["cost_usd"] == "0"
