"""`voight prices`, as a user sees it."""

import json
import re
from pathlib import Path

import pytest

from voight_middleware.cli import main

from .kept_calls import HALF, Captured


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
    assert capsys.readouterr().out == "no prices of your own: set VOIGHT_PRICES to the path of a TOML file, or use --prices FILE\n"
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
