"""Recorded answers of the endpoints beside chat, responses, embeddings and messages, through the real SDKs."""

import json
import re
from typing import Any

import anthropic
import openai
import openai.types.beta
import openai.types.responses
import pytest

from voight_middleware import Usage, wrap
from voight_middleware.diagnostics import counters

from ..support.calls import Calls
from ..support.memory_provider import Answer, Provider
from .recordings import Recording, counts, index, load

pytestmark = [pytest.mark.usefixtures("shared"), pytest.mark.slow]

ENDPOINTS = {
    r"POST .*/completions": "completions",
    r"POST /responses/compact": "compact",
    r"POST /(responses/input_tokens|messages/count_tokens)": "count_tokens",
    r"(GET|POST) /responses/[^/]+": "responses",
    r"(GET|POST) /threads/[^/]+/runs(/.*)?": "runs",
    r"POST /images/generations": "images",
    r"POST /audio/transcriptions": "transcriptions",
    r"POST /audio/speech": "speech",
    r"POST /moderations": "moderations",
}
NO_CALL = [
    r"POST /(files|vector_stores|assistants|threads|conversations|realtime|traces)(/(?!.*runs).*)?",
    r"GET /(files|models|assistants|threads/[^/]+/messages).*",
    "DELETE .*",
]
ELSEWHERE = [r".* /model/.*", "POST /complete"]
"""Bedrock, which test_http.py replays, and the text completions of the anthropic SDK's first years, which had no usage."""


def line(recording: Recording) -> str:
    return f"{recording.row['method']} {recording.row['endpoint'].partition('?')[0]}".replace("//openai/deployments/test-openai", "")


def endpoint(recording: Recording) -> str | None:
    return next((name for pattern, name in ENDPOINTS.items() if re.fullmatch(pattern, line(recording))), None)


OTHERS = [one for one in index() if one.endpoint is None or one.row["method"] != "POST"]
METERED = [one for one in OTHERS if endpoint(one) is not None]
FREE = [one for one in OTHERS if any(re.fullmatch(pattern, line(one)) for pattern in NO_CALL)]


def recorded(recording: Recording) -> Any:
    exchange = load(recording)

    def answer(_path: str, _body: dict[str, Any]) -> Answer:
        if exchange.headers["content-type"].startswith("text/event-stream"):
            events = exchange.body.replace(b"\r\n", b"\n").split(b"\n\n")
            return exchange.status, exchange.headers, [event + b"\n\n" for event in events if event.strip()]
        return exchange.status, exchange.headers, [exchange.body]

    return answer


def go(recording: Recording, client: Any, sdk: Any) -> Any:
    """Send what was recorded, and answer what the caller sees."""
    _, _, path = line(recording).partition(" ")
    path = f"/v1{path}" if sdk is anthropic else path
    body = load(recording).request
    options: dict[str, Any] = {"cast_to": object}
    if recording.streamed:
        options |= {"stream": True, "stream_cls": sdk.Stream[openai.types.Completion]}
        if "/responses/" in path:
            options["stream_cls"] = sdk.Stream[openai.types.responses.ResponseStreamEvent]
        if "/threads/" in path:
            options["stream_cls"] = sdk.Stream[openai.types.beta.AssistantStreamEvent]
    if endpoint(recording) == "speech":
        options["cast_to"] = openai.HttpxBinaryResponseContent
    try:
        made = client.get(path, **options) if recording.row["method"] == "GET" else client.post(path, body=body, **options)
        if recording.streamed:
            return [event.to_dict(warnings=False) for event in made]
        return made.content if hasattr(made, "content") else made
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("recording", METERED, ids=str)
def test_a_recorded_answer_is_one_call_with_its_usage(recording: Recording, provider: Provider, calls: Calls) -> None:
    """One call where something was billed, with the recorded counts; none for asking how a job goes."""
    provider.answer = recorded(recording)
    sdk: Any = anthropic if "/messages/" in line(recording) else openai
    bare = go(recording, provider.client(sdk.__name__), sdk)

    assert go(recording, wrap(provider.client(sdk.__name__)), sdk) == bare

    expected, name = recording.row["expected"], endpoint(recording)
    asked = recording.row["method"] == "GET" or line(recording).endswith("submit_tool_outputs")
    if asked and expected is None and not (recording.streamed and name == "responses"):
        assert calls.all() == []
        return
    call = calls.one()
    assert (call.endpoint, call.http_status, call.streamed) == (name, recording.row["http_status"], recording.streamed)
    assert call.outcome == ("ok" if call.http_status == 200 else "error")
    if expected is not None:
        counted = counts(call)
        assert {key: counted[key] for key in expected} == expected
        assert not call.estimated
    elif name == "images" and call.http_status == 200:
        assert call.usage == Usage(images=len(json.loads(load(recording).body)["data"]))
    elif name in ("count_tokens", "moderations"):
        assert call.cost_usd == 0


@pytest.mark.parametrize("recording", FREE, ids=str)
def test_what_is_not_billed_is_no_call(recording: Recording, provider: Provider, calls: Calls) -> None:
    """Files, vector stores, threads, lists: nothing is metered, and nothing fails."""
    provider.answer = recorded(recording)
    client = wrap(provider.client("openai"))
    method, _, path = line(recording).partition(" ")
    options = openai._models.FinalRequestOptions.construct(method=method.lower(), url=path, json_data=load(recording).request)
    client.request(openai.HttpxBinaryResponseContent, options)

    assert calls.all() == []
    assert not +counters


def test_no_recording_is_forgotten(shared: Any) -> None:
    """Each of them is replayed, or is named here with its reason."""
    left = [line(one) for one in OTHERS if endpoint(one) is None and one not in FREE]
    assert [one for one in left if not any(re.fullmatch(pattern, one) for pattern in ELSEWHERE)] == []
