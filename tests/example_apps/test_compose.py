"""The compose files: what they start is real, and does what they promise, here without containers."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from voight_middleware.cli import _parser
from voight_middleware.journal import segments

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "example_apps" / "compose"
ENGINES = ("postgres", "clickhouse")
VOIGHT = [sys.executable, "-c", "import sys; from voight_middleware.cli import main; sys.exit(main())"]
REQUESTS = 24
PASSWORDS = {"WRITER_PASSWORD": "w-" + "1" * 20, "READER_PASSWORD": "r-" + "2" * 20}


def services(engine: str) -> dict[str, dict[str, Any]]:
    """The services of a compose file."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((COMPOSE / engine / "compose.yaml").read_text())["services"]
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_what_the_files_name_is_there(engine: str) -> None:
    """Commands are the command line's own, variables those that the library reads, and folders and volumes exist."""
    known = set(re.findall(r"VOIGHT_[A-Z_]+", (ROOT / "README.md").read_text()))
    volumes = yaml.safe_load((COMPOSE / engine / "compose.yaml").read_text())["volumes"]
    for service in services(engine).values():
        command = [*service.get("entrypoint", []), *service.get("command", [])]
        if command:
            assert command[0] == "voight"
            _parser().parse_args(command[1:])
        assert {name for name in service.get("environment", {}) if name.startswith("VOIGHT_")} <= known
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (COMPOSE / engine / source).exists() if source.startswith(".") else source in volumes
        if "build" in service:
            context = (COMPOSE / engine / service["build"]["context"]).resolve()
            assert context == ROOT
            assert (context / service["build"]["dockerfile"]).exists()


@pytest.fixture
def database(postgres_server: Any, postgres_url: str) -> Iterator[dict[str, str]]:
    """An empty database with the roles that ``roles.sh`` makes, and the URL of each as the compose file has it."""
    place = urlsplit(postgres_url)
    server = {"PGHOST": str(place.hostname), "PGPORT": str(place.port), "PGPASSWORD": httpx.URL(postgres_url).password}
    environ = {**os.environ, **server, **PASSWORDS, "POSTGRES_USER": "voight", "POSTGRES_DB": place.path[1:]}
    environ["PATH"] = f"{postgres_server.binaries}:{environ['PATH']}"
    subprocess.run(["sh", COMPOSE / "postgres" / "roles.sh"], env=environ, check=True, capture_output=True)
    urls = {role: f"postgresql://{role}@{place.hostname}:{place.port}{place.path}" for role in ("voight_writer", "voight_reader")}
    yield {"owner": postgres_url, **urls}
    for role in urls:
        postgres_server.psql(f"DROP OWNED BY {role}; DROP ROLE {role}", place.path[1:])


def voight(*arguments: str, ledger: str, password: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command as one of the services does."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("VOIGHT_", "PG"))}
    environ = {**clean, "VOIGHT_LEDGER": ledger, **({"PGPASSWORD": password} if password else {}), **environ}
    return subprocess.run([*VOIGHT, *arguments], env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_the_services_at_work(database: dict[str, str], tmp_path: Path, voight_provider: Any) -> None:
    """Tables by the owner, calls by an application without a way to the ledger and a sidecar that cannot read, answers by the reader."""
    journal = tmp_path / "journal"
    made = voight(*services("postgres")["migrate"]["command"][1:], ledger=database["owner"])
    assert made.returncode == 0, made.stderr

    clean = {name: value for name, value in os.environ.items() if not name.startswith("VOIGHT_")}
    environ = {**clean, "VOIGHT_JOURNAL": str(journal), "VOIGHT_LEDGER": database["voight_writer"]}
    for sdk, base_url in (("OPENAI", voight_provider.openai_base_url), ("ANTHROPIC", voight_provider.anthropic_base_url)):
        environ |= {f"{sdk}_BASE_URL": base_url, f"{sdk}_API_KEY": "any"}
    port = free_port()
    app_folder = ROOT / "example_apps" / "fastapi_app"
    log = (tmp_path / "log").open("w+")
    app = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--app-dir", str(app_folder), "app:app", "--port", str(port), "--workers", "2"],
        env={**environ, "VOIGHT_INGEST": services("postgres")["app"]["environment"]["VOIGHT_INGEST"]},
        stdout=log,
        stderr=log,
    )
    sidecar = subprocess.Popen(
        [*VOIGHT, "ingest"], env={**environ, "PGPASSWORD": PASSWORDS["WRITER_PASSWORD"]}, stdout=subprocess.DEVNULL, stderr=log
    )
    try:
        wait_for(port, tmp_path / "log")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            for number in range(REQUESTS):
                headers = {"authorization": f"Bearer token-{number % 3 + 1}"}
                assert client.post("/chat", json={"text": "Hello"}, headers=headers).status_code == 200
        app.terminate()
        assert app.wait(30) in (0, -15)
        sidecar.terminate()
        assert sidecar.wait(30) == 0, (tmp_path / "log").read_text()
    finally:
        for process in (app, sidecar):
            process.kill()
            process.wait()
        log.close()
    assert segments(journal) == []

    read = voight("spend", "--by", "user", "--format", "csv", ledger=database["voight_reader"], password=PASSWORDS["READER_PASSWORD"])
    assert read.returncode == 0, read.stderr
    rows = [line.split(",") for line in read.stdout.splitlines()[1:]]
    assert sorted((user, int(calls)) for user, calls, *_ in rows) == [(f"u_{number}", REQUESTS // 3) for number in (1, 2, 3)]

    refused = voight("spend", ledger=database["voight_writer"], password=PASSWORDS["WRITER_PASSWORD"])
    assert refused.returncode == 1
    assert "role" in refused.stderr
    assert PASSWORDS["WRITER_PASSWORD"] not in refused.stderr


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def wait_for(port: int, log: Path) -> None:
    """Until somebody listens there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(log.read_text())
