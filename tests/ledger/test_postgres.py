"""What a PostgreSQL ledger is on its server: made, upgraded, shared, refused, lost. What it answers is in the tests of the contract."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest

from voight_middleware.call import Call, Settlement
from voight_middleware.ledger import ForeignLedger, Ledger, LedgerError, Progress, open_ledger
from voight_middleware.tags import Tags
from voight_middleware.usage import Usage

from ..support.factories import NOON, job_call, make_call, priced, submission, unread

psycopg = pytest.importorskip("psycopg")
from voight_middleware.ledger.postgres import PostgresLedger, intake, schema, store  # noqa: E402 - they need psycopg
from voight_middleware.ledger.postgres.roles import grants  # noqa: E402

SECRET = "s3cr/t@:%?#"


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[PostgresLedger]:
    with closing(PostgresLedger(postgres_url)) as ledger:
        yield ledger


@pytest.fixture
def sql(postgres_url: str) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """Runs a statement in the ledger's database as the superuser, outside of the ledger."""
    with psycopg.connect(postgres_url, autocommit=True) as db:

        def run(statement: str) -> list[tuple[Any, ...]]:
            cursor = db.execute(statement)
            return cursor.fetchall() if cursor.description else []

        yield run


_numbers = itertools.count()


@pytest.fixture
def make_role(postgres_server: Any, postgres_url: str) -> Iterator[Callable[..., tuple[str, str]]]:
    """Makes a role that may do nothing; answers its name and the URL with which it logs in."""
    database = urlsplit(postgres_url).path[1:]
    made: list[str] = []

    def make(options: str = "") -> tuple[str, str]:
        name = f"Role {next(_numbers)}"
        postgres_server.psql(f"""CREATE ROLE "{name}" LOGIN PASSWORD '{SECRET}' {options}""")
        made.append(name)
        return name, postgres_server.url(database, name, SECRET)

    yield make
    postgres_server.start()
    for name in made:
        postgres_server.psql(f"""DROP OWNED BY "{name}" CASCADE""", database)
        postgres_server.psql(f"""DROP ROLE "{name}" """)


def with_address(url: str, **changes: str) -> str:
    """*url* with another host, port, user or database."""
    parts = urlsplit(url)
    user = changes.get("user", f"{parts.username}:{parts.password}")
    host, port, database = changes.get("host", parts.hostname), changes.get("port", parts.port), changes.get("database", parts.path[1:])
    return f"postgresql://{user}@{host}:{port}/{database}"


def password_of(url: str) -> str:
    return unquote(urlsplit(url).password or "")


# -- made and upgraded ------------------------------------------------------------------------------------------------------------


OPEN_AND_INSERT = """
import sys, time
from voight_middleware.call import Call
from voight_middleware.ledger import open_ledger

url, start, first = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
time.sleep(max(0, start - time.time()))
ledger = open_ledger(url)
for batch in range(10):  # each call is told by two processes
    numbers = [n % 800 for n in range(first * 100 + batch * 20, first * 100 + batch * 20 + 20)]
    told = {"provider": "openai", "endpoint": "chat", "cost_femto": 1, "cost_status": "priced"}
    ledger.insert([Call(call_id=f"c{n}", occurred_at=n * 10**10, **told) for n in numbers])
ledger.close()
"""


def test_processes_that_open_an_empty_database_at_once(postgres_url: str) -> None:
    """Eight processes make one schema at the same moment, then tell the same calls twice: each is kept and counted once."""
    start = str(time.time() + 2)
    processes = [subprocess.Popen([sys.executable, "-c", OPEN_AND_INSERT, postgres_url, start, str(number)]) for number in range(8)]
    assert [process.wait(100) for process in processes] == [0] * 8
    with closing(open_ledger(postgres_url, create=False)) as ledger:
        assert (ledger.spend()[0].calls, ledger.spend()[0].cost_femto) == (800, 800)
        assert len(list(ledger.calls())) == 800
        before = ledger.spend(["day"])
        list(ledger.rebuild())
        assert ledger.spend(["day"]) == before


ADDED = ("ALTER TABLE voight.calls ADD COLUMN added text", "CREATE TABLE voight.more (x text)")


