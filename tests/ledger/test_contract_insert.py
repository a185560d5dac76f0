"""What every ledger does: it keeps calls exactly, once, in whatever order and batches they come."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voight_middleware.call import Call, Record, Settlement, Submission
from voight_middleware.ledger import Ledger, LedgerError, Progress, open_ledger
from voight_middleware.ledger.base import MAX_COUNT
from voight_middleware.tags import Tags
from voight_middleware.usage import Component, Usage

from ..support.factories import DAY, DEAREST, NOON, SECOND, calls, job_call, make_call, submission, unread
from . import oracle

Opened = Callable[..., Ledger]
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
"""One ledger for all examples of a test: their calls have ids of their own."""


def everything(ledger: Ledger) -> list[Call]:
    return list(ledger.calls())


# -- what is kept ------------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("usage", [Usage(input=10**30), Usage(output=MAX_COUNT + 1), Usage(audio_in=-7), Usage(image_out=2**64)])
def test_counts_beyond_reason_do_not_stop_a_batch(ledger: Ledger, usage: Usage) -> None:
    """A call with a count that no column holds is kept unpriced, with the reason and the raw usage; the others are kept whole."""
    other, wild = make_call(3), make_call(5, usage=usage, raw_usage='{"x":1}', cost_reasons=("tier",), price="{}")
    assert ledger.insert([other, wild]) == 2
    kept = {call.call_id: call for call in ledger.calls()}
    assert kept[other.call_id] == other
    assert (kept[wild.call_id].usage, kept[wild.call_id].cost_femto, kept[wild.call_id].cost_status) == (None, None, "unpriced")
    assert kept[wild.call_id].cost_reasons == ("tier", "usage out of range")
    assert (kept[wild.call_id].raw_usage, kept[wild.call_id].price) == ('{"x":1}', None)
    (total,) = ledger.spend()
    assert (total.calls, total.cost_femto, total.unpriced_calls) == (2, 3, 1)


@pytest.mark.parametrize("name", ["estimated_input", "estimated_output"])
def test_estimates_beyond_reason(ledger: Ledger, name: str) -> None:
    """An estimate that no column holds goes the same way."""
    ledger.insert([make_call(5, **{name: MAX_COUNT + 1})])
    (kept,) = everything(ledger)
    assert (kept.cost_femto, kept.estimated_input, kept.estimated_output) == (None, None, None)


@pytest.mark.parametrize("cost", [2**63, 10**30, -1])
def test_costs_beyond_reason(ledger: Ledger, cost: int) -> None:
    """A cost that no column holds is unpriced, and never another number."""
    ledger.insert([make_call(cost), make_call(7)])
    (total,) = ledger.spend()
    assert (total.calls, total.cost_femto, total.unpriced_calls) == (2, 7, 1)


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


@pytest.mark.parametrize("at", [0, 1, -1 * DAY, -400 * DAY, 4_102_444_800_000_000, 4_294_967_296_000_001])
def test_times_far_away(ledger: Ledger, at: int) -> None:
    """Before 1970, and behind the ends of 32 bits, a call is kept, read in its place, and belongs to its day."""
    a_moment = 1 if at > 0 else SECOND
    before, there, behind = make_call(1, at=at - a_moment), make_call(2, at=at), make_call(4, at=at + DAY)
    ledger.insert([behind, there, before])
    assert everything(ledger) == [before, there, behind]
    assert ledger.extent() == (before.occurred_at, behind.occurred_at)
    pages = [page for after in (before, there) for page in ledger.calls(limit=1, after=(after.occurred_at, after.call_id))]
    assert pages == [there, behind]
    assert ledger.spend(["day"], {"day": oracle.value(there, "day")}) == oracle.spend(
        [before, there, behind], ["day"], {"day": oracle.value(there, "day")}
    )


def test_a_record_that_cannot_be_kept_leaves_nothing_behind(ledger: Ledger) -> None:
    """Nothing of its batch is kept, progress and known keys included, and the ledger goes on."""
    good = make_call(tags=Tags(extra={"feature": "x"}), price="{}")
    with pytest.raises(ValueError, match="cannot be kept"):
        ledger.insert([good, make_call(cost_status="unpriced")], Progress("s", 9))
    assert ledger.spend()[0].calls == 0
    assert ledger.progress("s") == 0
    assert ledger.insert([good], Progress("s", 9)) == 1
    assert everything(ledger) == [good]
    assert ledger.spend(["feature"])[0].dimensions == {"feature": "x"}


@pytest.mark.parametrize(
    "bad",
    [
        make_call(model="\ud800"),
        make_call(tags=Tags(user_id="\udfff")),
        make_call(tags=Tags(extra={"k": "\udc80"})),
        make_call(call_id="a\udc80"),
        make_call(None, cost_status="priced"),
        make_call(at=2**63),
        make_call(at=-(2**63) - 1),
    ],
    ids=["model", "user", "extra", "id", "priced without a price", "too late", "too early"],
)
def test_what_is_refused(ledger: Ledger, bad: Call) -> None:
    """A lone surrogate is no text, a price of nothing is no price: a ValueError, and the ledger goes on."""
    with pytest.raises(ValueError):  # noqa: PT011 - engines say it in their own words
        ledger.insert([make_call(), bad], Progress("s", 1))
    assert (ledger.spend()[0].calls, ledger.progress("s")) == (0, 0)
    assert ledger.insert([make_call()]) == 1


@pytest.mark.parametrize("where", ["model", "user_id", "extra", "raw_usage", "error"])
def test_a_nul_is_kept_or_refused(ledger: Ledger, where: str) -> None:
    """PostgreSQL has no NUL in a text: the record is refused, or another sign stands in its place; the text is never cut off there."""
    text = "before\0behind"
    tags = Tags(user_id=text) if where == "user_id" else Tags(extra={"k": text}) if where == "extra" else Tags()
    values: dict[str, Any] = {where: text} if where in ("model", "raw_usage", "error") else {}
    call = make_call(tags=tags, **values)
    try:
        ledger.insert([call])
    except ValueError:
        assert ledger.spend()[0].calls == 0
    else:
        (kept,) = everything(ledger)
        (found,) = {kept.tags.user_id, kept.tags.extra.get("k"), kept.raw_usage, kept.error, kept.model} - {None, "m"}
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
    assert ledger.extent() == (NOON, NOON)


@pytest.mark.parametrize("seed", range(3))
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
        for _ in range(120)
    ]
    handles = [opened(), opened()]
    new = 0
    for _ in range(4):
        told = rng.sample(kept, len(kept))
        while told:
            size = rng.choice([1, 7, 50])
            batch, told = told[:size], told[size:]
            new += rng.choice(handles).insert(batch + rng.sample(batch, len(batch) // 3))
    assert new == len(kept)
    for ledger in handles:
        assert everything(ledger) == oracle.chosen(kept)
        for by in ((), ("user_id",), ("day", "model"), ("k",), ("cost_status",)):
            assert ledger.spend(by) == oracle.spend(kept, by)


def test_a_replay_undoes_nothing(ledger: Ledger) -> None:
    """Records that come again after an owner, a price or an answer came later change none of them back."""
    plain, late, dear = make_call(5), make_call(6), make_call(7)
    begun, told = unread("openai/resp_1"), job_call("openai/resp_1", raw_usage="{}", cost=9)
    owned = job_call("openai/batch_1/a", cost=3)
    records: list[Record] = [plain, late, dear, begun, owned]
    ledger.insert(records)
    ledger.insert([Settlement(call_ids=(late.call_id,), tags=Tags(user_id="u_1"))])
    ledger.insert([told, submission("openai/batch_1", "u_2")])
    assert ledger.reprice([(dear, msgspec.structs.replace(dear, cost_femto=70))]) == 1
    before, rows = everything(ledger), ledger.spend(["user_id"])
    assert [(row.dimensions["user_id"], row.cost_femto) for row in rows] == [(None, 84), ("u_1", 6), ("u_2", 3)]
    assert ledger.insert(records) == 0
    for record in records:
        ledger.insert([record])
    assert everything(ledger) == before
    assert ledger.spend(["user_id"]) == rows
    assert [price.cost_femto for price in ledger.versions(dear.call_id)] == [7]


def test_nothing_to_insert(ledger: Ledger) -> None:
    """An empty batch is no call, and its progress counts."""
    assert ledger.insert([]) == 0
    assert ledger.insert([], Progress("s", 3)) == 0
    assert (ledger.progress("s"), ledger.spend()[0].calls, ledger.extent()) == (3, 0, None)


def test_a_large_batch(ledger: Ledger) -> None:
    """Ten thousand calls at once, over a year of months."""
    kept = [make_call(number, at=NOON + number * DAY // 27, tags=Tags(user_id=f"u_{number % 7}")) for number in range(10_000)]
    assert ledger.insert(kept) == 10_000
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
    ledger.forget("one")
    ledger.forget("one")
    assert ledger.progress("one") == 0
    ledger.insert([], Progress("one", 7))
    assert ledger.progress("one") == 7


# -- several at once ---------------------------------------------------------------------------------------------------------------


def test_reopening(opened: Opened) -> None:
    """A ledger that was closed has everything again when it is opened, for writing and for reports."""
    first = opened()
    call, job = make_call(5, tags=Tags(extra={"feature": "x"})), submission("openai/batch_1", "u")
    first.insert([call, job], Progress("s", 9))
    first.close()
    first.close()
    for create in (True, False):
        again = opened(create=create)
        assert everything(again) == [call]
        assert (again.progress("s"), again.submissions(["openai/batch_1"])) == (9, {job.job: job})
        assert again.spend(["feature"], {"feature": "x"})[0].cost_femto == 5
        assert again.insert([call]) == 0


def test_a_closed_ledger(ledger: Ledger) -> None:
    """It answers with an error that shows no password."""
    ledger.insert([make_call()])
    ledger.close()
    for ask in (ledger.spend, lambda: ledger.insert([make_call()]), lambda: list(ledger.calls()), ledger.extent):
        with pytest.raises(LedgerError) as error:
            ask()
        assert "p@ss" not in str(error.value)
        assert "p%40ss" not in str(error.value)


def test_what_doctor_says(ledger: Ledger) -> None:
    """Names and values, engine and schema among them, no password, and nothing is written."""
    facts = ledger.about()
    assert {"engine", "schema"} <= {name for name, _ in facts}
    assert all(name and value for name, value in facts)
    assert not any("p@ss" in value or "p%40ss" in value for _, value in facts)
    assert ledger.extent() is None


def test_one_writes_and_one_reads(opened: Opened) -> None:
    """A ledger that is open for reports sees calls, extra keys and prices that come in meanwhile, and may write too."""
    writer = opened()
    writer.insert([])
    reader = opened(create=False)
    assert reader.spend()[0].calls == 0
    with pytest.raises(ValueError, match="no call in this ledger has an extra key"):
        reader.spend(["feature"])
    for number in range(3):
        writer.insert([make_call(tags=Tags(extra={f"feature{number}": "x"}), price='{"p":1}')])
        assert reader.spend([f"feature{number}"], {f"feature{number}": "x"})[0].calls == 1
        assert len(everything(reader)) == number + 1
    assert reader.insert([make_call(price='{"p":1}')]) == 1
    assert [call.price for call in writer.calls()] == ['{"p":1}'] * 4


def test_reading_goes_on_while_another_writes(opened: Opened) -> None:
    """Who reads all calls, slowly, gets those that were there when it began, each once, and in order, whatever comes in."""
    writer, reader = opened(), opened()
    kept = [make_call(number, at=NOON + number) for number in range(300)]
    writer.insert(kept)
    found = []
    for number, call in enumerate(reader.calls()):
        found.append(call)
        if number % 100 == 0:
            writer.insert([make_call(1, at=NOON + 10**6 + number), make_call(1, at=NOON - 1 - number)])
    assert [call for call in found if NOON <= call.occurred_at < NOON + 300] == kept
    assert [call.call_id for call in found] == list(dict.fromkeys(call.call_id for call in found))
    assert writer.spend()[0].calls == 306


def test_writers_at_once(ledger_url: str, ledger: Ledger) -> None:
    """Four threads with a ledger each tell of the same calls in batches of their own, and own progress: each call counts once."""
    kept = [make_call(number, at=NOON + number * DAY // 50, tags=Tags(user_id=f"u_{number % 3}")) for number in range(400)]
    new: list[int] = []
    errors: list[BaseException] = []

    def write(seed: int) -> None:
        rng = random.Random(seed)
        try:
            with closing(open_ledger(ledger_url)) as mine:
                told = rng.sample(kept, len(kept))
                batches = [(told[start : start + 50], Progress(f"segment-{seed}", start + 50)) for start in range(0, len(told), 50)]
                new.extend(mine.insert(*batch) for batch in batches)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert everything(ledger) == kept
    assert sum(new) == 400 or (ledger_url.startswith("clickhouse") and sum(new) > 400)  # without transactions two may count a call as new
    assert [ledger.progress(f"segment-{seed}") for seed in range(4)] == [400] * 4
    for by in ((), ("user_id",), ("day",), ("cost_status",)):
        assert ledger.spend(by) == oracle.spend(kept, by)


def test_openers_at_once(ledger_url: str) -> None:
    """Six threads that make the same new ledger at the same moment all get it, and none of their calls is lost."""
    barrier = threading.Barrier(6)
    errors: list[BaseException] = []

    def begin() -> None:
        try:
            barrier.wait()
            with closing(open_ledger(ledger_url)) as mine:
                assert mine.insert([make_call() for _ in range(10)]) == 10
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with closing(open_ledger(ledger_url, create=False)) as ledger:
        assert ledger.spend()[0].calls == 60


def test_reports_do_not_make_a_ledger(ledger_url: str, tmp_path: Path) -> None:
    """To open for reports what is not there is an error that helps, and leaves nothing behind; it can still be made."""
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"there is no ledger .* yet.*voight doctor") as error:
            open_ledger(ledger_url, create=False)
        assert "p%40ss" not in str(error.value)
    with closing(open_ledger(ledger_url)) as ledger:
        assert ledger.extent() is None


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
