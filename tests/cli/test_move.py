"""``voight move``: what it says, where it says it, and what it refuses."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import sqlite3
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.cli import main
from voight_middleware.ledger import open_ledger
from voight_middleware.ledger.sqlite.schema import VERSION
from voight_middleware.pipeline.journal import Journal
from voight_middleware.records.call import Call, new_call_id

from ..support.patching import Patch


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command: its exit code, and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


Run = Callable[..., tuple[int, str, str]]


def urls(place: Path) -> tuple[str, ...]:
    return "--from", str(place), "--to", f"sqlite:///{place.parent}/target.db"


@pytest.mark.slow
def test_move(place: Path, add: Callable[..., None], run: Run) -> None:
    """It says how many calls there are to move, moves them, compares, and a second time finds nothing to do."""
    add("u_1", 1.5, times=3)
    add("u_2", None)
    target = place.parent / "target.db"
    code, out, errors = run("move", *urls(place), "--dry-run")
    assert (code, errors, target.exists()) == (0, "", False)
    assert out == "would be moved: 4 calls and 0 submitted jobs, of 4 calls in the source; nothing was written: run it without --dry-run\n"
    code, out, errors = run("move", *urls(place))
    assert (code, errors) == (0, "")
    assert out.splitlines() == [
        "moved: 4 calls and 0 submitted jobs, of 4 calls in the source",
        "compared: calls, costs, unpriced and partly priced calls are the same on every day",
    ]
    assert run("spend", "--by", "user_id", "--format", "csv", "--ledger", str(target)) == run("spend", "--by", "user_id", "--format", "csv")
    code, out, _ = run("move", *urls(place), "--format", "json")
    assert (code, json.loads(out)["calls"], json.loads(out)["copied"], json.loads(out)["differences"]) == (0, 4, 0, [])
    assert run("move", *urls(place), "--dry-run")[1].startswith("would be moved: 0 calls")


@pytest.mark.slow
def test_what_is_still_in_the_journal_goes_too(place: Path, add: Callable[..., None], run: Run) -> None:
    """What processes that are gone left behind is brought into the source before."""
    add("u_1", 1)
    journal = Journal(Path(f"{place}.journal"))
    journal.append(Call(call_id=new_call_id(), occurred_at=1, provider="openai", endpoint="chat"))
    journal.rotate()
    assert run("move", *urls(place))[1].startswith("moved: 2 calls")


@pytest.mark.slow
def test_differences(place: Path, add: Callable[..., None], run: Run) -> None:
    """A day that differs is shown with both sums, also as JSON, and the command fails."""
    add("u_1", 1, at="2026-11-10T12:00", times=2)
    add("u_1", 1, at="2026-11-11T12:00", times=2)
    run("move", *urls(place))
    with closing(sqlite3.connect(place.parent / "target.db")) as db, db:
        db.execute("UPDATE calls SET cost_femto = 5 * cost_femto WHERE occurred_at < (SELECT MAX(occurred_at) FROM calls)")
    code, out, _ = run("move", *urls(place))
    assert code == 1
    assert "2026-11-10 differs: 2 calls of $2, 0 without a price, 0 priced in part in the source, 2 calls of $10," in out
    assert "2026-11-11" not in out
    assert "run this again" in out
    code, out, _ = run("move", *urls(place), "--format", "json")
    (difference,) = json.loads(out)["differences"]
    assert (code, difference["day"], difference["target"]["cost_usd"]) == (1, "2026-11-10", "10")


@pytest.mark.slow
def test_sums_that_do_not_agree(place: Path, add: Callable[..., None], run: Run) -> None:
    """Where only what is kept beside the calls is wrong, it says what makes that right."""
    add("u_1", 1)
    run("move", *urls(place))
    with closing(sqlite3.connect(place.parent / "target.db")) as db, db:
        db.execute("UPDATE days_of_models SET calls = 7")
    code, out, _ = run("move", *urls(place))
    assert code == 1
    assert "2026-11-10" in out
    assert "voight rebuild" in out
    code, out, _ = run("rebuild", "--ledger", str(place.parent / "target.db"))
    assert code == 0
    assert "rebuilt the sums of" in out
    assert run("move", *urls(place))[0] == 0


def test_the_key_of_pseudonyms(place: Path, add: Callable[..., None], run: Run) -> None:
    """Users of a local ledger may be pseudonyms whose key is in a file beside it: that is said."""
    add("u_1", 1)
    Path(f"{place}.key").write_text("v0:secret\n")
    out = run("move", *urls(place))[1]
    assert f"{place}.key" in out
    assert "VOIGHT_PSEUDONYM_KEY" in out
    assert "v0:secret" not in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ledgers", "message"),
    [
        (("{place}", "{place}"), "same ledger"),
        (("{place}", "sqlite:///{place}"), "same ledger"),
        (("{place}", "{folder}/link.db"), "same ledger"),
        (("postgresql://me:secret@db/x", "postgresql://me:secret@db/x"), "same ledger"),
        (("{place}", "mysql://me:secret@db/x"), "'mysql://"),
        (("mysql://db/x", "{place}"), "'mysql://"),
        (("{folder}/none.db", "{folder}/target.db"), "there is no ledger at"),
        (("{folder}/newer.db", "{folder}/target.db"), "newer version"),
        (("{place}", "{folder}/newer.db"), "newer version"),
        (("{place}", "{folder}/notes.txt"), "not an SQLite file"),
        (("{place}", ""), "the ledger needs a file"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["for real", "dry run"])
def test_what_cannot_be_moved(
    place: Path, add: Callable[..., None], run: Run, ledgers: tuple[str, str], message: str, dry: tuple[str, ...]
) -> None:
    """One sentence that says why, without a password, and nothing is made."""
    add("u_1", 1)
    folder = place.parent
    (folder / "link.db").symlink_to(place)
    (folder / "notes.txt").write_text("Dear diary, " * 500)
    open_ledger(str(folder / "newer.db")).close()
    with closing(sqlite3.connect(folder / "newer.db")) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    source, target = (text.format(place=place, folder=folder) for text in ledgers)
    code, out, errors = run("move", "--from", source, "--to", target, *dry)
    assert (code, out) == (1, "")
    assert re.search(message, errors)
    assert "secret" not in errors
    assert errors.count("\n") == 1
    assert not (folder / "target.db").exists()


def test_a_target_that_cannot_be_made(place: Path, add: Callable[..., None], run: Run) -> None:
    """Its place is named."""
    add("u_1", 1)
    (place.parent / "notes.txt").write_text("Dear diary")
    code, _, errors = run("move", "--from", str(place), "--to", f"{place.parent}/notes.txt/target.db")
    assert code == 1
    assert "notes.txt/target.db cannot be opened" in errors


@pytest.mark.parametrize("arguments", [(), ("--from", "a.db"), ("--to", "b.db")])
def test_both_are_named(run: Run, arguments: tuple[str, ...]) -> None:
    """Neither is guessed."""
    with pytest.raises(SystemExit) as ended:
        run("move", *arguments)
    assert ended.value.code == 2


def test_progress_in_a_log(place: Path, add: Callable[..., None], run: Run, patch: Patch) -> None:
    """Where it is no terminal, a line now and then; none for what is done at once."""
    add("u_1", 1, times=30)
    patch("BATCH", 10, within="transfer")
    assert run("move", *urls(place))[2] == ""
    patch("_LINE_SECONDS", 0)
    assert run("move", *urls(place))[2].splitlines() == [f"voight: {count} of 30 calls" for count in (10, 20, 30)]


@pytest.mark.server
def test_progress_on_a_terminal(place: Path, add: Callable[..., None]) -> None:
    """A line that changes, with rate and time left, and is gone at the end; what was done is on standard output."""
    add("u_1", 1, times=30)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    code = (
        "import sys; from voight_middleware import cli; from voight_middleware.maintenance import transfer; "
        "transfer.BATCH = 10; sys.exit(cli.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, "move", *urls(place)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        check=True,
        timeout=60,
    )
    os.close(theirs)
    shown: Any = b""
    while True:
        try:
            shown += (some := os.read(ours, 4096))
        except OSError:
            break
        if not some:
            break
    os.close(ours)
    assert re.search(rb"20 of 30 calls, [\d,]+ a second, \d+ s left", shown)
    assert shown.endswith(b" \r")
    assert done.stdout.startswith("moved: 30 calls")
