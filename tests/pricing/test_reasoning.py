"""Reasoning that has a price of its own."""

import json
from collections.abc import Callable

import pytest

from voight_middleware.pricing import open_book
from voight_middleware.pricing.price_call import price_call
from voight_middleware.records.call import Call


@pytest.mark.parametrize(("reasoning", "femto"), [(0, 8_200_000_000_000), (400, 6_200_000_000_000), (1000, 3_200_000_000_000)])
def test_reasoning_is_not_billed_as_output_too(reasoning: int, femto: int, new_call: Callable[..., Call]) -> None:
    """Source: Perplexity, "Pricing", Sonar Deep Research: $2 input, $8 output, $3 reasoning for a million tokens."""
    usage = {"prompt_tokens": 100, "completion_tokens": 1000, "completion_tokens_details": {"reasoning_tokens": reasoning}}
    call = new_call(provider="perplexity", model="sonar-deep-research", raw_usage=json.dumps(usage))
    price_call(call, open_book(None))
    assert call.cost_femto == femto
