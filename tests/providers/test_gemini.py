"""The readers of Gemini's answers."""

import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from voight_middleware import wrap
from voight_middleware.instrumentation.event_formats import Event
from voight_middleware.providers.gemini import ContentParser, parse_content, prompt_of
from voight_middleware.providers.usage_formats import read_usage
from voight_middleware.records.usage import Usage

from ..support.calls import Calls

URL = "https://generativelanguage.googleapis.com/v1beta/models/gemini-3.6-flash"
ASK = {"contents": [{"parts": [{"text": "Where?"}]}], "systemInstruction": {"parts": [{"text": "Be short."}]}}
USAGE = {"promptTokenCount": 8, "candidatesTokenCount": 53, "thoughtsTokenCount": 725, "totalTokenCount": 786}
COUNTS = Usage(input=8, output=778, reasoning=725)


def answer(*parts: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    candidate = {"content": {"parts": list(parts), "role": "model"}, **({} if finish is None else {"finishReason": finish})}
    return {"candidates": [candidate], "modelVersion": "gemini-3.6-flash", "responseId": "g_1", **more}


def read(*chunks: dict[str, Any]) -> ContentParser:
    """A reader that has seen a stream."""
    reader = ContentParser()
    for chunk in chunks:
        assert not reader.feed(json.loads(json.dumps(chunk), object_hook=Event))
    return reader


def served(body: Any) -> httpx.Client:
    """A metered client, all of whose requests are answered with *body*."""
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=body))
    return wrap(httpx.Client(transport=transport))


def test_a_whole_answer() -> None:
    read = parse_content(json.dumps(answer({"text": "Oslo"}, finish="STOP", usageMetadata=USAGE)).encode())

    assert (read.id, read.model, read.service_tier, read.tool_calls) == ("g_1", "gemini-3.6-flash", None, None)
    assert json.loads(bytes(read.usage)) == USAGE


def test_an_answer_without_anything() -> None:
    """A blocked prompt has no candidates."""
    read = parse_content(b'{"promptFeedback": {"blockReason": "SAFETY"}, "candidates": null}')
    assert (read.id, read.model, bytes(read.usage)) == (None, None, b"null")
    with pytest.raises(msgspec.DecodeError):
        parse_content(b"[]")


def test_the_usage_of_a_stream_is_the_last_that_was_told() -> None:
    """Every chunk carries the counts so far."""
    first = answer({"text": "Os"}, usageMetadata={"promptTokenCount": 8, "totalTokenCount": 8})
    reader = read(first, answer({"text": "lo"}, finish="STOP", usageMetadata=USAGE))

    assert reader.done
    assert json.loads(bytes(reader.summary().usage)) == USAGE
    assert reader.estimated_output() is None


def test_a_stream_that_is_broken_off_is_estimated_from_its_text() -> None:
    """Where the chunks so far had no count of the output; the input is exact."""
    reader = read(answer({"text": "Oslo is a"}, {"functionCall": {}}, usageMetadata={"promptTokenCount": 8}))

    assert not reader.done
    assert reader.estimated_output() == 3
    assert json.loads(bytes(reader.summary().usage)) == {"promptTokenCount": 8}


def test_a_stream_that_tells_its_output_needs_no_estimate() -> None:
    reader = read(answer({"text": "Oslo"}, usageMetadata={"promptTokenCount": 8, "candidatesTokenCount": 2}))
    assert reader.estimated_output() is None


def test_a_blocked_prompt_ends_a_stream() -> None:
    assert read({"promptFeedback": {"blockReason": "SAFETY"}}).done
    assert not read({"promptFeedback": {}}).done
    assert read().summary() == parse_content(b"{}")


def test_an_odd_chunk_is_let_pass() -> None:
    reader = read({"candidates": [{"content": {"role": "model"}}], "usageMetadata": None}, {})
    assert not reader.done
    assert reader.estimated_output() == 0


def test_what_of_a_request_is_read() -> None:
    """For an estimate of its input."""
    assert prompt_of(ASK) == {"input": ASK["contents"], "system": ASK["systemInstruction"], "tools": None}


@pytest.mark.parametrize("streamed", [False, True])
def test_searches_are_counted_and_priced(streamed: bool, calls: Calls) -> None:
    """Grounding is billed by the query, beside the tokens."""
    grounded = answer({"text": "Oslo"}, finish="STOP", usageMetadata=USAGE)
    grounded["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["where", "where else"]}
    action = "streamGenerateContent" if streamed else "generateContent"
    served([grounded] if streamed else grounded).post(f"{URL}:{action}", json=ASK)

    call = calls.one()
    assert call.usage == msgspec.structs.replace(COUNTS, tools={"web_search": 2})
    assert call.cost_status == "priced"
    assert "web_search" in (call.price or "")


def test_the_model_of_the_url_is_the_one_without_a_version_in_the_answer(calls: Calls) -> None:
    body = answer({"text": "Oslo"}, usageMetadata=USAGE)
    del body["modelVersion"]
    served(body).post(f"{URL}:generateContent", json=ASK)

    call = calls.one()
    assert (call.requested_model, call.model, call.usage) == ("gemini-3.6-flash", None, COUNTS)
    assert call.cost_status == "priced"


def test_recorded_usages_add_up(shared: Path) -> None:
    """Of several hundred recorded answers, as the makers of the price list read them."""
    place = shared / "cassettes/pydantic/genai-prices/tests/dataset/usages.json"
    rows = [row for row in json.loads(place.read_text()) if "usageMetadata" in row["body"]]
    assert len(rows) > 400
    for row in rows:
        read = parse_content(json.dumps(row["body"]).encode())
        (part,) = read_usage("generate_content", json.loads(bytes(read.usage)))
        expected = next(one["usage"] for one in row["extracted"])
        assert read.model == row["body"].get("modelVersion")
        assert (part.usage.input_tokens or 0) == expected.get("input_tokens", 0), row
        assert (part.usage.output_tokens or 0) == expected.get("output_tokens", 0), row
        assert (part.usage.cache_read_tokens or 0) == expected.get("cache_read_tokens", 0), row
        assert (part.usage.image_out or 0) == expected.get("output_image_tokens", 0), row
