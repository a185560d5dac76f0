"""
The usage readers of Anthropic's endpoints.

Source of the shapes: Anthropic API reference (Messages, Streaming Messages), and recorded answers.
"""

from __future__ import annotations

from typing import Any

import msgspec

from voight_middleware.meter import note
from voight_middleware.providers.answers import NULL, Answer, Endpoint, read_answer, text_or_none, usage_json

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
        self._deltas: list[Any] = []
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
                self._deltas.append(event.usage)
            elif kind == "message_stop":
                self.done = True
            elif kind == "error":
                self.failure = kind
        except Exception as error:
            note(error)
        return False

    def answer(self) -> Answer:
        message = self._message
        if message is None:
            return Answer()
        usage: dict[str, Any] = {}
        for part in (getattr(message, "usage", None), *self._deltas):
            if part is not None:
                usage.update((key, value) for key, value in _decode(usage_json(part)).items() if value is not None or key not in usage)
        identity, model, tier = (text_or_none(value) for value in (message.id, message.model, usage.get("service_tier")))
        return Answer(identity, model, tier, msgspec.Raw(msgspec.json.encode(usage)) if usage else NULL)

    def estimated_output(self) -> int | None:
        if self._message is None or self._deltas:
            return None
        placeholder = getattr(getattr(self._message, "usage", None), "output_tokens", None)
        return max((self._characters + 3) // 4, placeholder or 0)


ENDPOINTS = {"/v1/messages": Endpoint("messages", read_answer, MessagesReader)}
