"""Requests to providers without an SDK, what is answered, and the clients that send them."""

import base64
import json
import struct
import zlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httpx
import httpx2
import pytest

from voight_middleware.records.usage import Usage
from voight_middleware.testing.provider import LoopbackProvider

from ..support.memory_provider import (
    IDS,
    JSON,
    MODELS,
    REASONS,
    SSE,
    USAGE,
    Provider,
    messages_body,
    messages_events,
    sse,
)
from .entry_points import CHAT, EMBEDDINGS, MESSAGES, RESPONSES

LIBRARIES = pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
KINDS = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])

OPENAI, ANTHROPIC = "https://api.openai.com/v1", "https://api.anthropic.com/v1"
CHAT_URL = f"{OPENAI}/chat/completions"
ASKS = {"stream": True, "stream_options": {"include_usage": True}}


def frame(payload: dict[str, Any]) -> bytes:
    """One frame of Amazon's event stream, with one header."""
    headers = b"\x0b:event-type\x07\x00\x05chunk"
    body = json.dumps(payload).encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(body), len(headers))
    head = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + body
    return head + struct.pack(">I", zlib.crc32(head))


def wrapped(event: dict[str, Any]) -> bytes:
    """An event as Bedrock hands it on from another provider."""
    return frame({"bytes": base64.b64encode(json.dumps(event).encode()).decode(), "p": "abcdefgh"})


def invoked_frame(payload: bytes) -> bytes:
    """One frame of Bedrock's, around an event of another provider: its lengths and their CRC, headers, payload, and the CRC of it all."""
    body = json.dumps({"bytes": base64.b64encode(payload).decode(), "p": "abcd"}).encode()
    headers = b"".join(
        struct.pack("!B", len(name)) + name + struct.pack("!BH", 7, len(value)) + value
        for name, value in ((b":event-type", b"chunk"), (b":content-type", b"application/json"), (b":message-type", b"event"))
    )
    prelude = struct.pack("!II", 16 + len(headers) + len(body), len(headers))
    whole = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + body
    return whole + struct.pack("!I", zlib.crc32(whole))


GEMINI_USAGE = {
    "promptTokenCount": 120,
    "cachedContentTokenCount": 20,
    "candidatesTokenCount": 40,
    "thoughtsTokenCount": 5,
    "totalTokenCount": 165,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 120}],
}
CONVERSE_USAGE = {
    "inputTokens": 100,
    "outputTokens": 45,
    "totalTokens": 172,
    "cacheReadInputTokens": 20,
    "cacheWriteInputTokens": 7,
    "cacheDetails": [{"ttl": "1h", "inputTokens": 3}, {"ttl": "5m", "inputTokens": 4}],
}
IMAGES_USAGE = {"input_tokens": 10, "input_tokens_details": {"text_tokens": 10, "image_tokens": 0}, "output_tokens": 30, "total_tokens": 40}


def gemini_answer(text: str, **more: Any) -> dict[str, Any]:
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, **more.pop("candidate", {})}
    return {"candidates": [candidate], "modelVersion": "gemini-2.5-flash-001", "responseId": "g_1", **more}


GEMINI_ANSWER = gemini_answer("Oslo", candidate={"finishReason": "STOP"}, usageMetadata=GEMINI_USAGE)
GEMINI_EVENTS = [
    gemini_answer("{", usageMetadata={"promptTokenCount": 120}),
    gemini_answer('"ö"', usageMetadata={"promptTokenCount": 120}),
    gemini_answer("}", candidate={"finishReason": "STOP"}, usageMetadata=GEMINI_USAGE),
]
CONVERSE_EVENTS = [
    {"role": "assistant", "p": "ab"},
    {"contentBlockIndex": 0, "delta": {"text": "Oslo"}, "p": "ab"},
    {"contentBlockIndex": 1, "delta": {"toolUse": {"input": "{}"}}},
    {"contentBlockIndex": 0},
    {"stopReason": "end_turn", "p": "ab"},
    {"metrics": {"latencyMs": 1}, "usage": CONVERSE_USAGE},
]
MESSAGE_EVENTS = [json.loads(event.split(b"data: ")[1]) for event in messages_events()]
FRAMED = {"content-type": "application/vnd.amazon.eventstream"}


@dataclass(frozen=True)
class Case:
    """One request, what is answered where the usual provider does not know it, and the call that it is."""

    name: str
    url: str
    body: dict[str, Any]
    endpoint: str
    provider: str
    usage: Usage | None
    requested: str | None
    model: str | None
    identity: str | None
    streamed: bool = False
    answer: Any = None
    reasons: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return self.name


