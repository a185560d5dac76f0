"""What every ledger does: it adds calls up to the last femto-dollar, and the groups of a question have one order."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.ledger.base import MAX_COUNT
from voight_middleware.records.call import new_call_id
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage

from ..support.depth import times
from ..support.factories import DEAREST, NOON, make_call
from . import oracle

Opened = Callable[..., Ledger]
few = settings(max_examples=times(6, 100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
"""One ledger for all examples of a test: their calls are of a tenant of their own."""


# -- sums --------------------------------------------------------------------------------------------------------------------------


@few
@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.none() | st.integers(0, DEAREST)), min_size=1, max_size=40))
def test_sums_are_exact(ledger: Ledger, pairs: list[tuple[str | None, int | None]]) -> None:
    """Costs add up to the last femto-dollar, also where their sum leaves 64 bits, and the most expensive group is first."""
    tenant = new_call_id()
    kept = [make_call(cost, tags=Tags(user_id=user, tenant_id=tenant)) for user, cost in pairs]
    ledger.insert(kept)
    where: Where = {"tenant_id": tenant}
    for by in ((), ("user_id",), ("user_id", "session_id"), ("cost_status",)):
        assert ledger.spend(by, where) == oracle.spend(kept, by)


def test_sums_beyond_64_bits(ledger: Ledger) -> None:
    """Many calls of the largest cost that a column holds cost as many times that, in whatever an answer is read from."""
    kept = [make_call(DEAREST - number % 3) for number in range(500)]
    ledger.insert(kept)
    for by in ((), ("user_id",), ("model",), ("session_id",), ("hour", "plan")):
        assert ledger.spend(by)[0].cost_femto == sum(call.cost_femto or 0 for call in kept) > 2**70


def test_the_largest_counts_add_up(ledger: Ledger) -> None:
    """A thousand calls of the largest count still have an exact sum."""
    ledger.insert([make_call(usage=Usage(output=MAX_COUNT, input=MAX_COUNT, cache_read=MAX_COUNT)) for _ in range(1000)])
    for by in ((), ("user_id",), ("session_id",)):
        (total,) = ledger.spend(by)
        assert (total.output_tokens, total.cache_read_tokens) == (1000 * MAX_COUNT, 1000 * MAX_COUNT)
        assert total.input_tokens == 2000 * MAX_COUNT


def test_tokens_are_added_up_by_kind(ledger: Ledger) -> None:
    """Input counts everything that went in, cached and written included; output counts audio and pictures too."""
    counted: dict[str, Any] = {name: 2**number for number, name in enumerate((*oracle.INPUT, *oracle.OUTPUT))}
    usage = Usage(**counted, reasoning=5, images=3, seconds=9, characters=4)
    ledger.insert([make_call(usage=usage), make_call(usage=usage)])
    (total,) = ledger.spend()
    assert (total.input_tokens, total.output_tokens) == (2 * (2**9 - 1), 2 * (2**12 - 2**9))
    assert (total.cache_read_tokens, total.cache_write_tokens) == (2 * (8 + 16 + 32), 2 * (64 + 128 + 256))


def test_one_count_is_enough_to_know(ledger: Ledger) -> None:
    """A 0 that one call of a group reported is a 0, and what no call reported is None; in every count, wherever it is read from."""
    kept = [make_call(usage=None, tags=Tags(user_id="nobody")), make_call(usage=None)]
    for name in (*oracle.INPUT, *oracle.OUTPUT):
        owner = Tags(user_id=name, session_id=name)
        kept += [make_call(usage=None, tags=owner), make_call(usage=msgspec.convert({name: 0}, Usage), tags=owner)]
    ledger.insert(kept)
    for by in ((), ("user_id",), ("session_id",)):
        assert ledger.spend(by) == oracle.spend(kept, by)


def test_an_empty_ledger_has_a_total_of_nothing(ledger: Ledger) -> None:
    """Without calls there is one row of zero calls without dimensions, and none with them; a filter that nothing fits is the same."""
    nothing = [Spend()]
    asked: list[tuple[Where, Window]] = [
        ({}, Window()),
        ({"user_id": "u"}, Window()),
        ({"session_id": None}, Window(1, 2)),
        ({"day": "x"}, Window()),
    ]
    for where, window in asked:
        assert ledger.spend((), where, window) == nothing
        assert ledger.spend(["user_id"], where, window) == []
        assert list(ledger.calls(where, window)) == []
    assert ledger.time_range() is None
    ledger.insert([make_call(at=NOON)])
    assert ledger.spend((), {"user_id": "u"}) == nothing
    assert ledger.spend((), {}, Window(NOON + 1)) == nothing
    assert ledger.spend((), {}, Window(NOON + 5, NOON + 5)) == ledger.spend((), {}, Window(NOON + 5, NOON - 5)) == nothing


def test_what_a_total_hides_is_counted(ledger: Ledger) -> None:
    """Unpriced, partly priced, estimated and failed calls are counted beside the sums."""
    ledger.insert(
        [
            make_call(None, cost_reasons=("no price",)),
            make_call(1, cost_status="partial", cost_reasons=("tier",)),
            make_call(2, estimated_output=0),
            make_call(4, outcome="error", error="RateLimitError"),
            make_call(8, outcome="aborted", estimated_input=1, estimated_output=3),
        ]
    )
    for by in ((), ("user_id",), ("session_id",)):
        (total,) = ledger.spend(by)
        assert (total.calls, total.cost_femto) == (5, 15)
        assert (total.unpriced_calls, total.partial_calls, total.estimated_calls, total.errors) == (1, 1, 2, 1)


# -- order -------------------------------------------------------------------------------------------------------------------------


def test_unpriced_groups_come_last(ledger: Ledger) -> None:
    """Free is cheaper than anything, and unpriced is behind free, the group with more calls first."""
    prices: dict[str, list[int | None]] = {"dear": [9], "free": [0], "few": [None], "many": [None, None], "mixed": [None, 8]}
    ledger.insert([make_call(cost, model=model) for model, costs in prices.items() for cost in costs])
    assert [row.dimensions["model"] for row in ledger.spend(["model"])] == ["dear", "mixed", "free", "many", "few"]
    for limit in range(1, 7):
        assert ledger.spend(["model"], limit=limit) == ledger.spend(["model"])[:limit]


def test_ties(ledger: Ledger) -> None:
    """Groups that cost the same: the one with more calls, then none before any, then texts by their bytes, dimension by dimension."""
    names = [None, "A", "Z", "a", "z", "aa", "a b", "a-b", "é", "e", "ß", "🦔", "\uffee", "10", "9", "_", "%", "*", "~", "'", '"', "\\"]
    kept = [make_call(7, model=model, tags=Tags(plan=plan, session_id=plan)) for model in names for plan in (None, "b", "B")]
    kept += [make_call(7, model="more", tags=Tags(plan="x")), make_call(0, model="more", tags=Tags(plan="x"))]
    random.Random(1).shuffle(kept)
    ledger.insert(kept)
    for by in (("model", "plan"), ("plan", "model"), ("session_id", "model"), ("model",), ("plan",)):
        assert ledger.spend(by) == oracle.spend(kept, by), by


def test_limbs_of_a_cost_are_compared_as_one_number(ledger: Ledger) -> None:
    """A group whose sum has many small parts is not taken for a cheap one."""
    kept = [make_call(10**9 - 1, model="small") for _ in range(1500)] + [make_call(1000 * 10**9, model="large"), make_call(1, model="tiny")]
    ledger.insert(kept)
    for by in (("model",), ("model", "session_id")):
        assert ledger.spend(by) == oracle.spend(kept, by)
