"""Usage in the format of Gemini's ``generateContent``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from voight_middleware.providers.usage_formats.counts import (
    Doubts,
    count_or_zero,
    read_count,
    split_kinds,
    split_total,
)
from voight_middleware.records.usage import (
    Component,
    Count,
    Usage,
    sum_counts,
)


def generate_content(raw: Mapping[str, Any], doubts: Doubts) -> tuple[Component, ...]:
    """
    Read the usage of Gemini.

    Source: Gemini API reference, "UsageMetadata": promptTokenCount includes cached tokens; thoughts
    and the results of tools are counted beside prompt and candidates.
    """
    cached = read_count(raw, "cachedContentTokenCount")
    thoughts = read_count(raw, "thoughtsTokenCount")
    audio_in = _modality(raw, "promptTokensDetails", "AUDIO")
    audio_out = _modality(raw, "candidatesTokensDetails", "AUDIO")
    image_out = _modality(raw, "candidatesTokensDetails", "IMAGE")
    if video_out := _modality(raw, "candidatesTokensDetails", "VIDEO"):
        doubts.append(
            f"usage has {video_out} tokens of video in its output, which cost more than text"
        )
    prompt, candidates, tools = (
        read_count(raw, f"{name}TokenCount") for name in ("prompt", "candidates", "toolUsePrompt")
    )
    cached_audio = _modality(raw, "cacheTokensDetails", "AUDIO")
    if cached_audio is None and "cacheTokensDetails" not in raw:
        cached_audio, _ = split_kinds(
            cached, None if prompt is None else prompt - (audio_in or 0), audio_in, None, doubts
        )
    cached, cached_audio = split_total(cached, "cachedContentTokenCount", doubts, cached_audio)
    audio_in, cached_audio = split_total(audio_in, "AUDIO", doubts, cached_audio)
    prompt, cached, cached_audio, audio_in = split_total(
        prompt, "promptTokenCount", doubts, cached, cached_audio, audio_in
    )
    candidates, audio_out, image_out = split_total(
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
    beyond = count_or_zero(raw, "totalTokenCount") - sum(
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


_MODALITIES = {"TEXT": 1, "IMAGE": 2, "VIDEO": 3, "AUDIO": 4, "DOCUMENT": 5}
"""Vertex AI's numbers for enums without names. Source: Vertex AI RPC reference, "Modality"."""


def _modality(raw: Mapping[str, Any], key: str, modality: str) -> Count:
    details = raw.get(key)
    for part in details if isinstance(details, list) else ():
        if isinstance(part, Mapping) and part.get("modality") in (modality, _MODALITIES[modality]):
            return read_count(part, "tokenCount")
    return None
