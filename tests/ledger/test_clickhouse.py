"""What is ClickHouse's own about its ledger: calls that come twice, steps that a crash has separated, patches, schemas, URLs and errors."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from contextlib import closing
from typing import Any

import msgspec
import pytest

pytest.importorskip("clickhouse_connect")
pytest.importorskip("chdb")

from voight_middleware.ledger import ForeignLedger, LedgerError, Progress, Window, open_ledger
from voight_middleware.ledger.clickhouse import ClickHouseLedger, prices, schema, server
from voight_middleware.ledger.clickhouse.changes import Change
from voight_middleware.ledger.clickhouse.dialect import bound, literal
from voight_middleware.ledger.rows import SELECTED
from voight_middleware.records.call import Call, LateAttribution, Record, Submission
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage

from ..support.depth import times
from ..support.factories import DAY, NOON, job_call, make_call, priced, submission, unread
from ..support.patching import Patch

pytestmark = pytest.mark.slow  # the engine in this process takes seconds to begin, and tenths of one for a test

MONTH = 31 * DAY
SECRET = "s3cr et/'pass"


@pytest.fixture
def opened(chdb_client: Any) -> Callable[..., ClickHouseLedger]:
    """Opens a ledger in the test's database, in the engine of this process."""

    def again(options: str = "", *, create: bool = True) -> ClickHouseLedger:
        return ClickHouseLedger(f"clickhouse:///{chdb_client.database}{options}", create=create, client=chdb_client)

    return again


@pytest.fixture(params=["patches", "columns"])
def ledger(request: pytest.FixtureRequest, chdb_connection: Any, chdb_ledgers: dict[str, str], patch: Patch) -> ClickHouseLedger:
    """An empty ledger, as engines make it that know patches, and as older ones do, which write columns anew."""
    if request.param == "columns":
        patch("_PATCHES_SINCE", (10_000, 0))
    return emptied(request.param, chdb_connection, chdb_ledgers)


@pytest.fixture
def plain(chdb_connection: Any, chdb_ledgers: dict[str, str]) -> ClickHouseLedger:
    """An empty ledger, where the way of changing calls does not matter."""
    return emptied("patches", chdb_connection, chdb_ledgers)


def emptied(way: str, client: Any, names: dict[str, str]) -> ClickHouseLedger:
    """The ledger that is kept for *way* of changing calls, without what the test before has left; its tables are made once."""
    client.database = "default"
    if way in names:
        sql = f"SELECT DISTINCT table FROM system.parts WHERE database = '{names[way]}' AND active AND table <> 'ledger'"
        for (table,) in client.query(sql).result_rows:
            client.command(f"TRUNCATE TABLE {names[way]}.{table}")
    else:
        names[way] = f"voight_{way}"
        client.command(f"CREATE DATABASE {names[way]}")
    client.database = names[way]
    ledger = ClickHouseLedger(f"clickhouse:///{names[way]}", client=client)
    assert ledger._db.patched == (way == "patches")
    return ledger


def add(ledger: ClickHouseLedger, *calls: Call, ahead: int = 0) -> None:
    """Add calls without looking whether they are there, as another process does at the same moment, whose clock is *ahead* of ours."""
    lines = [schema.insertable(schema.checked(call), schema.first_wins(schema.now() + ahead)) for call in calls]
    ledger._db.add("calls", schema.INSERTED, lines)


def count(ledger: ClickHouseLedger, table: str = "calls") -> int:
    """How many rows there are, with those that others have replaced."""
    return int(ledger._db.rows(f"SELECT COUNT(*) FROM {ledger._db.name}.{table}")[0][0])


# -- calls that come twice -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merged", [False, True], ids=["two rows", "merged"])
def test_of_two_rows_the_first_counts(ledger: ClickHouseLedger, merged: bool) -> None:
    """A call that two processes have added at once counts once, in every question and before and after a merge, with its late changes."""
    call = make_call(5, attribution="none")
    ledger.insert([call])
    ledger.insert([LateAttribution(call_ids=(call.call_id,), tags=Tags(user_id="u"))])
    after = priced(msgspec.structs.replace(call, tags=Tags(user_id="u"), attribution="settled"), 6)
    assert ledger.reprice([(call, after)]) == 1
    add(ledger, call, make_call(7, at=NOON + 1, call_id=call.call_id), ahead=1_000_000)
    if merged:
        ledger._db.run(f"OPTIMIZE TABLE {ledger._db.name}.calls FINAL")
        assert count(ledger) == 1
    assert list(ledger.calls()) == [after] == [ledger.call(call.call_id)]
    assert [(row.calls, row.cost_femto) for row in ledger.spend(["user_id"])] == [(1, 6)]
    assert [(row.calls, row.cost_femto) for row in ledger.spend(original_prices=True)] == [(1, 5)]
    assert ledger.personal_data(["u"]).calls == 1
    assert ledger.expired(NOON + DAY).calls == 1


