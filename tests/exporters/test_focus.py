"""The FOCUS-shaped export: columns, rules of FOCUS 1.2 that every row keeps, and costs that add up exactly."""

import csv
import io
import json
import re
from decimal import Decimal
from typing import Any

import pytest

from voight_middleware.exporters.files import focus
from voight_middleware.pricing import PriceBook
from voight_middleware.pricing.price_call import price_call
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Tags

from ..support.made_up_ledger import made_up_calls

# The feature level of each column in FOCUS 1.2, "Columns".
MANDATORY = (
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart"),
    *("ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost", "EffectiveCost"),
    *("InvoiceIssuerName", "ListCost", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName"),
)
NOT_NULL = set(MANDATORY) - {"BillingAccountName", "ChargeClass"}
COSTS = {"BilledCost", "ContractedCost", "EffectiveCost", "ListCost"}
NUMBER = re.compile(r"-?\d+(\.\d+)?")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")

Row = dict[str, str]


def read(calls: list[Call]) -> list[Row]:
    return list(csv.DictReader(io.StringIO(b"".join(focus.lines(calls)).decode(), newline="")))


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    return list(made_up_calls(3_000))


@pytest.fixture(scope="module")
def rows(calls: list[Call]) -> list[Row]:
    return read(calls)


def priced(**fields: Any) -> Call:
    call = Call(**{"call_id": "c", "occurred_at": 1_793_534_400_000_001, "provider": "openai", "endpoint": "chat", **fields})
    price_call(call, PriceBook())
    return call


@pytest.mark.slow
def test_columns(rows: list[Row]) -> None:
    """All mandatory columns are there, FOCUS columns first and in alphabetical order, ours behind them with their prefix."""
    names = list(rows[0])
    ours = [name for name in names if name.startswith("x_")]
    theirs = names[: -len(ours)]
    assert set(MANDATORY) <= set(theirs)
    assert theirs == sorted(theirs)
    assert not any(name.startswith("x_") for name in theirs)


@pytest.mark.slow
def test_what_must_not_be_null(rows: list[Row]) -> None:
    """No mandatory cell is empty, but for the costs of what has no price: they are null together with the unit prices, and never 0."""
    without = 0
    for row in rows:
        empty = {name for name in NOT_NULL if not row[name]}
        if row["x_CostStatus"] == "unpriced":
            assert (empty, row["ListUnitPrice"], row["ContractedUnitPrice"]) == (COSTS, "", "")
            without += 1
        else:
            assert empty == set()
    assert without > 0


@pytest.mark.slow
def test_formats(rows: list[Row]) -> None:
    """Times are UTC to the second, numbers plain decimals, tags a flat object, and the periods hold the time of the call."""
    for row in rows:
        for name, value in row.items():
            if value and name.endswith(("Start", "End")):
                assert MOMENT.fullmatch(value)
            if value and name.endswith(("Cost", "Price", "Quantity")):
                assert NUMBER.fullmatch(value)
        assert row["ChargePeriodStart"] <= row["x_CallTime"] < row["ChargePeriodEnd"]
        assert row["BillingPeriodStart"] <= row["x_CallTime"] < row["BillingPeriodEnd"]
        assert all(isinstance(value, str) for value in json.loads(row["Tags"]).values())
        assert (row["SubAccountId"] == "") == (row["SubAccountName"] == "") == (row["SubAccountType"] == "")
    assert {row["BillingPeriodStart"] for row in rows} == {"2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z"}
    assert {row["BillingPeriodEnd"] for row in rows} == {"2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"}


@pytest.mark.slow
def test_quantity_times_price_is_cost(rows: list[Row]) -> None:
    """In every row with a price the product of quantity and unit price is the cost, exactly."""
    with_price = [row for row in rows if row["ListUnitPrice"]]
    assert len(with_price) > len(rows) * 0.9
    for row in with_price:
        assert Decimal(row["PricingQuantity"]) * Decimal(row["ListUnitPrice"]) == Decimal(row["ListCost"])
        assert Decimal(row["PricingQuantity"]) * Decimal(row["ContractedUnitPrice"]) == Decimal(row["ContractedCost"])


def test_the_rows_of_a_call_add_up_to_its_cost(calls: list[Call], rows: list[Row]) -> None:
    """Every call has a row, and its rows come to its cost to the femto-dollar; one without a price has none."""
    of_calls: dict[str, list[Row]] = {}
    for row in rows:
        of_calls.setdefault(row["x_CallId"], []).append(row)
    assert set(of_calls) == {call.call_id for call in calls}
    for call in calls:
        costs = [Decimal(row["BilledCost"]) for row in of_calls[call.call_id] if row["BilledCost"]]
        assert (sum(costs, Decimal(0)) if costs else None) == call.cost_usd


def test_a_sku_has_one_meter(rows: list[Row]) -> None:
    """A SKU means one model's kind of token, whatever the call, and its price id belongs to it."""
    meters: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        meters.setdefault(row["SkuId"], set()).add((row["SkuMeter"], row["PricingUnit"]))
        assert row["SkuPriceId"].startswith(row["SkuId"])
    assert all(len(some) == 1 for some in meters.values())
    assert meters["openai/gpt-5-mini/cache_read"] == {("Cached Input Tokens", "Tokens")}
    assert meters["anthropic/claude-sonnet-4-5/web_search"] == {("Web Search Requests", "Requests")}


def test_a_reported_cost_is_one_row() -> None:
    """Where the provider says what it bills, that is billed, and our own prices are the list."""
    call = priced(provider="openrouter", model="openai/gpt-5-nano", raw_usage='{"prompt_tokens":1000,"completion_tokens":10,"cost":0.5}')
    (row,) = read([call])
    assert (row["BilledCost"], row["PricingUnit"], row["PricingQuantity"]) == ("0.5", "Requests", "1")
    assert row["ListCost"] == ("" if call.list_femto is None else row["ListUnitPrice"])


def test_a_count_without_a_price_is_not_free() -> None:
    """The part of a call that has no price has a row without a cost."""
    raw = '{"prompt_tokens":10,"completion_tokens":5,"completion_tokens_details":{"audio_tokens":3}}'
    call = priced(model="gpt-5-nano", raw_usage=raw)
    assert call.cost_status == "partial"
    assert {row["SkuMeter"]: row["BilledCost"] for row in read([call])} == {
        "Input Tokens": "0.0000005",
        "Output Tokens": "0.0000008",
        "Audio Output Tokens": "",
    }


def test_texts_are_made_safe() -> None:
    """A tenant that would be a formula is none, in FOCUS too."""
    (row,) = read([priced(tags=Tags(tenant_id="=1+1"), outcome="error", http_status=429)])
    assert (row["SubAccountId"], row["BilledCost"]) == ("'=1+1", "0")
