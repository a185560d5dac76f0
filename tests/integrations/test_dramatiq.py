"""voight_dramatiq with real workers on a real Redis."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

import voight_middleware as voight
from voight_middleware.propagation.messages import KEY

from ..support.queue_places import wait_for_places
from .queue_worker import Owners, owners

dramatiq = pytest.importorskip("dramatiq")

from dramatiq.brokers.stub import StubBroker  # noqa: E402

from voight_dramatiq import CostTagMiddleware, instrument_dramatiq  # noqa: E402


def start(workers: Any, url: str, provider: Any) -> None:
    command = ["dramatiq", "dramatiq_app", "--processes", "1", "--threads", "4"]
    workers.start(*command, BROKER=url, PROVIDER_OPENAI=provider.openai_base_url)


def send(workers: Any, url: str, source: str) -> str:
    prelude = "import voight_middleware as voight\nfrom dramatiq_app import *\nfrom dramatiq import group, pipeline\n"
    return str(workers.run(prelude + textwrap.dedent(source), BROKER=url))


@pytest.mark.slow
def test_every_message_has_the_owner_of_who_has_sent_it(redis_url: str, workers: Any, voight_provider: Any) -> None:
    """However a message is sent, in synchronous and asynchronous actors, and whatever has run before it on the same thread."""
    start(workers, redis_url, voight_provider)
    send(
        workers,
        redis_url,
        """
        for user in ("alice", "bob"):
            with voight.tag(user_id=user, plan="pro"):
                work.send(f"{user} 1")
                work_async.send(f"{user} 2")
                work.send_with_options(args=(f"{user} delayed",), delay=100)
                retrying.send(f"{user} retries")
                nested.send(f"{user} nested")
                pipeline([passing.message(f"{user} pipe 1"), after.message(f"{user} pipe 2")]).run()
                both = group([work.message(f"{user} group 1"), work.message(f"{user} group 2")])
                both.add_completion_callback(work.message(f"{user} behind the group"))
                both.run()
            for number in range(4):
                work.send(f"nobody {number} behind {user}")
        with voight.tag(user_id="carol"):
            slow.send("time limit")
            failing.send_with_options(args=("fails",), on_failure=on_failure)
            work.send_with_options(args=("succeeds",), on_success=on_success)
        # Messages that say themselves whose they are, and what follows after them.
        pipeline([setting.message("dave", "sets"), after.message("behind what sets")]).run()
        through_all.send(["erin", "frank"], "nightly")
        pipeline([through_all.message(["erin", "frank"], "piped"), after.message("report of all")]).run()
        both = group([setting.message("gina", "part of gina"), setting.message("hank", "part of hank")])
        both.add_completion_callback(work.message("behind many"))
        both.run()
        pipes = [pipeline([setting.message(user, f"pipe of {user}"), after.message(f"end of {user}")]) for user in ("ivy", "jack")]
        both = group(pipes)
        both.add_completion_callback(work.message("behind many pipes"))
        both.run()
        """,
    )
    expected: Owners = {}
    for user in ("alice", "bob"):
        for place in ("1", "2", "delayed", "retries", "nested", "pipe 1", "pipe 2", "group 1", "group 2", "behind the group"):
            expected[f"{user} {place}"] = (user, "tag")
        expected |= {f"nobody {number} behind {user}": (None, "none") for number in range(4)}
    for place in ("time limit", "fails", "behind what failed", "succeeds", "behind what succeeded"):
        expected[place] = ("carol", "tag")
    expected |= dict.fromkeys(("sets", "behind what sets"), ("dave", "tag"))
    for begin in ("nightly", "piped"):
        expected[f"{begin}, all"] = (None, "none")
        for user in ("erin", "frank"):
            expected |= dict.fromkeys((f"{begin}, {user}", f"{begin}, sent for {user}"), (user, "tag"))
    expected |= {f"part of {user}": (user, "tag") for user in ("gina", "hank")}
    for user in ("ivy", "jack"):
        expected |= dict.fromkeys((f"pipe of {user}", f"end of {user}"), (user, "tag"))
    expected |= dict.fromkeys(("report of all", "behind many", "behind many pipes"), (None, "none"))
    wait_for_places(workers, expected)
    calls = workers.calls()
    assert owners(calls) == expected
    tags = {call.tags.extra["place"]: call.tags for call in calls}
    assert (tags["alice 1"].plan, tags["alice 1"].route, tags["alice 1"].extra["task"]) == ("pro", "task work", "work")
    assert tags["alice nested"].route == "task nested"


@pytest.fixture
def broker() -> Any:
    broker = StubBroker()
    instrument_dramatiq(broker)
    yield broker
    broker.close()


def test_a_sender_may_send_one_message_for_two_users(broker: Any) -> None:
    """What he has in hand stays as it was; what went out has its own owner each time."""

    @dramatiq.actor(broker=broker)
    def actor() -> None: ...

    message = actor.message()
    for name in ("u", "v"):
        with voight.tag(user_id=name):
            broker.enqueue(message)
    broker.enqueue(message)
    assert KEY not in message.options
    queue = broker.queues["default"]
    sent = [dramatiq.Message.decode(queue.get_nowait()).options.get(KEY) for _ in range(3)]
    assert sent == ['{"tags":{"user_id":"u"},"attribution":"tag"}', '{"tags":{"user_id":"v"},"attribution":"tag"}', None]


def test_a_message_that_is_skipped_leaves_nothing_behind(broker: Any) -> None:
    """Another middleware that skips a message, or breaks, does not bind its owner to the thread."""
    seen: list[str | None] = []

    class Skips(dramatiq.Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            if list(message.args) == ["skip"]:
                raise dramatiq.middleware.SkipMessage("skipped")
            if list(message.args) == ["break"]:
                raise ValueError("broken")

    broker.add_middleware(Skips())

    @dramatiq.actor(broker=broker)
    def actor(word: str) -> None:
        seen.append(voight.current_tags().user_id)

    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=10)
    worker.start()
    for word in ("skip", "break"):
        with voight.tag(user_id="u"):
            actor.send(word)
        actor.send("run")
    broker.join(actor.queue_name)
    worker.stop()
    assert sorted(seen, key=str) == [None, None, "u"]


def test_instrumenting_again_adds_nothing_again(broker: Any) -> None:
    """One middleware, and it is the first: what the others send behind an actor belongs to its message."""
    instrument_dramatiq(broker)
    assert [isinstance(middleware, CostTagMiddleware) for middleware in broker.middleware].count(True) == 1
    assert isinstance(broker.middleware[0], CostTagMiddleware)
    bare = StubBroker(middleware=[])
    instrument_dramatiq(bare)
    assert [type(middleware) for middleware in bare.middleware] == [CostTagMiddleware]
    bare.close()
