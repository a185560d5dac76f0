"""Reasoning with a price of its own, where more of it was reported than output."""

from decimal import Decimal

from voight_middleware.call import Call
from voight_middleware.pricing.book import PriceBook
from voight_middleware.pricing.cost import billed, price
from voight_middleware.pricing.explain import explain
from voight_middleware.usage import Component, Usage

MODEL = "sonar-deep-research"


def test_more_reasoning_than_output_is_partial_and_never_negative() -> None:
    """The output is billed, all of it as reasoning; the reason names both counts, and the explanation adds up."""
    usage = Usage(input=10, output=100, reasoning=300)
    call = Call(
        call_id="c", occurred_at=1_795_000_000_000_000, provider="perplexity", endpoint="chat", model=MODEL, host="api.perplexity.ai"
    )
    call.components, call.usage = (Component(usage=usage),), usage
    book = PriceBook()
    table = book.rates(call, None)
    assert table is not None
    rates = table.for_input(10)
    assert "reasoning" in rates.femto
    assert dict(billed(usage, rates))["reasoning"] == 100
    assert all(count >= 0 for _, count in billed(usage, rates))
    price(call, book)
    assert (call.cost_status, call.cost_usd is not None and call.cost_usd > Decimal(0)) == ("partial", True)
    assert "reasoning = 300, more than output = 100" in call.cost_reasons
    assert explain(call).agrees
