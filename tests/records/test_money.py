"""Exact US dollars."""

from decimal import Context, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voight_middleware.records.money import MAX_FEMTO, from_femto, plain, to_femto, usd_text

FEMTO = st.integers(-MAX_FEMTO, MAX_FEMTO)
HOSTILE = Context(prec=3)
"""What an application may have set for its own arithmetic."""


@given(FEMTO)
def test_every_femto_amount_survives_the_way_to_decimal_and_back(femto: int) -> None:
    """No integer number of femto-dollars is changed by the trip through Decimal."""
    assert to_femto(from_femto(femto)) == femto


@given(FEMTO)
def test_every_femto_amount_survives_the_way_to_text_and_back(femto: int) -> None:
    """The text of an amount is plain, without exponent or trailing zeros, and reads back as the same amount."""
    text = usd_text(from_femto(femto))
    assert "E" not in text
    assert "." not in text or not text.endswith(("0", "."))
    assert to_femto(Decimal(text)) == femto


@given(FEMTO)
def test_the_callers_decimal_context_rounds_nothing(femto: int) -> None:
    """An application that works with three digits does not change our money."""
    exact = from_femto(femto)
    with localcontext(HOSTILE):
        assert from_femto(femto) == exact
        assert to_femto(exact) == femto
        assert Decimal(usd_text(exact)) == exact
        assert plain(exact) == exact


@given(st.integers(0, 10**9), st.integers(-4, 4))
def test_an_amount_finer_than_a_femto_dollar_is_rounded_half_to_even(femto: int, quarters: int) -> None:
    """Rounding is to the nearest femto-dollar, a half to the even one."""
    fine = (Decimal(femto) + Decimal(quarters) / 4).scaleb(-15)
    assert to_femto(fine) == round(Decimal(femto) + Decimal(quarters) / 4)


@pytest.mark.parametrize("text", ["NaN", "sNaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_no_money(text: str) -> None:
    """NaN and the infinities are refused with a ValueError."""
    with pytest.raises(ValueError, match="not an amount"):
        to_femto(Decimal(text))


def test_the_largest_amount_of_one_column_fits_and_the_next_does_not() -> None:
    """The limit is exactly the range of a signed 64-bit integer."""
    largest = from_femto(MAX_FEMTO)
    assert to_femto(largest) == 2**63 - 1
    with pytest.raises(ValueError, match="9,223"):
        to_femto(largest + Decimal("1e-15"))
    with pytest.raises(ValueError, match="9,223"):
        to_femto(-largest - Decimal("1e-15"))


@pytest.mark.parametrize("text", ["1e30", "1e999990", "1e999999", "-1e999999"])
def test_an_absurd_amount_is_a_value_error(text: str) -> None:
    """Whatever its exponent, an amount that is too large is refused in one way."""
    with pytest.raises(ValueError, match="amount"):
        to_femto(Decimal(text))


@pytest.mark.parametrize(
    ("amount", "text"),
    [("1.5E-6", "0.0000015"), ("100", "100"), ("1E+3", "1000"), ("2.500", "2.5"), ("0", "0"), ("0E-15", "0"), ("0E+4", "0"), ("-0", "0")],
)
def test_money_reads_as_money(amount: str, text: str) -> None:
    """An amount is written out, without exponent, trailing zeros or a negative zero."""
    assert usd_text(Decimal(amount)) == text
