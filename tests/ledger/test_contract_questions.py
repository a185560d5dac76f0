"""What every ledger does: it answers what the calls say, to the femto-dollar and in the same order, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import combinations
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voight_middleware.call import Call, new_call_id
from voight_middleware.ledger import DIMENSIONS, Ledger, LedgerError, Spend, UnknownDimension, Where, Window
from voight_middleware.ledger.base import MAX_COUNT
from voight_middleware.tags import Tags
from voight_middleware.usage import Usage

from ..support.factories import DAY, DEAREST, HOUR, NOON, SECOND, make_call, priced, texts
from . import oracle

Opened = Callable[..., Ledger]
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
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


@pytest.mark.parametrize("by", [(), ("user_id",), ("model",), ("session_id",), ("hour", "plan")])
def test_sums_beyond_64_bits(ledger: Ledger, by: tuple[str, ...]) -> None:
    """Many calls of the largest cost that a column holds cost as many times that, in whatever an answer is read from."""
    kept = [make_call(DEAREST - number % 3) for number in range(500)]
    ledger.insert(kept)
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
    assert ledger.extent() is None
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


# -- dimensions --------------------------------------------------------------------------------------------------------------------


def test_every_dimension(ledger: Ledger) -> None:
    """A call can be grouped by every dimension, and found by its value."""
    tags = Tags(user_id="u", plan="p", tenant_id="t", route="GET /", release="r", session_id="s")
    ledger.insert([make_call(tags=tags, requested_model="q", attribution="tag")])
    (row,) = ledger.spend(DIMENSIONS)
    assert row.dimensions == {
        "user_id": "u",
        "plan": "p",
        "tenant_id": "t",
        "route": "GET /",
        "release": "r",
        "session_id": "s",
        "provider": "openai",
        "model": "m",
        "requested_model": "q",
        "endpoint": "chat",
        "outcome": "ok",
        "attribution": "tag",
        "cost_status": "priced",
        "hour": "2026-11-01T12:00Z",
        "day": "2026-11-01",
        "month": "2026-11",
    }
    for name, value in row.dimensions.items():
        assert ledger.spend(where={name: value})[0].calls == 1
        assert ledger.spend(where={name: f"{value}?"})[0].calls == 0
        assert ledger.spend(where={name: None})[0].calls == 0


def varied(count: int = 400, seed: int = 5) -> list[Call]:
    """Calls in which each dimension has a few values, none among them where that can be."""
    rng = random.Random(seed)
    odd = [None, "a", "b", "o'brien", "u 100%"]
    return [
        make_call(
            rng.choice([None, 0, 3, 3, rng.randrange(10**15), DEAREST]),
            at=NOON + rng.randrange(-45 * DAY, 45 * DAY),
            model=rng.choice(odd),
            requested_model=rng.choice(odd),
            provider=rng.choice("pq"),
            endpoint=rng.choice("ef"),
            outcome=rng.choice(["ok", "ok", "error", "truncated"]),
            attribution=rng.choice(["tag", "none", "getter"]),
            usage=rng.choice([None, Usage(input=3), Usage(output=rng.randrange(9), cache_read=0), Usage(cache_write_1h=5, audio_out=1)]),
            estimated_output=rng.choice([None, None, 1]),
            tags=Tags(
                **{name: rng.choice(odd) for name in ("user_id", "plan", "tenant_id", "route", "release", "session_id")},
                extra=rng.choice([{}, {"feature": "x"}, {"feature": "y", "a.b-c": "z"}, {"a.b-c": "o'brien"}]),
            ),
        )
        for _ in range(count)
    ]


def some(ledger: Ledger, questions: Iterable[Any]) -> list[Any]:
    """A third of many questions for ClickHouse, which takes a hundred times as long for the few calls of a test, and all for the others."""
    asked = list(questions)
    return random.Random(1).sample(asked, -(-len(asked) // 3)) if ledger.url.startswith("clickhouse") else asked


def test_dimensions_alone_and_in_pairs(ledger: Ledger) -> None:
    """Whatever two dimensions a question has, extra keys among them: rows and order are those of the calls."""
    kept = varied()
    ledger.insert(kept)
    names = (*DIMENSIONS, "feature", "a.b-c")
    for size in (0, 1, 2):
        for by in some(ledger, combinations(names, size)):
            assert ledger.spend(by) == oracle.spend(kept, by), by
    for by in (("plan", "user_id", "month"), ("day", "model", "feature", "outcome"), DIMENSIONS[:7], names):
        assert ledger.spend(by) == oracle.spend(kept, by), by


def test_filters_and_windows_on_everything(ledger: Ledger) -> None:
    """Whatever a question is about: one value, several, any, none, of each dimension, within windows that cut days, hours and months."""
    kept = varied()
    ledger.insert(kept)
    rng = random.Random(2)
    for name in (*DIMENSIONS, "feature", "a.b-c"):
        there = sorted({found for call in kept if (found := oracle.value(call, name)) is not None})
        for wanted in some(
            ledger, (there[0], None, f"{there[-1][:1]}*", "*", tuple(there[:2]), (*there[:1], "*brien", "x"), (), "none such")
        ):
            where: Where = {name: wanted}
            by = rng.choice([(), ("user_id",), ("plan", "day"), ("session_id",)])
            assert ledger.spend(by, where) == oracle.spend(kept, by, where), (by, where)
    for _ in some(ledger, range(60)):
        edges = sorted(NOON + rng.randrange(-50 * DAY, 50 * DAY) // (step := rng.choice([1, SECOND, HOUR, DAY])) * step for _ in range(2))
        window = Window(*(rng.choice([None, edge, edge]) for edge in edges))
        values: list[Any] = ["a", None, "o'*", ("a", "b")]
        where = rng.choice([{}, {one: rng.choice(values) for one in rng.sample(["user_id", "plan", "route", "release"], 2)}])
        names = tuple(rng.sample([*DIMENSIONS, "feature"], rng.randrange(3)))
        assert ledger.spend(names, where, window) == oracle.spend(kept, names, where, window), (names, where, window)
        ids = [call.call_id for call in ledger.calls(where, window)]
        assert ids == [call.call_id for call in oracle.chosen(kept, where, window)], (where, window)


def test_no_value_beside_others(ledger: Ledger) -> None:
    """None among several values means those without one too."""
    kept = varied(60)
    ledger.insert(kept)
    where: Any = {"plan": ("a", None), "user_id": (None, "b")}
    assert ledger.spend(["plan"], where) == oracle.spend(kept, ["plan"], where)


def test_extra_keys(ledger: Ledger) -> None:
    """Calls can be grouped by and filtered on the extra keys of their tags, dots and dashes included; those without are None."""
    ledger.insert([make_call(8, tags=Tags(extra={"a.b-c": "x"})), make_call(4, tags=Tags(extra={"a": "*"})), make_call(2)])
    assert [(row.dimensions, row.cost_femto) for row in ledger.spend(["a.b-c"])] == [({"a.b-c": "x"}, 8), ({"a.b-c": None}, 6)]
    assert ledger.spend(["plan", "a.b-c"], {"a.b-c": None})[0].cost_femto == 6
    assert [call.tags.extra for call in ledger.calls({"a": "*"})] == [{"a": "*"}]


ODD_KEYS = ("user", "calls", "cost_femto", "call_id", "m0", "d0", "parts", "select", "Feature", "ключ", "k k", "0", "a[0]")


def test_odd_extra_keys(ledger: Ledger) -> None:
    """A key that is a word of SQL or a column's name is a key like any other, capital letters included."""
    ledger.insert([make_call(2, tags=Tags(extra={"feature": "w"})), *(make_call(4, tags=Tags(extra={key: "v"})) for key in ODD_KEYS)])
    for key in ODD_KEYS:
        assert [(row.dimensions[key], row.cost_femto) for row in ledger.spend([key])] == [(None, 2 + 4 * (len(ODD_KEYS) - 1)), ("v", 4)]
        assert ledger.spend(where={key: "v", "feature": None})[0].cost_femto == 4


