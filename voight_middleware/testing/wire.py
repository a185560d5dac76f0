"""
What the loopback provider answers: bodies and server-sent events as OpenAI and Anthropic send them.

Source of the shapes: the API references of both (chat completions, responses, embeddings; messages, streaming messages), and
recorded answers. The usage is made up from a hash of the request: the same request always costs the same.
"""

from __future__ import annotations

import time
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from voight_middleware.testing.made_up import SNAPSHOTS, Json, Made, Options, hexadecimal, vector


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


# -- OpenAI --------------------------------------------------------------------------------------------------------------------


def chat(body: Json, options: Options) -> Answer:
    """``POST /v1/chat/completions``."""
    _need(body, "model", "messages")
    stream_options = body.get("stream_options")
    if stream_options and not body.get("stream"):
        raise Refusal(400, "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options")
    made = Made(body, _schema(body, "response_format", "json_schema"), body.get("max_completion_tokens") or body.get("max_tokens"))
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
    made = Made(body, _schema(body, "text", "format"), body.get("max_output_tokens"))
    usage = _reported(options, lambda: made.openai_usage("input", "output"))
    pieces = made.pieces(options.chunks)
    part: Json = {"type": "output_text", "annotations": [], "logprobs": [], "text": "".join(pieces)}
    message: Json = {"id": f"msg_{hexadecimal(50)}", "type": "message", "status": "completed", "content": [part], "role": "assistant"}
    thought: Json = {"id": f"rs_{hexadecimal(50)}", "type": "reasoning", "summary": []}
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


def _response(body: Json, made: Made, status: str, output: list[Json]) -> Json:
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
        "id": f"resp_{hexadecimal(50)}",
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
        values, encoded = vector(zlib.crc32(msgspec.json.encode(one)) % 64, dimensions)
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
    made = Made(body, _schema(body, "output_config", "format") or _schema(body, "output_format"), body["max_tokens"])
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


def _json(body: Json, usage: Any) -> Answer:
    """OpenAI's JSON comes over several lines."""
    return Answer([msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n"], usage, 0)


def _data(event: Json) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


def _event(event: Json) -> bytes:
    return f"event: {event['type']}\n".encode() + _data(event)
