"""What the loopback provider does wrong when it is told to."""

import json
import time
from typing import Any

import anthropic
import openai
import pytest

from voight_middleware.testing.accounting import Count
from voight_middleware.testing.provider import LoopbackProvider

from .conftest import total
from .driving import ERRORS, EVERY, MESSAGES, STREAMED, texts


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("status", "kind"), [(401, "AuthenticationError"), (429, "RateLimitError"), (500, "InternalServerError")])
def test_status(name: str, status: int, kind: str, sdk: Any) -> None:
    """An error of the wanted status is what the SDKs raise for it; their retries are calls of their own, and nothing is billed."""
    with pytest.raises(ERRORS) as caught:
        sdk.ask(name, status=status)

    assert type(caught.value).__name__ == kind
    retried = 1 if status == 401 else 3
    assert total(sdk.provider) == Count(calls=retried, errors=retried)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_delay(name: str, sdk: Any) -> None:
    """The answer waits as long as it was told to."""
    begin = time.perf_counter()
    sdk.ask(name, delay_ms=150)
    assert time.perf_counter() - begin >= 0.15


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_no_usage(name: str, sdk: Any) -> None:
    """An answer can lack its usage; it is completed, with no tokens."""
    assert sdk.ask(name, no_usage=1).usage is None
    assert total(sdk.provider) == Count(calls=1, completed=1)


@pytest.mark.slow
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
