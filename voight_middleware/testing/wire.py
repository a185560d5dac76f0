"""The bodies of the loopback provider: answers and events as OpenAI and Anthropic send them, with usage that follows from the question."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SNAPSHOTS = {
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "gpt-5-mini": "gpt-5-mini-2025-08-07",
    "gpt-5-nano": "gpt-5-nano-2025-08-07",
    "claude-haiku-4-5": "claude-haiku-4-5-20251001",
    "claude-sonnet-4-5": "claude-sonnet-4-5-20250929",
}
"""The model that serves an alias; any other name is served as it is."""

TEXT = "The sky is blue because air scatters short waves of light more than long ones , and our eyes see what is left ."
WORDS = TEXT.split()


@dataclass(frozen=True, slots=True)
class Question:
    """One request, and the answer that follows from it alone: the same question has the same usage."""

    model: str
    text: str
    chunks: int
    usage: Mapping[str, Any] | None
    """A usage object that the caller asked for, in place of ours."""

    @property
    def seed(self) -> int:
        return int.from_bytes(hashlib.sha256(self.text.encode("utf-8", "replace")).digest()[:8], "big")

    @property
    def served(self) -> str:
        return SNAPSHOTS.get(self.model, self.model)

    @property
    def words(self) -> list[str]:
        return [WORDS[(self.seed + index) % len(WORDS)] + " " for index in range(self.chunks)]

    @property
    def input_tokens(self) -> int:
        return 200 + len(self.text) // 4 + self.seed % 1800

    @property
    def cached_tokens(self) -> int:
        """Part of the input; in whole blocks of 128, as OpenAI caches."""
        return self.input_tokens * (self.seed >> 11 & 3) // 4 // 128 * 128

    @property
    def reasoning_tokens(self) -> int:
        return (self.seed >> 13) % 8 * 64 if self.model.startswith(("gpt-5", "o")) else 0

    @property
    def output_tokens(self) -> int:
        return self.chunks + self.seed % 300 + self.reasoning_tokens


def text_of(body: Any) -> str:
    """All text of a request body, for counting and for the marker that names its user."""
    if isinstance(body, str):
        return body
    if isinstance(body, Mapping):
        return " ".join(text_of(body[key]) for key in ("system", "instructions", "messages", "input", "content", "text") if key in body)
    return " ".join(text_of(item) for item in body) if isinstance(body, list) else ""


# -- OpenAI --------------------------------------------------------------------------------------------------------------------


def chat_usage(question: Question) -> Mapping[str, Any]:
    return question.usage or {
        "prompt_tokens": question.input_tokens,
        "completion_tokens": question.output_tokens,
        "total_tokens": question.input_tokens + question.output_tokens,
        "prompt_tokens_details": {"cached_tokens": question.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": question.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def chat_answer(question: Question) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(question.words), "refusal": None, "annotations": []}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": question.served,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": chat_usage(question),
        "service_tier": "default",
        "system_fingerprint": "fp_loopback",
    }


def chat_events(question: Question, include_usage: bool) -> Iterator[dict[str, Any]]:
    chunk = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk",
        "created": 1_790_000_000,
        "model": question.served,
        "service_tier": "default",
        "system_fingerprint": "fp_loopback",
    }
    unknown = {"usage": None} if include_usage else {}
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": "", "refusal": None},
        *({"content": word} for word in question.words),
        {},
    ]
    for number, delta in enumerate(deltas):
        finish = "stop" if number == len(deltas) - 1 else None
        yield {**chunk, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}], **unknown}
    if include_usage:
        yield {**chunk, "choices": [], "usage": chat_usage(question)}


def responses_usage(question: Question) -> Mapping[str, Any]:
    return question.usage or {
        "input_tokens": question.input_tokens,
        "input_tokens_details": {"cached_tokens": question.cached_tokens},
        "output_tokens": question.output_tokens,
        "output_tokens_details": {"reasoning_tokens": question.reasoning_tokens},
        "total_tokens": question.input_tokens + question.output_tokens,
    }


def responses_answer(question: Question, status: str = "completed") -> dict[str, Any]:
    done = status == "completed"
    content = [{"type": "output_text", "text": "".join(question.words), "annotations": [], "logprobs": []}]
    message = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "status": "completed", "role": "assistant", "content": content}
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": 1_790_000_000,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": question.served,
        "output": [message] if done else [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default" if done else "auto",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": responses_usage(question) if done else None,
        "user": None,
        "metadata": {},
    }


def responses_events(question: Question) -> Iterator[dict[str, Any]]:
    final = responses_answer(question)
    begun = {**responses_answer(question, "in_progress"), "id": final["id"]}
    message = final["output"][0]
    place = {"item_id": message["id"], "output_index": 0, "content_index": 0}
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": {**message, "status": "in_progress", "content": []}},
        {"type": "response.content_part.added", **place, "part": empty},
        *({"type": "response.output_text.delta", **place, "delta": word, "logprobs": []} for word in question.words),
        {"type": "response.output_text.done", **place, "text": "".join(question.words), "logprobs": []},
        {"type": "response.content_part.done", **place, "part": message["content"][0]},
        {"type": "response.output_item.done", "output_index": 0, "item": message},
        {"type": "response.completed", "response": final},
    ]
    for number, event in enumerate(events):
        yield {**event, "sequence_number": number}


def embeddings_answer(question: Question, count: int, encoding: str) -> dict[str, Any]:
    vector = [((question.seed >> index % 32) % 200 - 100) / 100 for index in range(16)]
    coded = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if encoding == "base64" else vector
    tokens = max(1, len(question.text) // 4)
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": coded} for index in range(count)],
        "model": question.served,
        "usage": question.usage or {"prompt_tokens": tokens, "total_tokens": tokens},
    }


# -- Anthropic -----------------------------------------------------------------------------------------------------------------


def messages_usage(question: Question) -> Mapping[str, Any]:
    written = question.input_tokens // 4 if question.seed & 1 else 0
    return question.usage or {
        "input_tokens": question.input_tokens - question.cached_tokens - written
        if written < question.input_tokens - question.cached_tokens
        else 7,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": question.cached_tokens,
        "cache_creation": {"ephemeral_5m_input_tokens": written - written // 3, "ephemeral_1h_input_tokens": written // 3},
        "output_tokens": question.output_tokens,
        "service_tier": "standard",
    }


def messages_answer(question: Question) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": question.served,
        "content": [{"type": "text", "text": "".join(question.words)}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": messages_usage(question),
    }


def messages_events(question: Question) -> Iterator[dict[str, Any]]:
    final = messages_answer(question)
    usage = {**final["usage"], "output_tokens": 1}
    yield {"type": "message_start", "message": {**final, "content": [], "stop_reason": None, "usage": usage}}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    yield {"type": "ping"}
    for word in question.words:
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
    yield {"type": "content_block_stop", "index": 0}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {key: value for key, value in final["usage"].items() if key.endswith("_tokens")},
    }
    yield {"type": "message_stop"}


# -- both ----------------------------------------------------------------------------------------------------------------------


def error_body(anthropic: bool, status: int, message: str | None = None) -> dict[str, Any]:
    """An error as either provider words it."""
    kind = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
        status, "api_error"
    )
    text = message or f"The loopback provider was asked to answer {status}."
    if anthropic:
        return {"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_loopback"}
    return {"error": {"message": text, "type": kind, "param": None, "code": None}}


def sse(event: Mapping[str, Any], named: bool) -> bytes:
    """One server-sent event; Anthropic's and the Responses API's carry their name."""
    name = f"event: {event['type']}\n" if named else ""
    return f"{name}data: {json.dumps(event, separators=(',', ':'))}\n\n".encode()
