"""A script that makes calls wherever code of one process and of its children can run, for a signed-in user; in the way of ``CARRY``."""

import asyncio
import contextvars
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import voight_middleware as voight
from voight_middleware.context.executors import CarryingThreadPoolExecutor, acarry_steps, carry_steps, instrument_executors


def ask(place: str) -> None:
    """One call, marked with its place."""
    with voight.tag(place=place):
        voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1, "completion_tokens": 1})


def steps(place: str) -> Iterator[int]:
    ask(place)
    yield 1


async def ask_later(place: str) -> None:
    ask(place)


async def async_steps(place: str) -> AsyncIterator[int]:
    ask(place)
    yield 1


async def on_a_loop() -> None:
    loop = asyncio.get_running_loop()
    await asyncio.create_task(ask_later("asyncio.create_task"))
    await asyncio.gather(ask_later("asyncio.gather"))
    called = asyncio.Event()
    loop.call_soon(lambda: (ask("loop.call_soon"), called.set()))
    await called.wait()
    await asyncio.to_thread(ask, "asyncio.to_thread")
    await loop.run_in_executor(None, ask, "loop.run_in_executor(None, fn)")
    await loop.run_in_executor(None, voight.carry(ask), "loop.run_in_executor(None, carry(fn))")


def in_executors() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ask, "executor.submit(fn)").result()
        list(pool.map(ask, ["executor.map(fn, items)"]))
        pool.submit(contextvars.copy_context().run, ask, "executor.submit(copy_context().run, fn)").result()
        pool.submit(voight.carry(ask), "executor.submit(carry(fn))").result()
    with CarryingThreadPoolExecutor(1) as pool:
        pool.submit(ask, "CarryingThreadPoolExecutor.submit(fn)").result()
        list(pool.map(ask, ["CarryingThreadPoolExecutor.map(fn, items)"]))


def in_threads() -> None:
    timer = threading.Timer(0, ask, ["Timer(seconds, fn)"])
    for thread in (
        threading.Thread(target=ask, args=("Thread(target=fn)",)),
        threading.Thread(target=voight.carry(ask), args=("Thread(target=carry(fn))",)),
        timer,
    ):
        thread.start()
        thread.join()


def in_processes() -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        pool.submit(ask, "ProcessPoolExecutor.submit(fn)").result()
    process = spawn.Process(target=ask, args=("multiprocessing.Process(target=fn)",))
    process.start()
    process.join()
    subprocess.run([sys.executable, "-c", "import threads_app; threads_app.ask('subprocess.run([...])')"], check=True)


def drive(work: "queue.Queue[Callable[[], object] | None]") -> None:
    """A thread as a server has them: it was there before the request, and works for all."""
    while (function := work.get()) is not None:
        function()
        work.task_done()


async def walk(items: Any) -> list[int]:
    return [item async for item in items]


def main() -> None:
    work: queue.Queue[Callable[[], object] | None] = queue.Queue()
    server = threading.Thread(target=drive, args=(work,))
    server.start()
    pool = ThreadPoolExecutor(1)
    if os.environ["CARRY"] != "as it is":
        instrument_executors(threads=os.environ["CARRY"] == "threads too")
    with voight.tag(user_id="alice"):
        asyncio.run(on_a_loop())
        in_executors()
        in_threads()
        work.put(partial(list, steps("generator stepped in another thread")))
        work.put(partial(list, carry_steps(steps("carry_steps(generator) stepped in another thread"))))
        walked = acarry_steps(async_steps("acarry_steps(generator) stepped in another thread"))
        work.put(lambda: asyncio.run(walk(walked)))
        work.put(partial(ask, "long-lived thread, fed by a queue"))
        work.put(voight.carry(partial(ask, "carry(fn) put into the queue")))
        work.join()
        in_processes()
        pool.submit(ask, "first work on a thread").result()
    work.put(partial(ask, "next work on the same thread"))
    work.join()
    pool.submit(ask, "next work on the same executor").result()
    pool.shutdown()
    work.put(None)
    server.join()


if __name__ == "__main__":
    main()
