"""What the ASGI applications of the table of propagation share: metered clients, and the places that every framework has."""

import asyncio
import contextvars
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import openai

import voight_middleware as voight

OPTIONS: Any = {"api_key": "k", "base_url": os.environ["PROVIDER_OPENAI"], "max_retries": 0}
MESSAGES: Any = [{"role": "user", "content": "Where?"}]
client = voight.wrap(openai.OpenAI(**OPTIONS))
aclient = voight.wrap(openai.AsyncOpenAI(**OPTIONS))
executor = ThreadPoolExecutor(2)
called: list[str] = []
"""The places in which a call has been made."""
_tasks: set[Any] = set()
queue: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()


def user_of(connection: Any) -> str | None:
    return connection.headers.get("x-user")  # type: ignore[no-any-return]


def call(place: str) -> None:
    """One call, marked with the place that it is made in."""
    client.chat.completions.create(model=place, messages=MESSAGES)
    called.append(place)


async def acall(place: str) -> None:
    """As ``call``, asynchronously."""
    await aclient.chat.completions.create(model=place, messages=MESSAGES)
    called.append(place)


async def acall_elsewhere(place: str) -> None:
    """As ``acall``, on another event loop."""
    async with voight.wrap(openai.AsyncOpenAI(**OPTIONS)) as own:
        await own.chat.completions.create(model=place, messages=MESSAGES)
    called.append(place)


async def worker() -> None:
    """Started with the application, before any request."""
    while True:
        job = await queue.get()
        await job()


def keep(task: Any) -> None:
    """Keep a task that nobody awaits."""
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


# -- places inside a handler ---------------------------------------------------------------------------------------------------------


async def _task_group(place: str) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(acall, place)


async def _call_soon(place: str) -> None:
    asyncio.get_running_loop().call_soon(call, place)
    await asyncio.sleep(0)


async def _outliving(place: str) -> None:
    async def later() -> None:
        await asyncio.sleep(0.3)
        await acall(place)

    keep(asyncio.create_task(later()))


async def _from_thread(place: str) -> None:
    await anyio.to_thread.run_sync(anyio.from_thread.run, acall, place)


async def _own_loop(place: str) -> None:
    await anyio.to_thread.run_sync(lambda: asyncio.run(acall_elsewhere(place)))


async def _in_thread(place: str, carry: Callable[[Any], Any]) -> None:
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        call(place)
        loop.call_soon_threadsafe(done.set)

    threading.Thread(target=carry(work)).start()
    await done.wait()


def _as_it_is(function: Any) -> Any:
    return function


async def _queued(place: str, carry: Callable[[Any], Any]) -> None:
    async def job() -> None:
        await acall(place)

    await queue.put(carry(job))


def _submitted(place: str, *call_and_arguments: Any) -> Awaitable[Any]:
    return asyncio.wrap_future(executor.submit(*call_and_arguments, place))


EVERYWHERE: dict[str, Callable[[str], Awaitable[Any]]] = {
    "asyncio.create_task": lambda place: asyncio.create_task(acall(place)),
    "asyncio.gather": lambda place: asyncio.gather(acall(place), asyncio.sleep(0)),
    "anyio task group": _task_group,
    "loop.call_soon": _call_soon,
    "task that outlives the request": _outliving,
    "asyncio.to_thread": lambda place: asyncio.to_thread(call, place),
    "anyio.from_thread.run": _from_thread,
    "asyncio.run in a sync handler": _own_loop,
    "loop.run_in_executor(None, fn)": lambda place: asyncio.get_running_loop().run_in_executor(None, call, place),
    "loop.run_in_executor(None, carry(fn))": lambda place: asyncio.get_running_loop().run_in_executor(None, voight.carry(call), place),
    "executor.submit(fn)": lambda place: _submitted(place, call),
    "executor.submit(copy_context().run, fn)": lambda place: _submitted(place, contextvars.copy_context().run, call),
    "executor.submit(carry(fn))": lambda place: _submitted(place, voight.carry(call)),
    "Thread(target=fn)": lambda place: _in_thread(place, _as_it_is),
    "Thread(target=carry(fn))": lambda place: _in_thread(place, voight.carry),
    "worker task of the lifespan, fed by a queue": lambda place: _queued(place, _as_it_is),
    "worker task of the lifespan, fed by a queue of carry(fn)": lambda place: _queued(place, voight.carry),
}
"""By place: what an asynchronous handler awaits to have a call made in it."""


async def astream(place: str) -> AsyncIterator[str]:
    """An answer that is made while it is sent."""
    yield "."
    await acall(place)
    yield "."


def stream(place: str) -> Any:
    """As ``astream``, synchronously."""
    yield "."
    call(place)
    yield "."
