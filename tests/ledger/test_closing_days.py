"""When days of a ClickHouse ledger are closed, and what becomes of their sums: people who are erased, retention, older ledgers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("clickhouse_connect")
pytest.importorskip("chdb")

from voight_middleware.ledger import LedgerError
from voight_middleware.ledger.clickhouse import ClickHouseLedger, closed_days, schema
from voight_middleware.ledger.rows import encode
from voight_middleware.records.tags import Tags

from ..support.factories import DAY, NOON, make_call
from ..support.patching import Patch
from .test_clickhouse import emptied
from .test_closed_days import check, close, read_from_sums, spoil

pytestmark = pytest.mark.slow


@pytest.fixture
def no_wait(patch: Patch) -> None:
    """Days can be closed as soon as they were marked."""
    patch("QUIET", 0, within="clickhouse.closed_days")
    patch("_FRESH", 0, within="clickhouse.closed_days")


@pytest.fixture
def ledger(chdb_connection: Any, chdb_ledgers: dict[str, str], no_wait: None) -> ClickHouseLedger:
    """An empty ledger."""
    return emptied("patches", chdb_connection, chdb_ledgers)


@pytest.fixture
def opened(ledger: ClickHouseLedger) -> Callable[..., ClickHouseLedger]:
    """Opens that ledger again."""

    def again(options: str = "", *, create: bool = True) -> ClickHouseLedger:
        return ClickHouseLedger(f"clickhouse:///{ledger.server.database}{options}", create=create, client=ledger._client)

    return again


# -- when days are closed --------------------------------------------------------------------------------------------------------------


def test_a_day_is_closed_an_hour_after_its_last_change(ledger: ClickHouseLedger, patch: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an ingesting process, one a minute, and again after another hour; an insert does not fail where it cannot."""
    patch("QUIET", 3600, within="clickhouse.closed_days")
    ledger.insert([make_call(1), make_call(1, at=NOON + DAY)])
    assert ledger._db.days.closable() == []
    aged(ledger, 3_590)
    assert ledger._db.days.closable() == []
    aged(ledger, 11)
    assert len(ledger._db.days.closable()) == 2
    seconds = [10**6]
    monkeypatch.setattr(closed_days.time, "monotonic", lambda: seconds[0])
    closed = []
    for _ in range(12):
        seconds[0] += 61
        ledger.insert([])
        closed.append(len(ledger._db.days.closed()))
    assert closed[-1] == 2
    assert closed == sorted(closed)
    ledger.insert([make_call(1)])
    assert len(ledger._db.days.closed()) == 1
    aged(ledger, 3_700)
    ledger._db.run(f"RENAME TABLE {ledger._db.name}.days_of_models TO {ledger._db.name}.elsewhere")
    try:
        for _ in range(4):
            seconds[0] += 3601
            assert ledger.insert([]) == 0
    finally:
        ledger._db.run(f"RENAME TABLE {ledger._db.name}.elsewhere TO {ledger._db.name}.days_of_models")
    check(ledger)


def aged(ledger: ClickHouseLedger, seconds: int) -> None:
    """Make all marks older that open a day."""
    table = f"{ledger._db.name}.closed_days"
    rows = ledger._db.rows(f"SELECT day, maxIf(version, closed) AS closing, maxIf(version, NOT closed) AS mark FROM {table} GROUP BY day")
    ledger._db.run(f"TRUNCATE TABLE {table}")
    kept = [(day, 1, closing) if closing > mark else (day, 0, mark - seconds * 4_096_000_000) for day, closing, mark in rows]
    ledger._db.add("closed_days", ("day", "closed", "version"), [encode(row) for row in kept])


