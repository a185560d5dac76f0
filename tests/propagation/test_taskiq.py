"""Taskiq: whose the calls of a task are."""

import signal
from typing import Any

import pytest

from .queues import check_queue, environment

pytest.importorskip("taskiq")

SEND = """
import voight_middleware as voight
from taskiq_app import *

async def main():
    with voight.tag(user_id="alice"):
        await everywhere.kiq()
        await everywhere_sync.kiq()
        await nested.kiq("task sent from a task")
        await retrying.kiq("retry")
        await slow.kiq("task beyond its time")
    for _ in range(4):
        await work.kiq("next task on the same worker")
    broker.middlewares.clear()
    with voight.tag(user_id="alice"):
        await work.kiq("task from a process without us")
    await broker.shutdown()

asyncio.run(main())
"""
ORDER = ["task, sync", "task, async", "task sent from a task", "retry", "task beyond its time", "next task on the same worker"]
ORDER += ["task from a process without us", "task of a schedule"]


@pytest.mark.slow
def test_owner_in_each_place_of_a_taskiq_task(redis_url: str, workers: Any, voight_provider: Any) -> None:
    """Every place has the owner that the table says; the scheduler is a process of its own."""
    command = ["taskiq", "worker", "taskiq_app:broker", "--workers", "1", "--max-async-tasks", "20"]
    workers.start(*command, **environment(redis_url, voight_provider))
    workers.start("taskiq", "scheduler", "taskiq_app:scheduler", BROKER=redis_url)
    workers.run(SEND, BROKER=redis_url)
    check_queue("Taskiq", "asyncio", workers, ORDER, signal.SIGKILL)
