"""What every ledger does: late owners, late answers and other prices change what they should, once, and every sum with it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import msgspec
import pytest

from voight_middleware.ledger import Ledger, LedgerError
from voight_middleware.records.call import ATTRIBUTIONS, LateAttribution, Submission
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Component, Usage

from ..support.depth import times
from ..support.factories import DAY, DEAREST, NOON, job_call, make_call, priced, submission, unread
from . import oracle
from .oracle import check_sums

Opened = Callable[..., Ledger]
OPEN = ("none", "error", "request")


# -- late owners -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "later"])
def test_a_settlement_fills_in_what_is_missing(ledger: Ledger, together: bool) -> None:
    """A settlement gives the owner to calls of its own batch and of earlier ones, value by value, and keeps what they have."""
    calls = [make_call(tags=Tags(plan="pro", extra={"feature": "a"}), attribution=attribution) for attribution in ("none", "error")]
    owner = Tags(user_id="u_1", plan="free", extra={"feature": "b", "team": "x"})
    settlement = LateAttribution(call_ids=(calls[0].call_id, "unknown", calls[1].call_id), tags=owner)
    if together:
        assert ledger.insert([settlement, *calls]) == 2
    else:
        ledger.insert(calls)
        assert ledger.insert([settlement]) == 0
    for kept in ledger.calls():
        assert kept.tags == Tags(user_id="u_1", plan="pro", extra={"feature": "a", "team": "x"})
        assert kept.attribution == "settled"
    assert ledger.spend(where={"team": "x"})[0].calls == 2
    check_sums(ledger)


def test_every_value_of_a_settlement(ledger: Ledger) -> None:
    """Each value that a call lacks comes from the settlement, and each that it has stays."""
    names = ("user_id", "plan", "tenant_id", "route", "release", "session_id")
    late = Tags(**{name: f"late {name}" for name in names}, extra={"k": "late"})
    kept = [make_call(tags=msgspec.convert({name: "own"}, Tags)) for name in names if name != "user_id"] + [make_call()]
    ledger.insert([*kept, LateAttribution(call_ids=tuple(call.call_id for call in kept), tags=late)])
    found = {call.call_id: call.tags for call in ledger.calls()}
    for call in kept:
        assert found[call.call_id] == late.merge(call.tags)
    check_sums(ledger)


def test_a_settlement_adds_extra_keys_to_a_call_without_any(ledger: Ledger) -> None:
    """Extra keys of a settlement reach a call that had none, and one without extra keys leaves those of the call."""
    first, second, third = make_call(), make_call(tags=Tags(extra={"k": "v"})), make_call()
    ledger.insert([first, second, third])
    ledger.insert([LateAttribution(call_ids=(first.call_id,), tags=Tags(user_id="u", extra={"feature": "b", "odd'\"\\": "%🦔"}))])
    ledger.insert([LateAttribution(call_ids=(second.call_id, third.call_id), tags=Tags(user_id="u"))])
    extras = {call.call_id: call.tags.extra for call in ledger.calls()}
    assert extras == {first.call_id: {"feature": "b", "odd'\"\\": "%🦔"}, second.call_id: {"k": "v"}, third.call_id: {}}


def test_a_settlement_without_an_owner(ledger: Ledger) -> None:
    """It changes nothing, and its extra keys are known."""
    call = make_call()
    ledger.insert([call, LateAttribution(call_ids=(call.call_id,), tags=Tags(plan="pro", extra={"feature": "x"}))])
    assert list(ledger.calls()) == [call]
    assert ledger.spend(["feature"])[0].dimensions == {"feature": None}


def test_a_settlement_never_replaces_an_owner(ledger: Ledger) -> None:
    """A call that got its owner in any way is not touched by a settlement, nor by a second one."""
    owned = [name for name in ATTRIBUTIONS if name not in OPEN]
    calls = [make_call(at=NOON + number, tags=Tags(user_id="u_1"), attribution=name) for number, name in enumerate(owned)]
    ids = tuple(call.call_id for call in calls)
    ledger.insert([*calls, LateAttribution(call_ids=ids, tags=Tags(user_id="u_2", plan="pro"))])
    ledger.insert([LateAttribution(call_ids=ids, tags=Tags(user_id="u_3", plan="pro"))])
    assert list(ledger.calls()) == calls


def test_the_first_settlement_counts(ledger: Ledger) -> None:
    """Of two in one batch, and of a later one, the first gives the owner."""
    call = make_call()
    ledger.insert([call, *(LateAttribution(call_ids=(call.call_id,), tags=Tags(user_id=user, plan=user)) for user in ("a", "b"))])
    ledger.insert([LateAttribution(call_ids=(call.call_id,), tags=Tags(user_id="c", route="r"))])
    (kept,) = ledger.calls()
    assert kept.tags == Tags(user_id="a", plan="a")


def test_a_settlement_knows_better_than_a_request(ledger: Ledger) -> None:
    """A user that was only named in a request's body gives way to the one that the application has signed in, once."""
    call = make_call(tags=Tags(user_id="anonymous", route="GET /"), attribution="request")
    ledger.insert([call, LateAttribution(call_ids=(call.call_id,), tags=Tags(user_id="u_2", plan="pro"))])
    ledger.insert([LateAttribution(call_ids=(call.call_id,), tags=Tags(user_id="u_3"))])
    (kept,) = ledger.calls()
    assert (kept.tags, kept.attribution) == (Tags(user_id="u_2", plan="pro", route="GET /"), "settled")
    check_sums(ledger)


