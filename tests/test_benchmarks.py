"""The measuring tools of ``benchmarks/`` measure what they say. What they find is not tested."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from .support.depth import DEEP

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
HEAD = b"HTTP/1.1 %s\r\ncontent-length: 2\r\n\r\n"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a script of that folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def benchmark(name: str) -> Any:
    return importlib.import_module(name)


# -- the canned provider ---------------------------------------------------------------------------


def test_the_canned_answers_are_read_by_the_sdk() -> None:
    """A whole answer and a stream have the same usage, and the stream as many chunks as it says."""
    canned = benchmark("canned")
    client = openai.OpenAI(api_key="k", http_client=canned.transport("openai"))

    whole = client.chat.completions.create(**canned.arguments("openai"))
    *chunks, last = client.chat.completions.create(**canned.arguments("openai", stream=True))

    assert whole.usage == last.usage
    assert whole.usage.completion_tokens == 241
    assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) == canned.CHUNKS


async def test_the_asynchronous_transport_answers_after_its_pause() -> None:
    canned = benchmark("canned")
    client = openai.AsyncOpenAI(api_key="k", http_client=canned.transport("openai", asynchronous=True, after=0.01))
    began = time.monotonic()

    answer = await client.chat.completions.create(**canned.arguments("openai"))

    assert answer.usage is not None
    assert time.monotonic() - began >= 0.01


# -- instructions ----------------------------------------------------------------------------------


def test_every_row_is_compared_with_one_before_it() -> None:
    names: list[str] = []
    for row in benchmark("instructions").rows():
        assert row.name not in names
        assert "," not in row.name, "names are given with commas between them"
        names.append(row.name)
        assert row.base in names


def counts(**caller: float) -> dict[str, Any]:
    """Counts of a bare call, its control and a metered one."""
    count = benchmark("instructions").Count
    bare = {"bare call": count(5_000_000, 0), "control": count(5_000_100, 0)}
    return bare | {"metered": count(5_000_000 + caller["caller"], caller.get("others", 0))}


@pytest.mark.parametrize(
    ("now", "complaints"),
    [
        ({"caller": 100_000, "others": 50_000}, []),
        ({"caller": 102_900, "others": 50_000}, []),
        ({"caller": 103_200, "others": 0}, ["metered, caller: +100.0 k before, +103.2 k now"]),
        ({"caller": 100_000, "others": 60_000}, ["metered, in all: +150.0 k before, +160.0 k now"]),
        ({"caller": 50_000, "others": 0}, []),
    ],
)
def test_a_row_that_has_grown_beyond_the_tolerance_is_told(now: dict[str, float], complaints: list[str]) -> None:
    """The tolerance is of what metering adds, and not of the call; the control's own difference is added to it."""
    before = counts(caller=100_000, others=50_000)

    assert benchmark("instructions").grown(counts(**now), before, 0.03) == complaints


def test_a_row_that_was_not_measured_before_is_not_compared() -> None:
    before = counts(caller=100_000)
    del before["metered"]

    assert benchmark("instructions").grown(counts(caller=900_000), before, 0.03) == []


def test_counts_are_those_of_the_calling_thread_and_of_all_others(tmp_path: Path) -> None:
    """Callgrind writes a file per process and thread; the calling one is the first."""
    for name, total in {"7-01": 1000, "7-02": 20, "8-01": 3, "9-01": 70}.items():
        (tmp_path / f"callgrind.{name}").write_text(f"events: Ir\nsummary: 5\n\ntotals: {total}\n")

    assert benchmark("instructions").instructions(tmp_path, 7, [8]) == (1000, 23)


@pytest.mark.slow
@pytest.mark.server
def test_every_row_runs(tmp_path: Path) -> None:
    """Without valgrind, and with one call where there would be ten; in the default run, some of the rows."""
    names = [row.name for row in benchmark("instructions").rows()]
    if not DEEP:
        names = ["bare call", "metered + voight ingest", "async stream"]
    command = [sys.executable, "-W", "ignore", str(BENCHMARKS / "instructions.py"), "--in", str(tmp_path)]

    run = subprocess.run([*command, "--only", ",".join(names), "--divisor", "100"], capture_output=True, text=True, check=True)

    assert run.stdout.count("\n") == 2 * len(names)


# -- peers -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.server
def test_a_library_is_measured_in_its_own_process_and_records_every_call() -> None:
    peers = benchmark("peers")
    ours = peers.Process(peers.OURS, peers.OURS, sys.executable, stream=False)
    ours.measure(3)
    caller, everything = ours.figures[0]

    assert ours.version == openai.__version__
    assert 0 < caller < everything
    assert ours.end() == 1


