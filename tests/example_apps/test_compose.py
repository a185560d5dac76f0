"""The compose files: what they start is real, and does what they promise, here without containers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from voight_middleware.cli import main
from voight_middleware.cli.parser import build_parser
from voight_middleware.pipeline.journal import segments

from ..support.listening import listens
from ..support.servers.ports import free_port
from ..support.waiting import wait_until

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
            build_parser(command[1:]).parse_args(command[1:])
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


class Command:
    """Runs commands as one of the services does, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def __call__(self, *arguments: str, ledger: str, password: str = "") -> tuple[int, str, str]:
        """Return the exit status, the output and the errors of ``voight``."""
        with self.monkeypatch.context() as environ:
            for name in [name for name in os.environ if name.startswith(("VOIGHT_", "PG"))]:
                environ.delenv(name)
            environ.setenv("VOIGHT_LEDGER", ledger)
            if password:
                environ.setenv("PGPASSWORD", password)
            status = main([*arguments])
            said = self.capsys.readouterr()
            return status, said.out, said.err


@pytest.fixture
def voight(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs commands of the services."""
    return Command(monkeypatch, capsys)


@pytest.mark.slow
def test_the_services_at_work(database: dict[str, str], tmp_path: Path, voight: Command, voight_provider: Any) -> None:
    """Tables by the owner, calls by an application without a way to the ledger and a sidecar that cannot read, answers by the reader."""
    journal = tmp_path / "journal"
    assert voight(*services("postgres")["migrate"]["command"][1:], ledger=database["owner"])[0] == 0

    clean = {name: value for name, value in os.environ.items() if not name.startswith("VOIGHT_")}
    environ = {**clean, "VOIGHT_JOURNAL": str(journal), "VOIGHT_LEDGER": database["voight_writer"]}
    for sdk, base_url in (("OPENAI", voight_provider.openai_base_url), ("ANTHROPIC", voight_provider.anthropic_base_url)):
        environ |= {f"{sdk}_BASE_URL": base_url, f"{sdk}_API_KEY": "any"}
    port = free_port()
    app_folder = ROOT / "example_apps" / "fastapi_app"
    log = (tmp_path / "log").open("w+")
    app = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--app-dir", str(app_folder), "app:app", "--port", str(port)],
        env={**environ, "VOIGHT_INGEST": services("postgres")["app"]["environment"]["VOIGHT_INGEST"]},
        stdout=log,
        stderr=log,
    )
    sidecar = subprocess.Popen(
        [*VOIGHT, "ingest"], env={**environ, "PGPASSWORD": PASSWORDS["WRITER_PASSWORD"]}, stdout=subprocess.DEVNULL, stderr=log
    )
    try:
        wait_until(lambda: listens(port) or app.poll() is not None, 100)
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

    status, output, _ = voight(
        "spend", "--by", "user", "--format", "csv", ledger=database["voight_reader"], password=PASSWORDS["READER_PASSWORD"]
    )
    assert status == 0
    rows = [line.split(",") for line in output.splitlines()[1:]]
    assert sorted((user, int(calls)) for user, calls, *_ in rows) == [(f"u_{number}", REQUESTS // 3) for number in (1, 2, 3)]

    status, _, errors = voight("spend", ledger=database["voight_writer"], password=PASSWORDS["WRITER_PASSWORD"])
    assert status == 1
    assert "role" in errors
    assert PASSWORDS["WRITER_PASSWORD"] not in errors
