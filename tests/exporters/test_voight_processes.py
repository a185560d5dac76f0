"""Events of processes that are killed, fork, end or hang: every call once."""

import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from typing import Any

import pytest

from voight_middleware.config.settings import Settings
from voight_middleware.pipeline.lock import IngestLock
from voight_middleware.pipeline.send_waiting import send_waiting

from ..support.depth import times
from ..support.event_server import EventServer
from ..support.waiting import wait_until
from .sending import FAST, kept

pytestmark = pytest.mark.usefixtures("impatient")


KILLED = """
import sys, time, voight_middleware as voight
voight.configure(voight_api_key="vk_test", events_url=sys.argv[1], events_per_minute=60000)
usage = {"prompt_tokens": 1, "completion_tokens": 1}
number = 0
while True:
    with voight.tag(user_id="u"):
        print(voight.record(provider="openai", model="gpt-5-nano", usage=usage), flush=True)
    number += 1
    if number % 20 == 0:
        voight.flush()
    time.sleep(0.002)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_loses_no_event_and_repeats_one_at_most(scripts: Any, server: EventServer) -> None:
    """At any moment: every call arrives, and not more are doubled than processes were killed."""
    ids: list[str] = []
    chance = random.Random(8)
    kills = times(3, 20)
    for _ in range(kills):
        process = scripts.start(KILLED, server.url)
        assert process.stdout.readline()
        before = len(server.events)
        wait_until(lambda before=before: len(server.events) > before)
        time.sleep(chance.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        ids += output.split()
    known = Counter(server.call_ids())
    last = scripts.start(KILLED, server.url)
    wait_until(lambda: not set(ids) - set(server.call_ids()), 60, every=0.05)
    last.send_signal(signal.SIGTERM)
    last.communicate()
    assert sum(known.values()) > kills
    doubled = sum(count - 1 for count in Counter(server.call_ids()).values())
    assert doubled <= kills
    print(f"{len(ids)} calls, {doubled} doubled by {kills} kills")


FORKED = """
import os, sys, time, voight_middleware as voight
voight.configure(voight_api_key="vk_test", events_url=sys.argv[1], events_per_minute=60000)

def spend(count):
    for _ in range(count):
        with voight.tag(user_id="u"):
            os.write(1, voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1}).encode() + b"\\n")

spend(20)
assert voight.flush()
for _ in range(int(sys.argv[2])):
    child = os.fork()
    spend(20)
    if child == 0:
        assert voight.flush(30)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
if os.fork():
    assert voight.flush(30)
    close()
    os._exit(0)
spend(1)  # a process without calls of its own sends none
sys.stdin.readline()
"""


@pytest.mark.slow
def test_a_fork_sends_nothing_twice(scripts: Any, server: EventServer) -> None:
    """Children of a process that is sending leave that to it, and the last one goes on where it ended."""
    forks = times(4, 10)
    process = scripts.start(FORKED, server.url, str(forks))
    ids = [process.stdout.readline().strip() for _ in range(21 + 40 * forks)]
    server.wait_for(21 + 40 * forks, 60)
    process.stdin.close()
    process.stdin = None
    process.communicate()
    assert sorted(server.call_ids()) == sorted(ids)


def test_a_process_that_ends_leaves_the_rest_to_the_next(scripts: Any) -> None:
    """It does not wait for the server; the next one begins where it ended, and not before its time."""
    source = """
    import sys, voight_middleware as voight
    voight.configure(voight_api_key="vk_test", events_url=sys.argv[1], events_per_minute=120)
    for _ in range(5):
        with voight.tag(user_id="u"):
            print(voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1}), flush=True)
    assert voight.flush()
    if sys.argv[2] == "stay":
        sys.stdin.readline()
    """
    with EventServer(per_minute=120) as server:
        ids = scripts.run(source, server.url, "go").split()
        left = kept(scripts.journal)
        assert left.waiting >= 3
        assert left.waiting + len(server.events) == 5
        process = scripts.start(source, server.url, "stay")
        ids += [process.stdout.readline().strip() for _ in range(5)]
        server.wait_for(4)
        process.communicate("\n")
        assert process.returncode == 0
        sent = server.call_ids()
        assert len(sent) < 10
        assert sent == ids[: len(sent)]
        assert all(later - earlier > 0.1 for earlier, later in itertools.pairwise(server.times))


def test_what_short_programs_leave_can_be_sent(scripts: Any, server: EventServer) -> None:
    """By a process that makes no calls; beside one that is sending it does nothing."""
    source = """
    import sys, voight_middleware as voight
    voight.configure(voight_api_key="vk_test", events_url=sys.argv[1], events_per_minute=1)
    for number in range(100):
        with voight.tag(user_id="u"):
            print(voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1}, call_id=f"import-{number}"))
    """
    ids = scripts.run(source, server.url).split()
    settings = Settings.from_environment(
        ledger=scripts.ledger, journal=scripts.journal, voight_api_key="vk_test", events_url=server.url, events_per_minute=FAST, environ={}
    )
    assert send_waiting(Settings.from_environment(ledger=scripts.ledger, environ={})) is None
    lock = IngestLock(scripts.journal)
    assert lock.acquire()
    beside = send_waiting(settings)
    assert beside is not None
    assert beside.waiting >= 99
    lock.release()
    left = send_waiting(settings, 30)
    assert left is not None
    assert (left.waiting, left.state.sent) == (0, 100)
    assert server.call_ids() == ids
    scripts.run(source, server.url)  # the same ids at other times: nothing new to the ledger
    server.events.clear()
    send_waiting(settings, 30)
    assert kept(scripts.journal).state.gone == 100
    assert server.events == []


def test_a_server_that_hangs_does_not_hold_up_the_end(scripts: Any, server: EventServer) -> None:
    """The process ends within a second or two; the event that got no answer is sent again, by the next."""
    source = """
    import atexit, sys, time
    atexit.register(lambda: print(time.monotonic() - begun))  # before ours is, and so called after it
    import voight_middleware as voight
    voight.configure(voight_api_key="vk_test", events_url=sys.argv[1], events_per_minute=60000)
    with voight.tag(user_id="u"):
        print(voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1}), flush=True)
    assert voight.flush()
    sys.stdin.readline()
    begun = time.monotonic()
    """
    let_go = threading.Event()
    server.fault = lambda request: let_go.wait(60)
    process = scripts.start(source, server.url)
    wait_until(lambda: server.times)
    output, errors = process.communicate("\n")
    let_go.set()
    assert process.returncode == 0, errors
    first, seconds = output.split()
    assert len(server.times) == 1
    assert float(seconds) < 3.5
    server.fault = None
    process = scripts.start(source, server.url)
    server.wait_for(2)
    second, _ = process.communicate("\n")[0].split()
    assert server.call_ids() == [first, second]
