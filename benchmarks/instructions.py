"""
What metering adds in instructions, counted by callgrind: the same figures on a busy machine.

    python benchmarks/instructions.py --json before.json
    python benchmarks/instructions.py --compare before.json --tolerance 3%

Every row runs in processes of its own, which are forked from one that has imported the SDK: one
with N calls and one with 2 N, each after the same warm-up. The difference of their counts is N
calls; whatever happens once cancels out. "Caller" is the thread that calls, "others" all other
threads of its process and, in the row that says so, the process that ingests.

``PYTHONHASHSEED=0``, and the garbage collector is off while calls are counted: when it runs would
be the noise. A round of the background thread begins only with the flush after the calls, so
that the clock decides nothing. ``PYTHONMALLOC`` is left alone. It needs Linux and ``valgrind``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import canned
import middleware
import openai

import voight_middleware as voight

Run = Callable[[int], None]
"""Makes so many calls."""


class Row(NamedTuple):
    """One line of the table."""

    name: str
    base: str
    """The row it is compared with; its own name if with none."""
    count: int
    """So many calls in the one process, and twice as many in the other."""
    prepare: Callable[[], Run]
    """Runs before the fork: what is imported and wrapped."""
    settings: dict[str, Any] | None = None
    """Of ``voight.configure``, after the fork; None if nothing is metered."""
    chunks: int = 0
    """So many chunks in a call: the table shows a chunk, too."""


# -- the calls -------------------------------------------------------------------------------------

OWNER = {"user_id": "u_1", "plan": "pro"}
HEARD: list[Any] = []
"""What the listener has got."""
BESIDE: list[int] = []
"""The processes that work for the one that calls."""
NO_INGESTER: dict[str, Any] = {"ingest": False}
INGESTER: dict[str, Any] = {"ingest": True}
LISTENER: dict[str, Any] = {"ingest": True, "listeners": [HEARD.append]}


class Client:
    """A client of the SDK, and one call of it."""

    def __init__(self, *, stream: bool = False) -> None:
        self.sdk = openai.OpenAI(api_key="k", http_client=canned.transport("openai"))
        self._arguments = canned.arguments("openai", stream=stream)

    def call(self) -> None:
        answer: Any = self.sdk.chat.completions.create(**self._arguments)
        if self._arguments["stream"]:
            for _ in answer:
                pass

    def tagged(self) -> None:
        with voight.tag(**OWNER):
            self.call()


def calls(*, metered: bool = True, tagged: bool = True, stream: bool = False) -> Callable[[], Run]:
    """Calls of the synchronous client."""

    def prepare() -> Run:
        client = Client(stream=stream)
        if metered:
            voight.wrap(client.sdk)
        call = client.tagged if metered and tagged else client.call

        def run(count: int) -> None:
            for _ in range(count):
                call()

        return run

    return prepare


def flushed(*, listened: bool = False) -> Callable[[], Run]:
    """Calls, and a flush after the last one: the ingester's round."""

    def prepare() -> Run:
        run = calls()()

        def run_and_flush(count: int) -> None:
            HEARD.clear()
            run(count)
            assert voight.flush(600)
            assert len(HEARD) == (count if listened else 0), len(HEARD)

        return run_and_flush

    return prepare


def sidecar() -> Run:
    """Calls, and ``voight ingest --once`` in another process after the last one."""
    from voight_middleware.cli import main

    def ingest() -> None:
        os.getsid(0)
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(["ingest", "--once"]) == 0

    run = calls()()
    with tempfile.TemporaryDirectory() as folder:
        configure(Path(folder), NO_INGESTER)
        run(1)
        forked(ingest)

    def run_and_ingest(count: int) -> None:
        run(count)
        BESIDE.append(forked(ingest))

    return run_and_ingest


def async_streams(*, metered: bool) -> Callable[[], Run]:
    """Streams of the asynchronous client."""

    def prepare() -> Run:
        http = canned.transport("openai", asynchronous=True)
        client = openai.AsyncOpenAI(api_key="k", http_client=http)
        arguments = canned.arguments("openai", stream=True)
        if metered:
            voight.wrap(client)

        async def stream() -> None:
            answer: Any = await client.chat.completions.create(**arguments)
            async for _ in answer:
                pass

        async def tagged() -> None:
            with voight.tag(**OWNER):
                await stream()

        loop = asyncio.new_event_loop()

        def run(count: int) -> None:
            for _ in range(count):
                loop.run_until_complete(tagged() if metered else stream())

        return run

    return prepare


