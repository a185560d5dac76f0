"""Run Python source in processes of their own."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path


class Scripts:
    """Runs Python source in processes of their own, metering into one ledger; none outlives the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = folder / "scripts" / "ledger.db"
        self.journal = folder / "scripts" / "ledger.db.journal"
        self._started: list[subprocess.Popen[str]] = []

    def start(self, source: str, *arguments: str) -> "subprocess.Popen[str]":
        """Begin to run *source*; its standard input and output are pipes."""
        path = self.folder / f"script_{len(self._started)}.py"
        path.write_text(textwrap.dedent(source))
        environ = {name: value for name, value in os.environ.items() if not name.startswith("VOIGHT_")}
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore::DeprecationWarning", str(path), *arguments],
            env={**environ, "VOIGHT_LEDGER": str(self.ledger)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def run(self, source: str, *arguments: str) -> str:
        """Run *source* to its end; answers what it printed, and fails the test if it failed."""
        process = self.start(source, *arguments)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors, errors
        return output

    def stop(self) -> None:
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its forked children hold its pipes
            process.communicate()
