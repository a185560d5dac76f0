"""Raw HTTP: what goes through a metered transport of httpx or httpx2 to a provider is a call, and passes untouched."""

import asyncio
import base64
import copy
import gc
import gzip
import json
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

import voight_middleware
from voight_middleware import instrument, journal, meter, metered_transport, tag, tags, uninstrument, wrap
from voight_middleware.providers import bedrock, bodies, entry, events, gemini, http, streams
from voight_middleware.providers.entry import ByHand, current_entry
from voight_middleware.providers.openai import ChatReader
from voight_middleware.tags import NOBODY, Owner, Tags
from voight_middleware.testing.provider import LoopbackProvider
from voight_middleware.usage import Usage

from ..support.calls import Calls
from ..support.memory_provider import (
    IDS,
    JSON,
    MESSAGES_USAGE,
    MODELS,
    PIECES,
    REASONS,
    SSE,
    USAGE,
    Provider,
    chat_body,
    chat_chunk,
    http_library,
    messages_body,
    messages_events,
    refusal,
    sse,
)
from .entry_points import CHAT, EMBEDDINGS, MESSAGES, RESPONSES
from .recordings import Exchange, Recording, index, load
from .test_recordings import SERVED, is_exact

LIBRARIES = pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
KINDS = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])

OPENAI, ANTHROPIC = "https://api.openai.com/v1", "https://api.anthropic.com/v1"
CHAT_URL = f"{OPENAI}/chat/completions"
ASKS = {"stream": True, "stream_options": {"include_usage": True}}

# -- what is sent, and what comes of it ----------------------------------------------------------------------------------------


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


@LIBRARIES
@KINDS
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_request_to_a_provider_is_one_call_and_passes_untouched(case: Case, asynchronous: bool, library: Any, calls: Calls) -> None:
    """Exactly one call with exactly the usage that was reported; the caller gets the same bytes in the same parts."""
    provider = answering(case)
    bare = client_of(library, raw(provider, library), asynchronous)
    client = client_of(library, metered_transport(raw(provider, library)), asynchronous)
    parts = await sent(bare, case.url, case.body)
    content = await got(bare, case.url, case.body)
    with tag(user_id="u_1"):
        assert await sent(client, case.url, case.body) == parts
        assert await got(client, case.url, case.body) == content

    assert provider.bodies == [case.body] * 4
    by_hand, at_once = calls.all()
    for call in (by_hand, at_once):
        assert (call.endpoint, call.provider, call.usage) == (case.endpoint, case.provider, case.usage)
        assert (call.requested_model, call.model, call.response_id) == (case.requested, case.model, case.identity)
        assert (call.outcome, call.http_status, call.error, call.streamed) == ("ok", 200, None, case.streamed)
        assert (call.attempts, call.estimated, call.tags.user_id) == (1, False, "u_1")
        assert (call.ttft is None) == (not case.streamed)
        assert (call.host, call.finish_reasons) == (library.URL(case.url).host, case.reasons)


# -- over real sockets ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loopback() -> Iterator[LoopbackProvider]:
    """A provider on a port of its own."""
    with LoopbackProvider() as provider:
        yield provider


@pytest.fixture(autouse=True)
def _forget(loopback: LoopbackProvider) -> None:
    loopback.reset()


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

    return Async() if asynchronous else Sync()


async def close(client: Any) -> None:
    await client.aclose() if hasattr(client, "aclose") else client.close()


@LIBRARIES
@KINDS
@pytest.mark.parametrize("encoding", [None, "gzip"])
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_over_real_sockets_the_ledger_has_what_the_provider_counted(
    streamed: bool, encoding: str | None, asynchronous: bool, library: Any, loopback: LoopbackProvider, calls: Calls
) -> None:
    """Every text endpoint, compressed or not: call by call the tokens that the provider itself has counted."""
    client = wrap(client_of(library, leading_to(loopback, library, asynchronous), asynchronous))
    headers = {"x-loopback-encoding": encoding} if encoding else {}
    more = {"stream": True} if streamed else {}
    wanted = [
        (f"{OPENAI}/chat/completions", {**CHAT, **(ASKS if streamed else {})}),
        (f"{OPENAI}/responses", {**RESPONSES, **more}),
        (f"{ANTHROPIC}/messages", {**MESSAGES, **more}),
        *([] if streamed else [(f"{OPENAI}/embeddings", EMBEDDINGS)]),
    ]
    for url, body in wanted:
        status, _, parts = await sent(client, url, body, headers=headers)
        assert status == 200
        assert parts
    await close(client)

    made = calls.all()
    total = loopback.counts().total
    assert [(call.outcome, call.estimated, call.streamed) for call in made] == [("ok", False, streamed)] * len(wanted)
    usages = [call.usage for call in made if call.usage is not None]
    assert len(usages) == total.completed == len(wanted)
    assert sum(usage.input_tokens or 0 for usage in usages) == total.input_tokens
    assert sum(usage.output_tokens or 0 for usage in usages) == total.output_tokens


@KINDS
async def test_a_cut_connection_is_an_error_with_what_was_streamed(asynchronous: bool, loopback: LoopbackProvider, calls: Calls) -> None:
    """The caller gets the library's own error; the output is estimated, Anthropic's input is exact."""
    client = wrap(client_of(httpx, leading_to(loopback, httpx, asynchronous), asynchronous))
    for url, body in ((CHAT_URL, {**CHAT, **ASKS}), (f"{ANTHROPIC}/messages", {**MESSAGES, "stream": True})):
        with pytest.raises(httpx.RemoteProtocolError):
            await sent(client, url, body, headers={"x-loopback-cut-after": "5"})
    with pytest.raises(httpx.RemoteProtocolError):
        await sent(client, CHAT_URL, CHAT, headers={"x-loopback-cut-after": "1"})
    await close(client)

    chat, messages, whole = calls.all()
    assert {(call.outcome, call.error) for call in (chat, messages, whole)} == {("error", "RemoteProtocolError")}
    assert chat.estimated_output
    assert chat.estimated_input
    assert messages.estimated_output
    assert messages.estimated_input is None
    assert messages.usage is not None
    assert messages.usage.input_tokens
    assert whole.usage is None