def requests(family: str, variant: str) -> Callable[[], Run]:
    """Requests without a call, through the applications of ``middleware.py``."""

    def prepare() -> Run:
        app = getattr(middleware, family)(variant)
        if family in ("flask", "django"):
            return lambda count: middleware.wsgi_requests(app, count)
        loop = asyncio.new_event_loop()
        return lambda count: loop.run_until_complete(middleware.asgi_requests(app, count))

    return prepare


def configure(folder: Path, settings: dict[str, Any]) -> None:
    """Meter into *folder*."""
    os.environ["VOIGHT_LEDGER"] = f"sqlite:///{folder}/ledger.db"
    os.environ["VOIGHT_JOURNAL"] = f"{folder}/journal"
    voight.configure(**settings)
    from voight_middleware.pipeline import worker

    # Rounds begin with a flush only: the clock runs fifty times as fast under valgrind.
    for interval in ("INTERVAL", "BUSY_INTERVAL", "MAX_POLL"):
        assert hasattr(worker, interval), f"{interval} is elsewhere: set it here"
        setattr(worker, interval, 3600.0)


def rows() -> list[Row]:
    """All rows, each after the one that it is compared with."""
    bare, stream, loop = "bare call", "bare stream", "bare async stream"
    chunks = canned.CHUNKS
    made = [
        Row(bare, bare, 10, calls(metered=False)),
        Row("control", bare, 10, calls(metered=False)),
        Row("metered without a user", bare, 10, calls(tagged=False), NO_INGESTER),
        Row("metered", bare, 10, calls(), NO_INGESTER),
        Row("metered + ingester", bare, 10, flushed(), INGESTER),
        Row("metered + ingester + listener", bare, 10, flushed(listened=True), LISTENER),
        Row("metered + voight ingest", bare, 10, sidecar, NO_INGESTER),
        Row(stream, stream, 1, calls(metered=False, stream=True), None, chunks),
        Row("stream", stream, 1, calls(stream=True), NO_INGESTER, chunks),
        Row(loop, loop, 1, async_streams(metered=False), None, chunks),
        Row("async stream", loop, 1, async_streams(metered=True), NO_INGESTER, chunks),
    ]
    for family in ("starlette", "fastapi", "flask", "django"):
        base = f"bare {family} request"
        ours = f"{family} request"
        made += [
            Row(base, base, 50, requests(family, middleware.BARE)),
            Row(ours, base, 50, requests(family, middleware.OURS), NO_INGESTER),
        ]
    base, ours = "bare fastapi dependency", "fastapi dependency"
    made += [
        Row(base, base, 50, requests("fastapi", middleware.WITH_DEPENDENCY)),
        Row(ours, base, 50, requests("fastapi", middleware.COST_TAGS), NO_INGESTER),
    ]
    return made


# -- under valgrind --------------------------------------------------------------------------------