@few
@given(value=texts, other=texts)
def test_extra_values_come_back(ledger: Ledger, value: str, other: str) -> None:
    """A dimension has the value that the tag had, whatever signs are in it, and a filter on another finds it."""
    tenant = new_call_id()
    ledger.insert([make_call(3, tags=Tags(user_id=other, tenant_id=tenant, extra={"feature": value}))])
    (row,) = ledger.spend(["feature", "user_id"], {"tenant_id": tenant})
    assert row.dimensions == {"feature": value, "user_id": other}
    if "*" not in value + other:
        assert ledger.spend((), {"tenant_id": tenant, "feature": value, "user_id": (other, "no one")})[0].calls == 1


def test_dimensions_asked_for_twice(ledger: Ledger) -> None:
    """A dimension that is named twice counts once."""
    ledger.insert([make_call()])
    assert ledger.spend(["plan", "plan"])[0].dimensions == {"plan": None}


# -- filters -----------------------------------------------------------------------------------------------------------------------

MODELS = ("gpt-4", "gpt-4[mini]", "g?t", "GPT-4o", "a%_b", "a\\b", "a^b", "(a|b)+", "l\nl", "zoë", "{x}", None)


PATTERNS = (
    *("gpt-*", "*4", "*", "**", "g?t", "g?*", "gpt-4[*", "*[mini]", "*[!a]*", "GPT*", "gpt", "G*", "*-4*", "*gpt-4", "gpt-4*"),
    *("a%_b", "a%*", "a_*", "%*", "_*", "*_b", "a\\b", "a\\*", "*\\*", "a^*", "(a|b)+", "(*", "*+", "l*l", "l\n*", "zo?", "zo*", "*ë"),
    *("{*", "*}", ".*", "^*", "$*", "*$"),
)


