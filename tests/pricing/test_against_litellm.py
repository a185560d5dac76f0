"""Usages of litellm's own tests, and recorded calls, that were once priced wrongly here: exact, or with a reason."""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from voight_middleware.pricing import PriceBook
from voight_middleware.pricing.price_call import price_call
from voight_middleware.providers.usage_formats import recognise
from voight_middleware.records.call import Call

NewCall = Callable[..., Call]

NOV, MAY, AUG = 1_795_003_200_000_000, 1_778_846_400_000_000, 1_787_400_000_000_000
"""2026-11-18 12:00, 2026-05-15 12:00 and 2026-08-22 12:00 UTC, in microseconds."""
SOUND = {"prompt_tokens": 17, "completion_tokens": 592, "completion_tokens_details": {"audio_tokens": 482, "text_tokens": 110}}
CHAT = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}


@pytest.fixture(scope="module")
def book() -> PriceBook:
    """The price book, loaded once: it changes nothing but its cache."""
    return PriceBook()


def priced(book: PriceBook, new_call: NewCall, provider: str, model: str, usage: Any, **values: Any) -> Call:
    values = {"occurred_at": NOV, "endpoint": recognise(usage) or "chat", **values}
    call = new_call(provider=provider, model=model, requested_model=model, raw_usage=json.dumps(usage), **values)
    price_call(call, book)
    return call


