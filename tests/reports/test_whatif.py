"""What calls would have cost with other models."""

from collections.abc import Callable
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from voight_middleware.ledger import Ledger, UnknownDimension, Window
from voight_middleware.pricing import PriceBook, open_book
from voight_middleware.pricing.price_call import price_call
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Tags
from voight_middleware.reports.whatif import NoSuchModel, dimension_of, what_if

Make = Callable[..., Call]


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> PriceBook:
    """Prices by hand: `big` costs 10 and 20 US dollars a million, `small` 1 and 2, `other` of Anthropic 3 and 4."""
    path: Path = tmp_path_factory.mktemp("prices") / "prices.toml"
    path.write_text(
        "".join(
            f'[[price]]\nprovider = "{provider}"\nmodel = "{model}"\ninput = {one}\noutput = {two}\n'
            for provider, model, one, two in (
                ("openai", "big*", 10, 20),
                ("openai", "small", 1, 2),
                ("anthropic", "other", 3, 4),
            )
        )
    )
    return open_book(path)


@pytest.fixture
def keep(ledger: Ledger, book: PriceBook, new_call: Make) -> Callable[..., None]:
    """Keeps a call of 1000 tokens in and 100 out, priced."""

    def keep(model: str, user: str | None = "u_1", **values: object) -> None:
        tags = Tags(user_id=user, extra={"feature": "f"})
        raw = values.pop("raw_usage", '{"prompt_tokens":1000,"completion_tokens":100}')
        call = new_call(model=model, tags=tags, raw_usage=raw, occurred_at=1_800_000_000_000_000, **values)
        price_call(call, book)
        ledger.insert([call])

    return keep


def test_the_same_usage_at_other_prices(ledger: Ledger, book: PriceBook, keep: Callable[..., None]) -> None:
    """1000 tokens in and 100 out cost 0.012 US dollars of the big model and 0.0012 of the small one; other calls stay as they are."""
    keep("big")
    keep("big-2026-01-01", "u_2")
    keep("small")
    keep("bigger")
    report = what_if(ledger, book, {"big": "small"}, ["user_id"])
    assert [(row.dimensions, row.before_femto, row.after_femto) for row in report.rows] == [
        ({"user_id": "u_1"}, 12 * 10**12, 12 * 10**11),
        ({"user_id": "u_2"}, 12 * 10**12, 12 * 10**11),
    ]
    assert (report.total.compared, report.total.difference_femto, report.replaced) == (2, -216 * 10**11, ("big", "big-2026-01-01"))
    assert report.bill_femto == (12 + 12 + 12) * 10**11 + 12 * 10**12
    assert sum(group.cost_femto or 0 for group in ledger.spend()) == 36 * 10**12 + 12 * 10**11  # nothing was written


def test_another_provider(ledger: Ledger, book: PriceBook, keep: Callable[..., None]) -> None:
    """The price of whoever has one is taken where the provider of the call has none, or the one that is named."""
    keep("big")
    for other in ("other", "anthropic/other"):
        assert what_if(ledger, book, {"big": other}).total.after_femto == 34 * 10**11


def test_what_cannot_be_compared(ledger: Ledger, book: PriceBook, keep: Callable[..., None]) -> None:
    """Calls without a price on one of both sides are counted and left out of both."""
    keep("big")
    keep("big", raw_usage=None)
    report = what_if(ledger, book, {"big": "no-such-model"})
    total = report.total
    assert (total.calls, total.compared, total.unpriced_before, total.unpriced_after, total.left_out_femto) == (2, 0, 1, 1, 12 * 10**12)
    assert report.bill_femto == 12 * 10**12


def test_patterns(ledger: Ledger, book: PriceBook, keep: Callable[..., None]) -> None:
    """A star is any text, and nothing else is a pattern; the first model that a call fits counts."""
    keep("big")
    keep("bigger")
    assert what_if(ledger, book, {"big": "other", "big*": "small"}).total.after_femto == 34 * 10**11 + 12 * 10**11
    for name in ("b.g", "[b]ig", "big' OR 1=1 --", "BIG"):
        with pytest.raises(NoSuchModel, match="there are no calls of the model"):
            what_if(ledger, book, {name: "small"})
    with pytest.raises(UnknownDimension):
        what_if(ledger, book, {"big": "small"}, ["x;--"])


@pytest.mark.parametrize("zone", [None, ZoneInfo("Asia/Kathmandu")])
def test_dimensions_are_those_of_the_ledger(ledger: Ledger, keep: Callable[..., None], zone: ZoneInfo | None) -> None:
    """A call falls into the very group that the ledger puts it in."""
    keep("big")
    (call,) = ledger.calls()
    for name in ("user_id", "plan", "provider", "model", "endpoint", "outcome", "cost_status", "hour", "day", "month", "feature"):
        (group,) = ledger.spend([name], None, Window(), zone=zone)
        assert dimension_of(call, name, *([zone] if zone else [])) == group.dimensions[name]
