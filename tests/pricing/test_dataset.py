"""Recorded usages of many providers, priced by us and by genai-prices itself: every difference has a reason, which the docs explain."""

import json
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import genai_prices
import pytest

from voight_middleware.pricing import PriceBook
from voight_middleware.pricing.price_call import price_call
from voight_middleware.providers.usage_formats import recognise
from voight_middleware.records.call import Call

NOON = 1_795_003_200_000_000
"""2026-11-18 12:00 UTC, in microseconds: no peak hour."""
OURS = {"x-ai": "xai", "aws": "bedrock"}
FLAVORS = {
    "openai": {"chat": "chat", "responses": "responses"},
    "anthropic": {"default": "messages"},
    "google": {"default": "generate_content", "anthropic": "messages"},
    "azure": {"chat": "chat", "responses": "responses", "anthropic": "messages"},
    "aws": {"default": "converse", "anthropic": "messages"},
}
ELSEWHERE = {"default": "chat", "chat": "chat", "responses": "responses"}


def rows(shared: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any], str, str]]:
    """Each recorded body with each provider and flavor that reads it in the dialect in which it was written."""
    dataset = shared / "cassettes" / "pydantic" / "genai-prices" / "tests" / "dataset" / "usages.json"
    for row in json.loads(dataset.read_text()):
        body = row["body"]
        usage = body.get("usage") or body.get("usageMetadata")
        dialect = recognise(usage) if usage else None
        for group in row.get("extracted", ()):
            for one in group["extractors"]:
                if "input_price" in one and dialect and FLAVORS.get(one["provider_id"], ELSEWHERE).get(one["api_flavor"]) == dialect:
                    yield body, usage, one["provider_id"], one["api_flavor"]


def reason(call: Call, usage: dict[str, Any], theirs: Decimal) -> str | None:
    """Why the two figures differ, in the order of the table in docs/prices.md; None for no good reason."""
    if call.cost_usd is None:
        return "no price at all: genai-prices answers 0" if theirs == 0 else None
    if call.model == "mistral-large-latest":
        return "a name that means another model by now"
    if usage.get("iterations"):
        return "iterations"
    if any("no price for audio" in one for one in call.cost_reasons) or "audio-preview" in (call.model or ""):
        return "audio"
    if call.usage is not None and call.usage.tools and theirs + call.usage.tools.get("web_search", 0) * Decimal("0.01") == call.cost_usd:
        return "web searches"
    if any(key in usage for key in ("num_cached_tokens", "prompt_cache_hit_tokens", "cached_tokens")) and not usage.get(
        "prompt_tokens_details"
    ):
        return "cached tokens outside of the details"
    return None


@pytest.mark.slow
def test_every_difference_to_genai_prices_is_explained(shared: Path) -> None:
    """Row by row, at the same moment; OpenRouter's own bill is left out, as it is compared with nothing."""
    book = PriceBook()
    seen: Counter[str] = Counter()
    unexplained = []
    for body, usage, provider, flavor in rows(shared):
        call = Call(
            call_id="x",
            occurred_at=NOON,
            provider=OURS.get(provider, provider),
            endpoint=recognise(usage) or "",
            model=body.get("model") or body.get("modelVersion"),
            raw_usage=json.dumps({name: value for name, value in usage.items() if name not in ("cost", "cost_details", "is_byok")}),
        )
        price_call(call, book)
        extracted = genai_prices.extract_usage(body, provider_id=provider, api_flavor=flavor)
        theirs = extracted.calc_price(genai_request_timestamp=call.time).total_price
        why = "the same" if call.cost_usd == theirs else reason(call, usage, theirs)
        if why is None:
            unexplained.append((provider, flavor, call.model, call.cost_usd, theirs, call.cost_status, call.cost_reasons, usage))
        seen[why or "unexplained"] += 1
    assert not unexplained
    assert seen["the same"] > 2_500
