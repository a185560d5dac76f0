"""The table of hosts: who bills, by the end of a host's name."""

from genai_prices.data import providers

from voight_middleware.pricing.book import _PROVIDERS
from voight_middleware.providers.hosts import _HOSTS, PROVIDERS, billing_provider

WITHOUT_PRICES = {"huggingface"}
"""Its router's prices depend on the provider behind it, which the host does not tell: its calls are unpriced."""


def test_every_provider_has_prices() -> None:
    """The name that a host has is one of the price data, so that no call is unpriced by a misspelling."""
    known = {provider.id for provider in providers}
    names = {_PROVIDERS.get(name, name) for name in PROVIDERS}

    assert names - known == WITHOUT_PRICES


def test_every_row_is_reached() -> None:
    """No row stands behind a shorter one that takes its hosts."""
    for end, name in _HOSTS:
        assert billing_provider(f"a{end}" if end.startswith("-") else f"api.{end}") == name, end