def test_patterns(ledger: Ledger) -> None:
    """A filter is exact and minds case; a star stands for any text, and nothing else is special."""
    kept = [make_call(1, model=model, tags=Tags(user_id=model, extra={} if model is None else {"k": model})) for model in MODELS]
    ledger.insert(kept)
    for pattern in some(ledger, PATTERNS):
        for name in ("model", "user_id", "k"):
            assert ledger.spend([name], {name: pattern}) == oracle.spend(kept, [name], {name: pattern}), (name, pattern)
        assert list(ledger.calls({"model": pattern})) == oracle.chosen(kept, {"model": pattern})


@pytest.mark.parametrize(
    "value",
    ["'; DROP TABLE calls; --", '" OR 1=1', "u\x1bv", "zoë 🦔 \u202e", "%", "\\", "\\'", "?", "%s", "$1", "{v:String}", ":v", "x" * 9_999],
)
def test_values_are_only_ever_values(ledger: Ledger, value: str) -> None:
    """No user id, however odd, changes a question or gets lost in it."""
    ledger.insert([make_call(tags=Tags(user_id=value, extra={"feature": value})), make_call(tags=Tags(user_id="other"))])
    assert ledger.spend(where={"user_id": value})[0].calls == 1
    assert ledger.spend(["feature"], {"user_id": value})[0].dimensions == {"feature": value}
    assert ledger.spend(where={"feature": value})[0].calls == 1
    assert ledger.spend(where={"user_id": ("no one", value)})[0].calls == 1
    assert ledger.spend(where={"day": value})[0].calls == 0
    assert ledger.holdings([value]).calls == 1
    assert ledger.call(value) is None
    assert ledger.versions(value) == []
    assert ledger.progress(value) == 0


def test_many_values(ledger: Ledger) -> None:
    """A filter may name hundreds of users."""
    ledger.insert([make_call(1, tags=Tags(user_id=f"u_{number}")) for number in range(50)])
    assert ledger.spend(where={"user_id": tuple(f"u_{number}" for number in range(25, 525))})[0].calls == 25


UNKNOWN = (
    *("user_id; DROP TABLE calls", "cost_femto", "call_id", "occurred_at", '$."feature"', 'feature" || 1 || "', "feature') FROM calls --"),
    *("a.b", "", "*", "\udc80", "feature\0", "Feature", "feature ", "%s", "{x:String}", "`feature`"),
)


def test_unknown_dimensions(ledger: Ledger) -> None:
    """A name that is neither a dimension nor a known extra key is refused with both lists, and never becomes SQL or a JSON path."""
    ledger.insert([make_call(tags=Tags(extra={"feature": "x"}))])
    questions: tuple[Callable[[str], object], ...] = (
        lambda name: ledger.spend([name]),
        lambda name: ledger.spend(where={name: "x"}),
        lambda name: list(ledger.calls({name: None})),
    )
    for name in UNKNOWN:
        for ask in questions:
            with pytest.raises(UnknownDimension, match=r"user_id, plan.*extra keys in this ledger: feature$"):
                ask(name)
    assert ledger.spend()[0].calls == 1


