"""WebSockets of the openai SDK: what a connection is billed for is metered, whoever reads its messages, and however it ends."""

import asyncio
import contextlib
import gc
import inspect
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from voight_middleware import Usage, configure, instrument, metered_call, tag, uninstrument, wrap
from voight_middleware.boundary.identity import Getters
from voight_middleware.boundary.scope import Scope
from voight_middleware.ledger import open_ledger
from voight_middleware.meter import swap_meter
from voight_middleware.providers import openai_sockets
from voight_middleware.tags import bind

from ..support.calls import Calls
from ..support.memory_provider import MODELS, RESPONSES_USAGE, USAGE, responses_body

pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # openai, websockets 17
both_kinds = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def has(path: str) -> bool:
    """Whether this SDK has the resource, with a ``connect()``."""
    resource: Any = OpenAI(api_key="k")
    for name in path.split("."):
        resource = getattr(resource, name, None)
    return hasattr(resource, "connect")


needs_responses = pytest.mark.skipif(not has("responses"), reason="this openai has no responses.connect()")
needs_live = pytest.mark.skipif(not has("live"), reason="this openai has no live.connect()")
REALTIMES = [path for path in ("realtime", "beta.realtime") if has(path)]
RESPONSES = [path for path in ("responses", "beta.responses") if has(path)]
realtimes = pytest.mark.parametrize("path", REALTIMES)
responses = pytest.mark.parametrize("path", RESPONSES)

CREATE = {"type": "response.create", "model": MODELS["responses"][0], "input": "Tell me something of forty characters..."}
PIECES = ["Once ", "upon ", "a ", "time."]
REALTIME_USAGE = {
    "total_tokens": 253,
    "input_tokens": 132,
    "output_tokens": 121,
    "input_token_details": {
        "text_tokens": 119,
        "audio_tokens": 13,
        "image_tokens": 0,
        "cached_tokens": 64,
        "cached_tokens_details": {"text_tokens": 64, "audio_tokens": 0, "image_tokens": 0},
    },
    "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
}
REALTIME_COUNTS = {"input_tokens": 132, "cache_read_tokens": 64, "output_tokens": 121, "audio_in": 13, "audio_out": 91}
HEARD = {
    "type": "tokens",
    "total_tokens": 22,
    "input_tokens": 13,
    "input_token_details": {"text_tokens": 0, "audio_tokens": 13},
    "output_tokens": 9,
}
REALTIME_SESSION = {
    "type": "realtime",
    "object": "realtime.session",
    "id": "sess_1",
    "model": "gpt-realtime-2025-08-28",
    "audio": {"input": {"transcription": {"model": "gpt-4o-mini-transcribe"}}},
}
CUT, BYE = {"type": "cut"}, {"type": "bye"}
"""What the server does instead of sending: it breaks the connection off, or closes it in order."""


# -- the server ----------------------------------------------------------------------------------------------------------------

Events = list[dict[str, Any]]


