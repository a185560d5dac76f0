"""
Memory of a worker of a server, after some calls: bare, metered, and metered but not elected.

    python benchmarks/memory.py

Each is a process of its own that has imported the OpenAI SDK, made 200 calls to a provider in
memory, and waited for three rounds of the background thread. The elected one ingests; the others
with the same ledger only write their calls down. Memory is the resident set (Linux), the median of
all rounds.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import canned

CALLS = 200
SECONDS = 3.5
BARE, CONTROL = "bare", "bare, once more"
ELECTED, OTHER = "metered, elected", "metered, not elected"
WITHOUT = "metered, ingest=False"


def worker(role: str, ledger: str) -> None:
    """Make the calls, print the megabytes, and stay until standard input ends."""
    import openai

    client = openai.OpenAI(api_key="k", http_client=canned.transport("openai"))
    arguments = canned.arguments("openai")
    if role in (BARE, CONTROL):
        for _ in range(CALLS):
            client.chat.completions.create(**arguments)
    else:
        import voight_middleware as voight

        voight.configure(ledger=ledger, ingest=role != WITHOUT)
        voight.wrap(client)
        for _ in range(CALLS):
            with voight.tag(user_id="u_1"):
                client.chat.completions.create(**arguments)
        time.sleep(SECONDS)
    gc.collect()
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmRSS:")[2].split()[0]) / 1024, flush=True)
    sys.stdin.read()


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="Memory of a worker of a server.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", nargs=2, metavar=("ROLE", "LEDGER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(*options.worker)
    taken: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            processes = []
            for role in (BARE, CONTROL, ELECTED, OTHER, WITHOUT):  # the first one is elected
                command = [sys.executable, __file__, "--worker", role, f"sqlite:///{folder}/l.db"]
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
                assert process.stdout is not None
                taken.setdefault(role, []).append(float(process.stdout.readline()))
                processes.append(process)
            for process in reversed(processes):
                process.communicate()
    base = statistics.median(taken[BARE])
    print(f"{'MB':24}{'resident':>10}{'added':>8}")
    for role, figures in taken.items():
        megabytes = statistics.median(figures)
        print(f"{role:24}{megabytes:10.1f}" + (f"{megabytes - base:+8.1f}" if role != BARE else ""))
    return None


if __name__ == "__main__":
    main()
