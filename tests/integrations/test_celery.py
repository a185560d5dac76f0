"""voight_celery with real worker processes on a real Redis, in every pool; and what runs in place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, signals

import voight_middleware as voight
from voight_celery import instrument_celery
from voight_middleware.context.context import current_context, use_scope
from voight_middleware.propagation.messages import KEY, JobScope
from voight_middleware.records.call import Call

from ..support.depth import times
from .queue_worker import QueueWorker, celery_worker

POOLS = ["prefork", "threads", "gevent"]
SCHEDULED = "task of a schedule"  # of the worker that has beat inside
LOAD_TASKS = times(102, 306)


@pytest.fixture(scope="module")
def worker(redis_server: int, make_workers: Any, voight_provider: Any, tmp_path_factory: Any) -> Iterator[Callable[[str], QueueWorker]]:
    """Answers the worker of a pool, with a database of Redis of its own: it is started once, and runs until the last test of this file."""
    running: dict[str, QueueWorker] = {}

    def of(pool: str) -> QueueWorker:
        if pool not in running:
            database = 1 + [*POOLS, "solo"].index(pool)
            workers = make_workers(tmp_path_factory.mktemp("worker"))
            running[pool] = celery_worker(pool, f"redis://127.0.0.1:{redis_server}/{database}", workers, voight_provider)
            running[pool].ignored = {SCHEDULED}
        return running[pool]

    yield of
    for each in running.values():
        each.workers.stop()


@pytest.mark.slow
@pytest.mark.parametrize("pool", [*POOLS, pytest.param("solo", marks=pytest.mark.deep)])
def test_every_task_has_the_owner_of_who_has_caused_it(pool: str, worker: Callable[[str], QueueWorker]) -> None:
    """
    However a task is sent and whatever has run before it on the same thread, process or greenlet.

    Every call says which task it was made in, and a task that no request has caused is its own route.
    """
    expected = json.loads(worker(pool).send("import celery_producer"))
    calls = worker(pool).expect({place: (user, "tag" if user else "none") for place, user in expected.items()})
    tags = {place: call.tags for place, call in calls.items()}
    assert (tags["delay"].extra["task"], tags["delay"].route) == ("celery_app.work", "task celery_app.work")
    assert (tags["task in task"].extra["task"], tags["task in task"].route) == ("celery_app.work", "task celery_app.nested")
    assert tags["delay"].plan == "pro"


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_many_users_at_once(pool: str, worker: Callable[[str], QueueWorker]) -> None:
    """Tasks of fifty users and of nobody, mixed, several at a time: no wrong owner, and no call lost or doubled."""
    worker(pool).send(
        f"""
        import voight_middleware as voight
        from celery_app import *

        for number in range({LOAD_TASKS}):
            with voight.tag(user_id=f"u_{{number % 51}}" if number % 51 else None):
                load.delay(number)
        """
    )
    worker(pool).expect({str(number): (f"u_{number % 51}", "tag") if number % 51 else (None, "none") for number in range(LOAD_TASKS)})


@pytest.mark.slow
def test_a_task_that_is_killed_or_stopped(worker: Callable[[str], QueueWorker]) -> None:
    """Calls before a time limit or a kill have their owner; the tasks behind them are nobody's, and a revoked one makes none."""
    own = worker("prefork")
    killed = own.send(
        """
        import voight_middleware as voight
        from celery_app import *

        with voight.tag(user_id="u"):
            slow.apply_async(("soft limit", 30), soft_time_limit=1)
            slow.apply_async(("hard limit", 30), time_limit=1)
            print(slow.delay("killed", 30).id)
        """
    ).strip()
    stopped = dict.fromkeys(("soft limit", "hard limit", "killed"), ("u", "tag"))
    own.expect(stopped)
    own.send(
        f"""
        import voight_middleware as voight
        from celery_app import *

        answer = {{"reply": True, "limit": 1, "timeout": 60}}
        assert app.control.revoke("{killed}", terminate=True, signal="SIGKILL", **answer)
        assert app.control.revoke("revoked before it is sent", **answer)
        with voight.tag(user_id="u"):
            work.apply_async(("revoked",), task_id="revoked before it is sent")
        for number in range(4):
            work.delay(f"behind {{number}}")
        """
    )
    own.expect({f"behind {number}": (None, "none") for number in range(4)})


