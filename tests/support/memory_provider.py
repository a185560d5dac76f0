"""A provider that answers from memory, in both wire formats, through the HTTP library that each SDK brings."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anthropic
import openai

from voight_middleware.records.usage import Usage

CHAT_USAGE = {
    "prompt_tokens": 120,
    "completion_tokens": 45,
    "total_tokens": 165,
    "prompt_tokens_details": {"cached_tokens": 20, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 0},
}
RESPONSES_USAGE = {
    "input_tokens": 120,
    "input_tokens_details": {"cached_tokens": 20},
    "output_tokens": 45,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 165,
}
MESSAGES_USAGE = {
    "input_tokens": 100,
    "cache_read_input_tokens": 20,
    "cache_creation_input_tokens": 7,
    "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 3},
    "output_tokens": 45,
    "service_tier": "standard",
}
TEXT_USAGE = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}

USAGE = {
    "chat": Usage(input=100, cache_read=20, audio_in=0, output=45, reasoning=5, audio_out=0),
    "responses": Usage(input=100, cache_read=20, output=45, reasoning=5),
    "embeddings": Usage(input=8),
    "messages": Usage(input=100, cache_read=20, cache_write_5m=4, cache_write_1h=3, output=45),
}
"""What each endpoint's answer comes to."""
MODELS = {
    "chat": ("gpt-4o-mini", "gpt-4o-mini-2024-07-18"),
    "responses": ("gpt-4o-mini", "gpt-4o-mini-2024-07-18"),
    "embeddings": ("text-embedding-3-small", "text-embedding-3-small"),
    "messages": ("claude-opus-4-8", "claude-opus-4-8-20260101"),
}
"""The model asked for, and the one that serves it."""
IDS = {"chat": "chatcmpl-1", "responses": "resp_1", "embeddings": None, "messages": "msg_1"}
REASONS = {"chat": ("stop",), "responses": ("stop",), "embeddings": None, "messages": ("end_turn",)}
TIERS = {"chat": "default", "responses": "default", "embeddings": None, "messages": "standard"}

TEXT = '{"city": "Oslo"}'
PIECES = ['{"ci', 'ty": ', '"Oslo"', "}"]
JSON, SSE = {"content-type": "application/json"}, {"content-type": "text/event-stream"}


def sse(*events: dict[str, Any] | str) -> list[bytes]:
    """Server-sent events, named by their ``type`` where they have one."""
    made = []
    for event in events:
        data = event if isinstance(event, str) else json.dumps(event)
        name = f"event: {event['type']}\n" if isinstance(event, dict) and "type" in event else ""
        made.append(f"{name}data: {data}\n\n".encode())
    return made


def chat_chunk(delta: dict[str, Any] | None = None, *, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One chunk of a chat stream; without a delta it has no choices."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
    head = {"id": IDS["chat"], "object": "chat.completion.chunk", "created": 1, "model": MODELS["chat"][1], "service_tier": "default"}
    return {**head, "choices": choices, "usage": None, **more}


def chat_events(*, usage: bool) -> list[bytes]:
    """A chat stream: a role, four pieces of text, the reason for its end. Where usage was asked for: null in each, then the counts."""
    pieces = [chat_chunk({"content": piece}) for piece in PIECES]
    chunks = [chat_chunk({"role": "assistant", "content": ""}), *pieces, chat_chunk({}, finish="stop")]
    if usage:
        return sse(*chunks, chat_chunk(usage=CHAT_USAGE), "[DONE]")
    return sse(*({key: value for key, value in chunk.items() if key != "usage"} for chunk in chunks), "[DONE]")


def chat_body() -> dict[str, Any]:
    message = {"role": "assistant", "content": TEXT, "refusal": None}
    return {
        "id": IDS["chat"],
        "object": "chat.completion",
        "created": 1,
        "model": MODELS["chat"][1],
        "service_tier": "default",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": CHAT_USAGE,
    }


def completion(**more: Any) -> dict[str, Any]:
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "gpt-3.5-turbo-instruct:20230824-v2", "choices": [], **more}


