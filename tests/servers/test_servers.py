"""The servers that other tests run against: what the tests of ledgers take for granted of them."""

from __future__ import annotations

import socket
import threading
from decimal import Decimal
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from ..support.depth import DEEP, times
from ..support.servers.clickhouse import PASSWORD, READER, USER, ClickHouseBridge, connect
from ..support.servers.postgres import PostgresServer

CRASHES = times(2, 3)


def test_postgres_survives_its_crashes(postgres_server: PostgresServer, postgres_url: str) -> None:
    """What was committed is there after each ``kill -9``, at the same URL, and what was not is gone."""
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (crash int)")
    for crash in range(CRASHES):
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("INSERT INTO kept VALUES (%s)", [crash])
        unfinished = psycopg.connect(postgres_url)
        unfinished.execute("INSERT INTO kept VALUES (-1)")
        postgres_server.kill()
        assert not postgres_server.running
        with pytest.raises(psycopg.OperationalError):
            unfinished.execute("SELECT 1")
        unfinished.close()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(postgres_url)
        postgres_server.start()

    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT crash FROM kept ORDER BY crash").fetchall() == [(crash,) for crash in range(CRASHES)]


def test_postgres_is_as_awkward_as_promised(postgres_server: PostgresServer, postgres_url: str) -> None:
    """A password is needed, texts do not sort bytewise, a time zone has no whole hours; in the deep run commits wait for the disk."""
    psycopg = pytest.importorskip("psycopg")
    found = postgres_server.psql("SELECT current_setting('fsync'), current_setting('TimeZone')")
    assert found == f"{'on' if DEEP else 'off'}|Asia/Kathmandu"
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres_server.url(password="wrong"))
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT * FROM (VALUES ('B'), ('a')) v(x) ORDER BY x").fetchall() == [("a",), ("B",)]
        assert connection.execute("SELECT * FROM (VALUES ('B'), ('a')) v(x) ORDER BY x COLLATE \"C\"").fetchall() == [("B",), ("a",)]


def test_postgres_is_stopped_and_started(postgres_server: PostgresServer, postgres_url: str) -> None:
    """An orderly stop keeps everything, and both ends can be asked for twice."""
    database = urlsplit(postgres_url).path[1:]
    postgres_server.psql("CREATE TABLE kept AS SELECT 1", database)
    for _ in range(2):
        postgres_server.stop()
        assert not postgres_server.running
    for _ in range(2):
        postgres_server.start()

    assert postgres_server.psql("SELECT * FROM kept", database) == "1"


@pytest.mark.slow
def test_chdb_is_the_real_engine(chdb_client: Any) -> None:
    """It replaces by version, keeps femto-dollars, and its database is empty at first."""
    assert chdb_client.query("SHOW TABLES").result_rows == []
    chdb_client.command("CREATE TABLE t (id String, v UInt8, cost Decimal(38, 15)) ENGINE = ReplacingMergeTree(v) ORDER BY id")
    for version, cost in ((2, Decimal("9223.372036854775807")), (1, Decimal(1))):
        chdb_client.insert("t", [["a", version, cost]], column_names=["id", "v", "cost"])

    assert chdb_client.query("SELECT count() FROM t").result_rows == [(2,)]
    assert chdb_client.query("SELECT sum(cost) FROM t FINAL").result_rows == [(Decimal("9223.372036854775807"),)]


@pytest.fixture(params=[USER, READER])
def user(request: pytest.FixtureRequest) -> str:
    """Each user of the bridge."""
    name: str = request.param
    return name


def test_bridge_survives_its_crashes(clickhouse_bridge: ClickHouseBridge, clickhouse_url: str) -> None:
    """What was acknowledged is there after each ``kill -9``, at the same URL."""
    client = connect(clickhouse_url)
    client.command("CREATE TABLE kept (crash Int64) ENGINE = MergeTree ORDER BY crash")
    for crash in range(CRASHES):
        client.insert("kept", [[crash]], column_names=["crash"])
        clickhouse_bridge.kill()
        with pytest.raises(Exception, match=r"[Cc]onnect|refused|aborted"):
            client.query("SELECT 1")
        clickhouse_bridge.start()

    assert client.query("SELECT crash FROM kept ORDER BY crash").result_rows == [(crash,) for crash in range(CRASHES)]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"password": "wrong"}, "516"),
        ({"username": "nobody"}, "516"),
        ({"database": "nowhere"}, "81"),
        ({"settings": {"readonly": "x"}}, "27"),
    ],
    ids=["password", "user", "database", "setting"],
)
def test_bridge_refuses_as_the_server_does(clickhouse_url: str, options: dict[str, Any], code: str) -> None:
    """A wrong password, user, database or setting comes back as the error of the server, with its code."""
    with pytest.raises(Exception, match=f"Code: {code}\\. DB::Exception"):
        connect(clickhouse_url, **options).query("SELECT 1")


def test_bridge_user_reads_or_writes(clickhouse_url: str, user: str) -> None:
    """Everybody reads; the reader changes neither data nor settings."""
    connect(clickhouse_url).command("CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a")
    client = connect(clickhouse_url, username=user)
    statements = ("INSERT INTO t VALUES (1)", "SELECT 1 SETTINGS max_threads = 3", "DROP TABLE t")

    assert client.query("SELECT count() FROM t").result_rows == [(0,)]
    for statement in statements:
        if user == READER:
            with pytest.raises(Exception, match=r"Code: 164\. DB::Exception"):
                client.command(statement)
        else:
            client.command(statement)


