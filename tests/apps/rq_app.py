"""The jobs of the RQ tests."""

import asyncio
import os
import time
from typing import Any

from places import ask, in_tasks, in_threads
from redis import Redis
from rq import Queue, get_current_job

import voight_middleware as voight
from voight_rq import CostTagJob

queue = Queue("default", connection=Redis.from_url(os.environ["BROKER"]), job_class=CostTagJob)


def work(place: str) -> str:
    return ask(place)


async def work_async(place: str) -> str:
    await asyncio.sleep(0)
    return ask(place)


def failing_once(place: str) -> str:
    job = get_current_job()
    assert job is not None
    if job.retries_left:
        raise ValueError(place)
    return ask(place)


def failing(place: str) -> None:
    ask(place)
    raise ValueError(place)


def slow(place: str) -> None:
    ask(place)
    time.sleep(30)


def nested(place: str) -> None:
    queue.enqueue(work, place)


def through_all(users: list[str], place: str) -> None:
    ask(f"{place}, all")
    for user in users:
        voight.set_tags(user_id=user)
        ask(f"{place}, {user}")


def on_success(job: Any, _connection: Any, _result: Any) -> None:
    ask(f"behind {job.args[0]}")


def on_failure(job: Any, _connection: Any, _kind: Any, _error: Any, _trace: Any) -> None:
    ask(f"behind {job.args[0]}")


def everywhere() -> None:
    ask("task, sync")
    asyncio.run(in_tasks())
    in_threads()


async def everywhere_async() -> None:
    ask("task, async")


def load(number: int) -> str:
    return ask(str(number))
