"""What a PostgreSQL ledger is on its server: made, upgraded, and changed in transactions. The contract has what it answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from voight_middleware.ledger import ForeignLedger, Ledger, LedgerError, open_ledger
from voight_middleware.ledger.rollups import PLANS
from voight_middleware.records.call import Call, LateAttribution
from voight_middleware.records.tags import Tags

from ..support.depth import times
from ..support.factories import NOON, job_call, make_call, priced, submission
from ..support.patching import Patch
from ..support.waiting import wait_until
from .on_postgres import password_of

psycopg = pytest.importorskip("psycopg")
from voight_middleware.ledger.postgres import PostgresLedger, schema, triggers  # noqa: E402 - they need psycopg
from voight_middleware.ledger.postgres.roles import grants  # noqa: E402


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[PostgresLedger]:
    """An empty ledger, made for this test."""
    with closing(PostgresLedger(postgres_url)) as ledger:
        yield ledger


# -- made and upgraded ------------------------------------------------------------------------------------------------------------


OPEN_AND_INSERT = """
import sys
from voight_middleware.records.call import Call
from voight_middleware.ledger import open_ledger, postgres

url, first, calls = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.read()
ledger = open_ledger(url)
for batch in range(10):  # each call is told by two processes
    numbers = [n % calls for n in range(first * 100 + batch * 20, first * 100 + batch * 20 + 20)]
    told = {"provider": "openai", "endpoint": "chat", "cost_femto": 1, "cost_status": "priced"}
    ledger.insert([Call(call_id=f"c{n}", occurred_at=n * 10**10, **told) for n in numbers])
