"""The arithmetic of a call, from what is stored of it: it comes to the stored figure, or says that it does not."""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voight_middleware.pricing import PriceBook, price
from voight_middleware.pricing.book import Rates, RateTable
from voight_middleware.pricing.cost import COUNTS
from voight_middleware.pricing.explain import Explanation, Rule, explain
from voight_middleware.pricing.price_call import price_call
from voight_middleware.records.call import Call, new_call_id
from voight_middleware.records.money import CONTEXT, usd_text
from voight_middleware.records.usage import Component, Usage

NewCall = Callable[..., Call]


@pytest.fixture(scope="module")
def book() -> PriceBook:
    """The list prices."""
    return PriceBook()


def lines(explanation: Explanation) -> list[tuple[str, int, str | None]]:
    return [
        (line.name, line.count, None if line.amount_usd is None else usd_text(line.amount_usd))
        for part in explanation.parts
        for line in part.lines
    ]


def test_count_times_price(book: PriceBook, new_call: NewCall) -> None:
    """Each count with its amount, where the price is from, and a sum that is the cost."""
    usage = '{"prompt_tokens":10000,"completion_tokens":2500,"prompt_tokens_details":{"cached_tokens":4096}}'
    call = new_call(raw_usage=usage, tool_calls={"web_search": 2})
    price_call(call, book)
    found = explain(call)
    assert lines(found) == [
        ("input", 5904, "0.0002952"),
        ("cache_read", 4096, "0.00002048"),
        ("output", 2500, "0.001"),
        ("web_search", 2, "0.02"),
    ]
    (part,) = found.parts
    assert (part.model, part.provider, part.source) == ("gpt-5-nano", "openai", "genai-prices")
    assert part.version
    assert part.data
    assert (found.sum_femto, found.agrees) == (call.cost_femto, True) == (21_315_680_000_000, True)


def test_components_by_their_own_models(book: PriceBook, new_call: NewCall) -> None:
    """An advisor is billed beside the first model, at its own rate; what is not charged for says so."""
    raw = (
        '{"iterations":[{"input_tokens":7,"output_tokens":1},{"model":"claude-opus-4-6","output_tokens":5}],'
        '"server_tool_use":{"web_search_requests":2,"web_fetch_requests":3}}'
    )
    call = new_call(provider="anthropic", endpoint="messages", model="claude-sonnet-4-6", raw_usage=raw)
    price_call(call, book)
    found = explain(call)
    assert [part.model for part in found.parts] == ["claude-sonnet-4-6", "claude-opus-4-6"]
    assert lines(found) == [
        ("input", 7, "0.000021"),
        ("output", 1, "0.000015"),
        ("web_search", 2, "0.02"),
        ("web_fetch", 3, None),
        ("output", 5, "0.000125"),
    ]
    assert [line.free for part in found.parts for line in part.lines] == [False, False, False, True, False]
    assert found.agrees


def test_terms_and_rules(book: PriceBook, new_call: NewCall) -> None:
    """The terms whose prices were used and the rules over the list are named, each rule with its source."""
    call = new_call(model="gpt-4.1", batch=True)
    price_call(call, book)
    (part,) = explain(call).parts
    assert part.context == {"processing": "batch"}
    call = new_call(endpoint="images", model="dall-e-3", raw_usage='{"images":2,"size":"1024x1024"}')
    price_call(call, book)
    found = explain(call)
    (part,) = found.parts
    assert part.rules == (Rule("openai-dall-e-3-1024x1024", "https://developers.openai.com/api/docs/models/dall-e-3"),)
    assert (lines(found), found.agrees) == ([("images", 2, "0.08")], True)


def test_a_call_without_a_price(book: PriceBook, new_call: NewCall) -> None:
    """Its counts are shown without amounts; there is nothing that a sum could contradict."""
    call = new_call(model="unknown")
    price_call(call, book)
    found = explain(call)
    assert lines(found) == [("input", 10, None), ("output", 2, None)]
    assert (found.sum_femto, found.stored_femto, found.agrees) == (None, None, True)
    assert not any(line.free for line in found.parts[0].lines)


def test_a_partial_price(book: PriceBook, new_call: NewCall) -> None:
    """A count that has no price is not free."""
    call = new_call(tool_calls={"seance": 1})
    price_call(call, book)
    assert call.cost_status == "partial"
    found = explain(call)
    assert lines(found)[-1] == ("seance", 1, None)
    assert not found.parts[0].lines[-1].free
    assert found.agrees


