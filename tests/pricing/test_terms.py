"""Terms, places and tools: the right price where a page states it, and `partial` with a true reason where none does."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.pricing import PriceBook, open_book
from voight_middleware.pricing.explain import explain
from voight_middleware.pricing.price_call import price_call
from voight_middleware.records.call import Call

NewCall = Callable[..., Call]


@pytest.fixture(scope="module")
def book() -> PriceBook:
    return PriceBook()


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


def priced(book: PriceBook, new_call: NewCall, usage: Any, when: str = "2026-11-18T12:00", **values: Any) -> Call:
    call = new_call(raw_usage=json.dumps(usage), occurred_at=at(when), **values)
    price_call(call, book)
    return call


CHAT = {"prompt_tokens": 1000, "completion_tokens": 1000}
CLAUDE = {"input_tokens": 1000, "output_tokens": 1000}
GEMINI = {"promptTokenCount": 1000, "candidatesTokenCount": 1000}
NOVA = {"inputTokens": 1000, "outputTokens": 1000}
EAST5, EU = "us-east5-aiplatform.googleapis.com", "aiplatform.eu.rep.googleapis.com"
VERTEX = "aiplatform.googleapis.com"
RUNTIME = "bedrock-runtime.{}.amazonaws.com"


@pytest.mark.parametrize(
    ("model", "host", "usd", "status"),
    [
        # OpenAI, "Data residency": 10 % more for models released on or after 2026-03-05
        ("gpt-5.4-pro", "eu.api.openai.com", "0.231", "priced"),
        ("gpt-5.5", "us.api.openai.com", "0.0385", "priced"),
        ("gpt-5.4-mini", "jp.api.openai.com", "0.005775", "priced"),
        ("gpt-4o-mini", "eu.api.openai.com", "0.00075", "priced"),
        ("gpt-5-nano-2025-08-07", "eu.api.openai.com", "0.00045", "priced"),
        ("gpt-5.4-pro", "api.openai.com", "0.21", "priced"),
        # of neither kind as far as is known here
        ("gpt-oss-120b", "eu.api.openai.com", None, "partial"),
    ],
)
def test_openai_in_regions(book: PriceBook, new_call: NewCall, model: str, host: str, usd: str | None, status: str) -> None:
    """New models cost a tenth more on hosts of regions, older ones their list price."""
    call = priced(book, new_call, CHAT, model=model, host=host)
    assert call.cost_status in (status, "unpriced" if usd is None else status)
    assert usd is None or call.cost_usd == Decimal(usd)


@pytest.mark.parametrize(
    ("model", "host", "usd", "status"),
    [
        # Anthropic, "Claude on Vertex AI": regional and multi-region endpoints cost 10 % more from Claude Sonnet 4.5 on
        ("claude-sonnet-4-5@20250929", VERTEX, "0.018", "priced"),
        ("claude-sonnet-4-5@20250929", EAST5, "0.0198", "priced"),
        ("claude-sonnet-4-5@20250929", EU, "0.0198", "priced"),
        ("claude-opus-4-6", "europe-west1-aiplatform.googleapis.com", "0.033", "priced"),
        ("claude-opus-5", EU, "0.033", "priced"),
        ("claude-sonnet-4@20250514", EAST5, "0.018", "priced"),
        ("claude-opus-4-1@20250805", EAST5, "0.09", "priced"),
        ("claude-3-5-haiku@20241022", EAST5, "0.0048", "priced"),
    ],
)
def test_claude_on_vertex_in_regions(book: PriceBook, new_call: NewCall, model: str, host: str, usd: str, status: str) -> None:
    """The premium is for models from 4.5 on."""
    call = priced(book, new_call, CLAUDE, provider="vertex", model=model, host=host, endpoint="messages")
    assert (call.cost_usd, call.cost_status) == (Decimal(usd), status)


@pytest.mark.parametrize(
    ("when", "host", "model", "status"),
    [
        ("2026-06-30T23:59", EAST5, "gemini-2.5-flash", "priced"),
        ("2026-07-01T00:00", EAST5, "gemini-2.5-flash", "partial"),
        ("2026-11-18T12:00", EU, "gemini-3-flash-preview", "partial"),
        ("2026-11-18T12:00", VERTEX, "gemini-3-flash-preview", "priced"),
        # another platform: Vertex AI has a price of its own for these
        ("2026-11-18T12:00", VERTEX, "gemini-2.0-flash", "partial"),
        ("2026-11-18T12:00", VERTEX, "gemini-1.5-pro", "partial"),
    ],
)
def test_gemini_on_vertex(book: PriceBook, new_call: NewCall, when: str, host: str, model: str, status: str) -> None:
    """Since July 2026 regional endpoints cost more; the page's figure is not known here. Prices of the Gemini API are said to be that."""
    call = priced(book, new_call, GEMINI, when, provider="vertex", model=model, host=host, endpoint="generate_content")
    assert call.cost_status == status


