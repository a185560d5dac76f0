"""A call in every place that a job can make one in, for the applications of the task queues."""

import asyncio
import contextvars
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import voight_middleware as voight

client: Any = None
if "PROVIDER_OPENAI" in os.environ:  # a process that only sends jobs makes no calls: it starts faster without the SDK
    import openai

    client = voight.wrap(openai.OpenAI(api_key="k", base_url=os.environ["PROVIDER_OPENAI"], max_retries=0))
    client.chat.completions  # noqa: B018 - imported on first use: here it is once, and not in each process that is forked


def ask(place: str) -> str:
    """One LLM call, marked with its place."""
    with voight.tag(place=place):
        return str(client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": place}]).id)


async def _here(place: str) -> None:
    ask(place)


async def in_tasks() -> None:
    """From a coroutine."""
    await asyncio.create_task(_here("asyncio.create_task"))
    await asyncio.gather(_here("asyncio.gather"))
    called = asyncio.Event()
    asyncio.get_running_loop().call_soon(lambda: (ask("loop.call_soon"), called.set()))
    await called.wait()
    await asyncio.to_thread(ask, "asyncio.to_thread")
    await asyncio.get_running_loop().run_in_executor(None, ask, "loop.run_in_executor(None, fn)")


def in_threads() -> None:
    """From a thread."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ask, "executor.submit(fn)").result()
        pool.submit(contextvars.copy_context().run, ask, "executor.submit(copy_context().run, fn)").result()
        pool.submit(voight.carry(ask), "executor.submit(carry(fn))").result()
    for target, place in ((ask, "Thread(target=fn)"), (voight.carry(ask), "Thread(target=carry(fn))")):
        thread = threading.Thread(target=target, args=(place,))
        thread.start()
        thread.join()


def in_greenlets() -> None:
    """From a greenlet."""
    import gevent

    gevent.spawn(ask, "gevent.spawn(fn)").join()
    gevent.spawn(voight.carry(ask), "gevent.spawn(carry(fn))").join()
