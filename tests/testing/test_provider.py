"""The loopback provider, driven by the real openai and anthropic SDKs over real sockets."""

import asyncio
import http.client
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Literal

import anthropic
import openai
import pytest
from pydantic import BaseModel

from voight_middleware.testing.provider import Count, LoopbackProvider

MESSAGES: Any = [{"role": "user", "content": "[user:u_1] Why is the sky blue?"}]
STREAMED = ["chat", "responses", "messages"]
EVERY = [*STREAMED, "embeddings"]
ERRORS = (openai.APIError, anthropic.APIError)


class City(BaseModel):
    """A structured output with what schemas are made of."""

    name: str
    people: int
    kind: Literal["capital", "port"]
    rivers: list[str]
    mayor: "Person | None"


class Person(BaseModel):
    name: str
    height: float
    elected: bool


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackProvider]:
    with LoopbackProvider() as provider:
        yield provider


@pytest.fixture
def provider(server: LoopbackProvider) -> LoopbackProvider:
    server.reset()
    return server


@pytest.fixture(params=["sync", "async"])
def sdk(request: pytest.FixtureRequest, provider: LoopbackProvider) -> Iterator[Any]:
    """Both SDKs, synchronous or not, behind one synchronous face: ``ask`` answers the answer, or the list of a stream's events."""
    to_openai: Any = {"base_url": provider.openai_base_url, "api_key": "k", "max_retries": 2}
    to_anthropic: Any = {"base_url": provider.anthropic_base_url, "api_key": "k", "max_retries": 2}
    bodies: dict[str, Any] = {
        "chat": {"model": "gpt-4o-mini", "messages": MESSAGES},
        "responses": {"model": "gpt-5-mini", "input": "[user:u_1] Why is the sky blue?"},
        "embeddings": {"model": "text-embedding-3-small", "input": ["[user:u_1] blue", "sky"]},
        "messages": {"model": "claude-haiku-4-5", "max_tokens": 1000, "messages": MESSAGES},
    }

    def method(of_openai: Any, of_anthropic: Any, name: str) -> Any:
        resources = {"chat": of_openai.chat.completions, "responses": of_openai.responses, "embeddings": of_openai.embeddings}
        return (resources | {"messages": of_anthropic.messages})[name].create

    def faulty(headers: dict[str, Any]) -> dict[str, str]:
        return {f"x-loopback-{key.replace('_', '-')}": str(value) for key, value in headers.items()}

    if request.param == "sync":
        with openai.OpenAI(**to_openai) as one, anthropic.Anthropic(**to_anthropic) as other:

            def ask(name: str, body: Any = None, **faults: Any) -> Any:
                answer = method(one, other, name)(**bodies[name] | (body or {}), extra_headers=faulty(faults))
                return list(answer) if (body or {}).get("stream") else answer

            yield SimpleNamespace(ask=ask, provider=provider)
        return

    async def aask(name: str, body: Any, faults: dict[str, Any]) -> Any:
        async with openai.AsyncOpenAI(**to_openai) as one, anthropic.AsyncAnthropic(**to_anthropic) as other:
            answer = await method(one, other, name)(**bodies[name] | (body or {}), extra_headers=faulty(faults))
            return [event async for event in answer] if (body or {}).get("stream") else answer

    yield SimpleNamespace(ask=lambda name, body=None, **faults: asyncio.run(aask(name, body, faults)), provider=provider)


@pytest.fixture
def one(provider: LoopbackProvider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=provider.openai_base_url, api_key="k") as client:
        yield client


@pytest.fixture
def other(provider: LoopbackProvider) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=provider.anthropic_base_url, api_key="k") as client:
        yield client


