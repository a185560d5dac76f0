"""What every ledger does: it cuts times where a question says, and gives calls away one by one, in order."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import combinations
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, settings

from voight_middleware.ledger import Ledger, LedgerError, Where, Window
from voight_middleware.records.tags import Tags

from ..support.depth import times
from ..support.factories import DAY, HOUR, NOON, SECOND, make_call, priced
from . import oracle
from .oracle import some

Opened = Callable[..., Ledger]
few = settings(max_examples=times(6, 100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
"""One ledger for all examples of a test: their calls are of a tenant of their own."""


# -- times -------------------------------------------------------------------------------------------------------------------------


def test_days_are_in_utc(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call at a microsecond before midnight UTC belongs to the day that ends then, whatever the machine's time zone."""
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    midnight = NOON + 12 * HOUR
    ledger.insert([make_call(at=midnight - 1), make_call(at=midnight)])
    assert sorted(str(row.dimensions["day"]) for row in ledger.spend(["day"])) == ["2026-11-01", "2026-11-02"]


BEGINS = {"noon": NOON, "midnight": NOON - 12 * HOUR, "in a second": NOON + 7}
LENGTHS = {"microseconds": 10, "an hour": HOUR, "a month": 30 * DAY}
PAIRED = {*zip(BEGINS, LENGTHS, strict=True)}
"""In the default run; the deep one has all of them."""


@pytest.mark.parametrize(
    ("begin", "length"),
    [
        pytest.param(begin, length, id=f"{of} from {name}", marks=[] if (name, of) in PAIRED else pytest.mark.deep)
        for name, begin in BEGINS.items()
        for of, length in LENGTHS.items()
    ],
)
def test_windows_are_half_open(ledger: Ledger, begin: int, length: int) -> None:
    """A window holds its first microsecond and not its last, whatever it cuts through."""
    kept = [make_call(2**number, at=at) for number, at in enumerate((begin - 1, begin, begin + length - 1, begin + length))]
    ledger.insert(kept)
    for window, cost in ((Window(begin, begin + length), 6), (Window(begin), 14), (Window(until=begin + length), 7), (Window(), 15)):
        for by in ((), ("user_id",), ("session_id",)):
            assert ledger.spend(by, {}, window)[0].cost_femto == cost
        assert sum(call.cost_femto or 0 for call in ledger.calls(window=window)) == cost
    assert ledger.time_range() == (begin - 1, begin + length)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("America/Los_Angeles", "Asia/Kathmandu", "Australia/Lord_Howe", "UTC"),
        *(pytest.param(name, marks=pytest.mark.deep) for name in ("Europe/Berlin", "America/St_Johns", "Africa/Casablanca")),
    ],
)
def test_days_of_a_time_zone(ledger: Ledger, name: str) -> None:
    """Hours, days and months are cut as the clocks of a zone go, also in the nights in which they are changed; filters too."""
    zone = ZoneInfo(name)
    nights = [(3, 29), (10, 25), (11, 1), (4, 5), (10, 4), (2, 15), (3, 22), (3, 8), (12, 31)]
    times = [int(datetime(2026, month, day, tzinfo=UTC).timestamp()) + half * 1800 for month, day in nights for half in range(-24, 72)]
    kept = [make_call(number % 13, at=at * SECOND, tags=Tags(user_id=f"u_{number % 3}")) for number, at in enumerate(dict.fromkeys(times))]
    ledger.insert(kept)
    forms = ("hour", "day", "month")
    asked = [*((form,) for form in forms), *combinations(forms, 2), ("user_id", "day"), ("plan", "hour"), ("session_id", "month")]
    for by in some(ledger, asked):
        assert ledger.spend(by, zone=zone) == oracle.spend(kept, by, zone=zone), by
    rng = random.Random(3)
    for form in forms:
        for call in some(ledger, rng.sample(kept, 5), 1):
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
        for size in some(ledger, (3, 100, 1, 2), 2):
            pages: list[str] = []
            after = None
            while page := list(ledger.calls(where, window, size, after=after)):
                after = page[-1].occurred_at, page[-1].call_id
                pages += [call.call_id for call in page]
            assert pages == whole
    assert list(ledger.calls(limit=0)) == []


@pytest.mark.slow
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
    with pytest.raises(LedgerError, match="several call ids begin with '01234567', such as 01234567-0 and 01234567-1"):
        ledger.call("01234567")


@pytest.mark.slow
def test_thousands_of_calls_add_up(ledger: Ledger) -> None:
    """The total, and that of each user, is the sum of the calls to the last femto-dollar, before and after a repricing."""
    rng = random.Random(4)
    costs: list[tuple[int, int | None]] = []
    size = times(2_000, 10_000)
    for start in (0, size):
        batch = [(rng.randrange(50), None if rng.random() < 0.01 else rng.randrange(10 ** rng.randrange(1, 18))) for _ in range(size)]
        calls = [
            make_call(cost, at=NOON + (start + number) * 20 * DAY // size, call_id=f"{start + number}", tags=Tags(user_id=f"u_{user}"))
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
    repriced = list(ledger.calls(where={"user_id": "u_7"}))
    assert ledger.reprice([(call, priced(call, rng.randrange(10**15))) for call in repriced]) == len(repriced)
    assert ledger.spend()[0].cost_femto == sum(call.cost_femto for call in ledger.calls() if call.cost_femto is not None)
    assert ledger.spend(original_prices=True) == original