def responses_body(status: str = "completed", *, usage: bool = True, **more: Any) -> dict[str, Any]:
    text = {"type": "output_text", "text": TEXT, "annotations": []}
    output = [{"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [text]}]
    return {
        "id": IDS["responses"],
        "object": "response",
        "created_at": 1,
        "status": status,
        "model": MODELS["responses"][1],
        "service_tier": "default",
        "output": output if usage else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": RESPONSES_USAGE if usage else None,
        **more,
    }


def responses_events(end: str = "response.completed") -> list[bytes]:
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    item = {"type": "message", "id": "msg_1", "status": "in_progress", "role": "assistant", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": responses_body("in_progress", usage=False)},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **place, "part": part},
        *({"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []} for piece in PIECES),
        {"type": "response.output_text.done", **place, "text": TEXT, "logprobs": []},
        {"type": end, "response": responses_body(end.removeprefix("response."))},
    ]
    return sse(*({**event, "sequence_number": number} for number, event in enumerate(events)))


def embeddings_body() -> dict[str, Any]:
    data = [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}]
    return {"object": "list", "data": data, "model": MODELS["embeddings"][1], "usage": {"prompt_tokens": 8, "total_tokens": 8}}


def messages_body(usage: dict[str, Any] = MESSAGES_USAGE, *, text: str | None = TEXT) -> dict[str, Any]:
    return {
        "id": IDS["messages"],
        "type": "message",
        "role": "assistant",
        "model": MODELS["messages"][1],
        "content": [] if text is None else [{"type": "text", "text": text}],
        "stop_reason": None if text is None else "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }


def messages_events() -> list[bytes]:
    """A message stream: the input's counts first, the output's cumulative count at the end."""
    deltas = ({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}} for piece in PIECES)
    return sse(
        {"type": "message_start", "message": messages_body({**MESSAGES_USAGE, "output_tokens": 1}, text=None)},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *deltas,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 45}},
        {"type": "message_stop"},
    )


_SDKS = {"openai": openai, "anthropic": anthropic}
_CLIENTS = {
    ("openai", False): "OpenAI",
    ("openai", True): "AsyncOpenAI",
    ("anthropic", False): "Anthropic",
    ("anthropic", True): "AsyncAnthropic",
}

Answer = tuple[int, dict[str, str], list[bytes]]
"""Status, headers, and the parts of a body."""


def usual(path: str, body: dict[str, Any]) -> Answer:
    """What a provider answers to a good request."""
    if path.endswith("/embeddings"):
        return 200, JSON, [json.dumps(embeddings_body()).encode()]
    if body.get("stream"):
        options = body.get("stream_options") or {}
        events = {
            "completions": lambda: chat_events(usage=bool(options.get("include_usage"))),
            "responses": responses_events,
            "messages": messages_events,
        }
        return 200, SSE, events[path.rpartition("/")[2]]()
    whole = {"completions": chat_body, "responses": responses_body, "messages": messages_body}.get(path.rpartition("/")[2], dict)()
    return 200, JSON, [json.dumps(whole).encode()]


def sent(content: bytes) -> dict[str, Any]:
    """The JSON of a request; empty for an upload."""
    try:
        return json.loads(content) if content else {}
    except ValueError:
        return {}


def refusal(status: int, message: str = "no") -> Answer:
    """An error, in the form that both providers use."""
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": message, "code": None, "param": None}}
    return status, {**JSON, "retry-after-ms": "1", "x-request-id": "req_1"}, [json.dumps(error).encode()]


def http_library(sdk: Any) -> Any:
    """httpx2, or httpx under the SDKs of old."""
    return sys.modules[sdk.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]]


class Provider:
    """
    Answers every request as a provider would, or as *answer* says.

    Attributes:
        answer: Called with the path and the body of each request.
        cut: After how many parts of a body the connection breaks.
        pause_after: After how many parts of an asynchronous body nothing comes any more.
        bodies: What was sent.
    """

    def __init__(self) -> None:
        self.answer: Callable[[str, dict[str, Any]], Answer] = usual
        self.cut: int | None = None
        self.pause_after: int | None = None
        self.bodies: list[dict[str, Any]] = []

    def answer_in_turn(self, *answers: Answer | None) -> None:
        """Give these answers one after the other; None is the usual one."""
        waiting = list(answers)
        self.answer = lambda path, body: waiting.pop(0) or usual(path, body)

    def client(self, sdk: str, *, asynchronous: bool = False, **options: Any) -> Any:
        """A client of an SDK whose requests all come here."""
        made = getattr(_SDKS[sdk], _CLIENTS[sdk, asynchronous])
        http_client = self.http_client(http_library(_SDKS[sdk]), asynchronous=asynchronous)
        return made(**{"api_key": "k", "max_retries": 0, "http_client": http_client, **options})

    def http_client(self, library: Any, *, asynchronous: bool = False) -> Any:
        """An HTTP client of *library*, that is httpx or httpx2, whose requests all come here."""
        transport = self._transport(library)
        return library.AsyncClient(transport=transport) if asynchronous else library.Client(transport=transport)

    def transport(self, sdk: Any) -> Any:
        """An HTTP transport of the SDK's own library that leads to this provider."""
        return self._transport(http_library(sdk))

    def _transport(self, library: Any) -> Any:
        provider = self

        class Body(library.SyncByteStream, library.AsyncByteStream):  # type: ignore[misc, name-defined]
            def __init__(self, parts: list[bytes], request: Any) -> None:
                self._parts, self._request = parts, request

            def __iter__(self) -> Iterator[bytes]:
                for number, part in enumerate(self._parts):
                    if number == provider.cut:
                        raise library.RemoteProtocolError("peer closed connection", request=self._request)
                    yield part

            async def __aiter__(self) -> AsyncIterator[bytes]:
                for number, part in enumerate(self):
                    if number == provider.pause_after:
                        await asyncio.Event().wait()
                    yield part

        def handle(request: Any) -> Any:
            body = sent(request.content)
            provider.bodies.append(body)
            status, headers, parts = provider.answer(request.url.path, body)
            return library.Response(status, headers=headers, stream=Body(parts, request))

        return library.MockTransport(handle)
