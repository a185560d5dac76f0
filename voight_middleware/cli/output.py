"""Files that commands write."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Generator
from pathlib import Path
from typing import IO

from voight_middleware.cli.render import UserError


@contextlib.contextmanager
def output(path: Path) -> Generator[IO[bytes]]:
    """
    Open a temporary file that replaces *path* if the block succeeds, and is deleted if it fails.

    Only the owner can read a new file. A link of this account is followed; a link of another
    account is refused, because it may lead anywhere. A pipe or device is written to directly.

    Raises:
        UserError: It cannot be written.
    """
    import tempfile

    try:
        if path.is_symlink() and path.lstat().st_uid not in (os.getuid(), 0):
            raise UserError(f"{path} is a link of another account: choose another name")
        target = path.resolve()
        mode = target.stat().st_mode if target.exists() else None
        if mode is not None and not stat.S_ISREG(mode):
            with target.open("wb") as file:
                yield file
            return
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=f".{target.name}.", suffix=".part", delete=False
        ) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if mode is not None:
                    os.fchmod(file.fileno(), stat.S_IMODE(mode))
                Path(file.name).replace(target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
