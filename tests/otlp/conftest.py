"""A receiver of its own for each test, a provider for all of a file, and forks of a process that has imported the instrumentors."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.testing.provider import LoopbackProvider

from ..apps.otlp_spans import Receiving
from ..support.forks import Forks

IMPORTS = """
import anthropic, openai, opentelemetry.sdk.trace
import voight_middleware.pipeline.ingest, voight_middleware.ledger.sqlite, voight_middleware.otlp.processor, voight_middleware.pricing.book
import openinference.instrumentation.anthropic, openinference.instrumentation.openai
import opentelemetry.instrumentation.anthropic, opentelemetry.instrumentation.openai.v1

# What they import where they need it.
for client in (openai.OpenAI(api_key="any"), openai.AsyncOpenAI(api_key="any")):
    client.beta, client.chat.completions, client.embeddings, client.responses
for client in (anthropic.Anthropic(api_key="any"), anthropic.AsyncAnthropic(api_key="any")):
    client.messages
for name in ("anyio._backends._asyncio", "genai_prices.data", "h11", "h2", "httpcore2", "numpy", "truststore"):
    try:
        __import__(name)
    except ImportError:
        pass  # older ones do without it
"""


@pytest.fixture
def receiving(tmp_path: Path) -> Iterator[Callable[..., Receiving]]:
    """Starts receivers."""
    started: list[Receiving] = []

    def start(folder: str = "", **options: Any) -> Receiving:
        started.append(Receiving(tmp_path / (folder or str(len(started))), **options))
        return started[-1]

    yield start
    for one in started:
        one.begin_to_stop()
    for one in started:
        one.stop()


@pytest.fixture(scope="module")
def loopback() -> Iterator[LoopbackProvider]:
    """The loopback provider."""
    with LoopbackProvider() as provider:
        yield provider


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs scripts in forks of a process that has imported both SDKs and their instrumentors."""
    running = Forks(IMPORTS)
    yield running
    running.stop()
