"""Recorded answers of the real providers, replayed over loopback through the real SDKs."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from voight_middleware import wrap

from ..support.calls import Calls
from ..support.memory_provider import http_library
from .entry_points import CHAT, EMBEDDINGS, MESSAGES, RESPONSES
from .recordings import (
    RECORDINGS,
    SERVED,
    Exchange,
    Recording,
    Replay,
    is_exact,
    load,
)

COUNTED = [one for one in SERVED if one.row["expected"] is not None]
UNCOUNTED = [one for one in SERVED if one.row["expected"] is None]
REFUSED = [one for one in RECORDINGS if one.row["http_status"] >= 400]
ARGUMENTS = {"chat": CHAT, "responses": RESPONSES, "embeddings": EMBEDDINGS, "messages": MESSAGES}


pytestmark = [
    pytest.mark.slow,  # a sweep over many cases
    pytest.mark.usefixtures("shared"),
    pytest.mark.filterwarnings("ignore:The model .* is deprecated:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    """A provider that answers with recordings."""
    server = Replay()
    yield server
    server.close()


@pytest.fixture(scope="module")
def connections() -> Iterator[dict[str, Any]]:
    """One pool of connections for each SDK: making one anew for every recording takes longer than all the rest."""
    pools = {name: http_library(sdk).Client() for name, sdk in (("openai", openai), ("anthropic", anthropic))}
    yield pools
    for pool in pools.values():
        pool.close()


def client_for(recording: Recording, url: str, pools: dict[str, Any]) -> Any:
    """A client of the SDK that speaks the recording's dialect."""
    if recording.endpoint == "messages":
        return anthropic.Anthropic(api_key="k", base_url=url, max_retries=0, http_client=pools["anthropic"])
    return openai.OpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0, http_client=pools["openai"])


def method_of(client: Any, recording: Recording) -> Any:
    """The SDK's method for the recording's endpoint."""
    resources = {"chat": "chat.completions", "responses": "responses", "embeddings": "embeddings", "messages": "messages"}
    for name in resources[recording.endpoint or ""].split("."):
        client = getattr(client, name)
    return client.create


def arguments(method: Any, recording: Recording, exchange: Exchange) -> dict[str, Any]:
    """The recorded request as keyword arguments; what the SDK does not know by name goes into ``extra_body``."""
    body = {**ARGUMENTS[recording.endpoint or ""], **exchange.request, "stream": recording.streamed, "timeout": 60}
    if recording.endpoint == "embeddings":
        del body["stream"]
    if recording.endpoint == "chat" and recording.streamed and not exchange.request:  # only the answer was recorded, with its usage
        body["stream_options"] = {"include_usage": True}
    known = inspect.signature(method).parameters
    named = {name: value for name, value in body.items() if name in known}
    return {**named, "extra_body": {name: value for name, value in body.items() if name not in known}}


def shown(thing: Any) -> Any:
    return thing.to_dict(warnings=False)


def seen(client: Any, recording: Recording, exchange: Exchange, **changes: Any) -> Any:
    """What the caller gets: the answer, the events, or the class and the words of an exception."""
    method = method_of(client, recording)
    try:
        result = method(**{**arguments(method, recording, exchange), **changes})
        return [shown(event) for event in result] if recording.streamed else shown(result)
    except Exception as error:
        return type(error), str(error)


async def aseen(client: Any, recording: Recording, exchange: Exchange) -> Any:
    """The same of an asynchronous client."""
    method = method_of(client, recording)
    try:
        result = await method(**arguments(method, recording, exchange))
        return [shown(event) async for event in result] if recording.streamed else shown(result)
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("recording", COUNTED, ids=str)
def test_a_recorded_call_has_exactly_the_usage_that_was_recorded(
    recording: Recording, replay: Replay, connections: dict[str, Any], calls: Calls
) -> None:
    """One call for one request, with the provider's counts to the token, and a caller who sees what the SDK alone shows."""
    exchange = load(recording)
    url = replay.url(exchange)
    bare = seen(client_for(recording, url, connections), recording, exchange)

    assert seen(wrap(client_for(recording, url, connections)), recording, exchange) == bare
    is_exact(calls.one(), recording)


