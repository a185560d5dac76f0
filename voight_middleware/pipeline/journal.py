"""
The journal: the per-process append-only file that a finished call is written to before anything else.

One process writes one segment, a line of JSON per record, and holds a lock on it (``flock``) for as long as it lives; whoever can
take that lock knows that the writer is gone or has moved on, and may adopt the segment. A record is one ``write()`` of a whole
line, so ``kill -9`` loses nothing that was written and tears at most the line that was being written.
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
from voight_middleware.records.call import Record

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 8 * 1024 * 1024
"""A segment that has grown beyond this is closed, and a new one begun."""
BACKLOG_BYTES = 8 * 1024 * 1024
"""How much is kept in memory while the disk cannot be written; beyond it the oldest records are dropped and counted."""

SEGMENTS = 16
"""How many segments a full folder has at least: with a small limit they are smaller."""
FULL_SECONDS = 1.0
"""How long a folder without room is not looked at again."""
REJECTED = "rejected.jsonl"
"""The lines of a journal folder that were set aside, as they were."""
REASONS = "rejected.log"
"""Why they were."""
LOST = "lost.log"
"""How many records were dropped, and when."""
MAX_REASON = 500
_IS_OWNED = "_is_owned"
"""What ``threading.Condition`` asks a reentrant lock; there is no public name for it."""

_encode = msgspec.json.Encoder().encode
_decode: Callable[[bytes], Record] = msgspec.json.Decoder(Record).decode


class Journal:
    """
    The journal of this process. ``append`` never raises; ``written``, ``dropped`` and ``failures`` count what became of the records.

    Args:
        folder: Where the segments of all processes of this host are.
        stamp: Says how the calls of a segment are to be priced, when one is begun.
        limit: How many bytes the folder may have for another segment to be begun. Segments that are being written do not count then:
            each process has one, of ``SEGMENT_BYTES`` at most, and space comes back only by those that are closed.
    """

    def __init__(self, folder: Path, limit: int = JOURNAL_LIMIT, stamp: Stamp | None = None) -> None:
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
        """How many bytes at the end of the segment are part of a record."""
        self._failing = False
        self._full_until = 0.0
        self._told_dropped = 0
        self._closed: list[Path] = []
        self._catching_up = False
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._lock = threading.RLock()  # reentrant: a stream that is garbage-collected in here appends its own record

    def append(self, record: Record) -> None:
        """Write one record. Where the disk refuses, it is kept in memory and tried again with the next one."""
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
                self._keep(line, error)
            else:
                self.written += 1

    def closed(self) -> list[Path]:
        """The segments that this process has closed and nobody has deleted yet, as they are not all in the ledger."""
        with self._lock:
            self._closed = [path for path in self._closed if path.exists()]
            return self._closed

    def position(self) -> tuple[str, int] | None:
        """The name and length in bytes of the segment that is being written; None before the first record."""
        with self._lock:
            if self._fd is None or self._name is None:
                return None
            return self._name, os.fstat(self._fd).st_size

    @property
    def waiting(self) -> int:
        """How many records are kept in memory because the disk could not be written."""
        return len(self._backlog)

    def is_in_use_here(self) -> bool:
        """Whether this very thread is inside the journal, which a collected stream's call ends in then: nothing may be waited for."""
        return bool(getattr(self._lock, _IS_OWNED)())

    def rotate(self) -> None:
        """Close this segment, so that whoever ingests can take and delete it; the next record begins another."""
        with self._lock:
            self._close()
            self._tell_dropped()

    def check(self) -> None:
        """Begin another segment where somebody has deleted this one under us: what is written into it is never read."""
        with self._lock:
            if self._fd is not None and os.fstat(self._fd).st_nlink == 0:
                self.failures += 1
                logger.error("the journal in %s was deleted while in use: calls that were not in the ledger yet are lost", self.folder)
                self.rotate()

    def end(self) -> None:
        """Close this segment as the process ends: what could not be written until now is lost, and counted."""
        with self._lock:
            self.retry()
            self.dropped += len(self._backlog)
            self._backlog.clear()
            self._backlog_bytes = 0
            self.rotate()

    def retry(self) -> bool:
        """Write what is kept in memory; whether nothing is left."""
        with self._lock:
            if self._backlog:
                self._catch_up(None)
            return not self._backlog

    def after_fork(self) -> None:
        """In a child: the segment belongs to the parent. Its lock is the parent's too and must not be released, only closed."""
        self._lock = threading.RLock()
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd, self._name, self._size, self._catching_up, self._failing = None, None, 0, False, False
        self._backlog.clear()
        self._closed = []
        self._backlog_bytes = self.written = self.dropped = self.failures = self._told_dropped = 0

    def _catch_up(self, line: bytes | None) -> None:
        if line is not None:
            self._backlog.append(line)
            self._backlog_bytes += len(line)
        if self._catching_up:  # appended from within the loop below, by a collected stream or a signal handler: the loop writes it
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
                self._tell_dropped()
                logger.warning("the journal in %s is written again; nothing waits in memory any more", self.folder)
        except OSError as error:
            self._complain(error)
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

    def _keep(self, line: bytes, error: OSError) -> None:
        self._backlog.append(line)
        self._backlog_bytes += len(line)
        self._complain(error)

    def _complain(self, error: OSError) -> None:
        self.failures += 1
        if error.errno == errno.ENOSPC and self._fd is not None:
            self._make_room()
        if not self._failing:
            self._failing = True
            logger.error("the journal in %s cannot be written (%s); calls are kept in memory until it can", self.folder, error)

    def _make_room(self) -> None:
        """The disk is full: close a segment that has records, so that its space comes back once they are in the ledger."""
        assert self._fd is not None
        with contextlib.suppress(OSError):
            size = os.fstat(self._fd).st_size - self._torn
            if self._torn:  # what was written of the last record is written again, elsewhere
                os.ftruncate(self._fd, size)
                self._torn = 0
            if size:
                self._close()

    def _drop(self) -> None:
        if self.dropped == self._told_dropped:
            most = BACKLOG_BYTES // 2**20
            logger.error("calls are being lost: the journal in %s cannot be written, and %d MiB wait in memory", self.folder, most)
        while self._backlog_bytes > BACKLOG_BYTES:
            self._backlog_bytes -= len(self._backlog.popleft())
            self.dropped += 1

    def _tell_dropped(self) -> None:
        """Write down how many records were dropped, where ``voight doctor`` finds it when this process is long gone."""
        lost = self.dropped - self._told_dropped
        if lost:
            self._told_dropped = self.dropped
            logger.error("%d records were lost while the journal in %s could not be written", lost, self.folder)
            with contextlib.suppress(OSError):
                append(self.folder / LOST, f"{utc_now()} {lost} process {os.getpid()}\n".encode())

    def _check_limit(self) -> None:
        """
        Look whether the folder has room for another segment: at most once per segment, and once a second while it has none.

        Raises:
            OSError: It has not. The segment so far is closed then, so that it can be deleted once it is in the ledger.
        """
        now = time.monotonic()
        if now >= self._full_until:
            if folder_bytes(self.folder) + self._end <= self.limit:
                return
            if closed_bytes(self.folder) + (self._size if self._fd is not None else 0) <= self.limit:
                return
            self._full_until = now + FULL_SECONDS
        self._close()
        raise OSError(errno.EDQUOT, f"it has the {self.limit:,} bytes that journal_limit allows")

    def _open(self) -> None:
        self._end = min(SEGMENT_BYTES, self.limit // SEGMENTS)
        self._check_limit()
        make_folder(self.folder)
        stamp = self._stamp()
        name = f"{os.getpid()}-{uuid.uuid4().hex}{stamp and f'.{stamp}'}.jsonl"
        unnamed = self.folder / f"{name}.new"  # locked before it gets a name that an ingester looks for: it may delete what it can lock
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


class Segment:
    """One segment file, as its reader sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    def size(self) -> int:
        """Length in bytes; 0 where the file is gone."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def read(self, offset: int, limit: int = 1 << 20) -> bytes:
        """Up to *limit* bytes from *offset*, cut behind the last whole line; more than *limit* where a single line is longer."""
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
        """Everything from *offset*: of a dead writer's segment, the torn rest of its last line."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read()

    @contextlib.contextmanager
    def adopt(self) -> Generator[bool]:
        """Hold the writer's lock; yields False where the writer is alive and still writes here."""
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
    """All segments of a journal folder, the oldest first."""
    found: list[tuple[float, Segment]] = []
    for path in folder.glob("*-*.jsonl"):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):  # a pipe would be waited for, a link may lead anywhere
                found.append((status.st_mtime, Segment(path)))
    return [segment for _, segment in sorted(found, key=lambda pair: pair[0])]


