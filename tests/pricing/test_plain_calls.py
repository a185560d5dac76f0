"""The quick way to price plain calls gives the same results as the way of all calls, to the last field."""

import json
import random
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import pytest

from tests.support.made_up_ledger import made_up_calls
from voight_middleware.pricing import PriceBook, parse_overrides
from voight_middleware.pricing.price_call import price_call, price_fully
from voight_middleware.providers.usage_formats import recognise
from voight_middleware.providers.usage_formats.shapes import split
from voight_middleware.records.call import Call

NOON = 1_795_003_200_000_000
"""2026-11-18 12:00 UTC, in microseconds: no peak hour."""
COUNTS = (0, 1, 2, 7, 40, 41, 1_000, 199_999, 200_001, 272_001, 5_000_000, 10**11, 10**12, 2**53, -1)
CHAT: dict[str, Any] = {
    "prompt_tokens": 40,
    "completion_tokens": 41,
    "total_tokens": 81,
    "prompt_tokens_details": {"cached_tokens": 7, "audio_tokens": 0, "cache_write_tokens": 2},
    "completion_tokens_details": {
        "reasoning_tokens": 2,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 1,
        "rejected_prediction_tokens": 0,
    },
}
RESPONSES: dict[str, Any] = {
    "input_tokens": 40,
    "input_tokens_details": {"cached_tokens": 7},
    "output_tokens": 41,
    "output_tokens_details": {"reasoning_tokens": 40},
    "total_tokens": 81,
}
MESSAGES: dict[str, Any] = {
    "input_tokens": 40,
    "cache_creation_input_tokens": 9,
    "cache_read_input_tokens": 1_000,
    "cache_creation": {"ephemeral_5m_input_tokens": 7, "ephemeral_1h_input_tokens": 2},
    "output_tokens": 41,
    "output_tokens_details": {"thinking_tokens": 7},
    "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
    "service_tier": "standard",
    "inference_geo": "global",
}
SHAPES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("openai", "chat", "gpt-4o-mini-2024-07-18", CHAT),
    ("openai", "chat", "gpt-5.4", CHAT),
    ("openai", "chat", "gpt-4o-audio-preview", CHAT),
    ("deepseek", "chat", "deepseek-chat", CHAT),
    ("xai", "chat", "grok-4", CHAT),
    ("openrouter", "chat", "openai/gpt-4o", {**CHAT, "cost": 0.5}),
    ("local", "chat", "llama", CHAT),
    ("openai", "responses", "gpt-5-mini", RESPONSES),
    ("openai", "responses", "gpt-5.4-2026-03-05", RESPONSES),
    ("anthropic", "messages", "claude-haiku-4-5-20251001", MESSAGES),
    ("anthropic", "messages", "claude-sonnet-4-5-20250929", MESSAGES),
    ("anthropic", "messages", "claude-sonnet-4-20250514", {**MESSAGES, "speed": "fast"}),
    ("openai", "embeddings", "text-embedding-3-small", {"prompt_tokens": 40, "total_tokens": 40}),
    ("openai", "moderations", "omni-moderation-latest", {"prompt_tokens": 40, "total_tokens": 40}),
    ("google", "generate_content", "gemini-2.5-pro", {"promptTokenCount": 40, "candidatesTokenCount": 41, "totalTokenCount": 81}),
)
OWN = """
[[price]]
provider = "openai"
model = "gpt-4o-mini*"
input = 0.1
output = 0.3
"""


def made(provider: str, endpoint: str, model: str, text: str | None, at: int = NOON, **more: Any) -> Call:
    return Call(
        call_id="a",
        occurred_at=at,
        provider=provider,
        endpoint=endpoint,
        requested_model=model,
        model=model,
        raw_usage=text,
        **more,
    )


def check(book: PriceBook, call: Call) -> None:
    """Price the call both ways: as the first of its kind, and by the plan."""
    expected, first, second = copy(call), copy(call), copy(call)
    price_fully(expected, book)
    price_call(first, book)
    price_call(second, book)
    assert first == expected
    assert second == expected


def changed(rng: random.Random, usage: dict[str, Any]) -> dict[str, Any]:
    """The same usage with other counts, some of them contradictory, missing, null or of another type."""
    result: dict[str, Any] = {}
    for key, value in usage.items():
        what = rng.random()
        if isinstance(value, dict):
            result[key] = None if what < 0.02 else {} if what < 0.04 else changed(rng, value)
        elif isinstance(value, int):
            if what < 0.03:
                continue
            result[key] = None if what < 0.05 else 1.5 if what < 0.06 else value if what < 0.6 else rng.choice(COUNTS)
        else:
            result[key] = rng.choice(("priority", "flex", "us", None, 3)) if what < 0.1 else value
    if rng.random() < 0.03:
        result[rng.choice(("cached_tokens", "iterations", "extra_tokens", "speed"))] = rng.choice((1, "x", [], {"a": 1}, None))
    if "total_tokens" in result and rng.random() < 0.7:
        sums = [result.get(f"{name}_tokens") for name in ("prompt", "completion", "input", "output")]
        result["total_tokens"] = sum(count for count in sums if isinstance(count, int))
    return result