@pytest.mark.parametrize(
    ("model", "region", "status"),
    [
        ("amazon.nova-pro-v1:0", "us-east-1", "priced"),
        ("us.amazon.nova-pro-v1:0", "us-west-2", "priced"),
        ("eu.amazon.nova-pro-v1:0", "eu-central-1", "partial"),
        ("amazon.nova-pro-v1:0", "eu-central-1", "partial"),
        ("apac.amazon.nova-lite-v1:0", "ap-southeast-1", "partial"),
        ("amazon.nova-pro-v1:0", "us-gov-west-1", "partial"),
        ("eu.anthropic.claude-sonnet-4-5-20250929-v1:0", "eu-central-1", "priced"),
        ("global.anthropic.claude-sonnet-4-5-20250929-v1:0", "eu-central-1", "priced"),
        ("arn:aws:bedrock:eu-west-1:1:inference-profile/eu.amazon.nova-pro-v1:0", "eu-west-1", "partial"),
    ],
)
def test_bedrock_in_regions(book: PriceBook, new_call: NewCall, model: str, region: str, status: str) -> None:
    """A price of the United States is not used silently elsewhere, be it named by the profile or by the host."""
    values: dict[str, Any] = {"provider": "bedrock", "model": None, "requested_model": model, "endpoint": "converse"}
    call = priced(book, new_call, NOVA, host=RUNTIME.format(region), **values)
    assert call.cost_status == status
    assert status == "priced" or "the price of the United States is used" in call.cost_reasons[0]


@pytest.mark.parametrize(
    ("terms", "status", "tier"),
    [
        ({}, "priced", None),
        ({"serviceTier": "standard"}, "priced", "standard"),
        ({"serviceTier": "SERVICE_TIER_UNSPECIFIED"}, "priced", None),
        ({"serviceTier": "flex"}, "partial", "flex"),
        ({"serviceTier": "SERVICE_TIER_PRIORITY"}, "partial", "priority"),
        ({"serviceTier": 3}, "partial", "3"),
        ({"trafficType": "ON_DEMAND"}, "priced", None),
        ({"trafficType": 1}, "priced", None),
        ({"trafficType": 2}, "partial", "provisioned_throughput"),
        ({"trafficType": "PROVISIONED_THROUGHPUT"}, "partial", "provisioned_throughput"),
        ({"trafficType": "ON_DEMAND_FLEX"}, "partial", "flex"),
        ({"trafficType": "SOMETHING_NEW"}, "partial", "traffic type SOMETHING_NEW"),
    ],
    ids=str,
)
def test_the_tiers_of_gemini(book: PriceBook, new_call: NewCall, terms: dict[str, Any], status: str, tier: str | None) -> None:
    """By name or by the number of an enum; a tier that is not on the list is said."""
    call = priced(book, new_call, {**GEMINI, **terms}, provider="google", model="gemini-3-flash-preview", endpoint="generate_content")
    assert (call.cost_status, call.service_tier) == (status, tier)


def test_enums_by_number(book: PriceBook, new_call: NewCall) -> None:
    """Vertex AI answers with numbers where a client asks for them: audio is 4."""
    values: dict[str, Any] = {"provider": "google", "model": "gemini-3-flash-preview", "endpoint": "generate_content"}
    calls = [
        priced(book, new_call, {**GEMINI, "promptTokensDetails": [{"modality": one, "tokenCount": 400}]}, **values) for one in ("AUDIO", 4)
    ]
    assert calls[0].cost_usd == calls[1].cost_usd
    assert [call.cost_status for call in calls] == ["priced", "priced"]


@pytest.mark.parametrize(
    ("provider", "model", "status"),
    [
        ("google", "gemini-2.0-flash-001", "priced"),
        ("google", "gemini-2.0-flash-lite-001", "priced"),
        ("google", "gemini-2.0-flash-thinking", "partial"),
        ("openai", "ft:gpt-4o-mini-2024-07-18:acme::AbC12dEf", "priced"),
        ("openai", "ft:gpt-4o-mini-2024-07-18:acme:support:AbC12dEf", "priced"),
        ("openai", "ft:gpt-4o-2024-08-06:acme::AbC12dEf:ckpt-step-90", "priced"),
        ("openai", "ft:gpt-3.5-turbo-0125:acme::AbC12dEf", "priced"),
        ("openai", "ft:gpt-4o-audio-preview:acme::AbC12dEf", "unpriced"),
        ("azure", "gpt-4o-mini-2024-07-18.ft-0e208cf33a6a466994aff31a08aba678", "priced"),
    ],
)
def test_names_of_versions_and_fine_tunes(book: PriceBook, new_call: NewCall, provider: str, model: str, status: str) -> None:
    """A version or the name of a fine-tune does not make another model of it; any other ending may."""
    endpoint, usage = ("generate_content", GEMINI) if provider == "google" else ("chat", CHAT)
    assert priced(book, new_call, usage, provider=provider, model=model, endpoint=endpoint).cost_status == status