@KINDS
async def test_a_stream_that_is_left_is_aborted(asynchronous: bool, loopback: LoopbackProvider, calls: Calls) -> None:
    """Left in the middle, it is estimated; left before its first part, too. One that had its end already is ok."""
    client = wrap(client_of(httpx2, leading_to(loopback, httpx2, asynchronous), asynchronous))
    slow = {"x-loopback-chunk-delay-ms": "20", "x-loopback-chunks": "100"}
    for count, headers in ((2, slow), (0, slow), (3, {"x-loopback-end-after": "3"})):
        options = {"json": {**MESSAGES, "stream": True}, "headers": headers}
        if asynchronous:
            async with client.stream("POST", f"{ANTHROPIC}/messages", **options) as response:
                lines = response.aiter_bytes()
                for _ in range(count):
                    await anext(lines)
        else:
            with client.stream("POST", f"{ANTHROPIC}/messages", **options) as response:
                lines = response.iter_bytes()
                for _ in range(count):
                    next(lines)
    await close(client)

    left, unread, short = calls.all()
    assert [call.outcome for call in (left, unread, short)] == ["aborted"] * 3
    assert left.estimated
    assert left.ttft is not None
    assert unread.ttft is None


async def test_cancellation_is_told_apart(loopback: LoopbackProvider, calls: Calls) -> None:
    """While the answer is waited for, and while it is read, whole or as a stream."""
    client = wrap(client_of(httpx, leading_to(loopback, httpx, asynchronous=True), asynchronous=True))
    waiting = [
        ({**CHAT}, {"x-loopback-delay-ms": "5000"}),
        ({**CHAT, **ASKS}, {"x-loopback-chunk-delay-ms": "300"}),
        ({**CHAT}, {"x-loopback-chunk-delay-ms": "300"}),
    ]
    for body, headers in waiting:
        task = asyncio.create_task(sent(client, CHAT_URL, body, headers=headers))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await client.aclose()

    unsent, stream, whole = calls.all()
    assert [call.outcome for call in (unsent, stream, whole)] == ["cancelled"] * 3
    assert unsent.possibly_billed == 1
    assert unsent.http_status is None
    assert stream.http_status == whole.http_status == 200
    assert stream.estimated


async def test_a_stream_that_ends_too_early_is_truncated(loopback: LoopbackProvider, calls: Calls) -> None:
    """Its last event never came."""
    client = wrap(client_of(httpx, leading_to(loopback, httpx, asynchronous=False)))
    await sent(client, f"{OPENAI}/responses", {**RESPONSES, "stream": True}, headers={"x-loopback-end-after": "6"})
    client.close()

    assert calls.one().outcome == "truncated"
    assert calls.one().estimated


async def test_a_hundred_tasks_of_twenty_users_over_one_client(loopback: LoopbackProvider, calls: Calls) -> None:
    """Every user has his own calls, whole ones and streams, as many as the provider counted for him."""
    limits = httpx.Limits(max_connections=30)
    transport = httpx.AsyncHTTPTransport(limits=limits)
    client = wrap(httpx.AsyncClient(transport=transport, timeout=60))

    async def work(number: int) -> None:
        user = f"u_{number % 20}"
        body = {**CHAT, "messages": [{"role": "user", "content": f"[user:{user}] Where is {number}?"}], **(ASKS if number % 2 else {})}
        async with tag(user_id=user):
            status, _, _ = await sent(client, f"{loopback.url}/v1/chat/completions", body)
            assert status == 200

    await asyncio.gather(*(work(number) for number in range(100)))
    await client.aclose()

    counted = {user: count for user, count in loopback.counts().by_user.items() if user != "-"}  # streams that other tests have left
    assert len(counted) == 20
    for user, count in counted.items():
        own = [call.usage for call in calls.all() if call.tags.user_id == user]
        tokens = [(usage.input_tokens or 0, usage.output_tokens or 0) for usage in own if usage is not None]
        assert (len(tokens), *map(sum, zip(*tokens, strict=True))) == (count.completed, count.input_tokens, count.output_tokens)


# -- hosts and paths -----------------------------------------------------------------------------------------------------------

