"""What a call costs: exact figures from the providers' own price pages, and a status that says how far to trust them."""

import json
from collections.abc import Callable
from datetime import datetime
from decimal import Context, Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voight_middleware.pricing import PriceBook
from voight_middleware.pricing.price_call import price_call
from voight_middleware.providers.usage_formats import recognise
from voight_middleware.records.call import Call

NewCall = Callable[..., Call]
NOON = 1_795_003_200_000_000
"""2026-11-18 12:00 UTC, in microseconds."""

CHAT = {"prompt_tokens": 1000, "completion_tokens": 1000}
CASES: list[tuple[str, str, str, dict[str, Any], dict[str, Any], str]] = [
    # https://developers.openai.com/api/docs/models/gpt-5-nano.md (Input $0.05, Cached $0.005, Output $0.4 /1M)
    (
        "openai",
        "gpt-5-nano",
        "chat",
        {
            "prompt_tokens": 10000,
            "completion_tokens": 2500,
            "prompt_tokens_details": {"cached_tokens": 4096, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 2000},
        },
        {},
        "0.00131568",
    ),
    ("openai", "gpt-5-nano-2025-08-07", "chat", {"prompt_tokens": 1234, "completion_tokens": 567}, {}, "0.0002885"),
    # the same; $10/1k: OpenAI pricing page quoted verbatim at community.openai.com/t/search-web-using-openai-api/1363698
    (
        "openai",
        "gpt-5-nano",
        "responses",
        {"input_tokens": 18000, "output_tokens": 900, "output_tokens_details": {"reasoning_tokens": 512}},
        {"tool_calls": {"web_search": 2}},
        "0.02126",
    ),
    # flex guide: "Tokens are priced at Batch API rates, with additional discounts from prompt caching"
    (
        "openai",
        "gpt-5-nano",
        "responses",
        {"input_tokens": 52000, "input_tokens_details": {"cached_tokens": 49152}, "output_tokens": 9100},
        {"service_tier": "flex"},
        "0.00201408",
    ),
    # https://openai.com/api-priority-processing/
    (
        "openai",
        "gpt-4.1",
        "chat",
        {"prompt_tokens": 8000, "completion_tokens": 1500, "prompt_tokens_details": {"cached_tokens": 4000}},
        {"service_tier": "priority"},
        "0.0385",
    ),
    # https://developers.openai.com/ko-KR/api/docs/models/gpt-5.4-pro ($30/$180; >272K input => 2x input, 1.5x output whole session)
    ("openai", "gpt-5.4-pro", "responses", {"input_tokens": 100_000, "output_tokens": 2000}, {}, "3.36"),
    ("openai", "gpt-5.4-pro", "responses", {"input_tokens": 272_000, "output_tokens": 2000}, {}, "8.52"),
    ("openai", "gpt-5.4-pro", "responses", {"input_tokens": 272_001, "output_tokens": 2000}, {}, "16.86006"),
    ("openai", "gpt-5.4-pro", "responses", {"input_tokens": 300_000, "output_tokens": 2000}, {}, "18.54"),
    # openai.com/index/new-embedding-models-and-api-updates ($0.00002/1k)
    ("openai", "text-embedding-3-small", "embeddings", {"prompt_tokens": 123456, "total_tokens": 123456}, {}, "0.00246912"),
    # https://platform.claude.com/docs/en/about-claude/pricing
    (
        "anthropic",
        "claude-opus-4-6",
        "messages",
        {
            "input_tokens": 2000,
            "cache_creation_input_tokens": 4000,
            "cache_read_input_tokens": 20000,
            "output_tokens": 1500,
            "service_tier": "standard",
            "cache_creation": {"ephemeral_5m_input_tokens": 3000, "ephemeral_1h_input_tokens": 1000},
        },
        {},
        "0.08625",
    ),
    (
        "anthropic",
        "claude-haiku-4-5-20251001",
        "messages",
        {"input_tokens": 500, "cache_creation_input_tokens": 8000, "cache_read_input_tokens": 0, "output_tokens": 300},
        {},
        "0.012",
    ),
    (
        "anthropic",
        "claude-haiku-4-5-20251001",
        "messages",
        {
            "input_tokens": 500,
            "cache_creation_input_tokens": 8000,
            "cache_read_input_tokens": 16000,
            "output_tokens": 300,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 8000},
        },
        {},
        "0.0196",
    ),
    (
        "anthropic",
        "claude-sonnet-4-6",
        "messages",
        {"input_tokens": 12000, "cache_read_input_tokens": 9000, "output_tokens": 800},
        {},
        "0.0507",
    ),
]


