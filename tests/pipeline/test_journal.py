"""The journal: what was appended is on disk, or in memory until it can be."""

import errno
import fcntl
import gc
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from voight_middleware.pipeline.journal import Journal, Segment, decode, reject, segments
from voight_middleware.pipeline.lock import IngestLock
from voight_middleware.records.call import Call, LateAttribution
from voight_middleware.records.tags import Tags

from ..support.patching import Patch

NewCall = Callable[..., Call]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A journal in a folder that does not exist yet."""
    one = Journal(tmp_path / "deep" / "journal")
    yield one
    one.rotate()


def ids(folder: Path) -> list[str]:
    """The ids of all calls in all segments, in their order; torn lines are passed over, as the ingester does."""
    found = []
    for segment in segments(folder):
        for line in segment.path.read_bytes().splitlines():
            try:
                record = decode(line, segment.name)
            except msgspec.DecodeError:
                continue
            found.append(record.call_id if isinstance(record, Call) else ",".join(record.call_ids))
    return found


class Disk:
    """`os.write` with faults: each scripted one is used up by one write, then the disk works again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.faults: list[Any] = []
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, fd: int, data: bytes) -> int:
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, int):
            return self._write(fd, data[:fault])
        if fault is not None:
            fault()
        return self._write(fd, data)


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Faults for the next writes."""
    return Disk(monkeypatch)


def test_records_come_back_as_they_were_in_order(journal: Journal, new_call: NewCall) -> None:
    """One line per record, calls and settlements, each decoded to what was appended."""
    records = [new_call(), LateAttribution(call_ids=("a", "b"), tags=Tags(user_id="u")), new_call(error="a\nb\r\u2028\x85")]
    for record in records:
        journal.append(record)
    (segment,) = segments(journal.folder)
    assert [decode(line, "segment:0") for line in segment.read(0).splitlines()] == records
    assert (journal.written, journal.dropped, journal.failures, journal.waiting) == (3, 0, 0, 0)
    assert journal.position() == (segment.name, segment.size())
    assert segment.path.stat().st_mode & 0o077 == 0, "the journal is its owner's only"
    assert segment.path.parent.stat().st_mode & 0o077 == 0


def test_nothing_exists_before_the_first_record(journal: Journal) -> None:
    """An idle process leaves no trace."""
    assert journal.position() is None
    assert journal.retry()
    journal.rotate()
    assert not journal.folder.exists()
    assert segments(journal.folder) == []


@pytest.mark.parametrize("faults", [[full], [full] * 3, [0], [7], [7, full, 3, full], [1, 1, 1]])
def test_what_the_disk_refuses_is_written_later_in_order(journal: Journal, disk: Disk, new_call: NewCall, faults: list[Any]) -> None:
    """A full disk and a short write cost nothing and reorder nothing: the records wait in memory, and go first."""
    calls = [new_call() for _ in range(8)]
    journal.append(calls[0])
    disk.faults = list(faults)
    journal.append(calls[1])
    assert (journal.waiting, journal.failures) == (1, 1)
    for call in calls[2:]:
        journal.append(call)
    assert journal.retry()
    assert ids(journal.folder) == [call.call_id for call in calls]
    assert (journal.written, journal.waiting, journal.dropped, journal.failures) == (8, 0, 0, len(faults))


def test_a_process_that_is_idle_after_a_fault_writes_at_the_next_retry(journal: Journal, disk: Disk, new_call: NewCall) -> None:
    """`retry` answers whether anything is left, and needs no further record to succeed."""
    disk.faults = [full, full]
    call = new_call()
    journal.append(call)
    assert not journal.retry()
    assert journal.retry()
    assert ids(journal.folder) == [call.call_id]


def test_beyond_the_backlog_the_oldest_are_dropped_and_counted(journal: Journal, disk: Disk, new_call: NewCall, patch: Patch) -> None:
    """Memory is bounded: what was dropped is the oldest, and the count says how many."""
    calls = [new_call() for _ in range(50)]
    line = len(msgspec.json.encode(calls[0])) + 1
    patch("BACKLOG_BYTES", line * 10)
    disk.faults = [full] * 50
    for call in calls:
        journal.append(call)
    assert (journal.waiting, journal.dropped, journal.written) == (10, 40, 0)
    assert journal.retry()
    assert ids(journal.folder) == [call.call_id for call in calls[40:]]
    assert (journal.written, journal.dropped) == (10, 40)


def test_a_folder_that_cannot_be_made_is_logged_once_and_used_once_it_can(
    tmp_path: Path, new_call: NewCall, caplog: pytest.LogCaptureFixture
) -> None:
    """A file in the folder's place: nothing raises, one error in the log, and the records arrive when it is gone."""
    (tmp_path / "taken").write_text("")
    journal = Journal(tmp_path / "taken" / "journal")
    calls = [new_call() for _ in range(5)]
    for call in calls:
        journal.append(call)
    assert (journal.waiting, journal.failures, journal.written) == (5, 5, 0)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    (tmp_path / "taken").unlink()
    assert journal.retry()
    assert ids(journal.folder) == [call.call_id for call in calls]
    journal.rotate()


