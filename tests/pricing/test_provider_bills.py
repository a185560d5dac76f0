"""The provider's own bill wins: OpenRouter, xAI and Perplexity say what a call cost, and our figure is kept beside it."""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from voight_middleware.pricing import PriceBook
from voight_middleware.pricing.explain import explain
from voight_middleware.pricing.price_call import price_call
from voight_middleware.records.call import Call

NewCall = Callable[..., Call]
NOON = 1_795_003_200_000_000
"""2026-11-18 12:00 UTC, in microseconds."""


@pytest.fixture(scope="module")
def book() -> PriceBook:
    return PriceBook()


def priced(book: PriceBook, new_call: NewCall, usage: Any, **values: Any) -> Call:
    call = new_call(**({"raw_usage": json.dumps(usage), "occurred_at": NOON} | values))
    price_call(call, book)
    return call


GROK = {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135, "cost_in_usd_ticks": 6_480_000}
SONAR = {
    "prompt_tokens": 14,
    "completion_tokens": 86,
    "search_context_size": "low",
    "cost": {"input_tokens_cost": 0.000014, "output_tokens_cost": 0.000086, "request_cost": 0.005, "total_cost": 0.0051},
}
DEEP = {
    "prompt_tokens": 33,
    "completion_tokens": 7163,
    "citation_tokens": 20016,
    "num_search_queries": 15,
    "reasoning_tokens": 73997,
    "cost": {"total_cost": 0.394393},
}
IN_OUT = {"prompt_tokens": 1000, "completion_tokens": 100}

BILLS: list[tuple[str, dict[str, Any], Any, str]] = [
    # xAI, "Cost tracking": 10,000,000,000 ticks are a dollar; in chat, responses, images and videos
    ("xai chat", {"provider": "xai", "model": "grok-4.5"}, GROK, "0.000648"),
    ("xai by record()", {"provider": "x-ai", "model": "grok-4.5"}, GROK, "0.000648"),
    (
        "xai responses",
        {"provider": "xai", "model": "grok-4.5", "endpoint": "responses"},
        {"input_tokens": 100, "output_tokens": 10, "num_server_side_tools_used": 3, "cost_in_usd_ticks": 37_756_000},
        "0.0037756",
    ),
    ("xai pictures", {"provider": "xai", "model": "grok-imagine-image", "endpoint": "images"}, {"cost_in_usd_ticks": 400_000_000}, "0.04"),
    ("xai, a model of tomorrow", {"provider": "xai", "model": "grok-9"}, GROK, "0.000648"),
    ("xai, one tick", {"provider": "xai", "model": "grok-4.5"}, {**GROK, "cost_in_usd_ticks": 1}, "0.0000000001"),
    ("xai, nothing", {"provider": "xai", "model": "grok-4.5"}, {**GROK, "cost_in_usd_ticks": 0}, "0"),
    # Perplexity, usage.cost.total_cost
    ("perplexity", {"provider": "perplexity", "model": "sonar"}, SONAR, "0.0051"),
    ("perplexity deep research", {"provider": "perplexity", "model": "sonar-deep-research"}, DEEP, "0.394393"),
    # OpenRouter, "Usage accounting"
    ("openrouter", {"provider": "openrouter", "model": "openai/gpt-9"}, {**IN_OUT, "cost": 0.00042}, "0.00042"),
    (
        "openrouter with a key of one's own",
        {"provider": "openrouter", "model": "openai/gpt-9"},
        {**IN_OUT, "cost": 0.0001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.002}},
        "0.0021",
    ),
]


@pytest.mark.parametrize(("values", "usage", "usd"), [one[1:] for one in BILLS], ids=[one[0] for one in BILLS])
def test_the_bill_of_the_provider_wins(book: PriceBook, new_call: NewCall, values: dict[str, Any], usage: Any, usd: str) -> None:
    """The cost is exact and `priced`, without reasons, whatever our prices lack; the explanation says that it was reported."""
    call = priced(book, new_call, usage, **values)
    assert (call.cost_usd, call.cost_status, call.cost_reasons) == (Decimal(usd), "priced", ())
    explanation = explain(call)
    assert explanation.agrees
    assert explanation.reported_femto == call.cost_femto


def test_our_own_figure_is_kept_beside_it(book: PriceBook, new_call: NewCall) -> None:
    """It is what a reader compares the bill with."""
    call = priced(book, new_call, {**GROK, "cost_in_usd_ticks": 6_480_000}, provider="xai", model="grok-4.5")
    assert call.list_femto is not None
    assert call.list_femto != call.cost_femto


@pytest.mark.parametrize("ticks", [-1, True, "6480000", None, [1], {"a": 1}])
def test_a_bill_that_is_none_is_not_taken(book: PriceBook, new_call: NewCall, ticks: Any) -> None:
    """A negative number, a text or a flag is not a bill: our own price is used."""
    usage = {**IN_OUT, "cost_in_usd_ticks": ticks}
    call = priced(book, new_call, usage, provider="xai", model="grok-4.5")
    assert call.cost_usd == priced(book, new_call, IN_OUT, provider="xai", model="grok-4.5").cost_usd
    usage = {**IN_OUT, "cost": {"total_cost": ticks}}
    call = priced(book, new_call, usage, provider="perplexity", model="sonar-pro-search")
    assert call.cost_usd == priced(book, new_call, IN_OUT, provider="perplexity", model="sonar-pro-search").cost_usd


def test_a_bill_of_another_provider_is_not_taken(book: PriceBook, new_call: NewCall) -> None:
    """A gateway that passes on the key of another provider bills by itself."""
    call = priced(book, new_call, {**IN_OUT, "cost_in_usd_ticks": 5, "cost": 5}, provider="openai", model="gpt-5-nano")
    assert call.cost_usd == Decimal("0.00009")


def test_a_bill_counts_where_the_usage_cannot_be_read(book: PriceBook, new_call: NewCall) -> None:
    """OpenRouter, a usage that contradicts itself: the cost is known, whatever is known of the tokens."""
    details = {"cached_tokens": 2161, "cache_write_tokens": 2161}
    usage = {"prompt_tokens": 2168, "completion_tokens": 4, "prompt_tokens_details": details, "cost": 0.000497}
    call = priced(book, new_call, usage, provider="openrouter", model="anthropic/claude-haiku-4.5")
    assert (call.cost_usd, call.cost_status) == (Decimal("0.000497"), "priced")


def test_an_attempt_that_may_have_been_billed_stays_said(book: PriceBook, new_call: NewCall) -> None:
    """The bill is of the answer, and not of the attempts before it."""
    call = priced(book, new_call, GROK, provider="xai", model="grok-4.5", possibly_billed=1)
    assert (call.cost_usd, call.cost_status) == (Decimal("0.000648"), "partial")
    assert call.cost_reasons == ("an attempt got no answer, and may have been billed",)
