"""Tests of configure(listeners=…): whatever a listener does, requests, ledger and the end of the process go on."""

import asyncio
import contextlib
import contextvars
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import voight_middleware as voight
from voight_middleware.config.settings import Settings
from voight_middleware.config.values import SettingsError
from voight_middleware.context.context import current_context
from voight_middleware.diagnostics import counters
from voight_middleware.instrumentation import wrap as gate
from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.meter import Meter, add_observer, current_meter, remove_observer, swap_meter
from voight_middleware.pipeline.observers import CallObserver
from voight_middleware.records.call import Call
from voight_middleware.testing.provider import LoopbackProvider

from ..support.depth import times

HELLO: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
CALLS = times(50, 200)


@pytest.fixture(scope="module")
def loopback() -> Iterator[LoopbackProvider]:
    """The loopback provider."""
    with LoopbackProvider() as provider:
        yield provider


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Callable[..., Meter]]:
    """Puts a meter with these listeners in place."""
    made: list[Meter] = []
    outer: list[Meter | None] = []

    def listen(*listeners: Any) -> Meter:
        made.append(Meter(Settings.from_environment(ledger=tmp_path / "ledger.db", environ={}), listeners))
        outer.append(swap_meter(made[-1]))
        return made[-1]

    yield listen
    gate.uninstrument()
    swap_meter(outer[0])
    for one in made:
        one.close()


async def _load(url: str) -> float:
    """Make the calls, ten at a time; return how long the slowest took, in seconds."""
    slowest = 0.0
    limit = asyncio.Semaphore(10)
    async with openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
        gate.wrap(client)

        async def one() -> None:
            nonlocal slowest
            async with limit:
                start = time.perf_counter()
                await client.chat.completions.create(**HELLO)
                slowest = max(slowest, time.perf_counter() - start)

        await asyncio.gather(*(one() for _ in range(CALLS)))
    return slowest


def _in_ledger(meter: Meter) -> int:
    """Return how many calls are in the ledger, as soon as all are, or after thirty seconds."""
    deadline, count = time.monotonic() + 30, 0
    while time.monotonic() < deadline and count < CALLS:
        meter.flush(0.2)
        with contextlib.closing(open_ledger(meter.settings.ledger)) as ledger:
            count = sum(1 for _ in ledger.calls())
    return count


@pytest.mark.slow
def test_a_listener_that_raises(listening: Callable[..., Meter], loopback: LoopbackProvider) -> None:
    """Every time: those behind it hear of every call, and it is counted."""
    heard: list[Call] = []

    def raising(call: Call) -> None:
        raise RuntimeError(call.call_id)

    meter = listening(raising, heard.append)
    asyncio.run(_load(loopback.openai_base_url))

    assert meter.flush(20)
    assert len({call.call_id for call in heard}) == len(heard) == CALLS
    assert counters["listener_errors"] == CALLS


@pytest.mark.parametrize("what", [asyncio.CancelledError, SystemExit])
def test_a_listener_that_raises_no_exception(
    what: type[BaseException], listening: Callable[..., Meter], loopback: LoopbackProvider
) -> None:
    """A cancellation or an exit inside a listener ends neither the thread nor the listeners behind it."""
    heard: list[Call] = []

    def raising(call: Call) -> None:
        raise what

    meter = listening(raising, heard.append)
    with openai.OpenAI(base_url=loopback.openai_base_url, api_key="k") as client:
        gate.wrap(client)
        for count in (1, 2):
            client.chat.completions.create(**HELLO)
            assert meter.flush(10)
            assert len(heard) == counters["listener_errors"] == count


def test_a_process_with_too_many_threads(
    listening: Callable[..., Meter], loopback: LoopbackProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While no thread can be started calls are written, and heard of as soon as one can."""
    heard: list[Call] = []
    start, full = threading.Thread.start, True

    def start_if_there_is_room(thread: threading.Thread) -> None:
        if full and thread.name.startswith("voight-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_there_is_room)
    meter = listening(heard.append)
    with openai.OpenAI(base_url=loopback.openai_base_url, api_key="k") as client:
        gate.wrap(client)
        client.chat.completions.create(**HELLO)
        client.chat.completions.create(**HELLO)
        assert not meter.flush(0.5)
        full = False
        client.chat.completions.create(**HELLO)
    assert meter.flush(20)
    assert len(heard) == 3


@pytest.mark.slow
def test_listeners_that_get_no_thread_at_first(listening: Callable[..., Meter], monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger has its thread, the listeners get theirs with a later call: what waited until then is heard."""
    heard: list[Call] = []
    start, full = threading.Thread.start, True

    def start_if_there_is_room(thread: threading.Thread) -> None:
        if full and thread.name == "voight-listeners":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_there_is_room)
    meter = listening(heard.append)
    voight.record(provider="openai", model="gpt-4o-mini", usage={"prompt_tokens": 1, "completion_tokens": 1})
    assert not meter.flush(0.5), "it is not heard, and nobody says so"
    full = False
    voight.record(provider="openai", model="gpt-4o-mini", usage={"prompt_tokens": 1, "completion_tokens": 1})
    assert meter.flush(10)
    assert len(heard) == 2


