"""What people type for a time becomes a window in UTC."""

import contextlib
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voight_middleware.ledger import Window
from voight_middleware.reports.timespan import FORMS, describe, parse_window, parse_zone, preceding

NOW = datetime(2026, 11, 18, 15, 30, 10, 500_000, tzinfo=UTC)  # a Wednesday


def at(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp()) * 1_000_000  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("text", "begin", "end"),
    [
        ("today", at(2026, 11, 18), at(2026, 11, 19)),
        ("yesterday", at(2026, 11, 17), at(2026, 11, 18)),
        ("week", at(2026, 11, 16), at(2026, 11, 23)),
        ("month", at(2026, 11, 1), at(2026, 12, 1)),
        ("2026-11-05", at(2026, 11, 5), at(2026, 11, 6)),
        ("2026-12", at(2026, 12, 1), at(2027, 1, 1)),
        ("2024-02-29", at(2024, 2, 29), at(2024, 3, 1)),
        ("7d", at(2026, 11, 11, 15, 30, 10) + 500_000, at(2026, 11, 11, 15, 30, 10) + 500_000),
        ("24h", at(2026, 11, 17, 15, 30, 10) + 500_000, at(2026, 11, 17, 15, 30, 10) + 500_000),
        ("30m", at(2026, 11, 18, 15, 0, 10) + 500_000, at(2026, 11, 18, 15, 0, 10) + 500_000),
        ("2026-11-01T09:30", at(2026, 11, 1, 9, 30), at(2026, 11, 1, 9, 30)),
        ("2026-11-01 09:30:15", at(2026, 11, 1, 9, 30, 15), at(2026, 11, 1, 9, 30, 15)),
        ("2026-11-01T09:30:00Z", at(2026, 11, 1, 9, 30), at(2026, 11, 1, 9, 30)),
        ("2026-11-01T00:30:00+02:00", at(2026, 10, 31, 22, 30), at(2026, 10, 31, 22, 30)),
    ],
)
def test_every_form(text: str, begin: int, end: int) -> None:
    """Each form names a beginning for --since and an end for --until, the day, week or month itself included."""
    assert parse_window(text, None, NOW) == Window(begin, None)
    assert parse_window(None, text, NOW) == Window(None, end)


def test_a_day_is_a_day_in_utc() -> None:
    """`today` is the UTC day of the clock, whatever offset the clock has."""
    late = datetime(2026, 11, 18, 23, 30, tzinfo=timezone(timedelta(hours=-8)))
    assert parse_window("today", "today", late) == Window(at(2026, 11, 19), at(2026, 11, 20))


def test_no_text_is_no_bound() -> None:
    """Without both texts the window is all time."""
    assert parse_window() == Window()
    assert describe(Window()) == "all time"


def test_windows_in_words() -> None:
    """A window is described with the bounds that it has."""
    assert describe(Window(at(2026, 11, 1), None)) == "since 2026-11-01 00:00 UTC"
    assert describe(Window(None, at(2026, 11, 1))) == "until 2026-11-01 00:00 UTC"
    assert describe(Window(at(2026, 11, 1), at(2026, 12, 1))) == "since 2026-11-01 00:00 until 2026-12-01 00:00 UTC"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "Today",
        "7",
        "-7d",
        "7w",
        "999999d",
        "9999999999h",
        "\u0667d",
        "2026",
        "2026-13",
        "2026-02-30",
        "9999-12",
        "9999-12-31",
        "20261101",
        "2026-11-01T25:00",
        "2026-11-01T09:30+99:00",
        "0001-01-01T00:00+23:00",
        "01.11.2026",
    ],
)
def test_other_texts(text: str) -> None:
    """Any other text is a ValueError that quotes it and lists the forms."""
    with pytest.raises(ValueError, match="cannot read") as error:
        parse_window(None, text, NOW)
    assert repr(text) in str(error.value)
    assert FORMS in str(error.value)


@given(st.text(max_size=30))
def test_nothing_but_value_errors(text: str) -> None:
    """No text whatever raises anything but ValueError."""
    with contextlib.suppress(ValueError):
        parse_window(text, None, NOW)


@pytest.mark.parametrize(("since", "until"), [("today", "yesterday"), ("7d", "7d"), ("2026-12", "2026-11")])
def test_a_window_that_is_empty(since: str, until: str) -> None:
    """A window that ends before it begins is a ValueError, not an empty report."""
    with pytest.raises(ValueError, match="ends before it begins"):
        parse_window(since, until, NOW)


# -- time zones ----------------------------------------------------------------------------------------------------------------

BERLIN, NEW_YORK, KOLKATA = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York"), ZoneInfo("Asia/Kolkata")


