"""
Our own dated rules: what the price data lack or have wrong, each with its source.

A price that no page of the provider states is not guessed: such a call stays ``partial`` or ``unpriced``.
"""

from __future__ import annotations

from decimal import Decimal

from voight_middleware.pricing.rules import TOKENS, Rule, moment

_WORKDAYS = frozenset(range(5))
_PEAK = ((1, 4), (6, 10))
_DEEPSEEK = "https://api-docs.deepseek.com/quick_start/pricing/"
_FAST = "https://platform.claude.com/docs/en/build-with-claude/fast-mode"


def _per_million(**usd: str) -> dict[str, Decimal]:
    return {name: Decimal(amount).scaleb(-6) for name, amount in usd.items()}


def _picture(model: str, price: str, size: str, quality: str | None = None) -> Rule:
    when = {"size": size} if quality is None else {"size": size, "quality": quality}
    return Rule(
        id=f"openai-{model}-{'-'.join(when.values())}",
        source=f"https://developers.openai.com/api/docs/models/{model}",
        provider="openai",
        model=model,
        when=when,
        usd={"images": Decimal(price)},
    )


def _deepseek(model: str, name: str, off_peak: dict[str, Decimal], since: str | None) -> list[Rule]:
    """Twice the price in peak hours, from Monday to Friday 01:00 to 04:00 and 06:00 to 10:00 UTC."""
    start = None if since is None else moment(since)
    calm = Rule(id=f"deepseek-{name}", source=_DEEPSEEK, provider="deepseek", model=model, since=start, usd=off_peak, whole=True)
    peak = Rule(
        id=f"deepseek-{name}-peak",
        source=_DEEPSEEK,
        provider="deepseek",
        model=model,
        since=start,
        weekdays=_WORKDAYS,
        hours=_PEAK,
        usd={unit: usd * 2 for unit, usd in off_peak.items()},
        whole=True,
    )
    return [calm, peak]


RULES: tuple[Rule, ...] = (
    Rule(
        id="openai-gpt-4o-audio-preview",
        source="https://developers.openai.com/api/docs/models/gpt-4o-audio-preview",
        provider="openai",
        model="gpt-4o-audio-preview*",
        usd=_per_million(audio_in="40", audio_out="80"),
    ),
    Rule(
        id="openai-gpt-4o-mini-audio-preview",
        source="https://developers.openai.com/api/docs/models/gpt-4o-mini-audio-preview",
        provider="openai",
        model="gpt-4o-mini-audio-preview*",
        usd=_per_million(audio_in="10", audio_out="20"),
    ),
    _picture("dall-e-3", "0.04", "1024x1024"),
    _picture("dall-e-3", "0.08", "1024x1024", "hd"),
    *(_picture("dall-e-3", "0.08", size) for size in ("1024x1792", "1792x1024")),
    *(_picture("dall-e-3", "0.12", size, "hd") for size in ("1024x1792", "1792x1024")),
    _picture("dall-e-2", "0.02", "1024x1024"),
    _picture("dall-e-2", "0.018", "512x512"),
    _picture("dall-e-2", "0.016", "256x256"),
    Rule(
        id="openai-regional",
        source="https://developers.openai.com/api/docs/models/gpt-5.4 (regional processing endpoints: 10 % uplift)",
        provider="openai",
        model="gpt-5.4|gpt-5.4-20*|gpt-5.4-pro*",
        host="*.api.openai.com",
        factor=Decimal("1.1"),
    ),
    Rule(
        id="anthropic-inference-geo-us",
        source="https://docs.aws.amazon.com/claude-platform/latest/userguide/data-residency.html (US: 1.1x)",
        provider="anthropic",
        when={"geo": "us"},
        factor=Decimal("1.1"),
    ),
    Rule(
        id="anthropic-opus-4-6-fast",
        source=_FAST,
        provider="anthropic",
        model="claude-opus-4-6*",
        when={"speed": "fast"},
        usd=_per_million(input="30", output="150"),
    ),
    Rule(
        id="xai-us-region",
        source="https://docs.x.ai/developers/pricing (US regional endpoint: 1.1x)",
        provider="xai|x-ai",
        host="us-*.api.x.ai",
        factor=Decimal("1.1"),
    ),
    Rule(
        id="openrouter-text-embedding-3-small",
        source="https://openrouter.ai/openai/text-embedding-3-small",
        provider="openrouter",
        model="openai/text-embedding-3-small",
        usd=_per_million(input="0.02"),
    ),
    Rule(
        id="openrouter-free",
        source="https://openrouter.ai/docs/faq (models whose id ends in :free)",
        provider="openrouter",
        model="*:free",
        usd=dict.fromkeys(TOKENS, Decimal(0)),
        whole=True,
    ),
    Rule(
        id="groq-whisper-minimum",
        source="https://groq.com/pricing (speech recognition: at least 10 seconds a request)",
        provider="groq",
        model="whisper-large-v3*",
        minimum={"seconds": 10},
    ),
    # DeepSeek's calendar: a flat price until 2026-08-16 16:00 UTC, peak and off-peak hours from then on.
    Rule(
        id="deepseek-v4-pro-flat",
        source=_DEEPSEEK,
        provider="deepseek",
        model="deepseek-v4-pro",
        until=moment("2026-08-16T16:00"),
        usd=_per_million(input="0.435", cache_read="0.003625", output="0.87"),
        whole=True,
    ),
    *_deepseek("deepseek-v4-pro", "v4-pro", _per_million(input="0.66", cache_read="0.022", output="1.98"), "2026-08-16T16:00"),
    *_deepseek("deepseek-flash", "flash", _per_million(input="0.15", cache_read="0.003", output="0.6"), None),
    *_deepseek("deepseek-v4-flash", "v4-flash", _per_million(input="0.15", cache_read="0.003", output="0.6"), "2026-09-10"),
)
