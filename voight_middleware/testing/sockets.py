"""The loopback provider's WebSocket side: a session's turns onto the socket, with the faults that are asked for."""

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
from voight_middleware.testing.endpoints.response import Asked
from voight_middleware.testing.endpoints.session import ResponsesSession, Session, Turn
from voight_middleware.testing.fake_data import Json, prompt_texts
from voight_middleware.testing.faults import Faults, marked_user, read_faults
from voight_middleware.testing.store import Store

SESSIONS: dict[str, Callable[[Asked], Session]] = {
    "/v1/live/sessions": lambda _asked: LiveSession(),
    "/v1/realtime": RealtimeSession,
    "/v1/responses": lambda _asked: ResponsesSession(),
}


async def talk(websocket: WebSocket, *, kind: Callable[[Asked], Session], books: Accounting, store: Store) -> None:
    """Answer one connection until its client leaves."""
    try:
        faults = read_faults(websocket.headers, ())
        if faults.status is not None and books.still_failing(faults.key, faults.status_times):
            raise faults.refusal
    except Refusal as refusal:
        books.called("-")
        books.refused("-")
        await websocket.send_denial_response(Response(openai_error(refusal), refusal.status, media_type="application/json"))
        return
    await asyncio.sleep(faults.delay_ms / 1000)
    await websocket.accept()
    asked = Asked({}, faults.options, store, query=websocket.query_params)
    await _Conversation(websocket, kind(asked), asked, faults, books).hold()


class _Over(Exception):
    """Nothing more is said on this connection."""


class _Conversation:
    def __init__(self, websocket: WebSocket, session: Session, asked: Asked, faults: Faults, books: Accounting) -> None:
        self._websocket, self._session, self._asked, self._faults, self._books = websocket, session, asked, faults, books
        self._heard: asyncio.Queue[str | None] = asyncio.Queue()
        self._listening = asyncio.ensure_future(self._listen())  # also while something is said: that is how a client's leaving is seen
        self._user = "-"
        self._unfinished = False
        self._said = 0

    async def hold(self) -> None:
        """Answer message after message."""
        try:
            await self._say(Turn(self._session.greeting()))
            while (text := await self._heard.get()) is not None:
                await self._answer(text)
        except (_Over, WebSocketDisconnect):
            pass
        finally:
            self._listening.cancel()
            if self._unfinished:
                self._books.failed(self._user)

    async def _listen(self) -> None:
        while (message := await self._websocket.receive())["type"] == "websocket.receive":
            self._heard.put_nowait(message.get("text") or (message.get("bytes") or b"").decode())
        self._heard.put_nowait(None)

    async def _answer(self, text: str) -> None:
        try:
            turn = self._turn(text)
        except Refusal as refusal:
            self._books.called(self._user)
            self._books.refused(self._user)
            turn = Turn([self._session.error(refusal)])
        await self._say(turn)

    def _turn(self, text: str) -> Turn:
        try:
            body = msgspec.json.decode(text, type=Json)
        except msgspec.DecodeError as error:
            raise Refusal(400, "We could not parse the JSON of your message.") from error
        prompt = list(prompt_texts(body))
        self._user = marked_user(prompt) or self._user
        self._faults = read_faults(self._websocket.headers, prompt)
        if read_faults({}, prompt).status is not None:  # that of the headers was for the connection
            raise self._faults.refusal
        turn = self._session.hear(replace(self._asked, body=body, options=self._faults.options, user=self._user))
        if turn.begins:
            self._books.called(self._user)
            self._books.received(body)
            self._unfinished = True
        return turn

    async def _say(self, turn: Turn) -> None:
        for number, event in enumerate(turn.events, 1):
            await asyncio.sleep(self._faults.chunk_delay_ms / 1000)
            if self._said == self._faults.end_after:
                await self._websocket.close()
                raise _Over
            if self._said == self._faults.cut_after or self._listening.done():
                raise _Over
            if number == len(turn.events):
                self._book(turn)
            await self._websocket.send_text(msgspec.json.encode(event).decode())
            self._said += 1
        if turn.closes:
            await self._websocket.close()
            raise _Over

    def _book(self, turn: Turn) -> None:
        """Count what the turn's last event reports; before it is sent, so that whoever has read it finds it in the counts."""
        if turn.completes and self._unfinished:
            self._unfinished = False
            self._books.completed(self._user, turn.bills)
        else:
            self._books.reported(self._user, turn.bills)
