"""OpenAI's chat completions, and the legacy ones."""

from __future__ import annotations

import uuid
from typing import Any

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints.errors import Refusal
from voight_middleware.testing.endpoints.response import (
    EVENTS,
    EndpointRequest,
    EndpointResponse,
    data,
    need,
    now,
    plain,
    present,
    reported,
    schema,
    tier,
)
from voight_middleware.testing.fake_data import FakeResponse, Json


def chat(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/chat/completions``."""
    body, options = request.body, request.options
    need(body, "model", "messages")
    with_usage = _include_usage(body)
    made = FakeResponse(
        body,
        schema(body, "response_format", "json_schema"),
        body.get("max_completion_tokens") or body.get("max_tokens"),
    )
    usage = reported(options, lambda: made.openai_usage("prompt", "completion"))
    base = {
        "id": f"chatcmpl-{uuid.uuid4().hex[:29]}",
        "object": "chat.completion.chunk" if body.get("stream") else "chat.completion",
        "created": now(),
        "model": made.model,
    }
    billing = {
        "service_tier": tier(body),
        "system_fingerprint": None if made.reasons else "fp_b376dfbbd5",
    }
    finish = "length" if made.cut_short else "stop"
    if not body.get("stream"):
        message: Json = {
            "role": "assistant",
            "content": "".join(made.pieces(options.chunks)),
            "refusal": None,
            "annotations": [],
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return plain({**base, "choices": [choice], **present(usage), **billing}, Charge(usage))

    tail: Json = {**({"usage": None} if with_usage else {}), "obfuscation": "Wt2QrSUUiJ"}

    def chunk(delta: Json, finish_reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**base, **billing, "choices": [choice], **tail}

    chunks = [chunk({"role": "assistant", "content": "", "refusal": None})]
    chunks += [chunk({"content": piece}) for piece in made.pieces(options.chunks)]
    chunks.append(chunk({}, finish))
    return _chunks(
        chunks, usage if with_usage else None, {**base, **billing, "choices": [], **tail}
    )


def completions(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/completions``."""
    body, options = request.body, request.options
    need(body, "model", "prompt")
    with_usage = _include_usage(body)
    made = FakeResponse(body, None, body.get("max_tokens") or 16)
    counts = {"prompt_tokens": made.input_tokens, "completion_tokens": made.output_tokens}
    usage = reported(
        options, lambda: {**counts, "total_tokens": made.input_tokens + made.output_tokens}
    )
    base = {
        "id": f"cmpl-{uuid.uuid4().hex[:29]}",
        "object": "text_completion",
        "created": now(),
        "model": made.model,
    }

    def choice(text: str, finish_reason: str | None) -> list[Json]:
        return [{"text": text, "index": 0, "logprobs": None, "finish_reason": finish_reason}]

    finish = "length" if made.cut_short else "stop"
    if not body.get("stream"):
        return plain(
            {
                **base,
                "choices": choice("".join(made.pieces(options.chunks)), finish),
                **present(usage),
            },
            Charge(usage),
        )
    tail: Json = {"usage": None} if with_usage else {}
    chunks = [
        {**base, "choices": choice(piece, None), **tail} for piece in made.pieces(options.chunks)
    ]
    chunks.append({**base, "choices": choice("", finish), **tail})
    return _chunks(chunks, usage if with_usage else None, {**base, "choices": []})


def _include_usage(body: Json) -> bool:
    stream_options = body.get("stream_options")
    if stream_options and not body.get("stream"):
        raise Refusal(
            400,
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "stream_options",
        )
    return bool(stream_options and stream_options.get("include_usage"))


def _chunks(chunks: list[Json], usage: Any, last: Json) -> EndpointResponse:
    """Return the chunks. If usage was requested, the *last* chunk follows, with the usage."""
    complete_at = len(chunks)
    if usage is not None:
        chunks = [*chunks, {**last, "usage": usage}]
    return EndpointResponse(
        [*map(data, chunks), b"data: [DONE]\n\n"], [Charge(usage)], complete_at, EVENTS
    )