@pytest.fixture(scope="module")
def book() -> PriceBook:
    """The price book, loaded once: it changes nothing but its cache."""
    return PriceBook()


def cost(book: PriceBook, new_call: NewCall, usage: object, **values: Any) -> Call:
    call = new_call(**({"occurred_at": NOON, "raw_usage": None if usage is None else json.dumps(usage)} | values))
    price_call(call, book)
    return call


@pytest.mark.slow
@pytest.mark.parametrize(
    ("provider", "model", "endpoint", "usage", "values", "usd"), CASES, ids=[f"{case[1]} {case[2]} ${case[-1]}" for case in CASES]
)
@pytest.mark.parametrize("precision", [3, 28])
def test_the_providers_own_figures_are_met_to_the_last_digit(  # noqa: PLR0917 - one parameter per column
    book: PriceBook,
    new_call: NewCall,
    provider: str,
    model: str,
    endpoint: str,
    usage: object,
    values: dict[str, Any],
    usd: str,
    precision: int,
) -> None:
    """Cached tokens, tiers, tools and long contexts cost what the price page says, whatever decimal context is set."""
    with localcontext(Context(prec=precision)):
        call = cost(PriceBook() if precision == 3 else book, new_call, usage, provider=provider, model=model, endpoint=endpoint, **values)
    assert (call.cost_status, call.cost_reasons) == ("priced", ())
    assert call.cost_usd == Decimal(usd)
    assert type(call.cost_femto) is int


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7))
def test_a_cost_is_the_sum_of_its_parts(new: int, cached: int, output: int) -> None:
    """Cached tokens are billed once, at their own rate: input $0.05, cached $0.005, output $0.4 per million, exactly."""
    usage = {"prompt_tokens": new + cached, "completion_tokens": output, "prompt_tokens_details": {"cached_tokens": cached}}
    call = Call(call_id="c", occurred_at=NOON, provider="openai", endpoint="chat", model="gpt-5-nano", raw_usage=json.dumps(usage))
    price_call(call, BOOK)
    assert call.cost_femto == new * 50_000_000 + cached * 5_000_000 + output * 400_000_000


BOOK = PriceBook()


@pytest.mark.parametrize("provider", ["openai", "a-provider-nobody-knows"])
def test_an_unknown_model_or_provider_has_no_cost(book: PriceBook, new_call: NewCall, provider: str) -> None:
    """It is unpriced, with the name in the reason: never 0 dollars."""
    call = cost(book, new_call, CHAT, provider=provider, model="gpt-9-ultra")
    assert (call.cost_femto, call.cost_usd, call.cost_status) == (None, None, "unpriced")
    assert call.cost_reasons == (f"no price for model 'gpt-9-ultra' of {provider}",)
    assert call.usage is not None, "the tokens are known all the same"


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 529])
def test_an_error_of_the_provider_is_not_billed(book: PriceBook, new_call: NewCall, status: int) -> None:
    """An answer of 400 or above costs nothing, and says why."""
    call = cost(book, new_call, None, outcome="error", http_status=status)
    assert (call.cost_femto, call.cost_status, call.cost_reasons) == (0, "priced", (f"not billed: HTTP {status}",))


@pytest.mark.parametrize(
    ("outcome", "status"), [("ok", 200), ("error", None), ("error", 200), ("aborted", 200), ("cancelled", None), ("truncated", 200)]
)
def test_an_answer_without_usage_is_unpriced(book: PriceBook, new_call: NewCall, outcome: str, status: int | None) -> None:
    """A timeout, a broken connection or an answer that says nothing may have been billed: the cost is unknown, not 0."""
    call = cost(book, new_call, None, outcome=outcome, http_status=status)
    assert (call.cost_femto, call.cost_status, call.cost_reasons) == (None, "unpriced", ("the provider reported no usage",))


