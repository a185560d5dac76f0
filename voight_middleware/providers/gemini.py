"""
Parsers of Gemini's ``generateContent``, on Google's own API and on Vertex AI.

Source of the shapes: Gemini API reference (GenerateContentResponse, UsageMetadata); "Grounding with
Google Search", pricing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from voight_middleware.diagnostics import report_internal_error
from voight_middleware.providers.base import (
    NULL,
    Endpoint,
    ResponseSummary,
    StreamParser,
    failure_of,
    text_or_none,
    usage_json,
)
from voight_middleware.providers.finish_reasons import in_order, note_reasons


class _Grounding(msgspec.Struct, rename="camel"):
    web_search_queries: list[str] | None = None


class _Candidate(msgspec.Struct, rename="camel"):
    grounding_metadata: _Grounding | None = None
    finish_reason: Any = None
    index: Any = None


class _Content(msgspec.Struct, rename="camel"):
    response_id: str | None = None
    model_version: str | None = None
    usage_metadata: msgspec.Raw = NULL
    candidates: list[_Candidate] | None = None
    error: msgspec.Raw = NULL


_decode = msgspec.json.Decoder(_Content).decode


def parse_content(body: bytes) -> ResponseSummary:
    """Read a whole response. Grounding is billed a fee per search, which the usage omits."""
    content = _decode(body)
    groundings = [candidate.grounding_metadata for candidate in content.candidates or ()]
    searches = sum(
        len(grounding.web_search_queries or ()) for grounding in groundings if grounding is not None
    )
    tools = {"web_search": searches} if searches else None
    reasons: dict[int, str | None] = {}
    note_reasons(reasons, content.candidates or ())
    identity, model = text_or_none(content.response_id), text_or_none(content.model_version)
    failure = failure_of(content.error)
    return ResponseSummary(
        identity,
        model,
        None,
        content.usage_metadata,
        tools,
        failure=failure,
        finish_reasons=in_order(reasons),
    )


class ContentParser(StreamParser):
    """A stream of partial responses. Each carries the usage so far."""

    def __init__(self) -> None:
        super().__init__()
        self._last: Any = None
        self._usage: Any = None
        self._reasons: dict[int, str | None] = {}
        self._searches = 0

    def feed(self, event: Any) -> None:
        try:
            self._last = event
            if event.usageMetadata is not None:
                self._usage = event.usageMetadata
            if event.promptFeedback is not None and event.promptFeedback.blockReason is not None:
                self.done = True
            for candidate in event.candidates or ():
                if candidate.finishReason is not None:
                    self.done = True
                    note_reasons(self._reasons, event.candidates, "finishReason")
                if candidate.groundingMetadata is not None:
                    self._searches = max(
                        self._searches, len(candidate.groundingMetadata.webSearchQueries or ())
                    )
                if candidate.content is not None:
                    self._characters += sum(
                        len(part.text) for part in candidate.content.parts or () if part.text
                    )
        except Exception as error:
            report_internal_error(error)

    def summary(self) -> ResponseSummary:
        last = self._last
        if last is None:
            return ResponseSummary()
        usage = NULL if self._usage is None else usage_json(self._usage)
        tools = {"web_search": self._searches} if self._searches else None
        identity, model = text_or_none(last.responseId), text_or_none(last.modelVersion)
        return ResponseSummary(
            identity, model, None, usage, tools, finish_reasons=in_order(self._reasons)
        )

    def estimated_output(self) -> int | None:
        if self._usage is not None and self._usage.candidatesTokenCount is not None:
            return None
        return self._tokens_of_text()


def prompt_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the prompt of a request, by the names of other providers."""
    return {
        "input": body.get("contents"),
        "system": body.get("systemInstruction") or body.get("system_instruction"),
        "tools": body.get("tools"),
    }


CONTENT = Endpoint(name="generate_content", parse=parse_content, stream_parser=ContentParser)
