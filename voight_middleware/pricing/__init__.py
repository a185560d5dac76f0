"""The cost of a call: unit prices by provider, model, terms and time, with their provenance."""

from pathlib import Path

from voight_middleware.pricing.book import PriceBook, Rates
from voight_middleware.pricing.cost import price
from voight_middleware.pricing.overrides import (
    Overrides,
    OverridesError,
    parse_overrides,
    read_overrides,
)
from voight_middleware.pricing.rules import STANDARD, Terms

__all__ = [
    "STANDARD",
    "Overrides",
    "OverridesError",
    "PriceBook",
    "Rates",
    "Terms",
    "open_book",
    "parse_overrides",
    "price",
    "read_overrides",
]


def open_book(prices: Path | None = None) -> PriceBook:
    """
    Return the price book, with the user's own prices on top.

    Args:
        prices: The file of the user's own prices, if any.

    Raises:
        OverridesError: The file cannot be used.
    """
    return PriceBook(None if prices is None else read_overrides(prices))