@pytest.mark.slow
def test_many_settlements_at_once(ledger: Ledger) -> None:
    """A round of an ingester: hundreds of calls, each with an owner of its own that comes behind it."""
    kept = [make_call(number, at=NOON + number * DAY // 20) for number in range(300)]
    late = [
        LateAttribution(call_ids=(call.call_id,), tags=Tags(user_id=f"u_{number % 9}", extra={"n": str(number)}))
        for number, call in enumerate(kept)
    ]
    assert ledger.insert([*kept, *late]) == 300
    found = list(ledger.calls())
    assert [(call.tags.user_id, call.tags.extra["n"]) for call in found] == [(f"u_{number % 9}", str(number)) for number in range(300)]
    check_sums(ledger)


# -- jobs: what is submitted now and answered later ----------------------------------------------------------------------------------


@pytest.mark.parametrize("told_first", [False, True], ids=["begun first", "told first"])
def test_a_job_that_is_told_of_later_is_the_same_call(ledger: Ledger, told_first: bool) -> None:
    """Its usage comes from whoever reads it, once; an open call never takes anything away again."""
    begun = unread("openai/resp_1", tags=Tags(user_id="u_1"), attribution="tag")
    told = job_call("openai/resp_1", at=NOON + 5_000_000, raw_usage='{"input_tokens":10}', tags=Tags(user_id="worker"))
    new = [ledger.insert([call]) for call in ((told, begun, told) if told_first else (begun, told, begun))]
    assert new == ([1, 0, 0] if told_first else [1, 1, 0])
    (kept,) = ledger.calls()
    assert (kept.usage, kept.cost_femto, kept.raw_usage) == (told.usage, told.cost_femto, told.raw_usage)
    if not told_first:
        assert (kept.tags.user_id, kept.occurred_at) == ("u_1", NOON)
    check_sums(ledger)


def test_a_job_begun_and_told_of_in_one_batch(ledger: Ledger) -> None:
    """It is one call, with the owner and time of its beginning and the usage of its end."""
    begun = unread("openai/resp_1", tags=Tags(user_id="u_1"), attribution="tag")
    told = job_call("openai/resp_1", at=NOON + 5_000_000, raw_usage="{}", model="m-2026")
    ledger.insert([begun, told, begun])
    (kept,) = ledger.calls()
    assert (kept.tags.user_id, kept.occurred_at, kept.cost_femto, kept.raw_usage, kept.model) == ("u_1", NOON, 1_000, "{}", "m-2026")
    check_sums(ledger)


def test_everything_that_is_told_later(ledger: Ledger) -> None:
    """What the beginning of a job knows stays, and everything else is that of its answer."""
    begun = unread(
        "openai/resp_1",
        tags=Tags(user_id="u_1", extra={"k": "v"}),
        attribution="tag",
        model=None,
        requested_model="q",
        batch=True,
        duration=5,
    )
    usage = Usage(input=1, output=2, tools={"web": 1})
    told = job_call(
        "openai/resp_1",
        at=NOON + 9,
        model="m",
        requested_model="other",
        host="h",
        outcome="truncated",
        error="E",
        http_status=200,
        attempts=3,
        possibly_billed=1,
        duration=7,
        ttft=8,
        response_id="r",
        service_tier="flex",
        raw_usage="{}",
        tool_calls={"web": 1},
        estimated_output=2,
        usage=usage,
        list_femto=4,
        cost_status="partial",
        cost_reasons=("tier",),
        price="{}",
    )
    ledger.insert([begun])
    ledger.insert([told])
    (kept,) = ledger.calls()
    assert kept == msgspec.structs.replace(
        told, occurred_at=NOON, tags=begun.tags, attribution="tag", requested_model="q", batch=True, duration=5
    )


def test_a_job_that_failed(ledger: Ledger) -> None:
    """An answer without usage that says that it failed is told once, and usage after it still comes in."""
    begun, failed = unread("openai/resp_1"), unread("openai/resp_1", outcome="error", error="E")
    assert [ledger.insert([call]) for call in (begun, failed, begun)] == [1, 1, 0]
    assert [(call.outcome, call.error) for call in ledger.calls()] == [("error", "E")]
    assert ledger.insert([job_call("openai/resp_1", raw_usage="{}")]) == 1
    assert [(call.outcome, call.raw_usage) for call in ledger.calls()] == [("ok", "{}")]
    check_sums(ledger)


def test_the_first_usage_of_a_job_is_kept(ledger: Ledger) -> None:
    """A file that is read again, perhaps after a change of prices, changes nothing."""
    ledger.insert([job_call("openai/file-1/a", cost=7, raw_usage="{}")])
    assert ledger.insert([job_call("openai/file-1/a", cost=8, raw_usage="{}"), job_call("openai/file-1/a", cost=9, raw_usage="{}")]) == 0
    assert [call.cost_femto for call in ledger.calls()] == [7]


def test_a_plain_call_is_never_completed(ledger: Ledger) -> None:
    """Only a job can be told of later: a call of one id is otherwise the call that came first."""
    first = make_call(cost=None, usage=None, call_id="mine", error="E")
    ledger.insert([first])
    assert ledger.insert([make_call(call_id="mine", raw_usage="{}", error="E")]) == 0
    assert list(ledger.calls()) == [first]


@pytest.mark.parametrize("reverse", [False, True], ids=["batch first", "file first"])
def test_a_submission_that_comes_after_its_answers_becomes_their_owner(ledger: Ledger, reverse: bool) -> None:
    """A batch, the file that is a part of it, and the lines of that file, whose names do not mention the batch."""
    ledger.insert([job_call("openai/file-1/a"), job_call("openai/file-1/b"), job_call("openai/file-10/a"), make_call()])
    records = [submission("openai/batch_1", "u_1"), Submission(job="openai/file-1", submitted_at=NOON, part_of="openai/batch_1")]
    for record in reversed(records) if reverse else records:
        ledger.insert([record])
    owned = {call.job: (call.tags.user_id, call.attribution, dict(call.tags.extra)) for call in ledger.calls()}
    assert owned == {
        "openai/file-1/a": ("u_1", "tag", {"k": "v"}),
        "openai/file-1/b": ("u_1", "tag", {"k": "v"}),
        "openai/file-10/a": (None, "none", {}),
        None: (None, "none", {}),
    }
    check_sums(ledger)


def test_names_of_jobs_are_taken_literally(ledger: Ledger) -> None:
    """A part is what has the name of the whole and a slash before its own, whatever signs are in it, and no other job is."""
    jobs = ["openai/b_1", "openai/b%1", "openai/b\\1", "openai/b*", "openai/b'1", "openai/b🦔"]
    others = ["openai/bX1/a", "openai/b/1/a", "openai/b1/a", "openai/B_1/a", "openai/bA/a"]
    for job in jobs:
        others += [f"{job}0/a", f"{job}.a"]
    ledger.insert([*map(job_call, others), *(job_call(name) for job in jobs for name in (f"{job}/a", job))])
    ledger.insert([submission(job, job) for job in jobs])
    owned = {(call.tags.user_id, call.job) for call in ledger.calls() if call.tags.user_id is not None}
    assert owned == {(job, name) for job in jobs for name in (job, f"{job}/a")}


def test_a_submission_in_the_batch_of_its_answers(ledger: Ledger) -> None:
    """Whatever comes first in it."""
    ledger.insert([job_call("openai/batch_1/a"), submission("openai/batch_1", "u_1"), job_call("openai/batch_1/b")])
    assert [call.tags.user_id for call in ledger.calls()] == ["u_1", "u_1"]


def test_a_submission_is_settled_like_a_call(ledger: Ledger) -> None:
    """A batch that was made before the user was known; its answers are here already."""
    ledger.insert([job_call("openai/batch_1/a"), submission("openai/batch_1", None, attribution="none")])
    ledger.insert([LateAttribution(call_ids=("openai/batch_1",), tags=Tags(user_id="u_2", plan="pro"))])
    (call,) = ledger.calls()
    assert (call.tags.user_id, call.tags.plan, call.attribution) == ("u_2", "pro", "settled")
    assert ledger.submissions(["openai/batch_1", "openai/other"]).keys() == {"openai/batch_1"}
    assert ledger.submissions(["openai/batch_1"])["openai/batch_1"].tags.user_id == "u_2"
    ledger.insert([LateAttribution(call_ids=("openai/batch_1",), tags=Tags(user_id="u_3"))])
    assert ledger.submissions(["openai/batch_1"])["openai/batch_1"].tags.user_id == "u_2"
    check_sums(ledger)


def test_the_first_submission_of_a_job_is_kept(ledger: Ledger) -> None:
    """Replayed journals, and ids that are seen again, in one batch and in two."""
    ledger.insert([submission("openai/batch_1", "u_1"), submission("openai/batch_1", "u_0")])
    ledger.insert([submission("openai/batch_1", "u_2")])
    assert ledger.submissions(["openai/batch_1"])["openai/batch_1"].tags.user_id == "u_1"


# -- other prices ------------------------------------------------------------------------------------------------------------------


def test_a_new_price_keeps_the_one_before(ledger: Ledger) -> None:
    """The call has the new price and its counts, and everything of the old one is a version with the time when it was replaced."""
    call = make_call(5, cost_status="partial", cost_reasons=("tier",), price='{"p":1}', list_femto=4, raw_usage="{}")
    usage = Usage(input=10, cache_read=4, image_in=1, tools={"web_search": 2}, output=7)
    parts = (Component(usage=Usage(input=10)), Component(model="other", usage=Usage(output=7)))
    after = priced(call, 9, price='{"p":2}', list_femto=None, cost_reasons=(), usage=usage, components=parts)
    ledger.insert([call, make_call(1)])
    begin = time.time_ns() // 1000
    assert ledger.reprice([(call, after)]) == 1
    assert ledger.call(call.call_id) == after
    (former,) = ledger.price_history(call.call_id)
    assert (former.version, former.cost_femto, former.list_femto, former.cost_status) == (1, 5, 4, "partial")
    assert (former.cost_reasons, former.price) == (("tier",), '{"p":1}')
    assert begin <= former.replaced_at <= time.time_ns() // 1000
    assert ledger.spend()[0].cost_femto == 10
    check_sums(ledger)


@pytest.mark.parametrize("seed", range(times(1, 2)))
def test_the_original_figures_stay(ledger: Ledger, seed: int) -> None:
    """However often calls are repriced: their newest price is what is added up, and as they were priced first they add up as before."""
    rng = random.Random(seed)

    def cost() -> int | None:
        return rng.choice([None, 0, 7, DEAREST, rng.randrange(10**15)])

    kept = [make_call(cost(), at=NOON + number * DAY, tags=Tags(user_id=f"u_{number % 3}"), model=f"m{number % 5}") for number in range(60)]
    ledger.insert(kept)
    questions: list[tuple[str, ...]] = [(), ("user_id",), ("cost_status",), ("user_id", "cost_status"), ("month", "model")]
    before = [ledger.spend(by) for by in questions]
    newest = {call.call_id: call for call in kept}
    expected = {call.call_id: [call.cost_femto] for call in kept}
    for _ in range(3):
        changes = [(newest[call.call_id], priced(newest[call.call_id], cost())) for call in rng.sample(kept, 40)]
        written = ledger.reprice(changes)
        assert written == sum(new.cost_femto != old.cost_femto for old, new in changes)
        for old, new in changes:
            newest[old.call_id] = new
            if new.cost_femto != old.cost_femto:
                expected[old.call_id].append(new.cost_femto)
    assert [ledger.spend(by, original_prices=True) for by in questions] == before
    assert list(ledger.calls(original_prices=True)) == kept
    assert list(ledger.calls({"cost_status": "unpriced"}, original_prices=True)) == oracle.chosen(kept, {"cost_status": "unpriced"})
    assert list(ledger.calls()) == list(newest.values())
    former = ledger.price_histories([call.call_id for call in kept])
    assert former.keys() == {call_id for call_id, costs in expected.items() if len(costs) > 1}
    for call_id, costs in expected.items():
        versions = former.get(call_id, [])
        assert [price.cost_femto for price in versions] == costs[:-1]
        assert [price.version for price in versions] == list(range(1, len(costs)))
        assert [price.replaced_at for price in versions] == sorted(price.replaced_at for price in versions)
    for call_id in oracle.some(ledger, expected, 1 / 15):
        assert ledger.price_histories([call_id, "x"]).get(call_id, []) == ledger.price_history(call_id) == former.get(call_id, [])
    check_sums(ledger)


def test_the_same_price_again_is_no_version(ledger: Ledger) -> None:
    """Nothing is written where cost, status and reasons stay, nor when the same changes are made again."""
    call = make_call(5, price="{}")
    ledger.insert([call])
    assert ledger.reprice([(call, priced(call, 5, price='{"version": "next"}'))]) == 0
    assert ledger.reprice([]) == 0
    change = (call, priced(call, 6))
    assert ledger.reprice([change, change]) == 1
    assert ledger.reprice([change]) == 0
    assert len(ledger.price_history(call.call_id)) == 1
    assert ledger.spend()[0].cost_femto == 6


def test_there_and_back(ledger: Ledger) -> None:
    """A price that returns is a version like any other."""
    call = make_call(5, price="a")
    other = priced(call, 6, price="b")
    ledger.insert([call])
    assert [ledger.reprice([change]) for change in ((call, other), (other, call), (call, other))] == [1, 1, 1]
    assert [(price.version, price.cost_femto, price.price) for price in ledger.price_history(call.call_id)] == [
        (1, 5, "a"),
        (2, 6, "b"),
        (3, 5, "a"),
    ]
    assert (ledger.spend()[0].cost_femto, ledger.spend(original_prices=True)[0].cost_femto) == (6, 5)


def test_a_change_of_reasons_is_a_version(ledger: Ledger) -> None:
    """A call whose price has become doubtful costs the same, and is another one all the same."""
    call = make_call(5)
    ledger.insert([call])
    assert ledger.reprice([(call, priced(call, 5, "partial", cost_reasons=("tier",)))]) == 1
    assert ledger.spend()[0].partial_calls == 1
    assert ledger.spend(original_prices=True)[0].partial_calls == 0
    assert ledger.spend(where={"cost_status": "priced"})[0].calls == 0
    assert ledger.spend(where={"cost_status": "priced"}, original_prices=True)[0].calls == 1


def test_a_call_is_known_by_what_was_read(ledger: Ledger) -> None:
    """Whatever signs are in its usage and reasons, and where it has none."""
    reasons = ["it's", 'a "quoted" one', "back\\slash", "%s {x} 🦔", "line\nbreak"]
    odd = [make_call(5, cost_status="partial", cost_reasons=(reason,), raw_usage=f'{{"{reason}":1}}', list_femto=3) for reason in reasons]
    bare = make_call(None, usage=None)
    ledger.insert([*odd, bare])
    assert ledger.reprice([*((call, priced(call, 6)) for call in odd), (bare, priced(bare, 7))]) == 6
    assert ledger.spend()[0].cost_femto == 5 * 6 + 7


def test_a_call_that_has_changed_meanwhile_is_left_alone(ledger: Ledger) -> None:
    """A job that was told of between reading and repricing keeps what was told, and another process's price stays."""
    begun, other = unread("openai/resp_1", cost_reasons=("unread",)), make_call(5)
    ledger.insert([begun, other])
    told = job_call("openai/resp_1", cost=8, raw_usage='{"input_tokens":10}')
    ledger.insert([told])
    ledger.reprice([(other, priced(other, 6))])
    assert ledger.reprice([(begun, priced(begun, 3)), (other, priced(other, 7)), (make_call(1), make_call(2))]) == 0
    assert sorted(call.cost_femto or 0 for call in ledger.calls()) == [6, 8]
    check_sums(ledger)


def test_an_owner_that_came_meanwhile_stays(ledger: Ledger) -> None:
    """A repricing changes the price of a call, and nothing of its tags."""
    call = make_call(5)
    ledger.insert([call])
    ledger.insert([LateAttribution(call_ids=(call.call_id,), tags=Tags(user_id="u"))])
    assert ledger.reprice([(call, priced(call, 6))]) == 1
    assert [(row.dimensions["user_id"], row.cost_femto) for row in ledger.spend(["user_id"])] == [("u", 6)]


def test_prices_that_no_column_holds(ledger: Ledger) -> None:
    """A price beyond reason becomes unpriced, as it does when a call comes in."""
    call = make_call(5)
    ledger.insert([call])
    assert ledger.reprice([(call, priced(call, 2**63))]) == 1
    (kept,) = ledger.calls()
    assert (kept.cost_femto, kept.cost_reasons) == (None, ("usage out of range",))


def test_one_transaction_for_all_changes(ledger: Ledger) -> None:
    """Where one of them cannot be kept, none is."""
    first, second = make_call(1), make_call(2)
    ledger.insert([first, second])
    with pytest.raises((LedgerError, ValueError)):
        ledger.reprice([(first, priced(first, 3, price="{}")), (second, priced(second, None, "priced"))])
    assert sorted(call.cost_femto or 0 for call in ledger.calls()) == [1, 2]
    assert ledger.price_history(first.call_id) == []
    assert ledger.reprice([(first, priced(first, 3, price="{}"))]) == 1
    check_sums(ledger)


def test_repricings_at_once(opened: Opened) -> None:
    """Of two that have read the same calls, each call takes the price of one, once."""
    kept = [make_call(number, at=NOON + number) for number in range(1, 101)]
    ledgers = [opened(), opened()]
    ledgers[0].insert(kept)
    written: list[int] = []
    barrier = threading.Barrier(2)

    def reprice(number: int) -> None:
        barrier.wait()
        for start in range(0, 100, 25):
            some = kept[start : start + 25]
            written.append(ledgers[number].reprice([(call, priced(call, (call.cost_femto or 0) + 1000 * (number + 1))) for call in some]))

    threads = [threading.Thread(target=reprice, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(written) == 100
    former = ledgers[0].price_histories([call.call_id for call in kept])
    assert {call_id: [price.cost_femto for price in prices] for call_id, prices in former.items()} == {
        call.call_id: [call.cost_femto] for call in kept
    }
    assert {(call.cost_femto or 0) // 1000 for call in ledgers[0].calls()} <= {1, 2}
    check_sums(ledgers[1])
