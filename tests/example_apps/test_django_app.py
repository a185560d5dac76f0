"""The Django example, started as its README says, with its SDKs answered by the loopback provider."""

from __future__ import annotations

import contextlib
import json
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

FOLDER = Path(__file__).parents[2] / "example_apps" / "django_app"
ROUTES = {
    "/chat": ("gpt-4o-mini-2024-07-18", "chat"),
    "/chat/stream": ("gpt-4o-mini-2024-07-18", "chat"),
    "/summarise": ("claude-haiku-4-5-20251001", "messages"),
    "/search": ("text-embedding-3-small", "embeddings"),
}


class Example:
    """The project in a folder of its own, with a ledger of its own."""

    def __init__(self, folder: Path, provider: Any) -> None:
        self.folder = folder
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith(("VOIGHT_", "DJANGO_"))} | {
            "ANTHROPIC_API_KEY": "any",
            "ANTHROPIC_BASE_URL": provider.anthropic_base_url,
            "OPENAI_API_KEY": "any",
            "OPENAI_BASE_URL": provider.openai_base_url,
            "VOIGHT_LEDGER": str(folder / "ledger.db"),
            "PYTHONSAFEPATH": "",
        }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def serve(self, *command: str) -> None:
        with (self.folder / "output.txt").open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command], cwd=self.folder, env=self.environ, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.folder / "output.txt").read_text()
            with contextlib.suppress(httpx.TransportError):
                httpx.get(self.url)
                return
            time.sleep(0.1)
        pytest.fail("the example did not start")

    def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGINT)
            self.process.wait(20)
            self.process = None

    def manage(self, *arguments: str) -> str:
        result = subprocess.run(
            [sys.executable, FOLDER / "manage.py", *arguments],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def spend(self, *by: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.manage("voight", "spend", "--by", ",".join(by), "--format", "json"))
        return rows


@pytest.fixture
def example(tmp_path: Path, voight_provider: Any) -> Iterator[Example]:
    voight_provider.reset()
    example = Example(tmp_path, voight_provider)
    example.serve(str(FOLDER / "manage.py"), "start", f"127.0.0.1:{example.port}")
    yield example
    example.stop()


def ask_everything(example: Example, name: str) -> None:
    with httpx.Client(base_url=example.url, timeout=30) as client:
        assert client.post("/sign-in", data={"username": name, "password": "secret"}).json() == {"signed_in": name}
        for path in ROUTES:
            response = client.post(path, data={"text": f"[user:{name}] Why is the sky blue?"})
            assert response.status_code == 200
            assert response.text


@pytest.mark.parametrize("server", ["manage.py start", "uvicorn"])
def test_every_view_has_its_owner(server: str, example: Example, voight_provider: Any) -> None:
    """Each call has the signed-in user, his plan, the route and the release, and the usage that the provider has counted."""
    if server == "uvicorn":
        example.stop()
        example.serve("-m", "uvicorn", "--app-dir", str(FOLDER), "--port", str(example.port), "asgi:application")
    for name in ("user-2", "user-4"):
        ask_everything(example, name)
    example.stop()
    rows = example.spend("user", "plan", "route", "model", "release")
    counted = voight_provider.counts().by_user
    for name, user_id, plan in (("user-2", "2", "pro"), ("user-4", "4", "team")):
        mine = [row for row in rows if row["user_id"] == user_id]
        assert {(row["route"], row["model"]) for row in mine} == {(f"POST {path}", model) for path, (model, _) in ROUTES.items()}
        assert {(row["plan"], row["release"], row["calls"]) for row in mine} == {(plan, "example", 1)}
        assert sum(row["input_tokens"] for row in mine) == counted[name].input_tokens
        assert sum(row["output_tokens"] or 0 for row in mine) == counted[name].output_tokens
    assert {row["user_id"] for row in rows} == {"2", "4"}
    assert {row["feature"] for row in example.spend("feature")} == {None, "summaries"}


def test_visitors(example: Example) -> None:
    """What is open to visitors has no owner; the rest turns them away, and costs nothing."""
    for path in ROUTES:
        status = httpx.post(example.url + path, data={"text": "?"}).status_code
        assert status == (200 if path == "/search" else 401)
    assert httpx.post(f"{example.url}/sign-in", data={"username": "user-2", "password": "wrong"}).status_code == 401
    example.stop()
    assert [(row["user_id"], row["route"], row["calls"]) for row in example.spend("user", "route")] == [(None, "POST /search", 1)]


def test_the_command(example: Example) -> None:
    """A management command has no request: its tags say whose each call is."""
    example.stop()
    assert example.manage("digest", "team").count("user-") >= 4
    rows = example.spend("user", "plan", "feature")
    assert {row["user_id"] for row in rows} == {"4", "9", "14", "19"}
    assert {(row["plan"], row["feature"], row["calls"]) for row in rows} == {("team", "digest", 1)}
    assert example.manage("check").startswith("System check identified no issues")


def test_its_readme(example: Example) -> None:
    """The README names what is there."""
    text = (FOLDER / "README.md").read_text()
    assert "twenty users" in text
    assert "manage.py start" in text
    for path in ("/sign-in", "/chat"):
        assert f"localhost:8000{path}" in text
