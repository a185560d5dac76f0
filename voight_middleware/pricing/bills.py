"""The cost that the provider itself reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from voight_middleware.records.call import Call
from voight_middleware.records.money import CONTEXT

BILLS = ("cost", "cost_in_usd_ticks")
"""The usage keys under which providers report the cost."""


def reported_cost(call: Call, raw: Mapping[str, Any]) -> Decimal | None:
    """
    Return the cost that the provider itself reports, in US dollars. Return None if it reports none.
    """
    bill = _BILLS.get(call.provider)
    return None if bill is None else bill(raw)


def _openrouter(raw: Mapping[str, Any]) -> Decimal | None:
    """
    Read OpenRouter's cost.

    Source: OpenRouter, "Usage accounting": ``cost`` in credits, one per dollar. With your own key
    for the upstream provider, its cost is added.
    """
    total = _amount(raw.get("cost"))
    details = raw.get("cost_details")
    if total is not None and raw.get("is_byok") is True and isinstance(details, Mapping):
        upstream = _amount(details.get("upstream_inference_cost"))
        return total if upstream is None else CONTEXT.add(total, upstream)
    return total


def _xai(raw: Mapping[str, Any]) -> Decimal | None:
    """
    Read xAI's cost.

    Source: xAI, "Cost tracking" (docs.x.ai/developers/cost-tracking): ``cost_in_usd_ticks``,
    10,000,000,000 per US dollar. This is the amount billed: tokens after all discounts, and calls
    of xAI's own tools.

    litellm 1, ``llms/xai/cost_calculator.py``, reports it as ``cost`` in US dollars.
    """
    ticks = _amount(raw.get("cost_in_usd_ticks"))
    return _amount(raw.get("cost")) if ticks is None else CONTEXT.scaleb(ticks, -10)


def _perplexity(raw: Mapping[str, Any]) -> Decimal | None:
    """
    Read Perplexity's cost.

    Source: Perplexity API reference, "Chat completions", ``usage.cost.total_cost``: US dollars for
    tokens, citations, reasoning, searches and the request itself.
    """
    cost = raw.get("cost")
    return _amount(cost.get("total_cost")) if isinstance(cost, Mapping) else None


_BILLS: dict[str, Callable[[Mapping[str, Any]], Decimal | None]] = {
    "openrouter": _openrouter,
    "perplexity": _perplexity,
    "xai": _xai,
    "x-ai": _xai,
}


def _amount(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or value < 0:
        return None
    amount = Decimal(value)
    return amount if amount.is_finite() else None