def forked(work: Callable[[], None]) -> int:
    """Do *work* in a forked process; return its number."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            sys.stdout.flush()
            os._exit(code)
    if os.waitpid(process, 0)[1] != 0:
        raise SystemExit("a row failed")
    return process


def count_rows(names: list[str], folder: Path, divisor: int) -> None:
    """Run the rows with *names*, each in processes of its own."""
    calls(metered=False)()(3)
    for row in rows():
        if row.name in names:
            forked(functools.partial(count_row, row, folder, divisor))


def count_row(row: Row, folder: Path, divisor: int) -> None:
    """Make N calls in one process and 2 N in another, forked from the same state."""
    run = row.prepare()

    def count(times: int) -> None:
        if row.settings is not None:
            configure(Path(tempfile.mkdtemp(dir=folder)), row.settings)
        run(max(1, row.count // 2))
        BESIDE.clear()
        gc.collect()
        gc.disable()
        run(times * max(1, row.count // divisor))
        print(json.dumps([row.name, os.getpid(), BESIDE]))

    for times in (1, 2):
        forked(functools.partial(count, times))


class Count(NamedTuple):
    """Instructions per call."""

    caller: float
    others: float


def instructions(folder: Path, caller: int, beside: list[int]) -> tuple[int, int]:
    """What callgrind has counted: of the thread that called, and of all other threads."""
    counted = {
        path.name: int(re.findall(r"(?m)^totals: (\d+)", path.read_text())[-1])
        for process in (caller, *beside)
        for path in folder.glob(f"callgrind.{process}-*")
    }
    called = counted.pop(f"callgrind.{caller}-01")
    return called, sum(counted.values())


def measure(names: list[str], divisor: int = 1) -> dict[str, Count]:
    """Run the rows with *names* under callgrind."""
    environment = {**os.environ, "PYTHONHASHSEED": "0", "ANTHROPIC_OPEN_TELEMETRY": "false"}
    for name in [name for name in environment if name.startswith("VOIGHT_")]:
        del environment[name]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        child = [sys.executable, "-W", "ignore", __file__, "--only", ",".join(names)]
        child += ["--in", str(folder), "--divisor", str(divisor)]
        # Without valgrind first: it compiles what is to be imported, and shows mistakes early.
        subprocess.run([*child[:-1], "100"], env=environment, check=True, stdout=subprocess.DEVNULL)
        # What a process has counted before it calls `getsid` does not count.
        valgrind = ["valgrind", "--tool=callgrind", "-q", "--separate-threads=yes"]
        valgrind += ["--zero-before=getsid", f"--callgrind-out-file={folder}/callgrind.%p"]
        output = subprocess.run(
            [*valgrind, *child], env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        counted: dict[str, list[tuple[int, int]]] = {}
        for line in output.splitlines():
            name, caller, beside = json.loads(line)
            counted.setdefault(name, []).append(instructions(folder, caller, beside))
    taken = {}
    for row in rows():
        if row.name in counted:
            first, second = counted[row.name]
            count = max(1, row.count // divisor)
            taken[row.name] = Count(*((b - a) / count for a, b in zip(first, second, strict=True)))
    return taken


# -- the table -------------------------------------------------------------------------------------


def show(taken: dict[str, Count]) -> None:
    """Print the table, in thousands of instructions."""
    print(
        f"{'thousands of instructions':32}{'caller':>10}{'added':>9}{'ratio':>8}{'others':>9}"
        f"{'all added':>11}{'/chunk':>9}"
    )
    for row in rows():
        if row.name not in taken:
            continue
        caller, others = taken[row.name]
        line = f"{row.name:32}{caller / 1e3:10.1f}"
        if row.base != row.name and row.base in taken:
            base = taken[row.base]
            added = caller - base.caller
            everything = added + others - base.others
            line += f"{added / 1e3:+9.1f}{added / base.caller:+8.2%}{others / 1e3:9.1f}"
            line += f"{everything / 1e3:+11.1f}"
            if row.chunks:
                line += f"{everything / row.chunks / 1e3:+9.2f}"
        print(line)


def grown(taken: dict[str, Count], before: dict[str, Count], tolerance: float) -> list[str]:
    """Say which rows cost more than *before*, in what they add and for the caller or in all."""
    control = abs(taken["control"].caller - taken["bare call"].caller)
    complaints = []
    for row in rows():
        needed = {row.name, row.base}
        if row.name in (row.base, "control") or not needed <= set(taken) & set(before):
            continue
        for what, of in (("caller", lambda one: one.caller), ("in all", sum)):
            was = of(before[row.name]) - of(before[row.base])
            now = of(taken[row.name]) - of(taken[row.base])
            if now > was + abs(was) * tolerance + control:
                complaints.append(
                    f"{row.name}, {what}: +{was / 1e3:.1f} k before, +{now / 1e3:.1f} k now"
                )
    return complaints


def percent(text: str) -> float:
    """``3%`` or ``0.03`` as a share."""
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="What metering adds in instructions.")
    parser.add_argument("--only", default="*", help="rows, with commas: metered*,stream")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    parser.add_argument("--compare", type=Path, help="exit with 1 if a row has grown since then")
    parser.add_argument("--tolerance", type=percent, default=0.03, help="of what a row adds: 3%%")
    parser.add_argument("--divisor", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    asked = options.only.split(",")
    if options.folder:
        return count_rows(asked, options.folder, options.divisor)
    if not shutil.which("valgrind"):
        parser.error("valgrind is not installed: apt-get install valgrind")
    chosen = [row for row in rows() if any(fnmatch(row.name, one) for one in asked)]
    names = {row.name for row in chosen} | {row.base for row in chosen} | {"bare call", "control"}
    began = time.monotonic()
    taken = measure(sorted(names), options.divisor)
    show(taken)
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"\nPython {sys.version.split()[0]}, openai {openai.__version__}; "
        f"{time.monotonic() - began:.0f} s, "
        f"of CPU {cpu.ru_utime + cpu.ru_stime:.0f} s"
    )
    if options.json:
        options.json.write_text(json.dumps(taken, indent=2))
    if options.compare:
        before = {
            name: Count(*one) for name, one in json.loads(options.compare.read_text()).items()
        }
        complaints = grown(taken, before, options.tolerance)
        print("\n".join(complaints) or f"nothing has grown by more than {options.tolerance:.1%}")
        sys.exit(bool(complaints))
    return None


if __name__ == "__main__":
    main()
