"""
What metering adds to a call of the real SDKs, in CPU time, against the bare SDK in the same run.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import openai

sys.path.insert(0, str(Path(__file__).parent))
import canned

import voight_middleware as voight


def caller(sdk: Any, stream: bool, metered: bool) -> Callable[[], None]:
    """One call, as an application makes it; the metered one under a tag that names its user."""
    name = sdk.__name__
    made: Any = openai.OpenAI if sdk is openai else anthropic.Anthropic
    client = made(api_key="k", http_client=canned.transport(name))
    create = client.chat.completions.create if sdk is openai else client.messages.create
    arguments = canned.arguments(name, stream=stream)

    def call() -> None:
        answer = create(**arguments)
        if stream:
            for _ in answer:
                pass

    def tagged() -> None:
        with voight.tag(user_id="u_1"):
            call()

    if metered:
        voight.wrap(client)
        return tagged
    return call


def measure(call: Callable[[], None], count: int) -> tuple[float, float]:
    """
    Microseconds per call: CPU of this thread over the calls, and CPU of the process over the calls
    and a flush.
    """
    voight.flush()
    gc.collect(1)
    process, thread = time.process_time(), time.thread_time()
    for _ in range(count):
        call()
    thread = time.thread_time() - thread
    voight.flush()
    return thread / count * 1e6, (time.process_time() - process) / count * 1e6


def compare(sdk: Any, stream: bool, rounds: int, count: int) -> None:
    calls = {
        "bare": caller(sdk, stream, False),
        "control": caller(sdk, stream, False),
        "metered": caller(sdk, stream, True),
    }
    for call in calls.values():
        measure(call, max(2, count // 10))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls) if turn % 2 else list(reversed(calls)):
            taken[name].append(measure(calls[name], count))

    def added(name: str, what: int) -> float:
        return statistics.median(
            one[what] - bare[what] for one, bare in zip(taken[name], taken["bare"], strict=True)
        )

    bare = statistics.median(one[0] for one in taken["bare"])
    per_chunk = f"{added('metered', 0) / (canned.CHUNKS + 2):+9.2f}" if stream else " " * 9
    print(
        f"{sdk.__name__:<10} {'stream' if stream else 'plain':<7} {bare:9.1f} "
        f"{added('metered', 0):+9.1f} {added('metered', 1):+9.1f}"
        f" {per_chunk} {added('metered', 0) / bare:+8.1%} {added('control', 0):+9.1f} "
        f"{added('control', 1):+9.1f}"
    )


def compare_apart(sdk: Any, turns: int, pause: float) -> None:
    """
    One call of each kind in turn, *pause* seconds apart, in an order by chance: as a server has it,
    whose caches hold something else by then. CPU time of this thread.
    """
    calls = {
        "bare": caller(sdk, False, False),
        "control": caller(sdk, False, False),
        "metered": caller(sdk, False, True),
    }
    for call in calls.values():
        measure(call, 10)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    chance = random.Random(1)
    for _ in range(turns):
        for name in chance.sample(list(calls), len(calls)):
            time.sleep(pause)
            began = time.thread_time_ns()
            calls[name]()
            taken[name].append((time.thread_time_ns() - began) / 1e3)
    bare = statistics.median(taken["bare"])
    added, noise = (
        statistics.median(one - base for one, base in zip(taken[name], taken["bare"], strict=True))
        for name in ("metered", "control")
    )
    print(
        f"{sdk.__name__:<10} {'apart':<7} {bare:9.1f} {added:+9.1f} {'':9} {'':9} "
        f"{added / bare:+8.1%} {noise:+9.1f}"
    )


def process_time(script: str) -> str:
    """
    Milliseconds that a fresh interpreter takes for *script*, and those of CPU time, more than one
    that has nothing to do: the medians of fifteen, in turn.
    """
    taken: dict[str, list[tuple[float, float]]] = {"": [], script: []}
    for _ in range(15):
        for one, figures in taken.items():
            used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run([sys.executable, "-c", one], stdout=subprocess.DEVNULL, check=True)
            wall, now = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
            figures.append((wall * 1e3, cpu * 1e3))
    nothing, something = taken.values()
    wall, cpu = (
        statistics.median(
            one[what] - other[what] for one, other in zip(something, nothing, strict=True)
        )
        for what in (0, 1)
    )
    interpreter = statistics.median(one[0] for one in nothing)
    return f"{wall:.0f} ms, of CPU {cpu:.0f} ms, beside the interpreter's own {interpreter:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--calls", type=int, default=100, help="plain calls in a round; a tenth of it streamed"
    )
    parser.add_argument(
        "--apart", type=float, help="milliseconds between two calls: plain ones only, no batches"
    )
    parser.add_argument("--turns", type=int, default=500, help="with --apart: calls of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        voight.configure(ledger=f"{folder}/ledger.db")
        print(
            f"Python {sys.version.split()[0]}, openai {openai.__version__}, anthropic "
            f"{anthropic.__version__}; CPU microseconds per call\n"
        )
        headings = ("bare SDK", "+ caller", "+ in all", "+ /chunk", "ratio", "noise", "noise all")
        print(" " * 18, *(f"{heading:>{8 if heading == 'ratio' else 9}}" for heading in headings))
        for sdk in (openai, anthropic):
            if options.apart is not None:
                compare_apart(sdk, options.turns, options.apart / 1000)
                continue
            compare(sdk, False, options.rounds, options.calls)
            compare(sdk, True, options.rounds, max(2, options.calls // 10))
        voight.configure(ledger=f"{folder}/closed.db")
        top = ["top", "--ledger", f"sqlite:///{folder}/ledger.db"]
        command = f"from voight_middleware.cli import main; main({top})"
        print(f"\nimport voight_middleware: {process_time('import voight_middleware')}")
        print(f"voight top, these calls:  {process_time(command)}")


if __name__ == "__main__":
    main()
