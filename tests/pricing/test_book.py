"""The price book: unit prices by provider, model, tier and day, with their provenance."""

import ast
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Context, Decimal, localcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest

from voight_middleware import pricing
from voight_middleware.pricing import PriceBook
from voight_middleware.pricing.book import RateTable
from voight_middleware.pricing.rules import STANDARD, Terms
from voight_middleware.records.call import Call

NewCall = Callable[..., Call]


def at(year: int, month: int, day: int, hour: int = 12) -> int:
    return int(datetime(year, month, day, hour, tzinfo=UTC).timestamp()) * 1_000_000


@pytest.fixture(scope="module")
def book() -> PriceBook:
    """The price book, loaded once: it changes nothing but its cache."""
    return PriceBook()


def rates(book: PriceBook, call: Call, model: str | None = None, terms: Terms = STANDARD) -> RateTable:
    table = book.rates(call, model, terms)
    assert table is not None
    return table


def test_rates_are_whole_femto_dollars_per_unit(book: PriceBook, new_call: NewCall) -> None:
    """List prices per million tokens are whole numbers of femto-dollars per token, and no float is among them."""
    (row,) = rates(book, new_call(occurred_at=at(2026, 11, 18))).rows
    assert row[0] == 0
    assert (row[1].femto["input"], row[1].femto["cache_read"], row[1].femto["output"]) == (50_000_000, 5_000_000, 400_000_000)
    assert {type(amount) for amount in row[1].femto.values()} <= {int, Decimal}
    assert row[1].reasons == ()


def test_every_price_of_the_source_is_exact(book: PriceBook, new_call: NewCall) -> None:
    """Over all models of the large providers, no unit price is a float, negative, or rounded by the caller's decimal context."""
    from genai_prices.data_snapshot import get_snapshot

    seen = 0
    for provider in get_snapshot().providers:
        if provider.id not in ("openai", "anthropic", "google", "mistral", "deepseek"):
            continue
        for model in provider.models:
            call = new_call(provider=provider.id, model=model.id, occurred_at=at(2026, 11, 18))
            table = book.rates(call, None)
            with localcontext(Context(prec=3)):
                assert PriceBook().rates(call, None) == table if seen % 25 == 0 else True
            for _, one in table.rows if table is not None else ():
                assert all(type(amount) in (int, Decimal) and amount >= 0 for amount in one.femto.values())
                seen += 1
    assert seen > 100


def test_the_provenance_is_enough_to_compute_again(book: PriceBook, new_call: NewCall) -> None:
    """Source, version, provider, model and the unit prices in plain US dollars are kept as JSON."""
    provenance = msgspec.json.decode(
        rates(book, new_call(model="gpt-5-nano-2025-08-07", occurred_at=at(2026, 11, 18))).rows[0][1].provenance
    )
    assert (provenance["source"], provenance["provider"], provenance["model"]) == ("genai-prices", "openai", "gpt-5-nano")
    assert provenance["version"][0].isdigit()
    assert Decimal(provenance["unit_usd"]["input"]) * 1_000_000 == Decimal("0.05")
    assert all("E" not in amount for amount in provenance["unit_usd"].values())


def test_a_long_context_has_rates_of_its_own_behind_its_threshold(book: PriceBook, new_call: NewCall) -> None:
    """The threshold itself is still short: one token more and every token costs the long rate."""
    table = rates(book, new_call(model="gpt-5.4-pro", occurred_at=at(2026, 11, 18)))
    assert [above for above, _ in table.rows] == [0, 272_000]
    assert table.for_input(0) is table.for_input(272_000) is table.rows[0][1]
    assert table.for_input(272_001) is table.for_input(10**9) is table.rows[1][1]
    assert table.rows[1][1].femto["input"] == 2 * table.rows[0][1].femto["input"]


@pytest.mark.parametrize(
    "name",
    ["gpt-5-nano", "GPT-5-Nano", "openai/gpt-5-nano", "models/gpt-5-nano", "gpt-5-nano-2025-08-07"],
)
def test_a_name_is_found_however_it_is_written(book: PriceBook, new_call: NewCall, name: str) -> None:
    """Case, a provider prefix and a date behind it do not matter, and give no reason for doubt."""
    row = rates(book, new_call(model=name, occurred_at=at(2026, 11, 18))).rows[0][1]
    assert (row.femto["input"], row.reasons) == (50_000_000, ())


