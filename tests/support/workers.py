"""Run the worker commands of task queues, as a deployment does."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.ingest import drain
from voight_middleware.records.call import Call


class Workers:
    """Runs the worker commands of task queues, as a deployment does, on the applications of ``tests/apps`` and one ledger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = f"sqlite:///{folder}/ledger.db"
        self.journal = folder / "ledger.db.journal"
        self.log = folder / "workers.log"
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str, **environ: str) -> "subprocess.Popen[bytes]":
        """Begin to run a module (``celery``, ``rq.cli``, …) with its arguments."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", *command],
                cwd=self.folder,
                env=self._environ(environ),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def run(self, source: str, **environ: str) -> str:
        """Run *source* to its end, as the process that sends; answers what it printed."""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(source)],
            cwd=self.folder,
            env=self._environ(environ),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _environ(self, environ: dict[str, str]) -> dict[str, str]:
        paths = [str(Path(__file__).parents[1] / "apps"), os.environ.get("PYTHONPATH", "")]
        return {**os.environ, "VOIGHT_LEDGER": self.ledger, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environ}

    def wait_for(self, word: str, seconds: float = 60) -> None:
        """Wait until a worker has said *word*."""
        deadline = time.monotonic() + seconds
        while word not in self.log.read_text(errors="replace"):
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-5000:]
            assert all(process.poll() is None for process in self._started), self.log.read_text(errors="replace")[-5000:]
            time.sleep(0.05)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until *condition* holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-5000:]
            time.sleep(0.05)

    def calls(self, how: signal.Signals = signal.SIGTERM) -> list[Call]:
        """End all workers, bring in what they have left, and answer every call."""
        self.stop(how)
        return self.calls_so_far()

    def calls_so_far(self) -> list[Call]:
        """The calls that are in the ledger by now."""
        drain(self.ledger, self.journal)
        ledger = open_ledger(self.ledger)
        try:
            return list(ledger.calls())
        finally:
            ledger.close()

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End all workers, and whatever they have started."""
        for process in self._started:
            if process.poll() is None:
                process.send_signal(how)
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._started.clear()
