"""The answers of the loopback provider, driven by the real openai and anthropic SDKs over real sockets."""

import json
from typing import Any, Literal

import anthropic
import openai
import pytest
from pydantic import BaseModel

from voight_middleware.testing.provider import LoopbackProvider

from .conftest import total
from .driving import EVERY, MESSAGES, STREAMED, events, raw, texts


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


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_the_same_request_has_the_same_usage(name: str, sdk: Any) -> None:
    """Usage follows from the request alone; the id of every answer is new."""
    first, second = sdk.ask(name), sdk.ask(name)

    assert first.usage == second.usage
    if name != "embeddings":
        assert first.id != second.id


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