def raw(provider: LoopbackProvider, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of an answer as they come over the wire."""
    connection = http.client.HTTPConnection(provider.url.removeprefix("http://"), timeout=10)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"content-type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read().decode()
    finally:
        connection.close()


def events(text: str) -> list[dict[str, Any]]:
    """The JSON of each server-sent event; OpenAI's ``[DONE]`` is left out."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def texts(name: str, stream: list[Any]) -> list[str]:
    """The pieces of text of a stream."""
    if name == "chat":
        return [event.choices[0].delta.content for event in stream if event.choices and event.choices[0].delta.content]
    kind = {"responses": "response.output_text.delta", "messages": "content_block_delta"}[name]
    return [event.delta if name == "responses" else event.delta.text for event in stream if event.type == kind]


def total(provider: LoopbackProvider) -> Count:
    return provider.counts().total


# -- answers -------------------------------------------------------------------------------------------------------------------


def test_chat(sdk: Any) -> None:
    """A chat completion has the dated model, usage that adds up, and the default tier."""
    answer = sdk.ask("chat")

    assert answer.model == "gpt-4o-mini-2024-07-18"
    assert answer.service_tier == "default"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens <= answer.usage.prompt_tokens


def test_responses(sdk: Any) -> None:
    """A response of a reasoning model has a reasoning item, a message, and reasoning tokens inside the output's."""
    answer = sdk.ask("responses")

    assert answer.model == "gpt-5-mini-2025-08-07"
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output_text
    assert 0 < answer.usage.output_tokens_details.reasoning_tokens <= answer.usage.output_tokens


def test_embeddings(sdk: Any) -> None:
    """The vectors are the same as numbers and as base64, one per input, of the model's length."""
    in_base64, in_numbers = sdk.ask("embeddings"), sdk.ask("embeddings", {"encoding_format": "float"})

    assert [body["encoding_format"] for body in sdk.provider.requests] == ["base64", "float"]
    assert [len(item.embedding) for item in in_base64.data] == [1536, 1536]
    assert in_base64.data[1].embedding == in_numbers.data[1].embedding
    assert in_base64.usage.prompt_tokens == in_base64.usage.total_tokens > 0


def test_messages(sdk: Any) -> None:
    """A message has the dated model, and cache counts whose split adds up."""
    answer = sdk.ask("messages")
    usage = answer.usage

    assert answer.model == "claude-haiku-4-5-20251001"
    assert answer.stop_reason == "end_turn"
    split = usage.cache_creation.ephemeral_5m_input_tokens + usage.cache_creation.ephemeral_1h_input_tokens
    assert split == usage.cache_creation_input_tokens
    assert usage.service_tier == "standard"


@pytest.mark.parametrize("name", EVERY)
def test_the_same_request_has_the_same_usage(name: str, sdk: Any) -> None:
    """Usage follows from the request alone; the id of every answer is new."""
    first, second = sdk.ask(name), sdk.ask(name)

    assert first.usage == second.usage
    if name != "embeddings":
        assert first.id != second.id


def test_usage_covers_what_providers_report(other: anthropic.Anthropic, one: openai.OpenAI) -> None:
    """Over some requests every kind of count is met: cached, written for five minutes and for an hour, reasoning."""
    seen: set[str] = set()
    for number in range(60):
        question: Any = [{"role": "user", "content": f"question {number}"}]
        usage: Any = other.messages.create(model="claude-haiku-4-5", max_tokens=1000, messages=question).usage.to_dict()
        chat: Any = one.chat.completions.create(model="gpt-5.6-sol", messages=question).to_dict()["usage"]
        counts = {**usage, **usage["cache_creation"], **chat["prompt_tokens_details"], **chat["completion_tokens_details"]}
        seen |= {name for name, count in counts.items() if isinstance(count, int) and count}

    written = {"ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens", "cache_creation_input_tokens", "cache_write_tokens"}
    assert written | {"cache_read_input_tokens", "cached_tokens", "reasoning_tokens"} <= seen


def test_unknown_models_serve_themselves(one: openai.OpenAI) -> None:
    """A model that the provider does not know is echoed."""
    assert one.chat.completions.create(model="acme-1", messages=MESSAGES).model == "acme-1"


def test_limits_cut_answers_short(one: openai.OpenAI, other: anthropic.Anthropic) -> None:
    """An answer that reaches its limit of output tokens says so, in each provider's words."""
    chat = one.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, max_tokens=5)
    response = one.responses.create(model="gpt-5-mini", input="x", max_output_tokens=16)
    message = other.messages.create(model="claude-haiku-4-5", messages=MESSAGES, max_tokens=5)

    assert (chat.choices[0].finish_reason, chat.usage and chat.usage.completion_tokens) == ("length", 5)
    assert (response.status, response.usage and response.usage.output_tokens) == ("incomplete", 16)
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 5)