def test_what_is_missing_is_told_with_its_versions() -> None:
    peers = benchmark("peers")

    for library in peers.REQUIREMENTS:
        command = peers.installation(library, Path("/venvs"))
        assert command.endswith(f"openai=={openai.__version__}")
        assert f"/venvs/{library}/bin/pip install" in command
    assert peers.REQUIREMENTS.keys() == peers.LIBRARIES.keys() - {peers.OURS}


# -- a steady server -------------------------------------------------------------------------------


class Target:
    """As much of ``steady.Server`` as a load needs."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked = self.failed = 0
        self.latencies: list[float] = []


class Answers(asyncio.Protocol):
    """A connection of a server that gives these answers, whatever it is asked, and then leaves."""

    def __init__(self, answers: list[bytes], asked: list[bytes], left: asyncio.Event) -> None:
        self.answers, self.asked, self.left = answers, asked, left

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.asked.append(data)
        first, *rest = self.answers.pop(0).split(b"|")
        self.transport.write(first)
        if rest:
            asyncio.get_running_loop().call_later(0.001, self.transport.write, rest[0])
        if not self.answers:
            self.transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.answers:
            self.left.set()


async def drive(answers: list[bytes], moments: list[float]) -> tuple[Target, list[bytes]]:
    """Send requests at these moments to a server that gives these answers."""
    asked: list[bytes] = []
    left = asyncio.Event()
    server = await asyncio.get_running_loop().create_server(lambda: Answers(answers, asked, left), "127.0.0.1", 0)
    target = Target(server.sockets[0].getsockname()[1])
    load = benchmark("steady").Load(target)
    async with server:
        assert len(await load.window(moments)) == len(moments)
        await load.close()
        await left.wait()
    return target, asked


async def test_a_load_waits_for_every_answer_and_keeps_its_latency() -> None:
    """Also for one that comes in pieces, or is an error."""
    fine = HEAD % b"200 OK"
    target, asked = await drive([fine + b"o|k", fine + b"ok", HEAD % b"500 No" + b"no"], [0, 0.005, 0.01])

    assert (len(asked), target.asked, target.failed, len(target.latencies)) == (3, 3, 1, 3)
    assert all(b"x-user: u_" in request for request in asked)


async def test_an_answer_that_never_ends_has_failed() -> None:
    target, _ = await drive([HEAD % b"200 OK" + b"o"], [0])

    assert (target.failed, target.latencies) == (1, [])


def test_moments_come_at_the_rate_and_are_the_same_for_every_server() -> None:
    import random

    steady = benchmark("steady")
    first, second = (steady.moments(100, 50, random.Random(1)) for _ in range(2))

    assert first == second == sorted(first)
    assert 4_500 < len(first) < 5_500
    assert first[-1] < 50


@pytest.mark.server
def test_cpu_is_that_of_every_process_that_the_server_has_started(tmp_path: Path) -> None:
    """Found by what they inherit: a process that has left the server's group, too."""
    steady = benchmark("steady")
    server = steady.Server.__new__(steady.Server)
    server._mark = f"STEADY_SERVER={tmp_path}"
    burn = "import sys, time\nwhile time.process_time() < 0.1: pass\nprint(flush=True); sys.stdin.read()"
    environment = {**os.environ, "STEADY_SERVER": str(tmp_path)}
    command = [sys.executable, "-S", "-c", burn]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}

    assert server.cpu() == 0
    with subprocess.Popen(command, env=environment, **pipes) as one, subprocess.Popen(command, env=environment, **pipes) as other:
        for process in (one, other):
            assert process.stdout is not None
            process.stdout.readline()
        assert 0.18 <= server.cpu() < 2
        for process in (one, other):
            process.communicate()


# -- flame graphs ----------------------------------------------------------------------------------


def test_a_picture_shows_shares_and_leaves_out_imports() -> None:
    """A frame too narrow to see is not drawn, and the machinery of imports never."""
    flame = benchmark("flame")
    importing = ["main (a.py:1)", "_load (<frozen importlib._bootstrap>:1)", "<module> (voight_middleware/b.py:1)"]
    seen = [(["main (a.py:1)", "call <x> (a.py:2)"], 750), (importing, 249), (["main (a.py:1)", "rare (a.py:3)"], 1)]

    whole, steady = (flame.picture("A call", seen, steady) for steady in (False, True))

    assert "call &lt;x&gt; (a.py:2): 75.0%" in whole
    assert "voight_middleware/b.py</text>" in whole
    assert flame.OURS in whole
    assert "importlib" not in whole
    assert "rare" not in whole
    assert "b.py" not in steady
    assert "call &lt;x&gt; (a.py:2): 99.9%" in steady
