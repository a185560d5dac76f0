"""voight_celery with real worker processes on a real Redis, in every pool; and what runs in place."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, signals

import voight_middleware as voight
from voight_celery import instrument_celery
from voight_middleware.boundary.jobs import KEY, JobScope
from voight_middleware.call import Call
from voight_middleware.tags import bind, current_frame

POOLS = ["prefork", "threads", "solo", "gevent"]
LOAD_TASKS = int(os.environ.get("VOIGHT_LOAD_TASKS", "306"))


def send(workers: Any, url: str, source: str) -> str:
    """Run *source* as a process that sends tasks of ``celery_app``; answers what it printed."""
    return str(workers.run("import voight_middleware as voight\nfrom celery_app import *\n" + textwrap.dedent(source), BROKER=url))


def start(workers: Any, url: str, provider: Any, pool: str, *options: str) -> Any:
    environ = {"BROKER": url, "PROVIDER_OPENAI": provider.openai_base_url, "POOL": pool}
    command = ["celery", "-A", "celery_app", "worker", "-P", pool, "-c", "2", "-l", "INFO", "--without-gossip", "--without-mingle"]
    process = workers.start(*command, *options, **environ)
    workers.wait_for("ready.")
    return process


def owners(calls: list[Call]) -> dict[str, tuple[str | None, str]]:
    """Owner and attribution by place; fails where a place is there twice."""
    places = [call.tags.extra["place"] for call in calls]
    assert len(places) == len(set(places))
    return {call.tags.extra["place"]: (call.tags.user_id, call.attribution) for call in calls}


@pytest.fixture(scope="module", params=POOLS)
def ran(request: Any, redis_server: int, make_workers: Any, voight_provider: Any, tmp_path_factory: Any) -> Any:
    """What was expected and what has come out of one worker of a pool, once it was shut down."""
    url = f"redis://127.0.0.1:{redis_server}/{1 + POOLS.index(request.param)}"
    workers = make_workers(tmp_path_factory.mktemp(request.param))
    start(workers, url, voight_provider, request.param)
    expected = json.loads(workers.run("import celery_producer", BROKER=url))
    with contextlib.suppress(AssertionError):  # what is asserted below says what is missing
        workers.wait_until(lambda: len(workers.calls_so_far()) >= len(expected), 40)
    return expected, workers.calls()


def test_every_task_has_the_owner_of_who_has_caused_it(ran: Any) -> None:
    """However a task is sent and whatever has run before it on the same thread, process or greenlet."""
    expected, calls = ran
    assert {place: user for place, (user, _) in owners(calls).items()} == expected


def test_the_task_is_known(ran: Any) -> None:
    """Every call says which task it was made in, and a task that no request has caused is its own route."""
    _, calls = ran
    by_place = {call.tags.extra["place"]: call.tags for call in calls}
    assert (by_place["delay"].extra["task"], by_place["delay"].route) == ("celery_app.work", "task celery_app.work")
    assert (by_place["task in task"].extra["task"], by_place["task in task"].route) == ("celery_app.work", "task celery_app.nested")
    assert by_place["delay"].plan == "pro"


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_many_users_at_once(pool: str, redis_url: str, workers: Any, voight_provider: Any) -> None:
    """Tasks of fifty users and of nobody, mixed, eight at a time: no wrong owner, and no call lost or doubled."""
    worker = start(workers, redis_url, voight_provider, pool, "-c", "8", "--max-tasks-per-child", "100")
    send(
        workers,
        redis_url,
        f"""
        from celery.result import ResultSet
        results = ResultSet([])
        for number in range({LOAD_TASKS}):
            with voight.tag(user_id=f"u_{{number % 51}}" if number % 51 else None):
                results.add(load.delay(number))
        results.join(timeout=90)
        """,
    )
    worker.send_signal(signal.SIGTERM)
    worker.wait(30)
    found = owners(workers.calls())
    assert found == {str(number): (f"u_{number % 51}", "tag") if number % 51 else (None, "none") for number in range(LOAD_TASKS)}


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_no_call_is_lost_when_a_worker_ends(pool: str, redis_url: str, workers: Any, voight_provider: Any) -> None:
    """The calls of processes that are recycled, and of a worker that is shut down right behind them, are all there, each once."""
    worker = start(workers, redis_url, voight_provider, pool, "--max-tasks-per-child", "2")
    send(
        workers,
        redis_url,
        """
        with voight.tag(user_id="u"):
            results = [work.delay(str(number)) for number in range(10)]
        for result in results:
            result.get(timeout=60)
        """,
    )
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert owners(workers.calls()) == {str(number): ("u", "tag") for number in range(10)}


def test_a_flush_before_a_process_of_the_pool_ends(redis_url: str, workers: Any, voight_provider: Any) -> None:
    """A shut down worker leaves nothing in the journal that waits for somebody to look."""
    from voight_middleware.journal import segments
    from voight_middleware.ledger import open_ledger

    worker = start(workers, redis_url, voight_provider, "prefork")
    send(workers, redis_url, 'work.delay("last").get(timeout=60)')
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert [segment.size() for segment in segments(workers.journal) if segment.size()] == []
    ledger = open_ledger(workers.ledger)
    assert [call.tags.extra["place"] for call in ledger.calls()] == ["last"]
    ledger.close()


def test_a_task_that_is_killed_or_stopped(redis_url: str, workers: Any, voight_provider: Any) -> None:
    """Calls before a time limit or a kill have their owner; the task behind them is nobody's, and a revoked one makes none."""
    start(workers, redis_url, voight_provider, "prefork", "-c", "1")
    ids = send(
        workers,
        redis_url,
        """
        with voight.tag(user_id="u"):
            slow.apply_async(("soft limit", 30), soft_time_limit=1)
            slow.apply_async(("hard limit", 30), time_limit=1)
            killed = slow.delay("killed", 30)
            revoked = work.apply_async(("revoked",), countdown=3)
        revoked.revoke()
        print(killed.id)
        """,
    )
    workers.wait_until(lambda: "killed" in owners(workers.calls_so_far()))
    send(
        workers,
        redis_url,
        f"""
        app.control.revoke("{ids.strip()}", terminate=True, signal="SIGKILL")
        work.apply_async(("behind",), countdown=4).get(timeout=60)
        """,
    )
    assert owners(workers.calls()) == {
        **dict.fromkeys(("soft limit", "hard limit", "killed"), ("u", "tag")),
        "behind": (None, "none"),
    }


