"""
What the library costs before it does anything: importing it, its memory in a worker, a command.

    python benchmarks/start.py --ledger ledger.db

Every figure is of fresh processes, interleaved, beside the same process without the library. CPU
time and not time, as other work of the machine makes no difference to it then.

Memory is what a worker has to itself (USS) after one metered call, by ``smaps_rollup``. Another
process is the ingester there, as for all workers of a host but one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

BARE = "pass"
USED = "import voight_middleware as voight; voight.wrap"
IMPORTS = {
    "nothing": BARE,
    "import voight_middleware": "import voight_middleware",
    "and its names": USED,
    "import msgspec, logging": "import msgspec, logging",
}
AFTER_OPENAI = {
    "import openai, fastapi": "import openai, fastapi",
    "and voight_middleware with its names": f"import openai, fastapi; {USED}",
}
COMMANDS = {"nothing": (), "voight --help": ("--help",), "voight top": ("top",)}
CALL = """
import os, sys
import httpx, openai, fastapi
def answer(request):
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    message = {"role": "assistant", "content": "hi"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return httpx.Response(200, json={"id": "c", "object": "chat.completion", "created": 1,
        "model": "gpt-4o-mini", "choices": [choice], "usage": usage})
client = openai.OpenAI(api_key="k", http_client=httpx.Client(transport=httpx.MockTransport(answer)))
app = fastapi.FastAPI()
if sys.argv[1]:
    import time
    import voight_middleware as voight
    voight.configure(ledger=sys.argv[1] + "/ledger.db", journal=sys.argv[1] + "/journal")
    app.add_middleware(voight.CostTagMiddleware)
    voight.wrap(client)
client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "x"}])
if sys.argv[1]:
    time.sleep(2.5)  # two rounds of the worker thread
import gc
gc.collect()
with open("/proc/self/smaps_rollup") as file:
    figures = {line.split(":")[0]: int(line.split()[1]) for line in file if line.endswith("kB\\n")}
print(figures["Private_Clean"] + figures["Private_Dirty"], flush=True)
os._exit(0)
"""


def cpu(command: Sequence[str]) -> float:
    """The milliseconds of CPU time of one process."""
    null = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    process = os.posix_spawn(command[0], command, os.environ, file_actions=[null])
    _, status, used = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return (used.ru_utime + used.ru_stime) * 1000


def compare(title: str, commands: dict[str, list[str]], rounds: int) -> None:
    """The CPU time of each command, and what it has more than the first."""
    for command in commands.values():
        cpu(command)  # compiled, and in the page cache
    figures: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds):
        for name in commands if number % 2 == 0 else reversed(commands):
            figures[name].append(cpu(commands[name]))
    first = next(iter(figures.values()))
    print(f"{title:40s}{'ms of CPU':>12s}{'added':>9s}{'least':>9s}")
    for name, own in figures.items():
        added = statistics.median(mine - base for mine, base in zip(own, first, strict=True))
        print(f"  {name:38s}{statistics.median(own):12.1f}{added:+9.1f}{min(own):9.1f}", flush=True)


def memory(folder: str) -> int:
    """The kilobytes that a worker has to itself; without the library if *folder* is empty."""
    command = [sys.executable, "-W", "ignore", "-c", CALL, folder]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compare_memory(rounds: int) -> None:
    """The memory of a worker with the library, and without."""
    from voight_middleware.pipeline.lock import IngestLock

    with tempfile.TemporaryDirectory() as folder:
        lock = IngestLock(Path(folder, "journal"))
        lock.acquire()
        bare, ours = zip(*((memory(""), memory(folder)) for _ in range(rounds)), strict=True)
    print(f"{'a worker that is not elected':40s}{'MB':>12s}{'added':>9s}")
    print(f"  {'openai and FastAPI':38s}{statistics.median(bare) / 1024:12.1f}")
    print(
        f"  {'and voight_middleware, one call':38s}{statistics.median(ours) / 1024:12.1f}"
        f"{(statistics.median(ours) - statistics.median(bare)) / 1024:+9.1f}"
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="What the library costs before it does anything.")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--ledger", help="measure `voight top` on this ledger")
    options = parser.parse_args()
    python = [sys.executable, "-W", "ignore", "-c"]
    compare("importing", {name: [*python, code] for name, code in IMPORTS.items()}, options.rounds)
    compare(
        "importing into an application",
        {name: [*python, code] for name, code in AFTER_OPENAI.items()},
        max(options.rounds // 3, 1),
    )
    compare_memory(3)
    if options.ledger:
        os.environ["VOIGHT_LEDGER"] = options.ledger
        run = "import sys; from voight_middleware.cli import main; sys.exit(main())"
        commands = {
            name: [*python, run, *arguments] if arguments else [*python, BARE]
            for name, arguments in COMMANDS.items()
        }
        compare("a command", commands, options.rounds)


if __name__ == "__main__":
    main()
