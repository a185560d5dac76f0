"""What every ledger does: whatever dimensions and filters a question has, it answers what the calls say, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from voight_middleware.ledger import DIMENSIONS, Ledger, UnknownDimension, Where, Window
from voight_middleware.records.call import Call, new_call_id
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage

from ..support.depth import times
from ..support.factories import DAY, DEAREST, HOUR, NOON, SECOND, make_call, texts
from . import oracle
from .oracle import some

Opened = Callable[..., Ledger]
few = settings(max_examples=times(6, 100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
"""One ledger for all examples of a test: their calls are of a tenant of their own."""


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
        "week": "2026-10-26",
        "month": "2026-11",
    }
    for name, value in row.dimensions.items():
        assert ledger.spend(where={name: value})[0].calls == 1
        assert ledger.spend(where={name: (f"{value}?", None)})[0].calls == 0


def varied(count: int = times(200, 400), seed: int = 5) -> list[Call]:
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


@pytest.mark.slow
def test_dimensions_alone_and_in_pairs(ledger: Ledger) -> None:
    """Whatever two dimensions a question has, extra keys among them: rows and order are those of the calls."""
    kept = varied()
    ledger.insert(kept)
    names = (*DIMENSIONS, "feature", "a.b-c")
    for size in (0, 1, 2):
        for by in some(ledger, combinations(names, size), 1 / 8):
            assert ledger.spend(by) == oracle.spend(kept, by), by
    for by in some(ledger, (names, ("plan", "user_id", "month"), ("day", "model", "feature", "outcome"), DIMENSIONS[:7]), 2):
        assert ledger.spend(by) == oracle.spend(kept, by), by


@pytest.mark.slow
def test_filters_and_windows_on_everything(ledger: Ledger) -> None:
    """Whatever a question is about: one value, several, any, none, of each dimension, within windows that cut days, hours and months."""
    kept = varied()
    ledger.insert(kept)
    rng = random.Random(2)
    for name in (*DIMENSIONS, "feature", "a.b-c"):
        there = sorted({found for call in kept if (found := oracle.value(call, name)) is not None})
        values = [there[0], None, f"{there[-1][:1]}*", "*", tuple(there[:2]), (*there[:1], "*brien", "x"), (), "none such"]
        for wanted in some(ledger, rng.sample(values, len(values)), 1):
            where: Where = {name: wanted}
            by = rng.choice([(), ("user_id",), ("plan", "day"), ("session_id",)])
            assert ledger.spend(by, where) == oracle.spend(kept, by, where), (by, where)
    for _ in some(ledger, range(60), 1 / 4):
        edges = sorted(NOON + rng.randrange(-50 * DAY, 50 * DAY) // (step := rng.choice([1, SECOND, HOUR, DAY])) * step for _ in range(2))
        window = Window(*(rng.choice([None, edge, edge]) for edge in edges))
        found: list[Any] = ["a", None, "o'*", ("a", "b")]
        where = rng.choice([{}, {one: rng.choice(found) for one in rng.sample(["user_id", "plan", "route", "release"], 2)}])
        names = tuple(rng.sample([*DIMENSIONS, "feature"], rng.randrange(3)))
        assert ledger.spend(names, where, window) == oracle.spend(kept, names, where, window), (names, where, window)
        ids = [call.call_id for call in ledger.calls(where, window)]
        assert ids == [call.call_id for call in oracle.chosen(kept, where, window)], (where, window)


def test_all_but_some_values(ledger: Ledger) -> None:
    """With ``!`` calls are found that have none of the values: one, several, a pattern, no value."""
    kept = varied(80)
    ledger.insert(kept)
    unwanted: tuple[Any, ...] = ("a", None, "o'*", ("a", "b"), ("a", None), ("o'*", "b"), "none such")
    for value in some(ledger, unwanted, 1 / 2):
        for where in ({"plan!": value}, {"user_id!": value, "plan": "a"}, {"user_id!": value, "user_id": ("a", "b")}):
            assert ledger.spend(["plan"], where) == oracle.spend(kept, ["plan"], where), where
            ids = [call.call_id for call in ledger.calls(where)]
            assert ids == [call.call_id for call in oracle.chosen(kept, where)], where
    with pytest.raises(UnknownDimension):
        ledger.spend((), {"nothing!": "x"})


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_patterns(ledger: Ledger) -> None:
    """A filter is exact and minds case; a star stands for any text, and nothing else is special."""
    kept = [make_call(1, model=model, tags=Tags(user_id=model, extra={} if model is None else {"k": model})) for model in MODELS]
    ledger.insert(kept)
    for number, pattern in enumerate(some(ledger, PATTERNS, 1 / 2)):
        names = ("model", "user_id", "k")
        for name in some(ledger, (*names[number % 3 :], *names), 1):
            assert ledger.spend([name], {name: pattern}) == oracle.spend(kept, [name], {name: pattern}), (name, pattern)
        assert list(ledger.calls({"model": pattern})) == oracle.chosen(kept, {"model": pattern})


ODD_VALUES = (
    "'; DROP TABLE calls; --",
    '" OR 1=1',
    "u\x1bv",
    "zoë 🦔 \u202e",
    "%",
    "\\",
    "\\'",
    "?",
    "%s",
    "$1",
    "{v:String}",
    ":v",
    "x" * 9_999,
)


def test_values_are_only_ever_values(ledger: Ledger) -> None:
    """No user id, however odd, changes a question or gets lost in it."""
    ledger.insert([make_call(tags=Tags(user_id=value, extra={"feature": value})) for value in (*ODD_VALUES, "other")])
    for value in ODD_VALUES:
        (row,) = ledger.spend(["feature"], {"user_id": value})
        assert (row.dimensions, row.calls) == ({"feature": value}, 1)
        assert ledger.spend(where={"feature": value, "user_id": ("no one", value)})[0].calls == 1
        assert ledger.spend(where={"day": value})[0].calls == 0
        assert ledger.personal_data([value]).calls == 1
        assert ledger.call(value) is None
        assert ledger.price_history(value) == []
        assert ledger.progress(value) == 0
    assert ledger.spend()[0].calls == len(ODD_VALUES) + 1


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


SPECIAL_KEYS = ('odd"key', "back\\slash", "a'b", "a`b", "a\nb", "%s", "{x:String}", "?", "$1")


def test_keys_with_special_signs(ledger: Ledger) -> None:
    """Such a key of a tag is kept; whether a question can name it is the engine's matter: the right answer or none."""
    calls = {key: make_call(5, tags=Tags(extra={key: "v", "feature": "x"})) for key in SPECIAL_KEYS}
    ledger.insert([*calls.values(), make_call(3)])
    for key, call in calls.items():
        assert ledger.call(call.call_id) == call
        try:
            rows = ledger.spend([key])
        except UnknownDimension:
            continue
        assert [(row.dimensions[key], row.cost_femto) for row in rows] == [(None, 3 + 5 * (len(calls) - 1)), ("v", 5)]
        assert ledger.spend(where={key: "v"})[0].cost_femto == 5