@pytest.mark.parametrize("usage", [{}, {"promptTokenCount": 10, "candidatesTokenCount": 2}, {"prompt_tokens": None}])
def test_a_usage_without_a_known_count_is_unpriced(book: PriceBook, new_call: NewCall, usage: object) -> None:
    """Keys that nobody knows do not make a call free."""
    call = cost(book, new_call, usage)
    assert (call.cost_femto, call.cost_status) == (None, "unpriced")
    assert call.cost_reasons


def test_a_reported_nothing_costs_nothing(book: PriceBook, new_call: NewCall) -> None:
    """Counts of 0 are counts: such a call is priced, at 0."""
    call = cost(book, new_call, {"prompt_tokens": 0, "completion_tokens": 0})
    assert (call.cost_femto, call.cost_status) == (0, "priced")


def test_a_contradictory_usage_is_partial_with_the_contradiction(book: PriceBook, new_call: NewCall) -> None:
    """More cached than input tokens: the totals are billed, and the reason quotes the contradiction."""
    call = cost(book, new_call, {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 6}})
    whole = cost(book, new_call, {"prompt_tokens": 5, "completion_tokens": 1})
    assert (call.cost_femto, call.cost_status) == (whole.cost_femto, "partial")
    assert "add up to more than its 5" in call.cost_reasons[0]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"service_tier": "diamond"}, "service_tier 'diamond' has no price of its own"),
        ({"model": "gpt-5-nano-turbo"}, "which its name only begins with"),
        ({"tool_calls": {"time_machine": 1}}, "no price for time_machine"),
    ],
)
def test_what_has_no_price_of_its_own_makes_a_cost_partial(book: PriceBook, new_call: NewCall, values: dict[str, Any], reason: str) -> None:
    """An unknown tier, a name matched by its beginning only and an unknown tool cost what is known, and say what is not."""
    call = cost(book, new_call, CHAT, **values)
    assert call.cost_status == "partial"
    assert call.cost_usd == Decimal("0.00045")
    assert reason in " ".join(call.cost_reasons)


@pytest.mark.parametrize("tier", [None, "default", "auto"])
def test_the_standard_tiers_are_standard(book: PriceBook, new_call: NewCall, tier: str | None) -> None:
    """The words for the usual tier change nothing."""
    call = cost(book, new_call, CHAT, service_tier=tier)
    assert (call.cost_status, call.cost_usd) == ("priced", Decimal("0.00045"))


def test_each_component_is_priced_by_its_own_model(book: PriceBook, new_call: NewCall) -> None:
    """An advisor's tokens cost what its model costs (opus 4.6: $5/$25, haiku 4.5: $1/$5); one unknown model leaves all unpriced."""
    iterations = [{"input_tokens": 1000, "output_tokens": 100}, {"model": "claude-opus-4-6", "input_tokens": 1000, "output_tokens": 100}]
    values = {"provider": "anthropic", "endpoint": "messages", "model": "claude-haiku-4-5"}
    call = cost(book, new_call, {"input_tokens": 1000, "output_tokens": 100, "iterations": iterations}, **values)
    assert (call.cost_status, call.cost_usd) == ("priced", Decimal("0.0015") + Decimal("0.0075"))
    assert call.usage is not None
    assert (call.usage.input_tokens, call.usage.output_tokens) == (2000, 200)
    iterations[1]["model"] = "claude-of-tomorrow"
    call = cost(book, new_call, {"iterations": iterations}, **values)
    assert (call.cost_femto, call.cost_status) == (None, "unpriced")
    assert "claude-of-tomorrow" in call.cost_reasons[0]


PARTS = st.tuples(
    st.sampled_from([None, "claude-haiku-4-5", "claude-opus-4-6", "claude-sonnet-5"]),
    *[st.integers(0, 10_000_000) for _ in range(5)],
)


