"""A ledger of each engine: one that is empty, which most tests begin with, and one that is not made yet."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from voight_middleware.ledger import Ledger, open_ledger

from ..support.servers.ledgers import ENGINES, empty_ledger


@pytest.fixture(scope="session")
def postgres_database(postgres_server: Any) -> Iterator[Any]:
    """A connection to a database of that server; it is not that of any test."""
    psycopg = pytest.importorskip("psycopg")
    postgres_server.psql("CREATE DATABASE contract TEMPLATE template0")
    with psycopg.connect(postgres_server.url("contract"), autocommit=True) as connection:
        yield connection


@pytest.fixture
def postgres_url(postgres_server: Any, postgres_database: Any) -> str:
    """The URL of that database without the tables of the test before: a tenth of the time that a new database takes."""
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    postgres_database.execute(others)
    postgres_database.execute("DROP SCHEMA IF EXISTS voight CASCADE")
    url: str = postgres_server.url("contract")
    return url


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
