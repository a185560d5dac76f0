"""WebSockets of the openai SDK: each response of a connection is a call, whoever reads it and whosever it is."""

import asyncio
import contextlib
import json
from typing import Any

import pytest

from voight_middleware import tag, wrap
from voight_middleware.context.context import use_scope
from voight_middleware.middleware.getters import Getters
from voight_middleware.middleware.request_scope import RequestScope

from ..support.calls import Calls
from ..support.memory_provider import MODELS, USAGE
from .sockets import (
    CREATE,
    CUT,
    ENDS,
    Events,
    Server,
    ask,
    both_kinds,
    done,
    needs_responses,
    opened,
    read_until,
    realtimes,
    responses,
    responses_answer,
    usual,
)

pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # openai, websockets 17


@pytest.mark.slow
@responses
@both_kinds
async def test_every_response_of_a_connection_is_a_call(path: str, asynchronous: bool, server: Server, calls: Calls) -> None:
    """Two turns are two calls, with the provider's own counts, model, tier and id, and with times that begin when they were sent."""
    client = wrap(server.client(asynchronous=asynchronous))
    async with opened(client, path) as connection:
        with tag(user_id="u_1"):
            first = (await ask(connection))[-1]
        second = (await ask(connection))[-1]

    one, two = calls.all()
    assert [one.response_id, two.response_id] == [first.response.id, second.response.id]
    for call in (one, two):
        assert (call.provider, call.endpoint, call.host, call.streamed) == ("openai", "responses", "127.0.0.1", True)
        assert (call.requested_model, call.model) == MODELS["responses"]
        assert (call.usage, call.outcome, call.service_tier, call.estimated) == (USAGE["responses"], "ok", "default", False)
        assert call.ttft is not None
        assert call.duration is not None
        assert 0 < call.ttft <= call.duration
    assert one.tags.user_id == "u_1"


@pytest.mark.slow
@needs_responses
@both_kinds
@pytest.mark.parametrize(
    ("end", "outcome", "error"), [("completed", "ok", None), ("incomplete", "ok", None), ("failed", "error", "response.failed")]
)
async def test_every_end_of_a_response_is_counted(
    end: str, outcome: str, error: str | None, asynchronous: bool, server: Server, calls: Calls
) -> None:
    """What was used is billed, however the response has ended."""
    server.answers = lambda _, event: responses_answer(event, end)
    async with opened(wrap(server.client(asynchronous=asynchronous)), "responses") as connection:
        await ask(connection)

    call = calls.one()
    assert (call.outcome, call.error, call.usage) == (outcome, error, USAGE["responses"])


@pytest.mark.slow
@needs_responses
async def test_what_tools_are_billed_is_read_as_over_http(server: Server, calls: Calls) -> None:
    """Web searches stand beside the usage."""
    server.answers = lambda _, event: responses_answer(event, tool_usage={"web_search": {"num_requests": 3}})
    async with opened(wrap(server.client()), "responses") as connection:
        await ask(connection)

    usage = calls.one().usage
    assert usage is not None
    assert usage.tools == {"web_search": 3}


@needs_responses
async def test_a_refusal_is_a_call_that_failed(server: Server, calls: Calls) -> None:
    """As over HTTP: nothing is estimated, as nothing was done. What is asked next is not taken for it."""
    refusal = {"type": "error", "status": 400, "error": {"type": "invalid_request_error", "message": "no"}}
    server.answers = lambda path, event: [refusal] if event.get("model") == "none" else usual(path, event)
    async with opened(wrap(server.client()), "responses") as connection:
        await ask(connection, {**CREATE, "model": "none"})
        await ask(connection)

    refused, answered = calls.all()
    assert (refused.outcome, refused.error, refused.http_status, refused.requested_model) == ("error", "error", 400, "none")
    assert (refused.usage, refused.estimated) == (None, False)
    assert (answered.outcome, answered.requested_model) == ("ok", CREATE["model"])


