"""A WebSocket server that answers as the APIs of OpenAI do, and connections of the SDK to it."""

import asyncio
import contextlib
import inspect
import itertools
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from websockets.asyncio.server import ServerConnection, serve

from ..support.memory_provider import MODELS, responses_body

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
