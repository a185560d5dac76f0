"""
The journal: a finished call is first written to this append-only file of its process.

A process writes one segment, a line of JSON per record. It holds a lock (``flock``) on the segment
while it uses it. If the ingester can take that lock, the writer has exited or moved on, and the
ingester may adopt the segment. A record is one ``write()`` of a whole line. So ``kill -9`` loses no
written record, and tears at most the line that is being written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator
from pathlib import Path

import msgspec

from voight_middleware.config.kept_prices import Stamp
from voight_middleware.config.private_files import append, make_folder, open_private, utc_now
from voight_middleware.config.settings import JOURNAL_LIMIT
from voight_middleware.records.answer import Answer
from voight_middleware.records.call import Record

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 8 * 1024 * 1024
"""A larger segment is closed, and a new one started."""
BACKLOG_BYTES = 8 * 1024 * 1024
"""
How many bytes wait in memory while the disk cannot be written. Beyond that, the oldest records are
dropped and counted.
"""

SEGMENTS = 16
"""The minimum number of segments in a full folder. With a small limit, segments are smaller."""
FULL_SECONDS = 1.0
"""Seconds between two checks of a full folder."""
REJECTED = "rejected.jsonl"
"""The rejected lines of a journal folder, unchanged."""
REASONS = "rejected.log"
"""Why they were rejected."""
LOST = "lost.log"
"""How many records were dropped, and when."""
MAX_REASON = 500
_IS_OWNED = "_is_owned"
"""A method of a reentrant lock, used by ``threading.Condition``. It has no public name."""

_encode = msgspec.json.Encoder().encode
_decode: Callable[[bytes], Record] = msgspec.json.Decoder(Record).decode
_decode_answer = msgspec.json.Decoder(Answer).decode


class Journal:
    """
    The journal of this process.

    ``append`` never raises. ``written``, ``dropped`` and ``failures`` count records and errors.

    Args:
        folder: The folder with the segments of all processes of this host.
        stamp: Names the prices of a segment's calls, when the segment starts.
        limit: The maximum size of the folder, in bytes, to start another segment. Open segments do
            not count. Each process has one, of at most ``SEGMENT_BYTES``, and only closed segments
            give space back.
    """

    def __init__(
        self, folder: Path, limit: int = JOURNAL_LIMIT, stamp: Stamp | None = None
    ) -> None:
        self.folder = folder
        self.limit = limit
        self._stamp = stamp or Stamp(folder)
        self.written = 0
        self.dropped = 0
        self.failures = 0
        self._fd: int | None = None
        self._name: str | None = None
        self._size = 0
        self._end = 0
        self._torn = 0
        """How many bytes at the end of the segment are an incomplete record."""
        self._failing = False
        self._full_until = 0.0
        self._reported_dropped = 0
        self._closed: list[Path] = []
        self._catching_up = False
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        # reentrant: a stream that is garbage-collected inside it appends its own record
        self._lock = threading.RLock()

    def append(self, record: Record | Answer) -> None:
        """
        Write one record. If the disk refuses, keep it in memory and retry with the next record.
        """
        try:
            line = _encode(record) + b"\n"
        except UnicodeEncodeError:
            # half a character (a lone surrogate) in a model name that a client sent
            _make_whole(record)
            line = _encode(record) + b"\n"
        with self._lock:
            if self._backlog or self._fd is None or self._size > self._end:
                self._catch_up(line)
                return
            self._size += len(line)
            try:
                if (count := os.write(self._fd, line)) != len(line):
                    self._torn += count
                    raise OSError("short write")
            except OSError as error:
                self._keep_in_memory(line, error)
            else:
                self.written += 1

    def closed(self) -> list[Path]:
        """
        Return the closed segments of this process that still exist. They are not fully in the
        ledger.
        """
        with self._lock:
            self._closed = [path for path in self._closed if path.exists()]
            return self._closed

    def position(self) -> tuple[str, int] | None:
        """
        Return the name of the open segment, and its length in bytes. None before the first record.
        """
        with self._lock:
            if self._fd is None or self._name is None:
                return None
            return self._name, os.fstat(self._fd).st_size

    @property
    def waiting(self) -> int:
        """How many records wait in memory because the disk could not be written."""
        return len(self._backlog)

    def is_in_use_here(self) -> bool:
        """
        Return whether this thread is inside the journal. Then a call that a garbage collection
        ends must not wait for anything.
        """
        return bool(getattr(self._lock, _IS_OWNED)())

    def rotate(self) -> None:
        """
        Close this segment, so that the ingester can delete it. The next record starts another.
        """
        with self._lock:
            self._close()
            self._report_dropped()

    def check(self) -> None:
        """Start another segment if this one was deleted: nobody would read its records."""
        with self._lock:
            if self._fd is not None and os.fstat(self._fd).st_nlink == 0:
                self.failures += 1
                logger.error(
                    "the journal in %s was deleted while in use; calls that were not in the "
                    "ledger yet are lost",
                    self.folder,
                )
                self.rotate()

    def end(self) -> None:
        """
        Close this segment at process exit. Records that still wait in memory are lost and counted.
        """
        with self._lock:
            self.retry()
            self.dropped += len(self._backlog)
            self._backlog.clear()
            self._backlog_bytes = 0
            self.rotate()

    def retry(self) -> bool:
        """Write the records that wait in memory. Return whether none is left."""
        with self._lock:
            if self._backlog:
                self._catch_up(None)
            return not self._backlog

    def after_fork(self) -> None:
        """
        Reset the journal in a forked child. The segment and its lock belong to the parent: close
        the file, but do not release the lock.
        """
        self._lock = threading.RLock()
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = None
        self._name = None
        self._size = 0
        self._catching_up = False
        self._failing = False
        self._backlog.clear()
        self._closed = []
        self._backlog_bytes = self._reported_dropped = 0
        self.written = self.dropped = self.failures = 0

    def _catch_up(self, line: bytes | None) -> None:
        if line is not None:
            self._backlog.append(line)
            self._backlog_bytes += len(line)
        # a collected stream or a signal handler appends inside the loop below: the loop writes it
        if self._catching_up:
            return
        self._catching_up = True
        try:
            if self._fd is None or self._size > self._end:
                self._open()
            while self._backlog:
                self._write_whole(self._backlog[0])
                self._backlog_bytes -= len(self._backlog.popleft())
                self.written += 1
            if self._failing:
                self._failing = False
                self._report_dropped()
                logger.warning(
                    "the journal in %s can be written again; no records wait in memory", self.folder
                )
        except OSError as error:
            self._report_failure(error)
            if self._backlog_bytes > BACKLOG_BYTES:
                self._drop()
        finally:
            self._catching_up = False

    def _write_whole(self, line: bytes) -> None:
        assert self._fd is not None
        data = b"\n" + line if self._torn else line
        self._size += len(data)
        if (count := os.write(self._fd, data)) != len(data):
            self._torn += count
            raise OSError("short write")
        self._torn = 0

    def _keep_in_memory(self, line: bytes, error: OSError) -> None:
        self._backlog.append(line)
        self._backlog_bytes += len(line)
        self._report_failure(error)

    def _report_failure(self, error: OSError) -> None:
        self.failures += 1
        if error.errno == errno.ENOSPC and self._fd is not None:
            self._make_room()
        if not self._failing:
            self._failing = True
            logger.error(
                "the journal in %s cannot be written (%s); calls wait in memory", self.folder, error
            )

    def _make_room(self) -> None:
        """
        Close a segment with records on a full disk. Its space comes back once they are in the
        ledger.
        """
        assert self._fd is not None
        with contextlib.suppress(OSError):
            size = os.fstat(self._fd).st_size - self._torn
            if self._torn:  # the incomplete record is written again, to another segment
                os.ftruncate(self._fd, size)
                self._torn = 0
            if size:
                self._close()

    def _drop(self) -> None:
        if self.dropped == self._reported_dropped:
            size = BACKLOG_BYTES // 2**20
            logger.error(
                "calls are being lost: the journal in %s cannot be written, and %d MiB wait in "
                "memory",
                self.folder,
                size,
            )
        while self._backlog_bytes > BACKLOG_BYTES:
            self._backlog_bytes -= len(self._backlog.popleft())
            self.dropped += 1

    def _report_dropped(self) -> None:
        """
        Write the number of dropped records to a file, for ``voight doctor`` after this process has
        exited.
        """
        lost = self.dropped - self._reported_dropped
        if lost:
            self._reported_dropped = self.dropped
            logger.error(
                "%d records were lost while the journal in %s could not be written",
                lost,
                self.folder,
            )
            with contextlib.suppress(OSError):
                append(self.folder / LOST, f"{utc_now()} {lost} process {os.getpid()}\n".encode())

    def _check_limit(self) -> None:
        """
        Check that the folder has room for another segment: once per segment, and once a second
        while it is full.

        Raises:
            OSError: The folder is full. The current segment is closed first, so that it can be
                deleted once it is in the ledger.
        """
        now = time.monotonic()
        if now >= self._full_until:
            if folder_bytes(self.folder) + self._end <= self.limit:
                return
            if (
                closed_bytes(self.folder) + (self._size if self._fd is not None else 0)
                <= self.limit
            ):
                return
            self._full_until = now + FULL_SECONDS
        self._close()
        raise OSError(errno.EDQUOT, f"it has reached the {self.limit:,} bytes of journal_limit")

    def _open(self) -> None:
        self._end = min(SEGMENT_BYTES, self.limit // SEGMENTS)
        self._check_limit()
        make_folder(self.folder)
        stamp = self._stamp()
        name = f"{os.getpid()}-{uuid.uuid4().hex}{stamp and f'.{stamp}'}.jsonl"
        # locked before it has a segment's name: an ingester may delete every segment that it can
        # lock
        unnamed = self.folder / f"{name}.new"
        fd = open_private(unnamed, os.O_WRONLY | os.O_EXCL | os.O_APPEND)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(self.folder / name)
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                unnamed.unlink()
            raise
        self._close()
        self._fd, self._name, self._size, self._torn = fd, name, 0, 0

    def _close(self) -> None:
        fd, name = self._fd, self._name
        self._fd = self._name = None
        if fd is not None and name is not None:
            self._closed = [*self.closed(), self.folder / name]
            os.close(fd)


def _make_whole(record: Record | Answer) -> None:
    """Escape lone surrogates, which no file and no ledger can store."""
    for name in record.__struct_fields__:
        if isinstance(value := getattr(record, name), str):
            setattr(record, name, value.encode(errors="backslashreplace").decode())


class Segment:
    """A segment file, for its reader."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    def size(self) -> int:
        """Return the length in bytes; 0 if the file is gone."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def read(self, offset: int, limit: int = 1 << 20) -> bytes:
        """
        Return whole lines from *offset*, up to *limit* bytes. A longer line is returned whole.
        """
        with self.path.open("rb") as file:
            file.seek(offset)
            data = file.read(limit)
            end = data.rfind(b"\n")
            while end < 0 and len(data) >= limit:
                more = file.read(limit)
                if not more:
                    break
                end = len(data) + more.rfind(b"\n") if b"\n" in more else -1
                data += more
            return data[: end + 1]

    def tail(self, offset: int) -> bytes:
        """
        Return everything from *offset*. After a dead writer, this is the torn end of its last line.
        """
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read()

    @contextlib.contextmanager
    def adopt(self) -> Generator[bool]:
        """
        Hold the writer's lock. Yield False if the writer is alive and still uses this segment.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield False
            return
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def delete(self) -> None:
        """Remove the file, once all of it is in the ledger."""
        self.path.unlink(missing_ok=True)


