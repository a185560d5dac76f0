"""The Flask example under gunicorn, as its README starts it, with its SDK answered by the loopback provider."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..support.listening import listens
from ..support.servers.ports import free_port

pytestmark = [pytest.mark.server, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
README = ROOT / "example_apps" / "flask_app" / "README.md"


class Example:
    """The example as a process; its ledger and its address."""

    def __init__(self, workers: Any, port: int, environ: dict[str, str]) -> None:
        self.workers = workers
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        self.environ = environ
        self.known: set[str] = set()

    def post(self, path: str, token: str | None = None, text: str = "Why is the sky blue?") -> httpx.Response:
        """Ask it something."""
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return self.client.post(path, json={"text": text}, headers=headers)

    def calls(self, number: int) -> list[Any]:
        """Return the calls that have not been returned yet, as soon as there are so many."""
        self.workers.wait_until(lambda: len(self.workers.calls_so_far()) >= len(self.known) + number)
        new = [call for call in self.workers.calls_so_far() if call.call_id not in self.known]
        self.known.update(call.call_id for call in new)
        assert len(new) == number
        return new


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory, make_workers: Any, voight_provider: Any) -> Iterator[Example]:
    """Started with the command of its README; each test looks at its own calls."""
    command = re.search(r"&& OPENAI_API_KEY=… gunicorn (.*)$", README.read_text(), re.MULTILINE)
    assert command is not None
    port = free_port()
    environ = {"OPENAI_API_KEY": "any", "OPENAI_BASE_URL": voight_provider.openai_base_url}
    arguments = command[1].replace("example_apps", str(ROOT / "example_apps"))
    workers = make_workers(tmp_path_factory.mktemp("flask"))
    workers.start("gunicorn", *shlex.split(arguments), "-b", f"127.0.0.1:{port}", **environ)
    running = Example(workers, port, {**environ, "VOIGHT_LEDGER": workers.ledger})
    workers.wait_until(lambda: listens(port))
    with running.client:
        yield running
    workers.stop(signal.SIGTERM)


def test_every_route_has_its_owner(example: Example) -> None:
    """Chat, stream and thread have the signed-in user, his plan and the route; a visitor is nobody, and no error."""
    for path in ("/chat", "/chat/stream", "/remember"):
        response = example.post(path, "token-2")
        assert response.is_success
        assert response.text
    assert example.post("/chat").is_success
    made = example.calls(4)
    calls = {call.tags.route: call for call in made if call.tags.user_id}
    assert calls.keys() == {"POST /chat", "POST /chat/stream", "POST /remember"}
    for call in calls.values():
        assert (call.tags.user_id, call.tags.plan, call.attribution, call.outcome, call.cost_status) == (
            *("u_2", "pro", "getter"),
            *("ok", "priced"),
        )
    assert calls["POST /remember"].tags.extra == {"feature": "memory"}
    (visitor,) = [call for call in made if call.tags.user_id is None]
    assert (visitor.tags.plan, visitor.tags.route, visitor.attribution) == (None, "POST /chat", "none")


def test_strangers_are_turned_away_and_errors_are_the_applications(example: Example) -> None:
    """Without a known token no call is made; an error of the provider is the application's 502, and is kept with its owner."""
    assert example.post("/chat/stream", "token-99").status_code == 401
    assert example.post("/remember").status_code == 401
    assert example.post("/chat", "token-4", "[x-loopback-status: 400]").status_code == 502
    (call,) = example.calls(1)
    assert (call.tags.user_id, call.outcome, call.http_status) == ("u_4", "error", 400)


def test_who_cost_what(example: Example) -> None:
    """The command of the README answers it, from the application's own ledger."""
    command = re.search(r"`flask (--app .*? voight top)`", README.read_text())
    assert command is not None
    example.post("/chat", "token-7")
    example.calls(1)
    asked = subprocess.run(
        [sys.executable, "-m", "flask", *command[1].split()],
        cwd=ROOT,
        env={**os.environ, **example.environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "u_7" in asked.stdout


def test_users() -> None:
    """The users are as many, on as many plans, as the README of the example says."""
    source = (README.parent / "app.py").read_text()
    assert "ten signed-in users on three plans" in README.read_text()
    assert 'PLANS = ["free", "free", "pro", "free", "team"]' in source
    assert "range(1, 11)" in source
