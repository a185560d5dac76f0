"""
How many calls a second ingesters bring from their journals into a ledger: one after the other, an
SQLite file, and each ledger given.

Every process is a host of its own, with a journal of its own, and all write into the same ledger;
into an SQLite file only one can.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from voight_middleware.config.ledger_url import shown_url
from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.ingest import drain
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
    parser.add_argument("--ingest", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(None if arguments is None else list(arguments))
    if args.ingest:
        print(json.dumps(ingest(args.ingest[0], Path(args.ingest[1]))))
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
