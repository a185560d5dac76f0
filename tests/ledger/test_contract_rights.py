"""What every ledger does: a person's ids and old calls go where they are told to, and what everything cost stays right."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from voight_middleware.ledger import Expired, Ledger, PersonalData
from voight_middleware.records.call import Call, LateAttribution, Record, Submission
from voight_middleware.records.tags import Tags

from ..support.factories import DAY, DEAREST, NOON, make_call, priced, submission
from .oracle import check_sums

Opened = Callable[..., Ledger]
TOKEN = "erased:0123456789abcdef"
ALICE = "alice-9d3f"


# -- what is kept about a person -----------------------------------------------------------------------------------------------------


def test_personal_data(ledger: Ledger) -> None:
    """A person's calls under any name, calls of others that name the person in a whole value of any tag, and jobs."""
    mine = [
        make_call(cost, at=NOON + at, tags=Tags(user_id=name)) for cost, at, name in ((5, 9, ALICE), (None, 3, "al"), (DEAREST, 4, "al"))
    ]
    mine.append(make_call(DEAREST, at=NOON + 5, tags=Tags(user_id=ALICE, plan=ALICE, extra={"k": ALICE})))
    named: list[dict[str, Any]] = [{"plan": ALICE}, {"tenant_id": "al"}, {"route": ALICE}, {"release": ALICE}, {"session_id": ALICE}]
    named += [{"extra": {"k": ALICE}}, {"extra": {"k": "v", "l": "al"}, "user_id": "bob"}, {"extra": {"k": ALICE, "l": "al"}, "plan": "al"}]
    others = [make_call(100, tags=Tags(**values)) for values in named]
    nobody = [make_call(100, tags=Tags(user_id="bob", plan=f"{ALICE}x", extra={ALICE: "v", "k": f"of {ALICE}"})), make_call(100)]
    jobs = [submission("openai/1", ALICE), Submission(job="openai/2", submitted_at=NOON, tags=Tags(extra={"k": "al"}))]
    ledger.insert([*mine, *others, *nobody, *jobs, submission("openai/3", "bob"), submission("openai/al", "alf")])
    assert ledger.personal_data([ALICE, "al"]) == PersonalData(4, 2 * DEAREST + 5, NOON + 3, NOON + 9, 8, 2)
    assert ledger.personal_data(["al"]) == PersonalData(2, DEAREST, NOON + 3, NOON + 4, 3, 1)
    for names in ([], ["nobody"], ["ALICE-9D3F"], ["%"], ["_l"], ["*"], ["'"], [f"{ALICE} "]):
        assert ledger.personal_data(names) == PersonalData()
        assert not ledger.personal_data(names)


def test_personal_data_of_unpriced_calls(ledger: Ledger) -> None:
    """What nobody has priced costs None, not 0."""
    ledger.insert([make_call(None, tags=Tags(user_id="u"))])
    assert ledger.personal_data(["u"]) == PersonalData(1, None, NOON, NOON)


