"""
The outbox: the ids of calls still to be sent to Voight, in files next to the journal.

The ledger has no insertion order: late calls would fall behind any cursor. The outbox stores ids,
not calls: the ledger has the latest owner, and erased data must not wait here. Only the ingesting
process uses it.

A line is one batch of a journal segment with the position of each record. It is written before the
batch goes into the ledger, so that a batch read again after a crash is not queued twice. The state
is the position of the next event, replaced after each one.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from voight_middleware.config.private_files import append, make_folder, open_private
from voight_middleware.diagnostics import warn_once
from voight_middleware.lazy import lazy_pattern

FOLDER = "events"
"""
Inside the journal's folder. If it exists, every ingester queues calls: another process may have the
key.
"""
REFUSED = "refused.jsonl"
"""
The calls refused by the server, one JSON object per line with id and reason. They are not sent
again.
"""
FILE_BYTES = 1024 * 1024
"""A new file begins when the last one exceeds this size."""
MAX_BYTES = 64 * 1024 * 1024
"""
The maximum size of all files, enough for over a million calls. Beyond it, the oldest calls are
dropped and counted. The ledger still has them.
"""
REFUSED_BYTES = 10 * 1024 * 1024

_MANY = 500
_NAME = lazy_pattern(r"[0-9]{12}\.ids")


class Entry(NamedTuple):
    """One call to send."""

    call_id: str
    occurred_at: int
    """Microseconds since 1970, UTC."""
    position: int
    """The position of its record in the journal segment."""
    job: bool
    """Whether the ledger may have it under another time: that of the job's submission."""


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """One line: the calls of a journal segment, up to the position read."""

    segment: str
    end: int
    calls: tuple[tuple[str, int, int, bool], ...]


class Cursor(NamedTuple):
    """
    A position in the outbox: the number of the file, the offset of the line, the call in the line.
    """

    file: int = 0
    offset: int = 0
    call: int = 0


class Pending(NamedTuple):
    """A waiting call, its batch, and the position after it."""

    entry: Entry
    segment: str
    end: int
    next: Cursor


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """The progress of sending, and the outcomes. ``voight doctor`` shows it."""

    place: tuple[int, int, int] = (0, 0, 0)
    sent: int = 0
    refused: int = 0
    """Stored in ``refused.jsonl``."""
    dropped: int = 0
    """The oldest calls of a full outbox, or calls that could not be written to the disk."""
    gone: int = 0
    """No longer in the ledger when their turn came: deleted, or a duplicate of an earlier id."""
    sent_at: int | None = None
    """The time of the newest accepted event, in microseconds since 1970, UTC."""
    problem: str | None = None
    """Why nothing can be sent at present."""
    stopped: bool = False
    """Whether a person must fix it: a rejected key, a deleted agent."""


