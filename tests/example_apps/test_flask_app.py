"""The Flask example under gunicorn, as its README starts it, with its SDK answered by the loopback provider."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "example_apps" / "flask_app" / "README.md"


class Example:
    """The example as a process; its ledger and its address."""

    def __init__(self, workers: Any, url: str, environ: dict[str, str]) -> None:
        self.workers = workers
        self.url = url
        self.environ = environ

    def post(self, path: str, token: str | None = None, text: str = "Why is the sky blue?") -> httpx.Response:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return httpx.post(self.url + path, json={"text": text}, headers=headers, timeout=30)

    def calls(self, number: int) -> list[Any]:
        """The calls, as soon as there are so many."""
        self.workers.wait_until(lambda: len(self.workers.calls_so_far()) >= number)
        return list(self.workers.calls())


@pytest.fixture
def example(workers: Any, voight_provider: Any) -> Example:
    """Started with the command of its README."""
    command = re.search(r"&& OPENAI_API_KEY=… gunicorn (.*)$", README.read_text(), re.MULTILINE)
    assert command is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = {"OPENAI_API_KEY": "any", "OPENAI_BASE_URL": voight_provider.openai_base_url}
    arguments = command[1].replace("example_apps", str(ROOT / "example_apps"))
    workers.start("gunicorn", *shlex.split(arguments), "-b", f"127.0.0.1:{port}", **environ)
    running = Example(workers, f"http://127.0.0.1:{port}", {**environ, "VOIGHT_LEDGER": workers.ledger})
    workers.wait_until(lambda: answers(running.url))
    return running


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 404
    except httpx.TransportError:
        return False


def test_every_route_has_its_owner(example: Example) -> None:
    """Chat, stream and thread have the signed-in user, his plan and the route; a visitor is nobody, and no error."""
    for path in ("/chat", "/chat/stream", "/remember"):
        response = example.post(path, "token-2")
        assert response.is_success
        assert response.text
    assert example.post("/chat").is_success
    calls = {call.tags.route: call for call in example.calls(4) if call.tags.user_id}
    assert calls.keys() == {"POST /chat", "POST /chat/stream", "POST /remember"}
    for call in calls.values():
        assert (call.tags.user_id, call.tags.plan, call.attribution, call.outcome, call.cost_status) == (
            *("u_2", "pro", "getter"),
            *("ok", "priced"),
        )
    assert calls["POST /remember"].tags.extra == {"feature": "memory"}
    (visitor,) = [call for call in example.calls(4) if call.tags.user_id is None]
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
