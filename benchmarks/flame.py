"""
Flame graphs of a bare and a metered call, and of ``voight top``: where the time goes.

    pip install py-spy
    python benchmarks/flame.py pictures --ledger ledger.db

py-spy looks at every thread of a process a thousand times a second, and writes one SVG a picture,
to be opened in a browser. It needs the right to trace a process of its own user (on macOS root; in
a container ``--cap-add SYS_PTRACE``). Widths are time on the CPU; a thread that waits is not shown.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import canned

BARE, METERED, TOP = "bare", "metered", "top"
BATCH = 50
"""So many calls between two looks at the clock, and between two flushes."""


def calls(metered: bool, seconds: float) -> None:
    """Calls, one after the other; the metered ones of a user, into a ledger that goes with it."""
    import openai

    client = openai.OpenAI(api_key="k", http_client=canned.transport("openai"))
    arguments = canned.arguments("openai")
    until = time.monotonic() + seconds
    if not metered:
        while time.monotonic() < until:
            for _ in range(BATCH):
                client.chat.completions.create(**arguments)
        return
    import voight_middleware as voight

    with tempfile.TemporaryDirectory() as folder:
        voight.configure(ledger=f"sqlite:///{folder}/ledger.db")
        voight.wrap(client)
        while time.monotonic() < until:
            for _ in range(BATCH):
                with voight.tag(user_id="u_1", plan="pro"):
                    client.chat.completions.create(**arguments)
            voight.flush()
        voight.configure(ledger=f"sqlite:///{folder}/closed.db")


def top(ledger: Path) -> None:
    """``voight top``, its imports included."""
    from voight_middleware.cli import main

    raise SystemExit(main(["top", "--ledger", f"sqlite:///{ledger.resolve()}"]))


def picture(py_spy: str, output: Path, what: list[Any]) -> None:
    """Let py-spy look at this script while it runs *what*."""
    command = [py_spy, "record", "--format", "flamegraph", "--function", "--threads"]
    command += ["--rate", "1000", "--output", str(output), "--"]
    done = subprocess.run(
        [*command, sys.executable, __file__, *map(str, what)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    if not output.exists():
        raise SystemExit(f"py-spy: {done.stderr.strip()}")
    print(f"{output}: {output.stat().st_size // 1000} kB")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="Flame graphs of calls and of voight top.")
    parser.add_argument("folder", type=Path, help="where to write the pictures")
    parser.add_argument("--ledger", type=Path, help="an SQLite file: a picture of voight top")
    parser.add_argument("--seconds", type=float, default=10, help="of calls")
    parser.add_argument("--py-spy", default=shutil.which("py-spy"), help="the program")
    parser.add_argument("--run", choices=(BARE, METERED, TOP), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run == TOP:
        return top(options.ledger)
    if options.run:
        return calls(options.run == METERED, options.seconds)
    if not options.py_spy:
        parser.error("py-spy is not installed: pip install py-spy")
    options.folder.mkdir(parents=True, exist_ok=True)
    for run in (BARE, METERED):
        what = [options.folder, "--run", run, "--seconds", options.seconds]
        picture(options.py_spy, options.folder / f"{run}-call.svg", what)
    if options.ledger:
        what = [options.folder, "--run", TOP, "--ledger", options.ledger]
        picture(options.py_spy, options.folder / "top.svg", what)
    return None


if __name__ == "__main__":
    main()