# -- streams -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMED)
def test_a_stream_says_what_the_plain_answer_says(name: str, sdk: Any) -> None:
    """The pieces of a stream are twelve, and together the text of the plain answer; its usage is the same."""
    body = {"stream": True} | ({"stream_options": {"include_usage": True}} if name == "chat" else {})
    plain, stream = sdk.ask(name), sdk.ask(name, body)
    whole = {"chat": lambda: plain.choices[0].message.content, "responses": lambda: plain.output_text}
    ends = {"chat": lambda: stream[-1].usage, "responses": lambda: stream[-1].response.usage}

    assert len(texts(name, stream)) == 12
    assert "".join(texts(name, stream)) == whole.get(name, lambda: plain.content[0].text)()
    assert ends.get(name, lambda: stream[-2].usage)().to_dict().items() <= plain.usage.to_dict().items()


def test_chat_stream_without_usage(sdk: Any) -> None:
    """Without include_usage no chunk has usage, and every chunk has a choice."""
    stream = sdk.ask("chat", {"stream": True})

    assert all(chunk.usage is None and chunk.choices for chunk in stream)
    assert stream[-1].choices[0].finish_reason == "stop"


def test_responses_stream(sdk: Any) -> None:
    """The events come in the provider's order, numbered, and the first ones have no usage yet."""
    stream = sdk.ask("responses", {"stream": True}, chunks=1)

    assert [event.type.removeprefix("response.") for event in stream] == [
        "created",
        "in_progress",
        "output_item.added",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in stream] == list(range(len(stream)))
    assert stream[0].response.usage is None
    assert (stream[0].response.service_tier, stream[-1].response.service_tier) == ("auto", "default")


def test_messages_stream(sdk: Any) -> None:
    """The input's counts come first with a placeholder for the output's, the cumulative counts at the end."""
    stream = sdk.ask("messages", {"stream": True}, chunks=1)

    kinds = ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop"]
    assert [event.type for event in stream] == kinds  # the SDK swallows the ping
    assert stream[0].message.usage.output_tokens < stream[-2].usage.output_tokens
    assert stream[0].message.usage.input_tokens == stream[-2].usage.input_tokens


def test_stream_helpers(one: openai.OpenAI, other: anthropic.Anthropic) -> None:
    """The SDKs' accumulating helpers come to the same usage and text as plain answers."""
    with one.chat.completions.stream(model="gpt-4o-mini", messages=MESSAGES, stream_options={"include_usage": True}) as chat:
        list(chat)
        plain = one.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
        assert chat.get_final_completion().usage == plain.usage
        assert chat.get_final_completion().choices[0].message.content == plain.choices[0].message.content
    with one.responses.stream(model="gpt-5-mini", input="x") as response:
        list(response)
        assert response.get_final_response().output_text == one.responses.create(model="gpt-5-mini", input="x").output_text
    with other.messages.stream(model="claude-haiku-4-5", max_tokens=1000, messages=MESSAGES) as message:
        text = "".join(message.text_stream)
        assert text == message.get_final_text()
        assert (
            message.get_final_message().usage == other.messages.create(model="claude-haiku-4-5", max_tokens=1000, messages=MESSAGES).usage
        )


