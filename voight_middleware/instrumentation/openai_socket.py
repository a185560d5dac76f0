"""
What is metered of one WebSocket of OpenAI's: every response, every transcription, and the seconds of a live session.

Source of the shapes: OpenAI API reference, "Realtime server events", "Responses WebSocket server events", "Live server events".
"""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import msgspec

from voight_middleware.context.context import TagContext
from voight_middleware.diagnostics import counters
from voight_middleware.instrumentation.request import ManualBlock, MeteredRequest, current_request, in_manual_block
from voight_middleware.instrumentation.streams import call_guarded
from voight_middleware.pipeline import open_calls
from voight_middleware.providers.base import NULL, Endpoint, ResponseSummary, estimate_tokens, is_null, parse_response, usage_text
from voight_middleware.providers.openai.text import parse_responses, plain
from voight_middleware.records.tags import Owner

RESPONSES = Endpoint(name="responses", parse=parse_responses, job_phase="begins")
REALTIME = Endpoint(name="realtime", parse=parse_response)
_TRANSCRIPTIONS = Endpoint(name="transcriptions", parse=parse_response)
_DECISIONS = Endpoint(name="decisions", parse=parse_responses)

_IN_TEXT, _IN_BYTES = "response.create", b"response.create"
_REMEMBERED = 1000
"""How many answers of a connection are remembered, so that one that is seen twice is counted once."""


class _Message(msgspec.Struct, gc=False):
    """What is looked at of an event; the rest is skipped."""

    type: str = ""
    stream_id: str | None = None
    response_id: str | None = None
    item_id: str | None = None
    content_index: int | None = None
    status: msgspec.Raw = NULL
    delta: msgspec.Raw = NULL
    response: msgspec.Raw = NULL
    usage: msgspec.Raw = NULL
    session: msgspec.Raw = NULL
    event: msgspec.Raw = NULL
    decision: msgspec.Raw = NULL


class _Response(msgspec.Struct):
    id: str | None = None
    status: str | None = None
    usage: msgspec.Raw = NULL


class _Named(msgspec.Struct):
    model: str | None = None


class _Heard(msgspec.Struct):
    transcription: _Named | None = None


class _Audio(msgspec.Struct):
    input: _Heard | None = None