@pytest.mark.parametrize("values", [{"endpoint": "moderations"}, {"outcome": "error", "http_status": 500}])
def test_free_calls(book: PriceBook, new_call: NewCall, values: dict[str, Any]) -> None:
    """What is free, and what was not billed, costs 0 without any arithmetic."""
    call = new_call(raw_usage=None, **values)
    price_call(call, book)
    found = explain(call)
    assert (found.parts, found.sum_femto, found.stored_femto, found.agrees, found.reported_femto) == ((), None, 0, True, None)


@pytest.mark.parametrize(("model", "ours"), [("openai/gpt-5-nano", 1_300_000_000), ("nobody/knows", None)])
def test_what_the_provider_reported(book: PriceBook, new_call: NewCall, model: str, ours: int | None) -> None:
    """The provider's figure is the cost; the arithmetic is that of our own figure beside it, where there is one."""
    call = new_call(provider="openrouter", model=model, raw_usage='{"prompt_tokens":10,"completion_tokens":2,"cost":0.0000123}')
    price_call(call, book)
    found = explain(call)
    assert (found.reported_femto, found.sum_femto, found.stored_femto, found.agrees) == (12_300_000_000, ours, ours, True)


def test_it_is_computed_from_what_is_stored(book: PriceBook, new_call: NewCall) -> None:
    """A cost that the stored prices do not come to is found out, by a femto-dollar, as is a cost without any prices."""
    call = new_call()
    price_call(call, book)
    assert call.cost_femto is not None
    assert not explain(msgspec.structs.replace(call, cost_femto=call.cost_femto + 1)).agrees
    assert not explain(msgspec.structs.replace(call, price=None)).agrees
    doubled = json.loads(call.price or "")
    doubled["unit_usd"] = {name: str(Decimal(usd) * 2) for name, usd in doubled["unit_usd"].items()}
    found = explain(msgspec.structs.replace(call, price=json.dumps(doubled)))
    assert (found.sum_femto, found.agrees) == (2 * call.cost_femto, False)


@pytest.mark.parametrize(
    "record",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"unit_usd":[]}',
        '{"unit_usd":{"input":0.5,"output":"NaN","request":"many"},"rules":{},"context":[],"source":7}',
        '{"rules":[{}, 5, {"id":"x"}]}',
        "\n\n",
    ],
)
def test_old_and_broken_records(new_call: NewCall, record: str) -> None:
    """A record that lacks anything, or is none, explains less, and never fails."""
    call = new_call(price=record, usage=Usage(input=10), components=(), cost_femto=5, cost_status="priced")
    found = explain(call)
    assert lines(found) == [("input", 10, None)]
    assert not found.agrees


def test_least_counts_and_reasoning(new_call: NewCall) -> None:
    """What is billed is at least the minimum of the record, and reasoning by its own price."""
    usage = Usage(seconds=4, output=10, reasoning=3)
    record = '{"source":"s","unit_usd":{"seconds":"0.5","output":"2","reasoning":"3","request":"7"},"minimum":{"seconds":10}}'
    found = explain(new_call(price=record, usage=usage, cost_femto=35 * 10**15, cost_status="priced"))
    assert lines(found) == [("reasoning", 3, "9"), ("output", 7, "14"), ("seconds", 10, "5"), ("request", 1, "7")]
    assert (found.sum_femto, found.agrees) == (35 * 10**15, True)


units = st.decimals(0, 1, places=18, allow_nan=False) | st.integers(0, 10**12).map(lambda femto: Decimal(femto).scaleb(-15))
usages = st.builds(Usage, **{name: st.none() | st.integers(0, 1000) for name in COUNTS}).filter(lambda usage: usage != Usage())


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.tuples(usages, st.fixed_dictionaries({}, optional=dict.fromkeys(COUNTS, units))), min_size=1, max_size=3))
def test_the_sum_is_the_cost(parts: list[tuple[Usage, dict[str, Decimal]]]) -> None:
    """Whatever the counts and the unit prices, finer than a femto-dollar too: the arithmetic comes to what the call was priced at."""

    class Book(PriceBook):
        def __init__(self) -> None:
            self.left = [usd for _, usd in parts]

        def rates(self, call: Call, model: str | None, terms: Any = None) -> RateTable:
            usd = self.left.pop(0)
            femto = {name: CONTEXT.scaleb(amount, 15) for name, amount in usd.items()}
            whole = {name: int(amount) if amount == int(amount) else amount for name, amount in femto.items()}
            record = {"source": "s", "unit_usd": {name: f"{amount:f}" for name, amount in usd.items()}}
            return RateTable(((0, Rates(whole, (), json.dumps(record))),))

    call = Call(call_id=new_call_id(), occurred_at=1, provider="p", endpoint="chat", model="m")
    call.components = tuple(Component(usage=usage) for usage, _ in parts)
    price(call, Book())
    found = explain(call)
    assert found.agrees
    assert found.stored_femto == call.cost_femto