@needs_responses
async def test_an_error_in_between_does_not_cost_the_usage(server: Server, calls: Calls) -> None:
    """A response may go on after an ``error``; where it does not, it has failed."""
    error = {"type": "error", "error": {"type": "server_error", "message": "no"}}

    def answers(_: str, event: dict[str, Any]) -> Events:
        created, *rest = responses_answer(event)
        return [created, error, *rest] if event["model"] == "goes-on" else [created, rest[0], error]

    server.answers = answers
    async with opened(wrap(server.client()), "responses") as connection:
        await done(connection.send({**CREATE, "model": "goes-on"}))
        await read_until(connection, "response.completed")
        await ask(connection, {**CREATE, "model": "ends"})

    went_on, ended = calls.all()
    assert (went_on.outcome, went_on.usage) == ("ok", USAGE["responses"])
    assert (ended.outcome, ended.error, ended.estimated_output) == ("error", "error", 2)


@needs_responses
async def test_lanes_of_a_connection_are_kept_apart(server: Server, calls: Calls) -> None:
    """Two responses at the same time, each with its ``stream_id``: their ends come in another order than their requests."""
    held: Events = []

    def answers(_: str, event: dict[str, Any]) -> Events:
        answer = responses_answer(event)
        if event["stream_id"] == "a":
            held.extend(answer)
            return []
        return [answer[0], held[0], *answer[1:], *held[1:-1], CUT]

    server.answers = answers
    async with opened(wrap(server.client()), "responses") as connection:
        for lane in ("a", "b"):
            with tag(user_id=lane):
                await done(connection.send({**CREATE, "stream_id": lane, "model": f"m-{lane}"}))
        with contextlib.suppress(Exception):
            while True:
                await done(connection.recv())

    kept = {call.requested_model: (call.tags.user_id, call.outcome, call.estimated_output) for call in calls.all()}
    assert kept == {"m-a": ("a", "aborted", 5), "m-b": ("b", "ok", None)}


# -- reading


async def by_recv(connection: Any) -> None:
    await read_until(connection)


async def by_bytes(connection: Any) -> None:
    while json.loads(await done(connection.recv_bytes()))["type"] not in ENDS:
        pass


async def by_bytes_and_parsing(connection: Any) -> None:
    while connection.parse_event(await done(connection.recv_bytes())).type not in ENDS:
        pass


async def by_iteration(connection: Any) -> None:
    if hasattr(connection, "__aiter__"):
        async for event in connection:
            if event.type in ENDS:
                return
    for event in connection:
        if event.type in ENDS:
            return


async def by_handlers(connection: Any) -> None:
    class Enough(Exception):
        pass

    def enough(_: Any) -> None:
        raise Enough

    connection.on("response.done", enough)
    with contextlib.suppress(Enough):
        await done(connection.dispatch_events())


@pytest.mark.slow
@realtimes
@both_kinds
@pytest.mark.parametrize("read", [by_recv, by_bytes, by_bytes_and_parsing, by_iteration, by_handlers])
async def test_however_it_is_read_it_counts_once(read: Any, path: str, asynchronous: bool, server: Server, calls: Calls) -> None:
    """Raw messages that nobody parses count too, and those that are parsed by hand no more than once."""
    client = wrap(server.client(asynchronous=asynchronous))
    async with opened(client, path) as connection:
        if read is by_handlers and not hasattr(connection, "dispatch_events"):
            pytest.skip("this connection has no handlers")
        await done(connection.send({"type": "response.create"}))
        await read(connection)

    assert calls.one().outcome == "ok"


@pytest.mark.slow
@realtimes
@both_kinds
async def test_a_helper_of_the_connection_sends_too(path: str, asynchronous: bool, server: Server, calls: Calls) -> None:
    """``connection.response.create()`` begins the call."""
    async with opened(wrap(server.client(asynchronous=asynchronous)), path) as connection:
        await done(connection.response.create())
        await read_until(connection)

    assert calls.one().ttft is not None


