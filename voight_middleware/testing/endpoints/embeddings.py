"""OpenAI's embeddings and moderations."""

from __future__ import annotations

import zlib

import msgspec

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints.response import (
    EndpointRequest,
    EndpointResponse,
    need,
    plain,
    present,
    reported,
)
from voight_middleware.testing.fake_data import SNAPSHOTS, Json, hexadecimal, vector

_CATEGORIES = (
    *(
        "harassment",
        "harassment/threatening",
        "hate",
        "hate/threatening",
        "illicit",
        "illicit/violent",
    ),
    *(
        "self-harm",
        "self-harm/intent",
        "self-harm/instructions",
        "sexual",
        "sexual/minors",
        "violence",
        "violence/graphic",
    ),
)


def embeddings(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/embeddings``."""
    body = request.body
    need(body, "model", "input")
    given = body["input"]
    inputs = (
        given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    )
    tokens = sum(
        len(text) if isinstance(text, list) else len(str(text)) // 4 + 1 for text in inputs
    )
    usage = reported(request.options, lambda: {"prompt_tokens": tokens, "total_tokens": tokens})
    model = str(body["model"])
    dimensions = body.get("dimensions") or (3072 if model == "text-embedding-3-large" else 1536)
    data: list[Json] = []
    for index, text in enumerate(inputs):
        values, encoded = vector(zlib.crc32(msgspec.json.encode(text)) % 64, dimensions)
        data.append(
            {
                "object": "embedding",
                "index": index,
                "embedding": encoded if body.get("encoding_format") == "base64" else values,
            }
        )
    return plain(
        {"object": "list", "data": data, "model": SNAPSHOTS.get(model, model), **present(usage)},
        Charge(usage),
    )


def moderations(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/moderations``: nothing is flagged, and it is free."""
    need(request.body, "input")
    given, model = request.body["input"], request.body.get("model") or "omni-moderation-latest"
    number = len(given) if isinstance(given, list) and isinstance(given[0], str) else 1
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.00001),
        "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
    }
    return plain({"id": f"modr-{hexadecimal(32)}", "model": model, "results": [result] * number})
