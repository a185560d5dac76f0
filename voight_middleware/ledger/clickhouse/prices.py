"""
Prices in a ClickHouse ledger: the newest in the call, earlier ones in another table, which is
written first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from voight_middleware.ledger.base import PriceVersion
from voight_middleware.ledger.clickhouse import changes
from voight_middleware.ledger.clickhouse.database import Database
from voight_middleware.ledger.clickhouse.dialect import literal
from voight_middleware.ledger.clickhouse.schema import (
    FORMER,
    INSERTED_FORMER,
    checked,
    femto,
    former_price,
    last_wins,
    now,
    usd,
)
from voight_middleware.ledger.rows import (
    COUNTED,
    FIGURES,
    SELECTED,
    decode_reasons,
    encode,
    reasons_text,
    within_range,
)
from voight_middleware.records.call import Call

if TYPE_CHECKING:
    from voight_middleware.ledger.clickhouse.writer import Writer

_STATE = "sipHash64(toString((raw_usage, cost, list_cost, cost_status, cost_reasons)))"
"""A hash that shows whether a call has changed since it was read."""
_REPRICED = tuple((SELECTED.index(name), name) for name in (*COUNTED, *FIGURES))


def reprice(db: Database, wanted: Sequence[tuple[Call, Call]]) -> int:
    """See ``Ledger.reprice``."""
    left = [(before, within_range(after)) for before, after in wanted]
    left = [(before, after) for before, after in left if _read(before)[1:] != _read(after)[1:]]
    for _, after in left:
        checked(after)
    count = 0
    while left:  # a second change of the same call waits for the first one
        round_: dict[str, tuple[Call, Call]] = {}
        later = []
        for change in left:
            if change[0].call_id in round_:
                later.append(change)
            else:
                round_[change[0].call_id] = change
        count += _reprice(db, round_)
        left = later
    return count


def _reprice(db: Database, wanted: Mapping[str, tuple[Call, Call]]) -> int:
    query = (
        "SELECT call_id, raw_usage, cost, list_cost, cost_status, cost_reasons, price, "
        f"occurred_at, {_STATE} "
        f"FROM {db.name}.calls FINAL WHERE"
    )
    matching = {}
    for call_id, raw, cost, list_cost, *rest in db.about(wanted, query):
        read = (raw, femto(cost), femto(list_cost), *rest)
        if read[:5] == _read(wanted[call_id][0]):
            matching[call_id] = read
    if not matching:
        return 0
    db.days.changing(read[-2] for read in matching.values())
    at = now()
    histories = _before(db, {call_id: read[-1] for call_id, read in matching.items()})
    numbers = {call_id: len(prices) + 1 for call_id, prices in histories.items()}
    lines = []
    for call_id, (
        _,
        cost_femto,
        list_femto,
        status,
        reasons,
        price,
        occurred_at,
        state,
    ) in matching.items():
        last = PriceVersion(
            numbers.get(call_id, 1),
            cost_femto,
            list_femto,
            status,
            decode_reasons(reasons or "[]"),
            price,
            at,
        )
        lines.append(_line(call_id, last, occurred_at, state))
    db.add("former_costs", INSERTED_FORMER, lines)
    rows = {
        call_id: (checked(before), checked(after))
        for call_id, (before, after) in wanted.items()
        if call_id in matching
    }
    differing = [
        (index, name)
        for index, name in _REPRICED
        if any(old[index] != new[index] for old, new in rows.values())
    ]
    for piece in changes.pieces(list(rows)):
        states = (
            f"transform(call_id, {literal(piece)}, "
            f"{literal([matching[call_id][-1] for call_id in piece])}, toUInt64(0))"
        )
        values = {
            call_id: {name: rows[call_id][1][index] for index, name in differing}
            for call_id in piece
        }
        db.change(changes.values(values, f"{_STATE} = {states}"))
    query = (
        "SELECT call_id, raw_usage, cost, list_cost, cost_status, cost_reasons FROM "
        f"{db.name}.calls FINAL WHERE"
    )
    figures_now = (
        (call_id, (raw, femto(cost), femto(list_cost), *rest))
        for call_id, raw, cost, list_cost, *rest in db.about(rows, query)
    )
    return sum(figures == _read(wanted[call_id][1]) for call_id, figures in figures_now)


def price_histories(db: Database, call_ids: Collection[str]) -> dict[str, list[PriceVersion]]:
    """
    See ``Ledger.price_histories``. Prices from an unfinished repricing are omitted: their call has
    not changed.
    """
    states = {
        call_id: int(state)
        for call_id, state in db.about(
            call_ids, f"SELECT call_id, {_STATE} FROM {db.name}.calls FINAL WHERE"
        )
    }
    return {call_id: prices for call_id, prices in _before(db, states).items() if prices}


def _before(db: Database, states: Mapping[str, int]) -> dict[str, list[PriceVersion]]:
    """Return the prices of calls before these states."""
    histories: dict[str, list[PriceVersion]] = {}
    newest: dict[str, int] = {}
    query = f"SELECT call_id, state, {FORMER} FROM {db.name}.former_costs FINAL WHERE"
    for call_id, state, *row in db.about(states, query, "ORDER BY call_id, number"):
        histories.setdefault(call_id, []).append(former_price(row))
        newest[call_id] = state
    for call_id, prices in histories.items():
        if newest[call_id] == states[call_id]:
            prices.pop()
    return histories


def import_calls(
    db: Database,
    writer: Writer,
    calls: Sequence[Call],
    former: Mapping[str, Sequence[PriceVersion]],
    *,
    replace: bool,
) -> int:
    """See ``Ledger.import_calls``."""
    wanted = {call.call_id: call for call in (calls if replace else reversed(calls))}
    query = f"SELECT call_id, occurred_at FROM {db.name}.calls FINAL WHERE"
    kept = {str(call_id): int(at) for call_id, at in db.about(wanted, query)}
    rows = {
        call_id: checked(call) for call_id, call in wanted.items() if replace or call_id not in kept
    }
    if replace:
        db.days.changing(kept.values())
        for table, call_ids in (("former_costs", _with_former(db, rows)), ("calls", kept)):
            for piece in changes.pieces(sorted(call_ids)):
                db.alter(table, f"DELETE WHERE call_id IN ({', '.join(map(literal, piece))})")
    writer.learn([wanted[call_id].tags.extra for call_id in rows])
    lines = [
        _line(call_id, price, wanted[call_id].occurred_at)
        for call_id in rows
        for price in former.get(call_id, ())
    ]
    db.add("former_costs", INSERTED_FORMER, lines)
    writer.add(rows, wanted)
    return len(rows)


def _with_former(db: Database, call_ids: Collection[str]) -> set[str]:
    return {
        call_id
        for (call_id,) in db.about(
            call_ids, f"SELECT DISTINCT call_id FROM {db.name}.former_costs WHERE"
        )
    }


def _line(call_id: str, price: PriceVersion, occurred_at: int, state: int = 0) -> bytes:
    """
    Return a previous price as a line of ``JSONCompactEachRow``. *state* is the call's state before
    it gets another price.
    """
    figures = (
        usd(price.cost_femto),
        usd(price.list_femto),
        price.cost_status,
        reasons_text(price.cost_reasons),
        price.price,
    )
    return encode(
        (call_id, price.version, *figures, price.replaced_at, occurred_at, state, last_wins(now()))
    )


def _read(call: Call) -> tuple[Any, ...]:
    """Return the values that identify a state of a call: its usage and its price."""
    return (
        call.raw_usage or None,
        call.cost_femto,
        call.list_femto,
        call.cost_status,
        reasons_text(call.cost_reasons),
    )