@pytest.mark.parametrize("model", ["gpt-4o-search-preview-2025-03-11", "gpt-5-search-api", "gpt-5-search-api-2025-10-14"])
def test_models_that_always_search(book: PriceBook, new_call: NewCall, model: str, tmp_path: Path) -> None:
    """The fee for a search is in no usage: such a cost is partial, until the user names a fee."""
    call = priced(book, new_call, CHAT, model=model)
    assert (call.cost_status, "each search" in " ".join(call.cost_reasons)) == ("partial", True)
    path = tmp_path / "prices.toml"
    path.write_text(f'[[price]]\nmodel = "{model}"\ninput = 1\noutput = 1\nrequest = 0.01\n')
    own = priced(open_book(path), new_call, CHAT, model=model)
    assert (own.cost_usd, own.cost_status) == (Decimal("0.012"), "priced")


@pytest.mark.parametrize(
    ("model", "size", "usd", "status"),
    [
        ("sonar", "low", "0.007", "priced"),
        ("sonar", "medium", "0.01", "priced"),
        ("sonar", "high", "0.014", "priced"),
        ("sonar-pro", "low", "0.024", "priced"),
        ("sonar", None, "0.014", "partial"),
    ],
)
def test_the_request_fee_of_perplexity(book: PriceBook, new_call: NewCall, model: str, size: str | None, usd: str, status: str) -> None:
    """Without a bill: by the size of the search context; one that is not reported is said."""
    usage = {**CHAT, **({} if size is None else {"search_context_size": size})}
    call = priced(book, new_call, usage, provider="perplexity", model=model)
    assert (call.cost_usd, call.cost_status) == (Decimal(usd), status)


@pytest.mark.parametrize("unit", ["provisioned-model", "imported-model"])
def test_what_is_billed_by_the_hour_has_no_price_by_the_token(book: PriceBook, new_call: NewCall, unit: str, tmp_path: Path) -> None:
    """Bedrock's model units, whatever model the answer names; a price of the user's for that ARN counts."""
    arn = f"arn:aws:bedrock:us-east-1:123456789012:{unit}/pm123"
    values: dict[str, Any] = {"provider": "bedrock", "model": "claude-sonnet-4-5-20250929", "requested_model": arn, "endpoint": "messages"}
    call = priced(book, new_call, CLAUDE, **values)
    assert (call.cost_usd, call.cost_status) == (None, "unpriced")
    assert call.cost_reasons[0] == f"{unit} of Bedrock is billed by the hour, not by the token"
    path = tmp_path / "prices.toml"
    path.write_text(f'[[price]]\nmodel = "*{unit}/pm123"\ninput = 1\noutput = 1\n')
    assert priced(open_book(path), new_call, CLAUDE, **values).cost_usd == Decimal("0.002")


@pytest.mark.parametrize(
    ("written", "usd"),
    [
        ({"cacheWriteInputTokens": 1_000_000}, "0.8"),
        ({"cacheWriteInputTokens": 1_000_000, "cacheDetails": [{"ttl": "1h", "inputTokens": 1_000_000}]}, "0.8"),
    ],
)
def test_a_cache_write_without_a_price_is_billed_as_input(book: PriceBook, new_call: NewCall, written: dict[str, Any], usd: str) -> None:
    """Nova Pro, $0.80 a million: at least the price of input, and partial."""
    usage = {"inputTokens": 0, "outputTokens": 0, **written}
    call = priced(book, new_call, usage, provider="bedrock", model="amazon.nova-pro-v1:0", endpoint="converse")
    assert (call.cost_usd, call.cost_status) == (Decimal(usd), "partial")
    assert "has no price of its own" in call.cost_reasons[0]


def test_a_place_and_a_speed_together(book: PriceBook, new_call: NewCall) -> None:
    """Opus 4.6 in fast mode, $30 and $150, in the US: a tenth more."""
    usage = {**CLAUDE, "speed": "fast", "inference_geo": "us"}
    call = priced(book, new_call, usage, "2026-04-15T12:00", provider="anthropic", model="claude-opus-4-6", endpoint="messages")
    assert (call.cost_usd, call.cost_status) == (Decimal("0.198"), "priced")


