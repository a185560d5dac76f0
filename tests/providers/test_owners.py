"""Whose call it is: the owner is the one of the moment in which the call was made."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from voight_middleware import carry, set_tags, tag, wrap
from voight_middleware.records.tags import Tags

from ..support.calls import Calls
from ..support.memory_provider import Provider
from .entry_points import CHAT, EMBEDDINGS, MESSAGES

USERS = 50
CALLS = 200


def owners(calls: Calls) -> list[str | None]:
    return [call.tags.user_id for call in calls.all()]


def test_a_call_carries_every_tag_of_its_block(provider: Provider, calls: Calls) -> None:
    """Nested tags are merged, and a call outside the block has none."""
    client = wrap(provider.client("openai"))
    outer = tag(user_id="u_1", plan="pro", tenant_id="t_1", session_id="s_1", feature="summary")
    with outer, tag(route="POST /chat", feature="title"):
        client.chat.completions.create(**CHAT)
    client.embeddings.create(**EMBEDDINGS)

    inside, outside = calls.all()
    assert inside.tags == Tags(user_id="u_1", plan="pro", tenant_id="t_1", session_id="s_1", route="POST /chat", extra={"feature": "title"})
    assert (inside.attribution, outside.attribution) == ("tag", "none")
    assert outside.tags == Tags()


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
def test_a_stream_belongs_to_whoever_began_it(sdk: str, provider: Provider, calls: Calls) -> None:
    """It is read to its end in another thread, under another user's tags, after the block has ended."""
    client = wrap(provider.client(sdk))
    with tag(user_id="u_1"):
        stream = client.chat.completions.create(**CHAT, stream=True) if sdk == "openai" else client.messages.create(**MESSAGES, stream=True)

    def drain() -> None:
        with tag(user_id="u_2"):
            list(stream)

    thread = threading.Thread(target=drain)
    thread.start()
    thread.join()

    assert owners(calls) == ["u_1"]


async def test_a_stream_that_another_task_reads_belongs_to_whoever_began_it(provider: Provider, calls: Calls) -> None:
    """The same, in another task with a context of its own."""
    client = wrap(provider.client("openai", asynchronous=True))
    async with tag(user_id="u_1"):
        stream = await client.chat.completions.create(**CHAT, stream=True)

    async def drain() -> None:
        with tag(user_id="u_2"):
            async for _ in stream:
                pass

    await asyncio.create_task(drain(), context=contextvars.Context())

    assert owners(calls) == ["u_1"]


def test_a_failed_call_has_its_owner_too(provider: Provider, calls: Calls) -> None:
    """An error is somebody's as well."""
    provider.answer = lambda path, body: (500, {}, [b"no"])
    client = wrap(provider.client("openai"))
    with tag(user_id="u_1"), pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**CHAT)

    assert owners(calls) == ["u_1"]
    assert calls.one().outcome == "error"


def test_tags_set_without_a_block_hold_for_the_rest_of_the_context(provider: Provider, calls: Calls) -> None:
    """``set_tags()`` in a context that is no request, such as a script."""
    client = wrap(provider.client("openai"))

    def script() -> None:
        client.embeddings.create(**EMBEDDINGS)
        set_tags(user_id="u_1")
        client.embeddings.create(**EMBEDDINGS)

    contextvars.Context().run(script)

    assert owners(calls) == [None, "u_1"]


@pytest.mark.slow
async def test_concurrent_tasks_never_mix_their_owners(provider: Provider, calls: Calls) -> None:
    """Two hundred interleaved calls of fifty users through one client, plain and streamed: each has its own user."""
    client = wrap(provider.client("openai", asynchronous=True))
    turns = asyncio.Event()

    async def request(number: int) -> None:
        with tag(user_id=f"u_{number % USERS}", number=number):
            await turns.wait()
            await asyncio.sleep(0)
            if number % 2:
                await client.chat.completions.create(**CHAT)
                return
            stream = await client.chat.completions.create(**CHAT, stream=True)
            async for _ in stream:
                await asyncio.sleep(0)

    tasks = [asyncio.create_task(request(number)) for number in range(CALLS)]
    await asyncio.sleep(0)
    turns.set()
    await asyncio.gather(*tasks)

    made = calls.all()
    assert sorted(int(call.tags.extra["number"]) for call in made) == list(range(CALLS))
    assert [call for call in made if call.tags.user_id != f"u_{int(call.tags.extra['number']) % USERS}"] == []
    assert {call.outcome for call in made} == {"ok"}


@pytest.mark.slow
def test_concurrent_threads_never_mix_their_owners(provider: Provider, calls: Calls) -> None:
    """The same with sixteen threads; what is submitted with ``carry`` belongs to whoever submitted it."""
    client = wrap(provider.client("openai"))
    together = threading.Barrier(16)

    def request(number: int, wait: bool) -> None:
        if wait:
            together.wait(30)
        if number % 2:
            client.chat.completions.create(**CHAT)
        else:
            list(client.chat.completions.create(**CHAT, stream=True))

    with ThreadPoolExecutor(16) as pool:
        waiting: list[Any] = []
        for number in range(CALLS):
            with tag(user_id=f"u_{number % USERS}", number=number):
                waiting.append(pool.submit(carry(request), number, number < 16))
        for one in waiting:
            one.result(60)

    made = calls.all()
    assert sorted(int(call.tags.extra["number"]) for call in made) == list(range(CALLS))
    assert [call for call in made if call.tags.user_id != f"u_{int(call.tags.extra['number']) % USERS}"] == []
