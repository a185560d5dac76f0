"""Fixtures that tests of more than one room use."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from voight_middleware.call import Call, new_call_id
from voight_middleware.ingest import drain
from voight_middleware.ledger import open_ledger
from voight_middleware.settings import RELEASE_VARIABLES

from .servers.clickhouse import ClickHouseBridge, connect
from .servers.postgres import PostgresServer, binaries

for _variable in RELEASE_VARIABLES:  # a CI machine's own: no call of the tests is stamped with it, in processes that they start either
    os.environ.pop(_variable, None)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs so, and what they start could not be interrupted either.
    signal.signal(signal.SIGINT, signal.default_int_handler)


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

    def __call__(self, app: Any, http: Any = "auto") -> str:
        """Start *app*; answers its URL."""
        import uvicorn

        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", http=http, ws="websockets-sansio"))
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


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Redis on a free port of this machine; answers the port."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("there is no redis-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(tmp_path_factory.mktemp("redis"))]
    process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)
    for _ in range(400):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.025)
    yield port
    process.kill()
    process.wait()


@pytest.fixture
def redis_url(redis_server: int) -> str:
    """The URL of an empty Redis."""
    with socket.create_connection(("127.0.0.1", redis_server)) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        assert connection.recv(100) == b"+OK\r\n"
    return f"redis://127.0.0.1:{redis_server}/0"


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
        paths = [str(Path(__file__).parent / "apps"), os.environ.get("PYTHONPATH", "")]
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


@pytest.fixture(scope="session")
def make_workers() -> Iterator[Callable[[Path], Workers]]:
    """Makes workers of task queues with their ledger in a folder."""
    made: list[Workers] = []

    def make(folder: Path) -> Workers:
        made.append(Workers(folder))
        return made[-1]

    yield make
    for workers in made:
        workers.stop()


@pytest.fixture
def workers(tmp_path: Path, make_workers: Callable[[Path], Workers]) -> Iterator[Workers]:
    """Runs workers of task queues until the test ends."""
    running = make_workers(tmp_path)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running PostgreSQL, as a disk would have it: a commit waits for it. A test that stops or kills it may leave it so."""
    folder = binaries()
    if folder is None:
        missing = "there are no binaries of PostgreSQL: no `initdb` on the path, and none in /usr/lib/postgresql"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    server = PostgresServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database of the running ``postgres_server``, as its superuser."""
    postgres_server.start()
    name = f"voight_{uuid.uuid4().hex}"
    postgres_server.psql(f"CREATE DATABASE {name} TEMPLATE template0")
    yield postgres_server.url(name)
    postgres_server.start()
    postgres_server.psql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def chdb_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """
    The data of the one ClickHouse engine that this process can have, which is running.

    A process that has had it cannot fork any more, but for ``exec``: a child that ends as Python does, or asks the engine, hangs.
    """
    chdb = pytest.importorskip("chdb")
    path = tmp_path_factory.mktemp("chdb")
    engine = chdb.connect(str(path))  # open for all tests: the first connection takes a second
    yield path
    engine.close()


@pytest.fixture
def chdb_client(chdb_path: Path) -> Iterator[Any]:
    """A client of clickhouse-connect on an empty database of the engine in this process."""
    clickhouse_connect = pytest.importorskip("clickhouse_connect")
    try:
        client = clickhouse_connect.get_client(interface="chdb", path=str(chdb_path))
    except ValueError:
        pytest.skip("this clickhouse-connect knows no engine in the process")
    name = f"voight_{uuid.uuid4().hex}"
    client.command(f"CREATE DATABASE {name}")
    client.database = name
    yield client
    client.command(f"DROP DATABASE {name} SYNC")
    client.close()


@pytest.fixture(scope="session")
def clickhouse_bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseBridge]:
    """The ClickHouse engine behind HTTP, in a process of its own. A test that stops or kills it may leave it so."""
    if importlib.util.find_spec("chdb") is None:
        pytest.skip("chdb is not installed")
    bridge = ClickHouseBridge(tmp_path_factory.mktemp("clickhouse"))
    try:
        bridge.start()
        yield bridge
    finally:
        bridge.stop()


@pytest.fixture
def clickhouse_url(clickhouse_bridge: ClickHouseBridge) -> Iterator[str]:
    """The URL of an empty database of the running ``clickhouse_bridge``."""
    clickhouse_bridge.start()
    name = f"voight_{uuid.uuid4().hex}"
    clickhouse_bridge.sql(f"CREATE DATABASE {name}")
    yield clickhouse_bridge.url(name)
    clickhouse_bridge.start()
    clickhouse_bridge.sql(f"DROP DATABASE {name} SYNC")


@pytest.fixture
def clickhouse_server_url() -> Iterator[str]:
    """The URL of an empty database of the real server that ``VOIGHT_TEST_CLICKHOUSE_URL`` names; without it the test is skipped."""
    server = os.environ.get("VOIGHT_TEST_CLICKHOUSE_URL")
    if not server:
        pytest.skip("VOIGHT_TEST_CLICKHOUSE_URL names no ClickHouse server")
    client = connect(server)
    name = f"voight_{uuid.uuid4().hex}"
    client.command(f"CREATE DATABASE {name}")
    yield urlsplit(server)._replace(path=f"/{name}").geturl()
    client.command(f"DROP DATABASE {name} SYNC")
    client.close()


@pytest.fixture(params=["sqlite", "postgres", "clickhouse", "clickhouse-server"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger, of each engine in turn; ClickHouse through the bridge, and on a real server where one is named."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    name = {"postgres": "postgres_url", "clickhouse": "clickhouse_url", "clickhouse-server": "clickhouse_server_url"}[request.param]
    url: str = request.getfixturevalue(name)
    return url