OWN = """
[[price]]
model = "claude-opus-4-6"
input = 4.50
output = 22.50

[[price]]
model = "gpt-5.4"
input = 2
output = 10

[[price]]
model = "self-hosted"
input = 1
output = 1

[[price]]
model = "gpt-5-nano"
batch = true
input = 1
output = 1

[[price]]
model = "gpt-5-mini"
whole = true
input = 1
output = 1
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("usage", "values", "usd", "status"),
    [
        # 4.50 and 22.50 a million; half of it in a batch, a tenth more in the US, six times in fast mode
        (CLAUDE, {"model": "claude-opus-4-6"}, "0.027", "priced"),
        (CLAUDE, {"model": "claude-opus-4-6", "batch": True}, "0.0135", "priced"),
        ({**CLAUDE, "inference_geo": "us"}, {"model": "claude-opus-4-6"}, "0.0297", "priced"),
        ({**CLAUDE, "inference_geo": "us"}, {"model": "claude-opus-4-6", "batch": True}, "0.01485", "priced"),
        ({**CLAUDE, "speed": "fast"}, {"model": "claude-opus-4-6"}, "0.162", "priced"),
        ({**CLAUDE, "service_tier": "priority"}, {"model": "claude-opus-4-6"}, "0.027", "partial"),
        ({**CLAUDE, "inference_geo": "eu"}, {"model": "claude-opus-4-6"}, "0.027", "partial"),
        # a tier of the list, a place, a long input: twice and one and a half times
        (CHAT, {"model": "gpt-5.4", "service_tier": "flex"}, "0.006", "priced"),
        (CHAT, {"model": "gpt-5.4", "host": "eu.api.openai.com"}, "0.0132", "priced"),
        ({"prompt_tokens": 300_000, "completion_tokens": 1000}, {"model": "gpt-5.4"}, "1.215", "priced"),
        # a model that is on no list
        (CHAT, {"model": "self-hosted"}, "0.002", "priced"),
        (CHAT, {"model": "self-hosted", "batch": True}, "0.002", "partial"),
        (CHAT, {"model": "self-hosted", "service_tier": "flex"}, "0.002", "partial"),
        # a price for these terms, and one that is everything, are taken as they are
        (CHAT, {"model": "gpt-5-nano", "batch": True}, "0.002", "priced"),
        (CHAT, {"model": "gpt-5-mini", "batch": True}, "0.002", "priced"),
    ],
    ids=str,
)
def test_the_factors_of_the_list_apply_to_a_price_of_ones_own(
    tmp_path: Path, new_call: NewCall, usage: Any, values: dict[str, Any], usd: str, status: str
) -> None:
    """A price without terms is a standard price: batch, tier, speed, place and a long input are not swallowed by it."""
    path = tmp_path / "prices.toml"
    path.write_text(OWN)
    claude = values["model"].startswith("claude")
    values = {"provider": "anthropic" if claude else "openai", "endpoint": "messages" if claude else "chat", **values}
    call = priced(open_book(path), new_call, usage, **values)
    assert (call.cost_usd, call.cost_status) == (Decimal(usd), status)
    assert explain(call).agrees


@pytest.mark.parametrize(("when", "usd"), [("2026-10-06T23:59", "0.2"), ("2026-10-07T00:00", "0.1")])
def test_the_cache_reads_of_sonnet_5_5(book: PriceBook, new_call: NewCall, when: str, usd: str) -> None:
    """$0.20 a million until 2026-10-07, $0.10 from then on."""
    usage = {"input_tokens": 0, "cache_read_input_tokens": 1_000_000, "output_tokens": 0}
    call = priced(book, new_call, usage, when, provider="anthropic", model="claude-sonnet-5-5", endpoint="messages")
    assert (call.cost_usd, call.cost_status) == (Decimal(usd), "priced")


def test_mythos(book: PriceBook, new_call: NewCall) -> None:
    """Claude Mythos 5.1: $10 and $50, cache reads $0.25; of limited availability, and not on the list."""
    usage = {**CLAUDE, "cache_read_input_tokens": 1000}
    call = priced(book, new_call, usage, provider="anthropic", model="claude-mythos-5-1", endpoint="messages")
    assert (call.cost_usd, call.cost_status) == (Decimal("0.06025"), "priced")


def test_reasoning_is_never_negative(book: PriceBook, new_call: NewCall) -> None:
    """More reasoning than output, of a model with a price for it: both in full ($8, $3 a million), and said."""
    usage = {"output": 100, "reasoning": 1000}
    call = priced(book, new_call, usage, provider="perplexity", model="sonar-deep-research", endpoint="usage")
    assert (call.cost_usd, call.cost_status) == (Decimal("0.0038"), "partial")
    assert explain(call).agrees