def test_structured_outputs(one: openai.OpenAI, other: anthropic.Anthropic) -> None:
    """A wanted schema is answered with JSON that the SDKs' parsers accept, plain and streamed."""
    chat = one.chat.completions.parse(model="gpt-4o-mini", messages=MESSAGES, response_format=City)
    response = one.responses.parse(model="gpt-5-mini", input="x", text_format=City)
    message = other.messages.parse(model="claude-sonnet-4-6", max_tokens=10, messages=MESSAGES, output_format=City)
    with one.responses.stream(model="gpt-4o-mini", input="x", text_format=City) as stream:
        list(stream)
        streamed = stream.get_final_response().output_parsed

    for city in (chat.choices[0].message.parsed, response.output_parsed, message.parsed_output, streamed):
        assert isinstance(city, City)
        assert city.mayor is not None


# -- the wire ------------------------------------------------------------------------------------------------------------------


def test_chat_on_the_wire(provider: LoopbackProvider) -> None:
    """JSON comes over several lines; ``"usage": null`` is on the content chunks exactly where usage was asked for; ``[DONE]`` ends."""
    body = {"model": "gpt-4o-mini", "messages": MESSAGES}
    _, headers, plain = raw(provider, "/v1/chat/completions", body)
    _, _, unasked = raw(provider, "/v1/chat/completions", {**body, "stream": True})
    _, stream_headers, asked = raw(provider, "/v1/chat/completions", {**body, "stream": True, "stream_options": {"include_usage": True}})

    assert plain.startswith('{\n  "id": "chatcmpl-')
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"].startswith("req_")
    assert stream_headers["content-type"] == "text/event-stream; charset=utf-8"
    assert all("usage" not in chunk for chunk in events(unasked))
    *content, last = events(asked)
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in content)
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] > 0
    assert asked.endswith("\n\ndata: [DONE]\n\n")
    assert unasked.endswith("\n\ndata: [DONE]\n\n")


def test_messages_on_the_wire(provider: LoopbackProvider) -> None:
    """JSON is on one line; every event has its name, and a ping is among them."""
    body = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": MESSAGES}
    _, headers, plain = raw(provider, "/v1/messages", body)
    _, _, stream = raw(provider, "/v1/messages", {**body, "stream": True})

    assert "\n" not in plain
    assert headers["request-id"].startswith("req_")
    names = [line.removeprefix("event: ") for line in stream.splitlines() if line.startswith("event: ")]
    assert names == [event["type"] for event in events(stream)]
    assert names[:3] == ["message_start", "content_block_start", "ping"]


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/v1/chat/completions", b"{", "JSON"),
        ("/v1/chat/completions", [], "JSON"),
        ("/v1/chat/completions", {"messages": MESSAGES}, "model"),
        ("/v1/chat/completions", {"model": "m", "messages": MESSAGES, "stream_options": {"include_usage": True}}, "stream_options"),
        ("/v1/responses", {"model": "m", "input": "x", "stream": True, "stream_options": {"include_usage": True}}, "include_usage"),
        ("/v1/embeddings", {"model": "m"}, "input"),
        ("/v1/messages", {"model": "m", "messages": MESSAGES}, "max_tokens"),
    ],
)
def test_bad_requests(path: str, body: Any, named: str, provider: LoopbackProvider) -> None:
    """What the real providers refuse is refused with 400, in each provider's shape, and counted as an error."""
    status, _, text = raw(provider, path, body)

    assert status == 400
    assert named in json.loads(text)["error"]["message"]
    assert json.loads(text)["error"]["type"] == "invalid_request_error"
    assert total(provider).errors == 1


# -- faults --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("status", "kind"), [(401, "AuthenticationError"), (429, "RateLimitError"), (500, "InternalServerError")])
def test_status(name: str, status: int, kind: str, sdk: Any) -> None:
    """An error of the wanted status is what the SDKs raise for it; their retries are calls of their own, and nothing is billed."""
    with pytest.raises(ERRORS) as caught:
        sdk.ask(name, status=status)

    assert type(caught.value).__name__ == kind
    retried = 1 if status == 401 else 3
    assert total(sdk.provider) == Count(calls=retried, errors=retried)


