"""Read by mypy and pyright, never run: what the public names promise to an editor."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import Message
from openai import AsyncOpenAI, AzureOpenAI, OpenAI
from openai.types.chat import ChatCompletion

import voight_middleware as voight


class CustomOpenAI(OpenAI):
    """An application's own subclass."""


# A client comes back as what it was.
assert_type(voight.wrap(OpenAI()), OpenAI)
assert_type(voight.wrap(AsyncOpenAI()), AsyncOpenAI)
assert_type(voight.wrap(AzureOpenAI()), AzureOpenAI)
assert_type(voight.wrap(CustomOpenAI()), CustomOpenAI)
assert_type(voight.wrap(Anthropic()), Anthropic)
assert_type(voight.wrap_openai(OpenAI()), OpenAI)
assert_type(voight.wrap_openai(AsyncOpenAI()), AsyncOpenAI)
assert_type(voight.wrap_anthropic(Anthropic()), Anthropic)
assert_type(voight.wrap_anthropic(AsyncAnthropic()), AsyncAnthropic)


def answers() -> None:
    """What the client returns is typed by its SDK, as before."""
    completion = voight.wrap(OpenAI()).chat.completions.create(model="gpt-4o-mini", messages=[])
    assert_type(completion, ChatCompletion)
    message = voight.wrap(Anthropic()).messages.create(
        model="claude-haiku-4-5", max_tokens=9, messages=[]
    )
    assert_type(message, Message)


@voight.tag(feature="summary")
def summarise(document: str, *, words: int = 100) -> list[str]:
    return [document] * words


@voight.tag(user_id=7, plan="pro")
async def summarise_later(document: str) -> str:
    return document


@voight.tag(feature="stream")
def stream(document: str) -> Iterator[str]:
    yield document


@voight.tag(feature="stream")
async def stream_later(document: str) -> AsyncIterator[str]:
    yield document


async def decorated() -> None:
    """A decorated function keeps its signature."""
    assert_type(summarise("text", words=3), list[str])
    assert_type(await summarise_later("text"), str)
    assert_type(stream("text"), Iterator[str])
    assert_type(stream_later("text"), AsyncIterator[str])
    assert_type(voight.carry(summarise)("text", words=3), list[str])
    summarise(3)  # type: ignore[arg-type]
    summarise("text", length=3)  # type: ignore[call-arg]


def returns_inside_a_block() -> str:
    """A type checker knows that a block does not swallow exceptions."""
    with voight.tag(
        user_id="u_7", plan="pro", tenant_id="t_1", route="POST /chat", feature="summary"
    ):
        return "text"


async def returns_inside_an_async_block() -> str:
    async with voight.tag(user_id="u_7"):
        return "text"


def by_hand() -> None:
    """The names that take no client."""
    voight.set_tags(tenant_id="t_1")
    assert_type(voight.current_tags(), voight.Tags)
    assert_type(voight.current_tags().user_id, str | None)
    assert_type(
        voight.record(
            provider="openai",
            model="gpt-4o-mini",
            usage={"prompt_tokens": 1, "completion_tokens": 1},
        ),
        str,
    )
