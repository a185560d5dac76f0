"""The ingest lock: it elects the one process of a host that ingests."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from voight_middleware.config.private_files import make_folder, open_private, utc_now


class IngestLock:
    """The file lock that makes one process of this host the ingester of a journal folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._fd: int | None = None

    def acquire(self) -> bool:
        """
        Try to become the ingester. Return whether this process is the ingester now.

        Raises:
            OSError: The folder cannot be written.
        """
        # deleted with the folder: the next process makes another file
        if self._fd is not None and os.fstat(self._fd).st_nlink == 0:
            self.release()
        if self._fd is not None:
            return True
        make_folder(self.folder)
        fd = open_private(self.folder / "ingest.lock", os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    @property
    def held(self) -> bool:
        """Whether this process is the ingester."""
        return self._fd is not None

    def is_locked(self) -> bool:
        """Whether any process is the ingester."""
        try:
            fd = os.open(self.folder / "ingest.lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def record_delivery(self) -> None:
        """Write into the lock file that records have reached the ledger just now."""
        if self._fd is not None:
            with contextlib.suppress(OSError):  # a full disk: only people read this time
                os.pwrite(self._fd, f"{utc_now()}\n".encode(), 0)

    def last_delivery(self) -> str | None:
        """
        Return when records of this folder last reached the ledger, such as
        ``2026-11-21T17:28:00Z``. None if unknown.
        """
        try:
            return (self.folder / "ingest.lock").read_text().strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def release(self) -> None:
        """Release the lock. In a forked child, this only drops the child's copy of it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
