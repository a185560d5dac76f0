"""
Usage formats: each provider's usage object, read as disjoint counts that add up.

OpenAI's ``prompt_tokens`` and ``input_tokens`` include cached and written tokens. Anthropic's
``input_tokens`` exclude both. Both conventions are normalized here, once. A count that the provider
did not report is None, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias

import msgspec

from voight_middleware.records.usage import (
    COUNT_NAMES,
    Component,
    Count,
    Usage,
    UsageError,
    sum_counts,
)

Doubts: TypeAlias = list[str]
"""Doubts about a usage, each a sentence for people. A call with doubts is priced in part."""
_MAX_COUNT = 2**53
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
    if not _ONLY_ANTHROPIC.isdisjoint(raw) or "thinking_tokens" in _part(
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


def _count(raw: Mapping[str, Any], key: str) -> Count:
    value = raw.get(key)
    if value is None or (type(value) is int and 0 <= value < _MAX_COUNT):
        return value
    raise UsageError(f"{key} is {value!r}, not a count")


def _text(raw: Mapping[str, Any], key: str) -> str | None:
    value = raw.get(key)
    return value if isinstance(value, str) else None


def _part(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key)
    return value if type(value) is dict or isinstance(value, Mapping) else {}


def _split(total: Count, name: str, doubts: Doubts, *parts: Count) -> tuple[Count, ...]:
    """Return the rest of *total*, then its *parts*. Parts that exceed their total are dropped."""
    if total is None:
        return (None, *parts)
    rest = total
    for part in parts:
        if part:
            rest -= part
    if rest < 0:
        doubts.append(
            f"usage contradicts itself: the parts of {name} add up to more than its {total}, so "
            "they are left out"
        )
        return (total, *(None for _ in parts))
    return (rest, *parts)


def _kinds(
    cached: Count, text: Count, audio: Count, image: Count, doubts: Doubts
) -> tuple[Count, Count]:
    """
    Return the cached tokens of audio and of images, if the provider does not report them.

    They are certain if the input is of one kind only. Otherwise, as many as possible count as text,
    and the rest is billed in full.
    """
    if not cached or text is None or not (audio or image):
        return None, None
    left = cached - min(cached, max(text, 0))
    of_audio = min(left, audio or 0)
    of_image = min(left - of_audio, image or 0)
    if sum(1 for kind in (text, audio, image) if kind) > 1:
        doubts.append(
            f"usage does not say whether its {cached} cached tokens are text, audio or images"
        )
    return of_audio or None, of_image or None


def _count_or_zero(raw: Mapping[str, Any], key: str) -> int:
    """Return a count that only confirms others; 0 if it is missing or odd."""
    value = raw.get(key)
    return value if type(value) is int and 0 <= value < _MAX_COUNT else 0


def _doubt_reasoning(reasoning: Count, output: Count, name: str, doubts: Doubts) -> None:
    """Doubt reasoning tokens that exceed *output*, of which they are a part."""
    if reasoning and output is not None and reasoning > output:
        doubts.append(
            f"usage contradicts itself: its {reasoning} reasoning tokens are more than {name} = "
            f"{output}, of which they are a part"
        )


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
    details_in = _part(raw, input_key.removesuffix("tokens") + details)
    details_out = _part(raw, output_key.removesuffix("tokens") + details)
    total_in, total_out = _count(raw, input_key), _count(raw, output_key)
    cache_read = _count(details_in, "cached_tokens")
    cache_write = _count(details_in, "cache_write_tokens")
    if cache_read is None:
        cache_read = next(
            (count for key in _CACHED_ELSEWHERE if (count := _count(raw, key)) is not None), None
        )
    written_5m = written_1h = image_out = None
    if not _ANTHROPICS.isdisjoint(raw) or "cache_creation_tokens" in details_in:
        cache_write, written_5m, written_1h = _written(
            raw, details_in, cache_write, cache_read, doubts
        )
    reasoning = _count(details_out, "reasoning_tokens")
    audio_out = _count(details_out, "audio_tokens")
    if "image_tokens" in details_out:
        image_out = _count_or_zero(details_out, "image_tokens") or None
    if total_in is not None and total_out is not None:
        total = _count_or_zero(raw, "total_tokens")
        beyond = total - total_in - total_out
        aside = reasoning if reasoning is not None else _count_or_zero(raw, "reasoning_tokens")
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
    audio_in = _count(details_in, "audio_tokens")
    image_in = _count(details_in, "image_tokens") if images else None
    by_kind = _part(details_in, "cached_tokens_details")
    if by_kind:
        cached_audio = _count(by_kind, "audio_tokens")
        cached_image = _count(by_kind, "image_tokens") if images else None
    else:
        written = (cache_write or 0) + (written_5m or 0) + (written_1h or 0)
        text_in = (
            None if total_in is None else total_in - (audio_in or 0) - (image_in or 0) - written
        )
        cached_audio, cached_image = _kinds(cache_read, text_in, audio_in, image_in, doubts)
    cache_read, cached_audio, cached_image = _split(
        cache_read, "cached_tokens", doubts, cached_audio, cached_image
    )
    audio_in, cached_audio = _split(audio_in, "audio_tokens", doubts, cached_audio)
    image_in, cached_image = _split(image_in, "image_tokens", doubts, cached_image)
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
    text_in, *rest = _split(total_in, input_key, doubts, *parts)
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
    text_out, audio_out, image_out = _split(total_out, output_key, doubts, audio_out, image_out)
    _doubt_reasoning(reasoning, total_out, output_key, doubts)
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
        written = _count(details, "cache_creation_tokens")
    split = _part(details, "cache_creation_token_details")
    written_5m = _count(split, "ephemeral_5m_input_tokens")
    written_1h = _count(split, "ephemeral_1h_input_tokens")
    others = (
        (details, "cache_creation_tokens", written),
        (raw, "cache_creation_input_tokens", written),
        (raw, "cache_read_input_tokens", read),
    )
    for part, key, known in others:
        if (count := _count_or_zero(part, key)) and count != known:
            doubts.append(f"usage contradicts itself: {key} = {count} is not what its details have")
    if not written_5m and not written_1h:
        return written, None, None
    return (
        _unsplit(written, "cache_creation_tokens", doubts, written_5m, written_1h) or None,
        written_5m,
        written_1h,
    )


_ANTHROPICS = frozenset({"cache_creation_input_tokens", "cache_read_input_tokens"})
_CACHED_ELSEWHERE = ("cached_tokens", "num_cached_tokens", "prompt_cache_hit_tokens")
"""
Keys with the cached tokens of compatible servers.

