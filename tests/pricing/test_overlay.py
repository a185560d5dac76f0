"""Our own price rules: each against a figure of the provider's own page, at the edges of its time, its host and its terms."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from voight_middleware.pricing import PriceBook
from voight_middleware.pricing.overlay import RULES
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


def rules_of(call: Call) -> list[str]:
    return [rule["id"] for line in (call.price or "").splitlines() for rule in json.loads(line)["rules"]]


MILLION = {"prompt_tokens": 3_000_000, "completion_tokens": 1_000_000, "prompt_tokens_details": {"cached_tokens": 1_000_000}}
V4_PRO: dict[str, Any] = {"provider": "deepseek", "model": "deepseek-v4-pro"}


@pytest.mark.parametrize(
    ("when", "usd"),
    [
        # 2 x 0.435 + 0.003625 + 0.87, whatever the hour
        ("2026-08-15T02:00", "1.743625"),
        ("2026-08-16T15:59", "1.743625"),
        # a Sunday: 2 x 0.66 + 0.022 + 1.98
        ("2026-08-16T16:00", "3.322"),
        ("2026-08-17T00:59", "3.322"),
        # Monday to Friday, 01:00 to 04:00 and 06:00 to 10:00 UTC: twice
        ("2026-08-17T01:00", "6.644"),
        ("2026-11-18T03:59", "6.644"),
        ("2026-11-18T04:00", "3.322"),
        ("2026-11-18T06:00", "6.644"),
        ("2026-11-18T09:59", "6.644"),
        ("2026-11-18T10:00", "3.322"),
        ("2026-11-20T06:00", "6.644"),
        ("2026-11-21T06:00", "3.322"),
        ("2026-11-22T02:00", "3.322"),
    ],
)
def test_the_calendar_of_deepseek(book: PriceBook, new_call: NewCall, when: str, usd: str) -> None:
    """Source: DeepSeek, "Models & Pricing": a flat price until 2026-08-16 16:00 UTC, peak hours on workdays from then on."""
    call = priced(book, new_call, MILLION, when, **V4_PRO)
    assert (call.cost_usd, call.cost_status) == (Decimal(usd), "priced")


def test_a_model_whose_peaks_are_not_known_is_partial(book: PriceBook, new_call: NewCall) -> None:
    """deepseek-v4-flash between August and September: its price in peak hours is on no page."""
    call = priced(book, new_call, MILLION, "2026-08-20T12:00", provider="deepseek", model="deepseek-v4-flash")
    assert call.cost_status == "partial"


US = "https://docs.aws.amazon.com/claude-platform/latest/userguide/data-residency.html"


@pytest.mark.parametrize(
    ("geo", "usd", "status"),
    [
        (None, "0.0225", "priced"),
        ("global", "0.0225", "priced"),
        ("not_available", "0.0225", "priced"),
        ("us", "0.02475", "priced"),
        ("eu", "0.0225", "partial"),
    ],
)
def test_inference_in_the_us_costs_a_tenth_more(book: PriceBook, new_call: NewCall, geo: str | None, usd: str, status: str) -> None:
    """1.1 times every token; a place without a known premium is said. 2,000 x $5 + 500 x $25 a million, of Opus 4.6."""
    usage = {"input_tokens": 2000, "output_tokens": 500, **({} if geo is None else {"inference_geo": geo})}
    call = priced(book, new_call, usage, provider="anthropic", model="claude-opus-4-6", endpoint="messages")
    assert (call.cost_usd, call.cost_status) == (Decimal(usd), status)


def test_a_premium_is_for_tokens_and_not_for_searches(book: PriceBook, new_call: NewCall) -> None:
    """Two searches are $0.02 in the US too."""
    usage = {"input_tokens": 2000, "output_tokens": 500, "inference_geo": "us", "server_tool_use": {"web_search_requests": 2}}
    call = priced(book, new_call, usage, provider="anthropic", model="claude-opus-4-6", endpoint="messages")
    assert call.cost_usd == Decimal("0.02475") + Decimal("0.02")


@pytest.mark.parametrize(
    ("model", "host", "usd", "status"),
    [
        ("gpt-5.4", "api.openai.com", "0.0175", "priced"),
        ("gpt-5.4-2026-03-05", "eu.api.openai.com", "0.01925", "priced"),
        ("gpt-5.4", "eu.api.openai.com", "0.01925", "priced"),
        ("gpt-4o-mini", "eu.api.openai.com", "0.00075", "priced"),
    ],
)
def test_the_regional_hosts_of_openai(book: PriceBook, new_call: NewCall, model: str, host: str, usd: str, status: str) -> None:
    """Source: OpenAI, "Data residency": 10 % more for models released on or after 2026-03-05, and not for older ones."""
    call = priced(book, new_call, {"prompt_tokens": 1000, "completion_tokens": 1000}, model=model, host=host)
    assert (call.cost_usd, call.cost_status) == (Decimal(usd), status)


@pytest.mark.parametrize(
    ("model", "when", "usd", "status"),
    [
        ("mistral-large-latest", "2025-11-01T12:00", "0.008", "priced"),
        ("mistral-large-latest", "2026-11-18T12:00", "0.002", "priced"),
        ("mistral-large-2411", "2026-11-18T12:00", "0.008", "priced"),
        ("magistral-medium-latest", "2026-01-18T12:00", "0.007", "priced"),
        ("magistral-medium-latest", "2026-11-18T12:00", "0.007", "partial"),
        ("magistral-small-latest", "2026-11-18T12:00", "0.002", "partial"),
    ],
)
def test_names_that_come_to_mean_another_model(book: PriceBook, new_call: NewCall, model: str, when: str, usd: str, status: str) -> None:
    """Source: Mistral, model cards: Large 3 costs $0.50 and $1.50 a million, Large 2 cost $2 and $6. Magistral is doubtful."""
    call = priced(book, new_call, {"prompt_tokens": 1000, "completion_tokens": 1000}, when, provider="mistral", model=model)
    assert (call.cost_usd, call.cost_status) == (Decimal(usd), status)


def test_the_fast_mode_of_old(book: PriceBook, new_call: NewCall) -> None:
    """Opus 4.6 was $30 and $150 in fast mode; what a cached token was then is on no page, and said."""
    values: dict[str, Any] = {"provider": "anthropic", "model": "claude-opus-4-6", "endpoint": "messages"}
    usage = {"input_tokens": 3000, "output_tokens": 4000, "speed": "fast"}
    call = priced(book, new_call, usage, "2026-04-15T12:00", **values)
    assert (call.cost_usd, call.cost_status, rules_of(call)) == (Decimal("0.69"), "priced", ["anthropic-opus-4-6-fast"])
    call = priced(book, new_call, {**usage, "cache_read_input_tokens": 1000}, "2026-04-15T12:00", **values)
    assert call.cost_status == "partial"
    assert "cache_read has no price of its own" in call.cost_reasons[0]


@pytest.mark.parametrize(
    ("model", "raw", "usd", "status"),
    [
        # https://developers.openai.com/api/docs/models/dall-e-3, dall-e-2: price of a picture
        ("dall-e-3", {"images": 1}, "0.04", "priced"),
        ("dall-e-3", {"images": 3, "size": "1024x1024", "quality": "standard"}, "0.12", "priced"),
        ("dall-e-3", {"images": 1, "size": "1024x1024", "quality": "hd"}, "0.08", "priced"),
        ("dall-e-3", {"images": 1, "size": "1792x1024", "quality": "standard"}, "0.08", "priced"),
        ("dall-e-3", {"images": 2, "size": "1024x1792", "quality": "hd"}, "0.24", "priced"),
        ("dall-e-3", {"images": 1, "size": "1x1"}, None, "unpriced"),
        ("dall-e-2", {"images": 1, "size": "256x256"}, "0.016", "priced"),
        ("dall-e-2", {"images": 1, "size": "512x512"}, "0.018", "priced"),
        ("dall-e-2", {"images": 10}, "0.2", "priced"),
        # gpt-image-1: $5 text in, $10 images in, $40 images out a million
        (
            "gpt-image-1",
            {"input_tokens": 60, "input_tokens_details": {"text_tokens": 20, "image_tokens": 40}, "output_tokens": 1000},
            "0.0405",
            "priced",
        ),
    ],
)
def test_pictures(book: PriceBook, new_call: NewCall, model: str, raw: Any, usd: str | None, status: str) -> None:
    """By number, size and quality, or by tokens."""
    call = priced(book, new_call, raw, model=model, endpoint="images")
    assert (call.cost_usd, call.cost_status) == (None if usd is None else Decimal(usd), status)


@pytest.mark.parametrize(
    ("endpoint", "model", "raw", "usd", "status"),
    [
        # whisper-1: $0.006 a minute
        ("transcriptions", "whisper-1", {"type": "duration", "seconds": 90}, "0.009", "priced"),
        ("translations", "whisper-1", {"type": "duration", "seconds": 8.47}, "0.0009", "priced"),
        # gpt-4o-transcribe: $2.50 text in, $6 audio in, $10 out a million; OpenAI's page of the model has $2.50 for audio
        (
            "transcriptions",
            "gpt-4o-transcribe",
            {"type": "tokens", "input_tokens": 30, "input_token_details": {"text_tokens": 4, "audio_tokens": 26}, "output_tokens": 9},
            "0.000256",
            "partial",
        ),
        # tts-1: $15 a million characters
        ("speech", "tts-1", {"characters": 1000}, "0.015", "priced"),
        # gpt-4o-mini-tts: $0.60 text in, $12 audio out a million; characters are not what it is billed by
        ("speech", "gpt-4o-mini-tts", {"input_tokens": 100, "output_tokens": 1000}, "0.01206", "priced"),
        ("speech", "gpt-4o-mini-tts", {"characters": 1000}, None, "unpriced"),
        ("videos", "sora-2", {"seconds": 8, "size": "720x1280"}, None, "unpriced"),
    ],
)
def test_sound_and_video(endpoint: str, model: str, raw: Any, usd: str | None, status: str, request: pytest.FixtureRequest) -> None:
    """By minute, by token or by character; what is not on the list is not guessed."""
    call = priced(request.getfixturevalue("book"), request.getfixturevalue("new_call"), raw, model=model, endpoint=endpoint)
    assert (call.cost_usd, call.cost_status) == (None if usd is None else Decimal(usd), status)


def test_a_realtime_answer(book: PriceBook, new_call: NewCall) -> None:
    """gpt-realtime-2: text $4, cached $0.40, audio $32, cached audio $0.40; out: text $24, audio $64, a million each."""
    usage = {
        "input_tokens": 1000,
        "input_token_details": {
            "text_tokens": 400,
            "audio_tokens": 600,
            "cached_tokens": 300,
            "cached_tokens_details": {"text_tokens": 100, "audio_tokens": 200},
        },
        "output_tokens": 500,
        "output_token_details": {"text_tokens": 100, "audio_tokens": 400},
        "total_tokens": 1500,
    }
    call = priced(book, new_call, usage, model="gpt-realtime-2", endpoint="realtime")
    micro = 300 * Decimal(4) + 100 * Decimal("0.4") + 400 * Decimal(32) + 200 * Decimal("0.4") + 100 * Decimal(24) + 400 * Decimal(64)
    assert (call.cost_usd, call.cost_status) == (micro.scaleb(-6), "priced")


def test_whisper_at_groq_is_billed_for_ten_seconds_at_least(book: PriceBook, new_call: NewCall) -> None:
    """Source: Groq, pricing of speech recognition."""
    short, ten = (
        priced(book, new_call, {"seconds": seconds}, provider="groq", model="whisper-large-v3", endpoint="transcriptions").cost_usd
        for seconds in (1, 10)
    )
    assert short == ten is not None


BATCH = {"prompt_tokens": 1_000_000, "completion_tokens": 1_000_000}


@pytest.mark.parametrize(
    ("when", "status"), [("2026-11-18T12:00", "priced"), ("2026-10-14T12:00", "priced"), ("2026-09-01T12:00", "partial")]
)
def test_a_tier_is_not_forgotten_before_the_day_on_which_it_was_listed(book: PriceBook, new_call: NewCall, when: str, status: str) -> None:
    """
    Most prices of tiers are dated by when they were added to the data. gpt-5-nano in a batch is half of $0.05 and $0.40; before that
    day the same is used, and said.
    """
    call = priced(book, new_call, BATCH, when, model="gpt-5-nano", batch=True)
    assert (call.cost_usd, call.cost_status) == (Decimal("0.225"), status)


def test_what_a_tier_does_not_list_is_said(book: PriceBook, new_call: NewCall) -> None:
    """gpt-4o-mini in a batch has no price for cached tokens: the standard one is used, and the call is partial only if it had some."""
    plain = priced(book, new_call, BATCH, model="gpt-4o-mini", batch=True)
    cached = priced(book, new_call, {**BATCH, "prompt_tokens_details": {"cached_tokens": 1000}}, model="gpt-4o-mini", batch=True)
    assert (plain.cost_status, cached.cost_status) == ("priced", "partial")
    assert "cache_read" in cached.cost_reasons[0]


def test_the_tier_of_an_anthropic_batch_is_a_batch(book: PriceBook, new_call: NewCall) -> None:
    """Its usage says ``service_tier: batch``: half of $2 and $10 a million, of Sonnet 5."""
    usage = {"input_tokens": 40_000, "output_tokens": 6000, "service_tier": "batch"}
    call = priced(book, new_call, usage, provider="anthropic", model="claude-sonnet-5", endpoint="messages")
    assert (call.cost_usd, call.cost_status) == (Decimal("0.07"), "priced")


OPENROUTER: dict[str, Any] = {"provider": "openrouter", "model": "openai/gpt-4o-mini"}


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        ({"cost": 0.00012345}, "0.00012345"),
        ({"cost": 0}, "0"),
        ({"cost": 0.0001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.002}}, "0.0021"),
        ({"cost": 0.0001, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.002}}, "0.0001"),
        ({"cost": 1e-05}, "0.00001"),
    ],
)
def test_what_the_provider_says_that_it_cost_wins(book: PriceBook, new_call: NewCall, usage: Any, usd: str) -> None:
    """OpenRouter reports its own bill; ours is kept beside it."""
    call = priced(book, new_call, {"prompt_tokens": 1000, "completion_tokens": 100, **usage}, **OPENROUTER)
    assert (call.cost_usd, call.cost_status) == (Decimal(usd), "priced")
    assert call.list_femto == 210_000_000_000


@pytest.mark.parametrize("cost", [None, -1, True, "0.1"])
def test_a_reported_cost_that_is_none_is_not_believed(book: PriceBook, new_call: NewCall, cost: Any) -> None:
    """Then our own price holds."""
    call = priced(book, new_call, {"prompt_tokens": 1000, "completion_tokens": 100, "cost": cost}, **OPENROUTER)
    assert (call.cost_usd, call.list_femto) == (Decimal("0.00021"), None)


def test_only_openrouter_is_asked_for_its_bill(book: PriceBook, new_call: NewCall) -> None:
    """A proxy's idea of a cost is not the provider's."""
    call = priced(book, new_call, {"prompt_tokens": 1000, "completion_tokens": 100, "cost": 7}, model="gpt-4o-mini")
    assert call.cost_usd == Decimal("0.00021")


@pytest.mark.parametrize(
    ("usage", "unknown"),
    [
        ({"num_sources_used": 4}, "num_sources_used = 4"),
        ({"prompt_tokens_details": {"video_tokens": 9}}, "prompt_tokens_details.video_tokens = 9"),
        ({"num_sources_used": 0, "note": "x", "total_time": 0.25, "flag": True, "cost_details": {"a": 1}}, None),
    ],
)
def test_a_key_that_nobody_knows_is_reported(book: PriceBook, new_call: NewCall, usage: Any, unknown: str | None) -> None:
    """Something that has a number may be billed: the call is partial, and says which key it was."""
    call = priced(book, new_call, {"prompt_tokens": 1000, "completion_tokens": 100, **usage})
    assert call.cost_status == ("partial" if unknown else "priced")
    assert [reason for reason in call.cost_reasons if unknown and unknown in reason] == list(call.cost_reasons)


@pytest.mark.parametrize("key", ["cached_tokens", "num_cached_tokens", "prompt_cache_hit_tokens"])
def test_cached_tokens_are_found_where_compatible_servers_put_them(book: PriceBook, new_call: NewCall, key: str) -> None:
    """Moonshot, Mistral, DeepSeek: not in the details."""
    call = priced(book, new_call, {"prompt_tokens": 1000, "completion_tokens": 100, key: 400})
    assert call.usage is not None
    assert (call.usage.input, call.usage.cache_read) == (600, 400)


def test_every_rule_has_a_source_and_an_id_of_its_own() -> None:
    """A figure that nobody can look up is no price."""
    assert all(rule.source.startswith("https://") for rule in RULES)
    assert len({rule.id for rule in RULES}) == len(RULES)
