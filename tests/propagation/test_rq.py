"""RQ: whose the calls of a job are, in each worker."""

from typing import Any

import pytest

from .queues import check_queue, environment

pytest.importorskip("rq")

SEND = """
import voight_middleware as voight
from rq import Callback, Retry
from rq_app import *

with voight.tag(user_id="alice"):
    queue.enqueue(everywhere)
    queue.enqueue(everywhere_async)
    queue.enqueue(nested, "task sent from a task")
    queue.enqueue(failing_once, "retry", retry=Retry(max=1))
    first = queue.enqueue(work, "callback", on_success=Callback(on_success))
    queue.enqueue(work, "job that depends on another", depends_on=first)
    queue.enqueue(failing, "error callback", on_failure=Callback(on_failure))
for _ in range(2):
    queue.enqueue(work, "next task on the same worker")
Queue(connection=queue.connection).enqueue(work, "task from a process without us")
"""
ORDER = ["task, sync", "task, async", "task sent from a task", "retry", "callback", "behind callback", "job that depends on another"]
ORDER += ["error callback", "behind error callback", "next task on the same worker", "task from a process without us"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Worker", "SimpleWorker"])
def test_owner_in_each_place_of_an_rq_job(kind: str, redis_url: str, workers: Any, voight_provider: Any) -> None:
    """Every place has the owner that the table says, where a job has a process of its own and where it has not."""
    command = ["rq_worker", "worker", "--url", redis_url, "-w", f"rq.worker.{kind}", "-j", "voight_rq.CostTagJob", "--with-scheduler"]
    workers.start(*command, **environment(redis_url, voight_provider))
    workers.run(SEND, BROKER=redis_url)
    check_queue("RQ", kind, workers, ORDER)
