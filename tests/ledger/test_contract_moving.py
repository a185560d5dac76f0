"""What every ledger does: it gives away everything of a call, and keeps calls of another ledger as they are there."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voight_middleware.ledger import Ledger, PriceVersion
from voight_middleware.records.call import Call, LateAttribution, Submission
from voight_middleware.records.tags import Tags

from ..support.depth import times
from ..support.factories import DAY, DEAREST, NOON, calls, job_call, make_call, priced, submission, unread
from .oracle import check_sums

few = settings(max_examples=times(4, 50), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@st.composite
def histories(draw: st.DrawFn, call: Call) -> list[PriceVersion]:
    costs = draw(st.lists(st.none() | st.integers(0, DEAREST), max_size=3))
    return [
        PriceVersion(
            version,
            cost,
            draw(st.none() | st.integers(0, DEAREST)),
            "unpriced" if cost is None else draw(st.sampled_from(["priced", "partial"])),
            draw(st.lists(st.sampled_from(["a", "it's"]), max_size=2).map(tuple)),
            draw(st.sampled_from([None, call.price, '{"p":1}'])),
            draw(st.integers(0, 4 * 10**15)),
        )
        for version, cost in enumerate(costs, 1)
    ]


@pytest.mark.slow
@few
@given(data=st.data(), kept=st.lists(calls(), min_size=1, max_size=15))
def test_calls_are_kept_as_they_are(ledger: Ledger, data: st.DataObject, kept: list[Call]) -> None:
    """With all prices that they had before, whatever attribution or job they have; a second time changes nothing."""
    before = {call.call_id for call in ledger.calls()}
    former = {call.call_id: data.draw(histories(call)) for call in kept}
    assert ledger.import_calls(kept, former) == len(kept)
    changed = {call.call_id: [PriceVersion(1, 7, None, "priced", (), None, 1)] for call in kept}
    assert ledger.import_calls([msgspec.structs.replace(call, cost_femto=8, cost_status="priced") for call in kept], changed) == 0
    assert [call for call in ledger.calls() if call.call_id not in before] == sorted(
        kept, key=lambda call: (call.occurred_at, call.call_id)
    )
    assert ledger.price_histories([call.call_id for call in kept]) == {call_id: prices for call_id, prices in former.items() if prices}
    for call_id, prices in former.items():
        assert ledger.price_history(call_id) == prices


def test_kept_calls_count(ledger: Ledger) -> None:
    """They are in all sums, their extra keys are dimensions, and their first price is what they were priced first."""
    kept = [make_call(number, at=NOON + number * DAY, tags=Tags(user_id="u", extra={"feature": "x"})) for number in range(40)]
    kept.append(make_call(None, tags=Tags(user_id="u")))
    former = {kept[3].call_id: [PriceVersion(1, 100, None, "priced", (), "{}", 5), PriceVersion(2, 200, None, "partial", ("t",), None, 6)]}
    assert ledger.import_calls(kept, former) == 41
    check_sums(ledger)
    assert ledger.spend(["feature"], {"feature": "x"})[0].calls == 40
    assert ledger.spend(original_prices=True)[0].cost_femto == sum(range(40)) - 3 + 100
    assert ledger.time_range() == (NOON, NOON + 39 * DAY)
    assert ledger.insert(kept) == 0


def test_keeping_completes_and_settles_nothing(ledger: Ledger) -> None:
    """A job that is here without usage stays so, and a submission that is here gives no owner."""
    begun, told = unread("openai/resp_1"), job_call("openai/resp_1", raw_usage="{}")
    ledger.insert([begun, submission("openai/batch_1", "u")])
    assert ledger.import_calls([told, job_call("openai/batch_1/a")]) == 1
    assert ledger.call(begun.call_id) == begun
    assert ledger.spend(["user_id"])[0].dimensions == {"user_id": None}
    assert ledger.import_calls([]) == 0


def test_keeping_anew(ledger: Ledger) -> None:
    """A call is replaced together with its former prices, its time and owner included; others stay."""
    call, other = make_call(5, tags=Tags(user_id="a", plan="p")), make_call(7, tags=Tags(user_id="a"))
    ledger.insert([call, other])
    ledger.reprice([(call, priced(call, 6))])
    after = priced(
        call, 9, tags=Tags(user_id="b", extra={"k": "v"}), attribution="settled", occurred_at=NOON + 40 * DAY, usage=None, components=()
    )
    prices = [PriceVersion(1, 1, None, "priced", (), None, 2), PriceVersion(2, None, None, "unpriced", ("r",), "{}", 3)]
    assert ledger.import_calls([after], {call.call_id: prices}, replace=True) == 1
    assert list(ledger.calls()) == [other, after]
    assert ledger.price_history(call.call_id) == prices
    assert ledger.spend(["k"], {"k": "v"})[0].cost_femto == 9
    check_sums(ledger)
    assert ledger.import_calls([after], replace=True) == 1
    assert ledger.price_history(call.call_id) == []
    assert ledger.import_calls([new := make_call(3)], replace=True) == 1
    assert ledger.insert([new, after, call]) == 0
    assert ledger.spend()[0].cost_femto == 19
    check_sums(ledger)


def test_keeping_what_cannot_be_kept(ledger: Ledger) -> None:
    """Nothing of the batch is."""
    for bad in (make_call(model="\ud800"), make_call(None, cost_status="priced"), make_call(2**63)):
        with pytest.raises(ValueError):  # noqa: PT011 - engines say it in their own words
            ledger.import_calls([make_call(), bad])
    assert ledger.spend()[0].calls == 0
    assert ledger.import_calls([make_call(tags=Tags(extra={"k": "v"}))]) == 1


def test_jobs_in_pages(ledger: Ledger) -> None:
    """All of them, each as it is, in the bytewise order of their names."""
    names = [
        "openai/b",
        "openai/B",
        "openai/a_",
        "openai/a%",
        "openai/é",
        "openai/a/b",
        "anthropic/x",
        "openai/🦔",
        "openai/10",
        "openai/9",
    ]
    made: list[Submission] = [submission(name, f"u {name}", part_of="openai/whole") for name in names]
    ledger.insert(made)
    ledger.insert([submission("openai/late", None, attribution="none")])
    ledger.insert([LateAttribution(call_ids=("openai/late",), tags=Tags(user_id="u_9"))])
    expected: dict[str, Any] = {one.job: one for one in made} | ledger.submissions(["openai/late"])
    for limit in (1, 3, 100):
        found: list[Submission] = []
        while page := ledger.jobs(found[-1].job if found else "", limit):
            assert len(page) <= limit
            found += page
        assert found == [expected[name] for name in sorted(expected, key=str.encode)]
    assert ledger.jobs("openai/late") == [expected["openai/é"], expected["openai/🦔"]]
    assert len(ledger.jobs()) == 11
