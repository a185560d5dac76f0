"""Retention: delete calls that are older than they may become."""

from __future__ import annotations

from collections.abc import Callable

from voight_middleware.ledger import Expired, Ledger

BATCH = 5_000
"""Calls that a retention deletes in one transaction."""


def retain(ledger: Ledger, until: int, *, dry_run: bool = False, done: Callable[[int], None] | None = None) -> Expired:
    """
    Delete the calls from before *until* (microseconds since 1970, UTC), a batch in a transaction; answers what was deleted.

    Args:
        ledger: Where the calls are.
        until: The first moment that is kept.
        dry_run: Only count.
        done: Called with the number of calls of each batch.

    Raises:
        LedgerError: The ledger cannot be written; a second run goes on.
    """
    if dry_run:
        return ledger.expired(until)
    total = Expired()
    while True:
        batch = ledger.expire(until, BATCH)
        total = Expired(total.calls + batch.calls, total.former_prices + batch.former_prices, total.submissions + batch.submissions)
        if done is not None:
            done(batch.calls)
        if batch.calls < BATCH:
            return total
