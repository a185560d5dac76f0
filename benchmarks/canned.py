"""
What the providers of the benchmarks answer, from memory: no socket, and the same bytes for all.

The answers have 241 output tokens, read from the cache in part; a stream has 200 chunks of text.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

CHUNKS = 200
WORDS = (
    "The replica lagged behind its leader while the controller held a stale lease and every write "
    "was retried " * 20
).split()[:CHUNKS]
QUESTION = [{"role": "user", "content": "Here are the last twenty log lines. What broke? " * 12}]
OPENAI_USAGE = {
    "prompt_tokens": 1873,
    "completion_tokens": 241,
    "total_tokens": 2114,
    "prompt_tokens_details": {"cached_tokens": 1408, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 64, "audio_tokens": 0},
}
ANTHROPIC_USAGE = {
    "input_tokens": 421,
    "cache_creation_input_tokens": 44,
    "cache_read_input_tokens": 1408,
    "cache_creation": {"ephemeral_5m_input_tokens": 44, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 241,
    "service_tier": "standard",
}


def openai_answer() -> bytes:
    message = {"role": "assistant", "content": " ".join(WORDS), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini-2024-07-18",
        "service_tier": "default",
    }
    return json.dumps({**answer, "choices": [choice], "usage": OPENAI_USAGE}, indent=2).encode()


def openai_events() -> Iterator[dict[str, Any]]:
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-4o-mini-2024-07-18",
        "service_tier": "default",
    }
    for word in WORDS:
        yield {
            **chunk,
            "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}],
            "usage": None,
        }
    yield {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None}
    yield {**chunk, "choices": [], "usage": OPENAI_USAGE}


def anthropic_message(content: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5-20251001",
        "stop_reason": "end_turn",
    }
    return {**message, "stop_sequence": None, "content": content, "usage": usage}


def anthropic_events() -> Iterator[dict[str, Any]]:
    yield {
        "type": "message_start",
        "message": anthropic_message([], {**ANTHROPIC_USAGE, "output_tokens": 1}),
    }
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    for word in WORDS:
        yield {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": word},
        }
    yield {"type": "content_block_stop", "index": 0}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 241},
    }
    yield {"type": "message_stop"}


OPENAI_JSON = openai_answer()
OPENAI_SSE = (
    b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in openai_events())
    + b"data: [DONE]\n\n"
)
ANTHROPIC_JSON = json.dumps(
    anthropic_message([{"type": "text", "text": " ".join(WORDS)}], ANTHROPIC_USAGE)
).encode()
ANTHROPIC_SSE = b"".join(
    f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
    for event in anthropic_events()
)


def arguments(sdk: str, *, stream: bool = False) -> dict[str, Any]:
    """What an application gives to ``create``; *sdk* is the name of its module."""
    if sdk == "openai":
        return {"model": "gpt-4o-mini", "messages": QUESTION, "stream": stream}
    return {
        "model": "claude-haiku-4-5",
        "messages": QUESTION,
        "stream": stream,
        "max_tokens": 500,
    }


def transport(sdk: str, *, asynchronous: bool = False, after: float = 0) -> Any:
    """
    An HTTP client of whichever library this version of the SDK is built on, that answers from
    memory, *after* so many seconds. *sdk* is the name of its module, which has been imported.
    """
    base: Any = sys.modules[f"{sdk}._base_client"]
    http = getattr(base, "httpx2", None) or base.httpx
    plain, streamed = (
        (OPENAI_JSON, OPENAI_SSE) if sdk == "openai" else (ANTHROPIC_JSON, ANTHROPIC_SSE)
    )

    def answer(request: Any) -> Any:
        if b'"stream":true' in request.content.replace(b" ", b""):
            return http.Response(
                200, content=streamed, headers={"content-type": "text/event-stream"}
            )
        return http.Response(200, content=plain, headers={"content-type": "application/json"})

    def late_answer(request: Any) -> Any:
        time.sleep(after)
        return answer(request)

    async def async_answer(request: Any) -> Any:
        if after:
            await asyncio.sleep(after)
        return answer(request)

    if asynchronous:
        return http.AsyncClient(transport=http.MockTransport(async_answer))
    return http.Client(transport=http.MockTransport(late_answer if after else answer))
