"""The jobs of the ARQ tests."""

import asyncio
import os
from typing import Any, ClassVar

from arq import Retry, cron
from arq.connections import RedisSettings
from places import ask, in_tasks, in_threads

import voight_middleware as voight
from voight_arq import instrument_arq

instrument_arq()
instrument_arq()


async def work(_ctx: dict[str, Any], place: str) -> None:
    await asyncio.sleep(0.01)
    ask(place)


async def retrying(ctx: dict[str, Any], place: str) -> None:
    if ctx["job_try"] < 2:
        raise Retry(defer=0.05)
    ask(place)


async def failing(_ctx: dict[str, Any], place: str) -> None:
    ask(place)
    raise ValueError(place)


async def slow(_ctx: dict[str, Any], place: str) -> None:
    ask(place)
    await asyncio.sleep(30)


async def nested(ctx: dict[str, Any], place: str) -> None:
    await ctx["redis"].enqueue_job("work", place)


async def through_all(ctx: dict[str, Any], users: list[str], place: str) -> None:
    ask(f"{place}, all")
    for user in users:
        voight.set_tags(user_id=user)
        ask(f"{place}, {user}")
        await ctx["redis"].enqueue_job("work", f"{place}, sent for {user}")


async def everywhere(_ctx: dict[str, Any]) -> None:
    ask("task, async")
    await in_tasks()
    in_threads()


async def scheduled(_ctx: dict[str, Any]) -> None:
    ask("task of a schedule")


class WorkerSettings:
    functions: ClassVar = [work, retrying, failing, slow, nested, through_all, everywhere]
    cron_jobs: ClassVar = [cron(scheduled, run_at_startup=True, hour=0, minute=0)] if "CRON" in os.environ else []
    redis_settings = RedisSettings.from_dsn(os.environ["BROKER"])
    job_timeout = 2
    poll_delay = 0.05