HOSTS = [
    ("POST", "https://api.openai.com/v1/chat/completions", "openai", "chat"),
    ("POST", "https://eu.api.openai.com/v1/responses", "openai", "responses"),
    ("GET", "https://api.openai.com/v1/responses/resp_1", "openai", "responses"),
    ("POST", "https://api.openai.com/v1/audio/speech", "openai", "speech"),
    ("POST", "https://api.openai.com/v1/threads/t_1/runs", "openai", "runs"),
    ("GET", "https://api.openai.com/v1/files/f_1/content", "openai", "batch"),
    ("POST", "https://x.openai.azure.com/openai/deployments/d/embeddings", "azure", "embeddings"),
    ("POST", "https://x.openai.azure.com//openai/deployments/d/images/generations", "azure", "images"),
    ("POST", "https://x.openai.azure.com/openai/responses", "azure", "responses"),
    ("POST", "https://x.openai.azure.com/openai/v1/responses/", "azure", "responses"),
    ("POST", "https://x.services.ai.azure.com/models/chat/completions", "azure", "chat"),
    ("POST", "https://x.services.ai.azure.com/api/projects/p/openai/v1/responses", "azure", "responses"),
    ("POST", "https://x.services.ai.azure.com/anthropic/v1/messages", "azure", "messages"),
    ("POST", "https://openrouter.ai/api/v1/chat/completions", "openrouter", "chat"),
    ("POST", "https://openrouter.ai/api/v1/messages", "openrouter", "messages"),
    ("POST", "https://api.groq.com/openai/v1/responses", "groq", "responses"),
    ("POST", "https://api.deepseek.com/chat/completions", "deepseek", "chat"),
    ("POST", "https://api.deepseek.com/beta/completions", "deepseek", "completions"),
    ("POST", "https://api.deepseek.com/anthropic/v1/messages", "deepseek", "messages"),
    ("POST", "https://api.mistral.ai/v1/embeddings", "mistral", "embeddings"),
    ("POST", "https://api.fireworks.ai/inference/v1/completions", "fireworks", "completions"),
    ("POST", "https://api.anthropic.com/v1/messages", "anthropic", "messages"),
    ("POST", "https://api.anthropic.com/v1/messages/count_tokens", "anthropic", "count_tokens"),
    ("POST", "https://api.anthropic.com/v1/messages/batches", "anthropic", "batch"),
    ("GET", "https://api.anthropic.com/v1/messages/batches/b_1/results", "anthropic", "batch"),
    ("POST", "https://api.anthropic.com/v1/chat/completions", "anthropic", "chat"),
    ("POST", "https://generativelanguage.googleapis.com/v1beta/models/gemini-3-flash:generateContent", "google", "generate_content"),
    ("POST", "https://generativelanguage.googleapis.com/v1beta/tunedModels/t-1:streamGenerateContent", "google", "generate_content"),
    ("POST", "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions", "google", "chat"),
    ("POST", f"{VERTEX}/google/models/gemini-3-flash:generateContent", "vertex", "generate_content"),
    ("POST", "https://aiplatform.googleapis.com/v1/publishers/google/models/gemini-3-flash:generateContent", "vertex", "generate_content"),
    ("POST", f"{VERTEX}/anthropic/models/claude-opus-4-8:rawPredict", "vertex", "messages"),
    ("POST", f"{VERTEX}/mistralai/models/mistral-large:rawPredict", "vertex", "chat"),
    ("POST", "https://aiplatform.googleapis.com/v1/projects/p/locations/l/endpoints/openapi/chat/completions", "vertex", "chat"),
    ("POST", f"{BEDROCK}/anthropic.claude-v2/invoke", "bedrock", "messages"),
    ("POST", f"{BEDROCK}/amazon.nova-pro-v1%3A0/converse-stream", "bedrock", "converse"),
    ("POST", "https://bedrock-runtime.us-west-2.amazonaws.com/openai/v1/chat/completions", "bedrock", "chat"),
    ("POST", "http://127.0.0.1:4000/v1/chat/completions", "openai", "chat"),
    ("POST", "https://gateway.example.com/anthropic/v1/messages", "anthropic", "messages"),
]
NOT_BILLED = [
    ("GET", "https://api.openai.com/v1/chat/completions"),
    ("GET", "https://api.openai.com/v1/models"),
    ("POST", "https://api.openai.com/v1/files"),
    ("POST", "https://api.openai.com/v1/threads/t_1/messages"),
    ("POST", "https://api.openai.com/"),
    ("GET", "https://api.anthropic.com/v1/messages"),
    ("GET", f"{GEMINI}:generateContent"),
    ("POST", f"{GEMINI}:countTokens"),
    ("POST", f"{VERTEX}/anthropic/models/count-tokens:rawPredict"),
    ("POST", f"{VERTEX}/meta/models/llama:rawPredict"),
    ("POST", f"{BEDROCK}/x/count-tokens"),
    ("PUT", "https://bucket.s3.amazonaws.com/model/x/invoke"),
    ("POST", "https://example.com/v1/responses"),
    ("POST", "https://example.com/v1/embeddings"),
    ("POST", "https://example.com/api/v1/messages/send"),
    ("POST", "https://notopenai.com/v1/responses"),
    ("POST", "https://example.com/myv1/messages"),
]


@pytest.mark.parametrize(("method", "url", "provider", "endpoint"), HOSTS)
def test_a_billable_request_is_recognised_by_its_url(method: str, url: str, provider: str, endpoint: str) -> None:
    """Whatever a provider puts before its paths; on a host that is not known only what nothing else has."""
    parsed = httpx.URL(url)
    target = http.find(method, parsed.host, parsed.path)
    assert target is not None
    assert (target.provider, target.endpoint.name) == (provider, endpoint)


@pytest.mark.parametrize(("method", "url"), NOT_BILLED)
def test_no_other_request_is_a_call(method: str, url: str) -> None:
    parsed = httpx.URL(url)
    assert http.find(method, parsed.host, parsed.path) is None


def test_the_url_names_the_model_where_the_body_does_not() -> None:
    """Azure's deployment, Gemini's model, an inference profile of Bedrock's with a slash in it."""
    profile = "arn:aws:bedrock:eu-west-1:1:inference-profile/eu.anthropic.claude-opus-4-8"
    for url, model in (
        ("https://x.openai.azure.com/openai/deployments/our-4o/chat/completions", "our-4o"),
        (f"{GEMINI}:generateContent", "gemini-2.5-flash"),
        (f"{BEDROCK}/{profile.replace('/', '%2F').replace(':', '%3A')}/invoke", profile),
    ):
        parsed = httpx.URL(url)
        target = http.find("POST", parsed.host, parsed.path)
        assert target is not None
        assert target.model == model


@LIBRARIES
async def test_what_is_no_call_passes_and_is_none(library: Any, calls: Calls) -> None:
    """Other paths, other hosts, redirects."""
    provider = Provider()
    provider.answer = lambda path, body: (200, {}, [b"x"])
    client = wrap(client_of(library, raw(provider, library)))
    for method, url in NOT_BILLED:
        assert (await sent(client, url, None, method=method))[0] == 200
    provider.answer = lambda path, body: (307, {"location": "/elsewhere"}, [b""])
    assert (await sent(client, CHAT_URL, CHAT))[0] == 307

    assert calls.all() == []


# -- once --------------------------------------------------------------------------------------------------------------------


def through(provider: Provider, sdk: str, **options: Any) -> Any:
    """A client of an SDK whose HTTP client has a metered transport."""
    client = provider.client(sdk, **options)
    client._client._transport = metered_transport(client._client._transport)
    return client


