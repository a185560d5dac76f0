"""What people type for a span of time, as a ``Window``. All times are in UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from voight_middleware.ledger import Window

FORMS = "today, yesterday, week, month, 7d, 24h, 30m, 2026-11-01, 2026-11, 2026-11-01T09:30:00+01:00"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AGO = re.compile(r"([0-9]{1,6})([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MONTH = re.compile(r"[0-9]{4}-[0-9]{2}")


def parse_window(since: str | None = None, until: str | None = None, now: datetime | None = None) -> Window:
    """
    The window from the beginning of *since* to the end of *until*: a day, week or month given as *until* is part of it.

    Args:
        since: One of ``FORMS``, or None for no beginning. A date or time without an offset is in UTC; a week begins on Monday.
        until: Likewise, or None for no end.
        now: An aware datetime; by default the clock's.

    Raises:
        ValueError: A text has none of the forms, or the window ends before it begins.
    """
    now = now or datetime.now(UTC)
    begin = None if since is None else _microseconds(_span(since, now)[0])
    end = None if until is None else _microseconds(_span(until, now)[1])
    if begin is not None and end is not None and begin >= end:
        raise ValueError(f"the time from {since!r} to {until!r} is empty: it ends before it begins")
    return Window(begin, end)


def describe(window: Window) -> str:
    """A window in words: ``since 2026-11-01 00:00 UTC``."""
    if window.since is None and window.until is None:
        return "all time"
    begin = "" if window.since is None else f"since {_minute(window.since)} "
    return f"{begin}{'' if window.until is None else f'until {_minute(window.until)} '}UTC"


def _span(text: str, now: datetime) -> tuple[datetime, datetime]:
    """The beginning and the end of what *text* names; the same for a point in time."""
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    day = timedelta(days=1)
    try:
        if text == "today":
            return midnight, midnight + day
        if text == "yesterday":
            return midnight - day, midnight
        if text == "week":
            monday = midnight - timedelta(days=midnight.weekday())
            return monday, monday + timedelta(days=7)
        if text == "month":
            return midnight.replace(day=1), _next_month(midnight)
        if match := _AGO.fullmatch(text):
            point = now - timedelta(**{_UNITS[match[2]]: int(match[1])})
            return point, point
        if _DAY.fullmatch(text):
            begin = datetime.fromisoformat(text).replace(tzinfo=UTC)
            return begin, begin + day
        if _MONTH.fullmatch(text):
            begin = datetime.fromisoformat(f"{text}-01").replace(tzinfo=UTC)
            return begin, _next_month(begin)
        if _DAY.match(text):
            point = datetime.fromisoformat(text)
            point = point.replace(tzinfo=UTC) if point.tzinfo is None else point.astimezone(UTC)
            return point, point
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"cannot read {text!r} as a time; write it like one of: {FORMS} (UTC)")


def _next_month(moment: datetime) -> datetime:
    year, month = divmod(moment.year * 12 + moment.month, 12)
    return moment.replace(year=year, month=month + 1, day=1)


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _minute(microseconds: int) -> str:
    return (_EPOCH + timedelta(microseconds=microseconds)).strftime("%Y-%m-%d %H:%M")
