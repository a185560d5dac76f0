"""User: the costs of one user by day, model and route, and their last calls."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.ledger.base import literal
from voight_middleware.ledger.groups import add_up
from voight_middleware.records.call import Call

PARTS = ("plan", "tenant_id", "model", "route", "release")


@dataclass(frozen=True, slots=True)
class UserReport:
    """One user."""

    user_id: str
    window: Window
    total: Spend
    days: tuple[Spend, ...]
    """Each day with calls, the oldest first."""
    parts: Mapping[str, tuple[Spend, ...]]
    """By each of ``PARTS``, the most expensive first."""
    last: tuple[Call, ...]
    """The last calls, the newest first."""
    original_prices: bool = False


def user(
    ledger: Ledger,
    user_id: str,
    where: Where | None = None,
    window: Window = Window(),
    *,
    known_as: Sequence[str] = (),
    last: int = 10,
    original_prices: bool = False,
    zone: tzinfo | None = None,
) -> UserReport:
    """
    Return the costs and the last calls of a user.

    Args:
        ledger: The ledger to read.
        user_id: The user; a star in it stands for itself.
        known_as: Other names of the user in the ledger, such as pseudonyms.
        where: Filters, without ``user_id``: ``*`` stands for any text, None for calls without a
            value.
        window: The time of the calls.
        last: The number of the last calls.
        original_prices: Whether each call counts with its first price, before any repricing.
        zone: The time zone of days; None means UTC.

    Raises:
        UnknownDimension: A name in *where* is neither a dimension nor an extra key of any call.
        LedgerError: The ledger cannot be read.
    """
    ids = tuple(dict.fromkeys((user_id, *known_as)))
    where = {**(where or {}), "user_id": tuple(map(literal, ids))}
    # One query for all parts: a user has few calls, and each query reads all of them.
    groups = ledger.spend(
        ("day", *PARTS), where, window, original_prices=original_prices, zone=zone
    )
    days = sorted(_by("day", groups), key=lambda day: str(day.dimensions["day"]))
    calls: deque[Call] = deque(maxlen=last)
    if days and last:
        seen, first = 0, days[-1].dimensions["day"]
        for day in reversed(days):
            seen, first = seen + day.calls, day.dimensions["day"]
            if seen >= last:
                break
        for day in days:
            if str(day.dimensions["day"]) >= str(first):
                of_day = {**where, "day": day.dimensions["day"]}
                calls.extend(
                    ledger.calls(of_day, window, original_prices=original_prices, zone=zone)
                )
    return UserReport(
        user_id=user_id,
        window=window,
        total=add_up(groups),
        days=tuple(days),
        parts={name: tuple(_by(name, groups)) for name in PARTS},
        last=tuple(reversed(calls)),
        original_prices=original_prices,
    )


def _by(name: str, groups: list[Spend]) -> list[Spend]:
    parts: dict[str | None, list[Spend]] = {}
    for group in groups:
        parts.setdefault(group.dimensions[name], []).append(group)
    rows = [_with(name, value, add_up(of_value)) for value, of_value in parts.items()]
    return sorted(
        rows,
        key=lambda row: (
            row.cost_femto is None,
            -(row.cost_femto or 0),
            -row.calls,
            row.dimensions[name] or "",
        ),
    )


def _with(name: str, value: str | None, total: Spend) -> Spend:
    return Spend(
        {name: value},
        total.calls,
        total.input_tokens,
        total.cache_read_tokens,
        total.cache_write_tokens,
        total.output_tokens,
        total.cost_femto,
        total.unpriced_calls,
        total.partial_calls,
        total.estimated_calls,
        total.errors,
    )
