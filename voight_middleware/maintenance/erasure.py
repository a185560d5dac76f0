"""
Data rights: remove a person's ids from ledger and journals.

Every step can be interrupted and repeated. Completed work stays, and a second run changes nothing.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from voight_middleware.config.settings import Settings
from voight_middleware.ledger import Ledger, PersonalData
from voight_middleware.ledger.erasure import MIN_SEARCHED_LENGTH, spellings
from voight_middleware.pipeline.ingest import drain
from voight_middleware.pipeline.journal import REASONS, REJECTED, segments

WAIT_SECONDS = 10.0
"""How long an erasure waits for running applications to bring their calls into the ledger."""


@dataclass(frozen=True, slots=True)
class ErasureResult:
    """The records about a person and the result of their erasure."""

    found: PersonalData
    token: str | None = None
    """The replacement of the ids. None if nothing was changed."""
    remains: tuple[str, ...] = ()
    """Files that still contain one of the ids."""
    waiting: tuple[str, ...] = ()
    """Journals with records that are not in the ledger yet."""


def erase(
    ledger: Ledger,
    settings: Settings,
    names: Collection[str],
    *,
    dry_run: bool = False,
    wait: float = WAIT_SECONDS,
) -> ErasureResult:
    """
    Replace a person's ids in ledger and journals, irreversibly. Costs and counts of the calls stay.

    Args:
        ledger: The ledger with the calls.
        settings: The settings, with the journal folder.
        names: Every id of the person.
        dry_run: Only count.
        wait: How many seconds to wait for running applications to ingest their calls.

    Raises:
        LedgerError: The ledger cannot be written, or its file cannot be rewritten while another
            process reads it. A second run continues.
    """
    if dry_run:
        return ErasureResult(ledger.personal_data(names))
    waiting = _bring_in(ledger, settings, wait)
    data = ledger.personal_data(names)
    token = None
    if data:
        token = f"erased:{secrets.token_hex(8)}"
        ledger.erase(names, token)
    _scrub(ledger, settings.journal, names)
    return ErasureResult(data, token, tuple(ledger.purge(names)), tuple(waiting))


def _bring_in(ledger: Ledger, settings: Settings, wait: float) -> list[str]:
    """Have everything ingested that was written until now. Return the journals that were not."""
    sizes = (
        {segment.name: segment.size() for segment in segments(settings.journal)}
        if settings.journal.is_dir()
        else {}
    )
    deadline = time.monotonic() + wait
    while True:
        drain(settings.ledger, settings.journal, settings.prices)
        left = [
            name
            for name, size in sizes.items()
            if (settings.journal / name).exists() and ledger.progress(name) < size
        ]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _scrub(ledger: Ledger, folder: Path, names: Collection[str]) -> None:
    """
    Overwrite the ids in the ingested parts of journals, which are not read again. Parts still to be
    ingested stay unchanged.
    """
    if not folder.is_dir():
        return
    names = spellings(names)
    for segment in segments(folder):
        _overwrite(segment.path, names, ledger.progress(segment.name))
    _overwrite(folder / REJECTED, names, None)
    _overwrite(folder / REASONS, names, None)  # an engine's message may quote an id


def _overwrite(path: Path, names: Collection[str], end: int | None) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        data = os.pread(fd, os.fstat(fd).st_size if end is None else end, 0)
        for name in names:
            text = name.encode() if len(name) >= MIN_SEARCHED_LENGTH else f'"{name}"'.encode()
            blank = (
                b"x" * len(text)
                if len(name) >= MIN_SEARCHED_LENGTH
                else b'"' + b"x" * (len(text) - 2) + b'"'
            )
            at = data.find(text)
            while at >= 0:
                os.pwrite(fd, blank, at)
                at = data.find(text, at + len(text))
        os.fsync(fd)
    finally:
        os.close(fd)
