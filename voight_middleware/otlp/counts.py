"""
The counts of a span as a usage, normalized for each convention.

In OpenTelemetry and OpenInference, the input includes cache reads and cache writes, and the output
includes reasoning. In the Vercel AI SDK, this depends on the version. A missing count is None. An
invalid count becomes -1, which the ingester refuses with a reason: the call is stored without a
price.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from voight_middleware.otlp.spans import json_object, text
from voight_middleware.providers.usage_formats import read_usage, recognise
from voight_middleware.records.usage import Component, Usage, UsageError

Attributes = Mapping[str, Any]

_NO_COUNT = -1
_MAX_COUNT = 2**53

_EXCLUDING_CACHE = frozenset({"anthropic", "bedrock", "vertex"})
"""Providers whose input excluded cache reads and writes in the Vercel AI SDK before version 6."""


class Reported(NamedTuple):
    """A usage in the format of the journal."""

    raw: str
    """JSON."""
    dialect: str
    input: int | None
    """All input tokens, to compare spans."""
    output: int | None


def reported(attributes: Attributes, provider: str) -> Reported | None:
    """Return the usage that a span reports; None if it reports none."""
    if "ai.operationId" in attributes:
        return _vercel(attributes, provider)
    return (
        _usage(_openinference(attributes))
        or _usage(_opentelemetry(attributes))
        or _langfuse(attributes)
    )


def _usage(usage: Usage) -> Reported | None:
    if usage == _NOTHING:
        return None
    return Reported(
        msgspec.json.encode(usage).decode(), "usage", usage.input_tokens, usage.output_tokens
    )


_NOTHING = Usage()


def _unchanged(usage: Mapping[str, Any], dialect: str) -> Reported:
    """Return the provider's own usage, passed on by a library."""
    parts: tuple[Component, ...] = ()
    with contextlib.suppress(UsageError):
        parts = read_usage(dialect, usage)
    return Reported(
        msgspec.json.encode(usage).decode(),
        dialect,
        _sum(*(part.usage.input_tokens for part in parts)),
        _sum(*(part.usage.output_tokens for part in parts)),
    )


def _count(attributes: Attributes, *names: str) -> int | None:
    """
    Return the first of these attributes that is a number.

    A whole number may be a double (JavaScript has no integers) or a text (64 bits in JSON). The
    Vercel AI SDK writes NaN for an unknown count.
    """
    for name in names:
        value = attributes.get(name)
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value) if len(value) < 20 else _MAX_COUNT
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            return _NO_COUNT
        return min(value, _MAX_COUNT)
    return None


def _rest(total: int | None, *parts: int | None) -> int | None:
    """Return *total* minus *parts*."""
    if total is None:
        return None
    if total < 0 or any(part is not None and part < 0 for part in parts):
        return _NO_COUNT
    rest = total - sum(part or 0 for part in parts)
    return rest if rest >= 0 else _NO_COUNT


def _beside_cache(total: int | None, read: int | None, written: int | None) -> int | None:
    """
    Return the input that was neither read from the cache nor written to it.

    If *total* is less than its parts, it already excludes them, as in Anthropic's own API.
    """
    rest = _rest(total, read, written)
    return total if rest == _NO_COUNT and min(total or 0, read or 0, written or 0) >= 0 else rest


