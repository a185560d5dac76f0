"""The actors of the Dramatiq tests."""

import asyncio
import os
import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO, GroupCallbacks
from dramatiq.rate_limits.backends import RedisBackend
from places import ask, in_greenlets, in_tasks, in_threads

import voight_middleware as voight
from voight_dramatiq import instrument_dramatiq

broker = RedisBroker(url=os.environ["BROKER"])
broker.add_middleware(AsyncIO())
broker.add_middleware(GroupCallbacks(RedisBackend(url=os.environ["BROKER"])))
instrument_dramatiq(broker)
instrument_dramatiq(broker)
dramatiq.set_broker(broker)


@dramatiq.actor
def work(place: str) -> None:
    ask(place)


@dramatiq.actor
def after(place: str, _result: object) -> None:
    ask(place)


@dramatiq.actor
def passing(place: str) -> str:
    ask(place)
    return "passed on"


@dramatiq.actor
async def work_async(place: str) -> None:
    await asyncio.sleep(0.01)
    ask(place)


_tried: set[str] = set()


@dramatiq.actor(max_retries=3, min_backoff=10, max_backoff=20)
def retrying(place: str) -> None:
    if place not in _tried:
        _tried.add(place)
        raise ValueError(place)
    ask(place)


@dramatiq.actor(max_retries=0)
def failing(place: str) -> None:
    ask(place)
    raise ValueError(place)


@dramatiq.actor
def on_failure(_message: object, _error: object) -> None:
    ask("behind what failed")


@dramatiq.actor
def on_success(_message: object, _result: object) -> None:
    ask("behind what succeeded")


@dramatiq.actor
def nested(place: str) -> None:
    work.send(place)


@dramatiq.actor(time_limit=500, max_retries=0)
def slow(place: str) -> None:
    ask(place)
    while True:
        time.sleep(0.01)


@dramatiq.actor
def setting(user: str, place: str) -> str:
    voight.set_tags(user_id=user)
    ask(place)
    return place


@dramatiq.actor
def through_all(users: list[str], place: str) -> str:
    ask(f"{place}, all")
    for user in users:
        voight.set_tags(user_id=user)
        ask(f"{place}, {user}")
        work.send(f"{place}, sent for {user}")
    return place


@dramatiq.actor
def everywhere() -> None:
    ask("task, sync")
    if os.environ.get("POOL") == "gevent":
        in_greenlets()
    else:
        asyncio.run(in_tasks())
    in_threads()


@dramatiq.actor
async def everywhere_async() -> None:
    ask("task, async")


@dramatiq.actor
def load(number: int) -> None:
    ask(str(number))