def test_a_segment_that_has_grown_is_followed_by_another(journal: Journal, new_call: NewCall, patch: Patch) -> None:
    """Rotation keeps every record and its order, and gives the old segments free."""
    patch("SEGMENT_BYTES", 1000)
    calls = [new_call() for _ in range(60)]
    for call in calls:
        journal.append(call)
    found = segments(journal.folder)
    assert len(found) > 5
    assert sorted(ids(journal.folder)) == sorted(call.call_id for call in calls)
    for segment in found:
        with segment.adopt() as dead:
            assert dead == (segment.name != journal.position()[0])  # type: ignore[index]


def test_a_segment_that_cannot_be_followed_goes_on(journal: Journal, new_call: NewCall, patch: Patch, tmp_path: Path) -> None:
    """Where no new segment can be opened, the records wait and the old one stays this process's."""
    patch("SEGMENT_BYTES", 100)
    first, second = new_call(), new_call()
    journal.append(first)
    there, aside = journal.folder, tmp_path / "aside"
    there.rename(aside)
    there.write_text("in the way")
    journal.append(second)
    assert journal.waiting == 1
    there.unlink()
    aside.rename(there)
    assert journal.retry()
    assert sorted(ids(there)) == sorted([first.call_id, second.call_id])


def test_rotate_gives_the_segment_free(journal: Journal, new_call: NewCall) -> None:
    """A closed segment can be adopted; the next record begins another."""
    journal.append(new_call())
    (segment,) = segments(journal.folder)
    with segment.adopt() as dead:
        assert not dead
    journal.rotate()
    journal.rotate()
    assert journal.position() is None
    with segment.adopt() as dead:
        assert dead
    journal.append(new_call())
    assert len(segments(journal.folder)) == 2


