"""voight_rq with real workers on a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

import voight_middleware as voight
from voight_middleware.propagation.messages import KEY

from .queue_worker import Owners, QueueWorker

pytest.importorskip("rq")

from redis import Redis
from rq import Queue

from voight_rq import CostTagJob

OURS = ["--job-class", "voight_rq.CostTagJob", "--with-scheduler"]
PLAIN = ["--with-scheduler", "--worker-class"]
WORKERS: dict[str, list[str]] = {
    "Worker": [*OURS, "--worker-class", "rq.worker.Worker"],  # forks for each job
    "SimpleWorker": [*OURS, "--worker-class", "rq.worker.SimpleWorker"],
    "without us": [],
    "SimpleWorker without us": [*PLAIN, "rq.worker.SimpleWorker"],
}


@pytest.fixture(scope="module")
def worker(redis_server: int, make_workers: Any, voight_provider: Any, tmp_path_factory: Any) -> Iterator[Callable[[str], QueueWorker]]:
    """Answers the worker of a kind, with a database of Redis of its own: it is started once, and runs until the last test of this file."""
    running: dict[str, QueueWorker] = {}

    def of(kind: str) -> QueueWorker:
        if kind not in running:
            url = f"redis://127.0.0.1:{redis_server}/{1 + list(WORKERS).index(kind)}"
            environ = {"BROKER": url, "PROVIDER_OPENAI": voight_provider.openai_base_url}
            command = ["rq_worker", "worker", "--url", url, *WORKERS[kind]]
            running[kind] = QueueWorker(make_workers(tmp_path_factory.mktemp("worker")), command, environ)
        return running[kind]

    yield of
    for each in running.values():
        each.workers.stop()


@pytest.fixture
def connection(redis_server: int) -> Iterator[Redis]:
    """A database of Redis without a worker."""
    with Redis(port=redis_server, db=9) as connection:
        yield connection


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Worker", "SimpleWorker"])
def test_every_job_has_the_owner_of_who_has_caused_it(kind: str, worker: Callable[[str], QueueWorker]) -> None:
    """However a job is enqueued, and whatever has run before it in the same process."""
    worker(kind).send(
        """
        import voight_middleware as voight
        from rq import Callback, Retry
        from rq_app import *

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
        """
    )
    expected: Owners = {}
    for user in ("alice", "bob"):
        for place in ("1", "2", "by name", "retries", "nested", "first", "depends", "fails"):
            expected[f"{user} {place}"] = (user, "tag")
        expected |= {f"behind {user} {place}": (user, "tag") for place in ("first", "fails")}
        expected |= {
            f"nobody behind {user}": (None, "none"),
            f"nightly, {'carol' if user == 'alice' else 'dave'}": ("carol" if user == "alice" else "dave", "tag"),
        }
    expected |= {"nightly, all": (None, "none"), "nobody at last": (None, "none")}
    tags = {place: call.tags for place, call in worker(kind).expect(expected).items()}
    assert (tags["alice 1"].plan, tags["alice 1"].route, tags["alice 1"].extra["task"]) == ("pro", "task rq_app.work", "rq_app.work")
    assert tags["alice nested"].route == "task rq_app.nested"


def test_jobs_of_a_queue_without_us_are_nobodys(worker: Callable[[str], QueueWorker]) -> None:
    """A plain job has no owner, and a worker without our job class runs our jobs as any other."""
    worker("SimpleWorker").send(
        """
        import voight_middleware as voight
        from rq import Callback, Retry
        from rq_app import *

        with voight.tag(user_id="alice"):
            queue.enqueue(work, "ours")
            Queue(connection=queue.connection).enqueue(work, "plain")
        """
    )
    worker("SimpleWorker").expect({"ours": ("alice", "tag"), "plain": (None, "none")})


@pytest.mark.parametrize("kind", ["without us", "SimpleWorker without us"])
def test_a_plain_worker_runs_our_jobs(kind: str, worker: Callable[[str], QueueWorker]) -> None:
    """A worker that was started without our job class: the module of the jobs imports voight_rq, and they have their owners."""
    worker(kind).send(
        """
        import voight_middleware as voight
        from rq import Callback
        from rq_app import *

        for user in ("alice", "bob"):
            with voight.tag(user_id=user):
                queue.enqueue(work, f"{user} 1", on_success=Callback(on_success))
                queue.enqueue(work_async, f"{user} 2")
            queue.enqueue(work, f"behind {user}")
        """
    )
    owned = {name: (user, "tag") for user in ("alice", "bob") for name in (f"{user} 1", f"{user} 2", f"behind {user} 1")}
    worker(kind).expect(owned | {f"behind {user}": (None, "none") for user in ("alice", "bob")})


def test_a_job_that_is_stopped(worker: Callable[[str], QueueWorker]) -> None:
    """A job beyond its time, whose process is killed: what it has spent is its owner's, and what comes behind it is nobody's."""
    worker("Worker").send(
        """
        import voight_middleware as voight
        from rq import Callback, Retry
        from rq_app import *

        with voight.tag(user_id="alice"):
            queue.enqueue(slow, "stopped", job_timeout=3, on_failure=Callback(on_failure))
        queue.enqueue(work, "behind")
        """
    )
    worker("Worker").expect({"stopped": ("alice", "tag"), "behind stopped": ("alice", "tag"), "behind": (None, "none")})


def ask(base_url: str) -> str:
    """A job of this process."""
    with openai.OpenAI(api_key="k", base_url=base_url) as client:
        return voight.wrap(client).chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "?"}]).id


def test_a_job_that_runs_in_place(connection: Redis, voight_provider: Any, voight_calls: Any) -> None:
    """`is_async=False` runs the job in the sending process: it has its sender's tags, and leaves them to him."""
    here = Queue(connection=connection, job_class=CostTagJob, is_async=False)
    with voight.tag(user_id="alice"):
        here.enqueue(ask, voight_provider.openai_base_url)
        assert voight.current_tags() == voight.Tags(user_id="alice")
    call = voight_calls.one()
    assert (call.tags.user_id, call.attribution) == ("alice", "tag")


def test_the_tags_of_a_job_are_seen_once(connection: Redis) -> None:
    """They stand in the job's metadata, and in nobody else's."""
    queue = Queue(connection=connection, job_class=CostTagJob)
    with voight.tag(user_id="alice"):
        assert queue.enqueue("some.job").meta == {KEY: '{"tags":{"user_id":"alice"},"attribution":"tag"}'}
    assert queue.enqueue("some.job").meta == {}
