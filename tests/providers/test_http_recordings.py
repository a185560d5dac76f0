"""Raw HTTP: recorded answers of the real providers, and those of Bedrock."""

from types import SimpleNamespace
from typing import Any

import httpx
import httpx2
import pytest

from voight_middleware import wrap
from voight_middleware.instrumentation import http
from voight_middleware.records.usage import Usage

from ..support.calls import Calls
from ..support.memory_provider import (
    JSON,
    Provider,
)
from .raw_http import ANTHROPIC, FRAMED, OPENAI, client_of, raw, sent
from .recordings import SERVED, Exchange, Recording, index, is_exact, load

pytestmark = pytest.mark.slow  # a sweep over many cases

LISTED = [one for one in SERVED if "/threads/" not in one.row["endpoint"]]
PLACES = {"openai": OPENAI, "anthropic": ANTHROPIC, "azure-openai": "https://x.openai.azure.com/openai/v1"}


def place_of(recording: Recording) -> str:
    """Where a request was sent."""
    provider, endpoint = recording.row["provider"], recording.row["endpoint"]
    base = PLACES.get(provider, f"https://{provider.rpartition(':')[2]}")
    return f"{base.removesuffix('/openai/v1')}{endpoint}" if endpoint.startswith("//openai") else f"{base}{endpoint}"


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("recording", LISTED, ids=str)
async def test_a_recorded_answer_is_exact(recording: Recording, calls: Calls) -> None:
    """Sent raw, it has the usage that was recorded; where none was, it is one call all the same."""
    library = httpx if recording.row["index"] % 2 else httpx2
    exchange = load(recording)
    parts = [exchange.body[at : at + 500] for at in range(0, len(exchange.body), 500)]
    provider = Provider()
    provider.answer = lambda path, body: (exchange.status, exchange.headers, parts)
    url = place_of(recording)
    target = http.find("POST", library.URL(url).host, library.URL(url).path)
    assert target is not None

    assert (await sent(wrap(client_of(library, raw(provider, library))), url, exchange.request))[2] == parts

    if recording.row["expected"] is not None:
        is_exact(calls.one(), recording)
    assert (calls.one().endpoint, calls.one().http_status) == (recording.endpoint, 200)
    assert calls.one().outcome in ("ok", "truncated", "error")


# -- Bedrock

RECORDED = [
    one
    for one in index()
    if "/model/" in one.row["endpoint"] and "count-tokens" not in one.row["endpoint"] and one.row["http_status"] == 200
]
EXACT = [one for one in RECORDED if one.row["expected"] is not None]
OWN_COUNTS = {
    "anthropic_invoke.yaml-0": Usage(input=23, output=32),
    "anthropic_invoke_stream.yaml-0": Usage(input=25, output=4),
    "test_bedrock_model_thinking_part_from_other_model.yaml-1": Usage(input=1241, cache_read=0, cache_write=0, output=495),
    "test_bedrock_anthropic_tool_result_followed_by_document_accepted.yaml-0": Usage(input=658, cache_read=0, cache_write=0, output=45),
}
"""Recorded answers that the index has no counts for, as Bedrock itself counted them."""


def replayed(recording: Recording) -> tuple[Any, Exchange, str]:
    exchange = load(recording)
    header = {"x-amzn-bedrock-input-token-count": "23", "x-amzn-bedrock-output-token-count": "32"}  # `load` leaves them out
    framed = recording.row["endpoint"].endswith("stream")
    headers = {**exchange.headers, **header, **(FRAMED if framed else JSON)}
    provider = Provider()
    provider.answer = lambda path, body: (exchange.status, headers, [exchange.body])
    return (
        wrap(client_of(httpx, raw(provider, httpx))),
        exchange,
        f"https://bedrock-runtime.us-east-1.amazonaws.com{recording.row['endpoint']}",
    )


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("recording", EXACT, ids=str)
async def test_a_recorded_answer_of_bedrock_is_exact(recording: Recording, calls: Calls) -> None:
    """The tokens of its own body."""
    client, exchange, url = replayed(recording)
    status, _, parts = await sent(client, url, exchange.request)

    assert (status, parts) == (200, [exchange.body])
    call = calls.one()
    assert (call.provider, call.endpoint) == ("bedrock", "messages")
    is_exact(call, SimpleNamespace(row=recording.row, endpoint="messages", streamed=False))  # type: ignore[arg-type]
    assert call.requested_model == recording.row["endpoint"].split("/")[2].replace("%3A", ":")


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("recording", [one for one in RECORDED if str(one) in OWN_COUNTS], ids=str)
async def test_bedrocks_own_counts_are_used_where_the_body_has_none(recording: Recording, calls: Calls) -> None:
    """From the headers of a whole answer, and the metrics of a stream's last event."""
    client, exchange, url = replayed(recording)
    await sent(client, url, exchange.request)

    assert (calls.one().usage, calls.one().outcome) == (OWN_COUNTS[str(recording)], "ok")


def test_there_are_recordings(shared: Any) -> None:
    assert len(EXACT) == 10
    assert {str(one) for one in RECORDED} >= OWN_COUNTS.keys()
