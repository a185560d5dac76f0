"""Dramatiq: whose the calls of an actor are, in threads and in greenlets."""

from typing import Any

import pytest

from .queues import check_queue, environment

pytest.importorskip("dramatiq")

SEND = """
import os, dramatiq
from dramatiq.brokers.redis import RedisBroker

# Before we are imported: as a process without us.
message = dramatiq.Message("default", "work", ("task from a process without us",), {}, {})
RedisBroker(url=os.environ["BROKER"]).enqueue(message)

import voight_middleware as voight
from dramatiq import group, pipeline
from dramatiq_app import *

with voight.tag(user_id="alice"):
    everywhere.send()
    if os.environ["POOL"] == "threads":
        everywhere_async.send()
    nested.send("task sent from a task")
    retrying.send("retry")
    pipeline([passing.message("pipeline"), after.message("pipeline")]).run()
    both = group([work.message("group"), work.message("group")])
    both.add_completion_callback(work.message("group callback"))
    both.run()
    work.send_with_options(args=("task with a callback",), on_success=on_success)
    failing.send_with_options(args=("task that fails",), on_failure=on_failure)
for _ in range(4):
    work.send("next task on the same worker")
"""
ORDER = ["task, sync", "task, async", "task sent from a task", "retry", "pipeline", "group", "group callback", "task with a callback"]
ORDER += ["behind what succeeded", "task that fails", "behind what failed", "next task on the same worker"]
ORDER += ["task from a process without us"]


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_owner_in_each_place_of_a_dramatiq_actor(pool: str, redis_url: str, workers: Any, voight_provider: Any) -> None:
    """Every place has the owner that the table says."""
    command = ["dramatiq" if pool == "threads" else "dramatiq_gevent", "dramatiq_app", "--processes", "1", "--threads", "2"]
    workers.start(*command, **environment(redis_url, voight_provider, POOL=pool))
    workers.run(SEND, BROKER=redis_url, POOL=pool)
    check_queue("Dramatiq", pool, workers, [place for place in ORDER if pool == "threads" or place != "task, async"])
