"""Google's Gemini API: generated content, whole, as events or as a streamed JSON array."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints.response import (
    EVENTS,
    EndpointRequest,
    EndpointResponse,
    need,
    present,
    reported,
)
from voight_middleware.testing.fake_data import FakeResponse, Json, hexadecimal

_THINKS = re.compile(r"gemini-(2\.5|[3-9])")


def generate(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1beta/models/{model}:generateContent``."""
    (*_, whole), charge = _chunks(request, 1)
    return EndpointResponse(
        [msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"], [charge]
    )


def stream(request: EndpointRequest) -> EndpointResponse:
    """
    ``POST /v1beta/models/{model}:streamGenerateContent``: events with ``?alt=sse``, else a JSON
    array.
    """
    chunks, charge = _chunks(request, request.options.chunks)
    encoded = [msgspec.json.encode(chunk) for chunk in chunks]
    if request.query.get("alt") == "sse":
        return EndpointResponse(
            [b"data: " + chunk + b"\r\n\r\n" for chunk in encoded],
            [charge],
            len(encoded) - 1,
            EVENTS,
        )
    parts = [(b"," if number else b"[") + chunk + b"\r\n" for number, chunk in enumerate(encoded)]
    return EndpointResponse([*parts[:-1], parts[-1] + b"]"], [charge], len(parts) - 1)


def count_tokens(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1beta/models/{model}:countTokens``: free."""
    made = FakeResponse({"model": request.ids["model"], **request.body}, None, None)
    return EndpointResponse([msgspec.json.encode({"totalTokens": made.input_tokens})], ())


def _chunks(request: EndpointRequest, number: int) -> tuple[Sequence[Json], Charge]:
    """Return the response in *number* chunks. The last chunk has the final usage."""
    body, model = request.body, request.ids["model"]
    need(body, "contents", message="* GenerateContentRequest.{}: contents is not specified")
    config = body.get("generationConfig") or {}
    schema = config.get("responseJsonSchema") or config.get("responseSchema")
    made = FakeResponse({"model": model, **body}, schema, config.get("maxOutputTokens"))
    usage = reported(request.options, lambda: _usage(made, model))
    first = (
        {name: count for name, count in usage.items() if name.startswith("prompt")}
        if isinstance(usage, dict)
        else None
    )
    pieces = made.pieces(number) if number > 1 else ["".join(made.pieces(request.options.chunks))]
    about = {"modelVersion": model, "responseId": hexadecimal(22)}
    chunks: list[Json] = []
    for index, piece in enumerate(pieces):
        last = index == len(pieces) - 1
        finish = {"finishReason": "MAX_TOKENS" if made.cut_short else "STOP"} if last else {}
        candidate = {"content": {"parts": [{"text": piece}], "role": "model"}, **finish, "index": 0}
        chunks.append(
            {
                "candidates": [candidate],
                **present(usage if last else first, "usageMetadata"),
                **about,
            }
        )
    return chunks, Charge(usage)


def _usage(made: FakeResponse, model: str) -> Json:
    """Return the usage. Prompt tokens include cached ones; candidate tokens exclude thoughts."""
    cached = (
        made.number("cached", 0, 2) * made.input_tokens // 2 if made.input_tokens >= 1024 else 0
    )
    thoughts = (
        made.number("thoughts", 20, 600) if _THINKS.match(model) and not made.cut_short else 0
    )
    return {
        "promptTokenCount": made.input_tokens,
        "candidatesTokenCount": made.output_tokens,
        "totalTokenCount": made.input_tokens + made.output_tokens + thoughts,
        **({"cachedContentTokenCount": cached} if cached else {}),
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": made.input_tokens}],
        **({"cacheTokensDetails": [{"modality": "TEXT", "tokenCount": cached}]} if cached else {}),
        **({"thoughtsTokenCount": thoughts} if thoughts else {}),
    }