@pytest.mark.parametrize(("provider", "endpoint", "model", "usage"), SHAPES)
def test_changed_usages(provider: str, endpoint: str, model: str, usage: dict[str, Any]) -> None:
    rng = random.Random(f"{provider} {endpoint} {model}")
    book = PriceBook()
    for number in range(400):
        other = usage if number < 3 else changed(rng, usage)
        text = json.dumps(other, separators=(",", ":")) if rng.random() < 0.9 else json.dumps(other, indent=1)
        more: dict[str, Any] = {}
        if rng.random() < 0.1:
            more = rng.choice(
                (
                    {"possibly_billed": 1},
                    {"tool_calls": {"web_search": 1}},
                    {"estimated_output": 5},
                    {"service_tier": "priority"},
                    {"batch": True},
                    {"host": "eu.api.openai.com"},
                    {"host": "https://api.openai.com/v1"},
                    {"outcome": "error", "http_status": 500},
                    {"job": "openai/batch_1"},
                )
            )
        check(book, made(provider, endpoint, model, text, **more))


def test_texts_that_are_no_usage() -> None:
    book = PriceBook()
    for text in ("", "{", "[]", "{}", '{"a":1}', '{"prompt_tokens":1,"prompt_tokens":2,"completion_tokens":3}', '{"a":"50%:1"}', "1", None):
        check(book, made("openai", "chat", "gpt-4o", text))


def test_own_prices(tmp_path: Path) -> None:
    book = PriceBook(parse_overrides(OWN, tmp_path / "prices.toml"))
    call = made("openai", "chat", "gpt-4o-mini", json.dumps(CHAT))
    check(book, call)
    check(book, made("openai", "chat", "gpt-4o-mini", json.dumps({**CHAT, "prompt_tokens": 50, "total_tokens": 91})))


def test_most_made_up_calls_are_plain() -> None:
    book = PriceBook()
    for call in made_up_calls(2_000):
        check(book, call)
    plans = [plan is not None for plan in book.plans.values()]
    assert sum(plans) / len(plans) > 0.9


def test_hours() -> None:
    """A price by the hour of the day is never planned."""
    book = PriceBook()
    for hour in range(30):
        check(book, made("deepseek", "chat", "deepseek-chat", json.dumps(CHAT), NOON + hour * 1_800_000_000))


def usages(found: object) -> Iterator[dict[str, Any]]:
    if isinstance(found, dict):
        for key, value in found.items():
            if key in ("usage", "usageMetadata") and isinstance(value, dict):
                yield value
            else:
                yield from usages(value)
    elif isinstance(found, list):
        for one in found:
            yield from usages(one)


def test_recorded_usages(shared: Path) -> None:
    dataset = shared / "cassettes" / "pydantic" / "genai-prices" / "tests" / "dataset" / "usages.json"
    cases = json.loads((shared / "price_cases.json").read_text())
    found = [*usages(json.loads(dataset.read_text())), *(case["usage"] for case in cases)]
    assert len(found) > 100
    book = PriceBook()
    for usage in found:
        text = json.dumps(usage, separators=(",", ":"))
        parts = split(text)
        assert parts is None or parts[0] % parts[1] == text
        endpoint = recognise(usage) or "chat"
        for provider, model in (("openai", "gpt-5-mini"), ("anthropic", "claude-haiku-4-5"), ("openrouter", "openai/gpt-4o")):
            check(book, made(provider, endpoint, model, text))
    for case in cases:
        call = made(case["provider"], case["api_flavor"], case["model"], json.dumps(case["usage"]))
        check(book, call)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ('{"a":1,"b":{"c":20}}', ('{"a":%d,"b":{"c":%d}}', (1, 20))),
        ('{"a":0,"b":"x","c":null}', ('{"a":0,"b":"x","c":null}', ())),
        ('{"a":999999999999}', ('{"a":%d}', (999_999_999_999,))),
        ('{"a":1000000000000}', None),
        ('{"a":1.5}', None),
        ('{"a":0.5}', None),
        ('{"a":1e5}', None),
        ('{"a":-1}', None),
        ('{"a":[1,2]}', None),
        ('{"a": 1}', None),
        ('{"a":"50%"}', None),
        ('{"a":"%d","b":1}', None),
        ('{"at":"10:15:20"}', None),
    ],
)
def test_shapes(text: str, shape: tuple[str, tuple[int, ...]] | None) -> None:
    assert split(text) == shape
