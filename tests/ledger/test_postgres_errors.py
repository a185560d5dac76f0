"""A PostgreSQL ledger that cannot be reached, is full, locked or gone: it says what is wrong, and loses nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest

from voight_middleware.ledger import LedgerError, Progress
from voight_middleware.records.tags import Tags

from ..support.factories import make_call
from ..support.patching import Patch
from .on_postgres import SECRET, password_of, with_address

psycopg = pytest.importorskip("psycopg")
from voight_middleware.ledger.postgres import PostgresLedger, schema, store  # noqa: E402 - they need psycopg
from voight_middleware.ledger.postgres.roles import grants  # noqa: E402


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[PostgresLedger]:
    """An empty ledger, made for this test."""
    with closing(PostgresLedger(postgres_url)) as ledger:
        yield ledger


def message_of(url: str) -> str:
    with pytest.raises(LedgerError) as raised:
        PostgresLedger(url)
    return str(raised.value)


def test_a_connection_that_is_refused(postgres_url: str, make_role: Any) -> None:
    """Each reason is a sentence of its own on one line, with what to do, and none shows a password."""
    name, url = make_role("CONNECTION LIMIT 0")
    wrong = f"{quote(name)}:{quote('wr/ng pa@ss', safe='')}"
    cases = {
        "check user and password": with_address(url, user=wrong),
        "check the names": with_address(postgres_url, database="nowhere"),
        "check the host": with_address(postgres_url, host="no-such-host.invalid"),
        "check that the server runs": with_address(postgres_url, port="1"),
        "raise max_connections": url,
        "check sslmode": f"{postgres_url}?sslmode=verify-full&sslrootcert=system",
    }
    for what, address in cases.items():
        message = message_of(address)
        assert what in message
        assert "\n" not in message
        for secret in (password_of(postgres_url), SECRET, "wr/ng pa@ss"):
            assert secret not in message
            assert quote(secret, safe="") not in message


@pytest.mark.parametrize("secret", ["sec/ret", "sec@ret", "sec?ret", "sec#ret", "sec%ret", "sec:ret", "sec ret"])
def test_a_password_that_is_not_encoded(secret: str) -> None:
    """A URL that cannot be read says how to write it, and shows nothing of the password."""
    message = message_of(f"postgresql://user:{secret}@127.0.0.1:1/database")
    assert "sec" not in message.replace("seconds", "")
    assert "ret" not in message.replace("percent", "").replace("retr", "")
    assert "percent-encoded" in message or "cannot be reached" in message


def test_the_url_of_an_open_ledger(ledger: PostgresLedger, postgres_url: str) -> None:
    """It has no password."""
    assert password_of(postgres_url) not in unquote(ledger.url)


def test_where_libpq_finds_a_password(postgres_url: str, make_role: Any, sql: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In PGPASSFILE, PGPASSWORD and a service file, as every other client does."""
    name, _ = make_role("SUPERUSER")
    parts = urlsplit(postgres_url)
    bare = with_address(postgres_url, user=quote(name))
    assert "check user and password" in message_of(bare)
    passwords = tmp_path / "pgpass"
    passwords.write_text(f"{parts.hostname}:*:*:{name}:" + SECRET.replace("\\", "\\\\").replace(":", "\\:"))
    passwords.chmod(0o600)
    with monkeypatch.context() as patch:
        patch.setenv("PGPASSFILE", str(passwords))
        PostgresLedger(bare).close()
    with monkeypatch.context() as patch:
        patch.setenv("PGPASSWORD", SECRET)
        with closing(PostgresLedger(bare)) as ledger:
            assert sql("SELECT usename FROM pg_stat_activity WHERE application_name = 'voight'") == [(name,)]
            assert ledger.insert([make_call()]) == 1
    (tmp_path / "services").write_text(
        f"[mine]\nhost={parts.hostname}\nport={parts.port}\ndbname={parts.path[1:]}\nuser={name}\npassword={SECRET}\napplication_name=other\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    with closing(PostgresLedger("postgresql://?service=mine")) as ledger:
        assert ledger.spend()[0].calls == 1
        assert sql("SELECT usename FROM pg_stat_activity WHERE application_name = 'other'") == [(name,)]


@pytest.mark.slow
def test_a_server_that_does_not_answer(patch: Patch) -> None:
    """A connection is given up after the seconds of the URL, or our own."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://u:pw@127.0.0.1:{silent.getsockname()[1]}/d"
        for given, own in (("?connect_timeout=2", 60), ("", 2)):  # libpq knows no shorter one
            patch("CONNECT_SECONDS", own, within="postgres.connection")
            begin = time.monotonic()
            assert "cannot be reached" in message_of(f"{url}{given}")
            assert 1.5 < time.monotonic() - begin < 30


def test_a_role_that_is_read_only(ledger: PostgresLedger, make_role: Any, sql: Any) -> None:
    """It reads, and is told why it cannot write, as on a standby; nothing is lost."""
    name, url = make_role()
    for statement in grants(writer=name, reader=name):
        sql(statement)
    sql(f'ALTER ROLE "{name}" SET default_transaction_read_only = on')
    with closing(PostgresLedger(url)) as other:
        assert other.spend()[0].calls == 0
        assert dict(other.info())["role"].endswith("; the server is read-only")
        with pytest.raises(LedgerError, match=r"cannot be written .*read-only.*target_session_attrs=read-write"):
            other.insert([make_call()])
        assert other.spend()[0].calls == 0


def fail_at_first(sql: Any, code: str, times: int) -> None:
    """Have the server refuse that many calls with an error of its own."""
    sql("DROP SEQUENCE IF EXISTS public.tries")
    sql("CREATE SEQUENCE public.tries")  # what it has counted stays counted
    body = f"IF nextval('public.tries') <= {times} THEN RAISE EXCEPTION 'made up' USING ERRCODE = '{code}'; END IF; RETURN NEW;"
    sql(f"CREATE OR REPLACE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$")
    sql("CREATE OR REPLACE TRIGGER fail BEFORE INSERT ON voight.calls FOR EACH ROW EXECUTE FUNCTION public.fail()")


@pytest.mark.parametrize("code", ["40P01", "40001"])
def test_a_transaction_that_the_server_has_ended(ledger: PostgresLedger, sql: Any, code: str) -> None:
    """A deadlock with somebody else's statements is tried again, a few times, and nothing is told twice."""
    fail_at_first(sql, code, store.ATTEMPTS - 1)
    assert ledger.insert([make_call(5, price="{}", tags=Tags(extra={"k": "v"}))], Progress("s", 1)) == 1
    assert (ledger.spend(["k"])[0].cost_femto, ledger.progress("s")) == (5, 1)
    fail_at_first(sql, code, store.ATTEMPTS)
    with pytest.raises(LedgerError, match="failed: made up"):
        ledger.insert([make_call(6)], Progress("s", 2))
    assert (ledger.spend()[0].cost_femto, ledger.progress("s")) == (5, 1)


def test_a_full_disk(ledger: PostgresLedger, sql: Any) -> None:
    """It is said, nothing of the batch is kept, and the next one is when there is space."""
    fail_at_first(sql, "53100", 1)
    with pytest.raises(LedgerError, match="disk is full"):
        ledger.insert([make_call(price="{}", tags=Tags(extra={"k": "v"}))], Progress("s", 1))
    assert (ledger.spend()[0].calls, ledger.progress("s")) == (0, 0)
    assert ledger.insert([make_call(price="{}", tags=Tags(extra={"k": "v"}))], Progress("s", 1)) == 1
    assert ledger.spend(["k"])[0].calls == 1


def test_a_locked_ledger(ledger: PostgresLedger, postgres_url: str, patch: Patch) -> None:
    """A writer that waits too long for another one says so; reading goes on meanwhile."""
    patch("LOCK", schema.LOCK.replace("30s", "100ms"), within="postgres.writer")
    with psycopg.connect(postgres_url) as other:
        other.execute(schema.LOCK)
        with pytest.raises(LedgerError, match="locked by another session"):
            ledger.insert([make_call()])
        assert ledger.spend()[0].calls == 0
    assert ledger.insert([make_call()]) == 1


def test_a_connection_that_is_gone(ledger: PostgresLedger, postgres_url: str, sql: Any) -> None:
    """Ended between two batches: an error that says so, nothing lost, and a ledger that is opened anew goes on."""
    ledger.insert([make_call(1)], Progress("s", 1))
    sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'voight'")
    call = make_call(2)
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"lost its connection \(.*next attempt"):
            ledger.insert([call], Progress("s", 2))
    with closing(PostgresLedger(postgres_url)) as again:
        assert again.progress("s") == 1
        assert again.insert([call], Progress("s", 2)) == 1
        assert again.spend()[0].cost_femto == 3


def test_a_schema_that_was_dropped(ledger: PostgresLedger, postgres_url: str, sql: Any) -> None:
    """Under way: an error, and whoever opens the ledger next begins it anew."""
    ledger.insert([make_call()])
    sql("DROP SCHEMA voight CASCADE")
    with pytest.raises(LedgerError, match="does not match this version's schema"):
        ledger.insert([make_call()])
    with closing(PostgresLedger(postgres_url)) as again:
        assert again.insert([make_call()]) == 1
