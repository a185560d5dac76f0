"""The loopback provider's Gemini API, as it comes over the wire."""

import json
from typing import Any

import httpx
import pytest

from voight_middleware.testing.accounting import Count
from voight_middleware.testing.provider import LoopbackProvider

from .conftest import total, wish

ASK: Any = {"contents": [{"role": "user", "parts": [{"text": "[user:u_1] Why is the sky blue?"}]}]}


def post(provider: LoopbackProvider, method: str, body: Any = None, model: str = "gemini-2.5-flash", **faults: Any) -> httpx.Response:
    url = f"{provider.url}/v1beta/models/{model}:{method}"
    return httpx.post(url, json=ASK | (body or {}), headers=wish(**faults), trust_env=False)


def counted(usage: Any, **others: int) -> Count:
    """The count that this usage is: thoughts are output, too."""
    output, cached = usage["candidatesTokenCount"] + usage.get("thoughtsTokenCount", 0), usage.get("cachedContentTokenCount", 0)
    return Count(input_tokens=usage["promptTokenCount"], cached_tokens=cached, output_tokens=output, **others)


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk["candidates"][0]["content"]["parts"][0]["text"] for chunk in chunks)


@pytest.mark.slow
def test_generate(provider: LoopbackProvider) -> None:
    """An answer has a candidate, its model and a usage whose total is that of its parts; under /v1 it is the same."""
    made = post(provider, "generateContent").json()
    usage = made["usageMetadata"]

    assert (made["modelVersion"], made["candidates"][0]["finishReason"]) == ("gemini-2.5-flash", "STOP")
    assert usage["totalTokenCount"] == usage["promptTokenCount"] + usage["candidatesTokenCount"] + usage["thoughtsTokenCount"]
    assert provider.counts().by_user == {"u_1": counted(usage, calls=1, completed=1)}
    assert "thoughtsTokenCount" not in post(provider, "generateContent", model="gemini-2.0-flash").json()["usageMetadata"]
    newer = httpx.post(f"{provider.url}/v1/models/gemini-2.5-flash:generateContent", json=ASK, trust_env=False)
    assert newer.json()["usageMetadata"] == usage


@pytest.mark.slow
def test_streams(provider: LoopbackProvider) -> None:
    """As events and as an array the chunks are the same: the prompt's count at once, all counts in the last one."""
    whole = post(provider, "generateContent").json()
    provider.reset()
    sse, array = post(provider, "streamGenerateContent?alt=sse", chunks=3), post(provider, "streamGenerateContent", chunks=3)
    events = [json.loads(line.removeprefix("data: ")) for line in sse.text.split("\r\n\r\n") if line]

    assert (sse.headers["content-type"], array.headers["content-type"]) == ("text/event-stream; charset=utf-8", "application/json")
    for chunks in (events, array.json()):
        assert len(chunks) == 3
        assert text_of(chunks).startswith(text_of([whole])[:10])
        assert "candidatesTokenCount" not in chunks[0]["usageMetadata"]
        assert chunks[0]["usageMetadata"]["promptTokenCount"] == chunks[-1]["usageMetadata"]["promptTokenCount"]
        assert chunks[-1]["usageMetadata"] == whole["usageMetadata"]
        assert chunks[-1]["candidates"][0]["finishReason"] == "STOP"
    assert total(provider).output_tokens == 2 * counted(whole["usageMetadata"]).output_tokens


@pytest.mark.slow
@pytest.mark.parametrize("method", ["streamGenerateContent", "streamGenerateContent?alt=sse"])
def test_a_cut_stream(method: str, provider: LoopbackProvider) -> None:
    """A stream that is cut, or ends too early, is broken."""
    with pytest.raises(httpx.RemoteProtocolError):
        post(provider, method, cut_after=2)
    post(provider, method, end_after=2)
    assert total(provider) == Count(calls=2, broken=2)


@pytest.mark.slow
def test_limits_and_schemas(provider: LoopbackProvider) -> None:
    """A limit cuts the answer short; a schema, in Google's capitals, is answered with JSON that fits it."""
    limited = post(provider, "generateContent", {"generationConfig": {"maxOutputTokens": 5}}).json()
    schema = {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}
    shaped = post(provider, "generateContent", {"generationConfig": {"responseSchema": schema}}).json()

    assert (limited["candidates"][0]["finishReason"], limited["usageMetadata"]["candidatesTokenCount"]) == ("MAX_TOKENS", 5)
    assert json.loads(text_of([shaped])).keys() == {"city"}


@pytest.mark.slow
def test_count_tokens_and_errors(provider: LoopbackProvider) -> None:
    """Counting costs nothing; an error has Google's shape; a wanted usage is reported, or none."""
    tokens = post(provider, "countTokens").json()["totalTokens"]
    assert total(provider) == Count(calls=1, completed=1)
    assert post(provider, "generateContent").json()["usageMetadata"]["promptTokenCount"] == tokens
    error = post(provider, "generateContent", status=429)
    assert (error.status_code, error.json()["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert post(provider, "generateContent", {"contents": ""}).json()["error"]["status"] == "INVALID_ARGUMENT"
    assert post(provider, "generateContent", usage='{"promptTokenCount":7}').json()["usageMetadata"] == {"promptTokenCount": 7}
    assert "usageMetadata" not in post(provider, "generateContent", no_usage=1).json()
