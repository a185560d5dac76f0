"""
Parsers of Anthropic's endpoints.

Source of the shapes: Anthropic API reference (Messages, Streaming Messages, Message Batches), and
recorded responses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from voight_middleware.diagnostics import report_internal_error
from voight_middleware.providers.base import (
    NULL,
    Endpoint,
    Job,
    NotBatchOutput,
    ResponseSummary,
    Routes,
    StreamParser,
    parse_response,
    text_or_none,
    usage_json,
)
from voight_middleware.providers.finish_reasons import only_reason

_decode = msgspec.json.Decoder(dict[str, Any]).decode

_TEXT = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


class MessagesParser(StreamParser):
    """
    A stream of message events.

    ``message_start`` carries the input's usage and a placeholder for the output's. The counts of
    ``message_delta`` are cumulative; the input's too if the server ran tools. A count never becomes
    less: some gateways send 0 for a count that they have sent before.

    Source: Anthropic, "Streaming messages", event types: the counts of ``message_delta`` are
    cumulative.
    """

    def __init__(self) -> None:
        super().__init__()
        self._message: Any = None
        self._deltas: list[Any] = []
        self._stop: Any = None

    def feed(self, event: Any) -> None:
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
                self._stop = (
                    getattr(getattr(event, "delta", None), "stop_reason", None) or self._stop
                )
                self._deltas.append(event.usage)
            elif kind == "message_stop":
                self.done = True
            elif kind == "error":
                self.failure = kind
        except Exception as error:
            report_internal_error(error)

    def summary(self) -> ResponseSummary:
        message = self._message
        if message is None:
            return ResponseSummary()
        usage: dict[str, Any] = {}
        start_usage = getattr(message, "usage", None)
        if start_usage is not None:
            usage = _decode(usage_json(start_usage))
        placeholder = usage.pop("output_tokens", None)
        for delta_usage in self._deltas:
            if delta_usage is not None:
                _accumulate(usage, _decode(usage_json(delta_usage)))
        if usage.get("output_tokens") is None and placeholder is not None:
            usage["output_tokens"] = placeholder
        identity, model, tier = (
            text_or_none(value) for value in (message.id, message.model, usage.get("service_tier"))
        )
        raw_usage = msgspec.Raw(msgspec.json.encode(usage)) if usage else NULL
        return ResponseSummary(
            identity, model, tier, raw_usage, finish_reasons=only_reason(self._stop)
        )

    def estimated_output(self) -> int | None:
        if self._message is None or any(
            getattr(usage, "output_tokens", None) is not None for usage in self._deltas
        ):
            return None
        placeholder = getattr(getattr(self._message, "usage", None), "output_tokens", None)
        return max(self._tokens_of_text(), placeholder or 0)


def _accumulate(usage: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Merge later counts into earlier ones, details included. The larger of two counts wins."""
    for key, value in more.items():
        known = usage.get(key)
        if value is None and key in usage:
            continue
        if type(known) is dict and type(value) is dict:
            _accumulate(known, value)
        elif type(known) is int and type(value) is int:
            usage[key] = max(known, value)
        else:
            usage[key] = value


class _Batch(msgspec.Struct):
    id: str


class _Result(msgspec.Struct):
    type: str
    message: msgspec.Raw = NULL


class _Line(msgspec.Struct):
    custom_id: str
    result: _Result


_decode_batch = msgspec.json.Decoder(_Batch).decode
_decode_line = msgspec.json.Decoder(_Line).decode


def _read_batch(body: bytes, request: Mapping[str, Any]) -> Iterable[Job]:
    """Return the batch that was made, with the users that its requests name."""
    parts: dict[str, str] = {}
    for part in request.get("requests") or ():
        if isinstance(part, Mapping) and isinstance(params := part.get("params"), Mapping):
            metadata = params.get("metadata")
            user = text_or_none(metadata.get("user_id")) if isinstance(metadata, Mapping) else None
            if user is not None and isinstance(part.get("custom_id"), str):
                parts[part["custom_id"]] = user
    return [Job(_decode_batch(body).id, parts=parts)]


def _read_batch_line(line: bytes) -> ResponseSummary | None:
    """
    Return one result of a batch.

    Return None for a request that errored, expired or was cancelled, which is not billed.
    """
    try:
        result_line = _decode_line(line)
    except msgspec.DecodeError as error:
        raise NotBatchOutput from error
    if result_line.result.type != "succeeded":
        return None
    summary = parse_response(bytes(result_line.result.message))
    summary.batch_endpoint = "messages"
    summary.job = result_line.custom_id
    return summary


ROUTES = Routes(
    {
        "/v1/messages": Endpoint(
            name="messages", parse=parse_response, stream_parser=MessagesParser
        ),
        "/v1/messages/count_tokens": Endpoint(name="count_tokens", parse=parse_response),
        "/v1/messages/batches": Endpoint(name="batch", parse_jobs=_read_batch, job_phase="submit"),
    },
    [
        (
            "GET",
            r"/v1/messages/batches/[^/]+/results",
            Endpoint(name="batch", parse_line=_read_batch_line),
        )
    ],
)
