"""
The WebSocket side of the loopback provider: it sends a session's turns, with the requested faults.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import msgspec
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from voight_middleware.testing.accounting import Accounting
from voight_middleware.testing.endpoints.errors import Refusal, openai_error
from voight_middleware.testing.endpoints.live import LiveSession
from voight_middleware.testing.endpoints.realtime import RealtimeSession
from voight_middleware.testing.endpoints.response import EndpointRequest
from voight_middleware.testing.endpoints.session import ResponsesSession, Session, Turn
from voight_middleware.testing.fake_data import Json, prompt_texts
from voight_middleware.testing.faults import Faults, marked_user, read_faults
from voight_middleware.testing.store import Store

SESSIONS: dict[str, Callable[[EndpointRequest], Session]] = {
    "/v1/live/sessions": lambda _request: LiveSession(),
    "/v1/realtime": RealtimeSession,
    "/v1/responses": lambda _request: ResponsesSession(),
}


async def talk(
    websocket: WebSocket,
    *,
    kind: Callable[[EndpointRequest], Session],
    accounting: Accounting,
    store: Store,
) -> None:
    """Serve one connection until its client disconnects."""
    try:
        faults = read_faults(websocket.headers, ())
        if faults.status is not None and accounting.still_failing(faults.key, faults.status_times):
            raise faults.refusal
    except Refusal as refusal:
        accounting.called("-")
        accounting.refused("-")
        await websocket.send_denial_response(
            Response(openai_error(refusal), refusal.status, media_type="application/json")
        )
        return
    await asyncio.sleep(faults.delay_ms / 1000)
    await websocket.accept()
    request = EndpointRequest({}, faults.options, store, query=websocket.query_params)
    await _Conversation(websocket, kind(request), request, faults, accounting).hold()


class _Over(Exception):
    """The connection has ended."""


class _Conversation:
    def __init__(
        self,
        websocket: WebSocket,
        session: Session,
        request: EndpointRequest,
        faults: Faults,
        accounting: Accounting,
    ) -> None:
        self._websocket = websocket
        self._session = session
        self._request = request
        self._faults = faults
        self._accounting = accounting
        self._messages: asyncio.Queue[str | None] = asyncio.Queue()
        # also while sending, to detect a disconnect
        self._listening = asyncio.ensure_future(self._listen())
        self._user = "-"
        self._unfinished = False
        self._sent = 0

    async def hold(self) -> None:
        """Respond to message after message."""
        try:
            await self._send(Turn(self._session.greeting()))
            while (text := await self._messages.get()) is not None:
                await self._respond(text)
        except (_Over, WebSocketDisconnect):
            pass
        finally:
            self._listening.cancel()
            if self._unfinished:
                self._accounting.failed(self._user)

    async def _listen(self) -> None:
        while (message := await self._websocket.receive())["type"] == "websocket.receive":
            self._messages.put_nowait(message.get("text") or (message.get("bytes") or b"").decode())
        self._messages.put_nowait(None)

    async def _respond(self, text: str) -> None:
        try:
            turn = self._turn(text)
        except Refusal as refusal:
            self._accounting.called(self._user)
            self._accounting.refused(self._user)
            turn = Turn([self._session.error(refusal)])
        await self._send(turn)

    def _turn(self, text: str) -> Turn:
        try:
            body = msgspec.json.decode(text, type=Json)
        except msgspec.DecodeError as error:
            raise Refusal(400, "We could not parse the JSON of your message.") from error
        prompt = list(prompt_texts(body))
        self._user = marked_user(prompt) or self._user
        self._faults = read_faults(self._websocket.headers, prompt)
        # a status in the headers was for the connection
        if read_faults({}, prompt).status is not None:
            raise self._faults.refusal
        turn = self._session.handle(
            replace(self._request, body=body, options=self._faults.options, user=self._user)
        )
        if turn.starts:
            self._accounting.called(self._user)
            self._accounting.received(body)
            self._unfinished = True
        return turn

    async def _send(self, turn: Turn) -> None:
        for number, event in enumerate(turn.events, 1):
            await asyncio.sleep(self._faults.chunk_delay_ms / 1000)
            if self._sent == self._faults.end_after:
                await self._websocket.close()
                raise _Over
            if self._sent == self._faults.cut_after or self._listening.done():
                raise _Over
            if number == len(turn.events):
                self._count(turn)
            await self._websocket.send_text(msgspec.json.encode(event).decode())
            self._sent += 1
        if turn.closes:
            await self._websocket.close()
            raise _Over

    def _count(self, turn: Turn) -> None:
        """
        Count the usage of a turn before its last event: a client that has read it must find it in
        the counts.
        """
        if turn.completes and self._unfinished:
            self._unfinished = False
            self._accounting.completed(self._user, turn.charges)
        else:
            self._accounting.reported(self._user, turn.charges)