@pytest.mark.parametrize("name", EVERY)
def test_status_times(name: str, sdk: Any) -> None:
    """With a number of times, only the first requests of the same key fail, and the SDK's retry succeeds."""
    assert sdk.ask(name, status=429, status_times=2, key=name).usage
    count = total(sdk.provider)
    assert (count.calls, count.errors, count.completed) == (3, 2, 1)
    assert sdk.ask(name, status=429, status_times=1, key="another").usage
    assert total(sdk.provider).errors == 3


def test_status_of_anthropic_has_its_shape(other: anthropic.Anthropic) -> None:
    """An overloaded Anthropic answers 529 with its own error body and request id."""
    with pytest.raises(anthropic.InternalServerError) as caught:
        other.messages.create(model="m", max_tokens=9, messages=MESSAGES, extra_headers={"x-loopback-status": "529"})

    assert caught.value.status_code == 529
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "overloaded_error"
    assert caught.value.request_id == caught.value.body["request_id"]


@pytest.mark.parametrize("name", EVERY)
def test_delay(name: str, sdk: Any) -> None:
    """The answer waits as long as it was told to."""
    begin = time.perf_counter()
    sdk.ask(name, delay_ms=150)
    assert time.perf_counter() - begin >= 0.15


@pytest.mark.parametrize("name", STREAMED)
def test_chunks_and_their_delay(name: str, sdk: Any) -> None:
    """The text comes in as many pieces as wanted, and each event waits."""
    begin = time.perf_counter()
    stream = sdk.ask(name, {"stream": True}, chunks=4, chunk_delay_ms=20)

    assert len(texts(name, stream)) == 4
    assert time.perf_counter() - begin >= 0.02 * len(stream)


@pytest.mark.parametrize("name", STREAMED)
def test_cut(name: str, sdk: Any) -> None:
    """A cut stream breaks off with a transport error after so many events; it is broken, and nothing of it is counted as reported."""
    with pytest.raises(Exception, match=r"(?i)connection|incomplete|peer closed") as caught:
        sdk.ask(name, {"stream": True}, cut_after=5)

    assert "Error" in type(caught.value).__name__
    assert total(sdk.provider) == Count(calls=1, broken=1)