def test_erasure(ledger: Ledger) -> None:
    """The token stands where the ids were, sessions and answer ids of the person's calls are gone, and every cost and count stays."""
    own = make_call(
        5,
        tags=Tags(user_id=ALICE, plan="pro", tenant_id=ALICE, route="GET /", release="r", session_id="s-1", extra={"k": "v", "l": ALICE}),
        response_id="resp_1",
        raw_usage="{}",
        attribution="tag",
    )
    second = make_call(6, at=NOON + 40 * DAY, tags=Tags(user_id="al"), response_id="resp_2")
    other = make_call(
        7, tags=Tags(user_id="bob", plan=ALICE, session_id=ALICE, extra={"k": f"call {ALICE} back", "l": "v"}), response_id="r3"
    )
    short = make_call(8, tags=Tags(user_id="bob", session_id="s-2", extra={"k": "also al", "l": "al"}))
    nobody = make_call(None, tags=Tags(user_id="carol", session_id="s-1", extra={"k": "v"}), response_id="r4")
    jobs = [submission("openai/1", ALICE), submission("openai/2", "carol")]
    ledger.insert([own, second, other, short, nobody, *jobs])
    found = ledger.personal_data([ALICE, "al"])
    before = [ledger.spend(by) for by in ((), ("month",), ("day", "model"))]
    assert ledger.erase([ALICE, "al"], TOKEN) == found == PersonalData(2, 11, NOON, NOON + 40 * DAY, 2, 1)
    kept = {call.call_id: call for call in ledger.calls()}
    assert kept[own.call_id] == msgspec.structs.replace(
        own,
        response_id=None,
        tags=Tags(user_id=TOKEN, plan="pro", tenant_id=TOKEN, route="GET /", release="r", extra={"k": "v", "l": TOKEN}),
    )
    assert kept[second.call_id] == msgspec.structs.replace(second, response_id=None, tags=Tags(user_id=TOKEN))
    assert kept[other.call_id] == msgspec.structs.replace(
        other, tags=Tags(user_id="bob", plan=TOKEN, session_id=TOKEN, extra={"k": TOKEN, "l": "v"})
    )
    assert kept[short.call_id] == msgspec.structs.replace(
        short, tags=Tags(user_id="bob", session_id="s-2", extra={"k": "also al", "l": TOKEN})
    )
    assert kept[nobody.call_id] == nobody
    known = ledger.submissions(["openai/1", "openai/2"])
    assert (known["openai/1"].tags, known["openai/2"]) == (Tags(user_id=TOKEN, extra={"k": "v"}), jobs[1])
    assert ledger.jobs() == [known["openai/1"], jobs[1]]
    assert [ledger.spend(by) for by in ((), ("month",), ("day", "model"))] == before
    check_sums(ledger)
    assert ledger.personal_data([ALICE, "al"]) == PersonalData()
    assert ledger.erase([ALICE, "al"], "erased:another") == PersonalData()
    assert ledger.personal_data([TOKEN]).calls == 2


def test_an_erasure_is_not_undone(opened: Opened) -> None:
    """Neither by the same records told again, nor by a settlement that comes later, nor by a handle that was open before."""
    ledger, other = opened(), opened()
    call = make_call(5, tags=Tags(user_id=ALICE, session_id="s"), attribution="tag")
    records: list[Record] = [call, submission("openai/1", ALICE)]
    ledger.insert(records)
    assert other.spend(["user_id"])[0].dimensions == {"user_id": ALICE}
    ledger.erase([ALICE], TOKEN)
    assert other.spend(["user_id"])[0].dimensions == {"user_id": TOKEN}
    assert other.insert(records) == 0
    other.insert([LateAttribution(call_ids=(call.call_id,), tags=Tags(user_id=ALICE))])
    assert ledger.personal_data([ALICE]) == PersonalData()
    check_sums(ledger)


ODD_NAMES = ("o'brien", 'say "hi"', "back\\slash", "100%", "a_b", "zoë 🦔", "{x:String}", "%s", "*", "u\nv", "[1]", "$1")


def test_odd_names_are_erased(ledger: Ledger) -> None:
    """And nobody whose name is like them."""
    alike = {one for name in ODD_NAMES for one in (name.replace("%", "x"), name.replace("_", "x"), f"{name}x", name.replace("*", "xx"))}
    others = [make_call(1, tags=Tags(user_id=one, extra={"k": one})) for one in sorted(alike - {*ODD_NAMES})]
    mine = [make_call(1, tags=Tags(user_id=name, extra={"k": name})) for name in ODD_NAMES]
    ledger.insert([*mine, *others, *(submission(f"openai/{number}", name) for number, name in enumerate(ODD_NAMES))])
    found = PersonalData(len(ODD_NAMES), len(ODD_NAMES), NOON, NOON, 0, len(ODD_NAMES))
    assert ledger.personal_data(ODD_NAMES[:1]) == PersonalData(1, 1, NOON, NOON, 0, 1)
    assert ledger.erase(ODD_NAMES, TOKEN) == found
    assert ledger.personal_data(ODD_NAMES) == PersonalData()
    assert ledger.personal_data([TOKEN]) == found
    assert {call.tags.user_id for call in ledger.calls()} == {TOKEN, *(call.tags.user_id for call in others)}