ledger.close()
"""


def open_at_once(postgres_url: str) -> None:
    """Processes make one schema at the same moment, then tell the same calls twice: each is kept and counted once."""
    processes = times(4, 8)
    calls = processes * 100
    started = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_AND_INSERT, postgres_url, str(number), str(calls)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for number in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(100) for process in started] == [0] * processes
    for process in started:
        assert process.stdout is not None
        process.stdout.close()
    with closing(open_ledger(postgres_url, create=False)) as ledger:
        assert (ledger.spend()[0].calls, ledger.spend()[0].cost_femto) == (calls, calls)
        assert len(list(ledger.calls())) == calls
        before = ledger.spend(["day"])
        list(ledger.rebuild())
        assert ledger.spend(["day"]) == before


def test_processes_that_open_an_empty_database_at_once(postgres_url: str) -> None:
    """They make one schema, and keep and count each call once."""
    open_at_once(postgres_url)


ADDED = ("ALTER TABLE voight.calls ADD COLUMN added text", "CREATE TABLE voight.more (x text)")


def test_an_older_ledger_is_upgraded(postgres_url: str, sql: Any, patch: Patch) -> None:
    """By whoever opens it first with a newer version, once; the calls stay, and the older version says that it is too old now."""
    with closing(PostgresLedger(postgres_url)) as ledger:
        ledger.insert([make_call(7)])
    older = schema.MIGRATIONS
    patch("MIGRATIONS", (*older, ADDED))
    for create in (False, True):
        with closing(PostgresLedger(postgres_url, create=create)) as ledger:
            assert ledger.schema_version == len(older) + 1
            assert ledger.spend()[0].cost_femto == 7
    assert sql("SELECT version FROM voight.schema_version") == [(len(older) + 1,)]
    patch("MIGRATIONS", older)
    with pytest.raises(LedgerError, match=r"newer version.*pip install -U"):
        PostgresLedger(postgres_url)


def test_a_ledger_of_version_1_gets_the_rollups_of_version_2(postgres_url: str, sql: Any) -> None:
    """It had no sums by user and model, and none by status; its calls are counted in both, and so is every later change."""
    question = ["hour", "cost_status"], ["user_id", "model", "cost_status"]
    with closing(PostgresLedger(postgres_url)) as ledger:
        ledger.insert([make_call(number, model="m", tags=Tags(user_id=f"u_{number % 2}")) for number in range(5)])
        expected = [ledger.spend(by) for by in question]
    for statement in (
        "DROP TABLE voight.months_of_user_models",
        "DROP TABLE voight.hours_of_plans",
        triggers.table(replace(PLANS, names=PLANS.names[:-1])),
        *triggers.functions(),
        "UPDATE voight.schema_version SET version = 1",
    ):
        sql(statement)
    with closing(PostgresLedger(postgres_url)) as ledger:
        assert ledger.schema_version == 2
        assert [ledger.spend(by) for by in question] == expected
        ledger.insert([make_call(9, tags=Tags(user_id="u_9"))])
        assert [sum(row.calls for row in ledger.spend(by)) for by in question] == [6, 6]


def test_a_migration_that_fails_changes_nothing(postgres_url: str, sql: Any, patch: Patch) -> None:
    """It is one transaction: an upgrade that breaks off leaves the older ledger, and a ledger that was not made leaves no schema."""
    older = schema.MIGRATIONS
    patch("MIGRATIONS", (*older, (*ADDED, "SELECT 1 / 0")))
    with pytest.raises(LedgerError, match="failed: division by zero"):
        PostgresLedger(postgres_url)
    assert sql("SELECT COUNT(*) FROM pg_namespace WHERE nspname = 'voight'") == [(0,)]
    patch("MIGRATIONS", older)
    PostgresLedger(postgres_url).close()
    patch("MIGRATIONS", (*older, (*ADDED, "SELECT 1 / 0")))
    with pytest.raises(LedgerError, match="division"):
        PostgresLedger(postgres_url)
    assert sql("SELECT version, to_regclass('voight.more') FROM voight.schema_version") == [(len(older), None)]


def test_who_must_upgrade(postgres_url: str, make_role: Any, ledger: PostgresLedger, sql: Any, patch: Patch) -> None:
    """A role that does not own the ledger is told who does, and what that one must run."""
    name, url = make_role()
    for statement in grants(writer=name):
        sql(statement)
    patch("MIGRATIONS", (*schema.MIGRATIONS, ADDED))
    with pytest.raises(
        LedgerError, match=rf"older version \(schema 2, this one needs 3\), and the role {name}.*`voight migrate`.* once as voight"
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


# -- transactions -----------------------------------------------------------------------------------------------------------------

STATES = "SELECT DISTINCT state FROM pg_stat_activity WHERE application_name = 'voight'"


def test_no_transaction_stays_open(ledger: PostgresLedger, sql: Any) -> None:
    """Neither between batches, nor after an error, nor where somebody reads the first of many calls and no more."""
    ledger.insert([make_call() for _ in range(5)])
    assert sql(STATES) == [("idle",)]
    with pytest.raises(ValueError, match="stored"):
        ledger.insert([make_call(cost_status="unpriced")])
    reading = ledger.calls()
    next(reading)
    assert ("idle in transaction",) in sql(STATES)
    reading.close()  # type: ignore[attr-defined]
    ledger.spend(["day"])
    wait_until(lambda: sql(STATES) == [("idle",)])


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
    open_at_once(postgres_url)


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
    assert (
        ledger.insert([LateAttribution(call_ids=("c\0",), tags=Tags(user_id="u\0", extra={"k": "\0"})), submission("openai/\0", "u\0")])
        == 0
    )
    assert ledger.reprice([(kept, priced(kept, 9, price="q\0", cost_reasons=("\0",)))]) == 1


def test_about(ledger: Ledger, postgres_url: str) -> None:
    """The engine and its version, where the calls are, as whom, and whether anybody on the way can read them."""
    about = dict(ledger.info())
    assert about["engine"].startswith("PostgreSQL 1")
    assert about["schema"].startswith(f"version {len(schema.MIGRATIONS)}, in the schema voight of 127.0.0.1:")
    assert about["role"] == "voight, who may insert calls, change and delete them, read them"
    assert about["connection"] == "not encrypted"
    assert password_of(postgres_url) not in str(about)
