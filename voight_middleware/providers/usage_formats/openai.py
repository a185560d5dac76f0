"""Usage in the formats of OpenAI and of compatible servers: their input includes cached tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgspec

from voight_middleware.providers.usage_formats.anthropic import server_tools
from voight_middleware.providers.usage_formats.counts import (
    MAX_COUNT,
    Doubts,
    count_or_zero,
    doubt_reasoning,
    read_count,
    read_part,
    read_text,
    remainder,
    split_kinds,
    split_total,
)
from voight_middleware.records.usage import (
    Component,
    Count,
    Usage,
    UsageError,
)


# Complex: one branch for each contradiction that servers were seen to report.
def _openai(
    raw: Mapping[str, Any],
    input_key: str,
    output_key: str,
    doubts: Doubts,
    *,
    details: str = "tokens_details",
    images: bool = False,
) -> tuple[Component, ...]:
    """
    Read OpenAI's totals and their details.

    ``total_tokens`` shows whether reasoning or cached tokens are beside the totals. Sources: xAI,
    "Consumption and rate limits": reasoning tokens are not in completion_tokens. Google, "OpenAI
    compatibility": thoughts are in total_tokens only.

    Args:
        details: The end of the names of the details.
        images: Whether images have a rate of their own.
    """
    details_in = read_part(raw, input_key.removesuffix("tokens") + details)
    details_out = read_part(raw, output_key.removesuffix("tokens") + details)
    total_in, total_out = read_count(raw, input_key), read_count(raw, output_key)
    cache_read = read_count(details_in, "cached_tokens")
    cache_write = read_count(details_in, "cache_write_tokens")
    if cache_read is None:
        cache_read = next(
            (count for key in _CACHED_ELSEWHERE if (count := read_count(raw, key)) is not None),
            None,
        )
    written_5m = written_1h = image_out = None
    if not _ANTHROPICS.isdisjoint(raw) or "cache_creation_tokens" in details_in:
        cache_write, written_5m, written_1h = _written(
            raw, details_in, cache_write, cache_read, doubts
        )
    reasoning = read_count(details_out, "reasoning_tokens")
    audio_out = read_count(details_out, "audio_tokens")
    if "image_tokens" in details_out:
        image_out = count_or_zero(details_out, "image_tokens") or None
    if total_in is not None and total_out is not None:
        total = count_or_zero(raw, "total_tokens")
        beyond = total - total_in - total_out
        aside = reasoning if reasoning is not None else count_or_zero(raw, "reasoning_tokens")
        cached = (cache_read or 0) + (cache_write or 0) + (written_5m or 0) + (written_1h or 0)
        if beyond <= 0:
            if aside and reasoning is None:
                doubts.append(
                    f"usage has reasoning_tokens = {aside} beside its total, which may be billed "
                    "too"
                )
            # a part cannot exceed its whole, so it is beside it
            if not total and reasoning and reasoning > total_out:
                doubts.append(
                    f"usage has {reasoning} reasoning tokens, more than {output_key} = "
                    f"{total_out}: both are counted as output"
                )
                total_out += reasoning
        elif beyond == aside:
            total_out, reasoning = total_out + beyond, beyond
        elif beyond == cached:
            total_in += beyond
        elif not aside and "reasoning_tokens" not in details_out:
            total_out += beyond
        else:
            doubts.append(
                f"usage contradicts itself: total_tokens = {total} is {beyond} more than input "
                "and output"
            )
    audio_in = read_count(details_in, "audio_tokens")
    image_in = read_count(details_in, "image_tokens") if images else None
    by_kind = read_part(details_in, "cached_tokens_details")
    if by_kind:
        cached_audio = read_count(by_kind, "audio_tokens")
        cached_image = read_count(by_kind, "image_tokens") if images else None
    else:
        written = (cache_write or 0) + (written_5m or 0) + (written_1h or 0)
        text_in = (
            None if total_in is None else total_in - (audio_in or 0) - (image_in or 0) - written
        )
        cached_audio, cached_image = split_kinds(cache_read, text_in, audio_in, image_in, doubts)
    cache_read, cached_audio, cached_image = split_total(
        cache_read, "cached_tokens", doubts, cached_audio, cached_image
    )
    audio_in, cached_audio = split_total(audio_in, "audio_tokens", doubts, cached_audio)
    image_in, cached_image = split_total(image_in, "image_tokens", doubts, cached_image)
    parts = (
        cache_read,
        cache_write,
        written_5m,
        written_1h,
        audio_in,
        cached_audio,
        image_in,
        cached_image,
    )
    text_in, *rest = split_total(total_in, input_key, doubts, *parts)
    (
        cache_read,
        cache_write,
        written_5m,
        written_1h,
        audio_in,
        cached_audio,
        image_in,
        cached_image,
    ) = rest
    text_out, audio_out, image_out = split_total(
        total_out, output_key, doubts, audio_out, image_out
    )
    doubt_reasoning(reasoning, total_out, output_key, doubts)
    usage = Usage(
        input=text_in,
        cache_read=cache_read,
        cache_read_audio=cached_audio,
        cache_read_image=cached_image,
        cache_write=cache_write,
        cache_write_5m=written_5m,
        cache_write_1h=written_1h,
        audio_in=audio_in,
        image_in=image_in,
        output=text_out,
        reasoning=reasoning,
        audio_out=audio_out,
        image_out=image_out,
    )
    return (Component(usage=usage),)


def _written(
    raw: Mapping[str, Any], details: Mapping[str, Any], written: Count, read: Count, doubts: Doubts
) -> tuple[Count, ...]:
    """
    Return the tokens written to the cache: without a lifetime, for 5 minutes and for an hour.

    Source: package litellm 1, ``types/utils.py``, ``Usage``: ``cache_creation_tokens`` in the
    details of the input, and their lifetimes. It repeats Anthropic's counts at the top level, which
    add nothing.
    """
    if written is None:
        written = read_count(details, "cache_creation_tokens")
    split = read_part(details, "cache_creation_token_details")
    written_5m = read_count(split, "ephemeral_5m_input_tokens")
    written_1h = read_count(split, "ephemeral_1h_input_tokens")
    others = (
        (details, "cache_creation_tokens", written),
        (raw, "cache_creation_input_tokens", written),
        (raw, "cache_read_input_tokens", read),
    )
    for part, key, known in others:
        if (count := count_or_zero(part, key)) and count != known:
            doubts.append(f"usage contradicts itself: {key} = {count} is not what its details have")
    if not written_5m and not written_1h:
        return written, None, None
    return (
        remainder(written, "cache_creation_tokens", doubts, written_5m, written_1h) or None,
        written_5m,
        written_1h,
    )


_ANTHROPICS = frozenset({"cache_creation_input_tokens", "cache_read_input_tokens"})
_CACHED_ELSEWHERE = ("cached_tokens", "num_cached_tokens", "prompt_cache_hit_tokens")
"""
Keys with the cached tokens of compatible servers.

