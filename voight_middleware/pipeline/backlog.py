"""The age of the oldest record in a journal. A report must warn about calls that it lacks."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from voight_middleware.pipeline.journal import Segment, decode, segments
from voight_middleware.records.call import Call, is_new_call_id

LATE_SECONDS = 60.0
"""
How long a call may wait before a warning. An ingester looks every second; after an outage, at
least every thirty seconds.
"""


def waiting_since(
    folder: Path, progress: Callable[[str], int], without: Collection[str] = ()
) -> float | None:
    """
    Return when the oldest record outside the ledger was written, in seconds since 1970.

    None if no record waits.

    Args:
        folder: The journal.
        progress: Returns how many bytes of a segment are in the ledger, by its name.
        without: Names of segments to skip.

    Raises:
        OSError: The folder or a segment cannot be read.
    """
    times = [
        time
        for segment in segments(folder)
        if segment.name not in without and (time := _first(segment, progress)) is not None
    ]
    return min(times, default=None)


def _first(segment: Segment, progress: Callable[[str], int]) -> float | None:
    offset = progress(segment.name)
    if segment.size() <= offset:
        return None
    written = segment.path.stat().st_mtime
    try:
        line = segment.read(offset, 64 * 1024).split(b"\n", 1)[0]
        record = decode(line, f"{segment.name}:{offset}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return written
    if not isinstance(record, Call) or not is_new_call_id(record.call_id):
        return written
    ended = int(record.call_id[:12], 16) / 1000 + (record.duration or 0) / 1_000_000
    return min(ended, written)


def age(seconds: float) -> str:
    """Return a duration as a text, such as ``3 minutes``."""
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count:,} {unit}{'' if count == 1 else 's'}"
    return f"{seconds:.0f} seconds"