def known(name: str, url: str, body: dict[str, Any], endpoint: str, provider: str, **more: Any) -> Case:
    """A case whose answer the usual provider gives."""
    read = {"usage": USAGE[endpoint], "reasons": REASONS[endpoint]}
    values = {**read, "requested": MODELS[endpoint][0], "model": MODELS[endpoint][1], "identity": IDS[endpoint], **more}
    return Case(name, url, body, endpoint, provider, **values)


def made(  # noqa: PLR0917 - a row of the table below
    name: str, url: str, body: dict[str, Any], endpoint: str, provider: str, usage: Usage | None, answer: Any, **more: Any
) -> Case:
    """A case with an answer of its own."""
    values = {"requested": None, "model": None, "identity": None, **more}
    return Case(name, url, body, endpoint, provider, usage, answer=answer, **values)


GEMINI = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash"
VERTEX = "https://europe-west1-aiplatform.googleapis.com/v1/projects/p-1/locations/europe-west1/publishers"
BEDROCK = "https://bedrock-runtime.eu-west-1.amazonaws.com/model"
CLAUDE = "eu.anthropic.claude-haiku-4-5-20251001-v1:0"
ASK_GEMINI = {"contents": [{"role": "user", "parts": [{"text": "Where?"}]}]}
ASK_CONVERSE = {"messages": [{"role": "user", "content": [{"text": "Where?"}]}]}
ASK_BEDROCK = {**{name: value for name, value in MESSAGES.items() if name != "model"}, "anthropic_version": "bedrock-2023-05-31"}
GEMINI_COUNTS = Usage(input=100, cache_read=20, output=45, reasoning=5)
CONVERSE_COUNTS = Usage(input=100, cache_read=20, cache_write_5m=4, cache_write_1h=3, output=45)
IS_GEMINI = {"requested": "gemini-2.5-flash", "model": "gemini-2.5-flash-001", "identity": "g_1", "reasons": ("STOP",)}
LONG = {"requested": CLAUDE}
MODEL_LESS = {name: value for name, value in CHAT.items() if name != "model"}


def array(items: list[dict[str, Any]]) -> list[bytes]:
    """A JSON array as Google sends it: element by element, in the middle of which a part may end."""
    text = ("[" + "\n,\r\n".join(json.dumps(item, indent=2, ensure_ascii=False) for item in items) + "\n]\n").encode()
    cut = text.index("ö".encode()) + 1
    return [text[:40], text[40:cut], text[cut:]]


