"""
One call as Voight's event.

Source: Voight's published documentation, "Events API". The fields of ``metadata`` are those of its
Apache-2.0 wrappers ``@voightxyz/sdk`` 0.6.5 and ``@voightxyz/openai`` 0.1.6. ``tokensBreakdown`` is
from the documentation, which recommends it for exact prices. Our own fields are ``callId``,
``attribution``, ``costStatus``, ``costUsd``, ``callOutcome``, ``serviceTier``, ``batch`` and
``estimated``: the API accepts unknown keys.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from voight_middleware.records.call import Call
from voight_middleware.records.money import usd_text
from voight_middleware.records.tag_values import MAX_LENGTH
from voight_middleware.records.usage import Usage

_NAMED = {"user_id": "userId", "plan": "plan", "tenant_id": "tenantId", "release": "release"}


def event(call: Call, agent: str) -> dict[str, Any]:
    """
    Return a call as an event, without prompt, response or error message. ``metadata.callId`` is our
    id of the call.

    ``metadata.costUsd`` is our own cost, a decimal string of US dollars. The server computes its
    own from ``tokensBreakdown``.
    """
    failed = call.outcome != "ok"
    made: dict[str, Any] = {
        "agentId": agent,
        "timestamp": datetime.fromtimestamp(call.occurred_at // 1000 / 1000, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z"),
        "type": "reasoning",
        "outcome": "failed" if failed else "success",
    }
    if call.duration is not None:
        made["durationMs"] = max(0, call.duration // 1000)
    if failed:
        status = f" (HTTP {call.http_status})" if call.http_status is not None else ""
        made["errorMessage"] = f"{call.error or call.outcome}{status}"
    if (model := call.model or call.requested_model) is not None:
        made["model"] = model
    made["metadata"] = _metadata(call)
    return made


def _metadata(call: Call) -> dict[str, Any]:
    tags = call.tags
    named = {
        key: value for name, key in _NAMED.items() if (value := getattr(tags, name)) is not None
    }
    metadata: dict[str, Any] = {
        "callId": call.call_id,
        "privacyLevel": "minimal",
        "source": f"{call.provider}-sdk",
        "streaming": call.streamed,
        "tags": {key: value[:MAX_LENGTH] for key, value in ({**tags.extra, **named}).items()},
        "attribution": call.attribution,
        "costStatus": call.cost_status,
    }
    if call.endpoint == "responses":
        metadata["api"] = "responses"
    optional = {
        "endpoint": tags.route,
        "sessionId": tags.session_id,
        "serviceTier": call.service_tier,
    }
    metadata |= {key: value for key, value in optional.items() if value is not None}
    if call.outcome != "ok":
        metadata["callOutcome"] = call.outcome
    if call.batch:
        metadata["batch"] = True
    if call.estimated:
        metadata["estimated"] = True
    if call.cost_usd is not None:
        metadata["costUsd"] = usd_text(call.cost_usd)
    if call.usage is not None:
        metadata |= _counts(call, call.usage)
    return metadata


def _counts(call: Call, usage: Usage) -> dict[str, Any]:
    """
    Return the token counts. Counts that the provider did not report are omitted.

    ``tokens`` counts like the provider: OpenAI's input includes cached tokens, that of Anthropic
    and Bedrock's Converse does not. ``tokensBreakdown`` adds up.
    """
    base = _sum(usage.input, usage.audio_in, usage.image_in)
    output = usage.output_tokens
    without_cache = call.provider == "anthropic" or call.endpoint in ("messages", "converse")
    counted = base if without_cache else usage.input_tokens
    tokens = {
        "input": counted,
        "output": output,
        "total": _sum(counted, output),
        "cache_read": usage.cache_read_tokens,
        "cache_creation": usage.cache_write_tokens,
        "reasoning": usage.reasoning,
    }
    breakdown = {
        "inputBase": base,
        "cacheCreation": usage.cache_write_tokens,
        "cacheRead": usage.cache_read_tokens,
        "output": output,
    }
    named = {"tokens": tokens, "tokensBreakdown": breakdown}
    known = {
        name: {key: count for key, count in counts.items() if count is not None}
        for name, counts in named.items()
    }
    return {name: counts for name, counts in known.items() if counts}


def _sum(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