@needs_responses
@both_kinds
@pytest.mark.parametrize("raw", [json.dumps(CREATE), json.dumps(CREATE).encode()], ids=["text", "bytes"])
async def test_raw_messages_that_are_sent_are_seen(raw: Any, asynchronous: bool, server: Server, calls: Calls) -> None:
    """``send_raw()`` begins a call as ``send()`` does."""
    async with opened(wrap(server.client(asynchronous=asynchronous)), "responses") as connection:
        if not hasattr(connection, "send_raw"):
            pytest.skip("this connection has no send_raw()")
        await done(connection.send_raw(raw))
        await read_until(connection)

    call = calls.one()
    assert (call.requested_model, call.ttft is not None) == (CREATE["model"], True)


# -- whose it is


@pytest.mark.slow
@realtimes
@both_kinds
async def test_the_owner_is_who_has_connected(path: str, asynchronous: bool, server: Server, calls: Calls) -> None:
    """Others may read, and may send without an owner of their own; another user who sends owns what follows."""
    async with contextlib.AsyncExitStack() as stack:
        with tag(user_id="u_1", plan="pro"):
            connection = await stack.enter_async_context(opened(wrap(server.client(asynchronous=asynchronous)), path))
        await ask(connection, {"type": "response.create"})
        with tag(feature="nobody's"):
            await ask(connection, {"type": "response.create"})
        with tag(user_id="u_2"):
            await done(connection.send({"type": "input_audio_buffer.clear"}))
        await ask(connection, {"type": "response.create"})
        with tag(user_id="u_1"):
            await done(connection.send({"type": "response.create"}))
            with tag(user_id="u_2"):
                await read_until(connection)

    assert [(call.tags.user_id, call.tags.plan) for call in calls.all()] == [("u_1", "pro"), ("u_1", "pro"), ("u_2", None), ("u_1", None)]


@realtimes
@both_kinds
async def test_the_user_of_the_request_is_asked_for(path: str, asynchronous: bool, server: Server, calls: Calls) -> None:
    """The getters of the request in which it is connected are asked, the asynchronous ones are awaited by asynchronous code."""

    async def user(_: Any) -> str:
        return "u_1"

    getter: Any = user if asynchronous else lambda _: "u_1"
    with use_scope(RequestScope(lambda: "the request", Getters(getter), lambda: "WS /talk")):
        async with opened(wrap(server.client(asynchronous=asynchronous)), path) as connection:
            await ask(connection, {"type": "response.create"})

    call = calls.one()
    assert (call.tags.user_id, call.tags.route, call.attribution) == ("u_1", "WS /talk", "getter")


@realtimes
async def test_a_connection_that_was_asked_for_by_somebody_is_his(path: str, server: Server, calls: Calls) -> None:
    """``connect()`` names the owner where nobody is known when it is entered."""
    with tag(user_id="u_1"):
        manager = opened(wrap(server.client()), path)
    async with manager as connection:
        await ask(connection, {"type": "response.create"})

    assert calls.one().tags.user_id == "u_1"


@pytest.mark.slow
@realtimes
async def test_fifty_connections_at_once(path: str, server: Server, calls: Calls) -> None:
    """Each belongs to its own user."""
    client = wrap(server.client(asynchronous=True))
    owners: dict[str, str] = {}

    async def talk(number: int) -> None:
        with tag(user_id=f"u_{number}"):
            async with opened(client, path) as connection:
                for _ in range(3):
                    events = await ask(connection, {"type": "response.create"})
                    owners[events[-1].response.id] = f"u_{number}"
                    await asyncio.sleep(0)

    await asyncio.gather(*(talk(number) for number in range(50)))

    kept = calls.all()
    assert len(kept) == 150
    assert {call.response_id: call.tags.user_id for call in kept} == owners
    assert all(call.outcome == "ok" for call in kept)