CASES = [
    known("chat", CHAT_URL, CHAT, "chat", "openai"),
    known("chat stream", CHAT_URL, {**CHAT, **ASKS}, "chat", "openai", streamed=True),
    known("responses", f"{OPENAI}/responses", RESPONSES, "responses", "openai"),
    known("responses stream", f"{OPENAI}/responses", {**RESPONSES, "stream": True}, "responses", "openai", streamed=True),
    known("embeddings", f"{OPENAI}/embeddings", EMBEDDINGS, "embeddings", "openai"),
    known("messages", f"{ANTHROPIC}/messages", MESSAGES, "messages", "anthropic"),
    known("messages stream", f"{ANTHROPIC}/messages?beta=true", {**MESSAGES, "stream": True}, "messages", "anthropic", streamed=True),
    known(
        "azure",
        "https://x.openai.azure.com/openai/deployments/our-4o/chat/completions?api-version=1",
        MODEL_LESS,
        "chat",
        "azure",
        requested="our-4o",
    ),
    known("proxy", "http://llm.internal:4000/any/chat/completions", {**CHAT, **ASKS}, "chat", "openai", streamed=True),
    known("proxied messages", "http://llm.internal/anthropic/v1/messages", MESSAGES, "messages", "anthropic"),
    known(
        "vertex messages",
        f"{VERTEX}/anthropic/models/claude-opus-4-8@20260101:streamRawPredict",
        {**MESSAGES, "stream": True},
        "messages",
        "vertex",
        streamed=True,
        answer=lambda: (200, SSE, messages_events()),
    ),
    made(
        "images",
        f"{OPENAI}/images/generations",
        {"model": "gpt-image-1", "prompt": "A fjord"},
        "images",
        "openai",
        Usage(input=10, image_in=0, image_out=30),
        lambda: (200, JSON, [json.dumps({"created": 1, "usage": IMAGES_USAGE}).encode()]),
        requested="gpt-image-1",
    ),
    made(
        "images stream",
        f"{OPENAI}/images/generations",
        {"model": "gpt-image-1", "prompt": "A fjord", "stream": True},
        "images",
        "openai",
        Usage(input=10, image_in=0, image_out=30),
        lambda: (
            200,
            SSE,
            sse(
                {"type": "image_generation.partial_image", "b64_json": "x" * 99},
                {"type": "image_generation.completed", "b64_json": "x" * 9999, "usage": IMAGES_USAGE},
            ),
        ),
        requested="gpt-image-1",
        streamed=True,
    ),
    made(
        "gemini",
        f"{GEMINI}:generateContent?key=k",
        ASK_GEMINI,
        "generate_content",
        "google",
        GEMINI_COUNTS,
        lambda: (200, JSON, [json.dumps(GEMINI_ANSWER).encode()]),
        **IS_GEMINI,
    ),
    made(
        "gemini stream",
        f"{GEMINI}:streamGenerateContent?alt=sse",
        ASK_GEMINI,
        "generate_content",
        "google",
        GEMINI_COUNTS,
        lambda: (200, SSE, [f"data: {json.dumps(one)}\r\n\r\n".encode() for one in GEMINI_EVENTS]),
        **IS_GEMINI,
        streamed=True,
    ),
    made(
        "gemini array",
        f"{VERTEX}/google/models/gemini-2.5-flash:streamGenerateContent",
        ASK_GEMINI,
        "generate_content",
        "vertex",
        GEMINI_COUNTS,
        lambda: (200, JSON, array(GEMINI_EVENTS)),
        **IS_GEMINI,
        streamed=True,
    ),
    known(
        "bedrock",
        f"{BEDROCK}/{CLAUDE.replace(':', '%3A')}/invoke",
        ASK_BEDROCK,
        "messages",
        "bedrock",
        **LONG,
        answer=lambda: (200, JSON, [json.dumps(messages_body()).encode()]),
    ),
    known(
        "bedrock stream",
        f"{BEDROCK}/{CLAUDE}/invoke-with-response-stream",
        ASK_BEDROCK,
        "messages",
        "bedrock",
        **LONG,
        streamed=True,
        answer=lambda: (200, FRAMED, [wrapped(one) for one in MESSAGE_EVENTS]),
    ),
    made(
        "converse",
        f"{BEDROCK}/{CLAUDE}/converse",
        ASK_CONVERSE,
        "converse",
        "bedrock",
        CONVERSE_COUNTS,
        lambda: (200, JSON, [json.dumps({"stopReason": "end_turn", "usage": CONVERSE_USAGE}).encode()]),
        **LONG,
        reasons=("end_turn",),
    ),
    made(
        "converse stream",
        f"{BEDROCK}/{CLAUDE}/converse-stream",
        ASK_CONVERSE,
        "converse",
        "bedrock",
        CONVERSE_COUNTS,
        lambda: (200, FRAMED, [frame(one) for one in CONVERSE_EVENTS]),
        **LONG,
        reasons=("end_turn",),
        streamed=True,
    ),
]
BY_NAME = {case.name: case for case in CASES}


def answering(case: Case) -> Provider:
    """A provider that answers a case."""
    provider = Provider()
    if case.answer is not None:
        provider.answer = lambda path, body: case.answer()
    return provider


def raw(provider: Provider, library: Any) -> Any:
    """A transport of an HTTP library that leads to *provider*."""
    return provider.transport(SimpleNamespace(DefaultHttpxClient=type("Client", (library.Client,), {})))


def client_of(library: Any, transport: Any, asynchronous: bool = False, **options: Any) -> Any:
    return (library.AsyncClient if asynchronous else library.Client)(transport=transport, **options)


async def sent(client: Any, url: str, body: Any, *, method: str = "POST", **options: Any) -> tuple[Any, ...]:
    """What the caller gets of a request: status, headers, and the parts of the body as they come."""
    options = {"json": body, **options} if body is not None else options
    if hasattr(client, "aclose"):
        async with client.stream(method, url, **options) as response:
            return response.status_code, list(response.headers.items()), [part async for part in response.aiter_raw()]
    with client.stream(method, url, **options) as response:
        return response.status_code, list(response.headers.items()), list(response.iter_raw())


async def got(client: Any, url: str, body: Any) -> Any:
    """The same of a request whose answer is read at once."""
    answer = client.post(url, json=body)
    response = await answer if hasattr(client, "aclose") else answer
    return response.status_code, response.content


def leading_to(loopback: LoopbackProvider, library: Any, asynchronous: bool) -> Any:
    """A real transport, on which every host is the loopback provider."""
    port = int(loopback.url.rpartition(":")[2])

    class Sync(library.HTTPTransport):  # type: ignore[misc, name-defined]
        def handle_request(self, request: Any) -> Any:
            request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=port)
            return super().handle_request(request)

    class Async(library.AsyncHTTPTransport):  # type: ignore[misc, name-defined]
        async def handle_async_request(self, request: Any) -> Any:
            request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=port)
            return await super().handle_async_request(request)

    return Async(verify=False) if asynchronous else Sync(verify=False)  # certificates take longer to load than a call


async def close(client: Any) -> None:
    await client.aclose() if hasattr(client, "aclose") else client.close()
