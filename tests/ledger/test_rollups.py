"""Rollups answer what the calls would answer, whatever has happened to the calls, and are used only where they can."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voight_middleware.ledger import Where, Window, rollups
from voight_middleware.ledger.sqlite import SQLiteLedger
from voight_middleware.records.call import Call, LateAttribution, Submission
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage

from ..support.depth import times
from ..support.patching import Patch

START = int(datetime(2026, 10, 30, tzinfo=UTC).timestamp()) * 1_000_000
DAY = 24 * 3600 * 1_000_000
QUESTIONS: list[tuple[tuple[str, ...], Where]] = [
    ((), {}),
    (("user_id",), {}),
    (("user_id", "plan"), {"tenant_id": "t_1"}),
    (("month", "tenant_id"), {"plan": "p*"}),
    (("plan",), {"plan": None}),
    (("plan", "user_id", "month"), {"user_id": "u*"}),
    (("day",), {}),
    (("day", "model", "plan"), {"route": "GET /"}),
    (("month", "attribution"), {"day": "2026-11-01"}),
    (("route",), {"user_id": None}),
    (("release", "provider", "endpoint"), {"month": "2026-1*"}),
    (("hour",), {"plan": "pro"}),
    (("hour", "model"), {"user_id": None}),
    (("user_id", "day"), {"release": "a"}),
    (("day", "release"), {"user_id": "u_1"}),
    (("plan",), {"user_id": ("u_1", "x")}),
    ((), {"user_id": ("u_2", "u_1.....*"), "day": "2026-11-02"}),
    (("hour", "cost_status"), {"release": "a"}),
    (("model", "cost_status"), {"user_id": "u_1"}),
    (("user_id", "model"), {"release": ("a", None), "cost_status": "priced"}),
    (("cost_status", "user_id"), {"user_id": None}),
]


@contextmanager
def new_ledger() -> Generator[SQLiteLedger]:
    with tempfile.TemporaryDirectory() as folder, closing(SQLiteLedger(Path(folder) / "ledger.db")) as ledger:
        yield ledger


def whole(ledger: SQLiteLedger, by: Any, where: Any, window: Window) -> tuple[Any, Any]:
    """What a ledger answers, and what it answers without its rollups."""
    found = ledger.spend(by, where, window)
    with pytest.MonkeyPatch.context() as monkeypatch:
        Patch(monkeypatch)("plan_query", lambda by, where, window, usable, extent: ([], [(window, 1)]))
        return found, ledger.spend(by, where, window)


names = st.sampled_from([None, "a", "b"])
tags = st.builds(
    Tags,
    user_id=st.sampled_from([None, "u_1", "u_2", "x"]),
    plan=st.sampled_from([None, "pro", "free"]),
    tenant_id=st.sampled_from([None, "t_1"]),
    route=st.sampled_from([None, "GET /"]),
    release=names,
)
costs = st.none() | st.integers(0, 2**63 - 1)
counts = st.none() | st.integers(0, 10**12)
usages = st.none() | st.builds(Usage, input=counts, cache_read=counts, cache_write_5m=counts, audio_out=counts, output=counts)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    cost = draw(costs)
    return Call(
        call_id=f"call{draw(st.integers(0, 12))}",
        occurred_at=START + draw(st.integers(0, 6 * DAY)),
        provider=draw(st.sampled_from(["openai", "anthropic"])),
        endpoint="chat",
        model=draw(names),
        tags=draw(tags),
        attribution=draw(st.sampled_from(["tag", "none", "error", "request"])),
        job=draw(st.sampled_from([None, "openai/batch_1", "openai/batch_1/a"])),
        raw_usage=draw(st.sampled_from([None, "{}"])),
        usage=draw(usages),
        outcome=draw(st.sampled_from(["ok", "error"])),
        estimated_output=draw(st.sampled_from([None, 3])),
        cost_femto=cost,
        cost_status="unpriced" if cost is None else draw(st.sampled_from(["priced", "partial"])),
    )


settlements = st.builds(
    LateAttribution,
    call_ids=st.lists(st.integers(0, 12).map("call{}".format), max_size=3).map(tuple),
    tags=tags,
    attribution=st.just("settled"),
)
submissions = st.builds(Submission, job=st.just("openai/batch_1"), submitted_at=st.just(1), tags=tags, attribution=st.just("tag"))
repricings = st.tuples(st.just("reprice"), costs)
steps = st.lists(st.one_of(calls(), calls(), calls(), settlements, submissions, repricings), min_size=1, max_size=12)


@pytest.mark.slow
@settings(max_examples=times(20, 500))
@given(steps, st.integers(-1, 7 * DAY), st.integers(-1, 7 * DAY))
def test_rollups_say_what_the_calls_say(steps: list[Any], since: int, until: int) -> None:
    """After new calls, calls told of again, late owners, late submissions and other prices, in any order, over any window."""
    low, high = sorted((since, until))
    windows = [Window(), Window(START + low if low >= 0 else None, START + high + 1 if high >= 0 else None)]
    with new_ledger() as ledger:
        for step in steps:
            if isinstance(step, tuple):
                cost = step[1]
                status = "unpriced" if cost is None else "priced"
                ledger.reprice(
                    [(call, msgspec.structs.replace(call, cost_femto=cost, cost_status=status)) for call in list(ledger.calls())[:2]]
                )
            else:
                ledger.insert([step])
        for by, where in QUESTIONS:
            for window in windows:
                found, expected = whole(ledger, by, where, window)
                assert found == expected, (by, where, window)
        empty = [f"SELECT COUNT(*) FROM {rollup.table} WHERE calls <= 0" for rollup in rollups.ROLLUPS]
        assert [ledger._db.execute(query).fetchone()[0] for query in empty] == [0] * len(rollups.ROLLUPS)


def test_every_question_above_is_answered_by_a_rollup() -> None:
    """The test above is about rollups: none of its questions goes to the calls."""
    for by, where in QUESTIONS:
        parts, rest = rollups.plan_query(by, where, Window())
        assert parts
        assert not rest


@pytest.mark.parametrize(
    ("by", "where", "window"),
    [
        (("session_id",), {}, Window()),
        (("user_id", "hour"), {}, Window()),
        (("user_id", "route"), {}, Window()),
        (("hour", "route"), {}, Window()),
        (("route",), {"user_id": "u_1"}, Window()),
        (("model", "plan"), {"user_id": "u*"}, Window()),
        (("feature",), {}, Window()),
        ((), {}, Window(START + 5, START + DAY // 60)),
        (("user_id",), {}, Window(START + 5, START + DAY // 3)),
    ],
    ids=[
        "session",
        "user and hour",
        "user and route",
        "hour and route",
        "route of a user",
        "model and plan of users",
        "extra key",
        "part of an hour",
        "part of a day",
    ],
)
def test_what_no_rollup_knows_is_asked_of_the_calls(by: Any, where: Any, window: Window) -> None:
    """A dimension that no rollup has, and a window without a whole bucket."""
    assert rollups.plan_query(by, where, window) == ([], [(window, 1)])


def test_rollups_can_be_built_anew() -> None:
    """Whatever has become of them: the calls are the truth."""
    with new_ledger() as ledger:
        ledger.insert(
            [
                Call(call_id=f"c{day}", occurred_at=START + day * DAY, provider="openai", endpoint="chat", tags=Tags(user_id="u"))
                for day in range(5)
            ]
        )
        before = ledger.spend(["user_id", "month"]), ledger.spend(["day"])
        ledger._db.execute("UPDATE months_of_users SET calls = 7")
        ledger._db.execute("DELETE FROM days_of_models")
        ledger._db.execute("UPDATE days_of_users SET day = replace(day, '2026', '2031'), calls = 4")
        ledger._db.execute("UPDATE hours_of_plans SET hour = hour + 100000, calls = 4")
        assert (ledger.spend(["user_id", "month"]), ledger.spend(["day"])) != before
        assert list(ledger.rebuild()) == ["2026-10", "2026-11"]
        assert (ledger.spend(["user_id", "month"]), ledger.spend(["day"])) == before
        assert [row.calls for row in ledger.spend(["hour"])] == [row.calls for row in ledger.spend(["user_id", "day"])] == [1] * 5