@KINDS
@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
async def test_what_an_sdk_sends_is_counted_once(sdk: str, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """By the gate where its client is metered, by the transport where it is not."""
    clients = {
        "wrapped": wrap(through(provider, sdk, asynchronous=asynchronous)),
        "unwrapped": through(provider, sdk, asynchronous=asynchronous),
    }
    for name, client in clients.items():
        method, arguments = (client.chat.completions, CHAT) if sdk == "openai" else (client.messages, MESSAGES)
        with tag(user_id=name):
            answer = method.create(**arguments)
            await answer if asynchronous else answer
            stream = method.create(**arguments, stream=True)
            events_seen = [event async for event in await stream] if asynchronous else list(stream)
            assert events_seen

    assert [(call.tags.user_id, call.outcome, call.streamed) for call in calls.all()] == [
        ("wrapped", "ok", False),
        ("wrapped", "ok", True),
        ("unwrapped", "ok", False),
        ("unwrapped", "ok", True),
    ]
    whole = "chat" if sdk == "openai" else "messages"
    assert [call.usage for call in calls.all()][:3] == [USAGE[whole]] * 3


async def test_instrument_and_a_wrapped_http_client_are_one_call(provider: Provider, calls: Calls) -> None:
    """The SDK's own requests over a client that is used raw as well."""
    library = http_library(openai)
    http_client = wrap(library.Client(transport=raw(provider, library)))
    instrument()
    client = openai.OpenAI(api_key="k", http_client=http_client, max_retries=0)
    client.chat.completions.create(**CHAT)
    http_client.post(CHAT_URL, json=CHAT)

    assert [call.usage for call in calls.all()] == [USAGE["chat"]] * 2


def test_an_sdk_that_is_not_wrapped_has_a_call_for_each_attempt(provider: Provider, calls: Calls) -> None:
    """A transport sees attempts, not requests: a refused one costs nothing."""
    provider.answer_in_turn(refusal(500), None)
    client = through(provider, "openai", max_retries=1)
    client.chat.completions.create(**CHAT)

    refused, answered = calls.all()
    assert (refused.outcome, refused.http_status, refused.cost_usd) == ("error", 500, 0)
    assert (answered.outcome, answered.usage) == ("ok", USAGE["chat"])


@pytest.mark.parametrize("still_open", [True, False])
def test_inside_a_call_by_hand_nothing_is_counted(still_open: bool, provider: Provider, calls: Calls) -> None:
    """As long as its block is open."""
    client = wrap(client_of(httpx, raw(provider, httpx)))
    block = ByHand()
    block.open = still_open
    outer = current_entry.get()
    current_entry.set(block)
    try:
        client.post(CHAT_URL, json=CHAT)
    finally:
        current_entry.set(outer)

    assert len(calls.all()) == (0 if still_open else 1)


@LIBRARIES
@KINDS
async def test_a_metered_transport_inside_another_counts_once(asynchronous: bool, library: Any, calls: Calls) -> None:
    """Such as behind one that tries again: what it hides is a part of one call."""
    provider = Provider()
    inner = metered_transport(raw(provider, library))

    class Again(library.BaseTransport, library.AsyncBaseTransport):  # type: ignore[misc, name-defined]
        def handle_request(self, request: Any) -> Any:
            inner.handle_request(request)
            return inner.handle_request(request)

        async def handle_async_request(self, request: Any) -> Any:
            await inner.handle_async_request(request)
            return await inner.handle_async_request(request)

    await got(client_of(library, metered_transport(Again()), asynchronous), CHAT_URL, CHAT)

    assert len(provider.bodies) == 2
    assert calls.one().usage == USAGE["chat"]


# -- transports and clients ----------------------------------------------------------------------------------------------------


class Told:
    """What a transport was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __enter__(self) -> Any:
        self.told.append("enter")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.told.append("exit")

    def close(self) -> None:
        self.told.append("close")

    async def __aenter__(self) -> Any:
        self.told.append("aenter")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.told.append("aexit")

    async def aclose(self) -> None:
        self.told.append("aclose")


@LIBRARIES
async def test_a_metered_transport_is_one_of_its_library(library: Any) -> None:
    """Of the same base classes and no others; everything it is told it hands on."""
    for base in (library.BaseTransport, library.AsyncBaseTransport):
        inner = type("Inner", (Told, base), {})()
        transport: Any = metered_transport(inner)
        assert isinstance(transport, base)
        other = library.AsyncBaseTransport if base is library.BaseTransport else library.BaseTransport
        assert not isinstance(transport, other)
        assert metered_transport(transport) is transport
        assert transport.told is inner.told
        assert hasattr(transport, "handle_request") == (base is library.BaseTransport)
        assert hasattr(transport, "handle_async_request") == (base is library.AsyncBaseTransport)
        assert not hasattr(transport, "unheard_of")
        assert copy.copy(transport).told is inner.told
        if base is library.BaseTransport:
            with transport as entered:
                assert entered is transport
            transport.close()
            assert inner.told == ["enter", "exit", "close"]
        else:
            async with transport as entered:
                assert entered is transport
            await transport.aclose()
            assert inner.told == ["aenter", "aexit", "aclose"]


@LIBRARIES
@KINDS
async def test_a_wrapped_client_is_the_same_object(asynchronous: bool, library: Any, provider: Provider, calls: Calls) -> None:
    """Its transports are metered, those that are mounted too, and None stays None. Wrapping twice counts once."""
    kind = library.AsyncHTTPTransport if asynchronous else library.HTTPTransport
    mounts = {"all://none.example.com": None, "https://api.openai.com": raw(provider, library)}
    client = client_of(library, kind(), asynchronous, mounts=mounts)
    patterns = list(client._mounts)
    assert wrap(wrap(client)) is client

    assert list(client._mounts) == patterns
    assert [mounted is None for mounted in client._mounts.values()].count(True) == 1
    assert isinstance(client._transport, library.AsyncBaseTransport if asynchronous else library.BaseTransport)
    await got(client, CHAT_URL, CHAT)
    await close(client)
    assert calls.one().usage == USAGE["chat"]


def test_the_http_clients_of_the_sdks_can_be_wrapped(calls: Calls) -> None:
    """They are subclasses."""
    for client in (openai.DefaultHttpxClient(), anthropic.DefaultHttpxClient()):
        with client:
            assert wrap(client) is client
            assert type(client._transport).__name__ == "MeteredTransport"


@pytest.mark.parametrize("thing", [None, object(), httpx.Client, "transport", SimpleNamespace(handle_request=print)])
def test_what_is_no_transport_is_named(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"metered_transport\(\) takes a transport of httpx or httpx2, not (builtins|types)\.\w+"):
        metered_transport(thing)


def test_a_client_with_a_transport_of_another_kind_is_refused() -> None:
    """And left as it was."""
    transport: Any = SimpleNamespace(handle_request=print, close=lambda: None)
    client = httpx.Client(transport=transport)
    with pytest.raises(TypeError, match=r"wrap\(\) takes a client with a transport of httpx or httpx2, not types\.SimpleNamespace"):
        wrap(client)
    assert client._transport is transport
    client.close()


async def test_uninstrument_ends_it(provider: Provider, calls: Calls) -> None:
    """Nothing is metered any more, and everything still works; until something is wrapped again."""
    client = wrap(client_of(httpx, raw(provider, httpx)))
    uninstrument()
    assert (await got(client, CHAT_URL, CHAT))[0] == 200
    assert calls.all() == []

    wrap(client)
    await got(client, CHAT_URL, CHAT)
    assert len(calls.all()) == 1


async def test_disabled_means_nothing(provider: Provider, calls: Calls) -> None:
    calls.meter.settings = meter.Settings.from_environment(enabled=False, environ={})
    await got(wrap(client_of(httpx, raw(provider, httpx))), CHAT_URL, CHAT)

    assert calls.all() == []


def test_the_public_name() -> None:
    assert voight_middleware.metered_transport is http.metered_transport


# -- answers that go wrong -----------------------------------------------------------------------------------------------------


@LIBRARIES
@KINDS
@pytest.mark.parametrize("status", [400, 429, 500])
async def test_a_refusal_is_an_error_that_costs_nothing(status: int, asynchronous: bool, library: Any, calls: Calls) -> None:
    provider = Provider()
    provider.answer = lambda path, body: refusal(status)
    client = wrap(client_of(library, raw(provider, library), asynchronous))
    assert (await got(client, CHAT_URL, {**CHAT, "user": "u_7"}))[0] == status
    await got(client, f"{OPENAI}/batches", {})

    call = calls.one()
    assert (call.outcome, call.http_status, call.cost_usd, call.error) == ("error", status, 0, None)
    assert (call.tags.user_id, call.attribution) == ("u_7", "request")


@LIBRARIES
@KINDS
@pytest.mark.parametrize("kind", ["ReadTimeout", "ConnectError"])
async def test_a_transport_that_raises_is_an_error(kind: str, asynchronous: bool, library: Any, calls: Calls) -> None:
    """Its exception is the caller's; one after which the provider may have worked is flagged."""

    def fail(request: Any) -> Any:
        raise getattr(library, kind)("no", request=request)

    client = wrap(client_of(library, library.MockTransport(fail), asynchronous))
    with pytest.raises(getattr(library, kind)):
        await got(client, CHAT_URL, CHAT)

    call = calls.one()
    assert (call.outcome, call.error, call.http_status) == ("error", kind, None)
    assert call.possibly_billed == (1 if kind == "ReadTimeout" else None)


async def test_a_stream_without_usage_is_estimated_and_not_changed(provider: Provider, calls: Calls) -> None:
    """Nothing is asked of the provider that the caller did not ask for himself."""
    client = wrap(client_of(httpx, raw(provider, httpx)))
    await sent(client, CHAT_URL, {**CHAT, "stream": True})

    call = calls.one()
    assert provider.bodies == [{**CHAT, "stream": True}]
    assert (call.outcome, call.estimated_output, call.estimated_input) == ("ok", len(PIECES), 3)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("chat stream", sse(chat_chunk({"content": "Os"}), {"error": {"message": "overloaded", "code": 502}})),
        ("messages stream", sse({"type": "error", "error": {"type": "overloaded_error"}})),
        ("gemini stream", sse({"error": {"code": 503, "status": "UNAVAILABLE"}})),
        ("bedrock stream", [wrapped(MESSAGE_EVENTS[0]), frame({"message": "Too many requests"})]),
    ],
)
async def test_an_error_in_the_middle_of_a_stream_is_an_error(name: str, parts: list[bytes], calls: Calls) -> None:
    case = BY_NAME[name]
    provider = Provider()
    provider.answer = lambda path, body: (200, FRAMED if name.startswith("bedrock") else SSE, parts)
    await sent(wrap(client_of(httpx, raw(provider, httpx))), case.url, case.body)

    assert (calls.one().outcome, calls.one().error) == ("error", "error")


