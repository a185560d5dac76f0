"""What is said on a WebSocket: sessions, and their turns."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints import responses
from voight_middleware.testing.endpoints.errors import Refusal, error_kind
from voight_middleware.testing.endpoints.response import Asked
from voight_middleware.testing.fake_data import Json


@dataclass(frozen=True, slots=True)
class Turn:
    """What is said after one message; the last event is what completes it."""

    events: Sequence[Json] = ()
    bills: Sequence[Charge] = ()
    """What the last event reports."""
    begins: bool = False
    """Whether an answer begins that is counted as a call."""
    completes: bool = False
    """Whether that answer, or the one that has begun earlier, is complete with the last event."""
    closes: bool = False


class Session(Protocol):
    """One side of a WebSocket connection."""

    def greeting(self) -> Sequence[Json]:
        """What is said before anything is heard."""
        ...

    def hear(self, asked: Asked) -> Turn:
        """Answer one message, which is the body of *asked*."""
        ...

    def error(self, refusal: Refusal) -> Json:
        """What is said instead of an answer."""
        ...


class ResponsesSession:
    """OpenAI's responses over a WebSocket: the same events as over HTTP."""

    def greeting(self) -> Sequence[Json]:
        return ()

    def hear(self, asked: Asked) -> Turn:
        if asked.body.get("type") != "response.create":
            raise Refusal(400, f"Unknown event type: '{asked.body.get('type')}'.", "type")
        response = responses.respond(asked.body, asked.options)
        responses.keep(asked, response)
        return Turn(response.events(), response.bills, begins=True, completes=True)

    def error(self, refusal: Refusal) -> Json:
        return {"type": "error", "status": refusal.status, "error": described(refusal)}


def described(refusal: Refusal) -> Json:
    """The error as it stands in an event."""
    return {"type": error_kind(refusal), "code": refusal.code, "message": refusal.message, "param": refusal.param}


def numbered(events: Sequence[Json]) -> Sequence[Json]:
    """The events with an id each."""
    return [{"type": event["type"], "event_id": f"event_{uuid.uuid4().hex[:21]}", **event} for event in events]


def merged(old: Any, new: Any) -> Any:
    """A setting with some of its parts changed."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{name: merged(old.get(name), value) for name, value in new.items()}}