def test_the_same_batch_from_another_host(opened: Callable[..., ClickHouseLedger]) -> None:
    """Whatever the hosts' clocks say, a batch that is told again adds no row."""
    ledger, other = opened(), opened()
    calls = [make_call(number, at=NOON + number * DAY) for number in range(50)]
    assert ledger.insert(calls) == 50
    assert other.insert([*calls, *calls]) == 0
    assert other.insert([*reversed(calls), make_call(1), *calls]) == 1
    assert count(ledger) == 51


def test_a_job_that_two_have_told_of_in_different_months(ledger: ClickHouseLedger) -> None:
    """One row stays, as a question about one month does not see the other; it is the one with usage."""
    told = job_call("openai/r1", cost=8, raw_usage="{}", at=NOON + 2 * MONTH)
    add(ledger, unread("openai/r1", at=NOON))
    begun = count(ledger)
    ledger._writer.add({told.call_id: schema.checked(told)}, {told.call_id: told})
    ledger._writer._drop_doubles([told.call_id])
    assert (begun, count(ledger)) == (1, 1)


def test_usage_counts_before_none(ledger: ClickHouseLedger) -> None:
    """Of an open job and an answer that were added at the same moment, the answer is the call, whoever was first."""
    begun, told = unread("openai/r1"), job_call("openai/r1", cost=8, raw_usage="{}")
    for first, second in ((begun, told), (told, begun)):
        for call in (first, second):
            ledger._writer.add({call.call_id: schema.checked(call)}, {call.call_id: call})
        assert [call.cost_femto for call in ledger.calls()] == [8]


# -- crashes between two steps ---------------------------------------------------------------------------------------------------------


class Crash(Exception):
    """In the place of a kill -9."""