async def test_a_stream_that_is_dropped_unread_is_aborted(provider: Provider, calls: Calls) -> None:
    """By the garbage collector."""
    client = wrap(client_of(httpx, raw(provider, httpx)))
    client.send(client.build_request("POST", CHAT_URL, json={**CHAT, **ASKS}), stream=True)
    gc.collect()

    assert calls.one().outcome == "aborted"


@pytest.mark.parametrize(
    ("headers", "parts"),
    [
        (JSON, [b"?"]),
        (JSON, [b"[1]"]),
        (SSE, [b"data: {?}\n\n"]),
        (SSE, [b"\xff\xfe\n\n", b"data: {\xff}\n\ndata: [1]\n\n"]),
        (FRAMED, [b"\x00" * 40, b"\x00"]),
        (FRAMED, [frame({"bytes": "?"})]),
        ({**SSE, "content-encoding": "gzip"}, [b"no gzip", b"at all"]),
        ({**SSE, "content-encoding": "br"}, [b"no brotli"]),
        ({**SSE, "content-encoding": "gzip, gzip"}, [b"no gzip"]),
        ({**JSON, "content-encoding": "gzip"}, [b"no gzip"]),
    ],
)
async def test_an_answer_that_cannot_be_read_is_a_call_without_usage(
    headers: dict[str, str], parts: list[bytes], provider: Provider, calls: Calls
) -> None:
    """It passes as it is, and nothing of ours fails at it."""
    provider.answer = lambda path, body: (200, headers, parts)
    client = wrap(client_of(httpx, raw(provider, httpx)))
    assert (await sent(client, f"{ANTHROPIC}/messages", MESSAGES))[2] == parts

    call = calls.one()
    assert call.raw_usage is None
    assert call.outcome in ("ok", "truncated")