def test_a_mark_holds_for_ten_minutes(ledger: ClickHouseLedger, patch: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not over a sleep of the machine, which one of its clocks does not count."""
    patch("_FRESH", 600, within="clickhouse.closed_days")
    clock = {"monotonic": 1e6, "time": 1e9}
    monkeypatch.setattr(closed_days.time, "monotonic", lambda: clock["monotonic"])
    monkeypatch.setattr(closed_days.time, "time", lambda: clock["time"])
    marked: list[str] = []
    run = ledger._db.run
    monkeypatch.setattr(ledger._db, "run", lambda sql, **options: (marked.append(sql), run(sql, **options)))
    for steady, wall, marks in ((0, 0, 1), (590, 590, 1), (20, 20, 2), (5, 3600, 3), (5, -7200, 4), (0, 0, 4)):
        clock["monotonic"] += steady
        clock["time"] += wall
        ledger._db.days.changing([NOON, -1, 2**62])
        assert len(marked) == marks


def test_no_day_is_closed_while_the_server_rewrites_calls(ledger: ClickHouseLedger) -> None:
    """It may do so for longer than an hour."""
    ledger.insert([make_call(1)])
    assert len(ledger._db.days.closable()) == 1
    table = f"{ledger._db.name}.calls"
    ledger._db.run(f"ALTER TABLE {table} UPDATE plan = toString(throwIf(1)) WHERE 1", mutations_sync=0)
    assert ledger._db.days.closable() == []
    ledger._db.run(f"KILL MUTATION WHERE database = '{ledger.server.database}' AND table = 'calls' SYNC")
    assert len(ledger._db.days.closable()) == 1


def test_sums_are_made_anew_after_a_change_by_hand(ledger: ClickHouseLedger, patch: Patch) -> None:
    """By ``rebuild``, of the days that are quiet; the others are open."""
    ledger.insert([make_call(1), make_call(1, at=NOON + 31 * DAY)])
    assert list(ledger.rebuild()) == ["2026-11", "2026-12"]
    spoil(ledger)
    assert read_from_sums(ledger)
    assert len(list(ledger.rebuild())) == 2
    assert not read_from_sums(ledger)
    ledger._db.days.changing([NOON])
    patch("QUIET", 3600, within="clickhouse.closed_days")
    assert list(ledger.rebuild()) == []


# -- people, retention and older ledgers -----------------------------------------------------------------------------------------------


def test_an_erasure_leaves_nothing_in_the_sums(ledger: ClickHouseLedger) -> None:
    """Neither in those that count nor in those of a closing that was broken off, whichever column has the name."""
    alice = "alice-5b0c"
    calls = [make_call(number, at=NOON + number * DAY, tags=tags, attribution="tag") for number, tags in enumerate(_named(alice))]
    ledger.insert(calls)
    assert len(close(ledger)) == len(calls)
    ledger._db.days.close(sorted(ledger._db.days.closed())[:1])
    ledger._db.run(f"INSERT INTO {ledger._db.name}.days_of_users (day, user_id, version) VALUES ('2026-01-01', '{alice}', 1)")
    ledger.erase([alice], "erased:1")
    check(ledger)
    assert len(ledger._db.days.closed()) == 1, "the day of another user"
    for rollup in schema.SUMS:
        assert alice not in str(ledger._db.rows(f"SELECT * FROM {ledger._db.name}.{rollup.table}"))
    commands = ledger._db.rows("SELECT command FROM system.mutations WHERE database = ?", [ledger.server.database])
    assert not any(alice in command for (command,) in commands)
    close(ledger)
    ledger._db.run(f"INSERT INTO {ledger._db.name}.days_of_users (day, user_id, version) VALUES ('2026-01-01', '{alice}', 1)")
    assert ledger.purge([alice]) == []
    assert ledger._db.days.naming([alice], ["user_id"]) == []
    check(ledger)


def _named(name: str) -> Iterator[Tags]:
    yield Tags(user_id=name)
    for place in ("plan", "tenant_id", "route", "release"):
        yield Tags(user_id="u", **{place: name})
    yield Tags(user_id="bob")


def test_retention_deletes_sums(ledger: ClickHouseLedger) -> None:
    """With the calls, a piece of a day too, and what a run before has left."""
    ledger.insert([make_call(1, at=NOON + number * DAY // 2) for number in range(8)])
    assert len(close(ledger)) == 5
    ledger.expire(NOON + DAY, 1)
    check(ledger)
    close(ledger)
    while ledger.expire(NOON + DAY, 1).calls:
        check(ledger)
    for rollup in schema.SUMS:
        assert ledger._db.rows(f"SELECT MIN(day) >= '2026-11-0' FROM {ledger._db.name}.{rollup.table}") == [(1,)]
    assert ledger.spend()[0].calls == 6
    close(ledger)
    check(ledger)
    assert ledger.expire(2**62, 100).calls == 6
    assert ledger.spend()[0].calls == 0
    assert ledger._db.days.naming([""], ["user_id", "plan"]) == []


def test_the_servers_own_retention(ledger: ClickHouseLedger, opened: Any) -> None:
    """Of days from which the server deletes calls, the calls are read; it deletes their sums too, and a change opens all days."""
    now = schema.now()
    ledger.insert([make_call(1, at=now - days * DAY) for days in (1, 3, 4, 8)])
    days = {closed_days.day_of(now - days * DAY) for days in (1, 3, 4, 8)}
    assert days <= {*close(ledger)}
    opened("?ttl_days=5")
    try:
        assert ledger._db.days.closed() == {}
        assert {*close(ledger)} & days == {closed_days.day_of(now - days * DAY) for days in (1, 3)}
        check(ledger)
        for table in ("calls", *(rollup.table for rollup in schema.SUMS)):
            ledger._db.run(f"OPTIMIZE TABLE {ledger._db.name}.{table} FINAL")
        assert ledger.spend()[0].calls == 3
        check(ledger)
        assert len(ledger._db.rows(f"SELECT DISTINCT day FROM {ledger._db.name}.days_of_users")) == 3
    finally:
        opened("?ttl_days=0")
    assert ledger._db.days.closed() == {}
    assert ledger.spend()[0].calls == 3


def test_a_ledger_without_sums_is_upgraded(chdb_client: Any, no_wait: None, monkeypatch: pytest.MonkeyPatch, patch: Patch) -> None:
    """Again after a crash in the middle; reports that come first read it as it is, and no day is closed while old processes may run."""

    def opened(*, create: bool = True) -> ClickHouseLedger:
        return ClickHouseLedger(f"clickhouse:///{chdb_client.database}", create=create, client=chdb_client)

    def downgrade(*kept: str) -> None:
        for table in {*schema.TABLES} - {"ledger", "calls", "former_costs", "jobs", "extra_keys", "segments", *kept}:
            chdb_client.command(f"DROP TABLE {table} SYNC")
        chdb_client.command("TRUNCATE TABLE ledger")
        chdb_client.command(f"INSERT INTO ledger VALUES (1, {schema.now() - 10**12})")

    opened().insert([make_call(number, at=NOON + number * DAY) for number in range(3)])
    downgrade()
    reader = opened(create=False)
    assert (reader.schema_version, reader.spend()[0].calls) == (1, 3)
    with monkeypatch.context() as patched:
        patched.setattr(schema, "create_table", broken_off(schema.create_table, "days_of_users"))
        patch("create_table", schema.create_table, within="clickhouse.database")
        with pytest.raises(LedgerError):
            opened()
    assert opened(create=False).schema_version == 1
    patch("create_table", CREATE_TABLE, within="clickhouse.database")
    ledger = opened()
    assert (ledger.schema_version, opened(create=False).schema_version) == (2, 2)
    assert reader.spend()[0].calls == 3
    check(ledger)
    assert ledger._db.days.closable() == []
    chdb_client.command(f"INSERT INTO ledger VALUES (2, {schema.now() + 1})")
    assert ledger._db.days.closable() == []
    patch("_OLD_WRITERS", -1, within="clickhouse.closed_days")
    assert len(close(ledger)) == 3
    check(ledger)
    check(opened(create=False))


CREATE_TABLE = schema.create_table


def broken_off(create: Callable[..., str], table: str) -> Callable[..., str]:
    """*create*, which fails at a table."""

    def made(name: str, *args: Any, **options: Any) -> str:
        if name == table:
            raise LedgerError("killed")
        return create(name, *args, **options)

    return made
