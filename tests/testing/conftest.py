"""What the tests of the loopback provider share."""

from collections.abc import Iterator
from typing import Any, TypeVar

import anthropic
import openai
import pytest

from voight_middleware.testing.provider import Count, LoopbackProvider

from ..support.authorities import few_authorities

T = TypeVar("T")


@pytest.fixture(scope="package", autouse=True)
def _few_authorities() -> Iterator[None]:
    """None of the tests here talks over TLS."""
    with few_authorities():
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackProvider]:
    with LoopbackProvider() as provider:
        yield provider


@pytest.fixture
def provider(server: LoopbackProvider) -> LoopbackProvider:
    server.reset()
    return server


@pytest.fixture
def one(provider: LoopbackProvider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=provider.openai_base_url, api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
def other(provider: LoopbackProvider) -> Iterator[anthropic.Anthropic]:
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
