"""Libraries that are built on the two SDKs, under ``instrument()``: what they ask a provider is one call of whoever it was for."""

import asyncio
import gc
import importlib
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from voight_middleware import instrument, tag, uninstrument
from voight_middleware.testing.plugin import VoightCalls
from voight_middleware.testing.provider import LoopbackProvider

pytestmark = [
    pytest.mark.usefixtures("instrumented"),
    pytest.mark.asyncio(loop_scope="module"),  # LangChain keeps its connections for the next test
    # These libraries leave the clients that they make open, on event loops that end before them.
    pytest.mark.filterwarnings("ignore:unclosed :ResourceWarning"),
    pytest.mark.filterwarnings("ignore:asynchronous generator .* was scheduled after loop:ResourceWarning"),
]

NAMED = os.environ.get("VOIGHT_TEST_FRAMEWORKS", "").split()
QUESTION = "Where?"
OPENAI, ANTHROPIC = "gpt-4o-mini", "claude-opus-4-8"


@pytest.fixture
def instrumented(voight_calls: VoightCalls, voight_provider: LoopbackProvider, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in this process is metered, and whoever reads the environment finds the loopback provider."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENAI_BASE_URL", voight_provider.openai_base_url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", voight_provider.anthropic_base_url)
    voight_provider.reset()
    instrument()
    yield
    uninstrument()
    gc.collect()  # what is left open is warned of here, and not in somebody else's test


@pytest.fixture
def one_call(voight_calls: VoightCalls, voight_provider: LoopbackProvider) -> Any:
    """Checks that there was one call: u_1's, with the provider's own counts."""

    def check(endpoint: str) -> None:
        call, served = voight_calls.one(), voight_provider.counts().total
        assert (call.endpoint, call.outcome) == (endpoint, "ok")
        assert call.streamed == bool(voight_provider.requests[0].get("stream"))
        assert call.provider == ("anthropic" if endpoint == "messages" else "openai")
        assert call.tags.user_id == "u_1"
        assert not call.estimated
        assert call.usage is not None
        assert (call.usage.input_tokens, call.usage.output_tokens or 0) == (served.input_tokens, served.output_tokens)
        assert (served.calls, served.completed) == (1, 1)

    return check


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip a test, before it costs anything, unless its libraries are named: tox's environments `frameworks` install and name them."""
    missing = [name for name in names if name not in NAMED]
    return pytest.mark.skipif(bool(missing), reason=f"VOIGHT_TEST_FRAMEWORKS does not name {', '.join(missing)} (tox -e frameworks)")


async def drained(events: AsyncIterator[Any]) -> list[Any]:
    """All events of a stream."""
    return [event async for event in events]


# -- LangChain -------------------------------------------------------------------------------------------------------------------


@needs("langchain_anthropic", "langchain_openai")
@pytest.mark.parametrize("endpoint", ["chat", "responses", "messages"])
@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
async def test_langchain(endpoint: str, how: str, one_call: Any) -> None:
    """``ChatOpenAI`` and ``ChatAnthropic``."""
    if endpoint == "messages":
        model: Any = importlib.import_module("langchain_anthropic").ChatAnthropic(model=ANTHROPIC)
    else:
        model = importlib.import_module("langchain_openai").ChatOpenAI(model=OPENAI, use_responses_api=endpoint == "responses")
    with tag(user_id="u_1"):
        made = getattr(model, how)(QUESTION)
        if how == "ainvoke":
            made = await made
        elif how != "invoke":
            made = list(made) if how == "stream" else await drained(made)

    assert made
    one_call(endpoint)


@needs("langchain_openai")
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_langchain_embeddings(asynchronous: bool, one_call: Any) -> None:
    """``OpenAIEmbeddings``."""
    model = importlib.import_module("langchain_openai").OpenAIEmbeddings(model="text-embedding-3-small", check_embedding_ctx_length=False)
    with tag(user_id="u_1"):
        assert await model.aembed_query(QUESTION) if asynchronous else model.embed_query(QUESTION)

    one_call("embeddings")


# -- pydantic-ai -----------------------------------------------------------------------------------------------------------------


@needs("pydantic_ai")
@pytest.mark.parametrize(
    ("model", "endpoint"),
    [(f"openai-chat:{OPENAI}", "chat"), (f"openai-responses:{OPENAI}", "responses"), (f"anthropic:{ANTHROPIC}", "messages")],
)
@pytest.mark.parametrize("how", ["run", "run_stream", "run_sync"])
async def test_pydantic_ai(model: str, endpoint: str, how: str, one_call: Any) -> None:
    """An agent without tools."""
    agent = importlib.import_module("pydantic_ai").Agent(model)
    with tag(user_id="u_1"):
        if how == "run_stream":
            async with agent.run_stream(QUESTION) as result:
                assert await result.get_output()
        elif how == "run":
            assert (await agent.run(QUESTION)).output
        else:  # it has an event loop of its own
            assert (await asyncio.to_thread(agent.run_sync, QUESTION)).output

    one_call(endpoint)


# -- OpenAI Agents ---------------------------------------------------------------------------------------------------------------


@needs("agents")
@pytest.mark.parametrize("endpoint", ["chat", "responses"])
@pytest.mark.parametrize("how", ["run", "run_streamed", "run_sync"])
async def test_openai_agents(endpoint: str, how: str, one_call: Any) -> None:
    """An agent without tools; its own tracing, which would report to openai.com, is off."""
    agents = importlib.import_module("agents")
    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI()
    made = agents.OpenAIChatCompletionsModel if endpoint == "chat" else agents.OpenAIResponsesModel
    agent = agents.Agent(name="it", model=made(OPENAI, openai_client=client))
    with tag(user_id="u_1"):
        if how == "run_streamed":
            result = agents.Runner.run_streamed(agent, QUESTION)
            assert await drained(result.stream_events())
        elif how == "run":
            result = await agents.Runner.run(agent, QUESTION)
        else:
            result = await asyncio.to_thread(agents.Runner.run_sync, agent, QUESTION)
    await client.close()

    assert result.final_output
    one_call(endpoint)


# -- LlamaIndex ------------------------------------------------------------------------------------------------------------------


@needs("llama_index.llms.openai")
@pytest.mark.parametrize("how", ["complete", "acomplete", "stream_complete", "astream_complete"])
async def test_llama_index(how: str, voight_provider: LoopbackProvider, one_call: Any) -> None:
    """``llama_index.llms.openai``, which needs openai 2; that for Anthropic installs with anthropic 2, and does not work with it."""
    llm = importlib.import_module("llama_index.llms.openai").OpenAI(model=OPENAI, api_base=voight_provider.openai_base_url)
    with tag(user_id="u_1"):
        made = getattr(llm, how)(QUESTION)
        if how.startswith("a"):
            made = await made
        if "stream" in how:
            made = await drained(made) if how.startswith("a") else list(made)

    assert made
    one_call("chat")


# -- Instructor ------------------------------------------------------------------------------------------------------------------


class City(BaseModel):
    """What an answer is made into."""

    city: str


@needs("instructor")
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_instructor(asynchronous: bool, stream: bool, one_call: Any) -> None:
    """A structured answer, whole and in parts."""
    instructor = importlib.import_module("instructor")
    client: Any = openai.AsyncOpenAI() if asynchronous else openai.OpenAI()
    made = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA).chat.completions
    ask = {"model": OPENAI, "response_model": City, "messages": [{"role": "user", "content": QUESTION}]}
    with tag(user_id="u_1"):
        if stream:
            parts = made.create_partial(**ask)
            cities = await drained(parts) if asynchronous else list(parts)
        else:
            answer = made.create(**ask)
            cities = [await answer if asynchronous else answer]
    await client.close() if asynchronous else client.close()

    assert cities[-1].city
    one_call("chat")
