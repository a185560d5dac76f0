"""OpenAI's Live API: a session billed by the second, and its delegated responses."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints import responses
from voight_middleware.testing.endpoints.errors import Refusal
from voight_middleware.testing.endpoints.response import EndpointRequest, now, present, reported
from voight_middleware.testing.endpoints.session import Turn, described, merged, numbered
from voight_middleware.testing.fake_data import Json, Options, hexadecimal

_BYTES_A_SECOND = 48_000
_MINUTES = 1800
_KEPT = (
    "audio",
    "client",
    "delegation",
    "input",
    "instructions",
    "safety_identifier",
    "store",
    "triggers",
)
_ACKNOWLEDGED = {
    "session.input_audio.mute": "session.input_audio.muted",
    "session.input_audio.unmute": "session.input_audio.unmuted",
    "session.instructions.append": "session.instructions.appended",
    "session.thinking.append": "session.thinking.appended",
    "session.commentary.append": "session.commentary.appended",
}


class LiveSession:
    """
    One connection. It is one call, from ``session.start`` to ``session.close``.

    Every ``session.input_audio.append`` gets an event with the session's seconds so far. It counts
    as one second, plus one for each further 48,000 bytes.
    """

    def __init__(self) -> None:
        self._session: Json = {}
        self._seconds = 0
        self._billed = 0.0

    def greeting(self) -> Sequence[Json]:
        return ()

    def handle(self, request: EndpointRequest) -> Turn:
        message = request.body
        kind, caused_by = str(message.get("type")), {"client_event_id": message.get("event_id")}
        if kind == "session.start":
            return self._start(message, caused_by)
        if not self._session:
            raise Refusal(400, "The session was not started.", None, "session_not_started")
        match kind:
            case "session.update":
                self._session = merged(self._session, message.get("session") or {})
                return Turn(
                    numbered([{"type": "session.updated", **caused_by, "session": self._session}])
                )
            case "session.input_audio.append":
                return self._listen(message, request.options, caused_by)
            case "response.create":
                return self._delegate(request, caused_by)
            case "session.close":
                usage = self._usage(request.options)
                closed = {
                    "type": "session.closed",
                    **caused_by,
                    "reason": "close_requested",
                    "session": self._session,
                    **present(usage),
                }
                return Turn(numbered([closed]), self._charge(usage), completes=True, closes=True)
            case _ if kind in _ACKNOWLEDGED:
                return Turn(numbered([{"type": _ACKNOWLEDGED[kind], **caused_by}]))
            case _:
                raise Refusal(400, f"Invalid value: '{kind}'.", "type", "invalid_value")

    def error(self, refusal: Refusal) -> Json:
        described_here = described(refusal)
        return numbered(
            [
                {
                    "type": "error",
                    "error": {**described_here, "code": refusal.code or described_here["type"]},
                }
            ]
        )[0]

    def _start(self, message: Json, caused_by: Json) -> Turn:
        if self._session:
            raise Refusal(400, "The session was started already.", None, "session_started")
        wanted = message.get("session") or {}
        if not wanted.get("model"):
            raise Refusal(
                400,
                "Missing required parameter: 'session.model'.",
                "session.model",
                "missing_required_parameter",
            )
        about = {
            "id": f"live_{hexadecimal(32)}",
            "model": wanted["model"],
            "status": "active",
            "expires_at": now() + _MINUTES,
        }
        self._session = {**about, **{name: wanted[name] for name in _KEPT if name in wanted}}
        return Turn(
            numbered([{"type": "session.started", **caused_by, "session": self._session}]),
            starts=True,
        )

    def _listen(self, message: Json, options: Options, caused_by: Json) -> Turn:
        before = self._seconds
        self._seconds += math.ceil(
            max(1, len(base64.b64decode(message.get("audio") or ""))) / _BYTES_A_SECOND
        )
        span = {"start_ms": before * 1000, "end_ms": self._seconds * 1000}
        events: list[Json] = [
            {
                "type": "session.output_transcript.delta",
                **caused_by,
                **span,
                "delta": "The replica lagged.",
            }
        ]
        events.append({"type": "session.output_audio.delta", **span, "delta": "AAAAAAAA"})
        usage = self._usage(options)
        if usage is not None:
            events.append(
                {
                    "type": "session.usage.updated",
                    **caused_by,
                    "usage": usage,
                    "context_window": {"usage_ratio": 0.1},
                }
            )
        return Turn(numbered(events), self._charge(usage))

    def _delegate(self, request: EndpointRequest, caused_by: Json) -> Turn:
        """Return a response of another model, with its usage in its own events."""
        delegation = self._session.get("delegation") or {}
        model = (delegation.get("responses") or {}).get("model") or "gpt-5.6-sol"
        prompt = {
            "model": model,
            "input": self._session.get("input") or "-",
            "instructions": self._session.get("instructions"),
        }
        response = responses.respond(prompt, request.options)
        envelope = {
            "type": "response.event",
            **caused_by,
            "delegation_id": f"dlg_{hexadecimal(24)}",
        }
        return Turn(
            numbered([{**envelope, "event": event} for event in response.events()]),
            response.charges,
        )

    def _usage(self, options: Options) -> Json | None:
        usage: Json | None = reported(options, lambda: {"seconds": float(self._seconds)})
        return usage

    def _charge(self, usage: Json | None) -> list[Charge]:
        """
        Return the charge that was not reported yet: the usage covers the whole session so far.
        """
        new = max(0.0, (usage or {}).get("seconds", 0.0) - self._billed)
        self._billed += new
        return [Charge(seconds=new)]
