"""Taskiq: whose the calls of a task are."""

import signal
from typing import Any

import pytest

from .queues import check_queue

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


def test_worker(redis_url: str, workers: Any, voight_provider: Any) -> None:
    """Every place has the owner that the table says; the scheduler is a process of its own."""
    environ = {"BROKER": redis_url, "PROVIDER_OPENAI": voight_provider.openai_base_url}
    workers.start("taskiq", "worker", "taskiq_app:broker", "--workers", "1", "--max-async-tasks", "20", **environ)
    workers.wait_for("Listening started.")
    workers.run(SEND, BROKER=redis_url)
    workers.start("taskiq", "scheduler", "taskiq_app:scheduler", BROKER=redis_url)

    def places() -> list[str]:
        return [call.tags.extra["place"] for call in workers.calls_so_far()]

    workers.wait_until(lambda: set(ORDER) <= set(places()) and "Thread(target=carry(fn))" in places())
    check_queue("Taskiq", "asyncio", workers.calls(signal.SIGKILL), ORDER)
