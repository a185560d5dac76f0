"""
The fake data of the loopback provider: text, structured outputs, vectors, and a usage derived from
the request.
"""

from __future__ import annotations

import base64
import functools
import math
import random
import re
import struct
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

Json = dict[str, Any]

SNAPSHOTS = {
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "gpt-4.1-mini": "gpt-4.1-mini-2025-04-14",
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-5": "gpt-5-2025-08-07",
    "gpt-5-mini": "gpt-5-mini-2025-08-07",
    "gpt-5-nano": "gpt-5-nano-2025-08-07",
    "claude-haiku-4-5": "claude-haiku-4-5-20251001",
    "claude-opus-4-5": "claude-opus-4-5-20251101",
    "claude-sonnet-4-5": "claude-sonnet-4-5-20250929",
}
"""The dated models behind aliases. Any other model serves itself."""

IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)
"""A white PNG of one pixel, in base64."""
SVG = "PHN2ZyB4bWxucz0iaHR0cDovL3d3dy53My5vcmcvMjAwMC9zdmciLz4="
"""An empty SVG, in base64."""
SVG_MODEL = "gpt-5.6-sol"
"""The model that draws an SVG if the request names none."""

_REASONS = re.compile(r"gpt-[5-9]|o[1-9]")
_WRITES_CACHE = re.compile(r"gpt-5\.[6-9]|gpt-[6-9]")
_TEXT = (
    "The replica lagged behind its leader, so every write was retried until the lease expired and "
    "a new leader was elected; after that "
    "the queue drained within a minute and nobody had to be woken up."
)
_WORDS = _TEXT.split()
_TEXT_KEYS = (
    *("messages", "input", "system", "instructions"),
    *(
        "prompt",
        "content",
        "thread",
        "additional_instructions",
        "additional_messages",
        "session",
        "item",
        "response",
    ),
    *("contents", "systemInstruction", "system_instruction"),
)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a response beyond the provider's own parameters."""

    chunks: int = 12
    """The number of pieces of a streamed text."""
    usage: Any = None
    """The usage to report, instead of a fake one."""
    without_usage: bool = False
    polls: int | None = None
    """How many polls see a job unfinished. None is the default of its kind."""


def prompt_texts(body: Any) -> Iterator[str]:
    """Yield the texts of a request's prompt or input, in order."""
    stack = (
        [body[key] for key in reversed(_TEXT_KEYS) if key in body]
        if isinstance(body, Mapping)
        else []
    )
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            stack.extend(
                reversed(
                    [value for key, value in item.items() if key not in ("data", "role", "type")]
                )
            )
        elif isinstance(item, list):
            stack.extend(reversed(item))