def test_a_producer_without_us_sends_tasks_of_nobody(worker: Callable[[str], QueueWorker]) -> None:
    """A message without our header is nobody's, and so is one whose header is not ours."""
    worker("threads").send(
        """
        import os
        from celery import Celery

        app = Celery("other", broker=os.environ["BROKER"])
        app.send_task("celery_app.work", args=["bare"])
        app.send_task("celery_app.work", args=["odd"], headers={"voight": {"user_id": "x"}})
        app.send_task("celery_app.work", args=["broken"], headers={"voight": "alice"})
        """
    )
    worker("threads").expect(dict.fromkeys(("bare", "odd", "broken"), (None, "none")))


def test_a_getter_that_raises_does_not_stop_a_task(worker: Callable[[str], QueueWorker]) -> None:
    """What goes wrong where the task is sent costs the owner, and not the task."""
    worker("threads").send(
        """
        import voight_middleware as voight
        from celery_app import *

        from voight_middleware.middleware.getters import Getters
        from voight_middleware.middleware.request_scope import RequestScope
        from voight_middleware.context.context import use_scope

        def broken(_):
            raise RuntimeError

        with use_scope(RequestScope(lambda: None, Getters(broken), lambda: "POST /chat")):
            work.delay("broken getter")
        """
    )
    worker("threads").expect({"broken getter": (None, "error")})


def test_beat_sends_tasks_of_nobody(worker: Callable[[str], QueueWorker]) -> None:
    """A task of the schedule is nobody's, also where beat runs inside of the worker."""
    workers = worker("threads").workers

    def scheduled() -> list[Call]:
        return [call for call in workers.calls_so_far() if call.tags.extra["place"] == SCHEDULED]

    workers.wait_until(lambda: len(scheduled()) >= 2)
    assert {(call.tags.user_id, call.tags.route) for call in scheduled()} == {(None, "task celery_app.scheduled")}


@pytest.fixture
def eager() -> Iterator[Celery]:
    app = Celery("eager", set_as_current=False)
    app.conf.update(task_always_eager=True, task_eager_propagates=True)
    instrument_celery()
    yield app
    app.close()


def test_an_eager_task_is_part_of_its_caller(eager: Celery) -> None:
    """`task_always_eager` and `apply()` leave the caller's request, its getters and its tags alone, before, during and behind."""
    seen: list[Any] = []

    @eager.task(shared=False)
    def task() -> None:
        seen.append(current_context())
        voight.set_tags(step="set inside")

    with use_scope(JobScope()), voight.tag(user_id="u"):
        before = current_context()
        task.delay()
        task.apply()
        task()
        assert current_context() is before
        assert voight.current_tags().extra == {"step": "set inside"}
    assert seen == [before] * 3


def test_instrumenting_again_connects_nothing_again() -> None:
    """Each signal has one receiver of ours, however often, and it is not collected."""
    for _ in range(3):
        instrument_celery()
    for signal_ in (signals.before_task_publish, signals.task_prerun, signals.task_postrun):
        assert [receiver.__module__ for _, receiver in signal_.receivers].count("voight_celery") == 1


def test_what_is_published_holds_the_tags_once(eager: Celery) -> None:
    """One header of JSON beside Celery's own; the caller's headers are his own, and nothing of a signature is changed."""
    app = Celery("sender", broker="memory://", set_as_current=False)
    sent: list[dict[str, Any]] = []

    def look(headers: dict[str, Any], **_: Any) -> None:
        sent.append(dict(headers))

    signals.before_task_publish.connect(look)
    mine = {"x": "y"}
    signature, callback = app.signature("some.task", args=[1], options={"headers": mine}), app.signature("some.callback")
    for name in ("u", "v"):
        with voight.tag(user_id=name):
            signature.apply_async(link=callback, link_error=callback)
    app.send_task("some.task")
    signals.before_task_publish.disconnect(look)
    assert [headers.get(KEY) for headers in sent] == [
        '{"tags":{"user_id":"u"},"attribution":"tag"}',
        '{"tags":{"user_id":"v"},"attribution":"tag"}',
        None,
    ]
    assert mine == {"x": "y"}
    assert callback == app.signature("some.callback")
    app.close()
