"""
Our own dated rules, each with its source: corrections and additions to the price data.

Prices that no page of the provider states are not guessed. Such a call stays ``partial`` or
``unpriced``.
"""

from __future__ import annotations

from decimal import Decimal

from voight_middleware.pricing.rules import TOKENS, Rule, moment

_WORKDAYS = frozenset(range(5))
_PEAK = ((1, 4), (6, 10))
_DEEPSEEK = "https://api-docs.deepseek.com/quick_start/pricing/"
_FAST = "https://platform.claude.com/docs/en/build-with-claude/fast-mode"
_RESIDENCY = "https://developers.openai.com/api/docs/guides/data-residency"
_BEFORE_UPLIFT = "|".join(
    (
        *(
            "gpt-3.5*",
            "gpt-4*",
            "ft:gpt-3.5*",
            "ft:gpt-4*",
            "chatgpt-4o*",
            "gpt-5",
            "gpt-5-mini*",
            "gpt-5-nano*",
            "gpt-5-pro*",
            "gpt-5-20*",
        ),
        *(
            "gpt-5-codex*",
            "gpt-5.[1-3]*",
            "o1*",
            "o3*",
            "o4-mini*",
            "text-embedding-*",
            "tts-1*",
            "whisper-1",
            "dall-e-*",
            "gpt-image-1*",
        ),
    )
)
_VERTEX = "https://platform.claude.com/docs/en/build-with-claude/claude-on-vertex-ai"
_VERTEX_REGIONS = "*-aiplatform.googleapis.com|aiplatform.*.rep.googleapis.com"
_CLAUDE = "https://platform.claude.com/docs/en/about-claude/pricing"
_LONG = {name: Decimal("1.5") if name in ("output", "reasoning") else Decimal(2) for name in TOKENS}
"""The surcharge for long inputs at Anthropic and OpenAI: 2x for all input, 1.5x for the output."""
_GROK_RETIRED = (
    "grok-3|grok-4|grok-4-0709|grok-4-latest|grok-4-fast-*reasoning|grok-4-1-fast-*reasoning"
)
_GROK_RETIREMENT = "https://docs.x.ai/developers/migration/may-15-retirement"
_FOUNDRY = "https://azure.microsoft.com/en-us/blog/gpt-5-6-now-available-in-microsoft-foundry/"
_SONAR = {"low": "0.005", "medium": "0.008", "high": "0.012"}
_SONAR_PRO = {"low": "0.006", "medium": "0.010", "high": "0.014"}


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
    """
    Return rules with twice the price in peak hours: Monday to Friday, 01:00 to 04:00 and 06:00 to
    10:00 UTC.
    """
    start = None if since is None else moment(since)
    calm = Rule(
        id=f"deepseek-{name}",
        source=_DEEPSEEK,
        provider="deepseek",
        model=model,
        since=start,
        usd=off_peak,
        whole=True,
    )
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
    *(
        Rule(
            id=f"{model}-audio",
            source=f"https://developers.openai.com/api/docs/models/{model} (audio tokens; seen since May 2026)",
            provider="openai",
            model=model,
            since=moment("2026-05-13"),
            doubt=f"OpenAI's page of this model has ${usd} a million audio tokens, the price data more",
        )
        for model, usd in (("gpt-4o-transcribe", "2.50"), ("gpt-4o-mini-transcribe", "1.25"))
    ),
    Rule(
        id="openai-gpt-5-6-cyber-long",
        source="https://developers.openai.com/api/docs/models/gpt-5.6-cyber (over 272K input tokens: 2x input, 1.5x output)",
        provider="openai",
        model="gpt-5.6-cyber*",
        above=272_000,
        factors=_LONG,
    ),
    Rule(
        id="anthropic-sonnet-4-long",
        source="https://platform.claude.com/docs/en/build-with-claude/context-windows (1M tokens, a beta that ended on 2026-04-30)",
        provider="anthropic|vertex|bedrock",
        model="claude-sonnet-4|claude-sonnet-4-0*|claude-sonnet-4-2*|claude-sonnet-4@*|claude-4-sonnet*|*anthropic.claude-sonnet-4-2*",
        above=200_000,
        factors=_LONG,
    ),
    Rule(
        id="bedrock-gpt-5-long",
        source="https://github.com/BerriAI/litellm/pull/38615 (an invoice has twice the price; no page of AWS says so)",
        provider="bedrock",
        model="openai.gpt-5.4|openai.gpt-5.5",
        above=272_000,
        doubt="an input of over 272,000 tokens may be billed at twice the price, which is not in the price data",
    ),
    Rule(
        id="azure-gpt-audio-2025-08-28",
        source="https://prices.azure.com/api/retail/prices (meters gpt aud 0828, global: more than OpenAI's price)",
        provider="azure",
        model="gpt-audio|gpt-audio-2025-08-28",
        usd=_per_million(audio_in="40", audio_out="80"),
    ),
    Rule(
        id="azure-gpt-audio-1-5",
        source="https://prices.azure.com/api/retail/prices (meters gpt aud 1.5, global)",
        provider="azure",
        model="gpt-audio-1.5*",
        usd=_per_million(audio_in="32", audio_out="64"),
    ),
    Rule(
        id="azure-gpt-5-6-sol-before-its-cut",
        source=f"{_FOUNDRY} (OpenAI's lower price of 2026-08-21 is Azure's from 2026-09-01 on)",
        provider="azure",
        model="gpt-5.6|gpt-5.6-sol*",
        since=moment("2026-08-21"),
        until=moment("2026-09-01"),
        factors={
            name: Decimal("1.5") if name in ("output", "reasoning") else Decimal("1.25")
            for name in TOKENS
        },
    ),
    Rule(
        id="azure-gpt-5-6-before-its-cut",
        source="https://github.com/anomalyco/models.dev/pull/3952 (not yet on 2026-08-02; by 2026-08-12 it is)",
        provider="azure",
        model="gpt-5.6-terra*|gpt-5.6-luna*",
        since=moment("2026-07-30"),
        until=moment("2026-08-12"),
        doubt="Azure followed OpenAI's lower price on a day that is not known: the lower price is used",
    ),
    Rule(
        id="xai-retired",
        source=f"{_GROK_RETIREMENT} (since 2026-05-15 12:00 PT these names mean grok-4.3, at its price)",
        provider="xai|x-ai",
        model=_GROK_RETIRED,
        since=moment("2026-05-15T19:00"),
        usd=_per_million(input="1.25", cache_read="0.2", output="2.5"),
    ),
    Rule(
        id="xai-retired-long",
        source="https://docs.x.ai/developers/models/grok-4.3 (from 200,000 tokens on: twice the price)",
        provider="xai|x-ai",
        model=_GROK_RETIRED,
        since=moment("2026-05-15T19:00"),
        above=199_999,
        factor=Decimal(2),
    ),
    Rule(
        id="xai-retired-others",
        source=f"{_GROK_RETIREMENT} (names that it does not have, or that are said to mean grok-build-0.1)",
        provider="xai|x-ai",
        model="grok-3-latest|grok-3-beta|grok-4-fast|grok-4-1-fast|grok-4*-reasoning-latest|grok-code-fast*",
        since=moment("2026-05-15T19:00"),
        doubt="xAI may answer this name with a newer model, at another price",
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
        source=f"{_RESIDENCY} (10 % uplift for models released on or after 2026-03-05)",
        provider="openai",
        model="gpt-5.[4-9]*|gpt-[6-9]*",
        host="*.api.openai.com",
        factor=Decimal("1.1"),
    ),
    Rule(
        id="openai-regional-before-2026-03-05",
        source=f"{_RESIDENCY} (no uplift for models released before 2026-03-05)",
        provider="openai",
        model=_BEFORE_UPLIFT,
        host="*.api.openai.com",
        factor=Decimal(1),
    ),
    *(
        Rule(
            id=f"openai-{name}-searches",
            source="https://developers.openai.com/api/docs/pricing (web search: a fee for each call)",
            provider="openai|azure",
            model=f"{name}*",
            doubt="each search of this model is billed a fee that its usage does not report",
        )
        for name in ("gpt-4o-search-preview", "gpt-4o-mini-search-preview", "gpt-5-search-api")
    ),
    Rule(
        id="openai-gpt-5-search-api",
        source="https://developers.openai.com/api/docs/models/gpt-5-search-api (a snapshot: as its alias)",
        provider="openai",
        model="gpt-5-search-api-20*",
        usd=_per_million(input="1.25", cache_read="0.125", output="10"),
    ),
    Rule(
        id="vertex-claude-regional",
        source=f"{_VERTEX} (regional and multi-region endpoints: 10 % premium, from Claude Sonnet 4.5 on)",
        provider="vertex",
        model="claude-*-4-[5-9]*|claude-opus-[5-9]*|claude-sonnet-[5-9]*|claude-haiku-[5-9]*|claude-fable-*|claude-mythos-*",
        host=_VERTEX_REGIONS,
        factor=Decimal("1.1"),
    ),
    Rule(
        id="vertex-claude-before-4-5",
        source=f"{_VERTEX} (older models keep their price)",
        provider="vertex",
        model="claude-[1-3]*|claude-*-4|claude-*-4-[01]|claude-*-4-[01][-@]*|claude-*-4-20*|claude-*-4@*|claude-4-*",
        host=_VERTEX_REGIONS,
        factor=Decimal(1),
    ),
    Rule(
        id="anthropic-sonnet-5-5-cache-reads",
        source=f"{_CLAUDE} (cache reads of Claude Sonnet 5.5: $0.20 until 2026-10-07)",
        provider="anthropic",
        model="claude-sonnet-5-5*",
        until=moment("2026-10-07"),
        usd=_per_million(cache_read="0.2"),
    ),
    *(
        Rule(
            id=f"anthropic-{model}",
            source=f"{_CLAUDE} (limited availability)",
            provider="anthropic",
            model=f"claude-{model}|claude-{model}-20*",
            usd={
                **_per_million(
                    input="10",
                    cache_write="12.5",
                    cache_write_5m="12.5",
                    cache_write_1h="20",
                    cache_read=read,
                    output="50",
                ),
                "web_search": Decimal("0.01"),
            },
        )
        for model, read in (("mythos-5", "1"), ("mythos-5-1", "0.25"))
    ),
    *(
        Rule(
            id=f"perplexity-{model}-{size}",
            source="https://docs.perplexity.ai/docs/getting-started/pricing (request fee by search context size)",
            provider="perplexity",
            model=model,
            when={"size": size},
            usd={"request": Decimal(fee)},
        )
        for model, fees in (
            ("sonar", _SONAR),
            ("sonar-pro", _SONAR_PRO),
            ("sonar-reasoning-pro", _SONAR_PRO),
        )
        for size, fee in fees.items()
    ),
    Rule(
        id="perplexity-context",
        source="https://docs.perplexity.ai/docs/getting-started/pricing (request fee by search context size)",
        provider="perplexity",
        model="sonar|sonar-pro|sonar-reasoning|sonar-reasoning-pro",
        without="size",
        doubt="the request fee is that of the largest search context: its size was not reported",
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
        id="vertex-gemini-regional",
        source="https://github.com/BerriAI/litellm/pull/37543 (regional endpoints cost 1.1x since July 2026, and not before)",
        provider="vertex",
        model="gemini-2.5-*|gemini-3*",
        host=_VERTEX_REGIONS,
        until=moment("2026-07-01"),
        factor=Decimal(1),
    ),
    Rule(
        id="mistral-large-latest",
        source="https://docs.mistral.ai/models/mistral-large-3-25-12 (the name means this model since its release)",
        provider="mistral",
        model="mistral-large-latest",
        since=moment("2025-12-02"),
        usd=_per_million(input="0.5", cache_read="0.05", output="1.5"),
        whole=True,
    ),
    Rule(
        id="mistral-magistral-latest",
        source="https://docs.mistral.ai/models/magistral-medium-1-0-25-06 (replaced by Mistral Medium 3.5, which has another price)",
        provider="mistral",
        model="magistral-*-latest",
        since=moment("2026-04-28"),
        doubt="this name has come to mean a newer model with another price: the price of the former one is used",
    ),
    Rule(
        id="groq-whisper-minimum",
        source="https://groq.com/pricing (speech recognition: at least 10 seconds a request)",
        provider="groq",
        model="whisper-large-v3*",
        minimum={"seconds": 10},
    ),
    # DeepSeek: a flat price until 2026-08-16 16:00 UTC, then peak and off-peak hours.
    Rule(
        id="deepseek-v4-pro-flat",
        source=_DEEPSEEK,
        provider="deepseek",
        model="deepseek-v4-pro",
        until=moment("2026-08-16T16:00"),
        usd=_per_million(input="0.435", cache_read="0.003625", output="0.87"),
        whole=True,
    ),
    *_deepseek(
        "deepseek-v4-pro",
        "v4-pro",
        _per_million(input="0.66", cache_read="0.022", output="1.98"),
        "2026-08-16T16:00",
    ),
    *_deepseek(
        "deepseek-flash",
        "flash",
        _per_million(input="0.15", cache_read="0.003", output="0.6"),
        None,
    ),
    *_deepseek(
        "deepseek-v4-flash",
        "v4-flash",
        _per_million(input="0.15", cache_read="0.003", output="0.6"),
        "2026-09-10",
    ),
)
