"""Fixtures that tests of more than one room use."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.call import Call, new_call_id


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ``shared`` beside the checkout, with recordings and price cases; without it the test is skipped."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("there is no folder `shared` beside the checkout")
    return folder


class Serve:
    """Serves ASGI applications with a real uvicorn, each in a thread of this process, on a free port."""

    def __init__(self) -> None:
        self._servers: list[tuple[Any, threading.Thread]] = []

    def __call__(self, app: Any) -> str:
        """Start *app*; answers its URL."""
        import uvicorn

        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", ws="websockets-sansio"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "uvicorn did not start"
            time.sleep(0.005)
        self._servers.append((server, thread))
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        """Shut all of them down, gracefully."""
        while self._servers:
            server, thread = self._servers.pop()
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive(), "uvicorn did not stop"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves ASGI applications with a real uvicorn until the test ends."""
    serving = Serve()
    yield serving
    serving.stop()


@pytest.fixture(scope="session")
def new_call() -> Callable[..., Call]:
    """Makes a finished call as the gate would, of a model with a known price."""

    def make(**values: Any) -> Call:
        defaults: dict[str, Any] = {
            "call_id": new_call_id(),
            "occurred_at": time.time_ns() // 1000,
            "provider": "openai",
            "endpoint": "chat",
            "model": "gpt-5-nano",
            "raw_usage": '{"prompt_tokens":10,"completion_tokens":2}',
        }
        return Call(**(defaults | values))

    return make


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


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Scripts]:
    """Runs scripts in processes of their own, all on one ledger."""
    running = Scripts(tmp_path)
    yield running
    running.stop()
