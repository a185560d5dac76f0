"""What people type for a time becomes a window in UTC."""

import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voight_middleware.ledger import Window
from voight_middleware.reports.timespan import FORMS, describe, parse_window

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
