"""The loopback provider's own count, and the provider as a server."""

import asyncio
import json
import subprocess
import sys
import urllib.request
from typing import Any

import anthropic
import openai
import pytest

from voight_middleware.testing.accounting import Count
from voight_middleware.testing.provider import LoopbackProvider

from ..support.depth import times
from ..support.waiting import wait_until
from .conftest import total
from .driving import MESSAGES, raw

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
    wait_until(lambda: total(provider).broken)

    assert total(provider) == Count(calls=1, broken=1)


@pytest.mark.slow
async def test_streams_run_side_by_side(provider: LoopbackProvider) -> None:
    """None of them waits for the end of another, and each is counted for its user."""
    streams = times(20, 100)
    slow = {"x-loopback-chunk-delay-ms": "50"}
    most = open_now = 0
    async with openai.AsyncOpenAI(base_url=provider.openai_base_url, api_key="k", max_retries=0) as client:

        async def one(number: int) -> int:
            nonlocal most, open_now
            messages: Any = [{"role": "user", "content": f"[user:u_{number % 5}]"}]
            stream = await client.chat.completions.create(model="gpt-4o-mini", messages=messages, stream=True, extra_headers=slow)
            open_now += 1
            most = max(most, open_now)
            length = len([chunk async for chunk in stream])
            open_now -= 1
            return length

        lengths = await asyncio.gather(*map(one, range(streams)))

    assert lengths == [14] * streams
    assert most > streams / 2
    assert {count.completed for count in provider.counts().by_user.values()} == {streams / 5}


def test_requests_are_kept(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """The bodies of the requests are kept in their order, and forgotten with the counts."""
    one.responses.create(model="m", input="first")
    one.responses.create(model="m", input="second")
    assert [body["input"] for body in provider.requests] == ["first", "second"]

    provider.reset()
    assert list(provider.requests) == []
    assert provider.counts().by_user == {}


# -- the server ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_stop_and_a_second_provider() -> None:
    """Two providers run side by side with counts of their own; a stopped one refuses connections."""
    with LoopbackProvider() as first, LoopbackProvider() as second:
        with openai.OpenAI(base_url=second.openai_base_url, api_key="k") as client:
            client.embeddings.create(model="m", input="x")
        assert (total(first).calls, total(second).calls) == (0, 1)
    with pytest.raises(OSError, match="refused"):
        raw(second, "/v1/embeddings", {})


@pytest.mark.server
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


@pytest.mark.server
def test_what_is_missing_is_named() -> None:
    """Without starlette or uvicorn, the ImportError says what to install."""
    code = "import sys; sys.modules['uvicorn'] = None; import voight_middleware.testing.provider"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert "ImportError: the loopback provider needs starlette and uvicorn: pip install 'voight-middleware[testing]'" in result.stderr
