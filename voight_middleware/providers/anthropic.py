"""
The usage readers of Anthropic's endpoints.

Source of the shapes: Anthropic API reference (Messages, Streaming Messages), and recorded answers.
"""

from __future__ import annotations

from typing import Any

import msgspec

from voight_middleware.meter import current_meter
from voight_middleware.providers.answers import Answer, Endpoint, usage_json

_read = msgspec.json.Decoder(Answer).decode
_decode = msgspec.json.Decoder(dict[str, Any]).decode

_TEXT = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


class MessagesReader:
    """
    A stream of message events. ``message_start`` carries the input's usage and a placeholder for the output's; the counts of
    ``message_delta`` are cumulative and overwrite, the input's too where the server ran tools.
    """

    def __init__(self, hide_usage: bool) -> None:
        self.done = False
        self.failure: str | None = None
        self._message: Any = None
        self._delta_usage: Any = None
        self._characters = 0

    def see(self, event: Any) -> object:
        try:
            kind = event.type
            if kind == "content_block_delta":
                delta = event.delta
                field = _TEXT.get(delta.type)
                if field is not None:
                    self._characters += len(getattr(delta, field))
            elif kind == "message_start":
                self._message = event.message
            elif kind == "message_delta":
                self._delta_usage = event.usage
            elif kind == "message_stop":
                self.done = True
        except Exception as error:
            current_meter().note(error)
        return False

    def answer(self) -> Answer:
        message = self._message
        if message is None:
            return Answer()
        usage = _decode(usage_json(message.usage))
        if self._delta_usage is not None:
            usage.update((key, value) for key, value in _decode(usage_json(self._delta_usage)).items() if value is not None)
        return Answer(message.id, message.model, usage.get("service_tier"), msgspec.Raw(msgspec.json.encode(usage)))

    def estimated_output(self) -> int | None:
        if self._message is None or self._delta_usage is not None:
            return None
        return max((self._characters + 3) // 4, self._message.usage.output_tokens or 0)


ENDPOINTS = {"/v1/messages": Endpoint("messages", _read, MessagesReader)}
