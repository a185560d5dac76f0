"""
The metered calls of one OpenAI WebSocket: every response, every transcription, and a live session's
seconds.

Source of the shapes: OpenAI API reference, "Realtime server events", "Responses WebSocket server
events", "Live server events".
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
from voight_middleware.instrumentation.request import (
    ManualBlock,
    MeteredRequest,
    current_request,
    in_manual_block,
)
from voight_middleware.instrumentation.streams import call_guarded
from voight_middleware.pipeline import open_calls
from voight_middleware.providers.base import (
    NULL,
    Endpoint,
    ResponseSummary,
    estimate_tokens,
    is_null,
    parse_response,
    usage_text,
)
from voight_middleware.providers.openai.text import parse_responses, plain
from voight_middleware.records.tags import Owner

RESPONSES = Endpoint(name="responses", parse=parse_responses, job_phase="submit")
REALTIME = Endpoint(name="realtime", parse=parse_response)
_TRANSCRIPTIONS = Endpoint(name="transcriptions", parse=parse_response)
_DECISIONS = Endpoint(name="decisions", parse=parse_responses)

_IN_TEXT, _IN_BYTES = "response.create", b"response.create"
_MAX_REMEMBERED = 1000
"""How many responses of a connection are remembered, to count each of them once."""


class _Message(msgspec.Struct, gc=False):
    """The fields of an event that are read; the rest is skipped."""

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


class _ModelName(msgspec.Struct):
    model: str | None = None


class _AudioInput(msgspec.Struct):
    transcription: _ModelName | None = None


class _Audio(msgspec.Struct):
    input: _AudioInput | None = None


class _Session(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    audio: _Audio | None = None
    input_audio_transcription: _ModelName | None = None
    safety_identifier: str | None = None

    def transcriber(self) -> str | None:
        """Return the transcription model. Its place has changed since the beta."""
        transcription = (
            self.audio.input.transcription
            if self.audio is not None and self.audio.input is not None
            else None
        )
        transcription = transcription or self.input_audio_transcription
        return None if transcription is None else transcription.model


class _Seconds(msgspec.Struct):
    seconds: float


_read_message = msgspec.json.Decoder(_Message).decode
_read_response = msgspec.json.Decoder(_Response).decode
_read_session = msgspec.json.Decoder(_Session).decode
_read_seconds = msgspec.json.Decoder(_Seconds).decode
_decode = msgspec.json.decode

_OUTCOMES: Mapping[str | None, str] = {
    "cancelled": "aborted",
    "incomplete": "truncated",
    "failed": "error",
}

_live_seconds: dict[tuple[str, str], float] = {}
"""The counted seconds of live sessions, which are cumulative and seen by several connections."""


class _Turn:
    """One response, from the event that requests it to the event that ends it."""

    __slots__ = ("characters", "failure", "first_event", "is_manual", "metered", "response")

    def __init__(self, metered: MeteredRequest, is_manual: bool) -> None:
        self.metered = metered
        self.is_manual = is_manual
        self.characters = 0
        self.failure: str | None = None
        self.first_event: int | None = None
        self.response = NULL


class Socket:
    """
    One WebSocket: its running responses and their owners.

    Args:
        endpoint: How messages at the top level are read: ``RESPONSES`` or ``REALTIME``.
        creates: Whether responses are requested with ``response.create``.
        model: The model that the connection was opened for.
        session: The session that it was opened to.
        context: The context in which it was opened.
        owner: The owner in that context.
    """

    def __init__(
        self,
        *,
        host: str,
        provider: str,
        endpoint: Endpoint,
        creates: bool,
        model: str | None,
        session: str | None,
        context: TagContext,
        owner: Owner,
    ) -> None:
        self.bound_context = self.context = context
        self.owner = owner
        self._host = host
        self._provider = provider
        self._endpoint = endpoint
        self._creates = creates
        self._opened_model = model
        self._model: str | None = None
        self._transcriber: str | None = None
        self._session = session
        self._live: _Turn | None = None
        self._seconds: float | None = None
        self._waiting: dict[str | None, deque[_Turn]] = {}
        """Responses that were requested and have not started, by ``stream_id``."""
        self._turns: dict[str | None, _Turn] = {}
        """Running responses, by their id."""
        self._latest: dict[str | None, str | None] = {}
        """The response that started last, by ``stream_id``."""
        self._seen: dict[object, None] = {}
        block = current_request.get()
        self._block = block if isinstance(block, ManualBlock) else None
        _open.add(self)

    def __del__(self) -> None:
        call_guarded(self.end)

    # -- the application sends ---------------------------------------------------------------------

    def bind(self, context: TagContext, owner: Owner) -> None:
        """Make the sender the owner of later responses, unless only the present owner is known."""
        self.bound_context = context
        if owner.tags.user_id is not None or self.owner.tags.user_id is None:
            self.context, self.owner = context, owner

    def sent(self, event: Any) -> None:
        """Note an event that is about to be sent: an object of the caller, or JSON."""
        request = self._request(event)
        if request is not None:
            body = request if self._endpoint is RESPONSES else {"model": self._opened_model}
            self._waiting.setdefault(request.get("stream_id"), deque()).append(
                self._turn(self._endpoint, body)
            )

    def unsent(self, event: Any) -> None:
        """Undo ``sent()`` for an event that could not be sent."""
        request = self._request(event)
        waiting = None if request is None else self._waiting.get(request.get("stream_id"))
        if waiting:
            waiting.pop()

    def _request(self, event: Any) -> Mapping[str, Any] | None:
        """Return the event as a mapping if it requests a response; None for any other."""
        if not self._creates:
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

    # -- the provider sends ------------------------------------------------------------------------

    def received(self, data: bytes | str) -> None:
        """Read a message of the provider."""
        try:
            self._dispatch(_read_message(data), self._endpoint)
        except msgspec.DecodeError:
            counters["unreadable_responses"] += 1

    def _dispatch(self, message: _Message, endpoint: Endpoint) -> None:
        kind = message.type
        if kind.endswith(".delta"):
            if kind.startswith("response.") and not kind.endswith("audio.delta"):
                self._streamed(message)
        elif (handler := self._handlers.get(kind)) is not None:
            handler(self, message, endpoint)

    def _streamed(self, message: _Message) -> None:
        turn = self._turns.get(message.response_id or self._latest.get(message.stream_id))
        if turn is not None and isinstance(text := _decode(message.delta), str):
            turn.characters += len(text)

    def _created(self, message: _Message, endpoint: Endpoint) -> None:
        response = _read_response(message.response)
        if response.id in self._turns or response.id in self._seen:
            return
        turn = self._next_turn(message, endpoint)
        if turn.first_event is None:
            turn.first_event = time.perf_counter_ns()
        turn.response = message.response
        self._turns[response.id] = turn
        self._latest[message.stream_id] = response.id

    def _completed(self, message: _Message, endpoint: Endpoint) -> None:
        """Finish a response of the Responses API."""
        failed = message.type == "response.failed"
        self._ended(
            message,
            endpoint,
            parse_responses(message.response),
            "error" if failed else "ok",
            message.type if failed else None,
        )

    def _done(self, message: _Message, endpoint: Endpoint) -> None:
        """Finish a response of a realtime session."""
        response = _read_response(message.response)
        outcome = _OUTCOMES.get(response.status, "ok")
        summary = ResponseSummary(
            response.id, self._model or self._opened_model, usage=response.usage
        )
        self._ended(
            message, endpoint, summary, outcome, "response.failed" if outcome == "error" else None
        )

    def _transcribed(self, message: _Message, _: Endpoint) -> None:
        """Write the call of a transcription in a realtime session, made by a model of its own."""
        if not is_null(message.usage) and not self._has_seen(
            (message.item_id, message.content_index)
        ):
            turn = self._turn(_TRANSCRIPTIONS, {"model": self._transcriber})
            self._finish(
                turn, ResponseSummary(message.item_id, self._transcriber, usage=message.usage)
            )

    def _configured(self, message: _Message, _: Endpoint) -> None:
        """Read the configuration of a new or changed session."""
        session = _read_session(message.session)
        self._model = session.model or self._model
        self._transcriber = session.transcriber() or self._transcriber
        if message.type == "session.started":
            if session.id != self._session:  # after a reconnection the seconds start at 0
                self._end_live()
            if self._live is None:
                self._live = self._turn(
                    REALTIME,
                    {"model": session.model, "safety_identifier": session.safety_identifier},
                )
        self._session = session.id or self._session

    def _counted(self, message: _Message, _: Endpoint) -> None:
        """Read the seconds of a live session so far. The last event ends its call."""
        if not is_null(message.usage):
            self._seconds = max(self._seconds or 0.0, _read_seconds(message.usage).seconds)
            if self._live is None:
                self._live = self._turn(REALTIME, {"model": self._model})
        if message.type == "session.closed":
            self._end_live()

    def _delegated(self, message: _Message, _: Endpoint) -> None:
        """Read an event of another API in a live session, which is billed beside the seconds."""
        if message.type == "response.event":
            self._dispatch(_read_message(message.event), RESPONSES)
            return
        summary = parse_responses(_read_message(message.event).decision)
        if not self._has_seen(summary.id):
            self._finish(self._turn(_DECISIONS, {}), summary)

    def _refused(self, message: _Message, _: Endpoint) -> None:
        """Read an error: a refused event or a failed response. A running one may still end well."""
        waiting = self._waiting.get(message.stream_id)
        turn = waiting.popleft() if waiting else None
        if self._endpoint is not RESPONSES:
            return
        if turn is not None:
            status = _decode(message.status)
            self._finish(
                turn,
                ResponseSummary(),
                "error",
                "error",
                False,
                http_status=status if isinstance(status, int) else None,
            )
        elif (running := self._turns.get(self._latest.get(message.stream_id))) is not None:
            running.failure = "error"

    # -- calls -------------------------------------------------------------------------------------

    def _turn(self, endpoint: Endpoint, body: Mapping[str, Any]) -> _Turn:
        metered = MeteredRequest(endpoint, "", body, self._host, self._provider, stream=True)
        metered.context, metered.owner = self.context, self.owner
        is_manual = in_manual_block() or (self._block is not None and self._block.open)
        if not is_manual:
            metered.start()
            metered.responded()  # later requests of the connection are not inside this call
        return _Turn(metered, is_manual)

    def _next_turn(self, message: _Message, endpoint: Endpoint) -> _Turn:
        """
        Return the turn that was requested first, or a new one.

        A session may respond to audio without a request.
        """
        waiting = self._waiting.get(message.stream_id)
        if waiting:
            return waiting.popleft()
        return self._turn(endpoint, {} if endpoint is RESPONSES else {"model": self._opened_model})

    def _ended(
        self,
        message: _Message,
        endpoint: Endpoint,
        summary: ResponseSummary,
        outcome: str,
        error: str | None,
    ) -> None:
        if not self._has_seen(summary.id):
            turn = self._turns.pop(summary.id, None) or self._next_turn(message, endpoint)
            self._finish(turn, summary, outcome, error)

    def _has_seen(self, identity: object) -> bool:
        """Return whether a response was counted before, and remember it."""
        if identity is None:
            return False
        if identity in self._seen:
            return True
        self._seen[identity] = None
        if len(self._seen) > _MAX_REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return False

    def _finish(
        self,
        turn: _Turn,
        summary: ResponseSummary,
        outcome: str = "ok",
        error: str | None = None,
        estimated: bool = True,
        **more: Any,
    ) -> None:
        if turn.is_manual:
            return
        metered, first = turn.metered, turn.first_event
        if estimated and usage_text(summary.usage) is None:
            output = (turn.characters + 3) // 4
            if metered.endpoint is RESPONSES:
                more.update(estimated_output=output, estimated_input=estimate_tokens(metered.body))
            else:
                # Speech has no text, and the input that a session remembers is not known.
                more["estimated_output"] = output or None
        metered.finish(
            summary,
            outcome,
            error=error,
            ttft=None if first is None else (first - metered.started) // 1000,
            **more,
        )

    def end(self, error: BaseException | None = None) -> None:
        """Finish the calls of a connection that ended. Running responses are aborted."""
        unfinished: list[_Turn] = []
        while self._turns:
            unfinished.append(self._turns.popitem()[1])
        for waiting in list(self._waiting.values()):
            while waiting:
                unfinished.append(waiting.popleft())
        for turn in unfinished:
            summary = ResponseSummary() if turn.response is NULL else parse_responses(turn.response)
            if turn.metered.endpoint is REALTIME:
                summary.model = self._model or self._opened_model
            self._has_seen(summary.id)
            lost = type(error).__name__ if error is not None else None
            self._finish(
                turn, summary, "error" if turn.failure else "aborted", turn.failure or lost
            )
        self._end_live()

    def discard_after_fork(self) -> None:
        """Drop the running calls in a forked child. The parent counts them."""
        self._turns.clear()
        self._waiting.clear()
        self._live = self._seconds = None

    def _end_live(self) -> None:
        """Write the one call of a live session, with its seconds that are not counted yet."""
        (turn, self._live), (seconds, self._seconds) = (self._live, None), (self._seconds, None)
        if turn is None:
            return
        if seconds is None:
            self._finish(
                turn, ResponseSummary(self._session, self._model), "aborted", estimated=False
            )
            return
        if self._session is not None:
            key = self._host, self._session
            before = _live_seconds.pop(key, 0.0)
            _live_seconds[key] = max(before, seconds)
            if len(_live_seconds) > _MAX_REMEMBERED:
                del _live_seconds[next(iter(_live_seconds))]
            seconds -= before
        if seconds > 0:
            usage = msgspec.Raw(msgspec.json.encode({"seconds": round(seconds, 3)}))
            self._finish(turn, ResponseSummary(self._session, self._model, usage=usage))

    _handlers: ClassVar[Mapping[str, Callable[[Any, _Message, Endpoint], None]]] = {
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
    """End the connections that are still open."""
    for socket in list(_open):
        call_guarded(socket.end)


def _discard_all() -> None:
    for socket in list(_open):
        socket.discard_after_fork()
    _open.clear()


open_calls.on_end_all(_end_all)
os.register_at_fork(after_in_child=_discard_all)
