"""Google's Gemini API: generated content, whole, as events or as a JSON array that grows."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints.response import EVENTS, Answer, Asked, need, present, reported
from voight_middleware.testing.fake_data import FakeAnswer, Json, hexadecimal

_THINKS = re.compile(r"gemini-(2\.5|[3-9])")


def generate(asked: Asked) -> Answer:
    """``POST /v1beta/models/{model}:generateContent``."""
    (*_, whole), bill = _chunks(asked, 1)
    return Answer([msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"], [bill])


def stream(asked: Asked) -> Answer:
    """``POST /v1beta/models/{model}:streamGenerateContent``: with ``?alt=sse`` as events, else as a JSON array."""
    chunks, bill = _chunks(asked, asked.options.chunks)
    encoded = [msgspec.json.encode(chunk) for chunk in chunks]
    if asked.query.get("alt") == "sse":
        return Answer([b"data: " + chunk + b"\r\n\r\n" for chunk in encoded], [bill], len(encoded) - 1, EVENTS)
    parts = [(b"," if number else b"[") + chunk + b"\r\n" for number, chunk in enumerate(encoded)]
    return Answer([*parts[:-1], parts[-1] + b"]"], [bill], len(parts) - 1)


def count_tokens(asked: Asked) -> Answer:
    """``POST /v1beta/models/{model}:countTokens``: costs nothing."""
    made = FakeAnswer({"model": asked.ids["model"], **asked.body}, None, None)
    return Answer([msgspec.json.encode({"totalTokens": made.input_tokens})], ())


def _chunks(asked: Asked, number: int) -> tuple[Sequence[Json], Charge]:
    """The answer in so many chunks; the usage of the last one is the final one."""
    body, model = asked.body, asked.ids["model"]
    need(body, "contents", message="* GenerateContentRequest.{}: contents is not specified")
    config = body.get("generationConfig") or {}
    schema = config.get("responseJsonSchema") or config.get("responseSchema")
    made = FakeAnswer({"model": model, **body}, schema, config.get("maxOutputTokens"))
    usage = reported(asked.options, lambda: _usage(made, model))
    first = {name: count for name, count in usage.items() if name.startswith("prompt")} if isinstance(usage, dict) else None
    pieces = made.pieces(number) if number > 1 else ["".join(made.pieces(asked.options.chunks))]
    about = {"modelVersion": model, "responseId": hexadecimal(22)}
    chunks: list[Json] = []
    for index, piece in enumerate(pieces):
        last = index == len(pieces) - 1
        finish = {"finishReason": "MAX_TOKENS" if made.cut_short else "STOP"} if last else {}
        candidate = {"content": {"parts": [{"text": piece}], "role": "model"}, **finish, "index": 0}
        chunks.append({"candidates": [candidate], **present(usage if last else first, "usageMetadata"), **about})
    return chunks, Charge(usage)


def _usage(made: FakeAnswer, model: str) -> Json:
    """The prompt's tokens include cached ones; thoughts are not among the candidates'."""
    cached = made.number("cached", 0, 2) * made.input_tokens // 2 if made.input_tokens >= 1024 else 0
    thoughts = made.number("thoughts", 20, 600) if _THINKS.match(model) and not made.cut_short else 0
    return {
        "promptTokenCount": made.input_tokens,
        "candidatesTokenCount": made.output_tokens,
        "totalTokenCount": made.input_tokens + made.output_tokens + thoughts,
        **({"cachedContentTokenCount": cached} if cached else {}),
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": made.input_tokens}],
        **({"cacheTokensDetails": [{"modality": "TEXT", "tokenCount": cached}]} if cached else {}),
        **({"thoughtsTokenCount": thoughts} if thoughts else {}),
    }
