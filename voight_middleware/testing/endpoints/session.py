"""WebSocket sessions, and their turns."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints import responses
from voight_middleware.testing.endpoints.errors import Refusal, error_kind
from voight_middleware.testing.endpoints.response import EndpointRequest
from voight_middleware.testing.fake_data import Json


@dataclass(frozen=True, slots=True)
class Turn:
    """The events after one message. The last event completes the turn."""

    events: Sequence[Json] = ()
    charges: Sequence[Charge] = ()
    """The cost that the last event reports."""
    starts: bool = False
    """Whether a response starts that is counted as a call."""
    completes: bool = False
    """Whether the last event completes that response, or an earlier one."""
    closes: bool = False


class Session(Protocol):
    """The server side of a WebSocket connection."""

    def greeting(self) -> Sequence[Json]:
        """Return the events before the first message."""
        ...

    def handle(self, request: EndpointRequest) -> Turn:
        """Return the turn after one message, which is the body of *request*."""
        ...

    def error(self, refusal: Refusal) -> Json:
        """Return the event for an error."""
        ...


class ResponsesSession:
    """OpenAI's responses over a WebSocket, with the same events as over HTTP."""

    def greeting(self) -> Sequence[Json]:
        return ()

    def handle(self, request: EndpointRequest) -> Turn:
        if request.body.get("type") != "response.create":
            raise Refusal(400, f"Unknown event type: '{request.body.get('type')}'.", "type")
        response = responses.respond(request.body, request.options)
        responses.keep(request, response)
        return Turn(response.events(), response.charges, starts=True, completes=True)

    def error(self, refusal: Refusal) -> Json:
        return {"type": "error", "status": refusal.status, "error": described(refusal)}


def described(refusal: Refusal) -> Json:
    """Return the error in the format of an event."""
    return {
        "type": error_kind(refusal),
        "code": refusal.code,
        "message": refusal.message,
        "param": refusal.param,
    }


def numbered(events: Sequence[Json]) -> Sequence[Json]:
    """Return the events with ids."""
    return [
        {"type": event["type"], "event_id": f"event_{uuid.uuid4().hex[:21]}", **event}
        for event in events
    ]


def merged(old: Any, new: Any) -> Any:
    """Return *old* with the changed parts of *new*."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{name: merged(old.get(name), value) for name, value in new.items()}}
