"""
Parsers of streamed chat completions and legacy completions.

Source of the shapes: OpenAI API reference (chat completions, completions), recorded responses, and
the API references of Moonshot (``choices[].usage``), Groq (``x_groq.usage``) and DeepSeek
(``reasoning_content``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from voight_middleware.diagnostics import report_internal_error
from voight_middleware.providers.base import (
    NULL,
    ResponseSummary,
    StreamParser,
    text_or_none,
    usage_json,
)
from voight_middleware.providers.finish_reasons import in_order, note_reasons

_COUNTS = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens")


def get(thing: Any, name: str) -> Any:
    """Return a field of an SDK's model or of plain JSON; None if it is missing."""
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def weight(usage: Any) -> int:
    """Return how much a usage object contains: 0 for nothing, 1 for zeros, 2 for counts."""
    if usage is None:
        return 0
    counts = [count for name in _COUNTS if (count := get(usage, name)) is not None]
    return 2 if any(counts) else 1 if counts else 0


class ChatParser(StreamParser):
    """
    A stream of chat completion chunks.

    Its usage comes in a last chunk without choices, and only if it was asked for. Compatible
    servers send it with the finish reason, or with every chunk. Then it is the usage so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: Any = None
        self._usage: Any = None
        self._weight = 0
        self._reasons: dict[int, str | None] = {}
        self._chunks = 0

    def feed(self, event: Any) -> None:
        try:
            self._last = event
            choices = event.choices
            if choices:
                for choice in choices:
                    size = self._size(choice)
                    if size:
                        self._chunks += 1
                        self._characters += size
                    if choice.finish_reason is not None:
                        self.done = True
                        # OpenRouter, if the SDK does not raise
                        if choice.finish_reason == "error":
                            self.failure = "error"
                        note_reasons(self._reasons, choices)
                        self._take_elsewhere(event, choice)
            if event.usage is not None:
                self._take(event.usage, choices)
            elif not choices:
                self._take_elsewhere(event, None)
        except AttributeError:
            self._feed_odd(event)
        except Exception as error:
            report_internal_error(error)

    def _size(self, choice: Any) -> int:
        """Return the characters of output in one choice."""
        delta = choice.delta
        return len(delta.content) if delta.content else _other_size(delta)

    def _feed_odd(self, event: Any) -> None:
        """
        Read an event without the usual attributes.

        Azure's asynchronous filter results have no delta, and a compatible server's usage may have
        no choices.
        """
        choices = get(event, "choices")
        if choices and get(choices[0], "finish_reason") is not None:
            self.done = True
            note_reasons(self._reasons, choices)
            self._take_elsewhere(event, choices[0])
        usage = get(event, "usage")
        if usage is not None:
            self._take(usage, choices)
        elif not choices:
            self._take_elsewhere(event, None)

    def _take(self, usage: Any, choices: Any) -> None:
        """Keep the last usage that contains counts."""
        new_weight = weight(usage)
        if new_weight and not choices:
            self.done = True
        if new_weight >= self._weight:
            self._usage, self._weight = usage, new_weight

    def _take_elsewhere(self, event: Any, choice: Any) -> None:
        """
        Take usage from other places than OpenAI's.

        Sources: Moonshot API reference, "Streaming": ``choices[].usage``. Groq, "Streaming":
        ``x_groq.usage``.
        """
        groq = get(event, "x_groq")
        if groq is not None and get(groq, "error"):
            self.failure = "error"
        for usage in (
            get(choice, "usage") if choice is not None else None,
            get(groq, "usage") if groq is not None else None,
        ):
            if (new_weight := weight(usage)) and new_weight >= self._weight:
                self._usage, self._weight, self.done = usage, new_weight, True

    def summary(self) -> ResponseSummary:
        last = self._last
        identity, model, tier = (
            text_or_none(getattr(last, name, None)) for name in ("id", "model", "service_tier")
        )
        usage = usage_json(self._usage) if self._weight else NULL
        return ResponseSummary(identity, model, tier, usage, finish_reasons=in_order(self._reasons))

    def estimated_output(self) -> int | None:
        # OpenAI streams about one token per content chunk; compatible servers send longer ones.
        return None if self._weight else max(self._chunks, self._tokens_of_text())


def _other_size(delta: Any) -> int:
    """
    Return the characters of the other billed output in a delta.

    That is reasoning, refusals, and the arguments of all tool calls.

    Source: DeepSeek API reference, "Reasoning model". Some servers send the same reasoning under
    both names.
    """
    size = max(
        _length(getattr(delta, "reasoning_content", None)),
        _length(getattr(delta, "reasoning", None)),
    )
    size += _length(getattr(delta, "refusal", None))
    function = getattr(delta, "function_call", None)
    if function is not None:
        size += _length(get(function, "arguments"))
    for call in delta.tool_calls or ():
        function = get(call, "function")
        if function is not None:
            size += _length(get(function, "arguments"))
        custom = get(call, "custom")
        if custom is not None:
            size += _length(get(custom, "input"))
    return size


def _length(text: object) -> int:
    return len(text) if isinstance(text, str) else 0


class CompletionsParser(ChatParser):
    """A stream of legacy completions. Only the place of the text differs from a chat's."""

    def _size(self, choice: Any) -> int:
        return _length(choice.text)
