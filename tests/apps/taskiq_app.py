"""The tasks of the Taskiq tests, and a broker on a Redis list: Taskiq's own are distributions apart."""

import asyncio
import os
from collections.abc import AsyncGenerator

from places import ask, in_tasks, in_threads
from redis.asyncio import Redis
from taskiq import AsyncBroker, BrokerMessage, SimpleRetryMiddleware, TaskiqScheduler
from taskiq.schedule_sources import LabelScheduleSource

import voight_middleware as voight
from voight_taskiq import CostTagMiddleware


class ListBroker(AsyncBroker):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.redis = Redis.from_url(url)

    async def kick(self, message: BrokerMessage) -> None:
        await self.redis.lpush("taskiq", message.message)

    async def listen(self) -> AsyncGenerator[bytes, None]:
        while True:
            found = await self.redis.brpop(["taskiq"], timeout=1)
            if found is not None:
                yield found[1]

    async def shutdown(self) -> None:
        await super().shutdown()
        await self.redis.aclose()


broker = ListBroker(os.environ["BROKER"]).with_middlewares(CostTagMiddleware(), SimpleRetryMiddleware(default_retry_count=3))
scheduler = TaskiqScheduler(broker, [LabelScheduleSource(broker)])


@broker.task
async def work(place: str) -> None:
    await asyncio.sleep(0.01)
    ask(place)


@broker.task
def work_sync(place: str) -> None:
    ask(place)


_tried: set[str] = set()


@broker.task(retry_on_error=True)
async def retrying(place: str) -> None:
    if place not in _tried:
        _tried.add(place)
        raise ValueError(place)
    ask(place)


@broker.task
async def failing(place: str) -> None:
    ask(place)
    raise ValueError(place)


@broker.task
async def nested(place: str) -> None:
    await work.kiq(place)


@broker.task(timeout=0.3)
async def slow(place: str) -> None:
    ask(place)
    await asyncio.sleep(30)


@broker.task
async def through_all(users: list[str], place: str) -> None:
    ask(f"{place}, all")
    for user in users:
        voight.set_tags(user_id=user)
        await asyncio.to_thread(ask, f"{place}, {user}")
        await work.kiq(f"{place}, sent for {user}")


@broker.task
async def everywhere() -> None:
    ask("task, async")
    await in_tasks()
    in_threads()


@broker.task
def everywhere_sync() -> None:
    ask("task, sync")


@broker.task(schedule=[{"cron": "* * * * *"}])
async def scheduled() -> None:
    ask("task of a schedule")


@broker.task
async def load(number: int) -> None:
    await asyncio.to_thread(ask, str(number))
