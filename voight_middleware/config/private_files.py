"""Files and folders that only their owner may read, whatever the umask of the process."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from pathlib import Path


def temporary_name() -> str:
    """Return the name that our folder has among the temporary files of all accounts."""
    return f"voight-{os.getuid()}"


def check_own(folder: Path) -> None:
    """
    Check that nobody else can have made *folder*, or can put something into it.

    Raises:
        OSError: It is missing, a link, of another account, or others may write into it.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "not a folder that this account alone can write", str(folder))


def give_to_owner(fd: int, folder: Path) -> None:
    """
    Give what root has just made in another account's *folder* to that account: a command that root runs first must not lock an
    application out of its own ledger. Do nothing for any other account.

    Raises:
        OSError: The owner cannot be changed.
    """
    if os.geteuid() != 0:
        return
    made, owner = os.fstat(fd), folder.stat()
    is_new = stat.S_ISDIR(made.st_mode) or (made.st_size == 0 and made.st_nlink == 1)
    if made.st_uid == 0 != owner.st_uid and is_new:
        os.fchown(fd, owner.st_uid, owner.st_gid)


def make_folder(folder: Path) -> None:
    """
    Make *folder* and those above it that are missing, each for its owner only. One that is there stays as it is.

    Raises:
        OSError: It cannot be made, is not a folder, or is in a temporary folder of ours that another account may have made.
    """
    try:
        _make_one(folder)
    except FileNotFoundError:
        if folder.parent == folder:
            raise
        make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            _make_one(folder)
    except OSError:
        if not folder.is_dir():
            raise
    for part in (folder, *folder.parents):
        if part.name == temporary_name():
            check_own(part)


def _make_one(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        give_to_owner(fd, folder.parent)
    finally:
        os.close(fd)


def open_private(path: Path, flags: int) -> int:
    """
    Return a descriptor of a file of ours, made for its owner only if it is missing. A link is not followed, and a pipe is not waited for.

    Raises:
        OSError: It cannot be opened, or is a link.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        give_to_owner(fd, path.parent)
    except BaseException:
        os.close(fd)
        raise
    return fd


def append(path: Path, data: bytes) -> None:
    """
    Append to a file of ours. No file stays open, which a forked child would have too.

    Raises:
        OSError: It cannot be opened, is a link, or not all of *data* was written.
    """
    fd = open_private(path, os.O_WRONLY | os.O_APPEND)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def utc_now() -> str:
    """Return the current time in UTC, as our files show it to people: ``2026-11-29T15:04:05Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