class Status(msgspec.Struct, frozen=True):
    """The current outbox."""

    state: State
    waiting: int
    """Calls still to be sent."""
    size: int
    """The size of its files in bytes."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Batch).decode
_decode_state = msgspec.json.Decoder(State).decode


class Outbox:
    """
    The outbox of one journal folder. The ingester appends and the sender reads, on threads of one
    process.

    Raises:
        OSError: The folder cannot be created.
    """

    def __init__(self, journal: Path) -> None:
        self.folder = journal / FOLDER
        make_folder(self.folder)
        self._lock = threading.Lock()
        self._queued: dict[str, int] | None = None
        self._look_at = _MANY
        self.state = _read_state(self.folder)
        self._kept = True

    def append(self, segment: str, end: int, entries: Sequence[Entry]) -> None:
        """
        Queue calls of *segment*, which has been read up to *end*. Calls queued before are skipped.

        Raises:
            OSError: The disk refuses. None of the calls is queued, and they are counted as dropped.
        """
        with self._lock:
            new = tuple(entries)
            try:
                queued = self._queued_ends()
                new = tuple(entry for entry in entries if entry.position >= queued.get(segment, 0))
                if not new:
                    return
                self._write(_encode(Batch(segment, end, new)) + b"\n")
            except OSError:
                with contextlib.suppress(OSError):
                    self._change(dropped=self.state.dropped + len(new))
                raise
            queued[segment] = end
            with contextlib.suppress(OSError):  # they are queued: the next call enforces the limit
                self._forget_deleted(queued)
                self._bound()

    def read(self, place: Cursor | None = None) -> Iterator[Pending]:
        """
        Yield the waiting calls from *place* on, the oldest first. The default is the first call not
        sent yet.
        """
        start = Cursor(*self.state.place) if place is None else place
        for number in _numbers(self.folder):
            if number < start.file:
                continue
            offset = start.offset if number == start.file else 0
            for line in _lines(self.folder, number, offset):
                batch = _batch(line)
                after = offset + len(line)
                if batch is not None:
                    skipped = start.call if (number, offset) == (start.file, start.offset) else 0
                    for index, call in enumerate(batch.calls[skipped:], skipped + 1):
                        cursor = (
                            Cursor(number, offset, index)
                            if index < len(batch.calls)
                            else Cursor(number, after)
                        )
                        yield Pending(Entry(*call), batch.segment, batch.end, cursor)
                offset = after

    def advance(self, cursor: Cursor, **changes: object) -> None:
        """
        Move the position after a call and save *changes* of the state, before anything else is
        sent.

        Raises:
            OSError: The disk refuses. After a crash, the call would be sent again.
        """
        with self._lock:
            self._change(place=max(tuple(cursor), self.state.place), **changes)
            # The newest file stays: it shows what has been queued.
            for number in _numbers(self.folder)[:-1]:
                if number < self.state.place[0]:
                    _file(self.folder, number).unlink(missing_ok=True)

    def note(self, **changes: object) -> None:
        """Save *changes* of the state, if the disk allows."""
        with self._lock, contextlib.suppress(OSError):
            self._change(**changes)

    def reject(self, call_id: str, status: int, reason: object) -> None:
        """
        Set aside a call that the server refused.

        Raises:
            OSError: The disk refuses.
        """
        path = self.folder / REFUSED
        if not path.exists() or path.stat().st_size < REFUSED_BYTES:
            append(path, _encode({"call_id": call_id, "status": status, "reason": reason}) + b"\n")

    def _change(self, **changes: object) -> None:
        new = msgspec.structs.replace(self.state, **changes)
        if new != self.state or not self._kept:
            self.state, self._kept = new, False
            temporary = self.folder / "state.new"
            with os.fdopen(open_private(temporary, os.O_WRONLY | os.O_TRUNC), "wb") as file:
                file.write(_encode(new))
                file.flush()
                # An empty file after a power failure would resend everything.
                os.fsync(file.fileno())
            temporary.replace(self.folder / "state.json")
            self._kept = True

    def _queued_ends(self) -> dict[str, int]:
        if self._queued is None:
            self._queued = {}
            for number in _numbers(self.folder):
                for line in _lines(self.folder, number, 0):
                    if (batch := _batch(line)) is not None:
                        self._queued[batch.segment] = batch.end
        return self._queued

    def _forget_deleted(self, queued: dict[str, int]) -> None:
        """
        Forget deleted segments, which are not read again. An ingester outlives many processes.
        """
        if len(queued) > self._look_at:
            for segment in [name for name in queued if not (self.folder.parent / name).exists()]:
                del queued[segment]
            self._look_at = max(_MANY, 2 * len(queued))

    def _write(self, line: bytes) -> None:
        numbers = _numbers(self.folder)
        # Never before the position, even after somebody has deleted files: it would not be read
        # there.
        path = _file(
            self.folder,
            numbers[-1]
            if numbers and numbers[-1] >= self.state.place[0]
            else self.state.place[0] + 1,
        )
        if path.exists():
            size = path.stat().st_size
            # The process died while writing it: the journal still has it.
            if not _ends_whole(path, size):
                size = sum(map(len, _lines(self.folder, numbers[-1], 0)))
                os.truncate(path, size)
            if size > FILE_BYTES:
                path = _file(self.folder, numbers[-1] + 1)
        append(path, line)

    def _bound(self) -> None:
        numbers = _numbers(self.folder)
        size = sum(_size(self.folder, number) for number in numbers)
        while size > MAX_BYTES and len(numbers) > 1:
            oldest = numbers.pop(0)
            size -= _size(self.folder, oldest)
            lost = sum(1 for waiting in self.read() if waiting.next.file == oldest)
            self._change(
                dropped=self.state.dropped + lost, place=max((oldest + 1, 0, 0), self.state.place)
            )
            _file(self.folder, oldest).unlink(missing_ok=True)


def open_outbox(journal: Path, *, create: bool = False) -> Outbox | None:
    """
    Return the outbox of a journal folder. Return None if it cannot be created, or is missing and
    *create* is False.
    """
    if not create and not (journal / FOLDER).is_dir():
        return None
    try:
        return Outbox(journal)
    except OSError as error:
        warn_once(
            f"no events are queued for Voight: {journal / FOLDER} cannot be created "
            f"({error.strerror})"
        )
        return None


def status(journal: Path) -> Status | None:
    """
    Return the status of a journal folder's outbox, without changing it. Return None if there is
    none.
    """
    folder = journal / FOLDER
    if not folder.is_dir():
        return None
    outbox = Outbox(journal)
    return Status(
        outbox.state,
        sum(1 for _ in outbox.read()),
        sum(_size(folder, number) for number in _numbers(folder)),
    )


def _numbers(folder: Path) -> list[int]:
    return sorted(
        int(name[:12]) for name in map(os.path.basename, folder.iterdir()) if _NAME.fullmatch(name)
    )


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:012}.ids"


def _size(folder: Path, number: int) -> int:
    with contextlib.suppress(FileNotFoundError):
        return _file(folder, number).stat().st_size
    return 0


def _lines(folder: Path, number: int, offset: int) -> Iterator[bytes]:
    """Yield the complete lines of a file."""
    with contextlib.suppress(FileNotFoundError), _file(folder, number).open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield line


def _ends_whole(path: Path, size: int) -> bool:
    if size == 0:
        return True
    with path.open("rb") as file:
        file.seek(size - 1)
        return file.read(1) == b"\n"


def _batch(line: bytes) -> Batch | None:
    try:
        return _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _read_state(folder: Path) -> State:
    try:
        return _decode_state((folder / "state.json").read_bytes())
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return State()
