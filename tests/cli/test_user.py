"""`voight user`, as a user sees it."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from voight_middleware.cli import main

from ..support.patching import Patch

Add = Callable[..., None]
Voight = Callable[..., Any]


def test_user_as_a_table(add: Add, voight: Voight) -> None:
    """The table has models, routes, a line of days with gaps, and the last calls."""
    add("u_1", 1, "2026-11-01T12:00", route="/a")
    add("u_1", 8, "2026-11-03T12:00", route="/b\x1b[31m")
    text = voight("user", "u_1")
    assert re.search(r"/b\\x1b\[31m +1 +100 +10 +\$8\.00 +88\.9%", text)
    assert "cost per day from 2026-11-01 to 2026-11-03: ▂ █" in text
    assert re.search(r"2026-11-03 12:00:00 +[0-9a-f]{32} +m +/b\\x1b\[31m +ok +\$8\.00", text)
    assert "\x1b" not in text


def test_user_as_data(add: Add, voight: Voight) -> None:
    """JSON has totals, days and parts; CSV the last calls."""
    add("u_1", 1, route="=x")
    report = voight("user", "u_1", "--format", "json")
    assert (report["total"]["cost_usd"], report["by_route"][0]["route"], report["rows"][0]["cost_usd"]) == ("1", "=x", "1")
    header, row = voight("user", "u_1", "--format", "csv").splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True))["route"] == "'=x"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nobody", "*", "u_%", "' OR 1=1 --", "../../etc/passwd", "\x1b[2J", "\udcff"])
def test_a_user_without_calls(add: Add, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """An id is no pattern, no SQL and no path: of others than the user of that name nothing is shown."""
    add("u_1")
    assert main(["user", name]) == 1
    out, err = capsys.readouterr()
    assert (out, "\x1b" in err) == ("", False)
    assert "there is no call of" in err or "not text in the encoding" in err


def test_user_at_80_columns(add: Add, voight: Voight, patch: Patch) -> None:
    """Times and ids are whole, and what does not fit is named."""
    patch("_WIDTH_OF_A_PIPE", 80)
    add("u_1", 1, route="/a/long/route/of/an/application/{id}", model="gpt-5-nano-2026-08-07")
    text = voight("user", "u_1")
    assert re.search(r"2026-11-10 12:00:00 +[0-9a-f]{32} ", text)
    assert "not shown in 80 columns: model, route; widen the terminal, or use --format csv" in text
    assert max(len(line) for line in text.splitlines() if "not shown" not in line) <= 80


@pytest.mark.slow
def test_why_somebody_is_not_found(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the key nobody knows the pseudonym: the error says so, where there are pseudonyms."""

    def error(user: str) -> str:
        assert main(["user", user]) == 1
        return capsys.readouterr().err

    add("u_1", 1)
    assert "KEY" not in error("alice@example.com")
    add("email:v0:abcdefghijklmnopqrstuvwxyz", 1)
    assert "VOIGHT_PSEUDONYM_KEY is not set here" in error("alice@example.com")
    assert "KEY" not in error("u_2")
