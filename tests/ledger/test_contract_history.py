"""What every ledger does: whatever has happened to its calls, and in whatever order, sums say what the calls say."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from voight_middleware.ledger import Ledger
from voight_middleware.records.call import Call, LateAttribution, Submission
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage

from ..support.depth import times
from ..support.factories import DAY, DEAREST, NOON, make_call, priced
from . import oracle
from .oracle import check_sums

Opened = Callable[..., Ledger]


@pytest.mark.parametrize("seed", range(times(1, 3)))
def test_any_history(ledger: Ledger, seed: int) -> None:
    """After new calls, calls told of again, late owners, late submissions, prices, erasures and retention in any order, sums are right."""
    rng = random.Random(seed)

    def tags() -> Tags:
        some = {"user_id": [None, "u_1", "u_2", "x"], "plan": [None, "pro", "free"], "tenant_id": [None, "t"], "release": [None, "a", "b"]}
        return Tags(**{name: rng.choice(values) for name, values in some.items()}, extra=rng.choice([{}, {"k": "v"}]))

    def call() -> Call:
        return make_call(
            rng.choice([None, 0, 5, DEAREST, rng.randrange(10**12)]),
            at=NOON + rng.randrange(-3 * DAY, 3 * DAY),
            call_id=f"call{rng.randrange(40)}",
            model=rng.choice([None, "a", "b"]),
            tags=tags(),
            attribution=rng.choice(["tag", "none", "error", "request"]),
            job=rng.choice([None, "openai/batch_1", "openai/batch_1/a"]),
            raw_usage=rng.choice([None, "{}"]),
            usage=rng.choice([None, Usage(input=3, cache_read_audio=4), Usage(output=5)]),
            outcome=rng.choice(["ok", "error"]),
            estimated_output=rng.choice([None, 3]),
        )

    def names() -> tuple[str, ...]:
        return tuple(f"call{rng.randrange(40)}" for _ in range(3))

    def reprice() -> None:
        some = rng.sample(kept := list(ledger.calls()), min(5, len(kept)))
        ledger.reprice([(one, priced(one, rng.choice([None, 7, DEAREST]))) for one in some])

    steps: list[Callable[[], Any]] = [
        *[lambda: ledger.insert([call() for _ in range(rng.choice([1, 12]))])] * 4,
        lambda: ledger.insert([call(), LateAttribution(call_ids=names(), tags=tags()), call()]),
        lambda: ledger.insert([Submission(job="openai/batch_1", submitted_at=1, tags=tags(), attribution="tag")]),
        reprice,
        lambda: ledger.erase(["u_1"], f"erased:{rng.randrange(99)}"),
        lambda: ledger.expire(NOON - 2 * DAY, 3),
        lambda: ledger.import_calls([call()], replace=rng.random() < 0.5),
    ]
    ledger.insert([call() for _ in range(20)])
    for step in oracle.some(ledger, rng.choices(steps, k=12), 1 / 2):
        step()
        kept = list(ledger.calls())
        for by in oracle.some(ledger, (("user_id", "month"), ("day", "model"), ("cost_status",)), 1):
            assert ledger.spend(by) == oracle.spend(kept, by)
    check_sums(ledger)
    assert ledger.spend(["k"]) == oracle.spend(ledger.calls(), ["k"])
    assert ledger.spend(["user_id"], original_prices=True) == oracle.spend(ledger.calls(original_prices=True), ["user_id"])