def test_cut_of_a_plain_answer(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A plain answer is cut in the middle of its body: the SDK sees a broken connection, whatever the number."""
    with pytest.raises(openai.APIConnectionError):
        one.with_options(max_retries=0).embeddings.create(model="m", input="x", extra_headers={"x-loopback-cut-after": "1"})

    assert total(provider) == Count(calls=1, broken=1)


@pytest.mark.parametrize("name", STREAMED)
def test_end(name: str, sdk: Any) -> None:
    """A stream that ends too early ends cleanly, without its terminal event, and is broken."""
    stream = sdk.ask(name, {"stream": True}, end_after=4)

    assert len(stream) == (3 if name == "messages" else 4)  # the SDK swallows the ping
    assert total(sdk.provider) == Count(calls=1, broken=1)


@pytest.mark.parametrize("name", EVERY)
def test_no_usage(name: str, sdk: Any) -> None:
    """An answer can lack its usage; it is completed, with no tokens."""
    assert sdk.ask(name, no_usage=1).usage is None
    assert total(sdk.provider) == Count(calls=1, completed=1)


@pytest.mark.parametrize("name", STREAMED)
def test_no_usage_in_a_stream(name: str, sdk: Any) -> None:
    """A stream can lack its usage, also where it was asked for."""
    options = {"stream_options": {"include_usage": True}} if name == "chat" else {}
    stream = sdk.ask(name, {"stream": True, **options}, no_usage=1)

    assert all(not event.to_dict().get("usage") for event in stream)
    assert all(not event.to_dict().get(part, {}).get("usage") for event in stream for part in ("response", "message"))
    assert total(sdk.provider) == Count(calls=1, completed=1)


def test_exact_usage(sdk: Any) -> None:
    """A wanted usage is reported to the letter, and counted: all input, cached included, for both providers."""
    chat = {"prompt_tokens": 1149, "completion_tokens": 353, "total_tokens": 1502, "prompt_tokens_details": {"cached_tokens": 1024}}
    message = {"input_tokens": 17, "output_tokens": 100, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 2056}

    assert sdk.ask("chat", usage=json.dumps(chat)).usage.to_dict() == chat
    assert total(sdk.provider) == Count(1, 1, input_tokens=1149, cached_tokens=1024, output_tokens=353)
    assert sdk.ask("messages", usage=json.dumps(message)).usage.to_dict() == message
    assert total(sdk.provider) == Count(2, 2, input_tokens=1149 + 2078, cached_tokens=1029, output_tokens=453)


def test_exact_usage_with_iterations(other: anthropic.Anthropic, provider: LoopbackProvider) -> None:
    """Where iterations are reported, they are what is counted, and a stream brings them at its end."""
    parts = [{"type": "compaction", "input_tokens": 55, "output_tokens": 125}, {"type": "message", "input_tokens": 220, "output_tokens": 8}]
    usage = json.dumps({"input_tokens": 220, "output_tokens": 8, "iterations": parts})
    stream = list(other.messages.create(model="m", max_tokens=9, messages=MESSAGES, stream=True, extra_headers={"x-loopback-usage": usage}))

    assert stream[-2].to_dict()["usage"]["iterations"] == parts  # type: ignore[index]
    assert (total(provider).input_tokens, total(provider).output_tokens) == (275, 133)


def test_reject(one: openai.OpenAI) -> None:
    """A request with the unwanted parameter is refused with its name in the message; one without it is answered."""
    unwanted: Any = {"extra_headers": {"x-loopback-reject": "stream_options"}, "model": "m", "messages": MESSAGES, "stream": True}
    with pytest.raises(openai.BadRequestError, match="stream_options"):
        one.chat.completions.create(**unwanted, stream_options={"include_usage": True})
    assert list(one.chat.completions.create(**unwanted))


@pytest.mark.parametrize("header", ["x-loopback-frobnicate: 1", "x-loopback-chunks: many", "x-loopback-usage: {"])
def test_a_mistake_in_a_fault_is_an_error(header: str, one: openai.OpenAI) -> None:
    """A header that the provider does not know or cannot read is refused, not ignored."""
    name, value = header.split(": ")
    with pytest.raises(openai.BadRequestError, match="loopback provider"):
        one.embeddings.create(model="m", input="x", extra_headers={name: value})


def test_faults_in_the_prompt(one: openai.OpenAI) -> None:
    """A fault can stand in the prompt in brackets, for applications that do not pass headers on."""
    with pytest.raises(openai.InternalServerError):
        one.responses.create(model="m", input="[x-loopback-status: 500] Hello")
    stream = one.responses.create(model="m", input=[{"role": "user", "content": "Hello [x-loopback-chunks: 3]"}], stream=True)
    assert len(texts("responses", list(stream))) == 3


# -- its own count -------------------------------------------------------------------------------------------------------------


def test_counts_by_user(one: openai.OpenAI, other: anthropic.Anthropic, provider: LoopbackProvider) -> None:
    """Calls are counted under the first marker of their prompt, tokens as they were reported, and the totals add up."""
    first: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "[user:é 7] ask [user:u_2]"}]
    usage = one.chat.completions.create(model="gpt-4o-mini", messages=first).usage
    message = other.messages.create(
        model="claude-haiku-4-5", max_tokens=999, system="[user:u_3]", messages=[{"role": "user", "content": "x"}]
    )
    one.embeddings.create(model="m", input=[1, 2, 3])
    counts = provider.counts()

    assert usage is not None
    assert usage.prompt_tokens_details is not None
    cached = usage.prompt_tokens_details.cached_tokens
    assert counts.by_user["é 7"] == Count(1, 1, 0, 0, usage.prompt_tokens, cached or 0, usage.completion_tokens)
    read, written = message.usage.cache_read_input_tokens or 0, message.usage.cache_creation_input_tokens or 0
    assert counts.by_user["u_3"].input_tokens == message.usage.input_tokens + read + written
    assert counts.by_user["-"] == Count(1, 1, input_tokens=3)
    assert counts.total.calls == 3
    assert counts.total.input_tokens == sum(count.input_tokens for count in counts.by_user.values())


def test_counts_over_http(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """The same count is served as JSON, totals included."""
    one.embeddings.create(model="m", input="[user:u_1]")
    with urllib.request.urlopen(f"{provider.url}/_loopback/counts") as response:
        shown = json.load(response)

    assert shown["by_user"]["u_1"]["completed"] == shown["total"]["completed"] == 1
    assert shown["total"]["input_tokens"] == total(provider).input_tokens


def test_a_client_that_leaves(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A stream that its client closes is broken, as soon as the provider notices."""
    slow = {"x-loopback-chunks": "1000", "x-loopback-chunk-delay-ms": "10"}
    with one.chat.completions.create(model="m", messages=MESSAGES, stream=True, extra_headers=slow) as stream:
        next(iter(stream))
    deadline = time.monotonic() + 5
    while not total(provider).broken and time.monotonic() < deadline:
        time.sleep(0.01)

    assert total(provider) == Count(calls=1, broken=1)


async def test_a_hundred_streams_at_once(provider: LoopbackProvider) -> None:
    """A hundred streams run side by side: each takes as long as one."""
    slow = {"x-loopback-chunk-delay-ms": "50"}
    async with openai.AsyncOpenAI(base_url=provider.openai_base_url, api_key="k", max_retries=0) as client:

        async def one(number: int) -> int:
            messages: Any = [{"role": "user", "content": f"[user:u_{number % 5}]"}]
            stream = await client.chat.completions.create(model="gpt-4o-mini", messages=messages, stream=True, extra_headers=slow)
            return len([chunk async for chunk in stream])

        begin = time.perf_counter()
        lengths = await asyncio.gather(*map(one, range(100)))

    assert lengths == [14] * 100
    assert time.perf_counter() - begin < 10, "one after the other they would take 75 seconds"
    assert {count.completed for count in provider.counts().by_user.values()} == {20}


def test_requests_are_kept(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """The bodies of the requests are kept in their order, and forgotten with the counts."""
    one.responses.create(model="m", input="first")
    one.responses.create(model="m", input="second")
    assert [body["input"] for body in provider.requests] == ["first", "second"]

    provider.reset()
    assert list(provider.requests) == []
    assert provider.counts().by_user == {}


# -- the server ----------------------------------------------------------------------------------------------------------------


def test_stop_and_a_second_provider() -> None:
    """Two providers run side by side with counts of their own; a stopped one refuses connections."""
    with LoopbackProvider() as first, LoopbackProvider() as second:
        with openai.OpenAI(base_url=second.openai_base_url, api_key="k") as client:
            client.embeddings.create(model="m", input="x")
        assert (total(first).calls, total(second).calls) == (0, 1)
    with pytest.raises(OSError, match="refused"):
        raw(second, "/v1/embeddings", {})


def test_as_a_command() -> None:
    """``python -m`` serves until it is interrupted, and prints the variables that the SDKs read."""
    command = [sys.executable, "-m", "voight_middleware.testing.provider"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        variables = dict(word.split("=") for word in process.stdout.readline().split()[1:])
        with openai.OpenAI(base_url=variables["OPENAI_BASE_URL"], api_key=variables["OPENAI_API_KEY"]) as client:
            assert client.embeddings.create(model="m", input="x").data
        process.terminate()
        process.wait(10)


def test_what_is_missing_is_named() -> None:
    """Without starlette or uvicorn, the ImportError says what to install."""
    code = "import sys; sys.modules['uvicorn'] = None; import voight_middleware.testing.provider"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert "ImportError: the loopback provider needs starlette and uvicorn: pip install 'voight-middleware[testing]'" in result.stderr
