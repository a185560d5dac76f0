"""Files and folders that only their owner may read, regardless of the umask."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from pathlib import Path


def temporary_name() -> str:
    """Return the name of our folder for temporary files, which all accounts share."""
    return f"voight-{os.getuid()}"


def check_own(folder: Path) -> None:
    """
    Check that no other account can have created *folder* or can write to it.

    Raises:
        OSError: *folder* is missing, a link, owned by another account, or writable by others.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(
            errno.EPERM, "not a folder that this account alone can write", str(folder)
        )


def give_to_owner(fd: int, folder: Path) -> None:
    """
    Give a new file or folder that root made in another account's *folder* to that account. Do
    nothing for other accounts than root.

    Otherwise a command first run by root would lock an application out of its own ledger.

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
    Create *folder* and its missing parents, each for its owner only. Existing folders stay
    unchanged.

    Raises:
        OSError: The folder cannot be created, is not a folder, or is in a temporary folder of ours
            that another account may have created.
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
    Open a file of ours and return its descriptor. A missing file is created for its owner only.
    Links are not followed, and pipes do not block.

    Raises:
        OSError: The file cannot be opened or is a link.
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
    Append to a file of ours. The file is closed again, because a forked child would inherit it.

    Raises:
        OSError: The file cannot be opened, is a link, or *data* was not written completely.
    """
    fd = open_private(path, os.O_WRONLY | os.O_APPEND)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def utc_now() -> str:
    """Return the current time in UTC as shown in our files: ``2026-11-29T15:04:05Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