def _sum(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return (_NO_COUNT if min(known) < 0 else sum(known)) if known else None


def _with_reasoning(
    output: int | None, reasoning: int | None, total: int | None, inputs: int | None
) -> int | None:
    """
    Return the output including reasoning, if *total* shows that *output* excludes it.

    Gemini and xAI count reasoning separately, and some libraries pass that on.
    """
    if (
        output is None
        or inputs is None
        or total is None
        or not reasoning
        or min(output, inputs, reasoning) < 0
    ):
        return output
    return output + reasoning if total == inputs + output + reasoning else output


def _opentelemetry(attributes: Attributes) -> Usage:
    """
    Source: OpenTelemetry, "Semantic conventions for generative AI spans", ``gen_ai.usage.*``: input
    tokens include cached ones.

    Also read: the former ``prompt_tokens``; ``cache_write`` of anthropic 2.x; the names of
    OpenLLMetry (opentelemetry-semantic-conventions-ai 0.5) and of pydantic-ai
    (``gen_ai.usage.details.*``).
    """
    prefix = "gen_ai.usage"
    read = _count(
        attributes,
        *(
            f"{prefix}.cache_read.input_tokens",
            f"{prefix}.cache_read_input_tokens",
            f"{prefix}.input_tokens.cached",
        ),
        f"{prefix}.details.cache_read_tokens",
    )
    read = read if read is not None else _of_litellm(attributes, "cached_tokens")
    written_5m = _count(attributes, "anthropic.usage.cache_creation.ephemeral_5m_input_tokens")
    written_1h = _count(attributes, "anthropic.usage.cache_creation.ephemeral_1h_input_tokens")
    written = _count(
        attributes,
        *(
            f"{prefix}.cache_creation.input_tokens",
            f"{prefix}.cache_write.input_tokens",
            f"{prefix}.cache_creation_input_tokens",
        ),
        f"{prefix}.details.cache_write_tokens",
    )
    written = (
        written if written is not None else _of_litellm(attributes, "cache_creation_input_tokens")
    )
    total_in = _count(
        attributes, f"{prefix}.input_tokens", f"{prefix}.prompt_tokens", "llm.usage.prompt_tokens"
    )
    total_out = _count(
        attributes,
        f"{prefix}.output_tokens",
        f"{prefix}.completion_tokens",
        "llm.usage.completion_tokens",
    )
    reasoning = _count(
        attributes,
        *(
            f"{prefix}.reasoning.output_tokens",
            f"{prefix}.reasoning_tokens",
            f"{prefix}.output_tokens.reasoning",
        ),
        f"{prefix}.details.reasoning_tokens",
    )
    total = _count(attributes, f"{prefix}.total_tokens", "llm.usage.total_tokens")
    total_out = _with_reasoning(total_out, reasoning, total, total_in)
    audio_in = _count(
        attributes, f"{prefix}.audio.input_tokens", f"{prefix}.details.input_audio_tokens"
    )
    audio_read = _count(
        attributes,
        f"{prefix}.audio.cache_read.input_tokens",
        f"{prefix}.details.cache_audio_read_tokens",
    )
    audio_out = _count(
        attributes, f"{prefix}.audio.output_tokens", f"{prefix}.details.output_audio_tokens"
    )
    full_audio = _rest(audio_in, audio_read)
    all_written = written if written is not None else _sum(written_5m, written_1h)
    plain = _beside_cache(total_in, read, all_written)
    # anthropic 2.x: the tokens of compactions are billed in addition to the span's usage
    compacted_in = _count(attributes, "anthropic.usage.compaction.input_tokens")
    compacted_out = _count(attributes, "anthropic.usage.compaction.output_tokens")
    split = written_5m is not None or written_1h is not None
    return Usage(
        input=_sum(_rest(plain, full_audio), compacted_in),
        cache_read=_rest(read, audio_read),
        cache_read_audio=audio_read,
        cache_write=(_rest(all_written, written_5m, written_1h) or None) if split else all_written,
        cache_write_5m=written_5m,
        cache_write_1h=written_1h,
        audio_in=full_audio,
        output=_sum(_rest(total_out, audio_out), compacted_out),
        reasoning=reasoning,
        audio_out=audio_out,
    )


def _of_litellm(attributes: Attributes, name: str) -> int | None:
    """
    Source: package litellm 1, ``integrations/opentelemetry.py``. Cached tokens are only in
    ``metadata.usage_object``, a Python repr.
    """
    match = re.search(
        rf"'{name}': (\d{{1,15}})\b", text(attributes.get("metadata.usage_object")) or ""
    )
    return int(match[1]) if match is not None else None


def _openinference(attributes: Attributes) -> Usage:
    """
    Source: OpenInference, "Semantic conventions", ``llm.token_count.*``. The details are parts of
    prompt and completion.
    """
    prefix = "llm.token_count"
    read = _count(
        attributes, f"{prefix}.prompt_details.cache_read", f"{prefix}.prompt_details.cache_input"
    )
    written = _count(attributes, f"{prefix}.prompt_details.cache_write")
    audio_in = _count(attributes, f"{prefix}.prompt_details.audio")
    audio_out = _count(attributes, f"{prefix}.completion_details.audio")
    total_in = _count(attributes, f"{prefix}.prompt")
    reasoning = _count(attributes, f"{prefix}.completion_details.reasoning")
    total_out = _with_reasoning(
        _count(attributes, f"{prefix}.completion"),
        reasoning,
        _count(attributes, f"{prefix}.total"),
        total_in,
    )
    return Usage(
        input=_rest(_beside_cache(total_in, read, written), audio_in),
        cache_read=read,
        cache_write=written,
        audio_in=audio_in,
        output=_rest(total_out, audio_out),
        reasoning=reasoning,
        audio_out=audio_out,
    )


def _vercel(attributes: Attributes, provider: str) -> Reported | None:
    """
    Source: package ``ai`` 6.0, ``src/generate-text/generate-text.ts``: ``inputTokens`` is the
    total, ``inputTokenDetails`` its parts; ``src/embed/embed.ts``: ``ai.usage.tokens``.

    Version 5 has no details; it has ``cachedInputTokens``, and the provider's own definition of
    input. Version 4 has ``promptTokens`` and ``completionTokens``, and OpenAI's cached tokens only
    in ``ai.response.providerMetadata`` (``@ai-sdk/openai`` 1, ``cachedPromptTokens``).

    The SDK's providers for Anthropic and Google put their own usage there (``usage``;
    ``@ai-sdk/google`` 2: ``usageMetadata``, whose thoughts version 5 excludes from the output). If
    present, that usage is taken unchanged.
    """
    metadata = json_object(attributes.get("ai.response.providerMetadata"))
    anthropic = _part(metadata, "anthropic")
    if isinstance(usage := anthropic.get("usage"), dict) and type(usage.get("input_tokens")) is int:
        return _unchanged(usage, "messages")
    for name in ("google", "vertex"):
        if (
            type((usage := _part(_part(metadata, name), "usageMetadata")).get("promptTokenCount"))
            is int
        ):
            return _unchanged(usage, "generate_content")
    details = "ai.usage.inputTokenDetails"
    total_in = _count(
        attributes,
        "ai.usage.inputTokens",
        "ai.usage.promptTokens",
        "gen_ai.usage.input_tokens",
        "ai.usage.tokens",
    )
    total_out = _count(
        attributes,
        "ai.usage.outputTokens",
        "ai.usage.completionTokens",
        "gen_ai.usage.output_tokens",
    )
    read = _count(attributes, f"{details}.cacheReadTokens", "ai.usage.cachedInputTokens")
    for name in ("openai", "azure"):
        read = read if read is not None else _count(_part(metadata, name), "cachedPromptTokens")
    reasoning = _count(
        attributes, "ai.usage.outputTokenDetails.reasoningTokens", "ai.usage.reasoningTokens"
    )
    total_out = _with_reasoning(
        total_out, reasoning, _count(attributes, "ai.usage.totalTokens"), total_in
    )
    written = _count(attributes, f"{details}.cacheWriteTokens")
    plain = _count(attributes, f"{details}.noCacheTokens")
    if (
        plain is None
        and provider in _EXCLUDING_CACHE
        and not any(name.startswith(details) for name in attributes)
    ):
        bedrock = _part(_part(metadata, "bedrock"), "usage")
        read = (
            read
            if read is not None
            else _first(
                _count(anthropic, "cacheReadInputTokens"), _count(bedrock, "cacheReadInputTokens")
            )
        )
        written = _first(
            _count(anthropic, "cacheCreationInputTokens"), _count(bedrock, "cacheWriteInputTokens")
        )
        plain = total_in
    elif plain is None:
        plain = _beside_cache(total_in, read, written)
    return _usage(
        Usage(
            input=plain,
            cache_read=read,
            cache_write=written,
            output=total_out,
            reasoning=reasoning,
        )
    )


def _langfuse(attributes: Attributes) -> Reported | None:
    """
    Source: Langfuse, "OpenTelemetry", "Property mapping": ``langfuse.observation.usage_details``, a
    JSON object. "Token & cost tracking": the usage has OpenAI's format, or ``input`` and ``output``
    with other keys that they exclude.
    """
    details = json_object(attributes.get("langfuse.observation.usage_details"))
    if not details:
        return None
    dialect = recognise(details)
    if dialect is not None and "input" not in details and "output" not in details:
        return _unchanged(details, dialect)
    return _usage(
        Usage(
            input=_count(details, "input"),
            cache_read=_count(
                details, "cache_read_input_tokens", "input_cached_tokens", "input_cache_read"
            ),
            cache_write=_count(details, "cache_creation_input_tokens", "input_cache_creation"),
            output=_sum(_count(details, "output"), _count(details, "output_reasoning_tokens")),
            reasoning=_count(details, "output_reasoning_tokens"),
        )
    )


def _first(*counts: int | None) -> int | None:
    return next((count for count in counts if count is not None), None)


def _part(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = value.get(name)
    return part if isinstance(part, dict) else {}
