"""ARQ: whose the calls of a job are."""

from typing import Any

import pytest

from .queues import check_queue, environment

pytest.importorskip("arq")

SEND = """
import voight_middleware as voight
from arq import create_pool
from arq_app import *

async def main():
    redis = await create_pool(WorkerSettings.redis_settings)
    with voight.tag(user_id="alice"):
        await redis.enqueue_job("everywhere")
        await redis.enqueue_job("nested", "task sent from a task")
        await redis.enqueue_job("retrying", "retry")
        await redis.enqueue_job("slow", "task beyond its time")
    for _ in range(4):
        await redis.enqueue_job("work", "next task on the same worker")
    await getattr(redis, 'aclose', redis.close)()

asyncio.run(main())
"""
WITHOUT = """
import asyncio, os
from arq import create_pool
from arq.connections import RedisSettings

async def main():
    redis = await create_pool(RedisSettings.from_dsn(os.environ["BROKER"]))
    await redis.enqueue_job("work", "task from a process without us")
    await getattr(redis, 'aclose', redis.close)()

asyncio.run(main())
"""
ORDER = ["task, async", "task sent from a task", "retry", "task beyond its time", "next task on the same worker"]
ORDER += ["task from a process without us", "task of a schedule"]


@pytest.mark.slow
def test_owner_in_each_place_of_an_arq_job(redis_url: str, workers: Any, voight_provider: Any) -> None:
    """Every place has the owner that the table says."""
    workers.start("arq", "arq_app.WorkerSettings", **environment(redis_url, voight_provider, CRON="1"))
    workers.run(SEND, BROKER=redis_url)
    workers.run(WITHOUT, BROKER=redis_url)
    check_queue("ARQ", "asyncio", workers, ORDER)
