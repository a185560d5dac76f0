"""The same over real sockets: the loopback provider answers real HTTP clients, and breaks off where it is told to."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import openai
import pytest

from voight_middleware import tag, wrap
from voight_middleware.testing.provider import LoopbackProvider

from ..support.calls import Calls
from ..support.depth import times
from .entry_points import CHAT, MESSAGES, RESPONSES

STREAMS = times(40, 100)
KINDS = pytest.mark.parametrize("kind", ["chat", "responses", "messages"])


def begin(client: Any, kind: str, **headers: str) -> Any:
    """Start a stream, with faults that are asked for in headers."""
    wished = {f"x-loopback-{name.replace('_', '-')}": value for name, value in headers.items()}
    methods = {"chat": ("chat.completions", CHAT), "responses": ("responses", RESPONSES), "messages": ("messages", MESSAGES)}
    path, arguments = methods[kind]
    for name in path.split("."):
        client = getattr(client, name)
    return client.create(**arguments, stream=True, extra_headers=wished)


@pytest.fixture
def client(kind: str, loopback: LoopbackProvider, calls: Calls) -> Iterator[Any]:
    options: dict[str, Any] = {"api_key": "k", "max_retries": 0}
    made: Any = (
        anthropic.Anthropic(base_url=loopback.anthropic_base_url, **options)
        if kind == "messages"
        else openai.OpenAI(base_url=loopback.openai_base_url, **options)
    )
    with made:
        yield wrap(made)


@pytest.fixture
async def aclient(kind: str, loopback: LoopbackProvider, calls: Calls) -> AsyncIterator[Any]:
    options: dict[str, Any] = {"api_key": "k", "max_retries": 0}
    made: Any = (
        anthropic.AsyncAnthropic(base_url=loopback.anthropic_base_url, **options)
        if kind == "messages"
        else openai.AsyncOpenAI(base_url=loopback.openai_base_url, **options)
    )
    async with made:
        yield wrap(made)


@KINDS
def test_the_counts_are_those_that_the_provider_has_counted(kind: str, client: Any, loopback: LoopbackProvider, calls: Calls) -> None:
    """What the library has recorded is what the provider says it has served."""
    loopback.reset()
    list(begin(client, kind))

    call = calls.one()
    served = loopback.counts().total
    assert call.outcome == "ok"
    assert call.usage is not None
    assert (call.usage.input_tokens, call.usage.output_tokens) == (served.input_tokens, served.output_tokens)
    assert served.completed == 1


@KINDS
@pytest.mark.parametrize("events", ["1", "5"])
def test_a_cut_connection_is_an_error(kind: str, events: str, client: Any, calls: Calls) -> None:
    """The server closes the socket in the middle of the body."""
    with pytest.raises(Exception, match=r"(?i)connection"):
        list(begin(client, kind, cut_after=events))

    assert (calls.one().outcome, calls.one().http_status) == ("error", 200)
    assert calls.one().estimated


@KINDS
def test_a_stream_that_ends_early_is_truncated(kind: str, client: Any, calls: Calls) -> None:
    """The body ends in good order, without its last events."""
    list(begin(client, kind, end_after="5"))

    assert (calls.one().outcome, calls.one().estimated) == ("truncated", True)


@pytest.mark.slow
@KINDS
def test_a_stream_that_is_left_is_aborted_and_its_client_goes_on(kind: str, client: Any, calls: Calls) -> None:
    """The connection of a stream that was broken off is not reused, and the next call is whole."""
    with begin(client, kind, chunk_delay_ms="5") as stream:
        next(stream)
    list(begin(client, kind))

    left, whole = calls.all()
    assert (left.outcome, left.estimated) == ("aborted", True)
    assert (whole.outcome, whole.estimated) == ("ok", False)


@pytest.mark.slow
@KINDS
async def test_a_cancelled_stream_is_cancelled(kind: str, aclient: Any, calls: Calls) -> None:
    """A task that waits for the socket is cancelled."""
    begun = asyncio.Event()

    async def read() -> None:
        with tag(user_id="u_1"):
            stream = await begin(aclient, kind, chunk_delay_ms="200")
        async for _ in stream:
            begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (calls.one().outcome, calls.one().tags.user_id) == ("cancelled", "u_1")


@pytest.mark.slow
@KINDS
async def test_concurrent_streams_keep_their_owners(kind: str, aclient: Any, calls: Calls) -> None:
    """Streams of twenty users over one pool of connections."""

    async def request(number: int) -> None:
        with tag(user_id=f"u_{number % 20}", number=number):
            stream = await begin(aclient, kind)
        async for _ in stream:
            await asyncio.sleep(0)

    await asyncio.gather(*map(request, range(STREAMS)))

    made = calls.all()
    assert sorted(int(call.tags.extra["number"]) for call in made) == list(range(STREAMS))
    assert [call for call in made if call.tags.user_id != f"u_{int(call.tags.extra['number']) % 20}"] == []
    assert {(call.outcome, call.estimated) for call in made} == {("ok", False)}
