"""What an SQLite ledger is as a file: private, marked, recognised, locked, upgraded. What it answers is in the tests of the contract."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from voight_middleware.cli import main
from voight_middleware.ledger import ForeignLedger, LedgerError, open_ledger
from voight_middleware.ledger.sqlite import SQLiteLedger
from voight_middleware.ledger.sqlite.schema import VERSION
from voight_middleware.records.usage import Usage

from ..support.depth import times
from ..support.factories import job_call, make_call, priced, submission
from ..support.patching import Patch


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SQLiteLedger]:
    with closing(SQLiteLedger(tmp_path / "ledger.db")) as ledger:
        yield ledger


def test_a_price_is_kept_once(ledger: SQLiteLedger, tmp_path: Path) -> None:
    """However many calls have it, and whichever process has brought it."""
    with closing(open_ledger(str(tmp_path / "ledger.db"), create=False)) as other:
        ledger.insert([make_call(price='{"p":1}'), make_call(price='{"p":1}')])
        assert other.insert([make_call(price='{"p":1}')]) == 1
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
        assert db.execute("SELECT price FROM prices").fetchall() == [('{"p":1}',)]


def test_the_file_is_private_and_marked(tmp_path: Path) -> None:
    """A new ledger and its folder belong to this user only, and the file says what it is, in WAL and in which version."""
    path = tmp_path / "new" / "folder" / "ledger.db"
    with closing(open_ledger(f"sqlite:///{path}")) as ledger:
        ledger.insert([make_call()])
        modes = {file.name: file.stat().st_mode & 0o777 for file in (path.parent, *path.parent.iterdir())}
    assert modes == {"folder": 0o700, "ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA application_id").fetchone() == (int.from_bytes(b"VOIG", "big"),)
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("name", ["has space.db", "q?mode=memory.db", "hash#1.db", "percent%00.db", "ünï.db"])
def test_paths_are_taken_literally(tmp_path: Path, name: str) -> None:
    """What is special in a URL is not special in the path of a ledger."""
    with closing(open_ledger(str(tmp_path / name))) as ledger:
        ledger.insert([make_call()])
    assert (tmp_path / name).stat().st_size > 0


def test_reports_do_not_make_a_ledger(tmp_path: Path) -> None:
    """To open for reports what is not there is an error that helps, and leaves no file or folder; an empty file is no ledger either."""
    for path in (tmp_path / "none" / "ledger.db", tmp_path / "empty.db"):
        (tmp_path / "empty.db").touch()
        with pytest.raises(LedgerError, match=r"there is no ledger at .* yet.*voight doctor"):
            open_ledger(str(path), create=False)
    assert [file.name for file in tmp_path.iterdir()] == ["empty.db"]


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    """A ledger below a file, in place of a folder, or with an impossible name is a LedgerError that names the path."""
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "ledger.db", tmp_path, tmp_path / "nul\x00.db", tmp_path / ("x" * 300)):
        with pytest.raises(LedgerError, match=r"cannot be opened|cannot be written"):
            SQLiteLedger(path)
    with pytest.raises(LedgerError, match="cannot be opened"):
        SQLiteLedger(tmp_path, create=False)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """A text file is refused as foreign, and stays as it was."""
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary, " * 500)
    for create in (True, False):
        with pytest.raises(ForeignLedger, match="not an SQLite file"):
            SQLiteLedger(path, create=create)
    assert path.read_text() == "Dear diary, " * 500


@pytest.mark.parametrize("application_id", [0, 42])
def test_a_database_of_another_application(tmp_path: Path, application_id: int) -> None:
    """Another application's SQLite file is refused as foreign, and stays as it was."""
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA application_id = {application_id}")
        db.execute("CREATE TABLE things (x)")
    before = path.read_bytes()
    for create in (True, False):
        with pytest.raises(ForeignLedger, match="another application"):
            SQLiteLedger(path, create=create)
    assert path.read_bytes() == before


def test_a_newer_ledger(tmp_path: Path) -> None:
    """A ledger of a newer schema is refused with what to do."""
    path = tmp_path / "ledger.db"
    SQLiteLedger(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(LedgerError, match=r"newer version.*pip install -U"):
        SQLiteLedger(path)


@pytest.mark.slow
def test_a_damaged_ledger(tmp_path: Path) -> None:
    """A ledger whose pages are overwritten is a LedgerError that says so."""
    path = tmp_path / "ledger.db"
    with closing(SQLiteLedger(path)) as ledger:
        ledger.insert([make_call() for _ in range(2000)])
    data = bytearray(path.read_bytes())
    whole = 262_144  # the schema, which is read when the file is opened
    data[whole:] = b"\xff" * (len(data) - whole)
    path.write_bytes(data)
    with closing(SQLiteLedger(path)) as ledger, pytest.raises(LedgerError, match="damaged"):
        list(ledger.calls())


def test_a_closed_ledger(tmp_path: Path) -> None:
    """It answers with LedgerError, which says so."""
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.spend()


def test_a_locked_ledger(tmp_path: Path, ledger: SQLiteLedger, patch: Patch) -> None:
    """A ledger that another process holds for too long is a LedgerError; reading goes on meanwhile."""
    ledger.insert([make_call()])
    patch("BUSY_SECONDS", 0.05)
    with (
        closing(SQLiteLedger(tmp_path / "ledger.db")) as other,
        closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as db,
    ):
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match=r"locked by another process"):
            other.insert([make_call()])
        assert other.spend()[0].calls == 1


