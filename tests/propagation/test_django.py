"""Where the owner of a call is known in a Django project, under gunicorn (WSGI) and uvicorn (ASGI)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from voight_middleware.ingest import drain
from voight_middleware.ledger import open_ledger

from .places import check_column

APPS = Path(__file__).parents[1] / "apps"
SERVERS = {
    "gunicorn gthread": "{python} -m gunicorn places_django:application -b 127.0.0.1:{port} -k gthread --threads 1 --keep-alive 60",
    "uvicorn": "{python} -m uvicorn places_django:asgi_application --port {port}",
}
PLACES = (
    "handler, sync",
    "handler, async",
    "handler, async, with a synchronous client",
    "middleware, sync",
    "middleware, async",
    "template",
    "streamed response, sync generator",
    "streamed response, async generator",
    "server-sent events",
    "asyncio.create_task",
    "asyncio.gather",
    "anyio task group",
    "loop.call_soon",
    "task that outlives the request",
    "asyncio.to_thread",
    "sync_to_async(fn)",
    "sync_to_async(fn, thread_sensitive=False)",
    "async_to_sync(fn)",
    "asyncio.run in a sync handler",
    "loop.run_in_executor(None, fn)",
    "executor.submit(fn)",
    "Thread(target=fn)",
    "executor.submit(copy_context().run, fn)",
    "executor.submit(carry(fn))",
    "Thread(target=carry(fn))",
    "Thread(target=carry(fn)) that outlives the request",
    "handler of a specific exception",
    "handler of unexpected exceptions (500)",
    "receiver of request_finished",
    "next request on the same thread or connection",
)


@pytest.fixture
def start(tmp_path: Path, voight_provider: Any) -> Iterator[Any]:
    """Starts the project under a server; answers its URL, and how to stop it."""
    started: list[subprocess.Popen[bytes]] = []

    def run(server: str) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("VOIGHT_")}
        environ |= {
            "PROVIDER_OPENAI": voight_provider.openai_base_url,
            "PYTHONPATH": str(APPS),
            "VOIGHT_LEDGER": str(tmp_path / "ledger.db"),
        }
        with (tmp_path / "output.txt").open("wb") as output:
            command = SERVERS[server].format(python=sys.executable, port=port).split()
            started.append(subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=output, stderr=output, start_new_session=True))
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert started[-1].poll() is None, (tmp_path / "output.txt").read_text()
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/none")
                break
            time.sleep(0.05)
        return f"http://127.0.0.1:{port}"

    def stop() -> list[Any]:
        process = started.pop()
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        ledger = f"sqlite:///{tmp_path}/ledger.db"
        drain(ledger, tmp_path / "ledger.db.journal")
        opened = open_ledger(ledger, create=False)
        try:
            return list(opened.calls())
        finally:
            opened.close()

    run.stop = stop  # type: ignore[attr-defined]
    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
@pytest.mark.parametrize("server", SERVERS)
def test_places(server: str, start: Any) -> None:
    """Every place of the project, asked by alice, and one by nobody after her on the same thread and connection."""
    url = start(server)
    asgi = server == "uvicorn"
    with httpx.Client(timeout=30) as client:
        for name in ("sync", "async", "stream", "astream", "events", "middleware", "template", "error", "failure", "finished", "thread"):
            assert client.get(f"{url}/{name}", headers={"x-user": "alice"}).status_code == (500 if name == "failure" else 200)
            if name in ("sync", "stream", "finished"):
                client.get(f"{url}/anonymous")
        if asgi:
            client.get(f"{url}/outlived", headers={"x-user": "alice"})
        time.sleep(1)  # what outlives its request makes its call 0.3 seconds later
    owners: dict[str, set[str | None]] = {}
    for call in start.stop():
        owners.setdefault(str(call.model), set()).add(call.tags.user_id)
    expected = [place for place in PLACES if asgi or place != "task that outlives the request"]
    assert owners.keys() == set(expected)
    found = {}
    for place in expected:
        right = None if place.startswith("next request") else "alice"
        found[place] = "works" if owners[place] == {right} else "lost" if owners[place] == {None} else "wrong"
    check_column("Django", "Django", server, found)