Sources: Moonshot, Mistral and DeepSeek, API references of chat completions.
"""


def _chat(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of a chat completion.

    Source: OpenAI API reference, "The chat completion object", ``usage``: prompt_tokens include
    cached and audio tokens. Package litellm 1, ``types/utils.py``: it passes on Anthropic's
    ``server_tool_use``, and counts Google's searches in the details.
    """
    (main,) = _openai(raw, "prompt_tokens", "completion_tokens", doubts)
    details = _part(raw, "prompt_tokens_details")
    if "web_search_requests" in details and (
        searches := _count_or_zero(details, "web_search_requests")
    ):
        doubts.append(
            f"usage has prompt_tokens_details.web_search_requests = {searches}, whose price is "
            "not known"
        )
    tools = _anthropic_tools(raw) if "server_tool_use" in raw else None
    if not tools or not any(tools.values()):
        return (main,)
    return (Component(usage=msgspec.structs.replace(main.usage, tools=tools)),)


def _responses(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of a response.

    ``tool_usage`` is billed beside it: web searches by request, and image generation by the tokens
    of an image model.

    Source: OpenAI API reference, "The response object", ``usage``: input_tokens include cached
    tokens.
    """
    (main,) = _openai(raw, "input_tokens", "output_tokens", doubts)
    tool_usage = _part(raw, "tool_usage")
    searches = _count(_part(tool_usage, "web_search"), "num_requests")
    if searches:
        main = Component(usage=msgspec.structs.replace(main.usage, tools={"web_search": searches}))
    images = _part(tool_usage, "image_gen")
    if not images:
        return (main,)
    return (
        main,
        Component(
            model=_text(images, "model") or "image_generation", usage=_image_tokens(images, doubts)
        ),
    )


def _image_tokens(raw: Mapping[str, Any], doubts: Doubts) -> Usage:
    details_in = _part(raw, "input_tokens_details")
    details_out = _part(raw, "output_tokens_details")
    total_in, total_out = _count(raw, "input_tokens"), _count(raw, "output_tokens")
    cached = _part(raw, "cached_tokens_details")
    cached_text = _count(cached, "cached_text_tokens")
    cached_image = _count(cached, "cached_image_tokens")
    if not cached:
        cached_text = _count(raw, "cached_tokens")
    image_in, cached_image = _split(
        _count(details_in, "image_tokens"), "image_tokens", doubts, cached_image
    )
    text_in, image_in, cached_text, cached_image = _split(
        total_in, "input_tokens", doubts, image_in, cached_text, cached_image
    )
    image_out, text_out = _split(
        total_out, "output_tokens", doubts, _count(details_out, "text_tokens")
    )
    return Usage(
        input=text_in,
        cache_read=cached_text,
        cache_read_image=cached_image,
        image_in=image_in,
        output=text_out,
        image_out=image_out,
    )


def _images(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of images.

    dall-e reports none. Its images are counted, with the size and quality that they are billed by.

    Source: OpenAI API reference, "Images", ``usage`` and ``svg_usage``, the tokens of a second
    model that is billed beside the first.
    """
    parts: list[Component] = []
    if "images" in raw:
        parts.append(Component(usage=Usage(images=_count(raw, "images"))))
    elif "input_tokens" in raw or "output_tokens" in raw:
        parts.append(Component(usage=_image_tokens(raw, doubts)))
    svg = _part(raw, "svg_usage")
    if svg:
        usage = Usage(
            input=_count(svg, "input_tokens"),
            output=_count(svg, "output_tokens"),
            reasoning=_count(svg, "reasoning_tokens"),
        )
        parts.append(Component(model=_text(svg, "model"), usage=usage))
    return tuple(parts)


def _transcription(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
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
            or not 0 <= seconds < _MAX_COUNT
        ):
            raise UsageError(f"seconds is {seconds!r}, not a duration")
        return (Component(usage=Usage(seconds=math.ceil(seconds))),)
    audio = _count(_part(raw, "input_token_details"), "audio_tokens")
    text, audio = _split(_count(raw, "input_tokens"), "input_tokens", doubts, audio)
    return (
        Component(usage=Usage(input=text, audio_in=audio, output=_count(raw, "output_tokens"))),
    )


def _speech(raw: Mapping[str, Any], _doubts: Doubts) -> tuple[Component, ...]:
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
                    input=_count(raw, "input_tokens"), audio_out=_count(raw, "output_tokens")
                )
            ),
        )
    return (Component(usage=Usage(characters=_count(raw, "characters"))),)


