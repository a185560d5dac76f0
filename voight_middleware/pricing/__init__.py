"""What a call costs: unit prices by provider, model, tier and day, with their provenance."""

from voight_middleware.pricing.book import PriceBook, Rates
from voight_middleware.pricing.cost import price

__all__ = ["PriceBook", "Rates", "price"]
