"""Files and folders that only their owner may read, whatever the umask of the process."""

from __future__ import annotations

import errno
import os
import stat
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


def make_folder(folder: Path) -> None:
    """
    Make *folder* and those above it that are missing, each for its owner only. One that is there stays as it is.

    Raises:
        OSError: It cannot be made, is not a folder, or is in a temporary folder of ours that another account may have made.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileNotFoundError:
        if folder.parent == folder:
            raise
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        if not folder.is_dir():
            raise
    for part in (folder, *folder.parents):
        if part.name == temporary_name():
            check_own(part)


def open_private(path: Path, flags: int) -> int:
    """
    Return a descriptor of a file of ours, made for its owner only if it is missing. A link is not followed, and a pipe is not waited for.

    Raises:
        OSError: It cannot be opened, or is a link.
    """
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)


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