@LIBRARIES
@pytest.mark.parametrize("case", [BY_NAME["chat stream"], BY_NAME["gemini array"], BY_NAME["bedrock stream"], BY_NAME["chat"]], ids=str)
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_events_are_found_however_the_parts_are_cut(size: int, case: Case, library: Any, calls: Calls) -> None:
    """Byte by byte, in pieces, and compressed."""
    whole = answering(case).answer("/v1/chat/completions", case.body)
    body = b"".join(whole[2]).replace(b"\n\n", b"\r\n\r\n" if size == 7 else b"\n\n")
    for encoded, headers in (
        (body, {}),
        (gzip.compress(body), {"content-encoding": "gzip"}),
        (zlib.compress(body), {"content-encoding": "deflate"}),
    ):
        parts = [encoded[at : at + size] for at in range(0, len(encoded), size)]
        provider = Provider()
        provider.answer = lambda path, body, answer=(200, {**whole[1], **headers}, parts): answer
        assert (await sent(wrap(client_of(library, raw(provider, library))), case.url, case.body))[2] == parts

    assert [(call.usage, call.outcome) for call in calls.all()] == [(case.usage, "ok")] * 3


@LIBRARIES
@KINDS
async def test_an_answer_that_the_transport_has_read_is_metered_at_once(asynchronous: bool, library: Any, calls: Calls) -> None:
    """As those of a cache, or a mock, are."""
    events_of_chat = answering(BY_NAME["chat stream"]).answer("/v1/chat/completions", {**CHAT, **ASKS})[2]

    def handle(request: Any) -> Any:
        body = json.loads(request.content)
        return (
            library.Response(200, content=b"".join(events_of_chat), headers=SSE)
            if "stream" in body
            else library.Response(200, json=chat_body())
        )

    client = wrap(client_of(library, library.MockTransport(handle), asynchronous))
    await got(client, CHAT_URL, CHAT)
    await got(client, CHAT_URL, {**CHAT, **ASKS})

    assert [(call.usage, call.streamed) for call in calls.all()] == [(USAGE["chat"], False), (USAGE["chat"], True)]


# -- requests that cannot be looked into ---------------------------------------------------------------------------------------


@LIBRARIES
async def test_a_request_that_is_streamed_up_is_not_read(library: Any, provider: Provider, calls: Calls) -> None:
    """Its model is not known; what the answer says is."""
    taken = []

    def upload() -> Iterator[bytes]:
        for part in (b'{"model": "gpt-4o-mini",', b'"messages": []}'):
            taken.append(part)
            yield part

    client = wrap(client_of(library, raw(provider, library)))
    client.post(CHAT_URL, content=upload())

    assert len(taken) == 2
    call = calls.one()
    assert (call.requested_model, call.model, call.usage) == (None, MODELS["chat"][1], USAGE["chat"])


@LIBRARIES
@KINDS
async def test_the_fields_of_a_form_are_known(asynchronous: bool, library: Any, calls: Calls) -> None:
    """A transcription says nothing of its model; the form that was sent does."""

    def handle(request: Any) -> Any:
        return library.Response(200, json={"text": "Hi", "usage": {"type": "duration", "seconds": 9}})

    client = wrap(client_of(library, library.MockTransport(handle), asynchronous))
    posted = client.post(f"{OPENAI}/audio/transcriptions", data={"model": "whisper-1"}, files={"file": ("a.wav", b"RIFF")})
    assert (await posted if asynchronous else posted).status_code == 200

    call = calls.one()
    assert (call.requested_model, call.endpoint) == ("whisper-1", "transcriptions")
    assert call.usage == Usage(seconds=9)
    assert call.cost_usd


@pytest.mark.parametrize("content", [b"", b"[]", b"{?", b"\xff"])
async def test_a_body_that_is_no_json_object_is_unknown(content: bytes, calls: Calls) -> None:
    client = wrap(client_of(httpx, httpx.MockTransport(lambda request: httpx.Response(200, json=chat_body()))))
    client.post(CHAT_URL, content=content)

    assert calls.one().requested_model is None


async def test_sound_is_not_kept(calls: Calls) -> None:
    """It may be long, and says nothing of its usage: what is billed are the characters that were sent."""
    provider = Provider()
    provider.answer = lambda path, body: (200, {"content-type": "audio/mpeg"}, [b"x" * 1_000_000] * 30)
    client = wrap(client_of(httpx, raw(provider, httpx)))
    with client.stream("POST", f"{OPENAI}/audio/speech", json={"model": "tts-1", "input": "Good morning", "voice": "x"}) as response:
        tracemalloc.start()
        try:
            assert sum(len(part) for part in response.iter_raw()) == 30_000_000
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()

    assert calls.one().usage == Usage(characters=12)
    assert calls.one().cost_status == "priced"


# -- jobs, batches, assistants -------------------------------------------------------------------------------------------------


async def test_a_batch_belongs_to_who_submitted_it(calls: Calls) -> None:
    """Its answers are read by somebody else, line by line as they pass."""
    line = {
        "custom_id": "a",
        "result": {"type": "succeeded", "message": {"id": "msg_1", "model": "claude-opus-4-8", "usage": MESSAGES_USAGE}},
    }
    provider = Provider()
    provider.answer = lambda path, body: (
        (200, {"content-type": "application/x-jsonl"}, [json.dumps(line).encode(), b"\n"])
        if path.endswith("results")
        else (200, JSON, [b'{"id": "b_1"}'])
    )
    client = wrap(client_of(httpx, raw(provider, httpx)))
    with tag(user_id="u_1"):
        await got(client, f"{ANTHROPIC}/messages/batches", {"requests": []})
    await sent(client, f"{ANTHROPIC}/messages/batches/b_1/results", None, method="GET")

    call = calls.one()
    assert (call.batch, call.usage, call.endpoint, call.tags.user_id) == (True, USAGE["messages"], "messages", "u_1")


