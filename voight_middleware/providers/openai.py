"""
The usage readers of OpenAI's endpoints.

Source of the shapes: OpenAI API reference (chat completions, responses, embeddings), and recorded answers.
"""

from __future__ import annotations

from typing import Any

import msgspec

from voight_middleware.meter import current_meter
from voight_middleware.providers.answers import NULL, Answer, Endpoint, usage_json

_read = msgspec.json.Decoder(Answer).decode


class _Item(msgspec.Struct):
    type: str = ""


class _ResponsesAnswer(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    service_tier: str | None = None
    usage: msgspec.Raw = NULL
    output: list[_Item] = []


_read_responses_body = msgspec.json.Decoder(_ResponsesAnswer).decode

_TOOL_ITEMS = {"web_search_call": "web_search", "file_search_call": "file_search", "code_interpreter_call": "code_interpreter"}


def _read_responses(body: bytes) -> Answer:
    answer = _read_responses_body(body)
    return Answer(answer.id, answer.model, answer.service_tier, answer.usage, _tool_calls(item.type for item in answer.output))


def _tool_calls(types: Any) -> dict[str, int] | None:
    """Tools with a fee per call, which ``usage`` leaves out."""
    counts: dict[str, int] = {}
    for kind in types:
        tool = _TOOL_ITEMS.get(kind)
        if tool is not None:
            counts[tool] = counts.get(tool, 0) + 1
    return counts or None


class ChatReader:
    """A stream of chat completion chunks. Its usage comes in a last chunk without choices, and only where it was asked for."""

    def __init__(self, hide_usage: bool) -> None:
        self.done = False
        self.failure: str | None = None
        self._hide = hide_usage
        self._last: Any = None
        self._usage: Any = None
        self._chunks = 0
        self._characters = 0

    def see(self, event: Any) -> object:
        try:
            self._last = event
            if event.choices:
                choice = event.choices[0]
                content = choice.delta.content
                if content:
                    self._chunks += 1
                    self._characters += len(content)
                if choice.finish_reason is not None:
                    self.done = True
            if event.usage is not None:
                self.done = True
                self._usage = event.usage
                return self._hide and not event.choices
        except Exception as error:
            current_meter().note(error)
        return False

    def answer(self) -> Answer:
        last = self._last
        if last is None:
            return Answer()
        tier = getattr(last, "service_tier", None)
        return Answer(last.id, last.model, tier, NULL if self._usage is None else usage_json(self._usage))

    def estimated_output(self) -> int | None:
        # OpenAI streams about one token per content chunk; compatible servers send longer ones.
        return None if self._usage is not None else max(self._chunks, (self._characters + 3) // 4)


class ResponsesReader:
    """A stream of Responses events. The terminal event carries the whole response, usage included."""

    _TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed"})

    def __init__(self, hide_usage: bool) -> None:
        self.done = False
        self.failure: str | None = None
        self._response: Any = None
        self._characters = 0

    def see(self, event: Any) -> object:
        try:
            kind = event.type
            if kind == "response.output_text.delta":
                self._characters += len(event.delta)
            elif kind in self._TERMINAL:
                self.done = True
                self._response = event.response
                if kind == "response.failed":
                    self.failure = kind
            elif kind == "response.created":
                self._response = event.response
            elif kind == "error":
                self.failure = kind
        except Exception as error:
            current_meter().note(error)
        return False

    def answer(self) -> Answer:
        response = self._response
        if response is None:
            return Answer()
        usage = response.usage
        tools = _tool_calls(item.type for item in response.output or ())
        return Answer(response.id, response.model, response.service_tier, NULL if usage is None else usage_json(usage), tools)

    def estimated_output(self) -> int | None:
        reported = self._response is not None and self._response.usage is not None
        return None if reported else (self._characters + 3) // 4


_CHAT = Endpoint("chat", _read, ChatReader, asks_for_usage=True)
_RESPONSES = Endpoint("responses", _read_responses, ResponsesReader)

ENDPOINTS = {
    "/chat/completions": _CHAT,
    "/responses": _RESPONSES,
    "/embeddings": Endpoint("embeddings", _read),
}