@pytest.mark.parametrize(
    ("zone", "text", "begin", "end"),
    [
        (BERLIN, "today", at(2026, 11, 17, 23), at(2026, 11, 18, 23)),
        (NEW_YORK, "today", at(2026, 11, 18, 5), at(2026, 11, 19, 5)),
        (KOLKATA, "month", at(2026, 10, 31, 18, 30), at(2026, 11, 30, 18, 30)),
        (BERLIN, "2026-10-25", at(2026, 10, 24, 22), at(2026, 10, 25, 23)),  # 25 hours
        (BERLIN, "2026-03-29", at(2026, 3, 28, 23), at(2026, 3, 29, 22)),  # 23 hours
        (BERLIN, "2026-10", at(2026, 9, 30, 22), at(2026, 10, 31, 23)),
        (NEW_YORK, "2026-11", at(2026, 11, 1, 4), at(2026, 12, 1, 5)),
        (BERLIN, "2026-11-01T09:30", at(2026, 11, 1, 8, 30), at(2026, 11, 1, 8, 30)),
        (BERLIN, "2026-11-01T09:30Z", at(2026, 11, 1, 9, 30), at(2026, 11, 1, 9, 30)),
        (BERLIN, "24h", at(2026, 11, 17, 15, 30, 10) + 500_000, at(2026, 11, 17, 15, 30, 10) + 500_000),
        (ZoneInfo("America/Sao_Paulo"), "2018-11-04", at(2018, 11, 4, 3), at(2018, 11, 5, 2)),  # a day without a midnight
        (ZoneInfo("America/Havana"), "2026-11-01", at(2026, 11, 1, 4), at(2026, 11, 2, 5)),  # a day with two of them
    ],
)
def test_days_of_a_zone(zone: ZoneInfo, text: str, begin: int, end: int) -> None:
    """Days, weeks and months begin where they begin in the zone, on the days when clocks are changed too."""
    assert parse_window(text, text if begin != end else None, NOW, zone) == Window(begin, end if begin != end else None)


def test_windows_of_a_zone_in_words() -> None:
    """A window is described in the zone that it was asked in."""
    window = parse_window("2026-11", "2026-11", NOW, BERLIN)
    assert describe(window, BERLIN) == "since 2026-11-01 00:00 until 2026-12-01 00:00 Europe/Berlin"


@pytest.mark.parametrize("name", ["", "Mars", "../../etc/passwd", "/etc/passwd", "Europe", "europe/berlin ", "\0", "\udcff", "x" * 5000])
def test_zones_that_do_not_exist(name: str) -> None:
    """A text that names no zone is a ValueError, whatever path it is."""
    with pytest.raises(ValueError, match="there is no time zone"):
        parse_zone(name)


@pytest.mark.parametrize(
    ("zone", "window", "before"),
    [
        # the 18th at 15:30:10: the same part of the month before
        (UTC, ("month", None), (at(2026, 10, 1), at(2026, 10, 18, 15, 30, 10) + 500_000)),
        (UTC, ("month", "month"), (at(2026, 10, 1), at(2026, 10, 18, 15, 30, 10) + 500_000)),
        (UTC, ("2026-10", "2026-10"), (at(2026, 9, 1), at(2026, 10, 1))),
        (UTC, ("2026-09", "2026-10"), (at(2026, 7, 1), at(2026, 9, 1))),
        (UTC, ("today", None), (at(2026, 11, 17), at(2026, 11, 17, 15, 30, 10) + 500_000)),
        (UTC, ("yesterday", "yesterday"), (at(2026, 11, 16), at(2026, 11, 17))),
        (UTC, ("week", None), (at(2026, 11, 9), at(2026, 11, 11, 15, 30, 10) + 500_000)),
        (UTC, ("24h", None), (at(2026, 11, 16, 15, 30, 10) + 500_000, at(2026, 11, 17, 15, 30, 10) + 500_000)),
        (UTC, ("2026-11-03", "2026-11-05"), (at(2026, 10, 31), at(2026, 11, 3))),
        # March of a year without a leap day: the 31st has no like in February, whose end is as far as it goes
        (UTC, ("2025-03-01", "2025-03-30"), (at(2025, 2, 1), at(2025, 3, 1))),
        # October of Berlin has an hour more than September, which is compared whole
        (BERLIN, ("2026-10", "2026-10"), (at(2026, 8, 31, 22), at(2026, 9, 30, 22))),
        (BERLIN, ("2026-10-26", "2026-10-26"), (at(2026, 10, 18, 22), at(2026, 10, 19, 22))),
        (BERLIN, ("2026-10-27", "2026-10-27"), (at(2026, 10, 25, 23), at(2026, 10, 26, 23))),
    ],
)
def test_the_time_before(zone: tzinfo, window: tuple[str, str | None], before: tuple[int, int]) -> None:
    """A month is compared with the same part of the month before, a week with the week before, days with days, the rest with its length."""
    assert preceding(parse_window(*window, NOW, zone), NOW, zone) == Window(*before)


def test_no_time_before() -> None:
    """Without a beginning, before it has begun, or before the year 1 there is nothing to compare with."""
    assert preceding(Window(None, at(2026, 1, 1)), NOW) is None
    assert preceding(Window(at(2027, 1, 1)), NOW) is None
    assert preceding(Window(at(1, 1, 1), at(2026, 1, 1)), NOW) is None


@given(st.integers(0, 2**41), st.integers(1, 2**41), st.sampled_from([UTC, BERLIN, NEW_YORK, KOLKATA]))
def test_the_time_before_is_before(since: int, length: int, zone: tzinfo) -> None:
    """Whatever the window, the time before it ends where it begins, or earlier, and is not empty."""
    window = Window(since * 1000, (since + length) * 1000)
    before = preceding(window, datetime(2200, 1, 1, tzinfo=UTC), zone)
    if before is not None:
        assert before.since is not None
        assert before.until is not None
        assert before.since < before.until <= since * 1000