@pytest.mark.slow
@given(st.lists(PARTS, min_size=1, max_size=6))
def test_a_cost_is_additive_over_its_components(parts: list[tuple[Any, ...]]) -> None:
    """What the parts of a call cost together is what they cost as calls of their own, to the last femto-dollar."""
    book = PriceBook() if not BOOKS else BOOKS[0]
    BOOKS[:] = [book]

    def call(iterations: list[dict[str, Any]]) -> Call:
        raw = json.dumps({"iterations": iterations})
        made = Call(call_id="x", occurred_at=NOON, provider="anthropic", endpoint="messages", model="claude-haiku-4-5", raw_usage=raw)
        price_call(made, book)
        return made

    names = ("input_tokens", "cache_read_input_tokens", "five", "hour", "output_tokens")
    rows = []
    for model, *counts in parts:
        row: dict[str, Any] = dict(zip(names, counts, strict=True))
        split = {"ephemeral_5m_input_tokens": row.pop("five"), "ephemeral_1h_input_tokens": row.pop("hour")}
        rows.append({**row, "cache_creation_input_tokens": sum(split.values()), "cache_creation": split, "model": model})
    together = call(rows)
    assert together.cost_status == "priced"
    assert together.cost_femto == sum(call([row]).cost_femto or 0 for row in rows)


BOOKS: list[PriceBook] = []


def test_an_estimate_is_priced_as_what_it_stands_for(book: PriceBook, new_call: NewCall) -> None:
    """A stream that broke off is priced by its estimate where nothing was reported, and says that it is one."""
    call = cost(book, new_call, None, outcome="aborted", estimated_input=1000, estimated_output=1000)
    assert (call.cost_status, call.cost_usd, call.estimated) == ("priced", Decimal("0.00045"), True)
    reported = cost(book, new_call, {"prompt_tokens": 2000}, estimated_input=1, estimated_output=1000)
    assert reported.cost_usd == Decimal("0.0005"), "a reported input is not replaced by an estimate"


def test_a_cost_beyond_one_column_is_unpriced(book: PriceBook, new_call: NewCall) -> None:
    """An absurd count does not become a wrong or negative sum."""
    call = cost(book, new_call, {"prompt_tokens": 2**53 - 1, "completion_tokens": 2**53 - 1})
    assert (call.cost_femto, call.cost_status) == (None, "unpriced")
    assert "9,223 USD" in call.cost_reasons[-1]


@pytest.mark.parametrize("host", ["eu.api.openai.com", "eu-west-1.api.x.ai"])
def test_a_regional_host_is_partial(host: str, book: PriceBook, new_call: NewCall) -> None:
    """A host with a regional premium that no price row has makes a call partial; the provider's own host does not."""
    provider, model = ("openai", "gpt-image-2") if "openai" in host else ("xai", "grok-4.5")
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    statuses = [
        cost(book, new_call, usage, provider=provider, model=model, endpoint="chat", host=name).cost_status
        for name in (host, host.split(".", 1)[1], None)
    ]
    assert statuses == ["partial", "priced", "priced"]


NO_FIGURE = {"anthropic_fable52_new_model", "anthropic_opus46_batch_1hcache"}
"""Cases without an expected figure whose models have a price by now."""


def test_the_collected_price_cases(book: PriceBook, new_call: NewCall, shared: Path) -> None:
    """Each case is met exactly; one whose price cannot be known is unpriced."""
    got: dict[str, str] = {}
    for case in json.loads((shared / "price_cases.json").read_text()):
        call = cost(
            book,
            new_call,
            case["usage"],
            provider=case["provider"],
            model=case["model"],
            endpoint=case["api_flavor"] or recognise(case["usage"]) or "chat",
            occurred_at=int(datetime.fromisoformat(case["timestamp"]).timestamp()) * 1_000_000,
            service_tier=case["service_tier"],
            host="us-east-1.api.x.ai" if "regional endpoint" in case["notes"] else case["base_url"],
            tool_calls={"web_search": case["extra"]["web_search_calls"]} if case["extra"] else None,
        )
        expected = case["expected_usd"]
        if call.cost_usd != (None if expected is None else Decimal(expected)) and case["name"] not in NO_FIGURE:
            got[case["name"]] = "wrong" if call.cost_status == "priced" else call.cost_status
    assert got == {}
