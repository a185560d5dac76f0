"""The terms of a call as reported by the provider: tier, batch, speed, region, size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from voight_middleware.pricing.rules import STANDARD, Terms
from voight_middleware.records.call import Call

DEFAULT_SIZE = "1024x1024"
"""The default size of a dall-e image. Source: OpenAI API reference, "Create image", ``size``."""

_TRAFFIC = {
    **dict.fromkeys((0, 1, "TRAFFIC_TYPE_UNSPECIFIED", "ON_DEMAND")),
    2: "provisioned_throughput",
    "PROVISIONED_THROUGHPUT": "provisioned_throughput",
    "ON_DEMAND_FLEX": "flex",
    "ON_DEMAND_PRIORITY": "priority",
}
"""
Tiers of Vertex AI by ``usageMetadata.trafficType``, as a name or an enum number.

Source: Vertex AI API reference, "GenerateContentResponse.UsageMetadata", TrafficType.
"""
_HOURLY = re.compile(r"(?:^|[:/])(provisioned-model|imported-model)/")


def terms_of(call: Call, raw: Mapping[str, Any]) -> Terms:
    """
    Return the terms of a call, and set its ``service_tier``.

    Args:
        call: The call. Its own ``service_tier`` wins over that of the usage.
        raw: The provider's usage JSON.
    """
    get = raw.get
    if call.service_tier is None:
        call.service_tier = _tier(raw)
    tier, batch = call.service_tier, call.batch
    if tier == "batch":  # Anthropic's usage reports the batch rate as a tier
        tier, batch = None, True
    speed, geo = get("speed"), get("inference_geo")
    if call.endpoint == "images":
        return Terms(
            tier,
            batch,
            _text(speed),
            _text(geo),
            _text(get("size")) or DEFAULT_SIZE,
            _text(get("quality")),
        )
    size = get("size") or get("search_context_size")
    if not batch and speed is None and geo is None and size is None:
        return STANDARD if tier is None or tier == "default" else Terms(tier)
    return Terms(tier, batch, _text(speed), _text(geo), _text(size))


def billed_by_the_hour(call: Call) -> str | None:
    """
    Return the kind of resource if the call is billed by time instead of tokens. Return None for
    other calls.

    Source: Amazon Bedrock pricing, "Provisioned Throughput" and "Custom Model Import": model units,
    billed by the hour or the minute.
    """
    match = _HOURLY.search(call.requested_model or "")
    return None if match is None else match[1]


def _tier(raw: Mapping[str, Any]) -> str | None:
    """
    Return the tier in a usage object.

    Sources: OpenAI and Anthropic, ``service_tier``; Gemini API reference, "UsageMetadata",
    ``serviceTier``; Vertex AI, ``trafficType``.
    """
    tier = _text(raw.get("service_tier"))
    if tier is not None:
        return tier
    tier = raw.get("serviceTier")
    if isinstance(tier, Mapping):
        tier = tier.get("type")
    if tier is not None and not isinstance(tier, bool):
        name = str(tier).lower().removeprefix("service_tier_")
        return None if name in ("unspecified", "0", "") else name
    traffic = raw.get("trafficType")
    if traffic is None or not isinstance(traffic, int | str):
        return None
    return _TRAFFIC.get(traffic, f"traffic type {traffic}")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
