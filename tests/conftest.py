"""Fixtures that tests of more than one room use."""

import gc
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from voight_middleware.config.release import RELEASE_VARIABLES
from voight_middleware.diagnostics import counters
from voight_middleware.records.call import Call, new_call_id

from .support import rules
from .support.authorities import trust_nobody
from .support.depth import leave_out_deep
from .support.ids import readable_id
from .support.patching import Patch
from .support.scripts import Scripts
from .support.serve import Serve
from .support.servers.clickhouse import ClickHouseBridge, connect
from .support.servers.postgres import PostgresServer, binaries
from .support.workers import Workers

for _variable in RELEASE_VARIABLES:  # a CI machine's own: no call of the tests is stamped with it, in processes that they start either
    os.environ.pop(_variable, None)

trust_nobody()

gc.disable()  # until all tests are collected: a quarter of the time of a collection went into garbage that is none

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs so, and what they start could not be interrupted either.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    return readable_id(val)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    rules.mark(items)
    leave_out_deep(config, items)
    rules.heavy_first(items)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    gc.freeze()  # modules and tests stay: no test has to look through them for its garbage
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    yield from rules.watch_fixtures(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    yield from rules.watch(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    rules.judge(item, report)
    return report


@pytest.fixture(scope="session", autouse=True)
def _state_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The default place of ledgers and journals: this process's own, never the user's."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(autouse=True)
def _no_errors_yet() -> None:
    """Each test counts errors from zero."""
    counters.clear()


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> Patch:
    """Replaces names of the library, wherever they stand."""
    return Patch(monkeypatch)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ``shared`` beside the checkout, with recordings and price cases; without it the test is skipped."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("there is no folder `shared` beside the checkout")
    return folder


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


ENGINES = ["sqlite", *(pytest.param(name, marks=pytest.mark.server) for name in ("postgres", "clickhouse", "clickhouse-server"))]


@pytest.fixture(params=ENGINES)
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger, of each engine in turn; ClickHouse through the bridge, and on a real server where one is named."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    name = {"postgres": "postgres_url", "clickhouse": "clickhouse_url", "clickhouse-server": "clickhouse_server_url"}[request.param]
    url: str = request.getfixturevalue(name)
    return url
