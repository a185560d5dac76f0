"""`voight explain`, as a user sees it."""

import json
import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.cli import main
from voight_middleware.records.tags import Tags

from .kept_calls import Captured, keep, keep_priced, make_call


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
  model     gpt-5-nano-2025-08-07 (requested: gpt-5-nano) of openai, api.openai.com
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


@pytest.mark.slow
def test_explain_what_came_before(ledger: Path, prices: Path, capsys: Captured) -> None:
    """Earlier prices are listed with the time when they were replaced, in text and as data."""
    call = keep_priced(ledger, model="house-model")
    (none := prices.with_name("none.toml")).write_text("")
    for options in ([], ["--prices", str(prices)], ["--prices", str(none)]):
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


@pytest.mark.slow
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
    assert "! the sum, $0.05, is not the stored cost, $0.050000000000001" in capsys.readouterr().out
    assert main(["explain", "without-prices"]) == 0
    text = capsys.readouterr().out
    assert "! no unit prices are stored with this call: its cost of $0.000000000000007 cannot be computed again" in text
    assert "\x1b" not in text
