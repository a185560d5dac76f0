"""WebSockets of the openai SDK: realtime and live sessions, and all that is billed in them."""

import json

import pytest

from voight_middleware import Usage, wrap
from voight_middleware.instrumentation import openai_socket as openai_sockets

from ..support.calls import Calls
from ..support.memory_provider import MODELS, RESPONSES_USAGE, USAGE
from .sockets import (
    REALTIME_COUNTS,
    REALTIME_SESSION,
    Server,
    ask,
    both_kinds,
    done,
    live_session,
    needs_live,
    opened,
    read_until,
    realtime_answer,
    realtimes,
    responses_answer,
    seconds,
    transcription,
)

pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # openai, websockets 17


# -- realtime


@pytest.mark.slow
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


@pytest.mark.slow
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


# -- live

START = {"type": "session.start", "session": {"model": "gpt-live-1"}}


@pytest.mark.slow
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
