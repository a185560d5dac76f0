"""
The usage readers of Anthropic's endpoints.

Source of the shapes: Anthropic API reference (Messages, Streaming Messages, Message Batches), and recorded answers.
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
    parse_response,
    text_or_none,
    usage_json,
)
from voight_middleware.providers.finish_reasons import only_reason

_decode = msgspec.json.Decoder(dict[str, Any]).decode

_TEXT = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


class MessagesParser:
    """
    A stream of message events. ``message_start`` carries the input's usage and a placeholder for the output's; the counts of
    ``message_delta`` are cumulative, the input's too where the server ran tools: a count never becomes less. Some gateways send 0 for
    what they have counted before.

    Source: Anthropic, "Streaming messages", event types: the counts of ``message_delta`` are cumulative.
    """

    def __init__(self) -> None:
        self.done = False
        self.failure: str | None = None
        self._message: Any = None
        self._deltas: list[Any] = []
        self._stop: Any = None
        self._characters = 0

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
                self._stop = getattr(getattr(event, "delta", None), "stop_reason", None) or self._stop
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
        started = getattr(message, "usage", None)
        if started is not None:
            usage = _decode(usage_json(started))
        placeholder = usage.pop("output_tokens", None)
        for part in self._deltas:
            if part is not None:
                _accumulate(usage, _decode(usage_json(part)))
        if usage.get("output_tokens") is None and placeholder is not None:
            usage["output_tokens"] = placeholder
        identity, model, tier = (text_or_none(value) for value in (message.id, message.model, usage.get("service_tier")))
        counted = msgspec.Raw(msgspec.json.encode(usage)) if usage else NULL
        return ResponseSummary(identity, model, tier, counted, finish_reasons=only_reason(self._stop))

    def estimated_output(self) -> int | None:
        if self._message is None or any(getattr(part, "output_tokens", None) is not None for part in self._deltas):
            return None
        placeholder = getattr(getattr(self._message, "usage", None), "output_tokens", None)
        return max((self._characters + 3) // 4, placeholder or 0)


def _accumulate(usage: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Lay later counts over earlier ones: the larger of two holds, in the details too."""
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
    """A batch that was made, and the users that its requests name by themselves."""
    parts: dict[str, str] = {}
    for one in request.get("requests") or ():
        if isinstance(one, Mapping) and isinstance(params := one.get("params"), Mapping):
            metadata = params.get("metadata")
            user = text_or_none(metadata.get("user_id")) if isinstance(metadata, Mapping) else None
            if user is not None and isinstance(one.get("custom_id"), str):
                parts[one["custom_id"]] = user
    return [Job(_decode_batch(body).id, parts=parts)]


def _read_batch_line(line: bytes) -> ResponseSummary | None:
    """One result of a batch; None for a request that errored, expired or was cancelled, which is not billed."""
    try:
        read = _decode_line(line)
    except msgspec.DecodeError as error:
        raise NotBatchOutput from error
    if read.result.type != "succeeded":
        return None
    answer = parse_response(bytes(read.result.message))
    answer.batch_endpoint = "messages"
    answer.job = read.custom_id
    return answer


ROUTES = Routes(
    {
        "/v1/messages": Endpoint(name="messages", parse=parse_response, stream_parser=MessagesParser),
        "/v1/messages/count_tokens": Endpoint(name="count_tokens", parse=parse_response),
        "/v1/messages/batches": Endpoint(name="batch", parse_jobs=_read_batch, job_phase="begins"),
    },
    [("GET", r"/v1/messages/batches/[^/]+/results", Endpoint(name="batch", parse_line=_read_batch_line))],
)
