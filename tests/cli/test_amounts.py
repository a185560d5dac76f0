"""How amounts, shares and values read."""

import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voight_middleware.cli.render import aligned, exact, money, percent, printable


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        ("0", "$0.00"),
        ("1234567.891", "$1,234,567.89"),
        ("1", "$1.00"),
        ("0.5", "$0.5000"),
        ("0.01234", "$0.0123"),
        ("0.00123456", "$0.00123"),
        ("0.0000153", "$0.0000153"),
        ("0.000000000000001", "$0.00000000000000100"),
    ],
)
def test_money_has_the_decimals_it_needs(usd: str, text: str) -> None:
    """Amounts have as many decimals as they need."""
    assert money(Decimal(usd)) == text


@given(st.integers(1, 10**25))
def test_money_never_reads_as_nothing(femto: int) -> None:
    """No amount but zero reads as zero, and all in a column have the same width."""
    amount = Decimal(femto).scaleb(-15)
    assert re.search("[1-9]", money(amount))
    assert len({len(line) for line in aligned([amount, Decimal(1), None])}) == 1


@given(st.decimals(0, 10**12, places=18, allow_nan=False))
def test_exact_is_exact(usd: Decimal) -> None:
    """Every digit of an amount is shown, and cents where there are none."""
    text = exact(usd)
    assert Decimal(text.removeprefix("$").replace(",", "")) == usd
    assert re.fullmatch(r"\$[0-9,]+\.[0-9]{2,18}", text)


@given(st.fractions(0, 1))
def test_percent_never_reads_as_nothing(share: Any) -> None:
    """No share but zero reads as zero."""
    text = percent(Decimal(share.numerator) / Decimal(share.denominator))
    assert bool(re.search("[1-9]", text)) == (share > 0)


@given(st.text())
def test_what_is_shown_is_printable(text: str) -> None:
    """Whatever a value holds, what is shown of it is printable."""
    assert printable(text).isprintable()