class _Session(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    audio: _Audio | None = None
    input_audio_transcription: _Named | None = None
    safety_identifier: str | None = None

    def transcriber(self) -> str | None:
        """The model that transcribes what is said; where it stands has changed since the beta."""
        heard = self.audio.input.transcription if self.audio is not None and self.audio.input is not None else None
        heard = heard or self.input_audio_transcription
        return None if heard is None else heard.model


class _Seconds(msgspec.Struct):
    seconds: float


_read_message = msgspec.json.Decoder(_Message).decode
_read_response = msgspec.json.Decoder(_Response).decode
_read_session = msgspec.json.Decoder(_Session).decode
_read_seconds = msgspec.json.Decoder(_Seconds).decode
_decode = msgspec.json.decode

_OUTCOMES: Mapping[str | None, str] = {"cancelled": "aborted", "incomplete": "truncated", "failed": "error"}

_live_seconds: dict[tuple[str, str], float] = {}
"""What has been counted of live sessions: their usage is cumulative, and more than one connection may see it."""


class _Turn:
    """One response, from the event that asks for it to the one that ends it."""

    __slots__ = ("by_hand", "characters", "failure", "first_event", "metered", "response")

    def __init__(self, metered: MeteredRequest, by_hand: bool) -> None:
        self.metered = metered
        self.by_hand = by_hand
        self.characters = 0
        self.failure: str | None = None
        self.first_event: int | None = None
        self.response = NULL


class Socket:
    """
    One WebSocket: the responses that go on over it, and who owns them.

    Args:
        endpoint: How what comes without being nested is read: ``RESPONSES`` or ``REALTIME``.
        asks: Whether answers are asked for with ``response.create``.
        model: The model that the connection was opened for.
        session: The session that it was opened to.
        context: Where it was opened.
        owner: Who opened it.
    """

    def __init__(
        self,
        *,
        host: str,
        provider: str,
        endpoint: Endpoint,
        asks: bool,
        model: str | None,
        session: str | None,
        context: TagContext,
        owner: Owner,
    ) -> None:
        self.asked = self.context = context
        self.owner = owner
        self._host = host
        self._provider = provider
        self._endpoint = endpoint
        self._asks = asks
        self._asked_model = model
        self._model: str | None = None
        self._transcriber: str | None = None
        self._session = session
        self._live: _Turn | None = None
        self._seconds: float | None = None
        self._waiting: dict[str | None, deque[_Turn]] = {}
        """What was asked for and has not begun, by ``stream_id``."""
        self._turns: dict[str | None, _Turn] = {}
        """What goes on, by the id of the response."""
        self._latest: dict[str | None, str | None] = {}
        """The response that was last begun, by ``stream_id``."""
        self._seen: dict[object, None] = {}
        here = current_request.get()
        self._block = here if isinstance(here, ManualBlock) else None
        _open.add(self)

    def __del__(self) -> None:
        call_guarded(self.end)

    # -- the application sends -------------------------------------------------------------------------------------------------

    def bind(self, context: TagContext, owner: Owner) -> None:
        """Whoever sends owns what follows, unless nobody is known there and somebody is here."""
        self.asked = context
        if owner.tags.user_id is not None or self.owner.tags.user_id is None:
            self.context, self.owner = context, owner

    def sent(self, event: Any) -> None:
        """An event is about to be sent: as the caller wrote it, or as JSON."""
        request = self._request(event)
        if request is not None:
            body = request if self._endpoint is RESPONSES else {"model": self._asked_model}
            self._waiting.setdefault(request.get("stream_id"), deque()).append(self._turn(self._endpoint, body))

    def unsent(self, event: Any) -> None:
        """It could not be sent."""
        request = self._request(event)
        waiting = None if request is None else self._waiting.get(request.get("stream_id"))
        if waiting:
            waiting.pop()

    def _request(self, event: Any) -> Mapping[str, Any] | None:
        """What asks for a response; None where *event* is anything else."""
        if not self._asks:
            return None
        if isinstance(event, bytes | str):
            if _IN_TEXT not in event if isinstance(event, str) else _IN_BYTES not in event:
                return None
            event = _decode(event)
        elif not isinstance(event, Mapping):
            if getattr(event, "type", None) != _IN_TEXT:
                return None
            event = plain(event)
        return event if event.get("type") == _IN_TEXT else None

    # -- the provider sends ----------------------------------------------------------------------------------------------------

    def received(self, data: bytes | str) -> None:
        """A message has come."""
        try:
            self._see(_read_message(data), self._endpoint)
        except msgspec.DecodeError:
            counters["unreadable_responses"] += 1

    def _see(self, message: _Message, endpoint: Endpoint) -> None:
        kind = message.type
        if kind.endswith(".delta"):
            if kind.startswith("response.") and not kind.endswith("audio.delta"):
                self._streamed(message)
        elif (take := self._takes.get(kind)) is not None:
            take(self, message, endpoint)

    def _streamed(self, message: _Message) -> None:
        turn = self._turns.get(message.response_id or self._latest.get(message.stream_id))
        if turn is not None and isinstance(text := _decode(message.delta), str):
            turn.characters += len(text)

    def _created(self, message: _Message, endpoint: Endpoint) -> None:
        response = _read_response(message.response)
        if response.id in self._turns or response.id in self._seen:
            return
        turn = self._begun(message, endpoint)
        if turn.first_event is None:
            turn.first_event = time.perf_counter_ns()
        turn.response = message.response
        self._turns[response.id] = turn
        self._latest[message.stream_id] = response.id

    def _completed(self, message: _Message, endpoint: Endpoint) -> None:
        """A response of the Responses API has ended."""
        failed = message.type == "response.failed"
        self._ended(message, endpoint, parse_responses(message.response), "error" if failed else "ok", message.type if failed else None)

    def _done(self, message: _Message, endpoint: Endpoint) -> None:
        """A response of a realtime session has ended."""
        response = _read_response(message.response)
        outcome = _OUTCOMES.get(response.status, "ok")
        answer = ResponseSummary(response.id, self._model or self._asked_model, usage=response.usage)
        self._ended(message, endpoint, answer, outcome, "response.failed" if outcome == "error" else None)

    def _transcribed(self, message: _Message, _: Endpoint) -> None:
        """What was said to a realtime session has been transcribed, by a model of its own."""
        if not is_null(message.usage) and not self._has_seen((message.item_id, message.content_index)):
            turn = self._turn(_TRANSCRIPTIONS, {"model": self._transcriber})
            self._finish(turn, ResponseSummary(message.item_id, self._transcriber, usage=message.usage))

    def _configured(self, message: _Message, _: Endpoint) -> None:
        """A session says what it is, or has become."""
        session = _read_session(message.session)
        self._model = session.model or self._model
        self._transcriber = session.transcriber() or self._transcriber
        if message.type == "session.started":
            if session.id != self._session:  # after a reconnection the seconds begin anew
                self._end_live()
            if self._live is None:
                self._live = self._turn(REALTIME, {"model": session.model, "safety_identifier": session.safety_identifier})
        self._session = session.id or self._session

    def _counted(self, message: _Message, _: Endpoint) -> None:
        """The seconds of a live session so far; where nothing more is to come, that is all."""
        if not is_null(message.usage):
            self._seconds = max(self._seconds or 0.0, _read_seconds(message.usage).seconds)
            if self._live is None:
                self._live = self._turn(REALTIME, {"model": self._model})
        if message.type == "session.closed":
            self._end_live()

    def _delegated(self, message: _Message, _: Endpoint) -> None:
        """A live session has had something done by another API, which bills it beside the seconds."""
        if message.type == "response.event":
            self._see(_read_message(message.event), RESPONSES)
            return
        answer = parse_responses(_read_message(message.event).decision)
        if not self._has_seen(answer.id):
            self._finish(self._turn(_DECISIONS, {}), answer)

    def _refused(self, message: _Message, _: Endpoint) -> None:
        """Something that was sent is no good, or a response has failed; one that goes on may end well all the same."""
        waiting = self._waiting.get(message.stream_id)
        turn = waiting.popleft() if waiting else None
        if self._endpoint is not RESPONSES:
            return
        if turn is not None:
            status = _decode(message.status)
            self._finish(turn, ResponseSummary(), "error", "error", False, http_status=status if isinstance(status, int) else None)
        elif (going_on := self._turns.get(self._latest.get(message.stream_id))) is not None:
            going_on.failure = "error"

    # -- calls -----------------------------------------------------------------------------------------------------------------

    def _turn(self, endpoint: Endpoint, body: Mapping[str, Any]) -> _Turn:
        metered = MeteredRequest(endpoint, "", body, self._host, self._provider, stream=True)
        metered.context, metered.owner = self.context, self.owner
        by_hand = in_manual_block() or (self._block is not None and self._block.open)
        if not by_hand:
            metered.start()
            metered.responded()  # what is sent over a connection is sent by it, and not inside the call
        return _Turn(metered, by_hand)

    def _begun(self, message: _Message, endpoint: Endpoint) -> _Turn:
        """The turn that was asked for first, or one of its own where nobody has asked: a session may answer what it hears."""
        waiting = self._waiting.get(message.stream_id)
        if waiting:
            return waiting.popleft()
        return self._turn(endpoint, {} if endpoint is RESPONSES else {"model": self._asked_model})

    def _ended(self, message: _Message, endpoint: Endpoint, answer: ResponseSummary, outcome: str, error: str | None) -> None:
        if not self._has_seen(answer.id):
            turn = self._turns.pop(answer.id, None) or self._begun(message, endpoint)
            self._finish(turn, answer, outcome, error)

    def _has_seen(self, identity: object) -> bool:
        """Whether an answer was counted before; from now on it was."""
        if identity is None:
            return False
        if identity in self._seen:
            return True
        self._seen[identity] = None
        if len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return False

    def _finish(
        self, turn: _Turn, answer: ResponseSummary, outcome: str = "ok", error: str | None = None, estimated: bool = True, **more: Any
    ) -> None:
        if turn.by_hand:
            return
        metered, first = turn.metered, turn.first_event
        if estimated and usage_text(answer.usage) is None:
            output = (turn.characters + 3) // 4
            if metered.endpoint is RESPONSES:
                more.update(estimated_output=output, estimated_input=estimate_tokens(metered.body))
            else:
                more["estimated_output"] = output or None  # of speech there is no text, and what a session remembers is not known
        metered.finish(answer, outcome, error=error, ttft=None if first is None else (first - metered.started) // 1000, **more)

    def end(self, error: BaseException | None = None) -> None:
        """The connection was closed, lost or dropped: what it was in the middle of stays unfinished."""
        unfinished: list[_Turn] = []
        while self._turns:
            unfinished.append(self._turns.popitem()[1])
        for waiting in list(self._waiting.values()):
            while waiting:
                unfinished.append(waiting.popleft())
        for turn in unfinished:
            answer = ResponseSummary() if turn.response is NULL else parse_responses(turn.response)
            if turn.metered.endpoint is REALTIME:
                answer.model = self._model or self._asked_model
            self._has_seen(answer.id)
            lost = type(error).__name__ if error is not None else None
            self._finish(turn, answer, "error" if turn.failure else "aborted", turn.failure or lost)
        self._end_live()

    def forget(self) -> None:
        """In a forked child: what goes on is the parent's to count."""
        self._turns.clear()
        self._waiting.clear()
        self._live = self._seconds = None

    def _end_live(self) -> None:
        """A live session is one call, with what has not been counted of its seconds."""
        (turn, self._live), (seconds, self._seconds) = (self._live, None), (self._seconds, None)
        if turn is None:
            return
        if seconds is None:
            self._finish(turn, ResponseSummary(self._session, self._model), "aborted", estimated=False)
            return
        if self._session is not None:
            place = self._host, self._session
            before = _live_seconds.pop(place, 0.0)
            _live_seconds[place] = max(before, seconds)
            if len(_live_seconds) > _REMEMBERED:
                del _live_seconds[next(iter(_live_seconds))]
            seconds -= before
        if seconds > 0:
            usage = msgspec.Raw(msgspec.json.encode({"seconds": round(seconds, 3)}))
            self._finish(turn, ResponseSummary(self._session, self._model, usage=usage))

    _takes: ClassVar[Mapping[str, Callable[[Any, _Message, Endpoint], None]]] = {
        "response.created": _created,
        "response.completed": _completed,
        "response.incomplete": _completed,
        "response.failed": _completed,
        "response.done": _done,
        "conversation.item.input_audio_transcription.completed": _transcribed,
        "session.created": _configured,
        "session.updated": _configured,
        "session.started": _configured,
        "transcription_session.created": _configured,
        "transcription_session.updated": _configured,
        "session.usage.updated": _counted,
        "session.closed": _counted,
        "response.event": _delegated,
        "decision.event": _delegated,
        "error": _refused,
    }


_open: weakref.WeakSet[Socket] = weakref.WeakSet()


def _end_all() -> None:
    """End the connections that nobody has closed."""
    for socket in list(_open):
        call_guarded(socket.end)


def _forget_all() -> None:
    for socket in list(_open):
        socket.forget()
    _open.clear()


open_calls.on_end_all(_end_all)
os.register_at_fork(after_in_child=_forget_all)
