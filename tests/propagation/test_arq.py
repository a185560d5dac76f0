"""ARQ: whose the calls of a job are."""

from typing import Any

import pytest

from .queues import check_queue

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


def test_worker(redis_url: str, workers: Any, voight_provider: Any) -> None:
    """Every place has the owner that the table says."""
    workers.start("arq", "arq_app.WorkerSettings", BROKER=redis_url, PROVIDER_OPENAI=voight_provider.openai_base_url, CRON="1")
    workers.wait_for("Starting worker")
    workers.run(SEND, BROKER=redis_url)
    workers.run(WITHOUT, BROKER=redis_url)

    def places() -> list[str]:
        return [call.tags.extra["place"] for call in workers.calls_so_far()]

    workers.wait_until(lambda: set(ORDER) <= set(places()) and "Thread(target=carry(fn))" in places())
    check_queue("ARQ", "asyncio", workers.calls(), ORDER)
