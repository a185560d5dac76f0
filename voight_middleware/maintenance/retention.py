"""Retention: delete calls older than a limit."""

from __future__ import annotations

from collections.abc import Callable

from voight_middleware.ledger import Expired, Ledger

BATCH = 5_000
"""The number of calls to delete in one transaction."""


def retain(
    ledger: Ledger, until: int, *, dry_run: bool = False, done: Callable[[int], None] | None = None
) -> Expired:
    """
    Delete the calls from before *until*, a batch in each transaction. Return the number of deleted
    records.

    Args:
        ledger: The ledger with the calls.
        until: The first moment to keep, in microseconds since 1970, UTC.
        dry_run: Only count.
        done: Called with the number of calls of each batch.

    Raises:
        LedgerError: The ledger cannot be written. A second run continues.
    """
    if dry_run:
        return ledger.expired(until)
    total = Expired()
    while True:
        batch = ledger.expire(until, BATCH)
        total = Expired(
            total.calls + batch.calls,
            total.former_prices + batch.former_prices,
            total.submissions + batch.submissions,
        )
        if done is not None:
            done(batch.calls)
        if batch.calls < BATCH:
            return total