def test_an_older_ledger_is_upgraded(postgres_url: str, sql: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever opens it first with a newer version, once; the calls stay, and the older version says that it is too old now."""
    with closing(PostgresLedger(postgres_url)) as ledger:
        ledger.insert([make_call(7)])
    older = schema.MIGRATIONS
    monkeypatch.setattr(schema, "MIGRATIONS", (*older, ADDED))
    for create in (False, True):
        with closing(PostgresLedger(postgres_url, create=create)) as ledger:
            assert ledger.schema_version == len(older) + 1
            assert ledger.spend()[0].cost_femto == 7
    assert sql("SELECT version FROM voight.schema_version") == [(len(older) + 1,)]
    monkeypatch.setattr(schema, "MIGRATIONS", older)
    with pytest.raises(LedgerError, match=r"newer version.*pip install -U"):
        PostgresLedger(postgres_url)


def test_a_migration_that_fails_changes_nothing(postgres_url: str, sql: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one transaction: an upgrade that breaks off leaves the older ledger, and a ledger that was not made leaves no schema."""
    older = schema.MIGRATIONS
    monkeypatch.setattr(schema, "MIGRATIONS", (*older, (*ADDED, "SELECT 1 / 0")))
    with pytest.raises(LedgerError, match="failed: division by zero"):
        PostgresLedger(postgres_url)
    assert sql("SELECT COUNT(*) FROM pg_namespace WHERE nspname = 'voight'") == [(0,)]
    monkeypatch.setattr(schema, "MIGRATIONS", older)
    PostgresLedger(postgres_url).close()
    monkeypatch.setattr(schema, "MIGRATIONS", (*older, (*ADDED, "SELECT 1 / 0")))
    with pytest.raises(LedgerError, match="division"):
        PostgresLedger(postgres_url)
    assert sql("SELECT version, to_regclass('voight.more') FROM voight.schema_version") == [(len(older), None)]


def test_who_must_upgrade(postgres_url: str, make_role: Any, ledger: PostgresLedger, sql: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A role that does not own the ledger is told who does, and what that one must run."""
    name, url = make_role()
    for statement in grants(writer=name):
        sql(statement)
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ADDED))
    with pytest.raises(
        LedgerError, match=rf"older version \(schema 1, this one needs 2\), and the role {name}.*`voight migrate`.* once as voight"
    ):
        PostgresLedger(url)


def test_a_role_that_may_not_make_a_ledger(postgres_url: str, make_role: Any, sql: Any) -> None:
    """It is told what an administrator must run; in the empty schema that this makes, it makes the ledger."""
    name, url = make_role()
    with pytest.raises(
        LedgerError,
        match=rf'there is no ledger at .* yet, and the role {name} may not make one.*CREATE SCHEMA voight AUTHORIZATION "{name}"',
    ) as raised:
        PostgresLedger(url)
    sql(str(raised.value).rpartition("run: ")[2])
    with pytest.raises(LedgerError, match=r"there is no ledger at .* yet"):
        PostgresLedger(url, create=False)
    with closing(PostgresLedger(url)) as ledger:
        assert ledger.insert([make_call()]) == 1


@pytest.mark.parametrize("table", ["things (x int)", "schema_version (version int)"])
def test_a_schema_of_another_application(postgres_url: str, sql: Any, table: str) -> None:
    """Another application's schema of our name is refused as foreign, and stays as it was."""
    sql("CREATE SCHEMA voight")
    sql(f"CREATE TABLE voight.{table}")
    for create in (True, False):
        with pytest.raises(ForeignLedger, match="another application"):
            open_ledger(postgres_url, create=create)
    assert sql("SELECT COUNT(*) FROM pg_class WHERE relnamespace = 'voight'::regnamespace") == [(1,)]


def test_beside_an_application(postgres_url: str, sql: Any) -> None:
    """Nothing is made outside of the schema, and tables of the same names on the role's search path are not taken for ours."""
    sql("CREATE TABLE calls (call_id int)")
    sql("CREATE TABLE prices (price_id int)")
    outside = "SELECT COUNT(*) FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = 'public'"
    before = sql(outside)
    with closing(PostgresLedger(postgres_url)) as ledger:
        ledger.insert([make_call(5, price="{}"), submission("openai/1", "u")])
        assert ledger.spend(["month"])[0].calls == 1
    assert sql(outside) == before


def test_a_database_that_cannot_hold_every_text(postgres_server: Any, postgres_url: str) -> None:
    """A database in another encoding is refused before a call is lost in it."""
    name = urlsplit(postgres_url).path[1:] + "_latin"
    provider = "LOCALE_PROVIDER libc" if postgres_server.psql("SHOW server_version_num") >= "150000" else ""
    postgres_server.psql(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' {provider} LOCALE 'C'")
    try:
        with pytest.raises(LedgerError, match=r"needs a database in UTF8, and .* is in LATIN1"):
            PostgresLedger(postgres_server.url(name))
    finally:
        postgres_server.psql(f"DROP DATABASE {name} WITH (FORCE)")


# -- roles ------------------------------------------------------------------------------------------------------------------------


def refused(ask: Callable[[], object]) -> None:
    with pytest.raises(LedgerError, match="permission denied") as raised:
        ask()
    assert "\n" not in str(raised.value)


def test_a_writer_brings_calls_in_and_reads_none(ledger: PostgresLedger, make_role: Any, sql: Any) -> None:
    """Insert, replay, answer, settle, submit, progress: as its owner does it; and no question is answered, nor a table read."""
    name, url = make_role()
    refused_before = pytest.raises(LedgerError, match=f"the role {name} may not use the ledger")
    with refused_before:
        PostgresLedger(url)
    for statement in grants(writer=name):
        sql(statement)
    plain, begun = make_call(5, tags=Tags(extra={"k": "v"}), price="{}"), unread("openai/resp_1")
    told = job_call("openai/resp_1", cost=3, raw_usage="{}", usage=Usage(input=1))
    with closing(PostgresLedger(url)) as writer:
        assert writer.insert([plain, begun, job_call("openai/batch_1/a")], Progress("s", 5)) == 3
        assert writer.insert([plain, told, told]) == 1
        assert writer.insert([Settlement(call_ids=(plain.call_id,), tags=Tags(user_id="u_1"))]) == 0
        assert writer.insert([submission("openai/batch_1", "u_2"), submission("openai/resp_1", None, attribution="none")]) == 0
        assert writer.insert([Settlement(call_ids=("openai/resp_1",), tags=Tags(user_id="u_3"))]) == 0
        assert writer.submissions(["openai/batch_1"])["openai/batch_1"].tags.user_id == "u_2"
        assert writer.progress("s") == 5
        writer.forget("s")
        assert writer.progress("s") == 0
        assert dict(writer.about())["role"] == f"{name}, who may bring calls in"
        for ask in (
            writer.spend,
            lambda: list(writer.calls()),
            lambda: writer.call(plain.call_id),
            writer.extent,
            lambda: writer.versions(plain.call_id),
            lambda: writer.holdings(["u_1"]),
            lambda: writer.erase(["u_1"], "x"),
            lambda: writer.expire(NOON + 1, 10),
            lambda: writer.reprice([(plain, priced(plain, 9))]),
            lambda: list(writer.rebuild()),
            writer.jobs,
        ):
            refused(ask)
    owners = {call.call_id: (call.tags.user_id, call.cost_femto) for call in ledger.calls()}
    assert owners == {plain.call_id: ("u_1", 5), told.call_id: ("u_3", 3), job_call("openai/batch_1/a").call_id: ("u_2", 1_000)}
    assert [row.calls for row in ledger.spend(["user_id"])] == [1, 1, 1]
    with psycopg.connect(url, autocommit=True) as db:
        for (table,) in sql("SELECT relname FROM pg_class WHERE relnamespace = 'voight'::regnamespace AND relkind = 'r'"):
            if table in ("segments", "schema_version"):
                continue
            for statement in (f"SELECT FROM voight.{table}", f"DELETE FROM voight.{table}", f"TRUNCATE voight.{table}"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    db.execute(statement)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute("INSERT INTO voight.calls (call_id) VALUES ('x') RETURNING *")


def test_a_reader_reads_everything_and_writes_nothing(ledger: PostgresLedger, make_role: Any, sql: Any) -> None:
    """Every question is answered as its owner hears it; every change is refused, also one that a function would make."""
    name, url = make_role()
    for statement in grants(reader=name):
        sql(statement)
    call = make_call(5, tags=Tags(user_id="u_1", extra={"k": "v"}), price="{}")
    ledger.insert([call, submission("openai/1", "u_1")])
    ledger.reprice([(call, after := priced(call, 6))])
    with closing(open_ledger(url, create=False)) as reader:
        assert reader.spend(["k"], {"user_id": "u_1"}) == ledger.spend(["k"], {"user_id": "u_1"})
        assert list(reader.calls(as_priced=True)) == [call]
        assert (reader.call(call.call_id), reader.extent(), len(reader.versions(call.call_id))) == (after, (NOON, NOON), 1)
        assert reader.holdings(["u_1"]) == ledger.holdings(["u_1"])
        assert reader.submissions(["openai/1"]).keys() == {"openai/1"}
        assert dict(reader.about())["role"] == f"{name}, who may read them"
        for ask in (
            lambda: reader.insert([make_call()]),
            lambda: reader.insert([job_call("openai/1")]),
            lambda: reader.insert([Settlement(call_ids=(call.call_id,), tags=Tags(user_id="u_2"))]),
            lambda: reader.insert([submission("openai/2", "u")]),
            lambda: reader.insert([], Progress("s", 1)),
            lambda: reader.forget("s"),
            lambda: reader.reprice([(after, priced(call, 9))]),
            lambda: reader.erase(["u_1"], "x"),
            lambda: reader.expire(NOON + 1, 10),
            lambda: list(reader.rebuild()),
        ):
            refused(ask)
    assert list(ledger.calls()) == [after]


def test_roles_are_quoted(sql: Any, postgres_server: Any, ledger: PostgresLedger) -> None:
    """A name is only ever a name."""
    postgres_server.psql("""CREATE ROLE "a"";b" """)
    for statement in grants(writer='a";b', reader='a";b'):
        sql(statement)
    sql("""DROP OWNED BY "a"";b" """)
    postgres_server.psql("""DROP ROLE "a"";b" """)


# -- refused and lost -------------------------------------------------------------------------------------------------------------


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


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is given up after the seconds of the URL, by default five."""
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://u:pw@127.0.0.1:{silent.getsockname()[1]}/d"
        begin = time.monotonic()
        assert "cannot be reached" in message_of(f"{url}?connect_timeout=2")
        assert 1.5 < time.monotonic() - begin < 4
        begin = time.monotonic()
        assert "cannot be reached" in message_of(url)
        assert 4 < time.monotonic() - begin < 8


@pytest.mark.parametrize("setting", ["default_transaction_read_only = on"])
def test_a_role_that_is_read_only(ledger: PostgresLedger, make_role: Any, sql: Any, setting: str) -> None:
    """It reads, and is told why it cannot write, as on a standby; nothing is lost."""
    name, url = make_role()
    for statement in grants(writer=name, reader=name):
        sql(statement)
    sql(f'ALTER ROLE "{name}" SET {setting}')
    with closing(PostgresLedger(url)) as other:
        assert other.spend()[0].calls == 0
        assert dict(other.about())["role"].endswith("; the server is read-only")
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


def test_a_locked_ledger(ledger: PostgresLedger, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that waits too long for another one says so; reading goes on meanwhile."""
    monkeypatch.setattr(intake, "LOCK", schema.LOCK.replace("30s", "100ms"))
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
        with pytest.raises(LedgerError, match=r"has gone \(.*opened anew"):
            ledger.insert([call], Progress("s", 2))
    with closing(PostgresLedger(postgres_url)) as again:
        assert again.progress("s") == 1
        assert again.insert([call], Progress("s", 2)) == 1
        assert again.spend()[0].cost_femto == 3


def test_a_schema_that_was_dropped(ledger: PostgresLedger, postgres_url: str, sql: Any) -> None:
    """Under way: an error, and whoever opens the ledger next begins it anew."""
    ledger.insert([make_call()])
    sql("DROP SCHEMA voight CASCADE")
    with pytest.raises(LedgerError, match="is not as this version made it"):
        ledger.insert([make_call()])
    with closing(PostgresLedger(postgres_url)) as again:
        assert again.insert([make_call()]) == 1


# -- transactions -----------------------------------------------------------------------------------------------------------------

STATES = "SELECT DISTINCT state FROM pg_stat_activity WHERE application_name = 'voight'"


def test_no_transaction_stays_open(ledger: PostgresLedger, sql: Any) -> None:
    """Neither between batches, nor after an error, nor where somebody reads the first of many calls and no more."""
    ledger.insert([make_call() for _ in range(5)])
    assert sql(STATES) == [("idle",)]
    with pytest.raises(ValueError, match="kept"):
        ledger.insert([make_call(cost_status="unpriced")])
    reading = ledger.calls()
    next(reading)
    assert ("idle in transaction",) in sql(STATES)
    reading.close()  # type: ignore[attr-defined]
    ledger.spend(["day"])
    for _ in range(100):
        if sql(STATES) == [("idle",)]:
            break
        time.sleep(0.05)
    assert sql(STATES) == [("idle",)]


def test_an_export_is_one_moment(ledger: PostgresLedger, postgres_url: str) -> None:
    """What comes in while calls are read is not among them, and the ledger can be used for reading and writing meanwhile."""
    before = [make_call(at=NOON + number) for number in range(3_000)]
    ledger.insert(before)
    reading = ledger.calls()
    first = next(reading)
    with closing(PostgresLedger(postgres_url)) as other:
        other.insert([make_call(at=NOON + 3_000)])
    ledger.insert([make_call(at=NOON + 4_000)])
    assert ledger.spend()[0].calls == 3_002
    assert [first, *reading] == before


def test_a_pooler_may_change_the_session(ledger: PostgresLedger) -> None:
    """What a batch needs of its session it makes where it is missing."""
    assert ledger.insert([make_call()]) == 1
    ledger._db.execute("DISCARD ALL")  # pyright: ignore[reportPrivateUsage]
    assert ledger.insert([make_call()]) == 1
    assert ledger.spend(["day"])[0].calls == 2


def test_a_database_that_isolates_more(postgres_url: str, sql: Any) -> None:
    """Writers that begin together all get their calls in."""
    sql(f"ALTER DATABASE {urlsplit(postgres_url).path[1:]} SET default_transaction_isolation = 'serializable'")
    test_processes_that_open_an_empty_database_at_once(postgres_url)


def test_an_update_of_nothing_that_is_counted_writes_no_rollup(ledger: PostgresLedger, sql: Any) -> None:
    """The rows of the rollups stay where they are when only other columns change, and move when an owner does."""
    rows = "SELECT ctid, xmin::text FROM voight.days_of_users UNION ALL SELECT ctid, xmin::text FROM voight.days_of_models ORDER BY 1, 2"
    ledger.insert([make_call(tags=Tags(user_id=f"u_{number}")) for number in range(3)])
    before = sql(rows)
    sql("UPDATE voight.calls SET session_id = 'x', host = 'y'")
    assert sql(rows) == before
    sql("UPDATE voight.calls SET user_id = 'u_9' WHERE user_id = 'u_1'")
    assert sql(rows) != before
    assert {row.dimensions["user_id"] for row in ledger.spend(["user_id"])} == {"u_0", "u_2", "u_9"}


def test_what_is_done_by_hand_is_counted(ledger: PostgresLedger, sql: Any) -> None:
    """An administrator's own statements change the sums too: there is one place that every change passes."""
    ledger.insert([make_call(number, at=NOON + number * 10**11, tags=Tags(user_id=f"u_{number % 3}")) for number in range(30)])
    sql("DELETE FROM voight.calls WHERE user_id = 'u_1'")
    sql("UPDATE voight.calls SET cost = cost * 2, plan = 'pro' WHERE user_id = 'u_2'")
    kept: list[Call] = list(ledger.calls())
    for name in ("user_id", "plan"):
        sums: dict[str | None, int] = {}
        for call in kept:
            sums[getattr(call.tags, name)] = sums.get(getattr(call.tags, name), 0) + (call.cost_femto or 0)
        assert {row.dimensions[name]: row.cost_femto for row in ledger.spend([name])} == sums
    sql("DELETE FROM voight.calls")
    assert sql("SELECT COUNT(*) FROM voight.days_of_users") == sql("SELECT COUNT(*) FROM voight.hours_of_plans") == [(0,)]


def test_a_nul_becomes_a_sign_of_its_own(ledger: PostgresLedger) -> None:
    """PostgreSQL's texts have none: a call keeps its other letters, and is found by what it was told with."""
    call = make_call(model="a\0b", tags=Tags(user_id="u\0", extra={"k": "x\0\\u0000"}), raw_usage='{"x":"\\u0000"}', price="p\0")
    job = job_call("openai/1", tags=call.tags, raw_usage='"\\u0000\0"')
    ledger.insert([call, job])
    kept = ledger.call(call.call_id)
    assert kept is not None
    assert (kept.model, kept.tags.user_id, kept.tags.extra, kept.price) == ("a\ufffdb", "u\ufffd", {"k": "x\ufffd\\u0000"}, "p\ufffd")
    assert kept.raw_usage == '{"x":"\\u0000"}'
    assert {one.raw_usage for one in ledger.calls({"user_id": "u\0"}, limit=5)} == {'{"x":"\\u0000"}', '"\\u0000\ufffd"'}
    assert ledger.insert([Settlement(call_ids=("c\0",), tags=Tags(user_id="u\0", extra={"k": "\0"})), submission("openai/\0", "u\0")]) == 0
    assert ledger.reprice([(kept, priced(kept, 9, price="q\0", cost_reasons=("\0",)))]) == 1


def test_about(ledger: Ledger, postgres_url: str) -> None:
    """The engine and its version, where the calls are, as whom, and whether anybody on the way can read them."""
    about = dict(ledger.about())
    assert about["engine"].startswith("PostgreSQL 1")
    assert about["schema"].startswith("version 1, in the schema voight of 127.0.0.1:")
    assert about["role"] == "voight, who may bring calls in, change and delete them, read them"
    assert about["connection"] == "not encrypted"
    assert password_of(postgres_url) not in str(about)
