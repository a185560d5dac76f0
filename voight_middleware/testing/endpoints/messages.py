"""Anthropic's messages, and their token counts."""

from __future__ import annotations

import uuid

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints.response import (
    EndpointRequest,
    EndpointResponse,
    need,
    one_line,
    present,
    reported,
    schema,
    stream,
)
from voight_middleware.testing.fake_data import FakeResponse, Json

FIELD_REQUIRED = "{}: Field required"


def create(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/messages``."""
    body, options = request.body, request.options
    need(body, "model", "max_tokens", "messages", message=FIELD_REQUIRED)
    made = FakeResponse(
        body,
        schema(body, "output_config", "format") or schema(body, "output_format"),
        body["max_tokens"],
    )
    usage = reported(options, made.anthropic_usage)
    pieces = made.pieces(options.chunks)
    stop_reason = "max_tokens" if made.cut_short else "end_turn"
    message: Json = {
        "model": made.model,
        "id": f"msg_01{uuid.uuid4().hex[:22]}",
        "type": "message",
        "role": "assistant",
    }
    if not body.get("stream"):
        content = [{"type": "text", "text": "".join(pieces)}]
        return one_line(
            {
                **message,
                "content": content,
                "stop_reason": stop_reason,
                "stop_sequence": None,
                **present(usage),
            },
            Charge(usage),
        )

    first, final = usage, usage
    # the first output count is a placeholder; the last counts are cumulative, and have fewer fields
    if isinstance(usage, dict):
        first = {
            **{
                key: value
                for key, value in usage.items()
                if key not in ("iterations", "server_tool_use")
            },
            "output_tokens": 3,
        }
        final = {
            key: value
            for key, value in usage.items()
            if key not in ("cache_creation", "service_tier", "inference_geo", "speed")
        }
    events: list[Json] = [
        {
            "type": "message_start",
            "message": {
                **message,
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                **present(first),
            },
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *(
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": piece},
            }
            for piece in pieces
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": stop_reason, "stop_sequence": None},
            **present(final),
        },
        {"type": "message_stop"},
    ]
    return stream(events, Charge(usage), complete_at=-1 if usage is None else -2)


def count_tokens(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/messages/count_tokens``: free."""
    need(request.body, "model", "messages", message=FIELD_REQUIRED)
    return one_line({"input_tokens": FakeResponse(request.body, None, None).input_tokens})
