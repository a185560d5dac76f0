"""
Whether a ledger of a million random calls adds up to the last femto-dollar, before and after a
repricing, and how long that takes.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from voight_middleware.ledger import open_ledger
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage

BATCH = 500
USERS = 5_000


def random_calls(count: int, seed: int) -> Iterator[Call]:
    """
    Calls that cost anything from a femto-dollar to a thousand dollars, one in a hundred of them
    without a price.
    """
    rng = random.Random(seed)
    for number in range(count):
        cost = None if rng.random() < 0.01 else rng.randrange(10 ** rng.randrange(1, 19))
        yield Call(
            call_id=f"{number:032x}",
            occurred_at=1_793_534_400_000_000 + number,
            provider="openai",
            endpoint="chat",
            model="gpt-5-nano",
            tags=Tags(user_id=f"u_{rng.randrange(USERS)}"),
            usage=Usage(input=rng.randrange(10_000), output=rng.randrange(1_000)),
            cost_femto=cost,
            cost_status="unpriced" if cost is None else "priced",
        )


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long the block took."""
    begin = time.perf_counter()
    yield
    print(f"{what:<44} {time.perf_counter() - begin:8.2f} s")


def pages(ledger: Any) -> Iterator[list[Call]]:
    """All calls of a ledger, in batches."""
    after = None
    while page := list(ledger.calls({}, limit=BATCH, after=after)):
        after = page[-1].occurred_at, page[-1].call_id
        yield page


def doubled(call: Call) -> Call:
    """A call of the seventh part, at twice its price and a femto-dollar."""
    return Call(
        **{name: getattr(call, name) for name in Call.__struct_fields__}
        | {"cost_femto": 2 * (call.cost_femto or 0) + 1}
    )


def main() -> int:
    """Answers 0 where every sum is exact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=4)
    args = parser.parse_args()
    wrong = 0

    def check(what: str, found: Any, expected: Any) -> None:
        nonlocal wrong
        wrong += found != expected
        print(f"{what:<44} {'exact' if found == expected else f'WRONG: {found} is not {expected}'}")

    with (
        tempfile.TemporaryDirectory() as folder,
        closing(open_ledger(str(Path(folder) / "ledger.db"))) as ledger,
    ):
        expected, by_user, batch = 0, dict[str | None, int](), list[Call]()
        with timed(f"insert {args.calls:,} calls"):
            for call in random_calls(args.calls, args.seed):
                if call.cost_femto is not None:
                    expected += call.cost_femto
                    by_user[call.tags.user_id] = by_user.get(call.tags.user_id, 0) + call.cost_femto
                batch.append(call)
                if len(batch) == BATCH:
                    ledger.insert(batch)
                    batch = []
            ledger.insert(batch)
        with timed("spend()"):
            original = ledger.spend()
        with timed("spend() by user"):
            users = {row.dimensions["user_id"]: row.cost_femto for row in ledger.spend(["user_id"])}
        check("total", original[0].cost_femto, expected)
        check(
            "of every user",
            {user: cost for user, cost in users.items() if cost is not None},
            by_user,
        )
        with timed("reprice every seventh call"):
            for page in pages(ledger):
                changes = [
                    (call, doubled(call))
                    for call in page
                    if call.cost_femto is not None and call.occurred_at % 7 == 0
                ]
                ledger.reprice(changes)
                expected += sum(
                    after.cost_femto - (before.cost_femto or 0)
                    for before, after in changes
                    if after.cost_femto is not None
                )
        with timed("spend() after it"):
            now = ledger.spend()
        with timed("spend(original_prices=True)"):
            then = ledger.spend(original_prices=True)
        check("total after it", now[0].cost_femto, expected)
        check("total as priced", then, original)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
