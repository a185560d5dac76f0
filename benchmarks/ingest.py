"""
How many calls a second ingesters bring from their journals into a ledger: one after the other, an
SQLite file, and each ledger given.

Every process is a host of its own, with a journal of its own, and all write into the same ledger;
into an SQLite file only one can.

With ``--computing``, once more into an SQLite file, in the background of an application that
computes all the time: how many calls a second then, and what is left for the application.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from voight_middleware.config.ledger_url import shown_url
from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.ingest import Ingester, drain
from voight_middleware.pipeline.journal import Journal
from voight_middleware.records.call import Call, new_call_id

sys.path.append(str(Path(__file__).parents[1]))
from tests.support.made_up_ledger import made_up_calls


def as_written(call: Call) -> Call:
    """A call as an application writes it: neither read nor priced, and of now."""
    call.call_id, call.occurred_at = new_call_id(), time.time_ns() // 1000
    (
        call.usage,
        call.components,
        call.cost_femto,
        call.cost_status,
        call.cost_reasons,
        call.price,
    ) = None, (), None, "unpriced", (), None
    return call


def write_journals(folder: Path, processes: int, calls: int) -> list[Path]:
    """A journal for each process, with the same number of calls."""
    folders = [folder / f"host{number}" for number in range(processes)]
    for number, place in enumerate(folders):
        journal = Journal(place)
        for call in made_up_calls(calls, seed=number + 1):
            journal.append(as_written(call))
        journal.rotate()
    return folders


def ingest(url: str, folder: Path) -> dict[str, float]:
    """
    Bring one journal in, in this process: wall time and CPU time in seconds. Price data is loaded
    before.
    """
    drain(url, folder.with_name(f"{folder.name}-warm"))
    begin, computed = time.perf_counter(), time.process_time()
    count = drain(url, folder)
    return {
        "calls": count,
        "begin": begin,
        "end": time.perf_counter(),
        "cpu": time.process_time() - computed,
    }


def count_up(seconds: float | None, stop: threading.Event) -> int:
    """Compute in pure Python, as an application that never waits. Return how often."""
    until = None if seconds is None else time.perf_counter() + seconds
    rounds = 0
    while not stop.is_set() and (until is None or time.perf_counter() < until):
        sum(number * number for number in range(1_000))
        rounds += 1
    return rounds


def ingest_beside(url: str, folder: Path) -> dict[str, float]:
    """Bring one journal in by a thread, while the main thread computes."""
    drain(url, folder.with_name(f"{folder.name}-warm"))
    alone = count_up(2.0, threading.Event()) / 2.0
    stop, seconds = threading.Event(), list[float]()

    def background() -> None:
        with closing(open_ledger(url)) as ledger:
            begin = time.perf_counter()
            Ingester(ledger, folder).run()
            seconds.append(time.perf_counter() - begin)
        stop.set()

    thread = threading.Thread(target=background)
    begin = time.perf_counter()
    thread.start()
    rounds = count_up(None, stop)
    spent = time.perf_counter() - begin
    thread.join()
    return {"seconds": seconds[0], "kept": rounds / spent / alone}


def measure_beside(calls: int, folder: Path) -> None:
    """Print how fast calls come in while the application computes."""
    url = f"sqlite:///{folder}/ledger.db"
    (place,) = write_journals(folder, 1, calls)
    warm = Journal(place.with_name(f"{place.name}-warm"))
    for call in made_up_calls(10, seed=99):
        warm.append(as_written(call))
    warm.rotate()
    command = [sys.executable, __file__, "--ingest-beside", url, str(place)]
    done = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    print(
        f"beside an application that computes: {calls / done['seconds']:,.0f} calls a second; it "
        f"keeps {done['kept']:.0%} of its speed",
        flush=True,
    )


def measure(url: str, processes: int, calls: int, folder: Path) -> None:
    """Run that many ingesters at the same time, and print what came of it."""
    folders = write_journals(folder, processes, calls)
    for place in folders:
        warm = Journal(place.with_name(f"{place.name}-warm"))
        for call in made_up_calls(10, seed=99):
            warm.append(as_written(call))
        warm.rotate()
    with closing(open_ledger(url)) as ledger:
        before = ledger.spend()[0].calls
    command = [sys.executable, __file__, "--ingest"]
    running = [
        subprocess.Popen([*command, url, str(place)], stdout=subprocess.PIPE, text=True)
        for place in folders
    ]
    done = [json.loads(process.communicate()[0]) for process in running]
    wall = max(one["end"] for one in done) - min(one["begin"] for one in done)
    with closing(open_ledger(url)) as ledger:
        new = ledger.spend()[0].calls - before
    assert new == processes * (calls + 10), (
        f"{new} calls of {processes * (calls + 10)} are in the ledger"
    )
    cpu = sum(one["cpu"] for one in done)
    engine = shown_url(url).partition("://")[0]
    print(
        f"{engine:<12} {processes:9} {processes * calls / wall:14,.0f} "
        f"{processes * calls / cpu:22,.0f} {wall:8.1f} {cpu:12.1f}",
        flush=True,
    )


def main(arguments: Iterable[str] | None = None) -> int:
    """Print a line for each ledger and number of processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--ledger",
        metavar="URL",
        action="append",
        default=[],
        help="an empty ledger on a server; several are allowed",
    )
    parser.add_argument(
        "--calls", type=int, default=50_000, help="of each process (default: 50,000)"
    )
    parser.add_argument(
        "--processes", type=int, default=4, help="at the same time, besides one alone (default: 4)"
    )
    parser.add_argument(
        "--computing", action="store_true", help="also beside an application that computes"
    )
    parser.add_argument("--ingest", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--ingest-beside", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(None if arguments is None else list(arguments))
    if args.ingest:
        print(json.dumps(ingest(args.ingest[0], Path(args.ingest[1]))))
        return 0
    if args.ingest_beside:
        print(json.dumps(ingest_beside(args.ingest_beside[0], Path(args.ingest_beside[1]))))
        return 0
    os.environ.pop("VOIGHT_PRICES", None)
    print(
        f"{'':<12} {'processes':>9} {'calls a second':>14} {'per CPU second':>22} {'seconds':>8} "
        f"{'CPU seconds':>12}"
    )
    for url in (None, *args.ledger):
        for processes in (1,) if url is None else (1, args.processes):
            with tempfile.TemporaryDirectory() as place:
                measure(url or f"sqlite:///{place}/ledger.db", processes, args.calls, Path(place))
    if args.computing:
        with tempfile.TemporaryDirectory() as place:
            measure_beside(args.calls, Path(place))
    return 0


if __name__ == "__main__":
    sys.exit(main())