@pytest.mark.parametrize(
    ("name", "doubt"), [("gpt-5-nano-turbo", True), ("gpt-5-nano-audio-2027-01-01", True), ("gpt-5-nano-2027-01-01", False)]
)
def test_a_name_that_only_begins_like_a_known_one_is_doubted(book: PriceBook, new_call: NewCall, name: str, doubt: bool) -> None:
    """A model that is newer than the price data is priced as its namesake with a reason; a dated snapshot is not doubted."""
    row = rates(book, new_call(model=name, occurred_at=at(2026, 11, 18))).rows[0][1]
    assert bool(row.reasons) == doubt


@pytest.mark.parametrize("model", ["gpt-9-ultra", "", None, "x" * 10_000, "\ud800", "ft:gpt-4.1-2025-04-14:acme:x:id", "a/b/c", "*"])
def test_an_unknown_name_has_no_rates(book: PriceBook, new_call: NewCall, model: Any) -> None:
    """What is not known is None, twice, and raises nothing."""
    call = new_call(model=model, requested_model=None)
    assert book.rates(call, None) is None
    assert book.rates(call, None) is None


def test_an_unknown_provider_has_no_rates(book: PriceBook, new_call: NewCall) -> None:
    """A known model of an unknown provider is not priced by another one's list."""
    assert book.rates(new_call(provider="my-own-server"), None) is None


def test_the_served_model_is_priced_and_the_requested_one_is_the_second_choice(book: PriceBook, new_call: NewCall) -> None:
    """Where the answer names no model that is known, the requested one is used."""
    day = at(2026, 11, 18)
    served = rates(book, new_call(model="gpt-5-nano", requested_model="gpt-4.1", occurred_at=day))
    asked = rates(book, new_call(model="some-internal-name", requested_model="gpt-5-nano", occurred_at=day))
    unnamed = rates(book, new_call(model=None, requested_model="gpt-5-nano", occurred_at=day))
    assert served.rows[0][1].femto == asked.rows[0][1].femto == unnamed.rows[0][1].femto


def test_a_component_is_priced_by_its_own_model(book: PriceBook, new_call: NewCall) -> None:
    """A model that is given wins over the call's."""
    call = new_call(occurred_at=at(2026, 11, 18))
    assert rates(book, call, "gpt-4.1").rows[0][1].femto != rates(book, call).rows[0][1].femto
    assert book.rates(call, "gpt-9-ultra") is None


def test_the_tier_is_part_of_the_key(book: PriceBook, new_call: NewCall) -> None:
    """A flex call after a standard one is not priced from the cache of the standard one, nor the other way round."""
    day = at(2026, 11, 18)
    standard, flex = new_call(occurred_at=day), new_call(occurred_at=day)
    for _ in range(2):
        assert rates(book, standard).rows[0][1].femto["input"] == 50_000_000
        assert rates(book, flex, terms=Terms(tier="flex")).rows[0][1].femto["input"] == 25_000_000


def test_a_call_is_priced_at_its_own_time(book: PriceBook, new_call: NewCall) -> None:
    """A price that changes by the hour is looked up by the hour, and not remembered for the day (deepseek-flash: peak is twice)."""
    night, day = (new_call(provider="deepseek", model="deepseek-flash", occurred_at=at(2026, 11, 18, hour)) for hour in (2, 13))
    for _ in range(2):
        assert rates(book, night).rows[0][1].femto["input"] == 2 * rates(book, day).rows[0][1].femto["input"]


def test_a_warm_look_up_answers_the_same_table(book: PriceBook, new_call: NewCall) -> None:
    """The same model in the same hour is resolved once."""
    first, second = new_call(occurred_at=at(2026, 11, 18, 1)), new_call(occurred_at=at(2026, 11, 18, 1) + 3_599_999_999)
    assert book.rates(first, None) is book.rates(second, None)


def test_there_is_no_float_on_the_path_of_money() -> None:
    """The source of the price modules and of `money` has no float literal, no `float()` and no true division."""
    folder = Path(str(pricing.__file__)).parent
    for path in (*folder.glob("*.py"), folder.parent / "records" / "money.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), (path, node.lineno)
            assert not (isinstance(node, ast.Name) and node.id == "float"), (path, node.lineno)
            assert not (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div)), (path, node.lineno)