class FakeResponse:
    """The fake content of one response, always the same for the same request."""

    def __init__(self, body: Json, schema: Any, limit: int | None) -> None:
        requested, texts = str(body["model"]), list(prompt_texts(body))
        self.model = SNAPSHOTS.get(requested, requested)
        self.reasons = _REASONS.match(requested) is not None
        self._schema = schema
        self._seed = zlib.crc32(msgspec.json.encode([requested, *texts]))
        self._random = chance = random.Random(self._seed)
        self._first_word = chance.randrange(len(_WORDS))
        self.input_tokens = sum(map(len, texts)) // 4 + chance.randrange(200, 2600)
        reasoning = 64 * chance.randrange(1, 9) if self.reasons else 0
        output = chance.randrange(12, 420) + reasoning
        self.cut_short = limit is not None and limit < output and schema is None
        self.output_tokens = limit if self.cut_short and limit is not None else output
        self.reasoning_tokens = min(reasoning, self.output_tokens)

    def number(self, name: str, low: int, high: int) -> int:
        """Return the number of this name, from *low* to below *high*."""
        return random.Random(f"{self._seed} {name}").randrange(low, high)

    def openai_usage(self, prefix_in: str, prefix_out: str) -> Json:
        """
        Return the usage in OpenAI's format. Input tokens include cached and written ones. Prompts
        of 1024 tokens or more are cached, in steps of 128.
        """
        large = self.input_tokens >= 1024
        cached = (
            self._random.randrange(1024, self.input_tokens + 1) // 128 * 128
            if large and self._random.random() < 0.6
            else 0
        )
        details_in: Json = {"cached_tokens": cached}
        if _WRITES_CACHE.match(self.model) or prefix_in == "input":
            details_in["cache_write_tokens"] = (
                (self.input_tokens - cached) // 2
                if large and _WRITES_CACHE.match(self.model)
                else 0
            )
        details_out: Json = {"reasoning_tokens": self.reasoning_tokens}
        if prefix_in == "prompt":
            details_in["audio_tokens"] = 0
            details_out |= {
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            }
        counts = {
            f"{prefix_in}_tokens": self.input_tokens,
            f"{prefix_out}_tokens": self.output_tokens,
        }
        details = {
            f"{prefix_in}_tokens_details": details_in,
            f"{prefix_out}_tokens_details": details_out,
        }
        return {**counts, "total_tokens": self.input_tokens + self.output_tokens, **details}

    def anthropic_usage(self) -> Json:
        """
        Return the usage in Anthropic's format. Input tokens exclude cache reads and cache writes.
        """
        read, five_minutes, hour = 0, 0, 0
        kind, prefix = self._random.random(), self.input_tokens * 3 // 4
        if self.input_tokens >= 1024 and kind < 0.5:
            read, five_minutes = prefix, (self.input_tokens - prefix) // 2 if kind < 0.25 else 0
        elif self.input_tokens >= 1024 and kind < 0.7:
            five_minutes = prefix
        elif self.input_tokens >= 1024 and kind < 0.8:
            hour = prefix
        return {
            "input_tokens": self.input_tokens - read - five_minutes - hour,
            "cache_creation_input_tokens": five_minutes + hour,
            "cache_read_input_tokens": read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": five_minutes,
                "ephemeral_1h_input_tokens": hour,
            },
            "output_tokens": self.output_tokens,
            "service_tier": "standard",
            "inference_geo": "global",
        }

    def svg_usage(self, model: str) -> Json:
        """
        Return the usage of the model that draws an SVG, which differs from that of the response.
        """
        reasoning = 64 * self.number("svg reasoning", 0, 4)
        read = self.number("svg input", 200, 900)
        written = self.number("svg output", 300, 2000) + reasoning
        counts = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
        return {"model": model, **counts, "reasoning_tokens": reasoning}

    def pieces(self, chunks: int) -> list[str]:
        """
        Return the text in *chunks* pieces, which are words. A structured output is JSON that fits
        its schema, in at most *chunks* pieces.
        """
        if self._schema is None:
            words = [_WORDS[(self._first_word + number) % len(_WORDS)] for number in range(chunks)]
            return [word if number == 0 else f" {word}" for number, word in enumerate(words)]
        text = msgspec.json.encode(instance(self._schema, self._schema)).decode()
        size = max(1, math.ceil(len(text) / max(1, chunks)))
        return [text[start : start + size] for start in range(0, len(text), size)]


def instance(schema: Any, root: Any) -> Any:
    """Return a small value that fits a JSON schema, within the rules of structured outputs."""
    if "$ref" in schema:
        return instance(
            functools.reduce(
                lambda part, step: part[step], schema["$ref"].removeprefix("#/").split("/"), root
            ),
            root,
        )
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return instance(schema[key][0], root)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    kind = str(schema.get("type")).lower()  # Google allows capitals
    if kind == "object":
        return {
            name: instance(property_schema, root)
            for name, property_schema in schema.get("properties", {}).items()
        }
    if kind == "array":
        return [instance(schema["items"], root) for _ in range(schema.get("minItems", 1))]
    values = {
        "string": "lease",
        "integer": schema.get("minimum", 7),
        "number": schema.get("minimum", 0.5),
        "boolean": True,
    }
    return values.get(kind)


@functools.lru_cache(maxsize=256)
def vector(seed: int, dimensions: int) -> tuple[list[float], str]:
    """Return a unit vector, as numbers and as base64 of little-endian 32-bit floats."""
    numbers = random.Random(seed)
    raw = [numbers.uniform(-1, 1) for _ in range(dimensions)]
    length = math.sqrt(sum(value * value for value in raw))
    packed = struct.pack(f"<{dimensions}f", *(value / length for value in raw))
    return list(struct.unpack(f"<{dimensions}f", packed)), base64.b64encode(packed).decode()


def hexadecimal(digits: int) -> str:
    return (uuid.uuid4().hex + uuid.uuid4().hex)[:digits]