def crashing(ledger: ClickHouseLedger, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let *ledger* write *after* times, and no more."""
    left = itertools.count(after, -1)
    add, run = ledger._db.add, ledger._db.run

    def stop_or(done: Callable[..., None]) -> Callable[..., None]:
        def written(*args: Any, **kwargs: Any) -> None:
            if next(left) <= 0:
                raise Crash
            done(*args, **kwargs)

        return written

    monkeypatch.setattr(ledger._db, "add", stop_or(add))
    monkeypatch.setattr(ledger._db, "run", stop_or(run))


@pytest.mark.parametrize("after", range(8))
def test_a_batch_that_was_broken_off(opened: Callable[..., ClickHouseLedger], monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """After a crash behind any step, the batch told again ends as it would have at once, and nothing is there twice meanwhile."""
    ledger = opened()
    earlier, job = make_call(1, attribution="none"), unread("openai/r1")
    answer = job_call("openai/b1/a", cost=16, raw_usage="{}")
    ledger.insert([earlier, job, answer])
    new = make_call(2, attribution="none", tags=Tags(extra={"feature": "x"}))
    told = job_call("openai/r1", cost=8, raw_usage="{}")
    batch: list[Record] = [
        *(new, new, told, submission("openai/b1", "batch-user")),
        *(LateAttribution(call_ids=(one.call_id,), tags=Tags(user_id=user)) for one, user in ((earlier, "a"), (new, "b"))),
    ]
    crashing(ledger, monkeypatch, after)
    with pytest.raises(Crash):
        ledger.insert(batch, Progress("s", 9))
    again = opened()
    assert again.progress("s") == 0
    assert again.spend()[0].calls in (3, 4)
    again.insert(batch, Progress("s", 9))
    for _ in range(2):
        assert again.progress("s") == 9
        users = {call.call_id: (call.tags.user_id, call.cost_femto) for call in again.calls()}
        assert users == {
            earlier.call_id: ("a", 1),
            new.call_id: ("b", 2),
            job.call_id: (None, 8),
            answer.call_id: ("batch-user", 16),
        }
        assert again.insert(batch, Progress("s", 9)) == 0


@pytest.mark.parametrize("after", [0, 1])
def test_a_repricing_that_was_broken_off(opened: Callable[..., ClickHouseLedger], monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Between the former price and the new one: nobody sees a version that is none, and the next run makes one and not two."""
    ledger = opened()
    first, second = make_call(5), make_call(6)
    ledger.insert([first, second])
    assert ledger.reprice([(first, priced(first, 7))]) == 1
    crashing(ledger, monkeypatch, after)
    with pytest.raises(Crash):
        ledger.reprice([(priced(first, 7), priced(first, 9)), (second, priced(second, 10))])
    again = opened()
    assert [price.cost_femto for price in again.price_history(first.call_id)] == [5]
    assert again.price_history(second.call_id) == []
    assert again.spend()[0].cost_femto == 13
    assert again.spend(original_prices=True)[0].cost_femto == 11
    assert again.reprice([(priced(first, 7), priced(first, 9)), (second, priced(second, 10))]) == 2
    assert [(price.version, price.cost_femto) for price in again.price_history(first.call_id)] == [(1, 5), (2, 7)]
    assert [(price.version, price.cost_femto) for price in again.price_history(second.call_id)] == [(1, 6)]


def test_there_and_back_again_are_two_versions(ledger: ClickHouseLedger) -> None:
    """A price that a call had before, and has again, is no broken repricing."""
    call = make_call(5)
    ledger.insert([call])
    for cost in (6, 5, 6, 5):
        (now,) = ledger.calls()
        assert ledger.reprice([(now, priced(now, cost))]) == 1
    assert [price.cost_femto for price in ledger.price_history(call.call_id)] == [5, 6, 5, 6]


# -- changes ---------------------------------------------------------------------------------------------------------------------------


def test_an_owner_and_a_price_at_once(ledger: ClickHouseLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that comes while a call is being repriced stays, and so does the price."""
    call = make_call(5, attribution="none")
    ledger.insert([call])
    changed = ledger._db.change

    def late(changes: Any) -> None:
        monkeypatch.setattr(ledger._db, "change", changed)
        ledger.insert([LateAttribution(call_ids=(call.call_id,), tags=Tags(user_id="u"))])
        changed(changes)

    monkeypatch.setattr(ledger._db, "change", late)
    assert ledger.reprice([(call, priced(call, 9))]) == 1
    (kept,) = ledger.calls()
    assert (kept.tags.user_id, kept.cost_femto) == ("u", 9)


@pytest.mark.parametrize("many", [1, 501, *(pytest.param(many, marks=pytest.mark.deep) for many in (499, 500, 1_203))])
def test_changes_of_many_calls(opened: Callable[..., ClickHouseLedger], many: int) -> None:
    """However many pieces it takes, each call gets its own owner and price."""
    ledger = opened()
    calls = [make_call(number, at=NOON + number, attribution="none") for number in range(many)]
    ledger.insert(calls)
    owners = {call.call_id: f"o'{number} \\ ?" for number, call in enumerate(calls)}
    ledger.insert([LateAttribution(call_ids=(call_id,), tags=Tags(user_id=user, extra={"k": user})) for call_id, user in owners.items()])
    assert ledger.reprice([(call, priced(call, (call.cost_femto or 0) + 10**15 + 1)) for call in calls]) == many
    kept = list(ledger.calls())
    assert {call.call_id: call.tags.user_id for call in kept} == {call.call_id: call.tags.extra["k"] for call in kept} == owners
    assert [call.cost_femto for call in kept] == [number + 10**15 + 1 for number in range(many)]


def test_an_erasure_leaves_nothing_in_the_tables(ledger: ClickHouseLedger) -> None:
    """Neither below the patches that late owners have left, nor in the text of changes that the engine keeps."""
    alice = "alice-5b0c"
    names: dict[str, Any] = {"user_id": alice, "plan": alice, "extra": {"k": f"of {alice}", "l": alice}, "session_id": alice}
    calls = [make_call(1, tags=Tags(**names), attribution="tag", response_id="resp-5b0c"), make_call(2, attribution="none")]
    calls += [make_call(3, tags=Tags(user_id=alice), attribution="request"), make_call(4, tags=Tags(tenant_id=alice), attribution="tag")]
    ledger.insert([*calls, submission("openai/b1", alice)])
    ledger.insert([LateAttribution(call_ids=(calls[1].call_id,), tags=Tags(user_id=alice))])
    ledger.insert([LateAttribution(call_ids=(calls[2].call_id,), tags=Tags(user_id="bob"))])
    found = ledger.personal_data([alice])
    assert (found.calls, found.elsewhere, found.submissions) == (2, 1, 1)
    ledger.erase([alice], "erased:1")
    assert ledger.purge([alice]) == []
    mutations = ledger._db.rows("SELECT command FROM system.mutations WHERE database = ?", [ledger.server.database])
    assert mutations
    late = 2 if not ledger._db.patched else 0  # the owners that came late, which such an engine forgets after the next change
    assert sum(alice in command for (command,) in mutations) <= late
    rows = ledger._db.rows(f"SELECT {schema.SELECT} FROM {ledger._db.name}.calls SETTINGS apply_patch_parts = 0")
    assert len(rows) == 4
    assert not any(alice in str(value) for row in rows for value in row), "the rows without their patches"
    assert alice not in str(ledger._db.rows(f"SELECT * FROM {ledger._db.name}.jobs"))


# -- sums, times and texts -------------------------------------------------------------------------------------------------------------


def test_sums_beyond_64_bits(plain: ClickHouseLedger) -> None:
    """Counts and costs add up beyond what 64 bits hold, where the engine itself would begin again at 0."""
    most = 2**62
    rows = [list(schema.checked(make_call(2**63 - 1, usage=Usage(output=1)))) for _ in range(8)]
    for row in rows:
        row[SELECTED.index("output")] = most
    plain._db.add("calls", schema.INSERTED, [schema.insertable(tuple(row), 1) for row in rows])
    (total,) = plain.spend()
    assert (total.output_tokens, total.cost_femto) == (8 * most, 8 * (2**63 - 1))


def test_what_no_column_holds_is_refused(plain: ClickHouseLedger) -> None:
    """With nothing of its batch kept: the engine itself would cut it off."""
    for call in (
        make_call(5, at=2**63),
        make_call(5, duration=-(2**63) - 1),
        make_call(5, cost_status="unpriced"),
        make_call(None, cost_status="priced"),
        make_call(5, model="\udc80"),
        make_call(5, tags=Tags(extra={"k": "\udc80"})),
    ):
        with pytest.raises(ValueError, match=r"cannot be stored|surrogate|encode"):
            plain.insert([make_call(1), call], Progress("s", 1))
        assert (plain.spend()[0].calls, plain.progress("s"), count(plain, "extra_keys")) == (0, 0, 0)


def test_literals(chdb_connection: Any) -> None:
    """Every text comes back as it was, from anywhere in a statement."""
    for text in ("'", "\\", "\\'", "?", "\0", "a\nb\tc\r", "{x:String}", "%s", "--", "/*", "\u2028", "🦔", "\\N", "NULL"):
        texts = [text, f"{text}{text}", f"a{text}b"]
        sql = bound("SELECT ?, ?, ?", [texts, text, None])
        assert chdb_connection.query(sql).result_rows == [(texts, text, None)]
        assert chdb_connection.query(f"SELECT {literal(text)} = {literal(text)}").result_rows == [(1,)]


def test_calls_over_many_months(plain: ClickHouseLedger) -> None:
    """Many months in one batch, and moments before 1970 and far away, are read in order."""
    ats = [*range(0, times(50, 200) * MONTH, MONTH), -1, -DAY, -(10**15), 4 * 10**15, 10**16]
    assert plain.insert([make_call(1, at=at) for at in ats]) == len(ats)
    assert [call.occurred_at for call in plain.calls()] == sorted(ats)
    assert [call.occurred_at for call in plain.calls(window=Window(-1, MONTH + 1))] == [-1, 0, MONTH]
    assert plain.time_range() == (min(ats), max(ats))


@pytest.mark.parametrize("piece", [1, 7])
def test_reading_in_pieces(plain: ClickHouseLedger, patch: Patch, piece: int) -> None:
    """However large the pieces are: every call once and in order, many in one hour, at one moment, and few in many."""
    patch("_PIECE", piece, within="clickhouse.store")
    ats = [NOON + hour * 3_600_000_000 + second for hour in (0, 1, 5, 900) for second in (0, 0, 0, 0, 1, 2, 3, 3, 3_599_999_999)]
    plain.insert([make_call(1, at=at, model="mn"[number % 2]) for number, at in enumerate(ats)])
    whole = [(call.occurred_at, call.call_id) for call in plain.calls()]
    assert whole == sorted(whole)
    assert [at for at, _ in whole] == sorted(ats)
    assert len(list(plain.calls({"model": "m"}))) == len(ats) / 2
    assert [(call.occurred_at, call.call_id) for call in plain.calls(limit=8, after=whole[3])] == whole[4:12]


# -- retention by the server -----------------------------------------------------------------------------------------------------------


def test_the_server_deletes_what_is_older(opened: Callable[..., ClickHouseLedger]) -> None:
    """After the days that the URL says, which may change, and for which a reader does nothing."""
    now = schema.now()
    ledger = opened("?ttl_days=30")
    kept = [make_call(1, at=now - days * DAY) for days in (1, 29)]
    ledger.insert([*kept, make_call(1, at=now - 31 * DAY), make_call(1, at=4_300_000_000_000_000)])
    ledger._db.run(f"OPTIMIZE TABLE {ledger._db.name}.calls FINAL")
    assert [call.occurred_at for call in ledger.calls()] == [*sorted(call.occurred_at for call in kept), 4_300_000_000_000_000]
    assert ("retention", "calls are deleted after 30 days") in ledger.info()
    assert ("retention", "calls are deleted after 30 days") in opened("?ttl_days=7", create=False).info()
    assert ("retention", "calls are deleted after 7 days") in opened("?ttl_days=7").info()
    assert ("retention", "calls are deleted after 7 days") in opened().info()
    assert "retention" not in dict(opened("?ttl_days=0").info())


# -- schemas and servers ---------------------------------------------------------------------------------------------------------------


def test_reports_do_not_make_a_ledger(opened: Callable[..., ClickHouseLedger]) -> None:
    """What is not there is an error, and stays so."""
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"there is no ledger at .* yet"):
            opened(create=False)
    opened()
    assert opened(create=False).spend()[0].calls == 0


def test_a_database_of_another_application(opened: Callable[..., ClickHouseLedger], chdb_client: Any) -> None:
    """Is left alone where it has a table of calls of its own."""
    chdb_client.command("CREATE TABLE calls (x Int64) ENGINE = MergeTree ORDER BY x")
    with pytest.raises(ForeignLedger, match="another application"):
        opened()
    assert chdb_client.query("SHOW TABLES").result_rows == [("calls",)]


def test_a_creation_that_was_broken_off(opened: Callable[..., ClickHouseLedger], chdb_client: Any) -> None:
    """Is finished by whoever comes next, and is no ledger for a report until then."""
    opened().insert([make_call(3)])
    chdb_client.command("TRUNCATE TABLE ledger")
    chdb_client.command("DROP TABLE jobs SYNC")
    with pytest.raises(LedgerError, match="no ledger"):
        opened(create=False)
    assert opened().spend()[0].cost_femto == 3
    assert opened(create=False).jobs() == []


def test_a_newer_ledger_is_refused(opened: Callable[..., ClickHouseLedger], chdb_client: Any) -> None:
    """With what to do."""
    opened()
    chdb_client.command("INSERT INTO ledger VALUES (99, 1)")
    with pytest.raises(LedgerError, match=r"newer version \(schema 99, this one knows 2\): upgrade"):
        opened()


def test_an_older_ledger_is_upgraded(opened: Callable[..., ClickHouseLedger], patch: Patch) -> None:
    """Step by step, again where another process does the same, and its calls stay."""
    opened().insert([make_call(3)])
    added = "ALTER TABLE {database}.jobs {cluster} ADD COLUMN IF NOT EXISTS note String"
    patch("UPGRADES", {2: [added], 3: [added.replace("note", "other")]}, within="clickhouse.schema")
    patch("VERSION", 4, within="clickhouse.schema")
    ledger = opened()
    assert (ledger.schema_version, opened(create=False).schema_version) == (4, 4)
    assert ledger.spend()[0].cost_femto == 3
    assert ledger._db.rows(f"SELECT note, other FROM {ledger._db.name}.jobs") == []


def test_the_statements_for_a_cluster() -> None:
    """Tables are made on all servers and replicated; nothing else differs, and changes go from one replica to the others by themselves."""
    for name in schema.TABLES:
        alone = schema.create_table(name, "`voight`", "", patches=False)
        everywhere = schema.create_table(name, "`voight`", server.read_url("clickhouse://h/voight?cluster=main").on_cluster, patches=False)
        assert f".{name} ON CLUSTER `main` (" in everywhere
        assert everywhere.replace("ON CLUSTER `main`", "").replace("Replicated", "") == alone


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("clickhouse://h", {"host": "h", "port": None, "user": None, "password": "", "database": "voight", "secure": False}),
        ("clickhouse://u:p%40ss%2F@h:9/db", {"user": "u", "password": "p@ss/", "port": 9, "database": "db"}),
        ("clickhouse://u@h:8443", {"password": "from-environ", "secure": True, "verify": True}),
        ("clickhouse://u:@h", {"password": ""}),
        ("clickhouse://h?secure=1&verify=0&ca_cert=/ca.pem", {"secure": True, "verify": False, "ca_cert": "/ca.pem"}),
        ("clickhouse://h:8443?secure=0&ttl_days=400&cluster=main", {"secure": False, "ttl_days": 400, "cluster": "main"}),
        ("clickhouse://[::1]:8123/x", {"host": "::1", "port": 8123}),
    ],
    ids=["host alone", "encoded password", "password of the environment", "empty password", "certificate", "options", "IPv6"],
)
def test_urls(url: str, expected: dict[str, Any]) -> None:
    """What they say, and what they leave to the environment."""
    environ = {"CLICKHOUSE_PASSWORD": "from-environ"} if "@" in url else {}
    found = server.read_url(url, environ)
    assert {name: getattr(found, name) for name in expected} == expected
    assert "p@ss" not in found.name


@pytest.mark.parametrize(
    "url",
    [
        *(
            "clickhouse://u:geheim@h/a`b",
            "clickhouse://u:geheim@h/a b",
            "clickhouse://u:geheim@h?cluster=a`",
            "clickhouse://u:geheim@h?x=1",
        ),
        *("clickhouse://u:geheim@h:x/", "clickhouse://u:geheim@h?ttl_days=-1", "clickhouse://u:geheim@h?secure=maybe"),
    ],
)
def test_urls_that_cannot_be_used(url: str) -> None:
    """Are refused, without their password."""
    with pytest.raises(LedgerError, match="ledger") as error:
        open_ledger(url)
    assert "geheim" not in str(error.value)


def test_errors_say_what_to_do(clickhouse_bridge: Any, clickhouse_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong password, a user that may only read and a server that is gone: one line each, no password, and the driver logs nothing."""
    name = clickhouse_url.rpartition("/")[2]

    def fails(url: str, ask: Callable[[Any], Any] = lambda _: None, *, create: bool = True) -> str:
        with pytest.raises(LedgerError) as error, closing(open_ledger(url, create=create)) as ledger:
            ask(ledger)
        text = str(error.value)
        assert "\n" not in text
        assert not any(word in text for word in (SECRET, "s3cr", "stack", "url:", "DB::"))
        return text

    with caplog.at_level(logging.WARNING):
        assert "check the URL of the ledger, or CLICKHOUSE_PASSWORD" in fails(clickhouse_bridge.url(name, password=SECRET))
        assert "may only read" in fails(clickhouse_bridge.url(name, "reader"))
        assert "there is no ledger" in fails(clickhouse_bridge.url(name), create=False)
        assert "there is no ledger" in fails(clickhouse_bridge.url("nowhere"), create=False)
        open_ledger(clickhouse_url).close()
        reader = clickhouse_bridge.url(name, "reader")
        assert "may only read" in fails(reader, lambda ledger: ledger.insert([make_call()], Progress("s", 1)))
        assert "may only read" in fails(reader, lambda ledger: ledger.insert([Submission(job="j", submitted_at=1)]))
        with closing(open_ledger(reader, create=False)) as ledger:
            assert (ledger.spend()[0].calls, list(ledger.calls()), ledger.personal_data(["u"]).calls) == (0, [], 0)
            assert "may only read" in dict(ledger.info())["user"]
        assert "cluster does not exist" in fails(f"{clickhouse_bridge.url('elsewhere')}?cluster=main")
        assert "does not respond" in fails(f"clickhouse://u:{SECRET.replace('/', '%2F').replace(' ', '%20')}@127.0.0.1:1/x")
    assert [record for record in caplog.records if record.name.startswith("clickhouse_connect")] == []


def test_changes_are_by_column() -> None:
    """No change names a column that it does not mean."""
    assert Change({"cost_femto": "1", "plan": "'p'"}, "1").sql == "cost = 1, plan = 'p' WHERE 1"
    assert prices._STATE.count("cost") == 4
