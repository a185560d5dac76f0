"""WebSockets of the openai SDK: faults of ours and odd events disturb nobody."""

import gc
import json
import time
from typing import Any

import openai
import pytest

from voight_middleware import tag, wrap
from voight_middleware.diagnostics import counters
from voight_middleware.instrumentation import openai_socket as openai_sockets

from ..support.calls import Calls
from .faults import failing
from .sockets import Server, ask, both_kinds, done, opened, realtime_answer, realtimes

pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # openai, websockets 17


HOOKS = [
    "Socket.__init__",
    "Socket.received",
    "Socket.sent",
    "Socket.bind",
    "Socket.end",
    "openai_socket:MeteredRequest",
    "openai_socket:_read_message",
    "openai_socket:_read_response",
]


@pytest.mark.slow
@realtimes
@both_kinds
@pytest.mark.parametrize("hook", HOOKS)
async def test_a_fault_of_ours_stays_inside(hook: str, path: str, asynchronous: bool, server: Server, calls: Calls) -> None:
    """The application gets every event, and its connection is closed as ever."""
    calls.faults_expected = True
    with failing(hook):
        async with opened(wrap(server.client(asynchronous=asynchronous)), path) as connection:
            with tag(user_id="u_2"):
                events = await ask(connection, {"type": "response.create"})
        del connection
        gc.collect()

    assert [event.type for event in events][-1] == "response.done"
    assert calls.faults > 0


@pytest.mark.slow
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

    assert counters["unreadable_responses"] == 5


def test_an_event_costs_little(calls: Calls) -> None:
    """A tenth of a millisecond for the largest of those that come fifty times a second is far more than it takes."""
    from voight_middleware.context.context import NOBODY, current_context

    assert openai.__version__
    socket = openai_sockets.Socket(
        host="h",
        provider="p",
        endpoint=openai_sockets.REALTIME,
        creates=True,
        model="m",
        session=None,
        context=current_context(),
        owner=NOBODY,
    )
    event = json.dumps(realtime_answer()[1]).encode()
    started = time.perf_counter()
    for _ in range(1000):
        socket.received(event)
    assert time.perf_counter() - started < 0.1
