"""
What the loopback provider answers: bodies and server-sent events as OpenAI and Anthropic send them.

Source of the shapes: the API references of both (chat completions, responses, embeddings; messages, streaming messages), and
recorded answers. The usage is made up from a hash of the request: the same request always costs the same.
"""

from __future__ import annotations

import base64
import functools
import math
import random
import re
import struct
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
"""The dated model that serves a requested alias. Any other model serves itself."""

_REASONS = re.compile(r"gpt-[5-9]|o[1-9]")
_WRITES_CACHE = re.compile(r"gpt-5\.[6-9]|gpt-[6-9]")
_TEXT = (
    "The replica lagged behind its leader, so every write was retried until the lease expired and a new leader was elected; after that "
    "the queue drained within a minute and nobody had to be woken up."
)
_WORDS = _TEXT.split()
_TEXT_KEYS = ("messages", "input", "system", "instructions")


@dataclass(frozen=True, slots=True)
class Options:
    """What a request wants of its answer beyond the provider's own parameters."""

    chunks: int = 12
    """How many pieces the text is streamed in."""
    usage: Any = None
    """The usage to report, instead of a made-up one."""
    without_usage: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer: a JSON body, or server-sent events."""

    parts: Sequence[bytes]
    usage: Any
    """What it reports."""
    complete_at: int
    """The part that completes the answer: the one with the final usage, or the last one where no usage is reported."""


@dataclass(eq=False, slots=True)
class Refusal(Exception):
    """A request that the provider refuses, with the error that it shows."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def prompt_texts(body: Any) -> Iterator[str]:
    """The texts of a request's prompt or input, in order."""
    stack = [body[key] for key in reversed(_TEXT_KEYS) if key in body] if isinstance(body, Mapping) else []
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            stack.extend(reversed([value for key, value in item.items() if key not in ("data", "role", "type")]))
        elif isinstance(item, list):
            stack.extend(reversed(item))


# -- OpenAI --------------------------------------------------------------------------------------------------------------------


def chat(body: Json, options: Options) -> Answer:
    """``POST /v1/chat/completions``."""
    _need(body, "model", "messages")
    stream_options = body.get("stream_options")
    if stream_options and not body.get("stream"):
        raise Refusal(400, "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options")
    made = _Made(body, _schema(body, "response_format", "json_schema"), body.get("max_completion_tokens") or body.get("max_tokens"))
    usage = _reported(options, lambda: made.openai_usage("prompt", "completion"))
    base = {
        "id": f"chatcmpl-{uuid.uuid4().hex[:29]}",
        "object": "chat.completion.chunk" if body.get("stream") else "chat.completion",
        "created": int(time.time()),
        "model": made.model,
    }
    billing = {"service_tier": _tier(body), "system_fingerprint": None if made.reasons else "fp_b376dfbbd5"}
    finish = "length" if made.cut_short else "stop"
    if not body.get("stream"):
        message: Json = {"role": "assistant", "content": "".join(made.pieces(options.chunks)), "refusal": None, "annotations": []}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return _json({**base, "choices": [choice], **_present(usage), **billing}, usage)

    asked = bool(stream_options and stream_options.get("include_usage"))
    tail: Json = {**({"usage": None} if asked else {}), "obfuscation": "Wt2QrSUUiJ"}

    def chunk(delta: Json, finish_reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**base, **billing, "choices": [choice], **tail}

    chunks = [chunk({"role": "assistant", "content": "", "refusal": None})]
    chunks += [chunk({"content": piece}) for piece in made.pieces(options.chunks)]
    chunks.append(chunk({}, finish))
    if asked and usage is not None:
        chunks.append({**base, **billing, "choices": [], **tail, "usage": usage})
        return Answer([*map(_data, chunks), b"data: [DONE]\n\n"], usage, len(chunks) - 1)
    return Answer([*map(_data, chunks), b"data: [DONE]\n\n"], None, len(chunks))


