"""Celery: whose the calls of a task are, in each pool."""

from typing import Any

import pytest

from .queues import check_queue

SEND = """
import asyncio
from anyio import to_thread
from celery import chain, chord, group
from celery_app import *
from voight_middleware.boundary.identity import Getters
from voight_middleware.boundary.scope import Scope
from voight_middleware.tags import bind

async def user(request):
    await asyncio.sleep(0)
    return "alice"

async def on_the_loop():
    with bind(Scope(lambda: None, Getters(user), lambda: None)):
        work.delay("delay() on the event loop, with an asynchronous getter")
    with bind(Scope(lambda: None, Getters(user), lambda: None)):
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
"""
KILL = """
from celery_app import *
with voight.tag(user_id="alice"):
    slow.apply_async(("task that is killed", 30), time_limit=1, link_error=on_kill.s())
"""
WITHOUT = """
import os
from celery import Celery
Celery("other", broker=os.environ["BROKER"]).send_task("celery_app.work", args=["task from a process without us"])
"""
ORDER = ["task, sync", "task sent from a task", "retry", "group", "chain", "chord", "chord body", "task with a callback", "callback"]
ORDER += ["task that fails", "error callback", "task.apply() in a task, apply", "task.apply() in a task, behind"]
ORDER += ["delay() on the event loop, with an asynchronous getter"]
ORDER += ["anyio.to_thread.run_sync(task.delay), with an asynchronous getter"]
ORDER += ["next task on the same worker", "task from a process without us"]
KILLED = ["task that is killed", "error callback of a task that was killed"]


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_pool(pool: str, redis_url: str, workers: Any, voight_provider: Any) -> None:
    """Every place has the owner that the table says."""
    environ = {"BROKER": redis_url, "PROVIDER_OPENAI": voight_provider.openai_base_url, "POOL": pool}
    command = ["celery", "-A", "celery_app", "worker", "-P", pool, "-c", "2", "-l", "INFO", "--without-gossip", "--without-mingle"]
    workers.start(*command, **environ)
    workers.wait_for("ready.")
    workers.run("import voight_middleware as voight" + SEND, BROKER=redis_url)
    workers.run(WITHOUT, BROKER=redis_url)
    order = list(ORDER)
    if pool == "prefork":  # the other pools cannot kill a task
        workers.run("import voight_middleware as voight" + KILL, BROKER=redis_url)
        order += KILLED

    def places() -> list[str]:
        return [call.tags.extra["place"] for call in workers.calls_so_far()]

    workers.wait_until(lambda: set(order) <= set(places()) and "Thread(target=carry(fn))" in places())
    check_queue("Celery", pool, workers.calls(), order)
