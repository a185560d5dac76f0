"""
What the tests of the loopback provider share.

The SDKs are imported by the fixtures: pytest loads this file in the process that only hands out tests, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    import anthropic
    import openai

    from voight_middleware.testing.accounting import Count
    from voight_middleware.testing.provider import LoopbackProvider

T = TypeVar("T")


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackProvider]:
    from voight_middleware.testing.provider import LoopbackProvider

    with LoopbackProvider() as provider:
        yield provider


@pytest.fixture
def provider(server: LoopbackProvider) -> LoopbackProvider:
    server.reset()
    return server


@pytest.fixture(params=["sync", "async"])
def sdk(request: pytest.FixtureRequest, provider: LoopbackProvider) -> Iterator[Any]:
    """Both SDKs, synchronous or not, behind one synchronous face: ``ask`` answers the answer, or the list of a stream's events."""
    import anthropic
    import openai

    from .driving import MESSAGES

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
    import openai

    with openai.OpenAI(base_url=provider.openai_base_url, api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
def other(provider: LoopbackProvider) -> Iterator[anthropic.Anthropic]:
    import anthropic

    with anthropic.Anthropic(base_url=provider.anthropic_base_url, api_key="k", max_retries=0) as client:
        yield client


def wish(**faults: Any) -> dict[str, str]:
    """The headers that ask for these faults."""
    return {f"x-loopback-{name.replace('_', '-')}": str(value) for name, value in faults.items()}


def fits(answer: T) -> T:
    """The same answer, checked: the SDKs build their types from anything, so what came is validated once more."""
    kind: Any = type(answer)
    kind.model_validate_json(answer.to_json())  # type: ignore[attr-defined]
    return answer


def total(provider: LoopbackProvider) -> Count:
    return provider.counts().total