def long(prompt: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": 1000, "total_tokens": prompt + 1000}


@pytest.mark.parametrize(
    ("name", "usage", "at", "usd"),
    [
        # developers.openai.com/api/docs/models/gpt-5.6-cyber: $12.50 and $75; over 272K twice and 1.5 times
        ("openai/gpt-5.6-cyber", long(272_000), NOV, "3.475"),
        ("openai/gpt-5.6-cyber", long(272_001), NOV, "6.912525"),
        # Claude Sonnet 4: $3 and $15; over 200K, while that was in beta, $6 and $22.50, and $7.50 for what is written
        ("anthropic/claude-sonnet-4-20250514", {"input_tokens": 200_000, "output_tokens": 1000}, MAY, "0.615"),
        (
            "anthropic/claude-sonnet-4-20250514",
            {"input_tokens": 199_001, "cache_creation_input_tokens": 1000, "output_tokens": 1000},
            MAY,
            "1.224006",
        ),
        # docs.x.ai/developers/migration/may-15-retirement: the old price until 12:00 PT, then that of grok-4.3
        ("xai/grok-4-0709", CHAT, MAY, "0.0105"),
        ("xai/grok-4-0709", CHAT, NOV, "0.0025"),
        ("xai/grok-3", CHAT, NOV, "0.0025"),
        ("xai/grok-4-1-fast-non-reasoning", CHAT, NOV, "0.0025"),
        ("xai/grok-4", long(199_999), NOV, "0.25249875"),
        ("xai/grok-4", long(200_000), NOV, "0.505"),
        # Azure's meters of gpt-audio-2025-08-28: $2.50 and $10, of sound $40 and $80
        ("azure/gpt-audio-2025-08-28", SOUND, NOV, "0.0397025"),
        # GPT-5.6 Sol: Azure has OpenAI's lower price from 2026-09-01 on
        ("azure/gpt-5.6-sol", CHAT, AUG, "0.02"),
        ("azure/gpt-5.6-sol", CHAT, NOV, "0.014"),
        ("openai/gpt-5.6-sol", CHAT, AUG, "0.014"),
    ],
)
def test_a_price_that_the_list_lacks(book: PriceBook, new_call: NewCall, name: str, usage: Any, at: int, usd: str) -> None:
    """Of a long input, of a name that means another model by now, and of another platform."""
    provider, _, model = name.partition("/")
    call = priced(book, new_call, provider, model, usage, occurred_at=at)
    assert (call.cost_usd, call.cost_status) == (Decimal(usd), "priced")


@pytest.mark.parametrize(
    ("provider", "model", "usage", "reason"),
    [
        ("bedrock", "openai.gpt-5.5", long(272_001), "over 272,000 tokens"),
        ("xai", "grok-code-fast-1", CHAT, "a newer model"),
        ("xai", "grok-3-latest", CHAT, "a newer model"),
        ("google", "gemini-2.5-flash", {**CHAT, "prompt_tokens_details": {"web_search_requests": 1}}, "web_search_requests = 1"),
        ("perplexity", "sonar-deep-research", {**CHAT, "reasoning_tokens": 15}, "reasoning_tokens = 15"),
        ("anthropic", "claude-haiku-4-5", {**CHAT, "cache_creation_input_tokens": 100}, "cache_creation_input_tokens = 100"),
        ("anthropic", "claude-haiku-4-5", {**CHAT, "cache_read_input_tokens": 100}, "cache_read_input_tokens = 100"),
        (
            "google",
            "gemini-omni-flash-preview",
            {
                "promptTokenCount": 10,
                "candidatesTokenCount": 46_336,
                "candidatesTokensDetails": [{"modality": "VIDEO", "tokenCount": 46_336}],
            },
            "46336 tokens of video",
        ),
    ],
)
def test_what_may_cost_more_is_partial(book: PriceBook, new_call: NewCall, provider: str, model: str, usage: Any, reason: str) -> None:
    """Never the standard price without a word."""
    call = priced(book, new_call, provider, model, usage)
    assert call.cost_status == "partial"
    assert any(reason in one for one in call.cost_reasons)


def test_the_next_model_of_azure_has_another_price(book: PriceBook, new_call: NewCall) -> None:
    """Azure's meters of gpt-audio-1.5: as at OpenAI, of sound $32 and $64."""
    assert priced(book, new_call, "azure", "gpt-audio-1.5", SOUND).cost_usd == Decimal("0.0319905")


def test_a_short_input_has_no_doubt_of_a_long_one(book: PriceBook, new_call: NewCall) -> None:
    """The doubt is of the calls that it is about."""
    assert priced(book, new_call, "bedrock", "openai.gpt-5.5", long(272_000)).cost_status == "priced"


@pytest.mark.parametrize(
    ("provider", "model", "usage", "usd"),
    [
        # Claude Haiku 4.5: $1 in, $0.10 read, $1.25 written for 5 minutes and $2 for an hour, $5 out
        (
            "anthropic",
            "claude-haiku-4-5",
            {
                **CHAT,
                "prompt_tokens_details": {
                    "cached_tokens": 100,
                    "cache_creation_tokens": 600,
                    "cache_creation_token_details": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 400},
                },
                "cache_creation_input_tokens": 600,
                "cache_read_input_tokens": 100,
            },
            "0.00386",
        ),
        (
            "anthropic",
            "claude-haiku-4-5",
            {**CHAT, "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 600, "cache_creation_tokens": 600}},
            "0.00365",
        ),
        # $10 a thousand searches
        ("anthropic", "claude-haiku-4-5", {**CHAT, "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1}}, "0.0235"),
        # Gemini 3 Pro Image: $2 in, $12 out, $120 for a million tokens of pictures
        (
            "google",
            "gemini-3-pro-image-preview",
            {
                "prompt_tokens": 10,
                "completion_tokens": 1345,
                "total_tokens": 1355,
                "completion_tokens_details": {"reasoning_tokens": 225, "text_tokens": 0, "image_tokens": 1120},
            },
            "0.13712",
        ),
        # xAI's own bill, as litellm hands it on
        ("xai", "grok-4.6", {**CHAT, "cost": 0.0037756}, "0.0037756"),
    ],
)
def test_the_usage_of_litellm(book: PriceBook, new_call: NewCall, provider: str, model: str, usage: Any, usd: str) -> None:
    """It has the counts of every provider in the words of OpenAI, and none of them is left out."""
    call = priced(book, new_call, provider, model, usage)
    assert (call.cost_usd, call.cost_status) == (Decimal(usd), "priced")


@pytest.mark.parametrize(
    ("provider", "asked", "served", "doubt"),
    [
        ("openai", "gpt-4.1-mini", "moonshotai/kimi-k2", True),
        ("openai", "gpt-5-nano", "some-internal-name", True),
        ("openai", "davinci-002", "davinci:2023-07-21-v2", False),
        ("bedrock", "anthropic.claude-3-haiku-20240307-v1:0", "claude-3-haiku-48k-20240307", False),
        ("bedrock", "us.anthropic.claude-3-5-sonnet-20240620-v1:0", "claude-3-5-sonnet-20240620", False),
    ],
)
def test_a_model_that_was_not_asked_for_and_has_no_price(
    book: PriceBook, new_call: NewCall, provider: str, asked: str, served: str, *, doubt: bool
) -> None:
    """The call is priced as the requested model, and partial. Another spelling of that model is not a doubt."""
    endpoint = "messages" if provider == "bedrock" else "chat"
    usage = {"input_tokens": 16, "output_tokens": 27} if provider == "bedrock" else CHAT
    call = new_call(occurred_at=NOV, provider=provider, endpoint=endpoint, model=served, requested_model=asked, raw_usage=json.dumps(usage))
    price_call(call, book)
    assert call.cost_usd
    assert call.cost_status == ("partial" if doubt else "priced")
    assert any(repr(served) in one for one in call.cost_reasons) == doubt
