"""Raw HTTP: answers that go wrong, are cut up, or are long."""

import gc
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from voight_middleware import wrap
from voight_middleware.instrumentation.bodies import Body, Lines
from voight_middleware.records.usage import Usage

from ..support.calls import Calls
from ..support.memory_provider import (
    JSON,
    PIECES,
    SSE,
    USAGE,
    Provider,
    chat_body,
    chat_chunk,
    refusal,
    sse,
)
from ..support.patching import Patch
from .entry_points import CHAT, MESSAGES
from .raw_http import (
    ANTHROPIC,
    ASK_CONVERSE,
    ASKS,
    BY_NAME,
    CHAT_URL,
    CONVERSE_EVENTS,
    FRAMED,
    KINDS,
    LIBRARIES,
    MESSAGE_EVENTS,
    OPENAI,
    Case,
    answering,
    client_of,
    frame,
    got,
    raw,
    sent,
    wrapped,
)


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
    """Nothing is asked of the provider that the caller did not ask for."""
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def _zipped(filling: bytes, times: int) -> bytes:
    """A body whose megabytes are packed to some bytes each."""
    packing = zlib.compressobj(9, wbits=31)
    return packing.compress(b"{") + b"".join(packing.compress(filling) for _ in range(times)) + packing.flush()


BOMBS = {
    "whole": (JSON, b" " * (1 << 20), 40),
    "stream without lines": (SSE, b" " * (1 << 20), 40),
    "stream of lines": (SSE, b" " * (1 << 20) + b"\n", 40),
}


@pytest.mark.slow
@pytest.mark.parametrize(("headers", "filling", "times"), BOMBS.values(), ids=BOMBS)
async def test_a_bomb_passes_packed(
    headers: dict[str, str], filling: bytes, times: int, provider: Provider, calls: Calls, patch: Patch
) -> None:
    """The caller gets its bytes. We unpack no more of them than an answer may have."""
    patch("MAX_BODY_BYTES", 8 << 20)
    bomb = _zipped(filling, times)
    provider.answer = lambda path, body: (200, {**headers, "content-encoding": "gzip"}, [bomb])
    client = wrap(client_of(httpx, raw(provider, httpx)))
    tracemalloc.start()
    try:
        assert (await sent(client, f"{ANTHROPIC}/messages", MESSAGES))[2] == [bomb]
        assert tracemalloc.get_traced_memory()[1] < 36 << 20
    finally:
        tracemalloc.stop()
    assert calls.one().raw_usage is None


@pytest.mark.slow
@pytest.mark.parametrize("filling", [b" " * (1 << 20), b" " * (1 << 20) + b"\n"], ids=["one line", "lines"])
def test_a_bomb_of_a_batch_s_answers_is_let_pass(filling: bytes, patch: Patch) -> None:
    """A file may have any size, and a line or a packed part may not."""
    patch("MAX_BODY_BYTES", 8 << 20)
    seen: list[bytes] = []
    lines = Lines(httpx.Response(200, headers={"content-encoding": "gzip"}), lambda line: not seen.append(line))
    tracemalloc.start()
    try:
        lines.take(_zipped(filling, 40))
        assert tracemalloc.get_traced_memory()[1] < 36 << 20
    finally:
        tracemalloc.stop()
    assert lines._line is None
    plain = Lines(httpx.Response(200), lambda line: not seen.append(line))
    for _ in range(9):
        plain.take(b" " * (1 << 20))
    assert plain._line is None
    assert seen in ([], [b"{"])


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


async def test_a_conversation_that_is_broken_off_is_estimated(provider: Provider, calls: Calls) -> None:
    provider.answer = lambda path, body: (200, FRAMED, [frame(one) for one in CONVERSE_EVENTS[:2]])
    await sent(wrap(client_of(httpx, raw(provider, httpx))), BY_NAME["converse stream"].url, ASK_CONVERSE)

    call = calls.one()
    assert (call.outcome, call.estimated_output, call.estimated_input) == ("truncated", 1, 3)


# -- memory


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


@pytest.mark.slow
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


async def test_an_event_without_an_end_is_given_up(calls: Calls, patch: Patch) -> None:
    patch("MAX_BODY_BYTES", 1000)
    provider = Provider()
    provider.answer = lambda path, body: (200, SSE, [b"data: {", *[b"x" * 100] * 20, b"}\n\n"])
    await sent(wrap(client_of(httpx, raw(provider, httpx))), CHAT_URL, CHAT)

    assert (calls.one().outcome, calls.one().usage) == ("truncated", Usage(input=3, output=0))


def test_encodings_that_only_the_http_library_knows_are_undone_as_far_as_an_answer_goes(patch: Patch) -> None:
    """Zstandard makes a megabyte of some bytes."""
    zstd = pytest.importorskip("backports.zstd")
    library = pytest.importorskip("httpx2")
    patch("MAX_BODY_BYTES", 8 << 20)
    for content, expected in ((json.dumps(chat_body()).encode(), json.dumps(chat_body()).encode()), (bytes(64 << 20), b"")):
        body = Body(library.Response(200, headers={"content-encoding": "zstd"}))
        body.take(zstd.compress(content))
        tracemalloc.start()
        try:
            assert body.content() == expected
            assert tracemalloc.get_traced_memory()[1] < 24 << 20
        finally:
            tracemalloc.stop()


def test_a_request_that_is_nested_too_deeply_is_a_call_all_the_same(calls: Calls) -> None:
    """Its body is not read, and its answer is."""
    body = b'{"model": "gpt-5-nano", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=chat_body()))
    wrap(client_of(httpx, transport)).post(CHAT_URL, content=body)
    assert calls.one().usage == USAGE["chat"]