Sources: Moonshot, Mistral and DeepSeek, API references of chat completions.
"""


def chat(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of a chat completion.

    Source: OpenAI API reference, "The chat completion object", ``usage``: prompt_tokens include
    cached and audio tokens. Package litellm 1, ``types/utils.py``: it passes on Anthropic's
    ``server_tool_use``, and counts Google's searches in the details.
    """
    (main,) = _openai(raw, "prompt_tokens", "completion_tokens", doubts)
    details = read_part(raw, "prompt_tokens_details")
    if "web_search_requests" in details and (
        searches := count_or_zero(details, "web_search_requests")
    ):
        doubts.append(
            f"usage has prompt_tokens_details.web_search_requests = {searches}, whose price is "
            "not known"
        )
    tools = server_tools(raw) if "server_tool_use" in raw else None
    if not tools or not any(tools.values()):
        return (main,)
    return (Component(usage=msgspec.structs.replace(main.usage, tools=tools)),)


def responses(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of a response.

    ``tool_usage`` is billed beside it: web searches by request, and image generation by the tokens
    of an image model.

    Source: OpenAI API reference, "The response object", ``usage``: input_tokens include cached
    tokens.
    """
    (main,) = _openai(raw, "input_tokens", "output_tokens", doubts)
    tool_usage = read_part(raw, "tool_usage")
    searches = read_count(read_part(tool_usage, "web_search"), "num_requests")
    if searches:
        main = Component(usage=msgspec.structs.replace(main.usage, tools={"web_search": searches}))
    images = read_part(tool_usage, "image_gen")
    if not images:
        return (main,)
    return (
        main,
        Component(
            model=read_text(images, "model") or "image_generation",
            usage=_image_tokens(images, doubts),
        ),
    )


def _image_tokens(raw: Mapping[str, Any], doubts: Doubts) -> Usage:
    details_in = read_part(raw, "input_tokens_details")
    details_out = read_part(raw, "output_tokens_details")
    total_in, total_out = read_count(raw, "input_tokens"), read_count(raw, "output_tokens")
    cached = read_part(raw, "cached_tokens_details")
    cached_text = read_count(cached, "cached_text_tokens")
    cached_image = read_count(cached, "cached_image_tokens")
    if not cached:
        cached_text = read_count(raw, "cached_tokens")
    image_in, cached_image = split_total(
        read_count(details_in, "image_tokens"), "image_tokens", doubts, cached_image
    )
    text_in, image_in, cached_text, cached_image = split_total(
        total_in, "input_tokens", doubts, image_in, cached_text, cached_image
    )
    image_out, text_out = split_total(
        total_out, "output_tokens", doubts, read_count(details_out, "text_tokens")
    )
    return Usage(
        input=text_in,
        cache_read=cached_text,
        cache_read_image=cached_image,
        image_in=image_in,
        output=text_out,
        image_out=image_out,
    )


def images(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of images.

    dall-e reports none. Its images are counted, with the size and quality that they are billed by.

    Source: OpenAI API reference, "Images", ``usage`` and ``svg_usage``, the tokens of a second
    model that is billed beside the first.
    """
    parts: list[Component] = []
    if "images" in raw:
        parts.append(Component(usage=Usage(images=read_count(raw, "images"))))
    elif "input_tokens" in raw or "output_tokens" in raw:
        parts.append(Component(usage=_image_tokens(raw, doubts)))
    svg = read_part(raw, "svg_usage")
    if svg:
        usage = Usage(
            input=read_count(svg, "input_tokens"),
            output=read_count(svg, "output_tokens"),
            reasoning=read_count(svg, "reasoning_tokens"),
        )
        parts.append(Component(model=read_text(svg, "model"), usage=usage))
    return tuple(parts)


def transcription(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of a transcription: tokens or a duration.

    A fraction of a second is rounded up, as in the reference's own example: ``duration`` 8.47,
    ``usage.seconds`` 9.

    Source: OpenAI API reference, "Create transcription", ``usage``.
    """
    seconds = raw.get("seconds")
    if seconds is not None:
        if (
            isinstance(seconds, bool)
            or not isinstance(seconds, int | float | Decimal)
            or not 0 <= seconds < MAX_COUNT
        ):
            raise UsageError(f"seconds is {seconds!r}, not a duration")
        return (Component(usage=Usage(seconds=math.ceil(seconds))),)
    audio = read_count(read_part(raw, "input_token_details"), "audio_tokens")
    text, audio = split_total(read_count(raw, "input_tokens"), "input_tokens", doubts, audio)
    return (
        Component(usage=Usage(input=text, audio_in=audio, output=read_count(raw, "output_tokens"))),
    )


def speech(raw: Mapping[str, Any], _doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of speech.

    Only server-sent events report tokens. Otherwise the characters that were sent are known; tts-1
    is billed by them.

    Source: OpenAI API reference, "Create speech".
    """
    if "output_tokens" in raw:
        return (
            Component(
                usage=Usage(
                    input=read_count(raw, "input_tokens"),
                    audio_out=read_count(raw, "output_tokens"),
                )
            ),
        )
    return (Component(usage=Usage(characters=read_count(raw, "characters"))),)


def videos(raw: Mapping[str, Any], _doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of a video, which is billed by its seconds at a rate for its size.

    Source: OpenAI API reference, "Videos".
    """
    return (Component(usage=Usage(seconds=read_count(raw, "seconds"))),)


def realtime(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of a realtime response. A live session reports seconds only.

    Source: OpenAI API reference, "Realtime server events", ``response.done``: input_tokens include
    cached tokens of every kind.
    """
    if "seconds" in raw:
        return transcription(raw, doubts)
    return _openai(
        raw, "input_tokens", "output_tokens", doubts, details="token_details", images=True
    )


def runs(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of a run: that of a chat completion, with another name for the details.

    Source: OpenAI API reference, "Runs", ``usage``.
    """
    details = {
        f"{name}_tokens_details": raw[f"{name}_token_details"]
        for name in ("prompt", "completion")
        if f"{name}_token_details" in raw
    }
    return chat({**raw, **details}, doubts)


def embeddings(raw: Mapping[str, Any], _doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of embeddings, which have no output.

    Source: OpenAI API reference, "Create embeddings", ``usage``. Voyage AI, "Text embeddings API":
    ``total_tokens`` only.
    """
    total = next(
        (
            count
            for key in ("prompt_tokens", "input_tokens", "total_tokens")
            if (count := read_count(raw, key))
        ),
        None,
    )
    return (
        Component(usage=Usage(input=read_count(raw, "prompt_tokens") if total is None else total)),
    )