def responses(body: Json, options: Options) -> Answer:
    """``POST /v1/responses``."""
    _need(body, "model", "input")
    if "include_usage" in (body.get("stream_options") or {}):
        name = "stream_options.include_usage"
        raise Refusal(400, f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    made = _Made(body, _schema(body, "text", "format"), body.get("max_output_tokens"))
    usage = _reported(options, lambda: made.openai_usage("input", "output"))
    pieces = made.pieces(options.chunks)
    part: Json = {"type": "output_text", "annotations": [], "logprobs": [], "text": "".join(pieces)}
    message: Json = {"id": f"msg_{_hex(50)}", "type": "message", "status": "completed", "content": [part], "role": "assistant"}
    thought: Json = {"id": f"rs_{_hex(50)}", "type": "reasoning", "summary": []}
    output = [thought, message] if made.reasons else [message]
    status = "incomplete" if made.cut_short else "completed"
    whole = {**_response(body, made, status, output), "service_tier": _tier(body), "usage": usage}
    if not body.get("stream"):
        return _json(whole, usage)

    begun = {**whole, "status": "in_progress", "completed_at": None, "incomplete_details": None, "output": [], "usage": None}
    begun["service_tier"] = body.get("service_tier") or "auto"
    index = len(output) - 1
    place = {"content_index": 0, "item_id": message["id"], "output_index": index}
    extra: Json = {"logprobs": [], "obfuscation": "mZhSFjZXJr0X"}
    events: list[Json] = [{"type": "response.created", "response": begun}, {"type": "response.in_progress", "response": begun}]
    if made.reasons:
        events.append({"type": "response.output_item.added", "item": thought, "output_index": 0})
        events.append({"type": "response.output_item.done", "item": thought, "output_index": 0})
    opened = {**message, "status": "in_progress", "content": []}
    events.append({"type": "response.output_item.added", "item": opened, "output_index": index})
    events.append({"type": "response.content_part.added", **place, "part": {**part, "text": ""}})
    events += [{"type": "response.output_text.delta", **place, "delta": piece, **extra} for piece in pieces]
    events.append({"type": "response.output_text.done", **place, "logprobs": [], "text": part["text"]})
    events.append({"type": "response.content_part.done", **place, "part": part})
    events.append({"type": "response.output_item.done", "item": message, "output_index": index})
    events.append({"type": f"response.{status}", "response": whole})
    numbered = [_event({**event, "sequence_number": number}) for number, event in enumerate(events)]
    return Answer(numbered, usage, len(numbered) - 1)


def _response(body: Json, made: _Made, status: str, output: list[Json]) -> Json:
    echoed: Json = {
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": "medium" if made.reasons else None, "summary": None},
        "safety_identifier": None,
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "user": None,
    }
    now = int(time.time())
    return {
        "id": f"resp_{_hex(50)}",
        "object": "response",
        "created_at": now,
        "status": status,
        "background": False,
        "completed_at": now if status == "completed" else None,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": made.model,
        "output": output,
        **{name: body.get(name, default) for name, default in echoed.items()},
    }


def embeddings(body: Json, options: Options) -> Answer:
    """``POST /v1/embeddings``."""
    _need(body, "model", "input")
    given = body["input"]
    inputs = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    tokens = sum(len(one) if isinstance(one, list) else len(str(one)) // 4 + 1 for one in inputs)
    usage = _reported(options, lambda: {"prompt_tokens": tokens, "total_tokens": tokens})
    model = str(body["model"])
    dimensions = body.get("dimensions") or (3072 if model == "text-embedding-3-large" else 1536)
    data: list[Json] = []
    for index, one in enumerate(inputs):
        values, encoded = _vector(zlib.crc32(msgspec.json.encode(one)) % 64, dimensions)
        data.append({"object": "embedding", "index": index, "embedding": encoded if body.get("encoding_format") == "base64" else values})
    return _json({"object": "list", "data": data, "model": SNAPSHOTS.get(model, model), **_present(usage)}, usage)


def openai_error(refusal: Refusal) -> bytes:
    """An error as OpenAI shows it."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "requests"}
    kind = kinds.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error")
    error = {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}
    return msgspec.json.format(msgspec.json.encode({"error": error}), indent=4)


# -- Anthropic -----------------------------------------------------------------------------------------------------------------


def messages(body: Json, options: Options) -> Answer:
    """``POST /v1/messages``."""
    _need(body, "model", "max_tokens", "messages", message="{}: Field required")
    made = _Made(body, _schema(body, "output_config", "format") or _schema(body, "output_format"), body["max_tokens"])
    usage = _reported(options, made.anthropic_usage)
    pieces = made.pieces(options.chunks)
    stop_reason = "max_tokens" if made.cut_short else "end_turn"
    message: Json = {"model": made.model, "id": f"msg_01{uuid.uuid4().hex[:22]}", "type": "message", "role": "assistant"}
    if not body.get("stream"):
        content = [{"type": "text", "text": "".join(pieces)}]
        whole = {**message, "content": content, "stop_reason": stop_reason, "stop_sequence": None, **_present(usage)}
        return Answer([msgspec.json.encode(whole)], usage, 0)

    first, final = usage, usage
    if isinstance(usage, dict):  # the output is a placeholder at first; the counts at the end are cumulative, and fewer
        first = {**{key: value for key, value in usage.items() if key not in ("iterations", "server_tool_use")}, "output_tokens": 3}
        final = {key: value for key, value in usage.items() if key not in ("cache_creation", "service_tier", "inference_geo", "speed")}
    events: list[Json] = [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None, "stop_sequence": None, **_present(first)}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}} for piece in pieces),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": stop_reason, "stop_sequence": None}, **_present(final)},
        {"type": "message_stop"},
    ]
    return Answer([_event(event) for event in events], usage, len(events) - (1 if usage is None else 2))


def anthropic_error(refusal: Refusal, request_id: str) -> bytes:
    """An error as Anthropic shows it."""
    kinds = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        504: "timeout_error",
        529: "overloaded_error",
    }
    kind = kinds.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "api_error")
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": refusal.message}, "request_id": request_id})


# -- what is made up -----------------------------------------------------------------------------------------------------------


class _Made:
    """The made-up side of one answer, the same for the same request."""

    def __init__(self, body: Json, schema: Any, limit: int | None) -> None:
        requested, texts = str(body["model"]), list(prompt_texts(body))
        self.model = SNAPSHOTS.get(requested, requested)
        self.reasons = _REASONS.match(requested) is not None
        self._schema = schema
        self._random = chance = random.Random(zlib.crc32(msgspec.json.encode([requested, *texts])))
        self._first_word = chance.randrange(len(_WORDS))
        self._input = sum(map(len, texts)) // 4 + chance.randrange(200, 2600)
        reasoning = 64 * chance.randrange(1, 9) if self.reasons else 0
        output = chance.randrange(12, 420) + reasoning
        self.cut_short = limit is not None and limit < output and schema is None
        self._output = limit if self.cut_short and limit is not None else output
        self._reasoning = min(reasoning, self._output)

    def openai_usage(self, prefix_in: str, prefix_out: str) -> Json:
        """Input tokens include cached and written ones; prompts from 1024 tokens on are cached, in steps of 128."""
        large = self._input >= 1024
        cached = self._random.randrange(1024, self._input + 1) // 128 * 128 if large and self._random.random() < 0.6 else 0
        details_in: Json = {"cached_tokens": cached}
        if _WRITES_CACHE.match(self.model) or prefix_in == "input":
            details_in["cache_write_tokens"] = (self._input - cached) // 2 if large and _WRITES_CACHE.match(self.model) else 0
        details_out: Json = {"reasoning_tokens": self._reasoning}
        if prefix_in == "prompt":
            details_in["audio_tokens"] = 0
            details_out |= {"audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
        counts = {f"{prefix_in}_tokens": self._input, f"{prefix_out}_tokens": self._output}
        details = {f"{prefix_in}_tokens_details": details_in, f"{prefix_out}_tokens_details": details_out}
        return {**counts, "total_tokens": self._input + self._output, **details}

    def anthropic_usage(self) -> Json:
        """Input tokens exclude what was read from the cache and written to it."""
        read, five_minutes, hour = 0, 0, 0
        kind, prefix = self._random.random(), self._input * 3 // 4
        if self._input >= 1024 and kind < 0.5:
            read, five_minutes = prefix, (self._input - prefix) // 2 if kind < 0.25 else 0
        elif self._input >= 1024 and kind < 0.7:
            five_minutes = prefix
        elif self._input >= 1024 and kind < 0.8:
            hour = prefix
        return {
            "input_tokens": self._input - read - five_minutes - hour,
            "cache_creation_input_tokens": five_minutes + hour,
            "cache_read_input_tokens": read,
            "cache_creation": {"ephemeral_5m_input_tokens": five_minutes, "ephemeral_1h_input_tokens": hour},
            "output_tokens": self._output,
            "service_tier": "standard",
            "inference_geo": "global",
        }

    def pieces(self, chunks: int) -> list[str]:
        """The text in *chunks* pieces: words; for a structured output, JSON that fits its schema, in as many or fewer."""
        if self._schema is None:
            words = [_WORDS[(self._first_word + number) % len(_WORDS)] for number in range(chunks)]
            return [word if number == 0 else f" {word}" for number, word in enumerate(words)]
        text = msgspec.json.encode(instance(self._schema, self._schema)).decode()
        size = max(1, math.ceil(len(text) / max(1, chunks)))
        return [text[start : start + size] for start in range(0, len(text), size)]


def instance(schema: Any, root: Any) -> Any:
    """A small value that fits a JSON schema, as far as structured outputs allow one."""
    if "$ref" in schema:
        return instance(functools.reduce(lambda part, step: part[step], schema["$ref"].removeprefix("#/").split("/"), root), root)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return instance(schema[key][0], root)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        return {name: instance(one, root) for name, one in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema["items"], root) for _ in range(schema.get("minItems", 1))]
    values = {"string": "lease", "integer": schema.get("minimum", 7), "number": schema.get("minimum", 0.5), "boolean": True}
    return values.get(kind)


@functools.lru_cache(maxsize=256)
def _vector(seed: int, dimensions: int) -> tuple[list[float], str]:
    """A unit vector, as numbers and as base64 of little-endian 32-bit floats."""
    numbers = random.Random(seed)
    raw = [numbers.uniform(-1, 1) for _ in range(dimensions)]
    length = math.sqrt(sum(value * value for value in raw))
    packed = struct.pack(f"<{dimensions}f", *(value / length for value in raw))
    return list(struct.unpack(f"<{dimensions}f", packed)), base64.b64encode(packed).decode()


# -- small parts ---------------------------------------------------------------------------------------------------------------


def _need(body: Json, *names: str, message: str = "Missing required parameter: '{}'.") -> None:
    for name in names:
        if body.get(name) in (None, ""):
            raise Refusal(400, message.format(name), name, "missing_required_parameter")


def _schema(body: Json, *path: str) -> Any:
    """The JSON schema of a structured output; None where plain text is wanted."""
    found: Any = body
    for name in (*path, "schema"):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _reported(options: Options, make: Callable[[], Json]) -> Any:
    if options.without_usage:
        return None
    return make() if options.usage is None else options.usage


def _present(usage: Any) -> Json:
    return {} if usage is None else {"usage": usage}


def _tier(body: Json) -> str:
    tier = body.get("service_tier")
    return tier if tier in ("flex", "priority") else "default"


def _hex(digits: int) -> str:
    return (uuid.uuid4().hex + uuid.uuid4().hex)[:digits]


def _json(body: Json, usage: Any) -> Answer:
    """OpenAI's JSON comes over several lines."""
    return Answer([msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n"], usage, 0)


def _data(event: Json) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


def _event(event: Json) -> bytes:
    return f"event: {event['type']}\n".encode() + _data(event)
