"""
Usage: the consumption of a call as disjoint counts that add up. An unreported count is None, never
0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

Count: TypeAlias = int | None


class Usage(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """
    The consumption of one model as disjoint counts. Token counts are in tokens.

    The input of a call is ``input + cache_read + cache_read_audio + cache_read_image + cache_write
    + cache_write_5m + cache_write_1h + audio_in + image_in``. Its output is ``output + audio_out +
    image_out``.
    """

    input: Count = None
    """
    Text input at the full rate. For chat models also images, which they bill at the text rate.
    """
    cache_read: Count = None
    cache_read_audio: Count = None
    cache_read_image: Count = None
    cache_write: Count = None
    """
    Written to the cache for the provider's default time: OpenAI, and Anthropic without a reported
    split.
    """
    cache_write_5m: Count = None
    cache_write_1h: Count = None
    output: Count = None
    """Text output, reasoning included."""
    reasoning: Count = None
    """The reasoning part of ``output``. For information only, never added."""
    audio_in: Count = None
    audio_out: Count = None
    image_in: Count = None
    """
    Input tokens of images, if the model has a separate rate for them: image and realtime models.
    """
    image_out: Count = None
    images: Count = None
    seconds: Count = None
    characters: Count = None
    tools: Mapping[str, int] | None = None
    """
    Billed tool requests by tool: ``web_search``, ``file_search``, ``code_interpreter``,
    ``web_fetch``.
    """

    @property
    def input_tokens(self) -> Count:
        """All input tokens, including cached ones. None if none were reported."""
        return sum_counts(
            self.input,
            self.cache_read_tokens,
            self.cache_write_tokens,
            self.audio_in,
            self.image_in,
        )

    @property
    def cache_read_tokens(self) -> Count:
        """Tokens of any kind read from the cache."""
        return sum_counts(self.cache_read, self.cache_read_audio, self.cache_read_image)

    @property
    def cache_write_tokens(self) -> Count:
        """Tokens of any lifetime written to the cache."""
        return sum_counts(self.cache_write, self.cache_write_5m, self.cache_write_1h)

    @property
    def output_tokens(self) -> Count:
        """All output tokens, including audio and images."""
        return sum_counts(self.output, self.audio_out, self.image_out)


COUNT_NAMES = tuple(name for name in Usage.__struct_fields__ if name != "tools")


class Component(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """
    One model's part of a call. Most calls have one. An Anthropic advisor or a compaction adds
    another, billed separately.
    """

    model: str | None = None
    """None means the call's own model."""
    usage: Usage


class UsageError(ValueError):
    """A usage contains an invalid count or has an unknown format."""


def sum_counts(*counts: Count) -> Count:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
