"""The loopback provider's legacy completions, moderations and models, and answers that are compressed."""

from typing import Any

import anthropic
import openai
import pytest

from voight_middleware.testing.accounting import Count
from voight_middleware.testing.provider import LoopbackProvider

from .conftest import fits, total, wish

ASK: Any = {"model": "gpt-3.5-turbo-instruct", "prompt": "[user:u_1] Why is the sky blue?", "max_tokens": 1000}


def test_completions(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A legacy completion has text and usage."""
    made = fits(one.completions.create(**ASK))
    usage = made.usage

    assert usage is not None
    assert made.choices[0].text
    assert made.choices[0].finish_reason == "stop"
    count = Count(1, 1, input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)
    assert provider.counts().by_user == {"u_1": count}
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_completions_stream(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A stream has its usage where it was asked for, in a last chunk without a choice; and nowhere else."""
    plain = one.completions.create(**ASK)
    provider.reset()
    without = list(one.completions.create(**ASK, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in without)
    assert total(provider) == Count(calls=1, completed=1)

    *chunks, last = one.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].text for chunk in chunks) == plain.choices[0].text
    assert all(chunk.usage is None for chunk in chunks)
    assert (last.choices, last.usage) == ([], plain.usage)
    assert plain.usage is not None
    assert total(provider).input_tokens == plain.usage.prompt_tokens


def test_completions_are_short_by_default(one: openai.OpenAI) -> None:
    """Without a limit there are sixteen tokens."""
    made = one.completions.create(model="m", prompt=["a", "b"])
    assert made.usage is not None
    assert made.usage.completion_tokens <= 16
    with pytest.raises(openai.BadRequestError, match="stream_options"):
        one.completions.create(**ASK, stream_options={"include_usage": True})


def test_moderations(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """Every input has its result; nothing is counted but the call."""
    made = fits(one.moderations.create(input=["[user:u_1] a", "b"]))

    assert [result.flagged for result in made.results] == [False, False]
    assert len(fits(one.moderations.create(input=[{"type": "text", "text": "a"}])).results) == 1
    assert provider.counts().by_user["u_1"] == Count(calls=1, completed=1)


def test_models(one: openai.OpenAI, other: anthropic.Anthropic, provider: LoopbackProvider) -> None:
    """Each SDK gets its provider's models, in its shape; Anthropic's come in pages."""
    of_openai, of_anthropic = list(one.models.list()), list(other.models.list(limit=2))

    assert fits(of_openai[0]).object == "model"
    assert {model.id.split("-")[0] for model in of_openai} == {"gpt"}
    assert [fits(model).type for model in of_anthropic] == ["model"] * 3
    assert total(provider) == Count(calls=3, completed=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chat", "responses", "messages"])
@pytest.mark.parametrize("streamed", [False, True])
def test_gzip(streamed: bool, name: str, one: openai.OpenAI, other: anthropic.Anthropic, provider: LoopbackProvider) -> None:
    """A compressed answer, or stream, says what the same without compression says; each event can be read when it comes."""
    hello: Any = [{"role": "user", "content": "Hello"}]
    method, ask = {
        "chat": (one.chat.completions, {"model": "gpt-4o-mini", "messages": hello}),
        "responses": (one.responses, {"model": "gpt-5-mini", "input": "Hello", "store": False}),
        "messages": (other.messages, {"model": "claude-haiku-4-5", "max_tokens": 99, "messages": hello}),
    }[name]

    def read(**faults: Any) -> tuple[str | None, list[str]]:
        with method.with_streaming_response.create(**ask, stream=streamed, extra_headers=wish(**faults)) as response:  # type: ignore[attr-defined]
            return response.headers.get("content-encoding"), list(response.iter_lines())

    (encoding, lines), (none, plain) = read(encoding="gzip"), read()
    assert (encoding, none) == ("gzip", None)
    assert len(lines) == len(plain) > 0
    count = total(provider)
    assert (count.completed, count.broken) == (2, 0)


@pytest.mark.slow
def test_gzip_that_is_cut(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A compressed stream that is cut shows what came before."""
    ask: Any = {"model": "gpt-5-mini", "input": "Hello", "stream": True}
    seen: list[str] = []
    with pytest.raises(openai.APIConnectionError):
        seen.extend(event.type for event in one.responses.create(**ask, extra_headers=wish(encoding="gzip", cut_after=4)))

    assert len(seen) == 4
    assert total(provider) == Count(calls=1, broken=1)
