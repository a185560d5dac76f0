"""What every ledger does: it keeps calls exactly, once, in whatever order and batches they come."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voight_middleware.ledger import Ledger, Progress
from voight_middleware.ledger.base import MAX_COUNT
from voight_middleware.records.call import Call, LateAttribution, Record, Submission
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Component, Usage

from ..support.depth import times
from ..support.factories import DAY, DEAREST, NOON, SECOND, calls, job_call, make_call, submission, unread
from . import oracle

Opened = Callable[..., Ledger]
few = settings(max_examples=times(4, 100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
"""One ledger for all examples of a test: their calls have ids of their own."""


def everything(ledger: Ledger) -> list[Call]:
    return list(ledger.calls())


# -- what is kept ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@few
@given(kept=st.lists(calls(), min_size=1, max_size=25))
def test_a_call_comes_back_as_it_was(ledger: Ledger, kept: list[Call]) -> None:
    """Every field of a call survives the ledger, and calls come the oldest first."""
    before = {call.call_id for call in ledger.calls()}
    assert ledger.insert(kept) == len(kept)
    found = [call for call in ledger.calls() if call.call_id not in before]
    assert found == sorted(kept, key=lambda call: (call.occurred_at, call.call_id))
    assert ledger.call(kept[0].call_id) == kept[0]


def test_every_field_at_once(ledger: Ledger) -> None:
    """A call in which nothing is as it is by default; a field that is new here and forgotten in an engine is found."""
    counted: dict[str, Any] = {name: number for number, name in enumerate(Usage.__struct_fields__, 1) if name != "tools"}
    usage = Usage(tools={"web_search": 3}, **counted)
    call = Call(
        call_id="019a8f3b52c77d41",
        occurred_at=NOON + 1,
        provider="p",
        endpoint="e",
        requested_model="q",
        model="m",
        host="h",
        streamed=True,
        outcome="truncated",
        error="E",
        http_status=429,
        attempts=3,
        possibly_billed=2,
        duration=5,
        ttft=6,
        response_id="r",
        job="openai/resp_1",
        service_tier="flex",
        batch=True,
        raw_usage='{"a":1}',
        tool_calls={"code": 1},
        estimated_input=7,
        estimated_output=8,
        tags=Tags(user_id="u", plan="p", tenant_id="t", route="GET /", release="r", session_id="s", extra={"k": "v", "l": "w"}),
        attribution="tag",
        usage=usage,
        components=(Component(usage=Usage(input=1)), Component(model="other", usage=usage)),
        cost_femto=9,
        list_femto=10,
        cost_status="partial",
        cost_reasons=("a", "b"),
        price='{"input":"1"}\n{"input":"2"}',
    )
    usual = Call(call_id="", occurred_at=0, provider="", endpoint="")
    assert [name for name in Call.__struct_fields__ if getattr(call, name) == getattr(usual, name)] == ["finish_reasons"]  # not kept
    assert [name for name in Usage.__struct_fields__ if getattr(usage, name) is None] == []
    ledger.insert([call])
    assert everything(ledger) == [call]


def test_a_bare_call(ledger: Ledger) -> None:
    """What is not known is None, and neither 0 nor an empty text."""
    bare = Call(call_id="c", occurred_at=NOON, provider="openai", endpoint="chat")
    ledger.insert([bare])
    assert everything(ledger) == [bare]
    zeros = make_call(
        0, usage=Usage(input=0, images=0), http_status=0, duration=0, ttft=0, possibly_billed=0, estimated_output=0, list_femto=0
    )
    ledger.insert([zeros])
    assert ledger.call(zeros.call_id) == zeros


def test_an_empty_text_is_none(ledger: Ledger) -> None:
    """In every column that may be empty; so a question for calls without a plan finds it."""
    ledger.insert([make_call(model="", tags=Tags(user_id="", plan=""), raw_usage="", error="")])
    (kept,) = everything(ledger)
    assert (kept.model, kept.tags.user_id, kept.tags.plan, kept.raw_usage, kept.error) == (None,) * 5
    assert ledger.spend(["plan", "user_id"], {"plan": None})[0].dimensions == {"plan": None, "user_id": None}


def test_the_longest_texts(ledger: Ledger) -> None:
    """Tags of 256 characters of four bytes each, in every column that an engine may have an index or a rollup on; others of any length."""
    rng = random.Random(1)

    def long() -> str:
        return "".join(chr(rng.randrange(0x1F300, 0x1F900)) for _ in range(256))  # which no compression makes short

    tags = Tags(**{name: long() for name in ("user_id", "plan", "tenant_id", "route", "release", "session_id")}, extra={"k": long()})
    endless = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=100_000))
    call = make_call(tags=tags, model=long(), provider=long(), endpoint=long(), job=f"openai/{long()}/{long()}")
    call = msgspec.structs.replace(call, raw_usage=f'"{endless}"', price=endless, error=endless, cost_reasons=(endless,))
    ledger.insert([call, make_call(2)])
    assert ledger.call(call.call_id) == call
    for by in (("user_id", "plan", "tenant_id"), ("plan", "model", "route", "release", "endpoint"), ("k", "session_id")):
        assert ledger.spend(by, {"user_id": tags.user_id}) == oracle.spend([call], by)
    ledger.insert([submission(str(call.job), "u")])
    assert ledger.spend(where={"user_id": "u", "model": f"{str(call.model)[:50]}*"})[0].calls == 1


# -- limits ------------------------------------------------------------------------------------------------------------------------


def test_counts_beyond_reason_do_not_stop_a_batch(ledger: Ledger) -> None:
    """A call with a count that no column holds is kept unpriced, with the reason and the raw usage; the others are kept whole."""
    other = make_call(3)
    usages = [Usage(input=10**30), Usage(output=MAX_COUNT + 1), Usage(audio_in=-7), Usage(image_out=2**64)]
    wild = [make_call(5, usage=usage, raw_usage='{"x":1}', cost_reasons=("tier",), price="{}") for usage in usages]
    assert ledger.insert([other, *wild]) == 5
    kept = {call.call_id: call for call in ledger.calls()}
    assert kept[other.call_id] == other
    for call in (kept[one.call_id] for one in wild):
        assert (call.usage, call.cost_femto, call.cost_status) == (None, None, "unpriced")
        assert (call.cost_reasons, call.raw_usage, call.price) == (("tier", "usage out of range"), '{"x":1}', None)
    (total,) = ledger.spend()
    assert (total.calls, total.cost_femto, total.unpriced_calls) == (5, 3, 4)


def test_estimates_beyond_reason(ledger: Ledger) -> None:
    """An estimate that no column holds goes the same way."""
    ledger.insert([make_call(5, **{name: MAX_COUNT + 1}) for name in ("estimated_input", "estimated_output")])
    assert [(call.cost_femto, call.estimated_input, call.estimated_output) for call in ledger.calls()] == [(None, None, None)] * 2


def test_costs_beyond_reason(ledger: Ledger) -> None:
    """A cost that no column holds is unpriced, and never another number."""
    ledger.insert([make_call(2**63), make_call(10**30), make_call(-1), make_call(7)])
    (total,) = ledger.spend()
    assert (total.calls, total.cost_femto, total.unpriced_calls) == (4, 7, 3)


def test_a_list_cost_beyond_reason_does_not_stop_a_batch(ledger: Ledger) -> None:
    """Nor does our own figure for a call whose cost the provider has reported."""
    ledger.insert([make_call(3, list_femto=2**63), make_call(5, list_femto=7)])
    assert sorted((call.cost_femto or 0, call.list_femto) for call in ledger.calls()) == [(0, None), (5, 7)]


def test_the_largest_and_the_smallest(ledger: Ledger) -> None:
    """Counts and costs at the limits are kept to the last digit."""
    counted: dict[str, Any] = {name: MAX_COUNT for name in Usage.__struct_fields__ if name != "tools"}
    usage = Usage(**counted)
    kept = [
        make_call(DEAREST, usage=usage, list_femto=DEAREST, estimated_input=MAX_COUNT, estimated_output=MAX_COUNT),
        make_call(1),
        make_call(0),
        make_call(DEAREST - 1),
        make_call(10**15),
        make_call(10**15 - 1),
    ]
    ledger.insert(kept)
    assert everything(ledger) == sorted(kept, key=lambda call: call.call_id)
    assert ledger.spend() == oracle.spend(kept)


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(0, id="1970"),
        pytest.param(-400 * DAY, id="1968"),
        pytest.param(4_294_967_296_000_001, id="2106"),
        *(
            pytest.param(at, id=name, marks=pytest.mark.deep)
            for name, at in (("just after", 1), ("1969", -1 * DAY), ("2100", 4_102_444_800_000_000))
        ),
    ],
)
def test_times_far_away(ledger: Ledger, at: int) -> None:
    """Before 1970, and behind the ends of 32 bits, a call is kept, read in its place, and belongs to its day."""
    a_moment = 1 if at > 0 else SECOND
    before, there, behind = make_call(1, at=at - a_moment), make_call(2, at=at), make_call(4, at=at + DAY)
    ledger.insert([behind, there, before])
    assert everything(ledger) == [before, there, behind]
    assert ledger.time_range() == (before.occurred_at, behind.occurred_at)
    pages = [page for after in (before, there) for page in ledger.calls(limit=1, after=(after.occurred_at, after.call_id))]
    assert pages == [there, behind]
    assert ledger.spend(["day"], {"day": oracle.value(there, "day")}) == oracle.spend(
        [before, there, behind], ["day"], {"day": oracle.value(there, "day")}
    )


def test_a_record_that_cannot_be_kept_leaves_nothing_behind(ledger: Ledger) -> None:
    """Nothing of its batch is kept, progress and known keys included, and the ledger goes on."""
    good = make_call(tags=Tags(extra={"feature": "x"}), price="{}")
    with pytest.raises(ValueError, match="cannot be stored"):
        ledger.insert([good, make_call(cost_status="unpriced")], Progress("s", 9))
    assert ledger.spend()[0].calls == 0
    assert ledger.progress("s") == 0
    assert ledger.insert([good], Progress("s", 9)) == 1
    assert everything(ledger) == [good]
    assert ledger.spend(["feature"])[0].dimensions == {"feature": "x"}


BAD = {
    "model": make_call(model="\ud800"),
    "user": make_call(tags=Tags(user_id="\udfff")),
    "extra": make_call(tags=Tags(extra={"k": "\udc80"})),
    "id": make_call(call_id="a\udc80"),
    "priced without a price": make_call(None, cost_status="priced"),
    "too late": make_call(at=2**63),
    "too early": make_call(at=-(2**63) - 1),
}


def test_what_is_refused(ledger: Ledger) -> None:
    """A lone surrogate is no text, a price of nothing is no price: a ValueError, and the ledger goes on."""
    for what, bad in BAD.items():
        with pytest.raises(ValueError):  # noqa: PT011 - engines say it in their own words
            ledger.insert([make_call(), bad], Progress("s", 1))
        assert (ledger.spend()[0].calls, ledger.progress("s")) == (0, 0), what
    assert ledger.insert([make_call()]) == 1


def test_a_nul_is_kept_or_refused(ledger: Ledger) -> None:
    """PostgreSQL has no NUL in a text: the record is refused, or another sign stands in its place; the text is never cut off there."""
    text = "before\0behind"
    calls = [make_call(**{where: text}) for where in ("model", "raw_usage", "error")]
    calls += [make_call(tags=tags) for tags in (Tags(user_id=text), Tags(extra={"k": text}))]
    kept = []
    for call in calls:
        try:
            ledger.insert([call])
        except ValueError:
            pass
        else:
            kept.append(call.call_id)
    assert {call.call_id for call in ledger.calls()} == {*kept}
    for call in ledger.calls():
        (found,) = {call.tags.user_id, call.tags.extra.get("k"), call.raw_usage, call.error, call.model} - {None, "m"}
        assert found in (text, text.replace("\0", "\ufffd"))
    assert ledger.insert([make_call()]) == 1


# -- once --------------------------------------------------------------------------------------------------------------------------


def test_a_call_is_kept_once(ledger: Ledger) -> None:
    """The same call_id again is passed over, in the same batch, in another, and with another time: the one that was told first stays."""
    call = make_call(5)
    again = msgspec.structs.replace(call, occurred_at=NOON + 1, cost_femto=7, error="X")
    assert ledger.insert([call, call, again]) == 1
    assert ledger.insert([again]) == 0
    assert ledger.insert([msgspec.structs.replace(call, occurred_at=NOON - 40 * DAY)]) == 0
    assert everything(ledger) == [call]
    assert ledger.spend() == oracle.spend([call])
    assert ledger.spend(["month"]) == oracle.spend([call], ["month"])
    assert ledger.time_range() == (NOON, NOON)


@pytest.mark.parametrize("seed", range(times(1, 3)))
def test_any_order_and_any_batches(opened: Opened, seed: int) -> None:
    """Records that are told again and again, in batches cut differently, by several handles, add up as if they were told once."""
    rng = random.Random(seed)
    kept = [
        make_call(
            rng.choice([None, 0, 1, DEAREST, rng.randrange(10**14)]),
            at=NOON + rng.randrange(-3 * DAY, 40 * DAY),
            model=rng.choice("abc"),
            tags=Tags(user_id=rng.choice([None, "u_1", "u_2"]), extra=rng.choice([{}, {"k": "v"}])),
            attribution="tag",
        )
        for _ in range(times(60, 120))
    ]
    handles = [opened(), opened()]
    sizes = oracle.some(handles[0], (11, 50, 1), 2)  # a batch of one takes ClickHouse as long as one of fifty
    new = 0
    for _ in range(times(2, 4)):
        told = rng.sample(kept, len(kept))
        while told:
            size = rng.choice(sizes)
            batch, told = told[:size], told[size:]
            new += rng.choice(handles).insert(batch + rng.sample(batch, len(batch) // 3))
    assert new == len(kept)
    for ledger in handles:
        assert everything(ledger) == oracle.chosen(kept)
        for by in oracle.some(ledger, (("k",), ("user_id",), (), ("day", "model"), ("cost_status",)), 2):
            assert ledger.spend(by) == oracle.spend(kept, by)


def test_a_replay_undoes_nothing(ledger: Ledger) -> None:
    """Records that come again after an owner, a price or an answer came later change none of them back."""
    plain, late, dear = make_call(5), make_call(6), make_call(7)
    begun, told = unread("openai/resp_1"), job_call("openai/resp_1", raw_usage="{}", cost=9)
    owned = job_call("openai/batch_1/a", cost=3)
    records: list[Record] = [plain, late, dear, begun, owned]
    ledger.insert(records)
    ledger.insert([LateAttribution(call_ids=(late.call_id,), tags=Tags(user_id="u_1"))])
    ledger.insert([told, submission("openai/batch_1", "u_2")])
    assert ledger.reprice([(dear, msgspec.structs.replace(dear, cost_femto=70))]) == 1
    before, rows = everything(ledger), ledger.spend(["user_id"])
    assert [(row.dimensions["user_id"], row.cost_femto) for row in rows] == [(None, 84), ("u_1", 6), ("u_2", 3)]
    assert ledger.insert(records) == 0
    for record in records:
        ledger.insert([record])
    assert everything(ledger) == before
    assert ledger.spend(["user_id"]) == rows
    assert [price.cost_femto for price in ledger.price_history(dear.call_id)] == [7]


def test_nothing_to_insert(ledger: Ledger) -> None:
    """An empty batch is no call, and its progress counts."""
    assert ledger.insert([]) == 0
    assert ledger.insert([], Progress("s", 3)) == 0
    assert (ledger.progress("s"), ledger.spend()[0].calls, ledger.time_range()) == (3, 0, None)


@pytest.mark.slow
def test_a_large_batch(ledger: Ledger) -> None:
    """Thousands of calls at once, over a year of months."""
    count = times(3_000, 10_000)
    kept = [make_call(number, at=NOON + number * 370 * DAY // count, tags=Tags(user_id=f"u_{number % 7}")) for number in range(count)]
    assert ledger.insert(kept) == count
    assert ledger.insert(kept) == 0
    assert ledger.spend(["month"]) == oracle.spend(kept, ["month"])
    assert ledger.spend(["user_id"]) == oracle.spend(kept, ["user_id"])


def test_progress(ledger: Ledger) -> None:
    """Progress is kept with the records, replaced by the next, and forgotten on demand; an unknown segment begins at 0."""
    ledger.insert([make_call()], Progress("one", 100))
    ledger.insert([], Progress("one", 250))
    ledger.insert([], Progress("b'\"\\ 🦔", 2**40))
    assert ledger.progress("one") == 250
    assert ledger.progress("two") == 0
    assert ledger.progress("b'\"\\ 🦔") == 2**40
    ledger.clear_progress("one")
    ledger.clear_progress("one")
    assert ledger.progress("one") == 0
    ledger.insert([], Progress("one", 7))
    assert ledger.progress("one") == 7


def test_submissions_of_a_batch(ledger: Ledger) -> None:
    """Those that are known, of as many as are asked for; all of a submission comes back."""
    odd = Submission(
        job="openai/b'\"\\%_ 🦔",
        submitted_at=-7,
        part_of="openai/x",
        tags=Tags(user_id="zoë", plan="'", extra={'a"': "\\"}),
        attribution="tag",
    )
    bare = Submission(job="openai/bare", submitted_at=0)
    ledger.insert([odd, bare])
    asked: Any = [odd.job, bare.job, *(f"openai/{number}" for number in range(500))]
    assert ledger.submissions(asked) == {odd.job: odd, bare.job: bare}
    assert ledger.submissions(set(asked)) == {odd.job: odd, bare.job: bare}
    assert ledger.submissions([]) == {}
