"""A disk without room: a small volume for the journal, whose space comes back with each segment that is in the ledger."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from voight_middleware.config.settings import Settings
from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline import journal as journal_module
from voight_middleware.pipeline.ingest import Ingester
from voight_middleware.pipeline.journal import REJECTED, Journal, segments
from voight_middleware.pipeline.meter import Meter
from voight_middleware.records.call import Call

NewCall = Callable[..., Call]
ROOM = 20_000
"""Bytes of the volume."""


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for journals on a volume of twenty kilobytes."""
    folder = tmp_path / "journal"
    write = os.write

    def bounded(fd: int, data: bytes) -> int:
        used = sum(path.stat().st_size for path in folder.iterdir() if path.suffix == ".jsonl")
        if used >= ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[: ROOM - used])  # as a disk does: what fits, and then nothing

    monkeypatch.setattr(journal_module, "os", SimpleNamespace(**{**vars(os), "write": bounded}))
    return folder


@pytest.mark.slow
def test_a_full_volume_loses_nothing_while_the_ledger_takes_calls(volume: Path, tmp_path: Path, new_call: NewCall) -> None:
    """Ten times as much as the volume holds goes through it."""
    meter = Meter(Settings.from_environment(ledger=tmp_path / "ledger.db", journal=volume, environ={}))
    for _ in range(1_000):
        meter.journal.append(new_call())
    assert meter.close(30)
    assert meter.journal.dropped == 0
    ledger = open_ledger(str(tmp_path / "ledger.db"))
    assert ledger.spend()[0].calls == 1_000
    ledger.close()


def test_a_full_segment_is_closed_so_that_it_can_be_deleted(volume: Path, new_call: NewCall) -> None:
    """And no empty one is left each time that the disk is tried."""
    journal = Journal(volume)
    for _ in range(300):
        journal.append(new_call())
    assert journal.waiting
    full, begun = sorted(segments(volume), key=lambda segment: -segment.size())
    with full.adopt() as dead:
        assert dead
    assert (full.read(0)[-1:], full.tail(len(full.read(0))), begun.size()) == (b"\n", b"", 0)
    assert len(list(volume.iterdir())) == 2
    journal.end()


def test_a_refused_line_that_cannot_be_set_aside_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is neither in the ledger nor lost."""
    folder = tmp_path / "journal"
    folder.mkdir()
    (folder / "1-a.jsonl").write_bytes(b"no record\n")
    ledger = open_ledger(str(tmp_path / "ledger.db"))
    ingester = Ingester(ledger, folder)
    with monkeypatch.context() as patched:

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "full")

        patched.setattr("voight_middleware.pipeline.ingest.reject", full)
        with pytest.raises(Exception, match="cannot be read or deleted"):
            ingester.run()
    ingester.run()
    assert (folder / REJECTED).read_bytes() == b"no record\n"
    ledger.close()


def test_a_deeply_nested_line_and_a_pipe_stop_nothing(tmp_path: Path, new_call: NewCall) -> None:
    """The one is set aside, the other is no segment."""
    folder = tmp_path / "journal"
    folder.mkdir()
    os.mkfifo(folder / "1-pipe.jsonl")
    (folder / "2-link.jsonl").symlink_to(tmp_path / "elsewhere")
    (folder / "3-deep.jsonl").write_bytes(b"[" * 100_000 + b"\n")
    journal = Journal(folder)
    journal.append(new_call())
    journal.end()
    ledger = open_ledger(str(tmp_path / "ledger.db"))
    ingester = Ingester(ledger, folder)
    ingester.run()
    assert (ledger.spend()[0].calls, ingester.rejected) == (1, 1)
    ledger.close()


def test_a_segment_that_cannot_be_locked_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_call: NewCall) -> None:
    """A file system without locks is told of, and not filled with empty files."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    journal = Journal(tmp_path)
    for _ in range(3):
        journal.append(new_call())
    assert list(tmp_path.iterdir()) == []
    assert journal.waiting == 3
