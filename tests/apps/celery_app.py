"""The tasks of the Celery tests: each makes an LLM call in the place that it is named for."""

import asyncio
import os
import time
from typing import Any

from celery import Celery, chord, group, shared_task
from celery.exceptions import Ignore, Reject
from places import ask, in_greenlets, in_tasks, in_threads

import voight_middleware as voight
from voight_celery import instrument_celery

app = Celery("app", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=False,
    worker_hijack_root_logger=False,
    result_backend_transport_options={"visibility_timeout": 3600},
)
instrument_celery()
instrument_celery(app)


@app.task
def work(place: str) -> str:
    return ask(place)


@app.task
def after(_result: Any, place: str) -> str:
    return ask(place)


@app.task(bind=True, max_retries=3)
def retrying(self: Any, place: str) -> str:
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return ask(place)


@app.task(bind=True, max_retries=1)
def nobodys_retry(self: Any, place: str) -> str:
    """Without an owner; it names one before it fails, and does not name him again."""
    if self.request.retries == 0:
        voight.set_tags(user_id="first try")
        raise self.retry(countdown=0)
    return ask(place)


@app.task
def nested(place: str) -> None:
    work.delay(place)


@app.task
def setting(user: str, place: str) -> str:
    voight.set_tags(user_id=user)
    return ask(place)


@app.task
def through_all(users: list[str], place: str) -> None:
    """A nightly job: a call for everybody together, then one for each."""
    ask(f"{place}, all")
    for user in users:
        voight.set_tags(user_id=user)
        ask(f"{place}, {user}")
        work.delay(f"{place}, sent for {user}")


@app.task
def failing(place: str) -> None:
    ask(place)
    raise ValueError(place)


@app.task
def on_error(_uuid: str) -> str:
    return ask("error callback")


@app.task
def on_kill(_uuid: str) -> str:
    return ask("error callback of a task that was killed")


@app.task
def on_error_in_place(_request: Any, _exc: Any, _trace: Any, place: str) -> str:
    return ask(place)


@app.task
def ignoring(place: str, how: str) -> None:
    ask(place)
    raise Ignore if how == "ignore" else Reject(requeue=False)


@app.task
def eager_inside(place: str) -> str:
    with voight.tag(step="eager"):
        work.apply(args=[f"{place}, apply"])
    return ask(f"{place}, behind")


@app.task
def slow(place: str, seconds: float) -> None:
    ask(place)
    time.sleep(seconds)


@app.task(bind=True)
def replacing(self: Any, place: str) -> None:
    raise self.replace(work.s(place))


@app.task
def makes_chord(place: str) -> None:
    chord(group(work.s(f"{place}, header {number}") for number in range(2)))(after.s(f"{place}, body"))


@app.task
def everywhere() -> None:
    ask("task, sync")
    if os.environ.get("POOL") == "gevent":
        in_greenlets()
    else:
        asyncio.run(in_tasks())
    in_threads()


@shared_task
def load(number: int) -> str:
    """For the load test: where the provider takes its time, tasks overlap."""
    return ask(str(number))


@app.task
def scheduled() -> str:
    return ask("task of a schedule")


app.conf.beat_schedule = {"often": {"task": "celery_app.scheduled", "schedule": 0.5}}
