"""Prices in a ClickHouse ledger: a new one in the call, the one before it in a table of its own, which is written first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from voight_middleware.call import Call
from voight_middleware.ledger.base import FormerPrice
from voight_middleware.ledger.clickhouse import changes
from voight_middleware.ledger.clickhouse.database import Database
from voight_middleware.ledger.clickhouse.dialect import literal
from voight_middleware.ledger.clickhouse.schema import FORMER, INSERTED_FORMER, checked, femto, former_price, last_wins, now, usd
from voight_middleware.ledger.rows import COUNTED, FIGURES, SELECTED, encode, reasons_text, within_range

if TYPE_CHECKING:
    from voight_middleware.ledger.clickhouse.intake import Intake

_STATE = "sipHash64(toString((raw_usage, cost, list_cost, cost_status, cost_reasons)))"
"""What tells whether anybody has changed a call since it was read."""
_REPRICED = tuple((SELECTED.index(name), name) for name in (*COUNTED, *FIGURES))


def reprice(db: Database, wanted: Sequence[tuple[Call, Call]]) -> int:
    """As ``Ledger.reprice``."""
    left = [(before, within_range(after)) for before, after in wanted]
    left = [(before, after) for before, after in left if _read(before)[1:] != _read(after)[1:]]
    for _, after in left:
        checked(after)
    count = 0
    while left:  # the same call again waits for what was done to it
        now_: dict[str, tuple[Call, Call]] = {}
        later = []
        for change in left:
            if change[0].call_id in now_:
                later.append(change)
            else:
                now_[change[0].call_id] = change
        count += _reprice(db, now_)
        left = later
    return count


def _reprice(db: Database, wanted: Mapping[str, tuple[Call, Call]]) -> int:
    asked = (
        f"SELECT call_id, raw_usage, cost, list_cost, cost_status, cost_reasons, price, occurred_at, {_STATE} "
        f"FROM {db.name}.calls FINAL WHERE"
    )
    found = {}
    for call_id, raw, cost, list_cost, *rest in db.about(wanted, asked):
        state = (raw, femto(cost), femto(list_cost), *rest)
        if state[:5] == _read(wanted[call_id][0]):
            found[call_id] = state
    if not found:
        return 0
    at = now()
    newest = {call_id: numbered[-1] for call_id, numbered in _numbered(db, found).items()}
    lines = []
    for call_id, (_, cost_femto, list_femto, status, reasons, price, occurred_at, _) in found.items():
        last = newest.get(call_id)
        number = 1 if last is None else last.version
        if last is not None and _figures(last) != (cost_femto, list_femto, status, reasons):
            number += 1  # otherwise it was written by a run that came no further
        figures = (usd(cost_femto), usd(list_femto), status, reasons, price)
        lines.append(encode((call_id, number, *figures, at, occurred_at, last_wins(at))))
    db.add("former_costs", INSERTED_FORMER, lines)
    rows = {call_id: (checked(before), checked(after)) for call_id, (before, after) in wanted.items() if call_id in found}
    differing = [(index, name) for index, name in _REPRICED if any(old[index] != new[index] for old, new in rows.values())]
    for piece in changes.pieces(list(rows)):
        states = f"transform(call_id, {literal(piece)}, {literal([found[call_id][-1] for call_id in piece])}, toUInt64(0))"
        values = {call_id: {name: rows[call_id][1][index] for index, name in differing} for call_id in piece}
        db.change(changes.values(values, f"{_STATE} = {states}"))
    return len(found)


def former(db: Database, call_ids: Collection[str]) -> dict[str, list[FormerPrice]]:
    """As ``Ledger.former``: without the one that a run has written that came no further, and that still is the price."""
    found = _numbered(db, call_ids)
    asked = f"SELECT call_id, cost, list_cost, cost_status, cost_reasons FROM {db.name}.calls FINAL WHERE"
    for call_id, cost, list_cost, status, reasons in db.about(found, asked):
        if _figures(found[call_id][-1]) == (femto(cost), femto(list_cost), status, reasons):
            found[call_id].pop()
    return {call_id: prices for call_id, prices in found.items() if prices}


def keep(db: Database, intake: Intake, calls: Sequence[Call], former: Mapping[str, Sequence[FormerPrice]], *, anew: bool) -> int:
    """As ``Ledger.keep``."""
    wanted = {call.call_id: call for call in (calls if anew else reversed(calls))}
    kept = {call_id for (call_id,) in db.about(wanted, f"SELECT call_id FROM {db.name}.calls FINAL WHERE")}
    rows = {call_id: checked(call) for call_id, call in wanted.items() if anew or call_id not in kept}
    if anew:
        for piece in changes.pieces(list(rows)):
            for table in ("former_costs", "calls"):
                db.alter(table, f"DELETE WHERE call_id IN ({', '.join(map(literal, piece))})")
    intake.learn([wanted[call_id].tags.extra for call_id in rows])
    version = last_wins(now())
    lines = [
        encode(
            (
                call_id,
                price.version,
                usd(price.cost_femto),
                usd(price.list_femto),
                price.cost_status,
                reasons_text(price.cost_reasons),
                price.price,
                price.replaced_at,
                wanted[call_id].occurred_at,
                version,
            )
        )
        for call_id in rows
        for price in former.get(call_id, ())
    ]
    db.add("former_costs", INSERTED_FORMER, lines)
    intake.add(rows, wanted)
    return len(rows)


def _numbered(db: Database, call_ids: Collection[str]) -> dict[str, list[FormerPrice]]:
    found: dict[str, list[FormerPrice]] = {}
    asked = f"SELECT call_id, {FORMER} FROM {db.name}.former_costs FINAL WHERE"
    for call_id, *row in db.about(call_ids, asked, "ORDER BY call_id, number"):
        found.setdefault(call_id, []).append(former_price(row))
    return found


def _read(call: Call) -> tuple[Any, ...]:
    """What a call is known by: its usage and its figures."""
    return (call.raw_usage or None, call.cost_femto, call.list_femto, call.cost_status, reasons_text(call.cost_reasons))


def _figures(price: FormerPrice) -> tuple[Any, ...]:
    return (price.cost_femto, price.list_femto, price.cost_status, reasons_text(price.cost_reasons))