async def test_an_assistants_run_is_told_by_the_names_of_its_events(calls: Calls) -> None:
    run = {"id": "run_1", "model": "gpt-4o", "status": "completed", "created_at": 1, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    begun = {**run, "status": "queued", "usage": None}
    parts = [f"event: thread.run.{one['status']}\ndata: {json.dumps(one)}\n\n".encode() for one in (begun, run)]
    provider = Provider()
    provider.answer = lambda path, body: (200, SSE, parts)
    await sent(wrap(client_of(httpx, raw(provider, httpx))), f"{OPENAI}/threads/t_1/runs", {"assistant_id": "a_1", "stream": True})

    call = calls.one()
    assert (call.outcome, call.model, call.usage) == ("ok", "gpt-4o", Usage(input=3, output=2))


# -- recorded traffic ----------------------------------------------------------------------------------------------------------

LISTED = [one for one in SERVED if "/threads/" not in one.row["endpoint"]]
PLACES = {"openai": OPENAI, "anthropic": ANTHROPIC, "azure-openai": "https://x.openai.azure.com/openai/v1"}


def place_of(recording: Recording) -> str:
    """Where a request was sent."""
    provider, endpoint = recording.row["provider"], recording.row["endpoint"]
    base = PLACES.get(provider, f"https://{provider.rpartition(':')[2]}")
    return f"{base.removesuffix('/openai/v1')}{endpoint}" if endpoint.startswith("//openai") else f"{base}{endpoint}"


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("recording", LISTED, ids=str)
async def test_a_recorded_answer_is_exact(recording: Recording, calls: Calls) -> None:
    """Sent raw, it has the usage that was recorded; where none was, it is one call all the same."""
    library = httpx if recording.row["index"] % 2 else httpx2
    exchange = load(recording)
    parts = [exchange.body[at : at + 500] for at in range(0, len(exchange.body), 500)]
    provider = Provider()
    provider.answer = lambda path, body: (exchange.status, exchange.headers, parts)
    url = place_of(recording)
    target = http.find("POST", library.URL(url).host, library.URL(url).path)
    assert target is not None

    assert (await sent(wrap(client_of(library, raw(provider, library))), url, exchange.request))[2] == parts

    if recording.row["expected"] is not None:
        is_exact(calls.one(), recording)
    assert (calls.one().endpoint, calls.one().http_status) == (recording.endpoint, 200)
    assert calls.one().outcome in ("ok", "truncated", "error")


# -- Bedrock -------------------------------------------------------------------------------------------------------------------

RECORDED = [
    one
    for one in index()
    if "/model/" in one.row["endpoint"] and "count-tokens" not in one.row["endpoint"] and one.row["http_status"] == 200
]
EXACT = [one for one in RECORDED if one.row["expected"] is not None]
OWN_COUNTS = {
    "anthropic_invoke.yaml-0": Usage(input=23, output=32),
    "anthropic_invoke_stream.yaml-0": Usage(input=25, output=4),
    "test_bedrock_model_thinking_part_from_other_model.yaml-1": Usage(input=1241, cache_read=0, cache_write=0, output=495),
    "test_bedrock_anthropic_tool_result_followed_by_document_accepted.yaml-0": Usage(input=658, cache_read=0, cache_write=0, output=45),
}
"""Recorded answers that the index has no counts for, as Bedrock itself counted them."""


def replayed(recording: Recording) -> tuple[Any, Exchange, str]:
    exchange = load(recording)
    header = {"x-amzn-bedrock-input-token-count": "23", "x-amzn-bedrock-output-token-count": "32"}  # `load` leaves them out
    framed = recording.row["endpoint"].endswith("stream")
    headers = {**exchange.headers, **header, **(FRAMED if framed else JSON)}
    provider = Provider()
    provider.answer = lambda path, body: (exchange.status, headers, [exchange.body])
    return (
        wrap(client_of(httpx, raw(provider, httpx))),
        exchange,
        f"https://bedrock-runtime.us-east-1.amazonaws.com{recording.row['endpoint']}",
    )


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("recording", EXACT, ids=str)
async def test_a_recorded_answer_of_bedrock_is_exact(recording: Recording, calls: Calls) -> None:
    """The tokens of its own body."""
    client, exchange, url = replayed(recording)
    status, _, parts = await sent(client, url, exchange.request)

    assert (status, parts) == (200, [exchange.body])
    call = calls.one()
    assert (call.provider, call.endpoint) == ("bedrock", "messages")
    is_exact(call, SimpleNamespace(row=recording.row, endpoint="messages", streamed=False))  # type: ignore[arg-type]
    assert call.requested_model == recording.row["endpoint"].split("/")[2].replace("%3A", ":")


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("recording", [one for one in RECORDED if str(one) in OWN_COUNTS], ids=str)
async def test_bedrocks_own_counts_are_used_where_the_body_has_none(recording: Recording, calls: Calls) -> None:
    """From the headers of a whole answer, and the metrics of a stream's last event."""
    client, exchange, url = replayed(recording)
    await sent(client, url, exchange.request)

    assert (calls.one().usage, calls.one().outcome) == (OWN_COUNTS[str(recording)], "ok")


def test_there_are_recordings(shared: Any) -> None:
    assert len(EXACT) == 10
    assert {str(one) for one in RECORDED} >= OWN_COUNTS.keys()


async def test_a_conversation_that_is_broken_off_is_estimated(provider: Provider, calls: Calls) -> None:
    provider.answer = lambda path, body: (200, FRAMED, [frame(one) for one in CONVERSE_EVENTS[:2]])
    await sent(wrap(client_of(httpx, raw(provider, httpx))), BY_NAME["converse stream"].url, ASK_CONVERSE)

    call = calls.one()
    assert (call.outcome, call.estimated_output, call.estimated_input) == ("truncated", 1, 3)


# -- memory --------------------------------------------------------------------------------------------------------------------


async def test_a_long_stream_costs_no_memory(calls: Calls) -> None:
    """Sixty megabytes of text, of which next to nothing is kept."""
    event = sse(chat_chunk({"content": "x" * 60_000}))[0]
    parts = [event] * 1000 + sse(chat_chunk({}, finish="stop"), chat_chunk(usage={"prompt_tokens": 3, "completion_tokens": 2}))

    class Long(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield from parts

    client = wrap(client_of(httpx, httpx.MockTransport(lambda request: httpx.Response(200, headers=SSE, stream=Long()))))
    with client.stream("POST", CHAT_URL, json=CHAT) as response:
        tracemalloc.start()
        try:
            assert sum(len(part) for part in response.iter_raw()) > 60_000_000
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()

    assert calls.one().usage == Usage(input=3, output=2)


async def test_an_event_without_an_end_is_given_up(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_BODY_BYTES", 1000)
    provider = Provider()
    provider.answer = lambda path, body: (200, SSE, [b"data: {", *[b"x" * 100] * 20, b"}\n\n"])
    await sent(wrap(client_of(httpx, raw(provider, httpx))), CHAT_URL, CHAT)

    assert (calls.one().outcome, calls.one().usage) == ("truncated", Usage(input=3, output=0))


# -- owners --------------------------------------------------------------------------------------------------------------------


@KINDS
async def test_a_call_belongs_to_whoever_sent_it(asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """Not to whoever reads its answer."""
    client = wrap(client_of(httpx2, raw(provider, httpx2), asynchronous))
    request = client.build_request("POST", CHAT_URL, json={**CHAT, **ASKS})
    with tag(user_id="u_1", plan="pro", feature="summary"):
        answer = client.send(request, stream=True)
        response = await answer if asynchronous else answer
    with tag(user_id="u_2"):
        await response.aread() if asynchronous else response.read()

    call = calls.one()
    assert (call.tags.user_id, call.tags.plan, dict(call.tags.extra)) == ("u_1", "pro", {"feature": "summary"})


class Asked:
    """A request's identity, of which something is known only when it is asked for."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()
        self.answer.set()

    def known(self) -> Owner:
        return NOBODY

    def resolve(self) -> Owner:
        return Owner(Tags(user_id="u_sync"), "getter")

    async def aresolve(self) -> Owner:
        await self.answer.wait()
        return Owner(Tags(user_id="u_async"), "getter")

    def identify(self, tags: Tags, attribution: str) -> None: ...

    def set_tags(self, tags: Tags) -> None: ...

    def await_settlement(self, call_id: str) -> None: ...


@KINDS
async def test_the_getters_of_a_request_are_asked_before_it_is_sent(asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """Awaited in asynchronous code. A task that is cancelled meanwhile has sent nothing: that is no call."""
    client = wrap(client_of(httpx, raw(provider, httpx), asynchronous))
    source = Asked()
    with tags.bind(source):
        await got(client, CHAT_URL, CHAT)
        assert (calls.one().tags.user_id, calls.one().attribution) == ("u_async" if asynchronous else "u_sync", "getter")
        if asynchronous:
            source.answer.clear()
            task = asyncio.create_task(got(client, CHAT_URL, CHAT))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert len(calls.all()) == len(provider.bodies) == 1


# -- faults of ours ------------------------------------------------------------------------------------------------------------

HOOKS: list[tuple[Any, str]] = [
    (http, "find"),
    (http, "_body"),
    (http, "current_meter"),
    (http, "HttpEntry"),
    (http, "Events"),
    (http, "Whole"),
    (http, "watch_close"),
    (http.HttpEntry, "__init__"),
    (http.HttpEntry, "watch"),
    (http.HttpEntry, "_refused"),
    (http.HttpEntry, "_form"),
    (http.HttpEntry, "_watch_events"),
    (http.HttpEntry, "_watch_body"),
    (gemini, "prompt_of"),
    (gemini.ContentReader, "__init__"),
    (gemini.ContentReader, "see"),
    (gemini.ContentReader, "answer"),
    (bedrock, "counted"),
    (bedrock.ConverseReader, "see"),
    (bedrock.InvokedReader, "see"),
    (bedrock.InvokedReader, "answer"),
    (entry, "current_frame"),
    (entry, "Call"),
    (entry, "kept"),
    (entry.Entry, "answered"),
    (entry.Entry, "failed"),
    (entry.Entry, "body_read"),
    (entry.Entry, "read_by_hand"),
    (entry.Entry, "stream_ended"),
    (streams.Ending, "end"),
    (streams, "_closing_class"),
    (events, "_loaded"),
    (events.Events, "__init__"),
    (events.Events, "take"),
    (events.Events, "feed"),
    (events.Events, "events"),
    (events.Whole, "content"),
    (events, "_decode_chunk"),
    (bodies.Body, "take"),
    (ChatReader, "see"),
    (tags.Frame, "owner"),
    (meter.Meter, "finish"),
    (journal.Journal, "append"),
]


class Fault(Exception):
    """Something of ours that fails."""


async def everything(asynchronous: bool, prepare: Any) -> list[Any]:
    """What a caller sees of every case, of refusals, of cut streams and of failing transports."""
    seen: list[Any] = []
    for case in CASES:
        provider = answering(case)
        client = prepare(client_of(httpx, raw(provider, httpx), asynchronous))
        seen.append(await sent(client, case.url, case.body))
        provider.cut = 1 if case.streamed else 0
        with pytest.raises(httpx.RemoteProtocolError) as caught:
            await sent(client, case.url, case.body)
        seen.append(str(caught.value))
        provider.answer = lambda path, body: refusal(400)
        provider.cut = None
        seen.append(await got(client, case.url, case.body))

    def fail(request: Any) -> Any:
        raise httpx.ReadTimeout("no", request=request)

    with pytest.raises(httpx.ReadTimeout):
        await got(prepare(client_of(httpx, httpx.MockTransport(fail), asynchronous)), CHAT_URL, CHAT)
    return seen


@KINDS
@pytest.mark.parametrize(("place", "name"), HOOKS, ids=lambda part: part if isinstance(part, str) else part.__name__.rpartition(".")[2])
async def test_a_fault_of_ours_never_reaches_the_caller(
    place: Any, name: str, asynchronous: bool, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte and every exception is what the HTTP library alone gives, and the fault is counted."""
    bare = await everything(asynchronous, lambda client: client)
    happened = []
    calls.faults_expected = True

    def fail(*args: object, **kwargs: object) -> Any:
        happened.append(name)
        raise Fault(name)

    with monkeypatch.context() as patch, tag(user_id="u_1"):
        patch.setattr(place, name, fail)
        assert await everything(asynchronous, wrap) == bare
        gc.collect()

    if (name, asynchronous) != ("owner", False):
        assert happened
        assert calls.faults > 0
