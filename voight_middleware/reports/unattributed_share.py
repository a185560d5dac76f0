"""The share of calls and costs without a user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from decimal import Decimal

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.ledger.base import Groups
from voight_middleware.ledger.groups import add_up
from voight_middleware.reports.spend import ratio


@dataclass(frozen=True, slots=True)
class Unattributed:
    """The calls without a ``user_id``, and all calls."""

    unowned: Spend
    total: Spend

    @property
    def share_of_calls(self) -> Decimal | None:
        """The share of calls, from 0 to 1; None without calls."""
        return ratio(self.unowned.calls, self.total.calls)

    @property
    def share_of_spend(self) -> Decimal | None:
        """The share of the priced total, from 0 to 1; None if nothing is priced."""
        return ratio(self.unowned.cost_femto or 0, self.total.cost_femto)


def unattributed_share(
    ledger: Ledger,
    where: Where | None = None,
    window: Window = Window(),
    *,
    original_prices: bool = False,
    zone: tzinfo | None = None,
) -> Unattributed:
    """
    Return the calls without a user, and all calls.

    Raises:
        UnknownDimension: A name in *where* is neither a dimension nor an extra key of any call.
        LedgerError: The ledger cannot be read.
    """
    total = add_up(ledger.spend((), where, window, original_prices=original_prices, zone=zone))
    return unattributed_beside(
        ledger, total, (), where, window, original_prices=original_prices, zone=zone
    ) or Unattributed(Spend(), total)


def unattributed_beside(
    ledger: Ledger,
    total: Spend,
    groups: Sequence[Spend],
    where: Where | None = None,
    window: Window = Window(),
    *,
    original_prices: bool = False,
    zone: tzinfo | None = None,
) -> Unattributed | None:
    """
    Return the calls without a user for the total of a report.

    None if the filters select users. If the *groups* have the dimension ``user_id``, they contain
    these calls, and the ledger is not queried.

    Raises:
        LedgerError: The ledger cannot be read.
    """

    def without() -> list[Spend]:
        if groups and "user_id" in groups[0].dimensions:
            return [group for group in groups if group.dimensions["user_id"] is None]
        only = {**(where or {}), "user_id": None}
        return ledger.spend((), only, window, original_prices=original_prices, zone=zone)

    return _beside(total, where or {}, without)


def unattributed_among(
    groups: Groups, total: Spend, where: Where | None = None
) -> Unattributed | None:
    """
    Return the calls without a user among the groups of a report, and their *total*. None if the
    filters select users.

    Raises:
        LedgerError: The ledger cannot be read.
    """
    return _beside(total, where or {}, lambda: groups.within((), without="user_id"))


def _beside(
    total: Spend, where: Where, without: Callable[[], Sequence[Spend]]
) -> Unattributed | None:
    if "user_id!" in where:
        return None
    if "user_id" in where:
        return None if where["user_id"] is not None else Unattributed(total, total)
    return Unattributed(add_up(without()), total)
