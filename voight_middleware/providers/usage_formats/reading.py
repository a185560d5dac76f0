"""
Usage formats: each provider's usage object, read as disjoint counts that add up.

OpenAI's ``prompt_tokens`` and ``input_tokens`` include cached and written tokens. Anthropic's
``input_tokens`` exclude both. Both conventions are normalized here, once. A count that the provider
did not report is None, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from voight_middleware.providers.usage_formats.anthropic import converse, messages
from voight_middleware.providers.usage_formats.counts import (
    Doubts,
    doubt_reasoning,
    read_count,
    read_part,
)
from voight_middleware.providers.usage_formats.gemini import generate_content
from voight_middleware.providers.usage_formats.openai import (
    chat,
    embeddings,
    images,
    realtime,
    responses,
    runs,
    speech,
    transcription,
    videos,
)
from voight_middleware.records.usage import (
    COUNT_NAMES,
    Component,
    Usage,
    UsageError,
)

_ONLY_ANTHROPIC = frozenset(
    {
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "cache_creation",
        "server_tool_use",
        "iterations",
    }
)


class Reading(NamedTuple):
    """The components of a usage object, and the doubts about it."""

    components: tuple[Component, ...]
    doubts: tuple[str, ...]
    """Reasons why a part may be billed wrongly: unknown keys with numbers, contradictory counts."""


def read(dialect: str, raw: Mapping[str, Any]) -> Reading:
    """
    Read a provider's usage object.

    Args:
        dialect: The endpoint of the response: ``chat``, ``responses``, ``embeddings``, ``images``,
            ``transcriptions``, ``messages``, …
        raw: The provider's usage JSON. If its parts exceed their total, the total is kept, with a
            doubt.

    Raises:
        UsageError: A count is negative or not a whole number, or the dialect is unknown.
    """
    reader = _READERS.get(dialect)
    if reader is None:
        raise UsageError(
            f"no usage reader for endpoint {dialect!r}; known: {', '.join(sorted(_READERS))}"
        )
    doubts: Doubts = []
    components = reader(raw, doubts)
    if dialect != "usage":
        _find_unknown(raw, "", doubts)
    return Reading(components, tuple(doubts))


def read_usage(dialect: str, raw: Mapping[str, Any]) -> tuple[Component, ...]:
    """Return the components of a usage object. Arguments and errors are those of ``read()``."""
    return read(dialect, raw).components


def recognise(raw: Mapping[str, Any]) -> str | None:
    """Return the dialect of a usage object by its keys, or None."""
    if "prompt_tokens" in raw:
        return "chat"
    if "promptTokenCount" in raw or "candidatesTokenCount" in raw:
        return "generate_content"
    if "inputTokens" in raw:
        return "converse"
    if not _ONLY_ANTHROPIC.isdisjoint(raw) or "thinking_tokens" in read_part(
        raw, "output_tokens_details"
    ):
        return "messages"
    if "input_tokens_details" in raw or "output_tokens_details" in raw:
        return "responses"
    if "input_tokens" in raw:
        return "responses" if "total_tokens" in raw else "messages"
    return None


_KNOWN_KEYS = frozenset(
    (
        # read below, in one dialect or another
        *(
            "prompt_tokens",
            "completion_tokens",
            "input_tokens",
            "output_tokens",
            "cached_tokens",
            "cache_write_tokens",
            "audio_tokens",
        ),
        "cache_creation_tokens",
        *(
            "image_tokens",
            "cached_text_tokens",
            "cached_image_tokens",
            "images",
            "seconds",
            "characters",
            "num_requests",
        ),
        *(
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
            "ephemeral_5m_input_tokens",
            "ephemeral_1h_input_tokens",
        ),
        *(
            "web_search_requests",
            "web_fetch_requests",
            "num_cached_tokens",
            "prompt_cache_hit_tokens",
            "cost",
        ),
        *("cost_in_usd_ticks", "modality", "trafficType", "serviceTier"),
        *(
            "promptTokenCount",
            "candidatesTokenCount",
            "cachedContentTokenCount",
            "thoughtsTokenCount",
            "toolUsePromptTokenCount",
        ),
        *(
            "inputTokens",
            "outputTokens",
            "cacheReadInputTokens",
            "cacheWriteInputTokens",
            "tokenCount",
        ),
        # information only: parts, totals and repetitions of those, and times
        *(
            "total_tokens",
            "totalTokens",
            "totalTokenCount",
            "text_tokens",
            "reasoning_tokens",
            "thinking_tokens",
            "ttl_30m_tokens",
        ),
        *("accepted_prediction_tokens", "rejected_prediction_tokens", "prompt_cache_miss_tokens"),
        *(
            "cacheReadInputTokenCount",
            "cacheWriteInputTokenCount",
            "queue_time",
            "prompt_time",
            "completion_time",
            "total_time",
        ),
    )
)
_ASIDE = frozenset({"cost_details", "pydantic_ai_gateway"})


def _find_unknown(raw: Mapping[str, Any], inside: str, doubts: Doubts) -> None:
    for key in raw.keys() - _KNOWN_KEYS:
        value = raw[key]
        kind = type(value)
        if kind is dict:
            if value and key not in _ASIDE:
                _find_unknown(value, f"{inside}{key}.", doubts)
        elif kind is list:
            for item in value:
                if type(item) is dict:
                    _find_unknown(item, f"{inside}{key}.", doubts)
        elif value and (kind is int or kind is Decimal):
            doubts.append(f"usage has {inside}{key} = {value}, which is not known here")


def _usage(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
    """Read a ``Usage`` that was passed to ``record()``."""
    tools = {
        tool: count
        for tool in read_part(raw, "tools")
        if (count := read_count(raw["tools"], tool)) is not None
    }
    usage = Usage(tools=tools or None, **{name: read_count(raw, name) for name in COUNT_NAMES})
    doubt_reasoning(usage.reasoning, usage.output, "output", doubts)
    return (Component(usage=usage),)


_READERS: dict[str, Callable[[Mapping[str, Any], Doubts], tuple[Component, ...]]] = {
    "chat": chat,
    "completions": chat,
    "responses": responses,
    "compact": responses,
    "decisions": responses,
    "runs": runs,
    "images": images,
    "transcriptions": transcription,
    "translations": transcription,
    "speech": speech,
    "videos": videos,
    "realtime": realtime,
    "generate_content": generate_content,
    "converse": converse,
    "embeddings": embeddings,
    "messages": messages,
    "usage": _usage,
}
