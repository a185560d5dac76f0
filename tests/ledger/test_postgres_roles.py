"""Who may do what in a PostgreSQL ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from voight_middleware.ledger import LedgerError, Progress, open_ledger
from voight_middleware.records.call import LateAttribution
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage

from ..support.factories import NOON, job_call, make_call, priced, submission, unread

psycopg = pytest.importorskip("psycopg")
from voight_middleware.ledger.postgres import PostgresLedger  # noqa: E402 - they need psycopg
from voight_middleware.ledger.postgres.roles import grants  # noqa: E402


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[PostgresLedger]:
    """An empty ledger, made for this test."""
    with closing(PostgresLedger(postgres_url)) as ledger:
        yield ledger


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
        assert writer.insert([LateAttribution(call_ids=(plain.call_id,), tags=Tags(user_id="u_1"))]) == 0
        assert writer.insert([submission("openai/batch_1", "u_2"), submission("openai/resp_1", None, attribution="none")]) == 0
        assert writer.insert([LateAttribution(call_ids=("openai/resp_1",), tags=Tags(user_id="u_3"))]) == 0
        assert writer.submissions(["openai/batch_1"])["openai/batch_1"].tags.user_id == "u_2"
        assert writer.progress("s") == 5
        writer.clear_progress("s")
        assert writer.progress("s") == 0
        assert dict(writer.info())["role"] == f"{name}, who may insert calls"
        for ask in (
            writer.spend,
            lambda: list(writer.calls()),
            lambda: writer.call(plain.call_id),
            writer.time_range,
            lambda: writer.price_history(plain.call_id),
            lambda: writer.personal_data(["u_1"]),
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
        assert list(reader.calls(original_prices=True)) == [call]
        assert (reader.call(call.call_id), reader.time_range(), len(reader.price_history(call.call_id))) == (after, (NOON, NOON), 1)
        assert reader.personal_data(["u_1"]) == ledger.personal_data(["u_1"])
        assert reader.submissions(["openai/1"]).keys() == {"openai/1"}
        assert dict(reader.info())["role"] == f"{name}, who may read them"
        for ask in (
            lambda: reader.insert([make_call()]),
            lambda: reader.insert([job_call("openai/1")]),
            lambda: reader.insert([LateAttribution(call_ids=(call.call_id,), tags=Tags(user_id="u_2"))]),
            lambda: reader.insert([submission("openai/2", "u")]),
            lambda: reader.insert([], Progress("s", 1)),
            lambda: reader.clear_progress("s"),
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
