"""Unowned: how much of the bill has no user."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.reports.spend import add_up, ratio


@dataclass(frozen=True, slots=True)
class Unowned:
    """The calls without a ``user_id``, beside all calls."""

    unowned: Spend
    total: Spend

    @property
    def share_of_calls(self) -> Decimal | None:
        """From 0 to 1; None where there are no calls."""
        return ratio(self.unowned.calls, self.total.calls)

    @property
    def share_of_spend(self) -> Decimal | None:
        """Of the priced total, from 0 to 1; None where nothing is priced."""
        return ratio(self.unowned.cost_femto or 0, self.total.cost_femto)


def unowned(ledger: Ledger, where: Where | None = None, window: Window = Window(), *, as_priced: bool = False) -> Unowned:
    """
    What the calls without a user cost, and their share; with *as_priced*, by the price that each was given first.

    Raises:
        UnknownDimension: A name in *where* is no dimension, and no extra key of any call.
        LedgerError: The ledger cannot be read.
    """
    users = ledger.spend(("user_id",), where, window, as_priced=as_priced)
    return Unowned(add_up([group for group in users if group.dimensions["user_id"] is None]), add_up(users))