def test_a_producer_without_us_sends_tasks_of_nobody(redis_url: str, workers: Any, voight_provider: Any) -> None:
    """A message without our header is nobody's, and so is one whose header is not ours."""
    start(workers, redis_url, voight_provider, "solo")
    workers.run(
        """
        import os
        from celery import Celery
        app = Celery("other", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
        app.send_task("celery_app.work", args=["bare"]).get(timeout=60)
        app.send_task("celery_app.work", args=["odd"], headers={"voight": {"user_id": "x"}}).get(timeout=60)
        app.send_task("celery_app.work", args=["broken"], headers={"voight": "alice"}).get(timeout=60)
        """,
        BROKER=redis_url,
    )
    assert owners(workers.calls()) == dict.fromkeys(("bare", "odd", "broken"), (None, "none"))


def test_beat_sends_tasks_of_nobody(redis_url: str, workers: Any, voight_provider: Any) -> None:
    """A task of the schedule is nobody's, also where beat runs inside of the worker."""
    start(workers, redis_url, voight_provider, "threads", "-B", "-s", str(workers.folder / "schedule"))
    workers.wait_until(lambda: len(workers.calls_so_far()) >= 2)
    assert {(call.tags.user_id, call.tags.route) for call in workers.calls()} == {(None, "task celery_app.scheduled")}


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
        seen.append(current_frame())
        voight.set_tags(step="set inside")

    with bind(JobScope()), voight.tag(user_id="u"):
        before = current_frame()
        task.delay()
        task.apply()
        task()
        assert current_frame() is before
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


def test_a_getter_that_raises_does_not_stop_a_task(redis_url: str, workers: Any, voight_provider: Any) -> None:
    """What goes wrong where the task is sent costs the owner, and not the task."""
    start(workers, redis_url, voight_provider, "solo")
    send(
        workers,
        redis_url,
        """
        from voight_middleware.boundary.identity import Getters
        from voight_middleware.boundary.scope import Scope
        from voight_middleware.tags import bind

        def broken(_):
            raise RuntimeError

        with bind(Scope(lambda: None, Getters(broken), lambda: "POST /chat")):
            work.delay("broken getter").get(timeout=60)
        """,
    )
    assert owners(workers.calls()) == {"broken getter": (None, "error")}