def decode(line: bytes) -> Record:
    """
    One record of a journal line.

    Raises:
        msgspec.DecodeError: The line is torn, or no record.
    """
    return _decode(line)


def folder_bytes(folder: Path) -> int:
    """The size of everything in a journal folder."""
    total = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_size
    return total


def closed_bytes(folder: Path) -> int:
    """The size of everything in a journal folder but of the segments that living processes write."""
    living = 0
    for segment in segments(folder):
        with contextlib.suppress(OSError), segment.adopt() as dead:
            living += 0 if dead else segment.size()
    return folder_bytes(folder) - living


def reject(folder: Path, line: bytes, source: str = "", reason: str = "") -> None:
    """
    Set a line aside, in ``rejected.jsonl``: nothing that was written is thrown away. Of a *source* (segment and position), time,
    source and *reason* are a line of ``rejected.log``, in this order.
    """
    append(folder / REJECTED, line.rstrip(b"\n") + b"\n")
    if source:
        append(folder / REASONS, f"{utc_now()} {source} {' '.join(reason.split())[:MAX_REASON]}\n".encode(errors="backslashreplace"))


def reasons(folder: Path) -> list[tuple[str, str, str]]:
    """Time, source and reason of the lines that were set aside, the oldest first."""
    try:
        text = (folder / REASONS).read_text(errors="replace")
    except FileNotFoundError:
        return []
    parts = [line.split(" ", 2) for line in text.splitlines()]
    return [(part[0], part[1], part[2]) for part in parts if len(part) == 3]


def lost(folder: Path) -> list[str]:
    """Of each time that records of this folder were dropped: when, how many, and of which process."""
    try:
        return (folder / LOST).read_text(errors="replace").splitlines()
    except OSError:
        return []
