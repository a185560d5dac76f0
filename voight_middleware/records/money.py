"""
Exact US dollars.

Amounts are ``Decimal`` in Python and an integer number of femto-dollars (1e-15 USD) in SQLite:
every list price, stacked with batch, cache and regional factors, is a whole number of femto-dollars
per token.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal

CONTEXT = Context(prec=50, rounding=ROUND_HALF_EVEN)
"""Our own decimal context. The caller's may round to six digits."""

FEMTO_PER_USD = 10**15
MAX_FEMTO = 2**63 - 1
"""The largest amount that one ledger column holds: 9,223 USD."""


def from_femto(femto: int) -> Decimal:
    """Return femto-dollars as US dollars, without trailing zeros."""
    return plain(CONTEXT.scaleb(Decimal(femto), -15))


def plain(usd: Decimal) -> Decimal:
    """Return *usd* without trailing zeros and without an exponent."""
    usd = usd.normalize(CONTEXT)
    if not usd:
        return Decimal(0)
    return (
        usd.quantize(Decimal(1), context=CONTEXT)
        if usd == usd.to_integral_value(context=CONTEXT)
        else usd
    )


def usd_text(usd: Decimal) -> str:
    """Return *usd* as a plain decimal string: ``0.0000015``, never ``1.5E-6``."""
    return format(plain(usd), "f")
