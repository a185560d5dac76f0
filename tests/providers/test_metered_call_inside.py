"""metered_call(): what is sent inside a block, blocks of generators, and faults of ours."""

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from voight_middleware import Usage, carry, metered_call, tag, wrap
from voight_middleware.instrumentation.request import current_request
from voight_middleware.propagation.messages import bound_to_message

from ..support.calls import Calls
from ..support.memory_provider import Provider
from ..support.patching import Patch
from .entry_points import CHAT

HOW: dict[str, Any] = {"provider": "openai", "model": "gpt-4o-mini"}


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    """After every test, what is sent here is metered as before."""
    yield
    assert current_request.get() is None


# -- what is sent inside


def test_a_wrapped_client_inside_is_not_counted_again(provider: Provider, calls: Calls) -> None:
    """Whatever the router uses to send: the block is the call. Afterwards the client is metered again."""
    client = wrap(provider.client("openai"))
    with metered_call(provider="router", model="m") as call:
        client.chat.completions.create(**CHAT)
        list(client.chat.completions.create(**CHAT, stream=True))
        call.report(input=1)
    client.chat.completions.create(**CHAT)

    assert [kept.provider for kept in calls.all()] == ["router", "openai"]


async def test_an_asynchronous_client_inside_is_not_counted_again(provider: Provider, calls: Calls) -> None:
    """Nor one that a task of the block uses; but what the task sends after the block's end is metered."""
    client = wrap(provider.client("openai", asynchronous=True))
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await client.chat.completions.create(**CHAT)
        begun.set()
        await ended.wait()
        await client.chat.completions.create(**CHAT, user="late")

    async with metered_call(provider="router", model="m") as call:
        task = asyncio.create_task(work())
        await client.chat.completions.create(**CHAT)
        await begun.wait()
        call.report(input=1)
    ended.set()
    await task
    await client.chat.completions.create(**CHAT)

    assert [kept.provider for kept in calls.all()] == ["router", "openai", "openai"]


def test_a_thread_that_outlives_the_block_is_metered_again(provider: Provider, calls: Calls) -> None:
    """A thread that runs in the block's context sees it end."""
    client = wrap(provider.client("openai"))
    begun, ended = threading.Event(), threading.Event()

    def work() -> None:
        client.chat.completions.create(**CHAT)
        begun.set()
        assert ended.wait(10)
        client.chat.completions.create(**CHAT)

    with metered_call(provider="router", model="m") as call:
        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
        thread.start()
        assert begun.wait(10)
        call.report(input=1)
    ended.set()
    thread.join()

    assert [kept.provider for kept in calls.all()] == ["router", "openai"]


def test_what_another_thread_sends_meanwhile_is_metered(provider: Provider, calls: Calls) -> None:
    """A thread of its own is not inside the block, whoever's work it does."""
    client = wrap(provider.client("openai"))
    with tag(user_id="u_1"), metered_call(provider="router", model="m") as call:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(carry(lambda: client.chat.completions.create(**CHAT))).result()
        call.report(input=1)

    assert {(kept.provider, kept.tags.user_id) for kept in calls.all()} == {("router", "u_1"), ("openai", "u_1")}


def test_blocks_inside_blocks_are_calls_of_their_own(provider: Provider, calls: Calls) -> None:
    """After the inner one the outer one is still open."""
    client = wrap(provider.client("openai"))
    with metered_call(provider="outer", model="m") as outer:
        with metered_call(provider="inner", model="m") as inner:
            client.chat.completions.create(**CHAT)
            inner.report(input=1)
        client.chat.completions.create(**CHAT)
        outer.report(input=2)
    client.chat.completions.create(**CHAT)

    assert [kept.provider for kept in calls.all()] == ["outer", "inner", "openai"]


# -- generators


def chunks() -> Iterator[int]:
    with metered_call(**HOW, streamed=True) as call:
        for number in range(3):
            call.first_token()
            yield number
        call.report(input=3)


async def achunks() -> AsyncIterator[int]:
    async with metered_call(**HOW, streamed=True) as call:
        for number in range(3):
            call.first_token()
            yield number
        call.report(input=3)


def read_all() -> None:
    assert list(chunks()) == [0, 1, 2]


def read_in_other_contexts() -> None:
    steps = chunks()
    contexts = [contextvars.copy_context() for _ in range(4)]
    assert [context.run(next, steps, None) for context in contexts] == [0, 1, 2, None]


@pytest.mark.parametrize("read", [read_all, read_in_other_contexts])
def test_a_generator_may_hold_a_block(read: Callable[[], None], calls: Calls) -> None:
    """Its steps may run in copies of the context, as a server's thread pool does: nothing raises, and the call is whole."""
    read()

    kept = calls.one()
    assert (kept.usage, kept.outcome) == (Usage(input=3), "ok")
    assert kept.ttft is not None


def test_a_generator_that_is_not_read_to_its_end_is_cancelled(calls: Calls) -> None:
    """The reader has left in the middle."""
    steps = chunks()
    next(steps)
    steps.close()  # type: ignore[attr-defined]

    assert (calls.one().outcome, calls.one().error) == ("cancelled", "GeneratorExit")


async def test_an_asynchronous_generator_may_hold_a_block(calls: Calls) -> None:
    """Closed in a task of its own, it raises nothing there."""
    assert [number async for number in achunks()] == [0, 1, 2]
    steps = achunks()
    await anext(steps)
    await asyncio.create_task(steps.aclose())  # type: ignore[attr-defined]
    if (mine := current_request.get()) is not None:
        assert not mine.open  # type: ignore[union-attr]
        current_request.set(None)

    assert [call.outcome for call in calls.all()] == ["ok", "cancelled"]


async def test_a_cancelled_task_is_a_cancelled_call(calls: Calls) -> None:
    """The cancellation goes on its way."""

    begun = asyncio.Event()

    async def work() -> None:
        async with metered_call(**HOW):
            begun.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (calls.one().outcome, calls.one().error) == ("cancelled", "CancelledError")


# -- faults of ours


class _Broken(Exception):
    pass


def _break(*_: Any, **__: Any) -> Any:
    raise _Broken


@pytest.mark.parametrize("place", ["current_meter", "resolve"])
async def test_a_fault_of_ours_stays_inside(place: str, calls: Calls, patch: Patch) -> None:
    """The block goes on, and its exception stays its own."""
    calls.faults_expected = True
    if place == "current_meter":
        patch("current_meter", _break, within="manual")
    else:
        patch("TagContext.resolve", _break)
        patch("TagContext.aresolve", _break)
    with metered_call(**HOW) as call:
        call.report(input=1)
    with bound_to_message(None), pytest.raises(KeyError):
        async with metered_call(**HOW):
            raise KeyError

    assert calls.faults == (4 if place == "current_meter" else 2)  # as it begins, and as it ends
    assert len(calls.all()) == (0 if place == "current_meter" else 2)
