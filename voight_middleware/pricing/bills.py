"""The provider's own bill: what it says itself that a call cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from voight_middleware.records.call import Call
from voight_middleware.records.money import CONTEXT

BILLS = ("cost", "cost_in_usd_ticks")
"""The keys of a usage object under which a provider reports its bill."""


def reported_cost(call: Call, raw: Mapping[str, Any]) -> Decimal | None:
    """Return what the provider itself says that the call cost, in US dollars. Return None if it doesn't say."""
    bill = _BILLS.get(call.provider)
    return None if bill is None else bill(raw)


def _openrouter(raw: Mapping[str, Any]) -> Decimal | None:
    """
    Read OpenRouter's bill.

    Source: OpenRouter, "Usage accounting": ``cost`` in credits, one for each dollar; with a key of one's own for the provider behind
    it, that provider's bill comes on top.
    """
    total = _amount(raw.get("cost"))
    details = raw.get("cost_details")
    if total is not None and raw.get("is_byok") is True and isinstance(details, Mapping):
        upstream = _amount(details.get("upstream_inference_cost"))
        return total if upstream is None else CONTEXT.add(total, upstream)
    return total


def _xai(raw: Mapping[str, Any]) -> Decimal | None:
    """
    Read xAI's bill.

    Source: xAI, "Cost tracking" (docs.x.ai/developers/cost-tracking): ``cost_in_usd_ticks``, 10,000,000,000 for one US dollar. This is
    the amount billed: tokens after all discounts, and the calls of xAI's own tools.

    Package litellm 1, ``llms/xai/cost_calculator.py``: it hands the bill on as ``cost``, in US dollars.
    """
    ticks = _amount(raw.get("cost_in_usd_ticks"))
    return _amount(raw.get("cost")) if ticks is None else CONTEXT.scaleb(ticks, -10)


def _perplexity(raw: Mapping[str, Any]) -> Decimal | None:
    """
    Read Perplexity's bill.

    Source: Perplexity API reference, "Chat completions", ``usage.cost.total_cost``: US dollars for tokens, citations, reasoning,
    searches and the request itself.
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
