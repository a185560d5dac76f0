"""
The outbox: which calls are still to be sent to Voight, as ids, beside the journal.

Ids in files of our own, as the ledger has no order of insertion to follow: late calls fall in behind any cursor. Ids and not calls, as
the ledger knows their latest owner, and what is erased there must not wait here. Only the process that ingests touches it.

A line is one batch of a journal segment, written before the batch goes into the ledger, with the position of each record: what is read
again after a crash is not queued again. The state says how far has been sent, and is replaced after every event.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from voight_middleware.config.private_files import append, make_folder, open_private
from voight_middleware.diagnostics import warn_once

FOLDER = "events"
"""Inside the journal's. Where it is there, whoever ingests queues calls: the key may be known to another process."""
REFUSED = "refused.jsonl"
"""What the server has refused, one object a line with the id of the call and the reason. Such a call is not sent again."""
FILE_BYTES = 1024 * 1024
"""A file that has grown beyond this is left, and another begun."""
MAX_BYTES = 64 * 1024 * 1024
"""How large all files may be together, over a million calls. Beyond it the oldest are dropped and counted: the ledger has them."""
REFUSED_BYTES = 10 * 1024 * 1024

_MANY = 500
_NAME = re.compile(r"[0-9]{12}\.ids")


class Entry(NamedTuple):
    """One call that is to be sent."""

    call_id: str
    occurred_at: int
    """Microseconds since 1970, UTC."""
    position: int
    """Where its record begins in the journal's segment."""
    job: bool
    """Whether it may be in the ledger with another time: that at which its job was submitted."""


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """One line: calls of one journal segment, up to where it has been read."""

    segment: str
    end: int
    calls: tuple[tuple[str, int, int, bool], ...]


class Cursor(NamedTuple):
    """A place in the outbox: the file's number, the line's offset in it, the call in the line."""

    file: int = 0
    offset: int = 0
    call: int = 0


class Pending(NamedTuple):
    """A call that waits, the batch that it came with, and the place behind it."""

    entry: Entry
    segment: str
    end: int
    next: Cursor


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far has been sent, and what has become of the calls; ``voight doctor`` shows it."""

    place: tuple[int, int, int] = (0, 0, 0)
    sent: int = 0
    refused: int = 0
    """Set aside in ``refused.jsonl``."""
    dropped: int = 0
    """The oldest, as too many waited; or the disk could not be written."""
    gone: int = 0
    """No longer in the ledger when their turn came: deleted, or known under the same id before."""
    sent_at: int | None = None
    """When the newest event was accepted: microseconds since 1970, UTC."""
    problem: str | None = None
    """Why nothing can be sent at present."""
    stopped: bool = False
    """Whether it needs somebody to put it right: a key that is refused, an agent that is deleted."""


class Status(msgspec.Struct, frozen=True):
    """The outbox as it is now."""

    state: State
    waiting: int
    """Calls that are still to be sent."""
    size: int
    """Of its files, in bytes."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Batch).decode
_decode_state = msgspec.json.Decoder(State).decode


class Outbox:
    """
    The outbox of one journal folder. The ingester appends, the sender reads and settles, on threads of one process.

    Raises:
        OSError: The folder cannot be made.
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
        Queue calls of *segment*, which has been read up to *end*; those that are queued already are passed over.

        Raises:
            OSError: The disk refuses; none of them is queued, and they are counted as dropped.
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
            with contextlib.suppress(OSError):  # they are queued: what is beyond the bound goes with the next
                self._forget_deleted(queued)
                self._bound()

    def read(self, place: Cursor | None = None) -> Iterator[Pending]:
        """The calls that wait, the oldest first, from *place* on; by default from the first that has not been sent."""
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
                        behind = Cursor(number, offset, index) if index < len(batch.calls) else Cursor(number, after)
                        yield Pending(Entry(*call), batch.segment, batch.end, behind)
                offset = after

    def advance(self, behind: Cursor, **changes: object) -> None:
        """
        Go on behind a call, and keep that with the *changes* of the state, before anything else is sent.

        Raises:
            OSError: The disk refuses; after a crash the call would be sent again.
        """
        with self._lock:
            self._change(place=max(tuple(behind), self.state.place), **changes)
            for number in _numbers(self.folder)[:-1]:  # the newest stays: what it has queued must be known
                if number < self.state.place[0]:
                    _file(self.folder, number).unlink(missing_ok=True)

    def note(self, **changes: object) -> None:
        """Keep *changes* of the state, as far as the disk allows."""
        with self._lock, contextlib.suppress(OSError):
            self._change(**changes)

    def reject(self, call_id: str, status: int, reason: object) -> None:
        """
        Set a call aside that the server has refused.

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
                os.fsync(file.fileno())  # an empty file after a power cut would have everything sent again
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
        """Processes come and go, and an ingester stays: a segment that was deleted is not read again."""
        if len(queued) > self._look_at:
            for segment in [name for name in queued if not (self.folder.parent / name).exists()]:
                del queued[segment]
            self._look_at = max(_MANY, 2 * len(queued))

    def _write(self, line: bytes) -> None:
        numbers = _numbers(self.folder)
        # Never behind the place, even if somebody has deleted files: what is queued there would not be read.
        path = _file(self.folder, numbers[-1] if numbers and numbers[-1] >= self.state.place[0] else self.state.place[0] + 1)
        if path.exists():
            size = path.stat().st_size
            if not _ends_whole(path, size):  # we died while we wrote it: the journal has it still
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
            self._change(dropped=self.state.dropped + lost, place=max((oldest + 1, 0, 0), self.state.place))
            _file(self.folder, oldest).unlink(missing_ok=True)


def open_outbox(journal: Path, *, create: bool = False) -> Outbox | None:
    """The outbox of a journal folder; None where there is none and *create* is False, or where it cannot be made."""
    if not create and not (journal / FOLDER).is_dir():
        return None
    try:
        return Outbox(journal)
    except OSError as error:
        warn_once(f"no events are queued for Voight: {journal / FOLDER} cannot be made ({error.strerror})")
        return None


def status(journal: Path) -> Status | None:
    """The outbox of a journal folder, for whoever only looks; None where there is none."""
    folder = journal / FOLDER
    if not folder.is_dir():
        return None
    outbox = Outbox(journal)
    return Status(outbox.state, sum(1 for _ in outbox.read()), sum(_size(folder, number) for number in _numbers(folder)))


def _numbers(folder: Path) -> list[int]:
    return sorted(int(name[:12]) for name in map(os.path.basename, folder.iterdir()) if _NAME.fullmatch(name))


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:012}.ids"


def _size(folder: Path, number: int) -> int:
    with contextlib.suppress(FileNotFoundError):
        return _file(folder, number).stat().st_size
    return 0


def _lines(folder: Path, number: int, offset: int) -> Iterator[bytes]:
    """The whole lines of a file, one at a time."""
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
