"""
What metering adds in instructions, counted by callgrind: the same figures on a busy machine.

    python benchmarks/instructions.py --json before.json
    python benchmarks/instructions.py --compare before.json --tolerance 3%

Every row runs in processes of its own, which are forked from one that has imported the SDK: one
with N calls and one with 2 N, each after the same warm-up. The difference of their counts is N
calls; whatever happens once cancels out. "Caller" is the thread that calls, "others" all other
threads of the process and the processes that it forks.

``PYTHONHASHSEED=0``; the garbage collector is on, and what exists before the calls is frozen
(``gc.freeze``). A round of the background thread begins only with the flush after the calls, so
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
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import middleware
import openai
import overhead

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
NO_INGESTER: dict[str, Any] = {"ingest": False}
INGESTER: dict[str, Any] = {"ingest": True}
LISTENER: dict[str, Any] = {"ingest": True, "listeners": [HEARD.append]}


class Client:
    """A client of the SDK, and one call of it."""

    def __init__(self, *, stream: bool = False) -> None:
        self.sdk = openai.OpenAI(api_key="k", http_client=overhead.transport(openai))
        self._arguments = arguments(stream)

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
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(["ingest", "--once"]) == 0

    run = calls()()
    with tempfile.TemporaryDirectory() as folder:
        configure(Path(folder), NO_INGESTER)
        run(1)
        forked(ingest)

    def run_and_ingest(count: int) -> None:
        run(count)
        forked(ingest)

    return run_and_ingest


def async_streams(*, metered: bool) -> Callable[[], Run]:
    """Streams of the asynchronous client."""

    def prepare() -> Run:
        client = openai.AsyncOpenAI(api_key="k", http_client=async_transport())
        if metered:
            voight.wrap(client)

        async def stream() -> None:
            answer: Any = await client.chat.completions.create(**arguments(stream=True))
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


def arguments(stream: bool) -> dict[str, Any]:
    """What the application asks, the same as in ``overhead.py``."""
    question = "Here are the last twenty log lines. What broke? " * 12
    messages = [{"role": "user", "content": question}]
    return {"model": "gpt-4o-mini", "messages": messages, "stream": stream}


def async_transport() -> Any:
    """``overhead.transport`` for asynchronous clients."""
    base: Any = sys.modules["openai._base_client"]
    http = getattr(base, "httpx2", None) or base.httpx

    async def answer(_request: Any) -> Any:
        headers = {"content-type": "text/event-stream"}
        return http.Response(200, content=overhead.OPENAI_SSE, headers=headers)

    return http.AsyncClient(transport=http.MockTransport(answer))


def rows() -> list[Row]:
    """All rows, each after the one that it is compared with."""
    bare, stream, loop = "bare call", "bare stream", "bare async stream"
    chunks = overhead.CHUNKS
    made = [
        Row(bare, bare, 10, calls(metered=False)),
        Row("control", bare, 10, calls(metered=False)),
        Row("metered, no user", bare, 10, calls(tagged=False), NO_INGESTER),
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
        base = f"{family} request, bare"
        ours = f"{family} request"
        made += [
            Row(base, base, 50, requests(family, middleware.BARE)),
            Row(ours, base, 50, requests(family, middleware.OURS), NO_INGESTER),
        ]
    base, ours = "fastapi dependency, bare", "fastapi dependency"
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
    """Print the processes of a row, and which of them called, for N calls and for 2 N."""
    run = row.prepare()

    def count(times: int) -> None:
        if row.settings is not None:
            configure(Path(tempfile.mkdtemp(dir=folder)), row.settings)
        run(max(1, row.count // 2))
        gc.collect()
        gc.freeze()
        run(times * max(1, row.count // divisor))

    for times in (1, 2):
        before = set(folder.glob("callgrind.*-*"))
        caller = forked(functools.partial(count, times))
        dumped = set(folder.glob("callgrind.*-*")) - before
        print(json.dumps([row.name, caller, sorted({process_of(path)[0] for path in dumped})]))


def process_of(path: Path) -> tuple[int, int]:
    """The process and the thread of one of callgrind's files."""
    process, thread = path.name.split(".")[1].split("-")
    return int(process), int(thread)


class Count(NamedTuple):
    """Instructions per call."""

    caller: float
    others: float


def totals(folder: Path) -> dict[int, dict[int, int]]:
    """The instructions that callgrind has counted, by process and thread."""
    counted: dict[int, dict[int, int]] = {}
    for path in folder.glob("callgrind.*-*"):
        process, thread = process_of(path)
        found = re.findall(r"^(?:totals|summary): (\d+)", path.read_text(), re.MULTILINE)
        counted.setdefault(process, {})[thread] = int(found[-1])
    return counted


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
        valgrind = [
            "valgrind",
            "--tool=callgrind",
            "-q",
            "--separate-threads=yes",
            "--dump-line=no",
        ]
        valgrind += [f"--callgrind-out-file={folder}/callgrind.%p"]
        output = subprocess.run(
            [*valgrind, *child], env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        counted = totals(folder)
    taken = {}
    lines = map(json.loads, output.splitlines())
    by_name = {row.name: row for row in rows()}
    for (name, once, others), (_, twice, more) in zip(lines, lines, strict=True):
        first, second = counted[once][1], counted[twice][1]
        first_all, second_all = (
            sum(sum(counted[process].values()) for process in processes)
            for processes in (others, more)
        )
        count = max(1, by_name[name].count // divisor)
        caller = (second - first) / count
        taken[name] = Count(caller, (second_all - first_all) / count - caller)
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


def fits(name: str, part: str) -> bool:
    """Whether *part* is the name of a row, or stands in it and is no other row's whole name."""
    return name == part or (part in name and part not in {row.name for row in rows()})


def percent(text: str) -> float:
    """``3%`` or ``0.03`` as a share."""
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="What metering adds in instructions.")
    parser.add_argument("--only", default="", help="rows, by name or part of it, with commas")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    parser.add_argument("--compare", type=Path, help="exit with 1 if a row has grown since then")
    parser.add_argument("--tolerance", type=percent, default=0.03, help="of what a row adds: 3%%")
    parser.add_argument("--divisor", type=int, default=1, help="fewer calls in each process")
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    asked = [part.strip() for part in options.only.split(",")]
    if options.folder:
        return count_rows(asked, options.folder, options.divisor)
    if not shutil.which("valgrind"):
        parser.error("valgrind is not installed: apt-get install valgrind")
    chosen = [row for row in rows() if any(fits(row.name, part) for part in asked)]
    names = {row.name for row in chosen} | {row.base for row in chosen} | {"bare call", "control"}
    began = time.monotonic()
    taken = measure(sorted(names), options.divisor)
    show(taken)
    print(
        f"\nPython {sys.version.split()[0]}, openai {openai.__version__}; "
        f"{time.monotonic() - began:.0f} s"
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
