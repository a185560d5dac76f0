"""voight_taskiq with a real worker on a real Redis, and with Taskiq's broker in memory."""

from __future__ import annotations

import asyncio
import signal
import textwrap
from typing import Any

import pytest

import voight_middleware as voight
from voight_middleware.context.context import current_context, use_scope
from voight_middleware.middleware.getters import Getters
from voight_middleware.middleware.request_scope import RequestScope

from ..support.queue_places import wait_for_places
from .queue_worker import Owners, owners

pytest.importorskip("taskiq")

from taskiq import InMemoryBroker, TaskiqMessage, TaskiqMiddleware

from voight_taskiq import CostTagMiddleware


def start(workers: Any, url: str, provider: Any) -> None:
    command = ["taskiq", "worker", "taskiq_app:broker", "--workers", "1", "--max-async-tasks", "20"]
    workers.start(*command, BROKER=url, PROVIDER_OPENAI=provider.openai_base_url)


def send(workers: Any, url: str, source: str) -> str:
    body = textwrap.indent(textwrap.dedent(source), "    ")
    prelude = "import voight_middleware as voight\nfrom taskiq_app import *\nasync def main():\n"
    return str(workers.run(f"{prelude}{body}\n    await broker.shutdown()\nasyncio.run(main())", BROKER=url))


@pytest.mark.slow
def test_every_task_has_the_owner_of_who_has_sent_it(redis_url: str, workers: Any, voight_provider: Any) -> None:
    """However a task is sent, asynchronous or in a thread, whatever runs beside it."""
    start(workers, redis_url, voight_provider)
    send(
        workers,
        redis_url,
        """
        for user in ("alice", "bob"):
            with voight.tag(user_id=user, plan="pro"):
                await work.kiq(f"{user} 1")
                await work_sync.kiq(f"{user} 2")
                await work.kicker().with_labels(mine="x").kiq(f"{user} with labels")
                await retrying.kiq(f"{user} retries")
                await failing.kiq(f"{user} fails")
                await nested.kiq(f"{user} nested")
                await slow.kiq(f"{user} time limit")
            await work.kiq(f"nobody 1 behind {user}")
            await work_sync.kiq(f"nobody 2 behind {user}")
        await through_all.kiq(["carol", "dave"], "nightly")
        """,
    )
    expected: Owners = {}
    for user in ("alice", "bob"):
        for place in ("1", "2", "with labels", "retries", "fails", "nested", "time limit"):
            expected[f"{user} {place}"] = (user, "tag")
        expected |= {f"nobody {number} behind {user}": (None, "none") for number in (1, 2)}
    expected["nightly, all"] = (None, "none")
    for user in ("carol", "dave"):
        expected |= dict.fromkeys((f"nightly, {user}", f"nightly, sent for {user}"), (user, "tag"))
    wait_for_places(workers, expected)
    calls = workers.calls(signal.SIGKILL)  # Taskiq takes its time to end; what a worker has spent is on disk
    assert owners(calls) == expected
    tags = {call.tags.extra["place"]: call.tags for call in calls}
    task = "taskiq_app:work"
    assert (tags["alice 1"].plan, tags["alice 1"].route, tags["alice 1"].extra["task"]) == ("pro", f"task {task}", task)
    assert tags["alice nested"].route == "task taskiq_app:nested"


async def test_an_asynchronous_getter_is_awaited_when_a_task_is_sent() -> None:
    """The user of an asynchronous getter is known to the task."""
    broker = InMemoryBroker().with_middlewares(CostTagMiddleware())

    async def user(_: Any) -> str:
        await asyncio.sleep(0)
        return "u"

    @broker.task
    async def task() -> tuple[str | None, str | None]:
        tags = voight.current_tags()
        return tags.user_id, tags.route

    with use_scope(RequestScope(lambda: None, Getters(user), lambda: "POST /chat")):
        sent = await task.kiq()
    assert (await sent.wait_result(timeout=5)).return_value == ("u", "POST /chat")
    await broker.shutdown()


async def test_a_task_that_runs_in_place_gives_its_caller_back_his_own() -> None:
    """Where the broker runs tasks inside of `kiq`, the caller's tags are in force again behind it."""
    broker = InMemoryBroker(await_inplace=True).with_middlewares(CostTagMiddleware())

    @broker.task
    async def task() -> str | None:
        voight.set_tags(user_id="v")
        return voight.current_tags().user_id

    with voight.tag(user_id="u"):
        before = current_context()
        sent = await task.kiq()
        assert current_context() is before
    assert (await sent.wait_result(timeout=5)).return_value == "v"
    await broker.shutdown()


async def test_a_message_that_another_middleware_replaces() -> None:
    """Another message behind ours does not leave the first one's owner bound."""

    class Replaces(TaskiqMiddleware):
        def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            return message.model_copy()

    broker = InMemoryBroker(await_inplace=True).with_middlewares(CostTagMiddleware(), Replaces())

    @broker.task
    def task() -> str | None:
        return voight.current_tags().user_id

    with voight.tag(user_id="u"):
        sent = await task.kiq()
    untagged = await task.kiq()
    assert (await sent.wait_result(timeout=5)).return_value == "u"
    assert (await untagged.wait_result(timeout=5)).return_value is None
    assert voight.current_tags() == voight.Tags()
    await broker.shutdown()
