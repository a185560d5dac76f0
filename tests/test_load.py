"""Many users at once under a real uvicorn with two workers: no wrong owner, no call lost or doubled, also when workers are killed."""

from __future__ import annotations

import asyncio
import collections
import importlib.util
import itertools
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.records.call import Call
from voight_middleware.records.tags import Tags

from .support.depth import times
from .support.listening import listens
from .support.waiting import wait_until

USERS = 50
REQUESTS = times(600, 5_000)
KILLS = times(3, 10)
BETWEEN = times(50, 100)
"""How many answers have ended at least between two kills."""


def _benchmark(name: str) -> Any:
    """A harness of ``benchmarks/``: its servers, and its visitors."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


owners = _benchmark("owners")
left_streams = _benchmark("left_streams")


@pytest.fixture
def start(tmp_path: Path, voight_provider: Any) -> Iterator[Callable[..., Any]]:
    """Starts Starlette under uvicorn with two workers, metering the loopback provider."""
    started: list[Any] = []
    voight_provider.reset()

    def server(**providers: str) -> Any:
        started.append(owners.Server("load_starlette:app", "uvicorn", tmp_path, providers))
        wait_until(lambda: listens(started[-1].port) or started[-1].process.poll() is not None, 100)
        started[-1].wait()
        return started[-1]

    yield server
    for one in started:
        one.kill()


def workers(server: Any) -> list[int]:
    """The process ids of the workers that live right now."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def totals(calls: list[Call]) -> dict[str, list[int]]:
    """Calls, input tokens and output tokens by user."""
    by_user: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    for call in calls:
        assert call.usage is not None
        row = by_user[str(call.tags.user_id)]
        for index, count in enumerate((1, call.usage.input_tokens, call.usage.output_tokens)):
            row[index] += count or 0
    return dict(by_user)


@pytest.mark.server
@pytest.mark.slow
def test_concurrent_users(start: Callable[..., Any], voight_provider: Any) -> None:
    """Requests of 50 users and of nobody, 100 at a time: every call once, with its own user, as the provider counted it."""
    server = start(PROVIDER_OPENAI=voight_provider.openai_base_url, PROVIDER_ANTHROPIC=voight_provider.anthropic_base_url)
    visitors = owners.Visitors(server.port, USERS, leaving=False)
    asyncio.run(visitors.ask(range(REQUESTS)))
    calls = server.calls()

    assert visitors.seen.failed == {}
    assert len(visitors.seen.ended) == REQUESTS
    assert len(calls) == REQUESTS
    asked_by = {identity: owners.user_of(number, USERS) for identity, number in visitors.seen.ended.items()}
    assert {call.response_id: call.tags.user_id for call in calls} == asked_by
    assert None in asked_by.values(), "some are nobody's"
    assert {(call.tags.user_id, call.tags.plan) for call in calls} == {
        (user, None if user is None else owners.plan_of(user)) for user in asked_by.values()
    }
    assert {call.outcome for call in calls} == {"ok"}
    assert not any(call.estimated for call in calls)
    counted = {user: [row.completed, row.input_tokens, row.output_tokens] for user, row in voight_provider.counts().by_user.items()}
    assert totals(calls) == counted


@pytest.mark.server
@pytest.mark.slow
def test_killed_workers(start: Callable[..., Any], voight_provider: Any) -> None:
    """Workers are killed with SIGKILL under load: every call whose answer had ended is in the ledger, once, with its owner."""
    server = start(PROVIDER_OPENAI=voight_provider.openai_base_url)
    questions = (number for number in itertools.count() if owners.path_of(number) < 2)
    visitors = owners.Visitors(server.port, USERS, pipelines=False, leaving=False)
    ended = visitors.seen.ended
    killed: list[int] = []

    async def kill() -> None:
        chance = random.Random(7)
        while len(killed) < KILLS:
            enough = len(ended) + BETWEEN
            while len(ended) < enough or not (alive := workers(server)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            killed.append(chance.choice(alive))
            os.kill(killed[-1], signal.SIGKILL)

    async def both() -> None:
        killing = asyncio.create_task(kill())
        while not killing.done():
            await visitors.ask(itertools.islice(questions, 2 * BETWEEN))
        await killing

    asyncio.run(both())
    calls = server.calls()
    kept = collections.Counter(call.response_id for call in calls if call.response_id)

    assert len(set(killed)) == KILLS
    assert len(ended) >= KILLS * BETWEEN, "the load went on between the kills"
    assert [identity for identity in ended if identity not in kept] == []
    assert [identity for identity, count in kept.items() if count > 1] == []
    found = {call.response_id: call.tags.user_id for call in calls}
    assert {identity: found[identity] for identity in ended} == {
        identity: owners.user_of(number, USERS) for identity, number in ended.items()
    }


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "app", "server", "kind"),
    [
        pytest.param(*run, id=f"{run[0]} {run[2]}", marks=[] if run[0].endswith("Middleware") and "asyncio" in run[2] else pytest.mark.deep)
        for run in left_streams.RUNS
        if "uvloop" not in run[2] or importlib.util.find_spec("uvloop") is not None
    ],
)
def test_streams_that_are_left(name: str, app: str, server: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Clients leave streams at random moments, then the server is asked to stop: every call is there, once, with its owner."""
    complete = asyncio.run(left_streams.run(name, app, server, kind, times(50, 1_000), tmp_path))
    assert complete, capsys.readouterr().out


def test_a_wrong_ledger_is_found_out(new_call: Any) -> None:
    """The benchmark sees a stranger's call, an anonymous one with an owner, a lost one and a doubled one."""
    mine, theirs = owners.user_of(0, USERS), owners.user_of(1, USERS)
    nobodys = next(number for number in range(USERS) if owners.user_of(number, USERS) is None)

    def row(number: int, user: str | None, plan: str | None = None) -> Call:
        return new_call(response_id=f"{number}-1", tags=Tags(user_id=user, plan=plan))

    right = row(0, mine, owners.plan_of(mine))
    asked = {0: 1}
    assert owners.judge([right], asked, USERS) == owners.Verdict(1)
    assert owners.judge([row(0, theirs, owners.plan_of(mine))], asked, USERS) == owners.Verdict(1, wrong=1)
    assert owners.judge([row(0, mine, "another")], asked, USERS) == owners.Verdict(1, wrong=1)
    assert owners.judge([row(0, None)], asked, USERS) == owners.Verdict(1, wrong=1)
    assert owners.judge([row(nobodys, mine)], {nobodys: 1}, USERS) == owners.Verdict(1, anonymous=1)
    assert owners.judge([right, right], asked, USERS) == owners.Verdict(2, doubled=1)
    assert owners.judge([right], {0: 2}, USERS) == owners.Verdict(1, lost=1)
    assert not owners.Verdict(1, lost=1).clean
