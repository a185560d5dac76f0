"""
Make each small wrong change of ``mutations.py`` in a copy of the library, and see that the tests notice it.

    python tests/mutations/run.py [--jobs 2] [WORD ...]

It runs in an environment in which the tests run. A mutation that every test passes has survived: the run fails and names it.
WORD: only mutations with this word in their name or file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.mutations.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]
LIMIT = 900
"""Seconds after which a run of tests counts as noticed: the mutation makes it hang."""


def copy_library(folder: Path) -> None:
    """Copy the library and its integrations side by side, as they are installed."""
    leave_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "voight_middleware", folder / "voight_middleware", ignore=leave_out)
    for package in (ROOT / "integrations").glob("voight_*"):
        shutil.copytree(package, folder / package.name, ignore=leave_out)
    shutil.copy(ROOT / "example_apps" / "fastapi_app" / "app.py", folder / "voight_middleware" / "cli" / "example_fastapi.py")


def notice(mutation: Mutation) -> tuple[str, float]:
    """Return the first test that fails under *mutation*, or an empty text, and the seconds it took."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="voight-mutation-") as place:
        folder = Path(place)
        copy_library(folder)
        path = folder / mutation.file.removeprefix("integrations/")
        text = path.read_text()
        if text.count(mutation.old) != 1:
            return "", 0.0
        path.write_text(text.replace(mutation.old, mutation.new))
        # Safe path: the working directory, which has the library as it should be, stays off sys.path.
        environ = {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        for tests in mutation.tests:
            if not (ROOT / tests).exists():
                continue
            for select in ("not slow and not server", "slow or server"):
                command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", select, tests]
                try:
                    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=LIMIT, check=False)
                except subprocess.TimeoutExpired:
                    return f"{tests} hangs", time.monotonic() - started
                if done.returncode not in (0, 5):  # 5: no test was selected
                    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
                    return (failed or ["an error before the first test"])[0], time.monotonic() - started
    return "", time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    chosen = [one for one in MUTATIONS if all(word in f"{one.file} {one.name}" for word in options.words)]
    survivors = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutation, (failed, seconds) in zip(chosen, pool.map(notice, chosen), strict=True):
            print(f"{'noticed ' if failed else 'SURVIVED'} {seconds:6.1f} s  {mutation.file}: {mutation.name}  {failed[:160]}", flush=True)
            survivors += [] if failed else [mutation]
    print(f"{len(chosen)} mutations, {len(survivors)} survivors")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