def segments(folder: Path) -> list[Segment]:
    """Return all segments of a journal folder, the oldest first."""
    dated: list[tuple[float, Segment]] = []
    for path in folder.glob("*-*.jsonl"):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            # a pipe would block, a link may lead anywhere
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                dated.append((status.st_mtime, Segment(path)))
    return [segment for _, segment in sorted(dated, key=lambda pair: pair[0])]


def decode(line: bytes, source: str) -> Record:
    """
    Return the record of a journal line.

    Args:
        line: The line.
        source: Its segment and its position there. The id of an answer's call follows from them.

    Raises:
        msgspec.DecodeError: The line is torn, or not a record.
    """
    return _decode_answer(line).call(source) if line[:1] == b"[" else _decode(line)


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a journal folder."""
    total = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_size
    return total


def closed_bytes(folder: Path) -> int:
    """
    Return the size of all files in a journal folder except open segments of running processes.
    """
    open_bytes = 0
    for segment in segments(folder):
        with contextlib.suppress(OSError), segment.adopt() as dead:
            open_bytes += 0 if dead else segment.size()
    return folder_bytes(folder) - open_bytes


def reject(folder: Path, line: bytes, source: str = "", reason: str = "") -> None:
    """
    Move a line to ``rejected.jsonl``: no written record is thrown away.

    If the *source* (segment and position) is given, a line of ``rejected.log`` has the time, the
    source and the *reason*, in this order.
    """
    append(folder / REJECTED, line.rstrip(b"\n") + b"\n")
    if source:
        append(
            folder / REASONS,
            f"{utc_now()} {source} {' '.join(reason.split())[:MAX_REASON]}\n".encode(
                errors="backslashreplace"
            ),
        )


def reasons(folder: Path) -> list[tuple[str, str, str]]:
    """Return time, source and reason of the rejected lines, the oldest first."""
    try:
        text = (folder / REASONS).read_text(errors="replace")
    except FileNotFoundError:
        return []
    parts = [line.split(" ", 2) for line in text.splitlines()]
    return [(part[0], part[1], part[2]) for part in parts if len(part) == 3]


def lost(folder: Path) -> list[str]:
    """Return a line for each time that records were dropped: when, how many, by which process."""
    try:
        return (folder / LOST).read_text(errors="replace").splitlines()
    except OSError:
        return []
