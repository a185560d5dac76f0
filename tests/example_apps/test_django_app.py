"""The Django example, started as its README says, with its SDKs answered by the loopback provider."""

from __future__ import annotations

import json
import os
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
from ..support.waiting import wait_until

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(300)]

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
        self.output = folder / "output.txt"
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith(("VOIGHT_", "DJANGO_"))} | {
            "ANTHROPIC_API_KEY": "any",
            "ANTHROPIC_BASE_URL": provider.anthropic_base_url,
            "OPENAI_API_KEY": "any",
            "OPENAI_BASE_URL": provider.openai_base_url,
            "VOIGHT_LEDGER": str(folder / "ledger.db"),
            "PYTHONSAFEPATH": "",
        }
        self.folder = folder
        self.provider = provider
        self.warnings = ""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def serve(self, *command: str) -> None:
        """Start a server, and wait until it answers."""
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command], cwd=self.folder, env=self.environ, stdout=output, stderr=output, start_new_session=True
            )
        wait_until(self._listens, 100, every=0.02)

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.output.read_text()
        return listens(self.port)

    def stop(self) -> None:
        """Interrupt the server, as a terminal does."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGINT)
            self.process.wait(20)
            self.process = None

    def kill(self) -> None:
        """End what a failed test has left."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def manage(self, *arguments: str) -> str:
        """Return what a command of the project prints."""
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
        self.warnings += result.stderr
        return result.stdout

    def spend(self, *by: str) -> list[dict[str, Any]]:
        """Return what the project's own command says of the calls so far."""
        rows: list[dict[str, Any]] = json.loads(self.manage("voight", "spend", "--by", ",".join(by), "--format", "json"))["rows"]
        return rows

    def ask_everything(self, name: str) -> None:
        """Sign in, and visit every view."""
        with httpx.Client(base_url=self.url, timeout=30) as client:
            assert client.post("/sign-in", data={"username": name, "password": "secret"}).json() == {"signed_in": name}
            for path in ROUTES:
                response = client.post(path, data={"text": f"[user:{name}] Why is the sky blue?"})
                assert response.status_code == 200
                assert response.text


class Visited(Example):
    """The example after one run of it: both servers, visitors and four users, and the command, one after the other."""

    def visit(self) -> None:
        """Do it all."""
        self.serve(str(FOLDER / "manage.py"), "start", f"127.0.0.1:{self.port}")
        with httpx.Client(base_url=self.url, timeout=30) as client:
            self.visitors = {path: client.post(path, data={"text": "?"}).status_code for path in ROUTES}
            self.wrong_password = client.post("/sign-in", data={"username": "user-2", "password": "wrong"}).status_code
        for name in ("user-2", "user-4"):
            self.ask_everything(name)
        self.stop()

        self.serve("-m", "uvicorn", "--app-dir", str(FOLDER), "--port", str(self.port), "asgi:application")
        for name in ("user-7", "user-9"):
            self.ask_everything(name)
        self.stop()

        self.digest = self.manage("digest", "team")
        self.rows = self.spend("user", "plan", "route", "model", "release", "feature")
        self.counted = self.provider.counts().by_user

    def rows_of(self, user_id: str | None) -> list[dict[str, Any]]:
        """Return the rows of a user's requests."""
        return [row for row in self.rows if row["user_id"] == user_id and row["feature"] != "digest"]


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory, voight_provider: Any) -> Iterator[Visited]:
    """The example, after a run of it."""
    voight_provider.reset()
    example = Visited(tmp_path_factory.mktemp("django"), voight_provider)
    try:
        example.visit()
        yield example
    finally:
        example.kill()


@pytest.mark.parametrize(
    ("name", "plan"),
    [("user-2", "pro"), ("user-4", "team"), ("user-7", "pro"), ("user-9", "team")],
    ids=["start-pro", "start-team", "uvicorn-pro", "uvicorn-team"],
)
def test_every_view_has_its_owner(name: str, plan: str, visited: Visited) -> None:
    """Each call has the signed-in user, the plan, the route and the release, and the usage that the provider has counted."""
    rows = visited.rows_of(name.removeprefix("user-"))
    assert {(row["route"], row["model"]) for row in rows} == {(f"POST {path}", model) for path, (model, _) in ROUTES.items()}
    assert {(row["plan"], row["release"], row["calls"]) for row in rows} == {(plan, "example", 1)}
    assert {row["feature"] for row in rows if row["route"] != "POST /summarise"} == {None}
    assert [row["feature"] for row in rows if row["route"] == "POST /summarise"] == ["summaries"]
    assert sum(row["input_tokens"] for row in rows) == visited.counted[name].input_tokens
    assert sum(row["output_tokens"] or 0 for row in rows) == visited.counted[name].output_tokens


def test_visitors(visited: Visited) -> None:
    """What is open to visitors has no owner; the rest turns them away, and costs nothing."""
    assert visited.visitors == {path: 200 if path == "/search" else 401 for path in ROUTES}
    assert visited.wrong_password == 401
    assert [(row["route"], row["calls"]) for row in visited.rows_of(None)] == [("POST /search", 1)]


def test_nobody_else_has_calls(visited: Visited) -> None:
    """The requests of the run have the owners that made them, and no others."""
    assert {row["user_id"] for row in visited.rows if row["feature"] != "digest"} == {None, "2", "4", "7", "9"}


def test_the_command(visited: Visited) -> None:
    """A management command has no request: its tags say whose each call is."""
    assert visited.digest.count("user-") >= 4
    rows = [row for row in visited.rows if row["feature"] == "digest"]
    assert {row["user_id"] for row in rows} == {"4", "9", "14", "19"}
    assert {(row["plan"], row["calls"]) for row in rows} == {("team", 1)}


def test_the_checks_of_the_project(visited: Visited) -> None:
    """The settings of the example pass the system checks, ours among them: each command makes them first, and says what it finds."""
    assert visited.warnings == ""


def test_its_readme() -> None:
    """The README names what is there."""
    text = (FOLDER / "README.md").read_text()
    assert "twenty users" in text
    assert "manage.py start" in text
    assert "uvicorn --app-dir example_apps/django_app asgi:application" in text
    for path in ("/sign-in", "/chat"):
        assert f"localhost:8000{path}" in text
