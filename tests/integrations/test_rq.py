"""voight_rq with real workers on a real Redis."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

import voight_middleware as voight
from voight_middleware.boundary.jobs import KEY
from voight_middleware.call import Call

pytest.importorskip("rq")

WORKERS = ["rq.worker.Worker", "rq.worker.SimpleWorker"]


def start(workers: Any, url: str, provider: Any, kind: str, *options: str) -> None:
    """Begin to run a worker: one that forks for each job, or one that does not."""
    command = ["rq_worker", "worker", "--url", url, "--worker-class", kind, "--job-class", "voight_rq.CostTagJob", "--with-scheduler"]
    workers.start(*command, *options, BROKER=url, PROVIDER_OPENAI=provider.openai_base_url)
    workers.wait_for("Listening on")


def send(workers: Any, url: str, source: str) -> str:
    prelude = "import voight_middleware as voight\nfrom rq_app import *\nfrom rq import Callback, Retry\n"
    return str(workers.run(prelude + textwrap.dedent(source), BROKER=url))


def owners(calls: list[Call]) -> dict[str, tuple[str | None, str]]:
    """Owner and attribution by place; fails where a place is there twice."""
    places = [call.tags.extra["place"] for call in calls]
    assert sorted(places) == sorted(set(places))
    return {call.tags.extra["place"]: (call.tags.user_id, call.attribution) for call in calls}


@pytest.mark.parametrize("kind", WORKERS)
def test_every_job_has_the_owner_of_who_has_caused_it(kind: str, redis_url: str, workers: Any, voight_provider: Any) -> None:
    """However a job is enqueued, and whatever has run before it in the same process."""
    start(workers, redis_url, voight_provider, kind)
    send(
        workers,
        redis_url,
        """
        meta = {"mine": "x"}
        for user in ("alice", "bob"):
            with voight.tag(user_id=user, plan="pro"):
                queue.enqueue(work, f"{user} 1", meta=meta)
                queue.enqueue(work_async, f"{user} 2")
                queue.enqueue("rq_app.work", f"{user} by name")
                queue.enqueue(failing_once, f"{user} retries", retry=Retry(max=1))
                queue.enqueue(nested, f"{user} nested")
                first = queue.enqueue(work, f"{user} first", on_success=Callback(on_success))
                queue.enqueue(work, f"{user} depends", depends_on=first)
                queue.enqueue(failing, f"{user} fails", on_failure=Callback(on_failure))
            queue.enqueue(work, f"nobody behind {user}")
        assert meta == {"mine": "x"}
        queue.enqueue(through_all, ["carol", "dave"], "nightly")
        queue.enqueue(work, "nobody at last")
        """,
    )
    expected: dict[str, tuple[str | None, str]] = {}
    for user in ("alice", "bob"):
        for place in ("1", "2", "by name", "retries", "nested", "first", "depends", "fails"):
            expected[f"{user} {place}"] = (user, "tag")
        expected |= {f"behind {user} {place}": (user, "tag") for place in ("first", "fails")}
        expected |= {
            f"nobody behind {user}": (None, "none"),
            f"nightly, {'carol' if user == 'alice' else 'dave'}": ("carol" if user == "alice" else "dave", "tag"),
        }
    expected |= {"nightly, all": (None, "none"), "nobody at last": (None, "none")}
    workers.wait_until(lambda: len(workers.calls_so_far()) >= len(expected))
    calls = workers.calls()
    assert owners(calls) == expected
    tags = {call.tags.extra["place"]: call.tags for call in calls}
    assert (tags["alice 1"].plan, tags["alice 1"].route, tags["alice 1"].extra["task"]) == ("pro", "task rq_app.work", "rq_app.work")
    assert tags["alice nested"].route == "task rq_app.nested"


def test_jobs_of_a_queue_without_us_are_nobodys(redis_url: str, workers: Any, voight_provider: Any) -> None:
    """A plain job has no owner, and a worker without our job class runs our jobs as any other."""
    start(workers, redis_url, voight_provider, WORKERS[1])
    send(
        workers,
        redis_url,
        """
        with voight.tag(user_id="alice"):
            queue.enqueue(work, "ours")
            Queue(connection=queue.connection).enqueue(work, "plain")
        """,
    )
    workers.wait_until(lambda: len(workers.calls_so_far()) >= 2)
    assert owners(workers.calls()) == {"ours": ("alice", "tag"), "plain": (None, "none")}


def test_a_plain_worker_runs_our_jobs(redis_url: str, workers: Any, voight_provider: Any) -> None:
    """What is deployed in two steps works between them: the calls have no owner then."""
    workers.start("rq_worker", "worker", "--url", redis_url, BROKER=redis_url, PROVIDER_OPENAI=voight_provider.openai_base_url)
    workers.wait_for("Listening on")
    send(workers, redis_url, 'with voight.tag(user_id="alice"): queue.enqueue(work, "ours")')
    workers.wait_until(lambda: len(workers.calls_so_far()) >= 1)
    assert owners(workers.calls()) == {"ours": (None, "none")}


def test_a_job_that_is_stopped(redis_url: str, workers: Any, voight_provider: Any) -> None:
    """A job beyond its time, whose process is killed: what it has spent is its owner's, and what comes behind it is nobody's."""
    start(workers, redis_url, voight_provider, WORKERS[0])
    send(
        workers,
        redis_url,
        """
        with voight.tag(user_id="alice"):
            queue.enqueue(slow, "stopped", job_timeout=1, on_failure=Callback(on_failure))
        queue.enqueue(work, "behind")
        """,
    )
    workers.wait_until(lambda: len(workers.calls_so_far()) >= 3)
    assert owners(workers.calls()) == {"stopped": ("alice", "tag"), "behind stopped": ("alice", "tag"), "behind": (None, "none")}


def test_a_job_that_runs_in_place(redis_url: str, workers: Any, voight_provider: Any) -> None:
    """`is_async=False` runs the job in the sending process: it has its sender's tags, and leaves them to him."""
    send(
        workers,
        redis_url,
        f"""
        import os
        import places
        places.client.base_url = "{voight_provider.openai_base_url}"
        here = Queue("default", connection=queue.connection, job_class=CostTagJob, is_async=False)
        with voight.tag(user_id="alice"):
            here.enqueue(work, "in place")
            assert voight.current_tags() == voight.Tags(user_id="alice")
        """,
    )
    assert owners(workers.calls()) == {"in place": ("alice", "tag")}


def test_the_tags_of_a_job_are_seen_once(redis_url: str) -> None:
    """They stand in the job's metadata, and in nobody else's."""
    from redis import Redis
    from rq import Queue

    from voight_rq import CostTagJob

    with Redis.from_url(redis_url) as connection:
        queue = Queue(connection=connection, job_class=CostTagJob)
        with voight.tag(user_id="alice"):
            assert queue.enqueue("some.job").meta == {KEY: '{"tags":{"user_id":"alice"},"attribution":"tag"}'}
        assert queue.enqueue("some.job").meta == {}
