"""
Repricing: price the calls in the ledger with today's price book.

It reads the ledger in time order and writes each batch in a transaction of its own, while
applications keep writing. Calls with an unchanged price are skipped, so that a second run completes
an interrupted one.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field

from voight_middleware.ledger import Ledger, Where, Window
from voight_middleware.ledger.rows import within_range
from voight_middleware.pricing import PriceBook
from voight_middleware.pricing.price_call import price_call
from voight_middleware.records.call import Call

BATCH = 500
"""How many calls are read and repriced at once."""
OWN_RULE = '"id":"override-'
"""The mark of the user's own rules in the provenance of a price."""


@dataclass(slots=True)
class Difference:
    """
    Calls before and after a repricing. Money is in femto-dollars (1e-15 USD), None if nothing is
    priced.
    """

    user_id: str | None = None
    model: str | None = None
    calls: int = 0
    changed: int = 0
    before_femto: int | None = None
    after_femto: int | None = None
    unpriced_before: int = 0
    unpriced_after: int = 0
    partial_before: int = 0
    partial_after: int = 0

    @property
    def difference_femto(self) -> int:
        """The increase of the cost. Unpriced calls count as 0."""
        return (self.after_femto or 0) - (self.before_femto or 0)

    def add(self, before: Call, after: Call) -> None:
        """Count one call."""
        self.calls += 1
        self.changed += before is not after
        self.before_femto = _sum(self.before_femto, before.cost_femto)
        self.after_femto = _sum(self.after_femto, after.cost_femto)
        self.unpriced_before += before.cost_status == "unpriced"
        self.unpriced_after += after.cost_status == "unpriced"
        self.partial_before += before.cost_status == "partial"
        self.partial_after += after.cost_status == "partial"


@dataclass(slots=True)
class Repricing:
    """The result of a repricing."""

    window: Window
    dry_run: bool
    total: Difference = field(default_factory=Difference)
    groups: dict[tuple[str | None, str | None], Difference] = field(default_factory=dict)
    """All calls read, by user and model."""
    written: int = 0
    """Calls with a new price version. Fewer than changed if another process was faster."""
    priced_by_own: int = 0
    """Calls with the user's own prices, which the current book lacks. They keep their price."""
    passed_over: int = 0
    """Calls that cannot be priced again: open jobs, and usage without the provider's own report."""

    @property
    def rows(self) -> list[Difference]:
        """The groups with changed calls, the largest difference first, in either direction."""
        changed = [group for group in self.groups.values() if group.changed]
        return sorted(
            changed,
            key=lambda row: (
                -abs(row.difference_femto),
                -row.changed,
                row.user_id or "",
                row.model or "",
            ),
        )


def reprice(
    ledger: Ledger,
    book: PriceBook,
    where: Where | None = None,
    window: Window = Window(),
    dry_run: bool = False,
) -> Repricing:
    """
    Price calls again. Unless *dry_run*, store changed prices in the ledger as the newest ones.

    Raises:
        UnknownDimension: A name in *where* is neither a dimension nor an extra key of any call.
        LedgerError: The ledger cannot be read or written. Completed work stays, and another run
            continues.
    """
    report = Repricing(window, dry_run)
    last: tuple[int, str] | None = None
    while batch := list(ledger.calls(where, window, BATCH, after=last)):
        last = batch[-1].occurred_at, batch[-1].call_id
        changes = []
        for before in batch:
            after = repriced(before, book)
            if (
                after is not None
                and after is not before
                and not book.has_own
                and OWN_RULE in (before.price or "")
            ):
                report.priced_by_own += 1
                after = before
            if after is None:
                report.passed_over += 1
                after = before
            elif after is not before:
                changes.append((before, after))
            report.total.add(before, after)
            key = before.tags.user_id, before.model or before.requested_model
            report.groups.setdefault(key, Difference(*key)).add(before, after)
        if not dry_run:
            report.written += ledger.reprice(changes)
    return report


def repriced(call: Call, book: PriceBook) -> Call | None:
    """
    Return *call* priced by *book*. Return *call* itself if nothing changes, and None if it cannot
    be priced again.

    The stored report of the provider is priced, with the counts added and estimated then.
    """
    counted = call.usage is not None or call.components
    if (
        call.raw_usage is None
        and not call.estimated
        and not call.tool_calls
        and (call.job is not None or counted)
    ):
        return None
    priced = copy(call)
    price_call(priced, book)
    priced = within_range(priced)
    return call if _figures(priced) == _figures(call) else priced


def _figures(call: Call) -> tuple[object, ...]:
    return call.cost_femto, call.list_femto, call.cost_status, call.cost_reasons


def _sum(total: int | None, cost: int | None) -> int | None:
    return total if cost is None else cost + (total or 0)
