"""The user's own prices: what the file can say, and how a mistake in it is told."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.pricing import OverridesError, PriceBook, open_book, read_overrides
from voight_middleware.pricing.price_call import price_call
from voight_middleware.records.call import Call

NewCall = Callable[..., Call]

EVERYTHING = """
# what we have negotiated
[[price]]
provider = "openai"
model = "gpt-4o*"
since = 2026-11-01
discount = "20%"

[[price]]
provider = "anthropic"
model = "claude-opus-4-6"
since = 2026-11-01T00:00:00Z
until = 2026-12-01
input = 4.5
output = 22.5

[[price]]
model = "llama-3.3-70b"
host = "llm.internal"
input = 0.1
output = 0.30

[[price]]
host = "localhost"
model = "*"
free = true

[[price]]
provider = "openai"
model = "gpt-5-nano"
tier = "flex"
input = 0.02
cache_read = 0.001
output = 0.1

[deployments]
"Chat-Prod" = "gpt-4.1"
"""
USAGE = {"prompt_tokens": 1_000_000, "completion_tokens": 100_000}


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


@pytest.fixture
def book(tmp_path: Path) -> PriceBook:
    path = tmp_path / "prices.toml"
    path.write_text(EVERYTHING)
    return open_book(path)


def cost(book: PriceBook, new_call: NewCall, when: str = "2026-11-18", **values: Any) -> Any:
    call = new_call(raw_usage=json.dumps(values.pop("usage", USAGE)), occurred_at=at(when), **values)
    price_call(call, book)
    return call.cost_usd, call.cost_status


def test_a_discount_is_laid_over_the_list_price_from_its_day_on(book: PriceBook, new_call: NewCall) -> None:
    """gpt-4o-mini: $0.15 and $0.60, less 20 %."""
    assert cost(book, new_call, "2026-10-31T23:00", model="gpt-4o-mini") == (Decimal("0.21"), "priced")
    assert cost(book, new_call, "2026-11-01T00:00", model="gpt-4o-mini") == (Decimal("0.168"), "priced")


def test_a_price_of_ones_own_replaces_the_list_price_as_long_as_it_holds(book: PriceBook, new_call: NewCall) -> None:
    """What it does not name stays as it is on the list."""
    values: dict[str, Any] = {"provider": "anthropic", "model": "claude-opus-4-6", "endpoint": "messages"}
    usage = {"input_tokens": 1_000_000, "output_tokens": 100_000, "cache_read_input_tokens": 1_000_000}
    assert cost(book, new_call, "2026-11-30T23:59", usage=usage, **values) == (Decimal("4.5") + Decimal("2.25") + Decimal("0.5"), "priced")
    assert cost(book, new_call, "2026-12-01", usage=usage, **values) == (Decimal(5) + Decimal("2.5") + Decimal("0.5"), "priced")


def test_a_model_of_ones_own(book: PriceBook, new_call: NewCall) -> None:
    """Self-hosted at a cost per token, or for nothing; on another host it stays unknown."""
    assert cost(book, new_call, model="llama-3.3-70b", host="llm.internal") == (Decimal("0.13"), "priced")
    assert cost(book, new_call, model="whatever", host="localhost") == (Decimal(0), "priced")
    assert cost(book, new_call, model="llama-3.3-70b", host="other.internal") == (None, "unpriced")
    assert cost(book, new_call, model="llama-3.3-70b", provider="my-own", host="llm.internal") == (Decimal("0.13"), "priced")


def test_a_price_for_a_tier_is_for_that_tier_only(book: PriceBook, new_call: NewCall) -> None:
    """The standard tier costs what it costs."""
    assert cost(book, new_call, model="gpt-5-nano", service_tier="flex") == (Decimal("0.03"), "priced")
    assert cost(book, new_call, model="gpt-5-nano") == (Decimal("0.09"), "priced")


def test_a_deployment_is_priced_as_the_model_behind_it(book: PriceBook, new_call: NewCall) -> None:
    """Azure's names are the user's own."""
    named = cost(book, new_call, provider="azure", model=None, requested_model="chat-prod")
    assert named == cost(book, new_call, provider="azure", model="gpt-4.1")
    assert named[0] is not None


def test_the_provenance_names_the_file_and_its_line(book: PriceBook, new_call: NewCall) -> None:
    """Whoever reads an old price finds what it was made of."""
    call = new_call(model="gpt-4o-mini", occurred_at=at("2026-11-18"))
    price_call(call, book)
    (rule,) = json.loads(call.price or "")["rules"]
    assert rule["id"] == "override-prices.toml:3"
    assert rule["source"].endswith("prices.toml:3")
    assert Decimal(json.loads(call.price or "")["unit_usd"]["input"]) == Decimal("0.00000012")


MISTAKES = [
    ("[[price]]\nmodel = 'm'\n", 1, "at least one amount"),
    ("[[price]]\ninput = 1\n", 1, "needs a model"),
    ("[[price]]\nmodel = 'm'\ninptu = 1\n", 3, "no key 'inptu'"),
    ("[[price]]\nmodel = 'm'\ninput = 1\ncurrency = 'EUR'\n", 4, "US dollars"),
    ("\n\n[[price]]\nmodel = 'm'\ninput = -1\n", 5, "input must be US dollars"),
    ("[[price]]\nmodel = 'm'\ninput = '1'\n", 3, "input must be US dollars"),
    ("[[price]]\nmodel = 'm'\ninput = true\n", 3, "input must be US dollars"),
    ("[[price]]\nmodel = 'm'\ninput = nan\n", 3, "input must be US dollars"),
    ("[[price]]\nmodel = 'm'\ninput = 2000000\n", 3, "more than any price"),
    ("[[price]]\nmodel = 7\ninput = 1\n", 2, "model must be text"),
    ("[[price]]\nmodel = 'm'\nfree = 'yes'\n", 3, "free must be true or false"),
    ("[[price]]\nmodel = 'm'\nfree = true\ninput = 1\n", 3, "cannot have another price"),
    ("[[price]]\nmodel = 'm'\ndiscount = 20\n", 3, "percentage"),
    ("[[price]]\nmodel = 'm'\ndiscount = '120%'\n", 3, "percentage"),
    ("[[price]]\nmodel = 'm'\ninput = 1\nsince = '2026-11-01'\n", 4, "without quotes"),
    ("[[price]]\nmodel = 'm'\ninput = 1\nsince = 2026-11-01T10:30:00Z\n", 4, "on the hour"),
    ("[[price]]\nmodel = 'm'\ninput = 1\nsince = 2026-11-01\nuntil = 2026-10-01\n", 5, "later than since"),
    ("[[price]]\nmodel = 'a'\ninput = 1\n[[price]]\nmodel = 'b'\noutputs = 2\n", 6, "no key 'outputs'"),
    ("[price]\nmodel = 'm'\n", 1, "write [[price]]"),
    ("[prices]\nmodel = 'm'\n", 1, "unknown key 'prices'"),
    ("[deployments]\nchat = 7\n", 2, "model of 'chat'"),
    ("deployments = 7\n", None, "maps names to models"),
    ("[[price]\n", None, "line 1"),
]


@pytest.mark.parametrize(("text", "line", "words"), MISTAKES, ids=[words for _, _, words in MISTAKES])
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, line: int | None, words: str) -> None:
    """The whole file is refused: a price that was meant and not taken would be a wrong one."""
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(OverridesError) as caught:
        read_overrides(path)
    problem = caught.value.problems[0]
    assert problem.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert words in problem


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """Nobody likes to hear of them one by one."""
    path = tmp_path / "prices.toml"
    path.write_text("[[price]]\nmodel = 'm'\ninput = -1\noutput = 'x'\n[[price]]\ninput = 1\n")
    with pytest.raises(OverridesError) as caught:
        read_overrides(path)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None) -> None:
    """Missing, or no text."""
    path = tmp_path / "prices.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OverridesError, match=r"prices\.toml: cannot be read"):
        read_overrides(path)


@pytest.mark.parametrize(("text", "words"), [("a = " + "[" * 20_000, "nested too deeply"), (f"a = {'9' * 5_000}", "digits")])
def test_a_file_that_no_reader_of_toml_reads_is_told(tmp_path: Path, text: str, words: str) -> None:
    """It is a mistake as any other, and not an error of ours."""
    (tmp_path / "prices.toml").write_text(text)
    with pytest.raises(OverridesError, match=words):
        read_overrides(tmp_path / "prices.toml")


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    """And that is no mistake."""
    path = tmp_path / "prices.toml"
    path.write_text("# nothing yet\n")
    assert read_overrides(path).rules == ()
