"""Celery: whose the calls of a task are, in each pool."""

from typing import Any

import pytest

from .queues import check_queue, environment

SEND = """
import asyncio, os
from celery import Celery, chain, chord, group

with Celery("other", broker=os.environ["BROKER"]) as other:  # before we are imported: as a process without us
    other.send_task("celery_app.work", args=["task from a process without us"])

from anyio import to_thread
import voight_middleware as voight
from celery_app import *
from voight_middleware.middleware.getters import Getters
from voight_middleware.middleware.request_scope import RequestScope
from voight_middleware.context.context import use_scope

async def user(request):
    await asyncio.sleep(0)
    return "alice"

async def on_the_loop():
    with use_scope(RequestScope(lambda: None, Getters(user), lambda: None)):
        work.delay("delay() on the event loop, with an asynchronous getter")
    with use_scope(RequestScope(lambda: None, Getters(user), lambda: None)):
        await to_thread.run_sync(work.delay, "anyio.to_thread.run_sync(task.delay), with an asynchronous getter")

with voight.tag(user_id="alice"):
    everywhere.delay()
    nested.delay("task sent from a task")
    retrying.delay("retry")
    group(work.si("group") for _ in range(3)).apply_async()
    chain(work.si("chain"), work.si("chain"), work.si("chain")).apply_async()
    chord([work.si("chord") for _ in range(2)])(work.si("chord body"))
    work.apply_async(("task with a callback",), link=work.si("callback"))
    failing.apply_async(("task that fails",), link_error=on_error.s())
    eager_inside.delay("task.apply() in a task")
asyncio.run(on_the_loop())
for _ in range(4):
    work.delay("next task on the same worker")
if os.environ["POOL"] == "prefork":  # the other pools cannot kill a task
    with voight.tag(user_id="alice"):
        slow.apply_async(("task that is killed", 30), time_limit=1, link_error=on_kill.s())
"""
ORDER = ["task, sync", "task sent from a task", "retry", "group", "chain", "chord", "chord body", "task with a callback", "callback"]
ORDER += ["task that fails", "error callback", "task.apply() in a task, apply", "task.apply() in a task, behind"]
ORDER += ["delay() on the event loop, with an asynchronous getter"]
ORDER += ["anyio.to_thread.run_sync(task.delay), with an asynchronous getter"]
ORDER += ["next task on the same worker", "task from a process without us"]
KILLED = ["task that is killed", "error callback of a task that was killed"]


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_owner_in_each_place_of_a_celery_task(pool: str, redis_url: str, workers: Any, voight_provider: Any) -> None:
    """Every place has the owner that the table says."""
    command = ["celery", "-A", "celery_app", "worker", "-P", pool, "-c", "2", "-l", "INFO", "--without-gossip", "--without-mingle"]
    workers.start(*command, **environment(redis_url, voight_provider, POOL=pool))
    workers.run(SEND, BROKER=redis_url, POOL=pool)
    check_queue("Celery", pool, workers, ORDER + KILLED if pool == "prefork" else ORDER)
