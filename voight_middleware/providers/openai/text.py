"""
Parsers of OpenAI's text endpoints, and the table of all its endpoints.

Source of the shapes: OpenAI API reference (chat completions, completions, responses, embeddings),
and recorded responses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from voight_middleware.diagnostics import report_internal_error
from voight_middleware.providers.base import (
    NULL,
    Endpoint,
    ResponseSummary,
    Routes,
    StreamParser,
    failure_of,
    is_null,
    parse_response,
    text_or_none,
    usage_json,
    with_usage,
)
from voight_middleware.providers.finish_reasons import only_reason
from voight_middleware.providers.openai import jobs, media
from voight_middleware.providers.openai.streams import ChatParser, CompletionsParser, weight


class _Item(msgspec.Struct):
    type: str = ""
    action: msgspec.Raw = NULL


class _Response(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    service_tier: str | None = None
    usage: msgspec.Raw = NULL
    output: list[_Item] = []
    status: str | None = None
    error: msgspec.Raw = NULL
    incomplete_details: msgspec.Raw = NULL
    background: bool | None = None
    created_at: float | None = None
    tool_usage: msgspec.Raw = NULL
    tools: msgspec.Raw = NULL


_read_responses_body = msgspec.json.Decoder(_Response).decode

_TOOL_ITEMS = {
    "web_search_call": "web_search",
    "file_search_call": "file_search",
    "code_interpreter_call": "code_interpreter",
    "image_generation_call": "image_generation",
}
_FREE_ACTIONS = frozenset({"open_page", "find_in_page"})
"""
Actions of a web search that are free.

