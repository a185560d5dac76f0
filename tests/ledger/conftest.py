"""An empty ledger of each engine."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from voight_middleware.ledger import Ledger, open_ledger


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
    """The URL of an empty ledger, of each engine whose driver is installed."""
    driver = {"postgresql": "psycopg", "clickhouse": "clickhouse_connect"}.get(ledger_url.partition(":")[0])
    if driver is not None:
        pytest.importorskip(driver)
    return ledger_url


@pytest.fixture
def opened(ledger_url: str) -> Iterator[Callable[..., Ledger]]:
    """Opens the test's ledger, as often as one likes."""
    ledgers: list[Ledger] = []

    def again(*, create: bool = True) -> Ledger:
        ledgers.append(open_ledger(ledger_url, create=create))
        return ledgers[-1]

    yield again
    for ledger in ledgers:
        ledger.close()


@pytest.fixture
def ledger(opened: Callable[..., Ledger]) -> Ledger:
    """An empty ledger."""
    return opened()