def test_no_listener_runs_inside_a_request(
    listening: Callable[..., Meter], loopback: LoopbackProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where threads take the context of who starts them along, the calls of a listener are still not those of the first user."""
    start = threading.Thread.start

    def start_in_this_context(thread: threading.Thread) -> None:
        context, run = contextvars.copy_context(), thread.run
        monkeypatch.setattr(thread, "run", lambda: context.run(run))
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_in_this_context)
    owners: list[tuple[str | None, str | None]] = []
    meter = listening(lambda call: owners.append((call.tags.user_id, current_context().tags.user_id)))
    with voight.tag(user_id="first"):
        voight.record(provider="openai", model="gpt-4o-mini", usage={"prompt_tokens": 1, "completion_tokens": 1})
        assert meter.flush(10)
    assert owners == [("first", None)]


def test_half_a_character_in_a_models_name(listening: Callable[..., Meter]) -> None:
    """A name that no file can hold, as a client may make one up: the call is in the ledger, and heard."""
    heard: list[Call] = []
    meter = listening(heard.append)
    voight.record(provider="openai", model="gpt\ud800", usage={"prompt_tokens": 1, "completion_tokens": 1})
    assert meter.flush(10)
    assert [call.model for call in heard] == ["gpt\\ud800"]
    assert counters["internal_errors"] == 0
    with contextlib.closing(open_ledger(meter.settings.ledger)) as ledger:
        assert sum(1 for _ in ledger.calls()) == 1


@pytest.mark.slow
def test_a_listener_that_blocks_for_a_minute(listening: Callable[..., Meter], loopback: LoopbackProvider) -> None:
    """Requests and the ledger do not notice; a flush waits no longer than it may; afterwards everything is heard."""
    release, heard = threading.Event(), list[Call]()

    def blocking(call: Call) -> None:
        release.wait(60)

    meter = listening(blocking, heard.append)
    slowest = asyncio.run(_load(loopback.openai_base_url))
    began = time.monotonic()
    assert not meter.flush(1.0)
    waited = time.monotonic() - began
    stored = _in_ledger(meter)
    unheard = len(heard)
    release.set()

    assert slowest < 5
    assert waited < 5
    assert stored == CALLS
    assert unheard == 0
    assert meter.flush(20)
    assert len(heard) == CALLS


@pytest.mark.server
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_listener_that_forks(tmp_path: Path) -> None:
    """A child of a listener ends, and the calls are in the ledger once, and heard once."""
    script = f"""
        import os, voight_middleware as voight
        heard = []
        def forking(call):
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
            heard.append(call.call_id)
        voight.configure(ledger={str(tmp_path / "ledger.db")!r}, listeners=[forking])
        for _ in range(30):
            voight.record(provider="openai", model="gpt-4o-mini", usage={{"prompt_tokens": 1, "completion_tokens": 1}})
        assert voight.flush(30)
        print(len(heard), len(set(heard)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=90, check=True)

    assert done.stdout.split() == ["30", "30"]
    with contextlib.closing(open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")) as ledger:
        assert sum(1 for _ in ledger.calls()) == 30


@pytest.mark.slow
def test_a_listener_that_calls_an_llm_and_flushes(listening: Callable[..., Meter], loopback: LoopbackProvider) -> None:
    """Its own calls are metered and heard as any other; that it waits for the ledger does not make it wait for itself."""
    heard: list[Call] = []
    client = gate.wrap(openai.OpenAI(base_url=loopback.openai_base_url, api_key="k"))

    def calling(call: Call) -> None:
        heard.append(call)
        if call.tags.route is None and len(heard) <= 10:
            with voight.tag(route="judge"):
                client.chat.completions.create(**HELLO)
            meter.flush(5)

    meter = listening(calling)
    for _ in range(10):
        client.chat.completions.create(**HELLO)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and len(heard) < 20:
        meter.flush(0.2)
    client.close()

    assert sorted(str(call.tags.route) for call in heard) == ["None"] * 10 + ["judge"] * 10
    assert counters["listener_errors"] == 0


@pytest.mark.server
def test_the_end_of_the_process_does_not_wait_for_a_listener_that_hangs(tmp_path: Path) -> None:
    """It waits its usual time, and the call is in the ledger; nobody says that it is not."""
    script = f"""
        import time, voight_middleware as voight
        voight.configure(ledger={str(tmp_path / "ledger.db")!r}, listeners=[lambda call: time.sleep(3600)], exit_timeout=4)
        voight.record(provider="openai", model="gpt-4o-mini", usage={{"prompt_tokens": 1, "completion_tokens": 1}})
    """
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True)

    assert time.monotonic() - began < 30
    assert "not in the ledger" not in done.stderr
    with contextlib.closing(open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")) as ledger:
        assert sum(1 for _ in ledger.calls()) == 1


# -- watchers ------------------------------------------------------------------------------------------------------------------


class Watching:
    """Writes down what it sees, and raises where it is told to."""

    def __init__(self, broken: str = "") -> None:
        self.seen: list[str] = []
        self.broken = broken

    def _see(self, what: str) -> None:
        self.seen.append(what)
        if what.partition(" ")[0] == self.broken:
            raise RuntimeError

    def on_call_start(self, start: Any) -> str:
        """A call begins."""
        self._see(f"begin {start.requested_model}")
        return "token"

    def on_call_response(self, token: Any) -> None:
        """The request was answered."""
        self._see(f"left {token}")

    def on_call_end(self, token: Any, call: Call) -> None:
        """A call has ended."""
        self._see(f"end {token} {call.outcome}")

    def __call__(self, call: Call) -> None:
        """A call was priced."""
        self.seen.append("heard")


def test_a_watcher_sees_a_stream_begin_and_end(listening: Callable[..., Meter], loopback: LoopbackProvider) -> None:
    """The request is left before the stream is read; one given to watch() sees the calls of every meter."""
    own, standing = Watching(), Watching()
    assert isinstance(own, CallObserver)
    listening(own)
    add_observer(standing)
    add_observer(standing)
    try:
        meter = listening(own)
        with openai.OpenAI(base_url=loopback.openai_base_url, api_key="k") as client:
            stream = gate.wrap(client).chat.completions.create(**HELLO, stream=True)
            assert own.seen == standing.seen == ["begin gpt-4o-mini", "left token"]
            list(stream)
        assert meter.flush(20)
    finally:
        remove_observer(standing)
    assert own.seen == [*standing.seen, "heard"] == ["begin gpt-4o-mini", "left token", "end token ok", "heard"]
    assert standing not in meter.observers.present


@pytest.mark.parametrize("broken", ["begin", "left", "end"])
def test_a_watcher_that_raises(broken: str, listening: Callable[..., Meter], loopback: LoopbackProvider) -> None:
    """The call goes on, is metered, and the fault is counted; other watchers see everything."""
    other = Watching()
    meter = listening(Watching(broken), other)
    with openai.OpenAI(base_url=loopback.openai_base_url, api_key="k") as client:
        assert gate.wrap(client).chat.completions.create(**HELLO).choices
    assert meter.flush(20)

    assert other.seen == ["begin gpt-4o-mini", "end token ok", "left token", "heard"]
    assert counters["observer_errors"] == 1
    assert counters["internal_errors"] == 0


class Class:
    """Has the method, and is no object."""

    def __call__(self, call: Call) -> None: ...


@pytest.mark.parametrize("listeners", [print, "print", [Class], [None], [5]], ids=["a function", "a text", "a class", "None", "a number"])
def test_what_is_no_list_of_listeners_is_said(listeners: Any) -> None:
    """When it is given, and not at each call."""
    with pytest.raises(SettingsError, match="listeners: "):
        voight.configure(listeners=listeners)


def test_listeners_may_come_from_an_iterator(tmp_path: Path) -> None:
    """They are looked at twice, and none is lost by it."""
    outer = swap_meter(None)
    try:
        given: Any = iter([print])
        voight.configure(ledger=tmp_path / "ledger.db", listeners=given)
        assert current_meter().listeners == (print,)
    finally:
        swap_meter(outer)
