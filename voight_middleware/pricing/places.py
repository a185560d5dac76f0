"""Regions and platforms with prices of their own, and how to recognize their calls."""

from __future__ import annotations

import re

from voight_middleware.records.call import Call

_REGIONAL = re.compile(
    r"[\w-]+\.api\.(openai\.com|x\.ai)|[\w-]+-aiplatform\.googleapis\.com|aiplatform\.[\w-]+\.rep\.googleapis\.com"
)
"""
Hosts with a premium over the list price.

Sources: OpenAI, "Data residency"; xAI, "Regional endpoints"; Anthropic, "Claude on Vertex AI",
global and regional endpoints.
"""
_BEDROCK_REGION = re.compile(r"\.(?P<region>[a-z]{2}(?:-[a-z]+)+-\d)\.(?:amazonaws\.com|api\.aws)")
_PROFILE = re.compile(
    r"(?:^|/)(?P<place>global|us-gov|us|eu|apac|au|jp|in|ca|sa|mx)\.(?=[a-z0-9-]+\.)"
)
"""
The region of a cross-region inference profile.

Source: Amazon Bedrock user guide, "Supported regions and models for inference profiles".
"""
_OTHER_ON_VERTEX = re.compile(r"gemini-(?:1|2\.0|pro)")
"""
Models whose price on Vertex AI differs from the listed one of the Gemini API. Source: Vertex AI
pricing.
"""


def place_doubt(call: Call, ref: str, listed: str) -> str | None:
    """
    Return why the list price may not apply to the call's region or platform. Return None if it
    applies.

    Args:
        call: The call.
        ref: The name of the model, in lower case.
        listed: The listed model whose price is used.
    """
    host = call.host or ""
    if _REGIONAL.search(host):
        return "a regional host: its premium is not in the price data"
    if call.provider == "vertex" and _OTHER_ON_VERTEX.match(ref):
        return (
            f"{ref!r} is priced as on the Gemini API: its price on Vertex AI is not in the price "
            "data"
        )
    if call.provider in ("bedrock", "aws"):
        return _bedrock_doubt(host, ref, listed)
    return None


def _bedrock_doubt(host: str, ref: str, listed: str) -> str | None:
    """
    Return why a Bedrock price may be that of another region. Listed prices without a region are for
    the United States.

    Source: Amazon Bedrock pricing, by region.
    """
    profile = _PROFILE.search(ref)
    place = None if profile is None else profile["place"]
    if listed.startswith(("global.", "regional.")):
        return (
            f"a price for {listed.partition('.')[0]} inference is used"
            if listed.startswith("global.") and place != "global"
            else None
        )
    if place is None and (region := _BEDROCK_REGION.search(host)) is not None:
        place = region["region"].rpartition("-")[0]
        place = "us" if place in ("us-east", "us-west") else place
    return (
        None
        if place in (None, "us")
        else f"the price of the United States is used: that of {place!r} is not in the price data"
    )