@pytest.mark.parametrize("recording", REFUSED, ids=str)
def test_a_recorded_refusal_is_an_error(recording: Recording, replay: Replay, connections: dict[str, Any], calls: Calls) -> None:
    """The caller gets the SDK's own exception, and the call has its status and costs nothing."""
    exchange = load(recording)
    url = replay.url(exchange)
    bare = seen(client_for(recording, url, connections), recording, exchange)

    assert seen(wrap(client_for(recording, url, connections)), recording, exchange) == bare
    call = calls.one()
    assert (call.outcome, call.http_status, call.error) == ("error", recording.row["http_status"], bare[0].__name__)
    assert call.usage is None
    assert not call.cost_usd


@pytest.mark.parametrize("recording", UNCOUNTED, ids=str)
def test_a_recorded_answer_without_indexed_usage_is_one_call(
    recording: Recording, replay: Replay, connections: dict[str, Any], calls: Calls
) -> None:
    """Streams that were not asked for usage, answers in the background, and errors in the middle: one call, and the caller's view."""
    exchange = load(recording)
    url = replay.url(exchange)
    bare = seen(client_for(recording, url, connections), recording, exchange)

    assert seen(wrap(client_for(recording, url, connections)), recording, exchange) == bare
    call = calls.one()
    assert call.outcome in ("ok", "truncated", "error")
    assert call.estimated == (recording.streamed and call.raw_usage is None)


@pytest.mark.parametrize("recording", [one for one in COUNTED if one.endpoint == "chat" and one.streamed], ids=str)
def test_a_recorded_usage_chunk_is_hidden_where_nobody_asked(
    recording: Recording, replay: Replay, connections: dict[str, Any], calls: Calls
) -> None:
    """The caller who did not ask sees no chunk that has usage only, and no ``usage: null``, which is for who asks; the call has it."""
    exchange = load(recording)
    url = replay.url(exchange)
    bare = seen(client_for(recording, url, connections), recording, exchange)

    ours = seen(wrap(client_for(recording, url, connections)), recording, exchange, stream_options=openai.NOT_GIVEN)

    assert replay.bodies[-1]["stream_options"]["include_usage"] is True
    shown = [chunk for chunk in bare if chunk["choices"] or chunk.get("usage") is None]
    assert ours == [{key: value for key, value in chunk.items() if key != "usage" or value is not None} for chunk in shown]
    is_exact(calls.one(), recording)


@pytest.mark.parametrize("recording", COUNTED[::5], ids=str)
async def test_a_recorded_call_is_the_same_asynchronously(recording: Recording, replay: Replay, calls: Calls) -> None:
    """Every fifth of them through the asynchronous clients."""
    exchange = load(recording)
    url = replay.url(exchange)
    made: Any = anthropic.AsyncAnthropic if recording.endpoint == "messages" else openai.AsyncOpenAI
    base_url = url if recording.endpoint == "messages" else f"{url}/v1"
    pool = http_library(anthropic if recording.endpoint == "messages" else openai).AsyncClient(verify=False)
    async with made(api_key="k", base_url=base_url, max_retries=0, http_client=pool) as client:
        bare = await aseen(client, recording, exchange)
        ours = await aseen(wrap(client), recording, exchange)

    assert ours == bare
    is_exact(calls.one(), recording)


def test_the_second_model_of_an_answer_is_a_part_of_its_own(
    shared: Path, replay: Replay, connections: dict[str, Any], calls: Calls
) -> None:
    """An advisor is another model beside the one that answered, and each of its turns is billed as its own."""
    recording = next(one for one in COUNTED if one.file.endswith("test_anthropic_advisor_tool.yaml"))
    exchange = load(recording)
    seen(wrap(client_for(recording, replay.url(exchange), connections)), recording, exchange)

    parts = [(part.model, part.usage.input, part.usage.output) for part in calls.one().components]
    assert parts == [(None, 1128, 110), ("claude-opus-4-8", 2518, 22), (None, 1262, 11)]


def test_a_stream_is_replayed_event_by_event(replay: Replay, shared: Path) -> None:
    """The replay server itself: what it sends is what was recorded, split into events."""
    recording = next(one for one in COUNTED if one.streamed)
    exchange = load(recording)
    with http_library(openai).Client() as client:
        answer = client.post(f"{replay.url(exchange)}/v1/chat/completions", content=json.dumps({"x": 1}))

    assert answer.status_code == 200
    assert answer.content.split() == exchange.body.split()
    assert replay.bodies[-1] == {"x": 1}
