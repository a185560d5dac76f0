"""Exact US dollars."""

from decimal import Context, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voight_middleware.records.money import MAX_FEMTO, from_femto, plain, usd_text

FEMTO = st.integers(-MAX_FEMTO, MAX_FEMTO)
HOSTILE = Context(prec=3)
"""What an application may have set for its own arithmetic."""


@given(FEMTO)
def test_every_femto_amount_survives_the_way_to_decimal_and_back(femto: int) -> None:
    """No integer number of femto-dollars is changed by the trip through Decimal."""
    assert from_femto(femto).scaleb(15) == femto


@given(FEMTO)
def test_every_femto_amount_survives_the_way_to_text_and_back(femto: int) -> None:
    """The text of an amount is plain, without exponent or trailing zeros, and reads back as the same amount."""
    text = usd_text(from_femto(femto))
    assert "E" not in text
    assert "." not in text or not text.endswith(("0", "."))
    assert int(Decimal(text).scaleb(15)) == femto


@given(FEMTO)
def test_the_callers_decimal_context_rounds_nothing(femto: int) -> None:
    """An application that works with three digits does not change our money."""
    exact = from_femto(femto)
    with localcontext(HOSTILE):
        assert from_femto(femto) == exact
        assert Decimal(usd_text(exact)) == exact
        assert plain(exact) == exact


@pytest.mark.parametrize(
    ("amount", "text"),
    [("1.5E-6", "0.0000015"), ("100", "100"), ("1E+3", "1000"), ("2.500", "2.5"), ("0", "0"), ("0E-15", "0"), ("0E+4", "0"), ("-0", "0")],
)
def test_money_reads_as_money(amount: str, text: str) -> None:
    """An amount is written out, without exponent, trailing zeros or a negative zero."""
    assert usd_text(Decimal(amount)) == text
