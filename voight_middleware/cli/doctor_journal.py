"""Findings of ``voight doctor`` about the journal."""

from __future__ import annotations

import os
import pwd
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from voight_middleware.cli.findings import LOST_RECORDS, Finding, writable
from voight_middleware.config.kept_prices import stamp_of
from voight_middleware.config.settings import Settings
from voight_middleware.pipeline.backlog import LATE_SECONDS, age, waiting_since
from voight_middleware.pipeline.journal import (
    LOST,
    REJECTED,
    Segment,
    closed_bytes,
    folder_bytes,
    lost,
    reasons,
    segments,
)
from voight_middleware.pipeline.lock import IngestLock
from voight_middleware.pricing import OverridesError
from voight_middleware.pricing.price_books import configured_prices

_MAX_SEGMENTS = 5
_MAX_REASONS = 3


def of_journal(settings: Settings, offsets: Mapping[str, int]) -> Iterator[Finding]:
    """Report the journal, as far as this account can read it."""
    foreign = owner_of(settings.journal)
    if foreign is not None:
        value = f"{settings.journal} belongs to {foreign}; {account()} cannot read it"
        yield Finding(
            "journal", "account", value, f"use that account: sudo -u {foreign} voight doctor"
        )
        return
    try:
        yield from _seen(settings, offsets)
    except OSError as error:
        yield Finding(
            "journal",
            "account",
            str(error),
            f"use the account that writes {settings.journal}: sudo -u ACCOUNT voight doctor",
        )


def account() -> str:
    """Return the name of this process's account."""
    return _name(os.geteuid())


def owner_of(path: Path) -> str | None:
    """Return the owner of *path* if this account cannot read it; None if it can, or without one."""
    for place in (path, *path.parents):
        try:
            status = place.stat()
        except FileNotFoundError:
            return None
        except OSError:  # a parent folder that this account may not search
            continue
        readable = os.access(place, os.R_OK | (os.X_OK if place.is_dir() else 0))
        return None if readable or status.st_uid == os.geteuid() else _name(status.st_uid)
    return None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _seen(settings: Settings, offsets: Mapping[str, int]) -> Iterator[Finding]:
    section = "journal"
    folder = settings.journal
    consequence = "new calls are kept in memory only, and are lost when the process exits"
    yield writable(
        section,
        folder,
        consequence,
        "; on a read-only file system, mount a tmpfs and set VOIGHT_JOURNAL to it",
    )
    if not folder.is_dir():
        yield Finding(section, "rejected lines", "0")
        return
    lock = IngestLock(folder)
    waiting = list(_waiting(folder, offsets))
    yield _ingester(settings, lock, bool(waiting))
    yield Finding(section, "last delivery", lock.last_delivery() or "none yet")
    yield _room(settings)
    stuck = {
        segment.name: problem
        for segment, _, _ in waiting
        if (problem := _problem(folder, segment)) is not None
    }
    for problem in sorted(set(stuck.values())):
        count = sum(other == problem for other in stuck.values())
        advice = (
            "fix the file, or restart the application with a valid one; until then its calls wait"
        )
        yield Finding(
            section,
            "prices",
            f"{count:,} segments wait, because their prices cannot be used: {problem}",
            advice,
            fatal=True,
        )
    yield from _late(settings, lock, offsets, stuck)
    for segment, size, dead in waiting[:_MAX_SEGMENTS]:
        owner = (
            "of a dead process: the next report or application ingests it"
            if dead
            else "of a live process"
        )
        yield Finding(section, segment.name, f"{size:,} bytes waiting, {owner}")
    if more := waiting[_MAX_SEGMENTS:]:
        yield Finding(
            section, f"{len(more):,} others", f"{sum(size for _, size, _ in more):,} bytes waiting"
        )
    yield from _rejected(folder)
    yield from _lost(folder)


def _problem(folder: Path, segment: Segment) -> str | None:
    """Return the problem with the prices of a segment's application, or None."""
    stamp = stamp_of(segment.name)
    try:
        if len(stamp) > len("list"):
            configured_prices(folder, stamp)
    except OverridesError as error:
        return str(error)
    return None


def _late(
    settings: Settings, lock: IngestLock, offsets: Mapping[str, int], stuck: Mapping[str, str]
) -> Iterator[Finding]:
    """Report calls that wait although a process should ingest them."""
    since = waiting_since(settings.journal, lambda name: offsets.get(name, 0), stuck)
    late = 0.0 if since is None else time.time() - since
    if late > LATE_SECONDS and lock.is_locked():
        path = settings.journal / "ingest.lock"
        advice = (
            "the process that ingests is stopped or hangs, and reports lack these calls: find it "
            f"with fuser {path}, and end it"
        )
        yield Finding("journal", "late", f"calls wait for {age(late)}", advice)


def _ingester(settings: Settings, lock: IngestLock, waiting: bool) -> Finding:
    if lock.is_locked():
        return Finding("journal", "ingester", "a live process")
    advice = None
    if not settings.ingest and waiting:
        advice = "applications rely on voight ingest, but none runs on this folder: start one"
    return Finding("journal", "ingester", "none at the moment", advice)


def _room(settings: Settings) -> Finding:
    folder, limit = settings.journal, settings.journal_limit
    value = (
        f"{folder_bytes(folder):,} bytes of {limit:,} "
        f"({settings.sources.get('journal_limit', 'default')})"
    )
    if closed_bytes(folder) > limit:
        advice = (
            "calls wait in memory, then the oldest are lost: make the ledger reachable, or raise "
            "VOIGHT_JOURNAL_LIMIT"
        )
        return Finding("journal", "room", f"none: {value}", advice, fatal=True)
    return Finding("journal", "room", value)


def _rejected(folder: Path) -> Iterator[Finding]:
    name, rejected = "rejected lines", folder / REJECTED
    try:
        # Reading a pipe would block.
        count = rejected.read_bytes().count(b"\n") if rejected.is_file() else 0
        why = Counter(reason for _, _, reason in reasons(folder))
    except OSError as error:
        yield Finding("journal", name, str(error), f"make {rejected} readable")
        return
    advice = (
        f"look at {rejected}: torn lines of killed processes are harmless; please report any others"
    )
    yield Finding("journal", name, f"{count:,}", advice if count else None)
    for reason, times in why.most_common(_MAX_REASONS):
        yield Finding("journal", f"  {times:,} of them", reason)


def _lost(folder: Path) -> Iterator[Finding]:
    times = [line.split(" ") for line in lost(folder)]
    count = sum(int(parts[1]) for parts in times if len(parts) > 1 and parts[1].isdigit())
    if count:
        advice = (
            f"no total has these calls; {folder / LOST} has the times. Delete it when you have "
            "read it"
        )
        yield Finding("journal", LOST_RECORDS, f"{count:,}, the last {times[-1][0]}", advice)


def _waiting(folder: Path, offsets: Mapping[str, int]) -> Iterator[tuple[Segment, int, bool]]:
    for segment in segments(folder):
        waiting = segment.size() - offsets.get(segment.name, 0)
        with segment.adopt() as dead:
            if waiting > 0:
                yield segment, waiting, dead
