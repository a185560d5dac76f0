"""What is open across ``os.fork()`` is counted once, by the process that began it."""

import contextlib
import gc
import os
from collections.abc import Callable

import httpx
import pytest

from voight_middleware import metered_call, wrap
from voight_middleware.instrumentation import openai_socket as openai_sockets
from voight_middleware.pipeline import open_calls

from ..support.calls import Calls
from ..support.memory_provider import Provider
from .entry_points import CHAT, MESSAGES
from .sockets import CREATE, Server, done, needs_responses, opened, read_until, responses_answer

pytestmark = pytest.mark.server


def in_child(calls: Calls, end: Callable[[], object]) -> None:
    """Fork. Let the child end what is open, and check that it has reported nothing."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            before = calls.meter.journal.written
            with contextlib.suppress(Exception):
                end()
            gc.collect()
            open_calls.end_all()
            status = min(98, calls.meter.journal.written - before + calls.faults)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("end", ["close", "exhaust"])
@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
def test_a_stream_of_an_sdk(sdk: str, end: str, provider: Provider, calls: Calls) -> None:
    """Whether the child closes it or reads on."""
    client = wrap(provider.client(sdk))
    stream = client.chat.completions.create(**CHAT, stream=True) if sdk == "openai" else client.messages.create(**MESSAGES, stream=True)
    next(stream)
    in_child(calls, stream.close if end == "close" else lambda: list(stream))
    list(stream)
    assert (calls.one().outcome, calls.one().estimated) == ("ok", False)


def test_a_body_that_is_read_by_hand(provider: Provider, calls: Calls) -> None:
    """The SDK makes no stream of it."""
    client = wrap(provider.client("openai"))
    with client.chat.completions.with_streaming_response.create(**CHAT, stream=True) as response:
        lines = response.iter_lines()
        next(lines)
        in_child(calls, response.close)
        list(lines)
    assert calls.one().outcome == "ok"


def test_a_stream_of_raw_http(provider: Provider, calls: Calls) -> None:
    """Of a metered transport."""
    client = wrap(provider.http_client(httpx))
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", "https://api.openai.com/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        in_child(calls, response.close)
        list(lines)
    assert (calls.one().outcome, calls.one().estimated) == ("ok", False)


def test_a_block_of_metered_call(calls: Calls) -> None:
    """A child that leaves the block would report the same call without its usage, and the first report holds."""
    block = metered_call(provider="openai", model="gpt-4o-mini")
    with block as call:
        in_child(calls, lambda: block.__exit__(SystemExit, SystemExit(0), None))
        call.report(input=12, output=3)
    assert (calls.one().outcome, calls.one().usage is not None) == ("ok", True)


@needs_responses
@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # openai, websockets 17
async def test_a_response_over_a_websocket(server: Server, calls: Calls) -> None:
    """One that goes on, and one that was asked for."""
    server.answers = lambda _, event: responses_answer(event)[:3] if event["model"] == "a" else []
    client = wrap(server.client())
    others = set(openai_sockets._open)  # what another test has left
    async with opened(client, "responses") as connection:
        await done(connection.send({**CREATE, "model": "b"}))
        await done(connection.send({**CREATE, "model": "a"}))
        await read_until(connection, "response.output_text.delta")
        (socket,) = set(openai_sockets._open) - others
        in_child(calls, socket.end)  # as its finalizer does when the child ends
    assert [call.outcome for call in calls.all()] == ["aborted", "aborted"]
