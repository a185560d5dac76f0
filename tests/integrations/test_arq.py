"""voight_arq with a real worker on a real Redis. ARQ cannot be installed beside the transport of Celery: elsewhere this is skipped."""

from __future__ import annotations

import asyncio
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

import voight_middleware as voight
from voight_middleware.context.context import use_scope
from voight_middleware.middleware.getters import Getters
from voight_middleware.middleware.request_scope import RequestScope
from voight_middleware.propagation.messages import KEY

from ..support.queue_places import wait_for_places
from .queue_worker import Owners, owners

arq = pytest.importorskip("arq")


def start(workers: Any, url: str, provider: Any, **environ: str) -> None:
    workers.start("arq", "arq_app.WorkerSettings", BROKER=url, PROVIDER_OPENAI=provider.openai_base_url, **environ)
    workers.wait_for("Starting worker")


def send(workers: Any, url: str, source: str) -> str:
    body = textwrap.indent(textwrap.dedent(source), "    ")
    prelude = "import voight_middleware as voight\nfrom arq_app import *\nfrom arq import create_pool\nasync def main():\n"
    connect = "    redis = await create_pool(WorkerSettings.redis_settings)\n"
    return str(workers.run(f"{prelude}{connect}{body}\n    await getattr(redis, 'aclose', redis.close)()\nasyncio.run(main())", BROKER=url))


@pytest.mark.slow
def test_every_job_has_the_owner_of_who_has_enqueued_it(redis_url: str, workers: Any, voight_provider: Any) -> None:
    """However a job is enqueued, and whatever runs beside it."""
    start(workers, redis_url, voight_provider, CRON="1")
    send(
        workers,
        redis_url,
        """
        for user in ("alice", "bob"):
            with voight.tag(user_id=user, plan="pro"):
                await redis.enqueue_job("work", f"{user} 1")
                await redis.enqueue_job("work", f"{user} deferred", _defer_by=0.2)
                await redis.enqueue_job("retrying", f"{user} retries")
                await redis.enqueue_job("failing", f"{user} fails")
                await redis.enqueue_job("nested", f"{user} nested")
                await redis.enqueue_job("slow", f"{user} time limit")
            await redis.enqueue_job("work", f"nobody behind {user}")
        await redis.enqueue_job("through_all", ["carol", "dave"], "nightly")
        """,
    )
    expected: Owners = {}
    for user in ("alice", "bob"):
        expected |= {f"{user} {place}": (user, "tag") for place in ("1", "deferred", "retries", "fails", "nested", "time limit")}
        expected[f"nobody behind {user}"] = (None, "none")
    expected |= dict.fromkeys(("task of a schedule", "nightly, all"), (None, "none"))
    for user in ("carol", "dave"):
        expected |= dict.fromkeys((f"nightly, {user}", f"nightly, sent for {user}"), (user, "tag"))
    wait_for_places(workers, expected)
    calls = workers.calls()
    assert owners(calls) == expected
    tags = {call.tags.extra["place"]: call.tags for call in calls}
    assert (tags["alice 1"].plan, tags["alice 1"].route, tags["alice 1"].extra["task"]) == ("pro", "task work", "work")
    assert tags["alice nested"].route == "task nested"


def test_a_worker_without_us_runs_our_jobs(redis_url: str, workers: Any, voight_provider: Any) -> None:
    """What is deployed in two steps works between them, in either order; the calls have no owner then."""
    (workers.folder / "plain.py").write_text(
        textwrap.dedent(
            """
            import sys, types
            without = types.ModuleType("voight_arq")
            without.instrument_arq = lambda: None
            sys.modules["voight_arq"] = without
            from arq_app import WorkerSettings
            """
        )
    )
    paths = f"{workers.folder}:{Path(__file__).parents[1] / 'apps'}"
    environ = {"BROKER": redis_url, "PROVIDER_OPENAI": voight_provider.openai_base_url, "PYTHONPATH": paths}
    workers.start("arq", "plain.WorkerSettings", **environ)
    workers.wait_for("Starting worker")
    send(workers, redis_url, 'with voight.tag(user_id="alice"): await redis.enqueue_job("work", "ours")')
    wait_for_places(workers, ["ours"])
    assert owners(workers.calls()) == {"ours": (None, "none")}


async def test_what_is_enqueued(redis_url: str) -> None:
    """An own serializer is used, an asynchronous getter awaited, and a job of nobody is as ARQ makes it."""
    from arq.connections import RedisSettings, create_pool

    from voight_arq import instrument_arq

    instrument_arq()

    async def user(_: Any) -> str:
        await asyncio.sleep(0)
        return "u"

    redis = await create_pool(RedisSettings.from_dsn(redis_url), job_serializer=lambda data: json.dumps(data).encode())
    with use_scope(RequestScope(lambda: None, Getters(user), lambda: "POST /chat")):
        assert await redis.enqueue_job("work", 1, _job_id="one") is not None
        assert await redis.enqueue_job("work", 1, _job_id="one") is None
    await redis.enqueue_job("work", 2, _job_id="two")
    one, two = [json.loads(await redis.get(f"arq:job:{name}") or b"") for name in ("one", "two")]
    assert json.loads(one[KEY]) == {"tags": {"user_id": "u", "route": "POST /chat"}, "attribution": "getter"}
    assert (one["a"], one["f"]) == ([1], "work")
    assert KEY not in two
    assert voight.current_tags() == voight.Tags()
    await getattr(redis, "aclose", redis.close)()
