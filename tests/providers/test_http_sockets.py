"""Raw HTTP over real sockets: what the provider itself has counted, and connections that break or are left."""

import asyncio
from typing import Any

import httpx
import httpx2
import pytest

from voight_middleware import tag, wrap
from voight_middleware.testing.provider import LoopbackProvider

from ..support.calls import Calls
from ..support.waiting import wait_until
from .entry_points import CHAT, EMBEDDINGS, MESSAGES, RESPONSES
from .raw_http import (
    ANTHROPIC,
    ASKS,
    CHAT_URL,
    KINDS,
    LIBRARIES,
    OPENAI,
    client_of,
    close,
    leading_to,
    sent,
)


@pytest.fixture(autouse=True)
def _forget(loopback: LoopbackProvider) -> None:
    loopback.reset()


@pytest.mark.slow
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


@pytest.mark.slow
async def test_cancellation_is_told_apart(loopback: LoopbackProvider, calls: Calls) -> None:
    """While the answer is waited for, and while it is read, whole or as a stream."""
    client = wrap(client_of(httpx, leading_to(loopback, httpx, asynchronous=True), asynchronous=True))

    async def read(body: dict[str, Any], header: str, begun: asyncio.Event) -> None:
        async with client.stream("POST", CHAT_URL, json=body, headers={header: "5000"}) as response:
            begun.set()
            await response.aread()

    waiting = [
        (CHAT, "x-loopback-delay-ms"),
        ({**CHAT, **ASKS}, "x-loopback-chunk-delay-ms"),
        (CHAT, "x-loopback-chunk-delay-ms"),
    ]
    for body, header in waiting:
        begun = asyncio.Event()
        task = asyncio.create_task(read(body, header, begun))
        if header == "x-loopback-delay-ms":
            await asyncio.to_thread(wait_until, lambda: loopback.counts().total.calls == 1)
        else:
            await begun.wait()
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


@pytest.mark.slow
async def test_a_stream_that_ends_too_early_is_truncated(loopback: LoopbackProvider, calls: Calls) -> None:
    """Its last event never came."""
    client = wrap(client_of(httpx, leading_to(loopback, httpx, asynchronous=False)))
    await sent(client, f"{OPENAI}/responses", {**RESPONSES, "stream": True}, headers={"x-loopback-end-after": "6"})
    client.close()

    assert calls.one().outcome == "truncated"
    assert calls.one().estimated


@pytest.mark.slow
async def test_a_hundred_tasks_of_twenty_users_over_one_client(loopback: LoopbackProvider, calls: Calls) -> None:
    """Every user has their own calls, whole ones and streams, as many as the provider counted for them."""
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
