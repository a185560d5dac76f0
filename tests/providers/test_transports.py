"""The HTTP library below an SDK makes no difference: its own, aiohttp, or a client of httpx where httpx2 is the SDK's own."""

from typing import Any

import anthropic
import httpx
import openai
import pytest

from voight_middleware import tag, wrap
from voight_middleware.testing.provider import LoopbackProvider

from ..support.calls import Calls
from ..support.memory_provider import USAGE, Provider
from .entry_points import WAYS, Way, both_kinds

CHOSEN = {
    *("chat.create", "chat.create(stream)", "chat.with_streaming_response.read", "chat.with_streaming_response.iter_lines"),
    *("responses.create", "responses.create(stream)", "responses.with_streaming_response(stream).iter_lines", "embeddings.create"),
    *("messages.create", "messages.create(stream)", "messages.with_streaming_response(stream).iter_lines", "copy.messages.create"),
}


def chosen(sdk: str | None = None) -> Any:
    """Parametrise a test over some of the ways in."""
    return pytest.mark.parametrize("way", [way for way in WAYS if way.name in CHOSEN and sdk in (None, way.sdk)], ids=str)


@pytest.mark.slow
@chosen("openai")
@both_kinds
async def test_a_client_of_httpx_is_metered(way: Way, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """openai 3.x still takes one, though httpx2 is its own library."""
    client = wrap(provider.client("openai", asynchronous=asynchronous, http_client=provider.http_client(httpx, asynchronous=asynchronous)))

    await way.arun(client) if asynchronous else way.run(client)

    assert (calls.one().outcome, calls.one().usage) == ("ok", USAGE[way.endpoint])


# -- over real sockets -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@chosen()
@pytest.mark.parametrize("transport", ["DefaultAsyncHttpxClient", "DefaultAioHttpClient"])
async def test_a_client_of_the_sdks_own_is_metered(transport: str, way: Way, loopback: LoopbackProvider, calls: Calls) -> None:
    """That of the SDK's HTTP library, and that of the extra ``aiohttp``: the counts are the provider's own."""
    if transport == "DefaultAioHttpClient":
        pytest.importorskip("aiohttp")
    sdk: Any = openai if way.sdk == "openai" else anthropic
    if not hasattr(sdk, transport):
        pytest.skip(f"this {way.sdk} has none")
    loopback.reset()
    base_url = loopback.openai_base_url if sdk is openai else loopback.anthropic_base_url
    make = openai.AsyncOpenAI if sdk is openai else anthropic.AsyncAnthropic
    async with make(api_key="k", base_url=base_url, max_retries=0, http_client=getattr(sdk, transport)()) as client:
        with tag(user_id="u_1"):
            await way.arun(wrap(client))

    call, served = calls.one(), loopback.counts().total
    assert (call.outcome, call.tags.user_id, call.estimated) == ("ok", "u_1", False)
    assert call.usage is not None
    assert (call.usage.input_tokens, call.usage.output_tokens or 0) == (served.input_tokens, served.output_tokens)
    assert (served.calls, served.completed) == (1, 1)


@pytest.mark.parametrize("left", [0, 1])
async def test_a_stream_of_aiohttp_that_is_left_is_aborted(left: int, loopback: LoopbackProvider, calls: Calls) -> None:
    """Closed before its first event, or behind it."""
    pytest.importorskip("aiohttp")
    async with openai.AsyncOpenAI(api_key="k", base_url=loopback.openai_base_url, http_client=openai.DefaultAioHttpClient()) as client:
        stream = await wrap(client).chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": "Where?"}], stream=True
        )
        for _ in range(left):
            await anext(stream)
        await stream.close()

    assert (calls.one().outcome, calls.one().http_status) == ("aborted", 200)