@pytest.mark.parametrize("url", ["mysql://db/voight", "oracle://db"])
def test_unknown_engines(url: str) -> None:
    """Another engine is refused with a sentence on what there is."""
    with pytest.raises(LedgerError, match="postgresql://"):
        open_ledger(url)


@pytest.mark.parametrize("url", ["", ":memory:", "sqlite://x", "sqlite:///"])
def test_urls_without_a_file(url: str) -> None:
    """A URL that names no file is a LedgerError."""
    with pytest.raises(LedgerError, match="sqlite:///"):
        open_ledger(url)


OPEN_AND_INSERT = """
import sys
from voight_middleware.records.call import Call, new_call_id
from voight_middleware.ledger import open_ledger, sqlite

for line in sys.stdin:
    ledger = open_ledger(line.strip())
    calls = [Call(call_id=new_call_id(), occurred_at=1, provider="openai", endpoint="chat") for _ in range(10)]
    assert ledger.insert(calls) == 10
    ledger.close()
    print("done", flush=True)
"""


@pytest.mark.server
def test_processes_that_open_a_new_ledger_at_once(tmp_path: Path) -> None:
    """Processes that make the same ledger at the same moment all get it, and none of their calls is lost; several times."""
    command = [sys.executable, "-c", OPEN_AND_INSERT]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(times(4, 8))]
    for number in range(6):  # the first time they do not begin together
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{tmp_path}/{number}.db\n")
        for process in processes:
            assert process.stdin is not None
            process.stdin.flush()
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n"
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0] * len(processes)
    for number in range(6):
        with closing(open_ledger(f"{tmp_path}/{number}.db", create=False)) as ledger:
            assert ledger.spend()[0].calls == 10 * len(processes)


def test_a_ledger_of_the_first_version_is_upgraded(tmp_path: Path) -> None:
    """Its calls stay as they are, new ones can have everything that the new version knows, and two processes may do it at once."""
    old = Path(__file__).with_name("version_1.sql").read_text()
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(old)
    with closing(SQLiteLedger(path)) as ledger, closing(SQLiteLedger(path)) as second:
        assert ledger.schema_version == second.schema_version == VERSION
        (kept,) = ledger.calls()
        assert (kept.call_id, kept.tags.user_id, kept.usage, kept.cost_femto) == ("c1", "u_1", Usage(input=10, output=7), 1_000)
        usage = Usage(image_in=3, image_out=4, cache_read_audio=1, cache_read_image=2)
        new = job_call("openai/x", usage=usage, possibly_billed=1, list_femto=9)
        ledger.insert([new, submission("openai/x", "u_9")])
        assert {call.tags.user_id for call in second.calls()} == {"u_1", "u_9"}
        (total,) = ledger.spend()
        assert (total.input_tokens, total.output_tokens, total.cache_read_tokens) == (16, 11, 3)
        assert second.reprice([(kept, priced(kept, 7))]) == 1
        assert [price.cost_femto for price in ledger.price_history("c1")] == [1_000]
    with closing(SQLiteLedger(path, create=False)) as again:
        assert again.schema_version == VERSION


DAMAGED = {
    "tags_extra": "'{'",
    "components": "'[{}]'",
    "cost_reasons": "'5'",
    "tools": '\'{"x": "y"}\'',
    "tool_calls": "'[]'",
    "model": "CAST(x'ff00' AS TEXT)",
}


@pytest.mark.slow
@pytest.mark.parametrize(("column", "value"), DAMAGED.items(), ids=DAMAGED)
def test_a_damaged_cell_is_said_with_its_call(column: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, by whatever reads calls; an export of it leaves no file."""
    path = tmp_path / "ledger.db"
    with closing(SQLiteLedger(path)) as ledger:
        ledger.insert([make_call(cost=5, usage=Usage(input=5), call_id="damaged-call")])
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"UPDATE calls SET {column} = {value}")
        db.commit()
    with closing(SQLiteLedger(path)) as ledger, pytest.raises(LedgerError, match=r"damaged|decode"):
        list(ledger.calls())
    assert main(["export", "--ledger", str(path), "-o", str(tmp_path / "calls.jsonl")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "damaged-call" in said or "column 'model'" in said
    assert not (tmp_path / "calls.jsonl").exists()