class Server:
    """A WebSocket server on loopback. What it answers to an event is the test's to say."""

    def __init__(self) -> None:
        self.answers: Callable[[str, dict[str, Any]], Events] = usual
        self.greeting: Callable[[str], Events] = greeting
        self.paths: list[str] = []
        self.received: Events = []
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    async def _serve(self) -> None:
        async with serve(self._handle, "127.0.0.1", 0) as server:
            self.port = next(iter(server.sockets)).getsockname()[1]
            self._ready.set()
            await self._stop.wait()

    async def _handle(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        path = connection.request.path
        self.paths.append(path)
        with contextlib.suppress(Exception):
            await self._send(connection, self.greeting(path))
            async for message in connection:
                event = json.loads(message)
                self.received.append(event)
                await self._send(connection, self.answers(path, event))

    @staticmethod
    async def _send(connection: ServerConnection, events: Events) -> None:
        for event in events:
            if event is CUT:
                connection.transport.abort()
            elif event is BYE:
                await connection.close()
            else:
                await connection.send(json.dumps(event))

    def client(self, *, asynchronous: bool = False, **options: Any) -> Any:
        """A client whose WebSockets all come here."""
        address = f"127.0.0.1:{self.port}/v1"
        made = AsyncOpenAI if asynchronous else OpenAI
        return made(**{"api_key": "k", "base_url": f"http://{address}", "websocket_base_url": f"ws://{address}", **options})

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


_numbers = itertools.count(1)


def greeting(path: str) -> Events:
    return [{"type": "session.created", "event_id": "e", "session": REALTIME_SESSION}] if "/realtime" in path else []


def usual(path: str, event: dict[str, Any]) -> Events:
    """What each of the APIs answers."""
    kind = event["type"]
    if kind == "response.create":
        return realtime_answer() if "/realtime" in path else responses_answer(event)
    if kind == "input_audio_buffer.commit":
        return [transcription(f"item_{next(_numbers)}")]
    if kind == "session.start":
        return [live_session("session.started"), *(seconds(each) for each in (1.5, 4.0, 9.25))]
    if kind == "session.close":
        return [{**live_session("session.closed"), "reason": "close_requested", "usage": {"seconds": 11.5}}]
    return []


def responses_answer(event: dict[str, Any], end: str = "completed", **more: Any) -> Events:
    """The events of one response: as streamed, with the lane that it was asked for in."""
    identity = f"resp_{next(_numbers)}"
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    events = [
        {"type": "response.created", "response": {**responses_body("in_progress", usage=False), "id": identity}},
        *({"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []} for piece in PIECES),
        {"type": f"response.{end}", "response": {**responses_body(end, **more), "id": identity}},
    ]
    lane = {"stream_id": event["stream_id"]} if "stream_id" in event else {}
    return [{**each, **lane, "sequence_number": number} for number, each in enumerate(events)]


def realtime_answer(status: str = "completed", usage: dict[str, Any] | None = REALTIME_USAGE, identity: str | None = None) -> Events:
    """The events of one response of a realtime session."""
    identity = identity or f"resp_{next(_numbers)}"
    response = {"object": "realtime.response", "id": identity, "status": "in_progress", "output": [], "usage": None}
    place = {"event_id": "e", "response_id": identity, "item_id": "item_1", "output_index": 0, "content_index": 0}
    return [
        {"type": "response.created", "event_id": "e", "response": response},
        {"type": "response.output_audio.delta", **place, "delta": "AAAA" * 1000},
        *({"type": "response.output_audio_transcript.delta", **place, "delta": piece} for piece in PIECES),
        {"type": "response.done", "event_id": "e", "response": {**response, "status": status, "usage": usage}},
    ]


def transcription(item: str, usage: dict[str, Any] | None = HEARD) -> dict[str, Any]:
    kind = "conversation.item.input_audio_transcription.completed"
    return {"type": kind, "event_id": "e", "item_id": item, "content_index": 0, "transcript": "Hello.", "usage": usage}


def live_session(kind: str, identity: str = "live_1") -> dict[str, Any]:
    session = {"id": identity, "model": "gpt-live-1", "status": "active", "expires_at": 1}
    return {"type": kind, "event_id": "e", "session": session}


def seconds(count: float) -> dict[str, Any]:
    return {"type": "session.usage.updated", "event_id": "e", "usage": {"seconds": count}}


# -- one way of use for both kinds of client -----------------------------------------------------------------------------------


async def done(value: Any) -> Any:
    """The result of a method of either kind of connection."""
    return await value if inspect.isawaitable(value) else value


@contextlib.asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    """Inside the block of either kind of connection manager."""
    if hasattr(manager, "__aenter__"):
        async with manager as connection:
            yield connection
    else:
        with manager as connection:
            yield connection


def opened(client: Any, path: str, **options: Any) -> Any:
    """A connection to one of the APIs."""
    resource = client
    for name in path.split("."):
        resource = getattr(resource, name)
    if "realtime" in path:
        options.setdefault("model", "gpt-realtime")
    return entered(resource.connect(**options))


ENDS = ("response.completed", "response.incomplete", "response.failed", "response.done", "error", "session.closed")


async def read_until(connection: Any, *kinds: str) -> list[Any]:
    """Events up to the first of *kinds*."""
    events = []
    while not events or events[-1].type not in (kinds or ENDS):
        events.append(await done(connection.recv()))
    return events


async def ask(connection: Any, event: dict[str, Any] = CREATE) -> list[Any]:
    """Send, and read to the end of the answer."""
    await done(connection.send(event))
    return await read_until(connection)


# -- responses -----------------------------------------------------------------------------------------------------------------


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


# -- reading -------------------------------------------------------------------------------------------------------------------


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


# -- realtime ------------------------------------------------------------------------------------------------------------------


@realtimes
@both_kinds
@pytest.mark.parametrize(
    ("status", "outcome"), [("completed", "ok"), ("cancelled", "aborted"), ("incomplete", "truncated"), ("failed", "error")]
)
async def test_every_realtime_response_is_a_call(
    status: str, outcome: str, path: str, asynchronous: bool, server: Server, calls: Calls
) -> None:
    """With the provider's counts, audio apart, and the model that the session has named."""
    server.answers = lambda *_: realtime_answer(status)
    async with opened(wrap(server.client(asynchronous=asynchronous)), path) as connection:
        events = await ask(connection, {"type": "response.create"})

    call = calls.one()
    assert (call.endpoint, call.outcome, call.response_id) == ("realtime", outcome, events[-1].response.id)
    assert (call.requested_model, call.model) == ("gpt-realtime", "gpt-realtime-2025-08-28")
    assert call.usage is not None
    assert {name: getattr(call.usage, name) for name in REALTIME_COUNTS} == REALTIME_COUNTS
    assert not call.estimated


@realtimes
async def test_a_response_that_nobody_asked_for_is_a_call(path: str, server: Server, calls: Calls) -> None:
    """A session with voice detection answers by itself; the call begins with the first that is heard of it."""
    server.answers = lambda *_: realtime_answer()
    async with opened(wrap(server.client()), path) as connection:
        await ask(connection, {"type": "input_audio_buffer.append", "audio": "AAAA"})

    call = calls.one()
    assert (call.outcome, call.model) == ("ok", "gpt-realtime-2025-08-28")


@realtimes
async def test_a_session_may_change_its_model(path: str, server: Server, calls: Calls) -> None:
    """``session.updated`` says what serves from then on."""
    changed = {**REALTIME_SESSION, "model": "gpt-realtime-mini"}
    server.greeting = lambda _: []
    server.answers = lambda *_: [*realtime_answer(), {"type": "session.updated", "event_id": "e", "session": changed}, *realtime_answer()]
    async with opened(wrap(server.client()), path) as connection:
        await ask(connection, {"type": "response.create"})
        await read_until(connection)

    assert [call.model for call in calls.all()] == ["gpt-realtime", "gpt-realtime-mini"]


@realtimes
@both_kinds
@pytest.mark.parametrize("beta", [False, True], ids=["", "beta session"])
async def test_a_transcription_is_a_call_of_its_own(beta: bool, path: str, asynchronous: bool, server: Server, calls: Calls) -> None:
    """By the model that the session transcribes with, in tokens or in seconds; without a usage it is none."""
    if beta:
        session = {"id": "sess_1", "model": "m", "input_audio_transcription": {"model": "gpt-4o-mini-transcribe"}}
        server.greeting = lambda _: [{"type": "session.created", "event_id": "e", "session": session}]
    server.answers = lambda *_: [
        transcription("item_1"),
        transcription("item_2", {"type": "duration", "seconds": 3}),
        transcription("item_3", None),
        transcription("item_1"),
        *realtime_answer(),
    ]
    async with opened(wrap(server.client(asynchronous=asynchronous)), path) as connection:
        await ask(connection, {"type": "input_audio_buffer.commit"})

    heard = [call for call in calls.all() if call.endpoint == "transcriptions"]
    assert [(call.model, call.response_id, call.usage) for call in heard] == [
        ("gpt-4o-mini-transcribe", "item_1", Usage(input=0, audio_in=13, output=9)),
        ("gpt-4o-mini-transcribe", "item_2", Usage(seconds=3)),
    ]
    assert len(calls.all()) == 3


@realtimes
async def test_what_is_seen_twice_is_counted_once(path: str, server: Server, calls: Calls) -> None:
    """The same response may be shown again, begun or ended."""
    answer = realtime_answer()
    server.answers = lambda *_: [*answer, answer[0], answer[-1]]
    async with opened(wrap(server.client()), path) as connection:
        await ask(connection, {"type": "response.create"})
        await read_until(connection)

    assert calls.one().outcome == "ok"


@realtimes
async def test_a_refused_request_of_a_session_is_no_call(path: str, server: Server, calls: Calls) -> None:
    """Nothing was done, and what comes next is not taken for it."""
    server.answers = lambda *_: [{"type": "error", "event_id": "e", "error": {"type": "invalid_request_error", "message": "no"}}]
    async with opened(wrap(server.client()), path) as connection:
        await ask(connection, {"type": "response.create"})

    assert calls.all() == []


# -- live ----------------------------------------------------------------------------------------------------------------------

START = {"type": "session.start", "session": {"model": "gpt-live-1"}}


@needs_live
@both_kinds
@pytest.mark.parametrize("closed", [True, False], ids=["session closed", "connection closed"])
async def test_a_live_session_is_one_call_with_its_seconds(closed: bool, asynchronous: bool, server: Server, calls: Calls) -> None:
    """The usage is cumulative: what counts is its last state."""
    openai_sockets._live_seconds.clear()
    async with opened(wrap(server.client(asynchronous=asynchronous)), "live") as connection:
        await done(connection.send(START))
        for _ in range(4):
            await done(connection.recv())
        if closed:
            await ask(connection, {"type": "session.close"})

    call = calls.one()
    assert (call.endpoint, call.model, call.response_id, call.outcome) == ("realtime", "gpt-live-1", "live_1", "ok")
    assert json.loads(call.raw_usage or "") == {"seconds": 11.5 if closed else 9.25}
    assert call.usage == Usage(seconds=12 if closed else 10)


@needs_live
async def test_a_session_that_is_seen_again_counts_what_is_new(server: Server, calls: Calls) -> None:
    """Another connection to the same session sees the same seconds, and some more."""
    openai_sockets._live_seconds.clear()
    client = wrap(server.client())
    server.answers = lambda *_: [live_session("session.started"), seconds(4), live_session("session.updated")]
    for more in (0, 0, 3):
        server.answers = lambda *_, more=more: [live_session("session.started"), seconds(4 + more), live_session("session.updated")]
        async with opened(client, "live") as connection:
            await done(connection.send(START))
            await read_until(connection, "session.updated")

    assert [call.usage for call in calls.all()] == [Usage(seconds=4), Usage(seconds=3)]


@needs_live
async def test_what_a_live_session_delegates_is_billed_beside_it(server: Server, calls: Calls) -> None:
    """Responses and decisions of other APIs come wrapped in events of the session."""
    openai_sockets._live_seconds.clear()
    nested = [{"type": "response.event", "event_id": "e", "event": event} for event in responses_answer({})]
    decision = {"id": "dec_1", "model": "gpt-5-mini", "usage": RESPONSES_USAGE}
    decided = {"type": "decision.event", "event_id": "e", "event": {"type": "decision.completed", "decision": decision}}
    server.answers = lambda *_: [
        live_session("session.started"),
        seconds(2),
        *nested,
        *nested,
        decided,
        decided,
        live_session("session.updated"),
    ]
    async with opened(wrap(server.client()), "live") as connection:
        await done(connection.send(START))
        await read_until(connection, "session.updated")

    assert {(call.endpoint, call.model, call.usage) for call in calls.all()} == {
        ("realtime", "gpt-live-1", Usage(seconds=2)),
        ("responses", MODELS["responses"][1], USAGE["responses"]),
        ("decisions", "gpt-5-mini", USAGE["responses"]),
    }
    assert len(calls.all()) == 3


@needs_live
async def test_a_live_session_whose_seconds_never_came_is_kept(server: Server, calls: Calls) -> None:
    """Its usage is not known, which is not 0."""
    server.answers = lambda *_: [live_session("session.started")]
    async with opened(wrap(server.client()), "live") as connection:
        await done(connection.send(START))
        await read_until(connection, "session.started")

    assert (calls.one().usage, calls.one().outcome, calls.one().cost_usd) == (None, "aborted", None)


# -- whose it is ---------------------------------------------------------------------------------------------------------------


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
    with bind(Scope(lambda: "the request", Getters(getter), lambda: "WS /talk")):
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


# -- how a connection ends -----------------------------------------------------------------------------------------------------


@needs_responses
@both_kinds
@pytest.mark.parametrize("end", ["close", "cut", "bye", "drop"])
async def test_a_connection_that_ends_in_the_middle_is_estimated(end: str, asynchronous: bool, server: Server, calls: Calls) -> None:
    """The response that went on is a call that was aborted, with the tokens that were streamed; and so is one that was asked for."""
    how = {"cut": [CUT], "bye": [BYE]}.get(end, [])
    server.answers = lambda _, event: [*responses_answer(event)[:3], *how] if event["model"] == "a" else []
    client = wrap(server.client(asynchronous=asynchronous))
    manager = client.responses.connect()
    connection = await done(manager.enter())
    line = connection._connection
    if end != "drop":
        await done(connection.send({**CREATE, "model": "b"}))
    await done(connection.send({**CREATE, "model": "a"}))
    if end in ("cut", "bye"):
        with pytest.raises(ConnectionClosed):
            await read_until(connection)
    else:
        await read_until(connection, "response.output_text.delta")
        await done(connection.recv())
    before_closing = len(calls.all())
    if end == "drop":
        del manager, connection
        gc.collect()
    else:
        await done(connection.close())
        await done(connection.close())
    await done(line.close())

    kept = {call.requested_model: call for call in calls.all()}
    assert before_closing == (2 if end in ("cut", "bye") else 0)
    assert len(kept) == len(calls.all()) == (1 if end == "drop" else 2)
    began = kept["a" if end == "drop" else "b"]  # the server answers the second, which is taken for the first
    assert (began.outcome, began.estimated_output) == ("aborted", 3)
    assert (began.estimated_input or 0) >= len(str(CREATE["input"])) // 4
    assert began.error == ({"cut": "ConnectionClosedError", "bye": "ConnectionClosedOK"}.get(end))


@needs_live
def test_a_connection_that_is_open_at_the_end_of_the_process_is_counted(server: Server, scripts: Any) -> None:
    """Nobody has closed it; its seconds are in the ledger all the same."""
    scripts.run(
        """
        import sys, openai, voight_middleware as voight
        client = voight.wrap(openai.OpenAI(api_key="k", base_url=f"http://127.0.0.1:{sys.argv[1]}/v1"))
        connection = client.live.connect().enter()
        connection.send({"type": "session.start", "session": {"model": "gpt-live-1"}})
        while connection.recv().type != "session.usage.updated":
            pass
        """,
        str(server.port),
    )

    ledger = open_ledger(f"sqlite:///{scripts.ledger}")
    try:
        assert [call.usage for call in ledger.calls()] == [Usage(seconds=2)]
    finally:
        ledger.close()


@realtimes
async def test_speech_that_is_broken_off_is_estimated_by_its_transcript(path: str, server: Server, calls: Calls) -> None:
    """Audio is not counted as text; what the session remembers, and bills as input, is not known."""
    server.answers = lambda *_: realtime_answer()[:-1]
    async with opened(wrap(server.client()), path) as connection:
        await done(connection.send({"type": "response.create"}))
        for _ in range(7):
            await done(connection.recv())

    call = calls.one()
    assert (call.outcome, call.model) == ("aborted", "gpt-realtime-2025-08-28")
    assert (call.estimated_output, call.estimated_input) == ((len("".join(PIECES)) + 3) // 4, None)


@needs_responses
@both_kinds
async def test_a_reconnection_keeps_the_owner(asynchronous: bool, server: Server, calls: Calls) -> None:
    """What went on when the line broke was aborted; what follows over the new one belongs to the same user."""

    def answers(_: str, event: dict[str, Any]) -> Events:
        return [*responses_answer(event)[:2], CUT] if len(server.received) == 1 else responses_answer(event)

    server.answers = answers
    server.greeting = lambda _: [] if len(server.paths) == 1 else [{"type": "response.queued", "response": {"id": "resp_0"}}]
    client = wrap(server.client(asynchronous=asynchronous))
    with tag(user_id="u_1"):
        manager = opened(client, "responses", on_reconnecting=lambda _: None, initial_delay=0.001)
    async with manager as connection:
        await done(connection.send(CREATE))
        if asynchronous:
            async for event in connection:
                if event.type == "response.queued":
                    await connection.send(CREATE)
                elif event.type == "response.completed":
                    break
        else:
            for event in connection:
                if event.type == "response.queued":
                    connection.send(CREATE)
                elif event.type == "response.completed":
                    break

    assert len(server.paths) == 2
    assert [(call.outcome, call.tags.user_id) for call in calls.all()] == [("aborted", "u_1"), ("ok", "u_1")]


@needs_responses
async def test_what_could_not_be_sent_is_no_call(server: Server, calls: Calls) -> None:
    """The line was closed already."""
    async with opened(wrap(server.client()), "responses") as connection:
        await done(connection.close())
        with pytest.raises(ConnectionClosed):
            await done(connection.send(CREATE))

    assert calls.all() == []


# -- what is metered, and what is not ------------------------------------------------------------------------------------------


@realtimes
@both_kinds
async def test_only_wrapped_clients_are_metered(path: str, asynchronous: bool, server: Server, calls: Calls) -> None:
    """A client beside them is not, even if the classes are patched by then; a copy of a wrapped one is."""
    client = wrap(server.client(asynchronous=asynchronous))
    other = server.client(asynchronous=asynchronous)
    for number, one in enumerate((client, other, client.with_options(timeout=5), client.copy())):
        with tag(user_id=f"u_{number}"):
            async with opened(one, path) as connection:
                await ask(connection, {"type": "response.create"})

    assert [call.tags.user_id for call in calls.all()] == ["u_0", "u_2", "u_3"]


@realtimes
@both_kinds
@pytest.mark.parametrize("when", ["before", "after"])
async def test_every_client_of_an_instrumented_process(when: str, path: str, asynchronous: bool, server: Server, calls: Calls) -> None:
    """Those too whose resources were made before; and a client that is wrapped besides counts once."""
    client = server.client(asynchronous=asynchronous)
    if when == "before":
        opened(client, path)
    instrument()
    wrap(client)
    async with opened(client, path) as connection:
        await ask(connection, {"type": "response.create"})

    calls.one()


@realtimes
async def test_nothing_is_metered_while_it_is_switched_off(path: str, server: Server, calls: Calls, tmp_path: Any) -> None:
    """``enabled=False`` leaves the connection alone."""
    outer = swap_meter(None)
    try:
        configure(ledger=tmp_path / "off.db", enabled=False)
        async with opened(wrap(server.client()), path) as connection:
            await ask(connection, {"type": "response.create"})
            assert not [name for name in vars(connection) if "voight" in name]
    finally:
        swap_meter(outer)

    assert calls.all() == []


@realtimes
async def test_what_is_metered_by_hand_is_not_counted_again(path: str, server: Server, calls: Calls) -> None:
    """Inside a ``metered_call()`` block the block is the call; before and after it the connection is metered."""
    async with opened(wrap(server.client()), path) as connection:
        await ask(connection, {"type": "response.create"})
        with metered_call(provider="router", model="m") as call:
            await ask(connection, {"type": "response.create"})
            call.report(input=1)
        await ask(connection, {"type": "response.create"})
    with metered_call(provider="router", model="m") as call:
        async with opened(wrap(server.client()), path) as connection:
            await ask(connection, {"type": "response.create"})
        call.report(input=1)

    assert [call.provider for call in calls.all()] == ["openai", "router", "openai", "router"]


def connection_classes() -> set[type]:
    """The classes of the SDK that a connection passes."""
    modules = [module for name, module in sys.modules.items() if name.startswith("openai.") and module is not None]
    parts = ("Connection", "ConnectionManager", "ConnectionBase", "APIResource", "Realtime", "Responses", "Live")
    classes = {cls for module in modules for cls in vars(module).values() if inspect.isclass(cls) and cls.__name__.endswith(parts)}
    return {cls for cls in classes if cls.__module__.startswith("openai.")}


@realtimes
@both_kinds
async def test_uninstrument_leaves_the_classes_as_they_were(path: str, asynchronous: bool, server: Server, calls: Calls) -> None:
    """Open connections go on, unmetered."""
    client = server.client(asynchronous=asynchronous)
    opened(client, path)
    before = {cls: dict(vars(cls)) for cls in connection_classes()}
    instrument()
    async with opened(client, path) as connection:
        await ask(connection, {"type": "response.create"})
        changed = [cls for cls, names in before.items() if dict(vars(cls)) != names]
        uninstrument()
        await ask(connection, {"type": "response.create"})
    async with opened(client, path) as connection:
        await ask(connection, {"type": "response.create"})

    assert len(changed) >= 3
    assert [cls for cls, names in before.items() if dict(vars(cls)) != names] == []
    calls.one()


def test_nothing_heavy_is_imported() -> None:
    """Neither wrapping nor instrumenting imports a resource that the application may never use."""
    script = """
        import sys, openai, voight_middleware as voight
        before = set(sys.modules)
        voight.wrap(openai.OpenAI(api_key="k"))
        voight.instrument()
        print(sorted(name for name in set(sys.modules) - before if name.startswith(("openai.resources", "openai.types", "websockets"))))
    """
    source = "\n".join(line.strip() for line in script.splitlines())
    ran = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    imported = [name for name in json.loads(ran.stdout.replace("'", '"')) if "anthropic" not in name]

    assert imported == []


# -- faults of ours ------------------------------------------------------------------------------------------------------------


class _Broken(Exception):
    pass


def _break(*_: Any, **__: Any) -> Any:
    raise _Broken


PLACES = [
    (openai_sockets.Socket, "__init__"),
    (openai_sockets.Socket, "received"),
    (openai_sockets.Socket, "sent"),
    (openai_sockets.Socket, "bind"),
    (openai_sockets.Socket, "end"),
    (openai_sockets, "Entry"),
    (openai_sockets, "_read_message"),
    (openai_sockets, "_read_response"),
]


@realtimes
@both_kinds
@pytest.mark.parametrize("place", PLACES, ids=[name for _, name in PLACES])
async def test_a_fault_of_ours_stays_inside(
    place: tuple[Any, str], path: str, asynchronous: bool, server: Server, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application gets every event, and its connection is closed as ever."""
    calls.faults_expected = True
    with monkeypatch.context() as broken:
        broken.setattr(*place, _break)
        async with opened(wrap(server.client(asynchronous=asynchronous)), path) as connection:
            with tag(user_id="u_2"):
                events = await ask(connection, {"type": "response.create"})
        del connection
        gc.collect()

    assert [event.type for event in events][-1] == "response.done"
    assert calls.faults > 0


@realtimes
@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"type": None},
        {"type": 7},
        {"type": "response.done"},
        {"type": "response.done", "response": None},
        {"type": "response.created", "response": []},
        {"type": "response.completed", "response": "x"},
        {"type": "response.text.delta", "delta": 7},
        {"type": "session.updated", "session": None},
        {"type": "session.updated", "session": {"id": 7, "audio": 3}},
        {"type": "session.usage.updated", "usage": {"seconds": "many"}},
        {"type": "response.event", "event": None},
        {"type": "decision.event"},
        {"type": "conversation.item.input_audio_transcription.completed", "usage": 7},
        {"type": "error", "status": {}},
    ],
    ids=json.dumps,
)
async def test_odd_events_disturb_nobody(odd: dict[str, Any], path: str, server: Server, calls: Calls) -> None:
    """What cannot be read is left out, and what follows is metered."""
    server.answers = lambda *_: [odd, *realtime_answer()]
    async with opened(wrap(server.client()), path) as connection:
        await done(connection.send({"type": "response.create"}))
        while b'"response.done", "event_id"' not in await done(connection.recv_bytes()):
            pass

    assert [call.outcome for call in calls.all() if call.endpoint == "realtime"][-1:] == ["ok"]


@realtimes
async def test_what_is_no_json_disturbs_nobody(path: str, server: Server, calls: Calls) -> None:
    """A message of another kind is the application's own business."""
    async with opened(wrap(server.client()), path) as connection:
        await done(connection.recv())
        socket = connection.__dict__["_voight_socket"]
        for data in (b"", b"\xff\x00", b"[1]", b"{", "text"):
            socket.received(data)

    assert calls.meter.counters["unreadable_answers"] == 5


def test_an_event_costs_little(calls: Calls) -> None:
    """A tenth of a millisecond for the largest of those that come fifty times a second is far more than it takes."""
    from voight_middleware.tags import NOBODY, current_frame

    assert openai.__version__
    socket = openai_sockets.Socket(
        host="h", provider="p", endpoint=openai_sockets.REALTIME, asks=True, model="m", session=None, frame=current_frame(), owner=NOBODY
    )
    event = json.dumps(realtime_answer()[1]).encode()
    started = time.perf_counter()
    for _ in range(1000):
        socket.received(event)
    assert time.perf_counter() - started < 0.1