def _videos(raw: Mapping[str, Any], _doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of a video, which is billed by its seconds at a rate for its size.

    Source: OpenAI API reference, "Videos".
    """
    return (Component(usage=Usage(seconds=_count(raw, "seconds"))),)


def _realtime(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of a realtime response. A live session reports seconds only.

    Source: OpenAI API reference, "Realtime server events", ``response.done``: input_tokens include
    cached tokens of every kind.
    """
    if "seconds" in raw:
        return _transcription(raw, doubts)
    return _openai(
        raw, "input_tokens", "output_tokens", doubts, details="token_details", images=True
    )


def _generate_content(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of Gemini.

    Source: Gemini API reference, "UsageMetadata": promptTokenCount includes cached tokens; thoughts
    and the results of tools are counted beside prompt and candidates.
    """
    cached = _count(raw, "cachedContentTokenCount")
    thoughts = _count(raw, "thoughtsTokenCount")
    audio_in = _modality(raw, "promptTokensDetails", "AUDIO")
    audio_out = _modality(raw, "candidatesTokensDetails", "AUDIO")
    image_out = _modality(raw, "candidatesTokensDetails", "IMAGE")
    if video_out := _modality(raw, "candidatesTokensDetails", "VIDEO"):
        doubts.append(
            f"usage has {video_out} tokens of video in its output, which cost more than text"
        )
    prompt, candidates, tools = (
        _count(raw, f"{name}TokenCount") for name in ("prompt", "candidates", "toolUsePrompt")
    )
    cached_audio = _modality(raw, "cacheTokensDetails", "AUDIO")
    if cached_audio is None and "cacheTokensDetails" not in raw:
        cached_audio, _ = _kinds(
            cached, None if prompt is None else prompt - (audio_in or 0), audio_in, None, doubts
        )
    cached, cached_audio = _split(cached, "cachedContentTokenCount", doubts, cached_audio)
    audio_in, cached_audio = _split(audio_in, "AUDIO", doubts, cached_audio)
    prompt, cached, cached_audio, audio_in = _split(
        prompt, "promptTokenCount", doubts, cached, cached_audio, audio_in
    )
    candidates, audio_out, image_out = _split(
        candidates, "candidatesTokenCount", doubts, audio_out, image_out
    )
    usage = Usage(
        input=sum_counts(prompt, tools),
        cache_read=cached,
        cache_read_audio=cached_audio,
        audio_in=audio_in,
        output=sum_counts(candidates, thoughts),
        reasoning=thoughts,
        audio_out=audio_out,
        image_out=image_out,
    )
    beyond = _count_or_zero(raw, "totalTokenCount") - sum(
        filter(None, (usage.input_tokens, usage.output_tokens))
    )
    if beyond > 0 and usage.input_tokens is not None:  # thoughts that only the total contains
        if thoughts is None:
            usage = msgspec.structs.replace(usage, output=sum_counts(usage.output, beyond))
        else:
            doubts.append(
                f"usage contradicts itself: totalTokenCount = {raw['totalTokenCount']} is "
                f"{beyond} more than input and output"
            )
    return (Component(usage=usage),)


def _converse(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
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
    written_5m = _count(_part(split, "5m"), "inputTokens")
    written_1h = _count(_part(split, "1h"), "inputTokens")
    unsplit = _unsplit(
        _count(raw, "cacheWriteInputTokens"),
        "cacheWriteInputTokens",
        doubts,
        written_5m,
        written_1h,
    )
    usage = Usage(
        input=_count(raw, "inputTokens"),
        cache_read=_count(raw, "cacheReadInputTokens"),
        cache_write=unsplit if unsplit or not split else None,
        cache_write_5m=written_5m,
        cache_write_1h=written_1h,
        output=_count(raw, "outputTokens"),
    )
    return (Component(usage=usage),)


_MODALITIES = {"TEXT": 1, "IMAGE": 2, "VIDEO": 3, "AUDIO": 4, "DOCUMENT": 5}
"""Vertex AI's numbers for enums without names. Source: Vertex AI RPC reference, "Modality"."""


def _modality(raw: Mapping[str, Any], key: str, modality: str) -> Count:
    details = raw.get(key)
    for part in details if isinstance(details, list) else ():
        if isinstance(part, Mapping) and part.get("modality") in (modality, _MODALITIES[modality]):
            return _count(part, "tokenCount")
    return None


def _runs(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of a run: that of a chat completion, with another name for the details.

    Source: OpenAI API reference, "Runs", ``usage``.
    """
    details = {
        f"{name}_tokens_details": raw[f"{name}_token_details"]
        for name in ("prompt", "completion")
        if f"{name}_token_details" in raw
    }
    return _chat({**raw, **details}, doubts)


def _embeddings(raw: Mapping[str, Any], _doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of embeddings, which have no output.

    Source: OpenAI API reference, "Create embeddings", ``usage``. Voyage AI, "Text embeddings API":
    ``total_tokens`` only.
    """
    total = next(
        (
            count
            for key in ("prompt_tokens", "input_tokens", "total_tokens")
            if (count := _count(raw, key))
        ),
        None,
    )
    return (Component(usage=Usage(input=_count(raw, "prompt_tokens") if total is None else total)),)


def _messages(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
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
            Component(model=_text(part, "model"), usage=_anthropic(part, doubts)) for part in parts
        )
        tools = _anthropic_tools(raw)
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


def _unsplit(total: Count, name: str, doubts: Doubts, *parts: Count) -> Count:
    """
    Return the written tokens without a lifetime. Parts above their total win: they are more
    precise.
    """
    known = sum_counts(*parts)
    if total is None or known is None or known <= total:
        return None if total is None else total - (known or 0)
    doubts.append(
        f"usage contradicts itself: the parts of {name} add up to more than its {total}, so they "
        "are counted instead of it"
    )
    return None


def _anthropic(raw: Mapping[str, Any], doubts: Doubts) -> Usage:
    created, split = _count(raw, "cache_creation_input_tokens"), _part(raw, "cache_creation")
    written_5m = _count(split, "ephemeral_5m_input_tokens")
    written_1h = _count(split, "ephemeral_1h_input_tokens")
    unsplit = _unsplit(created, "cache_creation_input_tokens", doubts, written_5m, written_1h)
    output = _count(raw, "output_tokens")
    thinking = _count(_part(raw, "output_tokens_details"), "thinking_tokens")
    _doubt_reasoning(thinking, output, "output_tokens", doubts)
    return Usage(
        input=_count(raw, "input_tokens"),
        cache_read=_count(raw, "cache_read_input_tokens"),
        cache_write=unsplit if unsplit or not split else None,
        cache_write_5m=written_5m,
        cache_write_1h=written_1h,
        output=output,
        reasoning=thinking,
        tools=_anthropic_tools(raw),
    )


def _anthropic_tools(raw: Mapping[str, Any]) -> Mapping[str, int] | None:
    server = _part(raw, "server_tool_use")
    counts = {name: _count(server, f"{name}_requests") for name in ("web_search", "web_fetch")}
    return {name: count for name, count in counts.items() if count is not None} or None


def _usage(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
    """Read a ``Usage`` that was passed to ``record()``."""
    tools = {
        tool: count
        for tool in _part(raw, "tools")
        if (count := _count(raw["tools"], tool)) is not None
    }
    usage = Usage(tools=tools or None, **{name: _count(raw, name) for name in COUNT_NAMES})
    _doubt_reasoning(usage.reasoning, usage.output, "output", doubts)
    return (Component(usage=usage),)


_READERS: dict[str, Callable[[Mapping[str, Any], Doubts], tuple[Component, ...]]] = {
    "chat": _chat,
    "completions": _chat,
    "responses": _responses,
    "compact": _responses,
    "decisions": _responses,
    "runs": _runs,
    "images": _images,
    "transcriptions": _transcription,
    "translations": _transcription,
    "speech": _speech,
    "videos": _videos,
    "realtime": _realtime,
    "generate_content": _generate_content,
    "converse": _converse,
    "embeddings": _embeddings,
    "messages": _messages,
    "usage": _usage,
}
