"""Usage in the formats of Anthropic and Bedrock: their input excludes cached tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from voight_middleware.providers.usage_formats.counts import (
    Doubts,
    doubt_reasoning,
    read_count,
    read_part,
    read_text,
    remainder,
)
from voight_middleware.records.usage import (
    Component,
    Usage,
)


def converse(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of Bedrock's ``converse``.

    Source: Amazon Bedrock API reference, "TokenUsage"; "Prompt caching": inputTokens exclude tokens
    that are read from the cache or written to it.
    """
    details = raw.get("cacheDetails")
    split = {
        str(part.get("ttl")): part
        for part in (details if isinstance(details, list) else ())
        if isinstance(part, Mapping)
    }
    written_5m = read_count(read_part(split, "5m"), "inputTokens")
    written_1h = read_count(read_part(split, "1h"), "inputTokens")
    unsplit = remainder(
        read_count(raw, "cacheWriteInputTokens"),
        "cacheWriteInputTokens",
        doubts,
        written_5m,
        written_1h,
    )
    usage = Usage(
        input=read_count(raw, "inputTokens"),
        cache_read=read_count(raw, "cacheReadInputTokens"),
        cache_write=unsplit if unsplit or not split else None,
        cache_write_5m=written_5m,
        cache_write_1h=written_1h,
        output=read_count(raw, "outputTokens"),
    )
    return (Component(usage=usage),)


def messages(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of a message.

    If ``iterations`` are reported (compaction, advisor, fallback), they are billed instead of the
    top level, each by its own model.

    Source: Anthropic API reference, "Messages", ``usage``: input_tokens exclude cache reads and
    cache creation.
    """
    iterations = raw.get("iterations")
    parts = (
        [part for part in iterations if isinstance(part, Mapping)]
        if isinstance(iterations, list)
        else []
    )
    if parts:
        components = tuple(
            Component(model=read_text(part, "model"), usage=_anthropic(part, doubts))
            for part in parts
        )
        tools = server_tools(raw)
        if tools:
            first = components[0]
            components = (
                msgspec.structs.replace(
                    first, usage=msgspec.structs.replace(first.usage, tools=tools)
                ),
                *components[1:],
            )
        return components
    return (Component(usage=_anthropic(raw, doubts)),)


def _anthropic(raw: Mapping[str, Any], doubts: Doubts) -> Usage:
    created, split = (
        read_count(raw, "cache_creation_input_tokens"),
        read_part(raw, "cache_creation"),
    )
    written_5m = read_count(split, "ephemeral_5m_input_tokens")
    written_1h = read_count(split, "ephemeral_1h_input_tokens")
    unsplit = remainder(created, "cache_creation_input_tokens", doubts, written_5m, written_1h)
    output = read_count(raw, "output_tokens")
    thinking = read_count(read_part(raw, "output_tokens_details"), "thinking_tokens")
    doubt_reasoning(thinking, output, "output_tokens", doubts)
    return Usage(
        input=read_count(raw, "input_tokens"),
        cache_read=read_count(raw, "cache_read_input_tokens"),
        cache_write=unsplit if unsplit or not split else None,
        cache_write_5m=written_5m,
        cache_write_1h=written_1h,
        output=output,
        reasoning=thinking,
        tools=server_tools(raw),
    )


def server_tools(raw: Mapping[str, Any]) -> Mapping[str, int] | None:
    server = read_part(raw, "server_tool_use")
    counts = {name: read_count(server, f"{name}_requests") for name in ("web_search", "web_fetch")}
    return {name: count for name, count in counts.items() if count is not None} or None
