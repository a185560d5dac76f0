"""Files that only their owner may read: each that is made, whatever the umask, and through no link."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from voight_middleware.config.private_files import append, make_folder
from voight_middleware.config.settings import Settings
from voight_middleware.events.outbox import Entry, Outbox
from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.journal import Journal, reject
from voight_middleware.pipeline.lock import IngestLock
from voight_middleware.pipeline.pseudonyms import Pseudonymizer
from voight_middleware.records.tags import Tags

from ..support.factories import make_call


@pytest.fixture(params=[0, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """The umask of the process."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_every_file_and_folder_is_its_owners_only(umask: int, tmp_path: Path) -> None:
    """Ledger, key, segments, set-aside lines and their reasons, lost records, the lock, and the outbox with its state."""
    settings = Settings.from_environment(ledger=tmp_path / "a" / "b" / "ledger.db", environ={})
    open_ledger(settings.ledger).close()
    Pseudonymizer(settings)(Tags(user_id="alice@example.com"))
    journal = Journal(settings.journal)
    journal.append(make_call())
    journal.dropped = 3
    journal.rotate()
    reject(settings.journal, b"torn", "1-x.jsonl:0", "no record")
    lock = IngestLock(settings.journal)
    assert lock.acquire()
    lock.release()
    outbox = Outbox(settings.journal)
    outbox.append("1-x.jsonl", 10, [Entry("call", 1, 0, job=False)])
    outbox.reject("call", 400, "no")
    outbox.advance(next(outbox.read()).next)

    made = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in tmp_path.rglob("*")}
    assert {"a", "b", "ledger.db", "ledger.db.key", "lost.log", "rejected.jsonl", "rejected.log", "ingest.lock", "state.json"} <= set(made)
    assert {name: mode for name, mode in made.items() if mode not in (0o600, 0o700)} == {}


def test_no_link_is_followed_and_no_pipe_waited_for(tmp_path: Path) -> None:
    """Whoever may write into the folder could have any file of this account appended to."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"")
    for name in ("rejected.jsonl", "rejected.log", "lost.log", "ingest.lock"):
        (tmp_path / name).symlink_to(victim)
        with pytest.raises(OSError, match=name):
            append(tmp_path / name, b"line")
    with pytest.raises(OSError, match=r"ingest\.lock"):
        IngestLock(tmp_path).acquire()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe"):
        append(tmp_path / "pipe", b"line")
    assert victim.read_bytes() == b""


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    """Its mode is its owner's choice; a file in its place is said."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o770)
    make_folder(tmp_path / "shared")
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o770
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(OSError, match=place):
            make_folder(tmp_path / place)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files in folders of others")
def test_what_root_makes_in_a_folder_of_another_account_is_that_accounts(tmp_path: Path) -> None:
    """A command that root runs before the application's first call locks nobody out."""
    theirs = tmp_path / "application"
    theirs.mkdir()
    os.chown(theirs, 1234, 1235)
    settings = Settings.from_environment(ledger=theirs / "state" / "ledger.db", environ={})
    open_ledger(settings.ledger).close()
    Journal(settings.journal).append(make_call())

    made = [theirs, *theirs.rglob("*")]
    assert len(made) >= 5
    assert {path.name: path.stat().st_uid for path in made} == dict.fromkeys((path.name for path in made), 1234)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files in folders of others")
def test_what_is_roots_stays_roots(tmp_path: Path) -> None:
    """A file that is there, or has a second name, is given to nobody."""
    mine, second = tmp_path / "mine", tmp_path / "second"
    mine.write_bytes(b"x")
    second.touch()
    theirs = tmp_path / "application"
    theirs.mkdir()
    os.chown(theirs, 1234, 1235)
    os.link(mine, theirs / "full")
    os.link(second, theirs / "empty")
    append(theirs / "full", b"y")
    append(theirs / "empty", b"y")

    assert (mine.stat().st_uid, second.stat().st_uid) == (0, 0)
