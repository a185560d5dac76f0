"""
Saved prices: price the calls of a journal as the process that made them is configured, whoever
ingests them.

The segment's name contains a stamp: ``….list.jsonl`` for list prices, ``….<id>.jsonl`` for the
prices in ``prices-<id>.json`` next to it. The ingester's own prices apply to a segment without a
stamp. Such segments come from processes without prices that leave ingestion to ``voight ingest``.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from voight_middleware.config.private_files import make_folder, open_private
from voight_middleware.lazy import lazy_pattern

LIST = "list"
_STAMP = lazy_pattern(r"[^.]+\.(list|[0-9a-f]{16})\.jsonl")


class KeptPrices(msgspec.Struct, frozen=True):
    """The prices that a process is configured with."""

    path: str
    """The path of the file they came from."""
    content: str | None = None
    """The content of the file when the process started. None if it was unreadable."""
    settings: bool = False
    """Whether the file is an unreadable settings file, not a file of prices."""


class Stamp:
    """
    The stamp of a process's segments. The file of prices is read once, when the first segment
    begins.
    """

    def __init__(
        self,
        folder: Path,
        prices: Path | None = None,
        *,
        ingests: bool = False,
        broken_settings: Path | None = None,
    ) -> None:
        self._folder = folder
        self._path = broken_settings or prices
        self._is_settings = broken_settings is not None
        self._plain = LIST if ingests else ""
        self._kept: bytes | None = None

    def __call__(self) -> str:
        """
        Return the stamp, and save the prices next to the journal.

        Raises:
            OSError: The folder cannot be written.
        """
        if self._path is None:
            return self._plain
        if self._kept is None:
            content = None
            if not self._is_settings:
                with contextlib.suppress(OSError, UnicodeDecodeError):
                    content = self._path.read_text(encoding="utf-8")
            self._kept = msgspec.json.encode(
                KeptPrices(str(self._path), content, self._is_settings)
            )
        name = _digest(self._kept)
        place = _place(self._folder, name)
        if not place.exists():
            _write(place, self._kept)
        return name


def stamp_of(segment: str) -> str:
    """Return the stamp in the name of a segment, "" if there is none."""
    match = _STAMP.fullmatch(segment)
    return match[1] if match else ""


def kept_prices(folder: Path, stamp: str) -> KeptPrices:
    """
    Return the prices of a stamp.

    Raises:
        OSError: The prices cannot be read.
        ValueError: The file has changed since it was saved.
    """
    data = _place(folder, stamp).read_bytes()
    if _digest(data) != stamp:
        raise ValueError("the file was changed or is incomplete")
    return msgspec.json.decode(data, type=KeptPrices)


def _place(folder: Path, name: str) -> Path:
    return folder / f"prices-{name}.json"


def _digest(data: bytes) -> str:
    import hashlib

    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _write(place: Path, data: bytes) -> None:
    make_folder(place.parent)
    unnamed = place.with_name(f"{place.name}.{os.urandom(16).hex()}.new")
    fd = open_private(unnamed, os.O_WRONLY | os.O_EXCL)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        unnamed.replace(place)
    except OSError:
        with contextlib.suppress(OSError):
            unnamed.unlink()
        raise