def test_bridge_carries_every_value(clickhouse_url: str) -> None:
    """Binary data, compressed or not, and parameters, short or long, arrive as they were sent; the rows written are told."""
    texts = ["", "a'b", "\\N", "\t\n\0;", "ü🎉", "x" * 70_000]
    rows = [[number, texts[number % len(texts)]] for number in range(300)]
    connect(clickhouse_url).command("CREATE TABLE t (n Int64, s String) ENGINE = MergeTree ORDER BY n")
    for compress in (False, "gzip", "lz4"):
        client = connect(clickhouse_url, compress=compress)
        client.command("TRUNCATE TABLE t")
        assert client.insert("t", rows, column_names=["n", "s"]).written_rows == 300
        assert [list(row) for row in client.query("SELECT n, s FROM t ORDER BY n").result_rows] == rows
        for text in texts:
            assert client.query("SELECT {x:String}, {y:Array(String)}", parameters={"x": text, "y": [text]}).result_rows == [(text, [text])]


def test_bridge_takes_parameters_up_to_the_limit_of_the_server(clickhouse_url: str) -> None:
    """A parameter may have 128 KiB, and no more."""
    client = connect(clickhouse_url)

    assert client.query("SELECT length({x:String})", parameters={"x": "x" * 131_072}).result_rows == [(131_072,)]
    with pytest.raises(Exception, match="Field value too long"):
        client.query("SELECT length({x:String})", parameters={"x": "x" * 131_074})


def test_bridge_keeps_nothing_of_a_refused_insert(clickhouse_url: str) -> None:
    """One row that breaks a constraint takes the others with it, over several partitions too, and the client hears of it."""
    client = connect(clickhouse_url)
    client.command("CREATE TABLE t (n Int64, CONSTRAINT c CHECK n < 20) ENGINE = MergeTree PARTITION BY n ORDER BY n")
    with pytest.raises(Exception, match=r"Code: 469\. DB::Exception"):
        client.insert("t", [[number] for number in range(21)], column_names=["n"])

    assert client.query("SELECT count() FROM t").result_rows == [(0,)]


def test_bridge_runs_nothing_of_half_a_request(clickhouse_bridge: ClickHouseBridge, clickhouse_url: str) -> None:
    """A client that dies while it sends leaves nothing, though what has arrived are whole rows."""
    database = urlsplit(clickhouse_url).path[1:]
    clickhouse_bridge.sql("CREATE TABLE t (n Int64) ENGINE = MergeTree ORDER BY n", database)
    head = f"POST /?database={database}&user={USER}&password={quote(PASSWORD)} HTTP/1.1\r\nHost: bridge\r\n"
    insert = b"INSERT INTO t (n) FORMAT CSV\n1\n2\n3\n4\n"
    chunk = b"%x\r\n%s\r\n" % (len(insert), insert)
    for length, body in (("Transfer-Encoding: chunked", chunk), ("Content-Length: 50", insert)):
        with socket.create_connection(("127.0.0.1", clickhouse_bridge.port)) as connection:
            connection.sendall(f"{head}{length}\r\n\r\n".encode() + body)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""
    assert clickhouse_bridge.sql("SELECT count() FROM t", database) == "0"

    with socket.create_connection(("127.0.0.1", clickhouse_bridge.port)) as connection:  # the same with its end is an INSERT
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk + b"0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert clickhouse_bridge.sql("SELECT count() FROM t", database) == "4"


def test_bridge_settings_hold_for_one_statement(clickhouse_url: str) -> None:
    """A deduplication token in the statement or beside it drops the replay, and is gone with the next statement."""
    client = connect(clickhouse_url)
    client.command("CREATE TABLE t (n Int64) ENGINE = MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 9")
    for _ in range(2):
        client.insert("t", [[1]], column_names=["n"], settings={"insert_deduplication_token": "beside", "async_insert": 0})
        client.raw_insert("t SETTINGS insert_deduplication_token = 'within'", None, b"2\n", fmt="CSV")
    client.insert("t", [[3]], column_names=["n"])

    assert client.query("SELECT n FROM t ORDER BY n").result_rows == [(1,), (2,), (3,)]
    assert client.query("SELECT getSetting('insert_deduplication_token')").result_rows == [("",)]


def test_bridge_serves_several_at_once(clickhouse_url: str) -> None:
    """Four clients that insert at the same time lose no row."""
    connect(clickhouse_url).command("CREATE TABLE t (n Int64) ENGINE = MergeTree ORDER BY n")

    def insert(first: int) -> None:
        client = connect(clickhouse_url)
        for batch in range(5):
            client.insert("t", [[first + batch * 500 + row] for row in range(500)], column_names=["n"])

    threads = [threading.Thread(target=insert, args=(number * 10_000,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert connect(clickhouse_url).query("SELECT count(), count(DISTINCT n) FROM t").result_rows == [(10_000, 10_000)]


def test_ledger_url_names_an_empty_ledger(ledger_url: str, request: pytest.FixtureRequest) -> None:
    """Each engine has its scheme, and no test sees what another has left."""
    scheme = urlsplit(ledger_url).scheme
    assert scheme in ("sqlite", "postgresql", "clickhouse")
    if scheme == "postgresql":
        with pytest.importorskip("psycopg").connect(ledger_url) as connection:
            assert connection.execute("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace").fetchall() == [(0,)]
    if scheme == "clickhouse":
        assert connect(ledger_url).query("SHOW TABLES").result_rows == []
