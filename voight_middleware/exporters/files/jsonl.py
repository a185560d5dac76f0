"""Calls as JSON Lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from voight_middleware.records.call import Call
from voight_middleware.records.money import usd_text

_encode = msgspec.json.Encoder().encode


def lines(calls: Iterable[Call]) -> Iterator[bytes]:
    """Yield each call as a line of JSON in UTF-8, with its line end."""
    for call in calls:
        yield _encode(as_object(call)) + b"\n"


def as_object(call: Call) -> dict[str, Any]:
    """
    Return a call as a JSON object. Durations are in seconds, counts in tokens, and the cost is a
    decimal string of US dollars.
    """
    tags, usage = call.tags, call.usage
    return {
        "call_id": call.call_id,
        "occurred_at": call.time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "user_id": tags.user_id,
        "plan": tags.plan,
        "tenant_id": tags.tenant_id,
        "route": tags.route,
        "release": tags.release,
        "session_id": tags.session_id,
        "tags": dict(tags.extra),
        "provider": call.provider,
        "model": call.model,
        "requested_model": call.requested_model,
        "endpoint": call.endpoint,
        "outcome": call.outcome,
        "attribution": call.attribution,
        "duration_s": _seconds(call.duration),
        "ttft_s": _seconds(call.ttft),
        "attempts": call.attempts,
        "input_tokens": usage and usage.input_tokens,
        "cache_read_tokens": usage and usage.cache_read_tokens,
        "cache_write_tokens": usage and usage.cache_write_tokens,
        "output_tokens": usage and usage.output_tokens,
        "estimated": call.estimated,
        "cost_usd": None if call.cost_usd is None else usd_text(call.cost_usd),
        "cost_status": call.cost_status,
        "cost_reasons": call.cost_reasons,
    }


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1_000_000
