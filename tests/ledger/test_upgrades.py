"""A SQLite ledger of an older version is upgraded in place: every call stays as it was, or nothing happens at all."""

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from voight_middleware.ledger import LedgerError, Window
from voight_middleware.ledger.rows import SELECTED, from_row
from voight_middleware.ledger.sqlite import SQLiteLedger
from voight_middleware.ledger.sqlite.schema import VERSION
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Tags

from ..support.factories import make_call
from ..support.patching import Patch
from .test_rollups import QUESTIONS, whole


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A ledger of version 3."""
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(Path(__file__).with_name("version_3.sql").read_text())
    return path


def calls_of(path: Path) -> list[Call]:
    """The calls of a ledger of version 3, read as that version read them."""
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute(f"SELECT {', '.join(SELECTED)} FROM calls LEFT JOIN prices USING (price_id) ORDER BY occurred_at, call_id")
        return [from_row(row) for row in rows]


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


@pytest.mark.parametrize("in_a_slice", [2, 2_000])
def test_every_call_stays_as_it_was(old: Path, in_a_slice: int, patch: Patch) -> None:
    """With its former prices, its job and its sums; and every later change is counted."""
    expected = calls_of(old)
    assert len(expected) == 8
    patch("SLICE", in_a_slice, within="sqlite.upgrades")
    with closing(SQLiteLedger(old)) as ledger:
        assert ledger.schema_version == version_of(old) == VERSION
        assert list(ledger.calls()) == expected
        for call in expected:
            assert ledger.call(call.call_id) == call
            assert ledger.insert([call]) == 0
        (former,) = ledger.price_history("019e0f4a00017000a000000000000001")
        assert former.cost_femto == 5
        assert [job.job for job in ledger.jobs()] == ["openai/batch_1"]
        for _ in range(2):
            for by, where in QUESTIONS:
                found, sums = whole(ledger, by, where, Window())
                assert found == sums, (by, where)
            ledger.insert([make_call(5, tags=Tags(user_id="u_1", plan="pro"))])
            ledger.erase(["u_2"], "erased_1")


KILLED = """
import os, signal, sys
from pathlib import Path
from voight_middleware.ledger.sqlite import SQLiteLedger, upgrades

upgrades.SLICE, left = 2, int(sys.argv[2])
copy = upgrades.Intake.copy

def counted(*args):
    global left
    copy(*args)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

upgrades.Intake.copy = counted
SQLiteLedger(Path(sys.argv[1]))
"""


@pytest.mark.server
@pytest.mark.parametrize("after", [1, 3, 4])
def test_killed_in_the_middle(old: Path, after: int) -> None:
    """It is a ledger of the old version still, and the next process upgrades it."""
    expected = calls_of(old)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(old), str(after)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert version_of(old) == 3
    assert calls_of(old) == expected
    with closing(SQLiteLedger(old)) as ledger:
        assert list(ledger.calls()) == expected


def test_processes_of_the_old_version(old: Path, patch: Patch) -> None:
    """One that reads meanwhile goes on. One that writes afterwards gets an error, and then the one that says what to do."""
    expected = calls_of(old)
    with closing(sqlite3.connect(old)) as reader, closing(sqlite3.connect(old)) as writer:
        reader.execute("BEGIN")
        assert reader.execute("SELECT COUNT(*) FROM calls").fetchone() == (8,)
        with closing(SQLiteLedger(old)) as ledger:
            assert reader.execute("SELECT COUNT(*) FROM calls WHERE model = 'm'").fetchone() == (8,)
            reader.execute("COMMIT")
            assert reader.execute("SELECT COUNT(*) FROM calls WHERE model = 'm'").fetchone() == (8,)
            with pytest.raises(sqlite3.OperationalError, match="calls"):
                writer.execute("INSERT INTO calls (call_id, occurred_at) VALUES ('x', 1) ON CONFLICT DO NOTHING")
            assert list(ledger.calls()) == expected
    patch("VERSION", 3, within="sqlite.connection")
    with pytest.raises(LedgerError, match=r"newer version.*pip install -U"):
        SQLiteLedger(old)


def test_a_process_that_upgrades_meanwhile(old: Path, patch: Patch) -> None:
    """Others wait for it, and say after a while what they wait for."""
    patch("BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(old, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked by another process"):
            SQLiteLedger(old)
    assert version_of(old) == 3


def test_a_text_that_is_no_text(old: Path) -> None:
    """A damaged cell does not stop the upgrade: what cannot be read is marked in it."""
    with closing(sqlite3.connect(old, isolation_level=None)) as db:
        db.execute("UPDATE calls SET model = CAST(x'6dff' AS TEXT) WHERE call_id = 'c3'")
    with closing(SQLiteLedger(old)) as ledger:
        kept = ledger.call("c3")
        assert kept is not None
        assert kept.model == "m\ufffd"
