"""
The usage readers of OpenAI's endpoints.

Source of the shapes: OpenAI API reference (chat completions, responses, embeddings), and recorded answers.
"""

from __future__ import annotations

from typing import Any

import msgspec

from voight_middleware.meter import note
from voight_middleware.providers.answers import NULL, Answer, Endpoint, read_answer, text_or_none, usage_json


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
    try:
        answer = _read_responses_body(body)
    except msgspec.ValidationError:
        return read_answer(body)
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
                content = choice.delta.content or _other_text(choice.delta)
                if content:
                    self._chunks += 1
                    self._characters += len(content)
                if choice.finish_reason is not None:
                    self.done = True
            if event.usage is not None:
                self.done = True
                self._usage = event.usage
                return self._hide and not event.choices
        except AttributeError:
            return self._see_odd(event)
        except Exception as error:
            note(error)
        return False

    def _see_odd(self, event: Any) -> bool:
        """Azure's asynchronous filter results have no delta; a compatible server's usage may come without choices."""
        choices = getattr(event, "choices", None)
        if choices and getattr(choices[0], "finish_reason", None) is not None:
            self.done = True
        usage = getattr(event, "usage", None)
        if usage is None:
            return False
        self.done = True
        self._usage = usage
        return self._hide and not choices

    def answer(self) -> Answer:
        last = self._last
        identity, model, tier = (text_or_none(getattr(last, name, None)) for name in ("id", "model", "service_tier"))
        return Answer(identity, model, tier, NULL if self._usage is None else usage_json(self._usage))

    def estimated_output(self) -> int | None:
        # OpenAI streams about one token per content chunk; compatible servers send longer ones.
        return None if self._usage is not None else max(self._chunks, (self._characters + 3) // 4)


def _other_text(delta: Any) -> str | None:
    """What is output too, and billed: the arguments of a tool call."""
    calls = delta.tool_calls
    return calls[0].function.arguments if calls and calls[0].function is not None else None


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
            elif kind.endswith(".delta") and kind != "response.audio.delta":  # tool arguments, reasoning, refusals
                self._characters += len(event.delta)
        except Exception as error:
            note(error)
        return False

    def answer(self) -> Answer:
        response = self._response
        if response is None:
            return Answer()
        usage = getattr(response, "usage", None)
        tools = _tool_calls(getattr(item, "type", None) for item in getattr(response, "output", None) or ())
        identity, model, tier = (text_or_none(getattr(response, name, None)) for name in ("id", "model", "service_tier"))
        return Answer(identity, model, tier, NULL if usage is None else usage_json(usage), tools)

    def estimated_output(self) -> int | None:
        reported = getattr(self._response, "usage", None) is not None
        return None if reported else (self._characters + 3) // 4


_CHAT = Endpoint("chat", read_answer, ChatReader, asks_for_usage=True)
_RESPONSES = Endpoint("responses", _read_responses, ResponsesReader)

ENDPOINTS = {
    "/chat/completions": _CHAT,
    "/responses": _RESPONSES,
    "/embeddings": Endpoint("embeddings", read_answer),
}
