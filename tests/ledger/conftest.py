"""A ledger of each engine: one that is empty, which most tests begin with, and one that is not made yet."""

import itertools
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from voight_middleware.ledger import Ledger, open_ledger

from ..support.servers.ledgers import ENGINES, empty_ledger
from .on_postgres import SECRET, Superuser


@pytest.fixture(scope="session")
def postgres_database(postgres_server: Any) -> Iterator[Superuser]:
    """A session in a database of that server, for tests that make their ledger from nothing."""
    pytest.importorskip("psycopg")
    postgres_server.psql("CREATE DATABASE contract TEMPLATE template0")
    superuser = Superuser(postgres_server.url("contract"))
    yield superuser
    superuser.close()


@pytest.fixture
def postgres_url(postgres_server: Any, postgres_database: Superuser) -> str:
    """The URL of that database without what the test before has left: a tenth of the time that a new database takes."""
    if not postgres_server.running:
        postgres_database.close()
        postgres_server.start()
    empty = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
        "DROP SCHEMA IF EXISTS voight, public CASCADE",
        "CREATE SCHEMA public",
        "ALTER DATABASE contract RESET ALL",
    )
    for number, statement in enumerate(empty):
        try:
            postgres_database.run(statement)
        except Exception:
            if number:  # the session was of before a crash
                raise
            postgres_database.close()
            postgres_database.run(statement)
    return postgres_database.url


@pytest.fixture
def sql(postgres_url: str, postgres_database: Superuser) -> Callable[[str], list[tuple[Any, ...]]]:
    """Runs a statement in that database as the superuser, outside of the ledger."""
    return postgres_database.run


_numbers = itertools.count()


@pytest.fixture
def make_role(postgres_server: Any, sql: Callable[[str], list[tuple[Any, ...]]]) -> Iterator[Callable[..., tuple[str, str]]]:
    """Makes a role that may do nothing in that database; answers its name and the URL with which it logs in."""
    made: list[str] = []

    def make(options: str = "") -> tuple[str, str]:
        name = f"Role {next(_numbers)}"
        sql(f"""CREATE ROLE "{name}" LOGIN PASSWORD '{SECRET}' {options}""")
        made.append(name)
        return name, postgres_server.url("contract", name, SECRET)

    yield make
    for name in made:
        sql(f"""DROP OWNED BY "{name}" CASCADE""")
        sql(f"""DROP ROLE "{name}" """)


@pytest.fixture
def ledger_url(ledger_url: str) -> str:
    """The URL of a ledger that nobody has made yet, of each engine whose driver is installed."""
    driver = {"postgresql": "psycopg", "clickhouse": "clickhouse_connect"}.get(ledger_url.partition(":")[0])
    if driver is not None:
        pytest.importorskip(driver)
    return ledger_url


@pytest.fixture(params=ENGINES)
def empty_ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a ledger without calls, of each engine whose driver is installed; its tables were made before."""
    return empty_ledger(request, request.param, tmp_path)


@pytest.fixture(scope="session")
def clickhouse_clients() -> Iterator[dict[str, list[Any]]]:
    """Connections to servers of ClickHouse, by their addresses: to ask a server for its settings takes as long as a test."""
    clients: dict[str, list[Any]] = defaultdict(list)
    yield clients
    for client in (client for some in clients.values() for client in some):
        client.close()


@pytest.fixture
def opened(empty_ledger_url: str, clickhouse_clients: dict[str, list[Any]]) -> Iterator[Callable[..., Ledger]]:
    """Opens the test's ledger, as often as one likes."""
    ledgers: list[Ledger] = []

    def again(*, create: bool = True) -> Ledger:
        if empty_ledger_url.startswith("clickhouse:"):
            from voight_middleware.ledger.clickhouse import ClickHouseLedger, server

            clients = clickhouse_clients[urlsplit(empty_ledger_url).netloc]
            if len(clients) == len(ledgers):
                clients.append(server.connect(server.read_url(empty_ledger_url)))
            ledgers.append(ClickHouseLedger(empty_ledger_url, create=create, client=clients[len(ledgers)]))
        else:
            ledgers.append(open_ledger(empty_ledger_url, create=create))
        return ledgers[-1]

    yield again
    for ledger in ledgers:
        ledger.close()


@pytest.fixture
def ledger(opened: Callable[..., Ledger]) -> Ledger:
    """An empty ledger."""
    return opened()


QUICK = {"max_threads": 1, "compile_expressions": 0, "compile_aggregate_expressions": 0, "compile_sort_description": 0}
"""Settings without which a question about a few rows takes longer: several threads, and machine code that is made for it."""


@pytest.fixture(scope="session")
def chdb_connection(chdb_path: Path) -> Iterator[Any]:
    """A client of clickhouse-connect on the engine in this process."""
    clickhouse_connect = pytest.importorskip("clickhouse_connect")
    try:
        client = clickhouse_connect.get_client(interface="chdb", path=str(chdb_path), settings=QUICK)
    except ValueError:
        pytest.skip("this clickhouse-connect knows no engine in the process")
    yield client
    client.close()


@pytest.fixture
def chdb_client(chdb_connection: Any) -> Iterator[Any]:
    """That client on an empty database."""
    name = f"voight_{uuid.uuid4().hex}"
    chdb_connection.database = "default"
    chdb_connection.command(f"CREATE DATABASE {name}")
    chdb_connection.database = name
    yield chdb_connection
    chdb_connection.database = "default"
    chdb_connection.command(f"DROP DATABASE {name} SYNC")


@pytest.fixture(scope="session")
def chdb_ledgers(chdb_connection: Any) -> Iterator[dict[str, str]]:
    """Names of databases whose ledgers are emptied for the next test."""
    names: dict[str, str] = {}
    yield names
    chdb_connection.database = "default"
    for name in names.values():
        chdb_connection.command(f"DROP DATABASE {name} SYNC")