Source: OpenAI, "Web search", output and citations: only ``search`` incurs a tool call cost.
"""
_CALLS_BACK = ("function_call", "custom_tool_call")
_UNFINISHED = ("queued", "in_progress")
_FAILED = ("failed", "cancelled")


def parse_responses(body: bytes) -> ResponseSummary:
    """Read a whole response, or one that is only queued."""
    try:
        response = _read_responses_body(body)
    except msgspec.ValidationError:
        return parse_response(body)
    kinds = [_billed_kind(item.type, item.action) for item in response.output]
    details = (
        None
        if response.incomplete_details is NULL
        else msgspec.json.decode(response.incomplete_details)
    )
    reasons = _reasons(
        response.status, details.get("reason") if isinstance(details, dict) else None, kinds
    )
    summary = ResponseSummary(
        response.id,
        response.model,
        response.service_tier,
        response.usage,
        _tool_calls(kinds),
        finish_reasons=reasons,
    )
    summary.failure = (
        f"response.{response.status}" if response.status in _FAILED else failure_of(response.error)
    )
    if response.tool_usage is not NULL and not is_null(response.tool_usage):
        _add_tool_usage(
            summary, msgspec.json.decode(response.tool_usage), msgspec.json.decode(response.tools)
        )
    if response.background or response.status in _UNFINISHED:
        _make_job(summary, response.status, response.created_at)
    return summary


def _make_job(summary: ResponseSummary, status: object, created_at: object) -> None:
    """Make a background response a job: it is complete when retrieved, maybe several times."""
    summary.job = summary.id
    summary.created_at = int(created_at) if isinstance(created_at, int | float) else None
    summary.failure = "response.failed" if status == "failed" else None


def _add_tool_usage(summary: ResponseSummary, tool_usage: Any, tools: Any) -> None:
    """
    Add the usage of hosted tools, which is billed beside ``usage``.

    Web searches are then counted here, not in the output, which contains discounted ones too.

    Source: OpenAI API reference, "The response object", ``tool_usage``.
    """
    if not isinstance(tool_usage, dict) or is_null(summary.usage):
        return
    billed: dict[str, Any] = {}
    counted: set[str] = set()
    searches, images = tool_usage.get("web_search"), tool_usage.get("image_gen")
    if "web_search" in tool_usage:
        counted.add("web_search")
    if isinstance(searches, dict) and searches.get("num_requests"):
        billed["web_search"] = searches
    if isinstance(images, dict) and any(
        images.get(name) for name in ("total_tokens", "input_tokens", "output_tokens")
    ):
        counted.add("image_generation")
        models = [
            tool.get("model")
            for tool in tools or ()
            if isinstance(tool, dict) and tool.get("type") == "image_generation"
        ]
        billed["image_gen"] = {**images, "model": next(iter(models), None)}
    if summary.tool_calls is not None:
        summary.tool_calls = {
            name: count for name, count in summary.tool_calls.items() if name not in counted
        } or None
    if billed:
        summary.usage = with_usage(summary.usage, tool_usage=billed)


def _reasons(status: object, incomplete: object, kinds: Sequence[object]) -> tuple[str, ...] | None:
    """
    Return why a response ended. It reports a reason only if it is incomplete.

    The other reasons are the words of OpenTelemetry's own instrumentation. A response gets one, as
    it is one generation.

    Source: opentelemetry-python-genai, ``opentelemetry-instrumentation-genai-openai``,
    ``response_extractors.extract_finish_reasons``.
    """
    if incomplete is not None:
        return only_reason(incomplete)
    if status == "completed":
        return ("tool_calls",) if any(kind in kinds for kind in _CALLS_BACK) else ("stop",)
    return (
        ("error",)
        if status in ("failed", "cancelled")
        else ("incomplete",)
        if status == "incomplete"
        else None
    )


def _billed_kind(kind: Any, action: Any) -> Any:
    """Return the type of an item of the output; None for a web search that only opens a page."""
    if kind != "web_search_call" or action is None or action is NULL:
        return kind
    decoded = msgspec.json.decode(action) if isinstance(action, msgspec.Raw) else action
    name = decoded.get("type") if isinstance(decoded, Mapping) else getattr(decoded, "type", None)
    return None if isinstance(name, str) and name in _FREE_ACTIONS else kind


def _tool_calls(types: Iterable[Any]) -> dict[str, int] | None:
    """Count the tools with a fee per call, which ``usage`` does not contain."""
    counts: dict[str, int] = {}
    for kind in types:
        tool = _TOOL_ITEMS.get(kind)
        if tool is not None:
            counts[tool] = counts.get(tool, 0) + 1
    return counts or None


class ResponsesParser(StreamParser):
    """A stream of Responses events. The terminal one carries the whole response with its usage."""

    _TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed"})

    def __init__(self) -> None:
        super().__init__()
        self._response: Any = None

    def feed(self, event: Any) -> None:
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
            elif kind.endswith(".delta") and kind != "response.audio.delta":
                # tool arguments, reasoning, refusals
                self._characters += len(event.delta)
        except Exception as error:
            report_internal_error(error)

    def summary(self) -> ResponseSummary:
        response = self._response
        if response is None:
            return ResponseSummary()
        usage = getattr(response, "usage", None)
        kinds = [
            _billed_kind(getattr(item, "type", None), getattr(item, "action", None))
            for item in getattr(response, "output", None) or ()
        ]
        reasons = _reasons(
            getattr(response, "status", None),
            getattr(getattr(response, "incomplete_details", None), "reason", None),
            kinds,
        )
        identity, model, tier = (
            text_or_none(getattr(response, name, None)) for name in ("id", "model", "service_tier")
        )
        summary = ResponseSummary(
            identity,
            model,
            tier,
            usage_json(usage) if weight(usage) else NULL,
            _tool_calls(kinds),
            finish_reasons=reasons,
        )
        tool_usage = getattr(response, "tool_usage", None)
        if tool_usage is not None:
            _add_tool_usage(
                summary,
                plain(tool_usage),
                [plain(tool) for tool in getattr(response, "tools", None) or ()],
            )
        if getattr(response, "background", None):
            _make_job(
                summary, getattr(response, "status", None), getattr(response, "created_at", None)
            )
        return summary

    def estimated_output(self) -> int | None:
        return None if weight(getattr(self._response, "usage", None)) else self._tokens_of_text()


def plain(model: Any) -> Any:
    """Return an SDK model as decoded JSON."""
    return msgspec.json.decode(usage_json(model))


def _read_batch_line(line: bytes) -> ResponseSummary | None:
    return jobs.parse_line(line, {"response": parse_responses, "list": parse_response})


_CHAT = Endpoint(name="chat", parse=parse_response, stream_parser=ChatParser, asks_for_usage=True)
_RESPONSES = Endpoint(
    name="responses", parse=parse_responses, stream_parser=ResponsesParser, job_phase="submit"
)
_STORED_RESPONSE = Endpoint(
    name="responses", parse=parse_responses, stream_parser=ResponsesParser, job_phase="poll"
)
_FREE = Endpoint(name="count_tokens", parse=parse_response)

ROUTES = Routes(
    {
        "/chat/completions": _CHAT,
        "/responses": _RESPONSES,
        "/embeddings": Endpoint(name="embeddings", parse=parse_response),
        "/completions": Endpoint(
            name="completions",
            parse=parse_response,
            stream_parser=CompletionsParser,
            asks_for_usage=True,
        ),
        "/responses/compact": Endpoint(name="compact", parse=parse_response),
        "/responses/input_tokens": _FREE,
        "/decisions": Endpoint(name="decisions", parse=parse_responses),
        "/moderations": Endpoint(name="moderations", parse=parse_response),
        **media.POSTS,
        **jobs.POSTS,
    },
    [
        ("GET", r"/responses/[^/]+", _STORED_RESPONSE),
        ("POST", r"/responses/[^/]+/cancel", _STORED_RESPONSE),
        *media.PATTERNS,
        *jobs.PATTERNS,
        ("GET", r"/files/[^/]+/content", Endpoint(name="batch", parse_line=_read_batch_line)),
    ],
    prefix="/v1",
)