def test_threads_write_whole_lines(journal: Journal, new_call: NewCall, patch: Patch) -> None:
    """Eight threads, rotation included: every record once, no line torn."""
    patch("SEGMENT_BYTES", 20_000)
    calls = [[new_call(call_id=f"{thread}-{number}") for number in range(300)] for thread in range(8)]
    threads = [threading.Thread(target=lambda mine=mine: [journal.append(call) for call in mine]) for mine in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [decode(line, segment.name) for segment in segments(journal.folder) for line in segment.path.read_bytes().splitlines()]
    assert sorted(call.call_id for call in lines) == sorted(call.call_id for mine in calls for call in mine)  # type: ignore[union-attr]
    assert journal.written == 2400


@pytest.mark.slow
@pytest.mark.parametrize("waiting", [0, 1, 3])
def test_a_record_that_is_appended_during_an_append_is_kept(journal: Journal, disk: Disk, new_call: NewCall, waiting: int) -> None:
    """A stream that is collected in the middle of an append writes its own record; neither is lost or doubled, nothing raises."""
    calls = [new_call() for _ in range(waiting + 3)]
    journal.append(calls[0])
    disk.faults = [full] * waiting
    for call in calls[3:]:
        journal.append(call)
    assert journal.waiting == waiting

    class Dropped:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            journal.append(calls[2])

    def collected() -> None:
        Dropped()
        gc.collect()

    disk.faults = [collected]
    journal.append(calls[1])
    assert sorted(ids(journal.folder)) == sorted(call.call_id for call in calls)
    assert (journal.written, journal.waiting) == (len(calls), 0)


def test_a_record_that_is_appended_while_a_segment_is_opened_is_kept(
    journal: Journal, new_call: NewCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first append is interrupted by another one before its segment is there: both are written."""
    calls = [new_call(), new_call()]
    flock, waiting = fcntl.flock, [calls[1]]

    def interrupted(fd: int, operation: int) -> None:
        if waiting:
            journal.append(waiting.pop())
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", interrupted)
    journal.append(calls[0])
    assert sorted(ids(journal.folder)) == sorted(call.call_id for call in calls)
    assert (journal.written, journal.waiting) == (2, 0)


def test_reading_stops_behind_the_last_whole_line(tmp_path: Path) -> None:
    """A torn tail is not read as a line, and can be had by itself."""
    segment = Segment(tmp_path / "1-a.jsonl")
    segment.path.write_bytes(b"one\ntwo\nthr")
    assert segment.read(0) == b"one\ntwo\n"
    assert segment.read(4) == b"two\n"
    assert segment.read(8) == b""
    assert segment.tail(8) == b"thr"


@pytest.mark.parametrize("limit", [1, 2, 5, 64, 1 << 20])
def test_a_line_longer_than_the_limit_is_read_whole(tmp_path: Path, limit: int) -> None:
    """However small the limit, reading makes progress by whole lines and loses no byte."""
    content = b"a" * 300 + b"\n" + b"b\n\n" + b"c" * 100 + b"\ntorn" + b"t" * 200
    segment = Segment(tmp_path / "1-a.jsonl")
    segment.path.write_bytes(content)
    read = b""
    while data := segment.read(len(read), limit):
        assert data.endswith(b"\n")
        read += data
    assert read == content[: content.rfind(b"\n") + 1]


def test_only_named_segments_are_segments(tmp_path: Path) -> None:
    """The lock file, rejected lines and a segment that is being made are none; the oldest comes first."""
    for name in ("ingest.lock", "rejected.jsonl", "1-x.jsonl.new", "2-b.jsonl", "1-a.jsonl"):
        (tmp_path / name).write_text("")
    os.utime(tmp_path / "2-b.jsonl", (1, 1))
    assert [segment.name for segment in segments(tmp_path)] == ["2-b.jsonl", "1-a.jsonl"]


def test_a_file_that_is_gone_is_nobodys() -> None:
    """A segment that somebody else has deleted cannot be adopted, has no size, and is deleted without complaint."""
    gone = Segment(Path("/nonexistent/1-a.jsonl"))
    assert gone.size() == 0
    with gone.adopt() as dead:
        assert not dead
    gone.delete()


def test_a_rejected_line_is_kept_whole(tmp_path: Path) -> None:
    """What is set aside is a line each, whatever its ending."""
    reject(tmp_path, b"torn")
    reject(tmp_path, b"bad\n")
    assert (tmp_path / "rejected.jsonl").read_bytes() == b"torn\nbad\n"


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"null", b'{"type":"call"}', b'{"type":"other","call_id":"c"}', b"\xff\xfe", b"\x00" * 9]
)
def test_what_is_no_record_is_a_decode_error(line: bytes) -> None:
    """One kind of error for every kind of damage."""
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        decode(line, "segment:0")


def test_one_wins_an_election_until_it_resigns(tmp_path: Path) -> None:
    """Two candidates for one folder: the second wins when the first has resigned, and asking again changes nothing."""
    first, second = IngestLock(tmp_path / "j"), IngestLock(tmp_path / "j")
    assert first.acquire()
    assert first.acquire()
    assert not second.acquire()
    second.release()
    assert first.acquire()
    first.release()
    assert second.acquire()
    assert not first.acquire()
    second.release()


def test_a_segment_has_its_lock_before_it_has_its_name(journal: Journal, new_call: NewCall, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds a segment by its name finds it locked: an ingester cannot delete what is just being made."""
    names: list[list[str]] = []
    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda *args: (names.append([s.name for s in segments(journal.folder)]), flock(*args))[1])
    journal.append(new_call())
    assert names == [[]]
    assert len(segments(journal.folder)) == 1


def test_a_deleted_segment_is_noticed(tmp_path: Path, new_call: NewCall, caplog: pytest.LogCaptureFixture) -> None:
    """Where somebody deletes the journal folder under a living process, one error is logged and later calls go into a new segment."""
    journal = Journal(tmp_path / "journal")
    journal.append(new_call())
    journal.check()
    assert caplog.records == []
    shutil.rmtree(tmp_path / "journal")
    journal.check()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    call = new_call()
    journal.append(call)
    [segment] = segments(tmp_path / "journal")
    assert call.call_id.encode() in segment.read(0)
    journal.rotate()
