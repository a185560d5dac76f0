"""
Calls as charges in FOCUS, the FinOps Open Cost and Usage Specification 1.2 (May 2025), as CSV.

A row is one call's consumption of one SKU: the input tokens of a model, its cached input tokens,
its output tokens, or a tool's requests. ``PricingQuantity`` times ``ListUnitPrice`` is
``ListCost``, and ``BilledCost`` adds up to the ledger's cost exactly. The columns are all mandatory
ones and the conditional ones that apply, in alphabetical order. Our own columns follow, with
``x_``.

The rows follow these chapters of the specification: "Date/Time Format" (UTC, to the second),
"Numeric Format" (plain decimals), "Key-Value Format" (``Tags`` is a flat JSON object), "Null
Handling" (an empty cell, never a placeholder), "Unit Format" (``Tokens``, ``Requests``) and "Column
Handling" (order, ``x_``).

They differ from it in these points, as the bill is the provider's:

* ``BilledCost`` and the other costs are null if the price is unknown. The specification forbids
  null there, but 0 would be wrong. ``x_CostStatus`` shows it. The unit prices are null in the same
  rows.
* ``BillingAccountId`` is the called host, as the account is unknown. ``InvoiceId`` is missing, and
  sums need not match an invoice.
* With your own negotiated prices, ``ListUnitPrice`` is your price too: the replaced list price is
  not stored.
* A call is one row, priced by the request, if the provider reported its cost, or if its parts don't
  add up to its cost.
* ``ChargePeriodStart`` and ``ChargePeriodEnd`` are the hour of the call. ``x_CallTime`` has the
  microsecond.
* A text that looks like a formula gets a leading apostrophe. "String Handling" wants it unchanged.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from voight_middleware.exporters.files import csv_file as csvfile
from voight_middleware.pricing.explain import Explanation, Line, Part, explain
from voight_middleware.pricing.rules import TOKENS
from voight_middleware.records.call import Call
from voight_middleware.records.money import CONTEXT, from_femto, usd_text

VERSION = "1.2"
MANDATORY = (
    *(
        "BilledCost",
        "BillingAccountId",
        "BillingAccountName",
        "BillingCurrency",
        "BillingPeriodEnd",
        "BillingPeriodStart",
    ),
    *(
        "ChargeCategory",
        "ChargeClass",
        "ChargeDescription",
        "ChargePeriodEnd",
        "ChargePeriodStart",
        "ContractedCost",
        "EffectiveCost",
    ),
    *(
        "InvoiceIssuerName",
        "ListCost",
        "PricingQuantity",
        "PricingUnit",
        "ProviderName",
        "PublisherName",
        "ServiceCategory",
        "ServiceName",
    ),
)
_RECOMMENDED = ("ChargeFrequency", "ServiceSubcategory")
_CONDITIONAL = (
    *(
        "ConsumedQuantity",
        "ConsumedUnit",
        "ContractedUnitPrice",
        "ListUnitPrice",
        "PricingCategory",
        "SkuId",
        "SkuMeter",
        "SkuPriceId",
    ),
    *("SubAccountId", "SubAccountName", "SubAccountType", "Tags"),
)
COLUMNS = (
    *sorted((*MANDATORY, *_RECOMMENDED, *_CONDITIONAL)),
    *("x_Attribution", "x_CallId", "x_CallTime", "x_CostStatus", "x_Estimated", "x_Outcome"),
)

_NAMES = {
    "anthropic": "Anthropic",
    "azure": "Microsoft",
    "bedrock": "AWS",
    "deepseek": "DeepSeek",
    "google": "Google",
    "groq": "Groq",
    "mistral": "Mistral AI",
    "openai": "OpenAI",
    "openrouter": "OpenRouter",
    "vertex": "Google",
    "xai": "xAI",
}
_METERS = {
    "input": "Input Tokens",
    "cache_read": "Cached Input Tokens",
    "cache_read_audio": "Cached Audio Input Tokens",
    "cache_read_image": "Cached Image Input Tokens",
    "cache_write": "Cache Write Tokens",
    "cache_write_5m": "Cache Write Tokens, 5 Minutes",
    "cache_write_1h": "Cache Write Tokens, 1 Hour",
    "output": "Output Tokens",
    "reasoning": "Reasoning Tokens",
    "audio_in": "Audio Input Tokens",
    "audio_out": "Audio Output Tokens",
    "image_in": "Image Input Tokens",
    "image_out": "Image Output Tokens",
    "images": "Images",
    "seconds": "Seconds",
    "characters": "Characters",
    "request": "Requests",
}
_WHOLE = Part(model=None, lines=())


def lines(calls: Iterable[Call]) -> Iterator[bytes]:
    """Yield a header, and a row for each call and SKU."""
    return csvfile.rows(COLUMNS, (charge for call in calls for charge in charges(call)))


def charges(call: Call) -> Iterator[dict[str, Any]]:
    """Yield the charges of *call*. Their costs add up to that of the call, exactly."""
    common = _common(call)
    explanation = explain(call)
    if not _adds_up(call, explanation):
        cost = None if call.cost_usd is None else usd_text(call.cost_usd)
        ours = cost if call.list_femto is None else usd_text(from_femto(call.list_femto))
        yield {
            **common,
            **_sku(call, _WHOLE, "request"),
            **_amounts(1, cost, cost, "Requests"),
            "ListCost": ours,
            "ListUnitPrice": ours,
        }
        return
    for part in explanation.parts:
        for line in part.lines:
            unit, amount = _priced(line)
            yield {
                **common,
                **_sku(call, part, line.name),
                **_amounts(line.count, unit, amount, _unit_of(line.name)),
            }


def _adds_up(call: Call, explanation: Explanation) -> bool:
    lines = [line for part in explanation.parts for line in part.lines]
    if not lines or explanation.reported_femto is not None:
        return False
    if call.cost_usd is None:
        return True  # nothing is priced, and every count gets a row
    total = Decimal(0)
    for line in lines:
        total = CONTEXT.add(total, line.amount_usd or Decimal(0))
    return total == call.cost_usd


def _priced(line: Line) -> tuple[str | None, str | None]:
    """Return the unit price and the amount of a line: 0 if it is free, None if it has no price."""
    if line.unit_usd is None:
        return ("0", "0") if line.free else (None, None)
    amount = CONTEXT.multiply(line.unit_usd, Decimal(line.count))
    return usd_text(line.unit_usd), usd_text(amount)


def _unit_of(name: str) -> str:
    if name in TOKENS:
        return "Tokens"
    return _METERS[name] if name in ("images", "seconds", "characters") else "Requests"


def _amounts(count: int, unit: str | None, amount: str | None, measured: str) -> dict[str, Any]:
    return {
        "BilledCost": amount,
        "EffectiveCost": amount,
        "ContractedCost": amount,
        "ListCost": amount,
        "ContractedUnitPrice": unit,
        "ListUnitPrice": unit,
        "PricingQuantity": count,
        "PricingUnit": measured,
        "ConsumedQuantity": count,
        "ConsumedUnit": measured,
    }


def _sku(call: Call, part: Part, name: str) -> dict[str, Any]:
    model = part.model or call.model or call.requested_model or call.endpoint
    meter = _METERS.get(name, name.replace("_", " ").title() + " Requests")
    sku = f"{call.provider}/{model}/{name}"
    terms = sorted(part.context.values())
    return {
        "ChargeDescription": f"{model}: {meter}",
        "SkuId": sku,
        "SkuMeter": meter,
        "SkuPriceId": "/".join((sku, *terms)),
    }


def _common(call: Call) -> dict[str, Any]:
    tags = call.tags
    provider = _NAMES.get(call.provider, call.provider)
    names = ("user_id", "plan", "tenant_id", "route", "release", "session_id")
    named = {name: value for name in names if (value := getattr(tags, name)) is not None}
    everything = {**tags.extra, **named}
    return {
        "BillingAccountId": call.host or call.provider,
        "BillingCurrency": "USD",
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Usage-Based",
        **_periods(call.time.replace(minute=0, second=0, microsecond=0)),
        "InvoiceIssuerName": provider,
        "PricingCategory": "Standard",
        "ProviderName": provider,
        "PublisherName": provider,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": f"{provider} API",
        "ServiceSubcategory": "Generative AI",
        "SubAccountId": tags.tenant_id,
        "SubAccountName": tags.tenant_id,
        "SubAccountType": None if tags.tenant_id is None else "Tenant",
        "Tags": json.dumps(everything, ensure_ascii=False) if everything else None,
        "x_Attribution": call.attribution,
        "x_CallId": call.call_id,
        "x_CallTime": call.time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "x_CostStatus": call.cost_status,
        "x_Estimated": "true" if call.estimated else "false",
        "x_Outcome": call.outcome,
    }


@functools.lru_cache(maxsize=64)
def _periods(hour: datetime) -> dict[str, str]:
    month = hour.replace(day=1, hour=0)
    return {
        "BillingPeriodStart": _moment(month),
        "BillingPeriodEnd": _moment((month + timedelta(days=31)).replace(day=1)),
        "ChargePeriodStart": _moment(hour),
        "ChargePeriodEnd": _moment(hour + timedelta(hours=1)),
    }


def _moment(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