def test_purge(ledger: Ledger) -> None:
    """After an erasure nothing of the ids remains, also where it is asked twice."""
    rng = random.Random(1)
    ledger.insert([make_call(1, tags=Tags(user_id=rng.choice([ALICE, "bob"]), extra={"k": rng.choice([ALICE, "v"])})) for _ in range(200)])
    ledger.erase([ALICE], TOKEN)
    assert ledger.purge([ALICE]) == []
    assert ledger.purge([ALICE, "x"]) == []
    assert ledger.spend()[0].calls == 200


# -- retention -----------------------------------------------------------------------------------------------------------------------


def many(ledger: Ledger) -> list[Call]:
    """A hundred calls over a hundred days, some of them repriced, and jobs."""
    kept = [make_call(number, at=NOON + number * DAY, tags=Tags(user_id=f"u_{number % 3}")) for number in range(100)]
    ledger.insert([*kept, *(Submission(job=f"openai/{number}", submitted_at=NOON + number * DAY) for number in range(0, 100, 10))])
    ledger.reprice([(call, priced(call, (call.cost_femto or 0) + 1)) for call in kept[:10]])
    ledger.reprice([(priced(call, (call.cost_femto or 0) + 1), priced(call, 7_000)) for call in kept[:5]])
    return kept


def test_what_is_older_expires(ledger: Ledger) -> None:
    """With its former prices and jobs, the rest and its sums stay, and a second time finds nothing."""
    kept = many(ledger)
    until = NOON + 45 * DAY
    found = ledger.expired(until)
    assert found == Expired(45, 15, 5)
    assert ledger.expire(until, 1_000) == found
    assert [call.call_id for call in ledger.calls()] == [call.call_id for call in kept[45:]]
    assert [job.job for job in ledger.jobs()] == ["openai/50", "openai/60", "openai/70", "openai/80", "openai/90"]
    assert ledger.price_history(kept[0].call_id) == []
    assert ledger.price_histories([call.call_id for call in kept]) == {}
    assert ledger.time_range() == (until, NOON + 99 * DAY)
    assert ledger.expired(until) == ledger.expire(until, 1_000) == Expired()
    check_sums(ledger)


def test_the_first_moment_that_is_kept(ledger: Ledger) -> None:
    """It is the limit itself."""
    ledger.insert([make_call(1, at=NOON - 1), make_call(2, at=NOON), make_call(4, at=NOON + 1)])
    assert ledger.expired(NOON).calls == ledger.expire(NOON, 10).calls == 1
    assert ledger.spend()[0].cost_femto == 6


def test_retention_in_batches(ledger: Ledger) -> None:
    """The oldest first, no more than the limit in one go, and the jobs with the last of them."""
    kept = many(ledger)
    until = NOON + 45 * DAY
    total = Expired()
    batches = []
    while True:
        some = ledger.expire(until, 20)
        total = Expired(total.calls + some.calls, total.former_prices + some.former_prices, total.submissions + some.submissions)
        batches.append(some.calls)
        assert [call.call_id for call in ledger.calls()] == [call.call_id for call in kept[sum(batches) :]]
        if some.calls < 20:
            break
    assert (batches, total) == ([20, 20, 5], Expired(45, 15, 5))
    check_sums(ledger)


def test_everything_expires(ledger: Ledger) -> None:
    """And the ledger goes on."""
    many(ledger)
    assert ledger.expire(NOON + 1_000 * DAY, 1_000).calls == 100
    assert (ledger.time_range(), ledger.spend()[0].calls, ledger.spend(["user_id"]), ledger.jobs()) == (None, 0, [], [])
    assert ledger.insert([make_call(3)]) == 1
    check_sums(ledger)


def test_rebuilding_changes_no_answer(ledger: Ledger) -> None:
    """Whatever an engine builds anew: the same answers come out, and months are told in order."""
    kept = many(ledger)
    before = [ledger.spend(by) for by in ((), ("user_id",), ("month",), ("day", "model"), ("hour", "plan"))]
    months = list(ledger.rebuild())
    assert months == sorted(months)
    assert set(months) <= {call.time.strftime("%Y-%m") for call in kept}
    assert [ledger.spend(by) for by in ((), ("user_id",), ("month",), ("day", "model"), ("hour", "plan"))] == before
    check_sums(ledger)
    assert ledger.insert([make_call(3)]) == 1
    check_sums(ledger)
