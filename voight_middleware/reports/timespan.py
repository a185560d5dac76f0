"""Times as people type them, as a ``Window`` in a time zone."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from fractions import Fraction
from zoneinfo import ZoneInfo

from voight_middleware.ledger import Window

FORMS = (
    "today, yesterday, week, month, 7d, 24h, 30m, 2026-11-01, 2026-11, 2026-11-01T09:30:00+01:00"
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AGO = re.compile(r"([0-9]{1,6})([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MONTH = re.compile(r"[0-9]{4}-[0-9]{2}")
_ONE_DAY = timedelta(days=1)


def parse_zone(name: str) -> tzinfo:
    """
    Return the time zone of an IANA name such as ``Europe/Berlin``.

    Raises:
        ValueError: There is no such zone, or this machine has no time zone data.
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        pass
    try:
        ZoneInfo("Europe/Berlin")
    except (KeyError, OSError):
        raise ValueError("this machine has no time zone data: pip install tzdata") from None
    raise ValueError(
        f"there is no time zone {name!r}; write a name of the IANA database, such as "
        "Europe/Berlin or America/New_York"
    )


def parse_window(
    since: str | None = None,
    until: str | None = None,
    now: datetime | None = None,
    zone: tzinfo = UTC,
) -> Window:
    """
    Return the window from the beginning of *since* to the end of *until*.

    A day, week or month given as *until* is included.

    Args:
        since: One of ``FORMS``, or None for no beginning. A date or time without an offset is in
            *zone*. A week begins on Monday.
        until: One of ``FORMS``, or None for no end.
        now: An aware datetime. By default the current time.
        zone: The time zone of days. A day on which the clocks change has 23 or 25 hours; ``7d`` is
            always 168 hours.

    Raises:
        ValueError: A text cannot be read, or the window ends before it begins.
    """
    now = now or datetime.now(UTC)
    begin = None if since is None else to_microseconds(_span(since, now, zone)[0])
    end = None if until is None else to_microseconds(_span(until, now, zone)[1])
    if begin is not None and end is not None and begin >= end:
        raise ValueError(f"the time from {since!r} to {until!r} is empty: it ends before it begins")
    return Window(begin, end)


def preceding(window: Window, now: datetime | None = None, zone: tzinfo = UTC) -> Window | None:
    """
    Return the time to compare a window with; None if it has no beginning, or has not begun.

    A window that is still running counts up to *now*. The first of these rules holds:

    * whole months: as many months before them
    * part of a month from its first day: the same part of the month before
    * at most a week from a Monday: the same part of the week before
    * from midnight: as many days before it
    * otherwise: the same length before it
    """
    if window.since is None:
        return None
    moment = to_microseconds(now or datetime.now(UTC))
    until = moment if window.until is None else min(window.until, max(moment, window.since))
    if until <= window.since:
        return None
    try:
        begin, end = to_datetime(window.since).astimezone(zone), to_datetime(until).astimezone(zone)
        if window.since != _begin_of(begin.date(), zone):
            return Window(2 * window.since - until, window.since)
        elapsed = end.replace(tzinfo=None) - begin.replace(tzinfo=None)
        days = -(-elapsed // _ONE_DAY)
        first = begin.date() - timedelta(days=7 if begin.weekday() == 0 and days <= 7 else days)
        if begin.day == 1:
            months = (end.year - begin.year) * 12 + end.month - begin.month
            if end.day == 1 and until == _begin_of(end.date(), zone):
                return Window(_begin_of(_months_later(begin.date(), -months), zone), window.since)
            if months == 0:
                first = _months_later(begin.date(), -1)
        last = (datetime.combine(first, begin.time()) + elapsed).replace(tzinfo=zone)
        return Window(_begin_of(first, zone), min(to_microseconds(last), window.since))
    except (ValueError, OverflowError):  # before the year 1
        return None


def months_in(window: Window, now: datetime | None = None, zone: tzinfo = UTC) -> Fraction | None:
    """
    Return the length of a window in calendar months; None if it has no beginning.

    Parts of months count by their time. A window that is still running counts up to *now*.
    """
    if window.since is None:
        return None
    moment = to_microseconds(now or datetime.now(UTC))
    until = moment if window.until is None else min(window.until, moment)
    first = to_datetime(window.since).astimezone(zone).date().replace(day=1)
    covered = Fraction(0)
    while (begin := _begin_of(first, zone)) < until:
        first = _months_later(first, 1)
        end = _begin_of(first, zone)
        covered += Fraction(max(0, min(end, until) - max(begin, window.since)), end - begin)
    return covered


def describe(window: Window, zone: tzinfo = UTC) -> str:
    """Return a window in words: ``since 2026-11-01 00:00 UTC``."""
    if window.since is None and window.until is None:
        return "all time"
    begin = "" if window.since is None else f"since {_minute(window.since, zone)} "
    end = "" if window.until is None else f"until {_minute(window.until, zone)} "
    return f"{begin}{end}{zone_name(zone)}"


def zone_name(zone: tzinfo) -> str:
    """Return the name of a time zone: ``UTC``, ``Europe/Berlin``."""
    return str(zone)


def to_datetime(microseconds: int) -> datetime:
    """Return microseconds since 1970 as an aware UTC datetime."""
    return _EPOCH + timedelta(microseconds=microseconds)


def to_microseconds(moment: datetime) -> int:
    """Return an aware datetime as microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _span(text: str, now: datetime, zone: tzinfo) -> tuple[datetime, datetime]:
    """Return the beginning and the end of a time; they are equal for a moment."""
    try:
        if (days := _days(text, now.astimezone(zone).date())) is not None:
            return _midnight(days[0], zone), _midnight(days[1], zone)
        if match := _AGO.fullmatch(text):
            point = now - timedelta(**{_UNITS[match[2]]: int(match[1])})
            return point, point
        if _DAY.match(text):
            point = datetime.fromisoformat(text)
            point = (point.replace(tzinfo=zone) if point.tzinfo is None else point).astimezone(UTC)
            return point, point
    except (ValueError, OverflowError):
        pass
    raise ValueError(
        f"cannot read {text!r} as a time; write it like one of: {FORMS} ({zone_name(zone)})"
    )


def _days(text: str, today: date) -> tuple[date, date] | None:
    """Return the first day of a day, week or month, and the day after it."""
    if text == "today":
        return today, today + _ONE_DAY
    if text == "yesterday":
        return today - _ONE_DAY, today
    if text == "week":
        monday = today - timedelta(days=today.weekday())
        return monday, monday + timedelta(days=7)
    if text == "month" or _MONTH.fullmatch(text):
        first = today.replace(day=1) if text == "month" else date.fromisoformat(f"{text}-01")
        return first, _months_later(first, 1)
    if _DAY.fullmatch(text):
        day = date.fromisoformat(text)
        return day, day + _ONE_DAY
    return None


def _midnight(day: date, zone: tzinfo) -> datetime:
    """Return the first moment of a day: not 0 o'clock if clocks are set forward then."""
    return datetime.combine(day, time(), zone).astimezone(UTC)


def _begin_of(day: date, zone: tzinfo) -> int:
    return to_microseconds(_midnight(day, zone))


def _months_later(first: date, months: int) -> date:
    year, month = divmod(first.year * 12 + first.month - 1 + months, 12)
    return first.replace(year=year, month=month + 1)


def _minute(microseconds: int, zone: tzinfo) -> str:
    return to_datetime(microseconds).astimezone(zone).strftime("%Y-%m-%d %H:%M")