@pytest.mark.parametrize("key", ['odd"key', "back\\slash", "a'b", "a`b", "a\nb", "%s", "{x:String}", "?", "$1"])
def test_keys_with_special_signs(ledger: Ledger, key: str) -> None:
    """Such a key of a tag is kept; whether a question can name it is the engine's matter: the right answer or none."""
    call = make_call(5, tags=Tags(extra={key: "v", "feature": "x"}))
    ledger.insert([call, make_call(3)])
    assert ledger.call(call.call_id) == call
    try:
        rows = ledger.spend([key])
    except UnknownDimension:
        return
    assert [(row.dimensions[key], row.cost_femto) for row in rows] == [("v", 5), (None, 3)]
    assert ledger.spend(where={key: "v"})[0].cost_femto == 5


# -- times -------------------------------------------------------------------------------------------------------------------------


def test_days_are_in_utc(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call at a microsecond before midnight UTC belongs to the day that ends then, whatever the machine's time zone."""
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    midnight = NOON + 12 * HOUR
    ledger.insert([make_call(at=midnight - 1), make_call(at=midnight)])
    assert sorted(str(row.dimensions["day"]) for row in ledger.spend(["day"])) == ["2026-11-01", "2026-11-02"]


@pytest.mark.parametrize("begin", [NOON, NOON - 12 * HOUR, NOON + 7])
@pytest.mark.parametrize("length", [10, HOUR, 30 * DAY])
def test_windows_are_half_open(ledger: Ledger, begin: int, length: int) -> None:
    """A window holds its first microsecond and not its last, whatever it cuts through."""
    kept = [make_call(2**number, at=at) for number, at in enumerate((begin - 1, begin, begin + length - 1, begin + length))]
    ledger.insert(kept)
    for window, cost in ((Window(begin, begin + length), 6), (Window(begin), 14), (Window(until=begin + length), 7), (Window(), 15)):
        for by in ((), ("user_id",), ("session_id",)):
            assert ledger.spend(by, {}, window)[0].cost_femto == cost
        assert sum(call.cost_femto or 0 for call in ledger.calls(window=window)) == cost
    assert ledger.extent() == (begin - 1, begin + length)


@pytest.mark.parametrize(
    "name",
    ["Europe/Berlin", "America/Los_Angeles", "America/St_Johns", "Asia/Kathmandu", "Australia/Lord_Howe", "Africa/Casablanca", "UTC"],
)
def test_days_of_a_time_zone(ledger: Ledger, name: str) -> None:
    """Hours, days and months are cut as the clocks of a zone go, also in the nights in which they are changed; filters too."""
    zone = ZoneInfo(name)
    nights = [(3, 29), (10, 25), (11, 1), (4, 5), (10, 4), (2, 15), (3, 22), (3, 8), (12, 31)]
    times = [int(datetime(2026, month, day, tzinfo=UTC).timestamp()) + half * 1800 for month, day in nights for half in range(-24, 72)]
    kept = [make_call(number % 13, at=at * SECOND, tags=Tags(user_id=f"u_{number % 3}")) for number, at in enumerate(dict.fromkeys(times))]
    ledger.insert(kept)
    forms = ("hour", "day", "month")
    for by in (*((form,) for form in forms), *combinations(forms, 2), ("user_id", "day"), ("plan", "hour"), ("session_id", "month")):
        assert ledger.spend(by, zone=zone) == oracle.spend(kept, by, zone=zone), by
    rng = random.Random(3)
    for form in forms:
        for call in rng.sample(kept, 5):
            where: Where = {form: oracle.value(call, form, zone)}
            window = Window(call.occurred_at - rng.randrange(2 * DAY), call.occurred_at + rng.randrange(2 * DAY))
            assert ledger.spend(("user_id",), where, window, zone=zone) == oracle.spend(kept, ("user_id",), where, window, zone=zone)
            found = [one.call_id for one in ledger.calls(where, window, zone=zone)]
            assert found == [one.call_id for one in oracle.chosen(kept, where, window, zone)]


# -- calls -------------------------------------------------------------------------------------------------------------------------


def test_reading_in_pieces(ledger: Ledger) -> None:
    """Pages follow each other without a gap, also where calls happened at the same time, and within a window and a filter."""
    names = ("a", "B", "é", "Z", "_", "~", "10", "9")
    ledger.insert([make_call(at=at, call_id=f"{at}-{name}", model="mn"[name > "Z"]) for at in (1, 2, 2, 3, 9) for name in names])
    for where, window in (({}, Window()), ({"model": "n"}, Window(2, 9)), ({}, Window(until=3))):
        whole = [call.call_id for call in ledger.calls(where, window)]
        assert whole == sorted(whole, key=lambda call_id: (int(call_id[0]), call_id.encode()))
        for size in (1, 2, 5, 100):
            pages: list[str] = []
            after = None
            while page := list(ledger.calls(where, window, size, after=after)):
                after = page[-1].occurred_at, page[-1].call_id
                pages += [call.call_id for call in page]
            assert pages == whole
    assert list(ledger.calls(limit=0)) == []


def test_calls_that_are_not_read_to_the_end(ledger: Ledger) -> None:
    """An iterator that is left half-way keeps nobody from anything, and two at a time do not mix."""
    kept = [make_call(1, at=NOON + number) for number in range(2_500)]
    ledger.insert(kept)
    left = iter(ledger.calls())
    assert next(left) == kept[0]
    assert [first == second for first, second in zip(ledger.calls(), ledger.calls(), strict=True)] == [True] * 2_500
    assert next(left) == kept[1]
    del left
    assert ledger.insert([make_call(2)]) == 1
    assert ledger.spend()[0].calls == 2_501


FOUND = (
    ("0123456789abcdef", "0123456789abcdef"),
    ("01234567", "0123456789abcdef"),
    ("0123456", None),
    ("", None),
    ("mine", "mine"),
    ("abcdefgh", "abcdefgh"),
    ("abcdefgh-", "abcdefgh-2"),
    ("ABCDEFGH", None),
    ("01234567%", None),
    ("01234567*", None),
    ("0123456_", None),
    ("zoë zoë zo", "zoë zoë zoë"),
    ("under_sc", "under_score"),
    ("100% sur", "100% sure"),
    ("back\\slas", "back\\slash"),
    ("hedgehog", "hedgehog 🦔"),
    ("12345678'", None),
)


def test_a_call_by_its_id(ledger: Ledger) -> None:
    """The whole id, or its beginning from eight characters on where no other call begins so."""
    ids = ("0123456789abcdef", "mine", "abcdefgh", "abcdefgh-2", "zoë zoë zoë", "under_score", "underXscope", "100% sure", "back\\slash")
    ledger.insert([make_call(call_id=name) for name in (*ids, "hedgehog 🦔")])
    for asked, found in FOUND:
        call = ledger.call(asked)
        assert (call and call.call_id) == found, asked


def test_a_beginning_that_several_calls_have(ledger: Ledger) -> None:
    """It is refused, with two of them."""
    ledger.insert([make_call(call_id=f"01234567-{number}") for number in range(3)])
    with pytest.raises(LedgerError, match="several calls begin with '01234567', such as 01234567-0 and 01234567-1"):
        ledger.call("01234567")


def test_twenty_thousand_calls_add_up(ledger: Ledger) -> None:
    """The total, and that of each user, is the sum of the calls to the last femto-dollar, before and after a repricing."""
    rng = random.Random(4)
    costs: list[tuple[int, int | None]] = []
    for start in range(0, 20_000, 10_000):
        batch = [(rng.randrange(50), None if rng.random() < 0.01 else rng.randrange(10 ** rng.randrange(1, 18))) for _ in range(10_000)]
        calls = [
            make_call(cost, at=NOON + (start + number) * DAY // 500, call_id=f"{start + number}", tags=Tags(user_id=f"u_{user}"))
            for number, (user, cost) in enumerate(batch)
        ]
        ledger.insert(calls)
        costs += batch
    for (total,) in (ledger.spend(), ledger.spend(where={"session_id": None})):
        assert total.cost_femto == sum(cost for _, cost in costs if cost is not None)
        assert total.unpriced_calls == sum(cost is None for _, cost in costs)
    by_user = {row.dimensions["user_id"]: row.cost_femto for row in ledger.spend(["user_id"])}
    assert by_user == {f"u_{user}": sum(cost for one, cost in costs if one == user and cost is not None) for user in range(50)}
    original = ledger.spend()
    some = list(ledger.calls(where={"user_id": "u_7"}))
    assert ledger.reprice([(call, priced(call, rng.randrange(10**15))) for call in some]) == len(some)
    assert ledger.spend()[0].cost_femto == sum(call.cost_femto for call in ledger.calls() if call.cost_femto is not None)
    assert ledger.spend(as_priced=True) == original
