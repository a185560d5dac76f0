"""Find one call in a ledger by its id and time."""

from __future__ import annotations

from voight_middleware.ledger import Ledger, Window
from voight_middleware.records.call import Call

_ALIKE = 20


def find_call(ledger: Ledger, call_id: str, occurred_at: int) -> Call | None:
    """
    Return the call with this id and time, in microseconds since 1970 UTC, which every engine is
    ordered by.

    Ten thousand imported calls may have the same time. This reads a few at a time, beginning at
    similar ids. A small page needs no extra connection in any engine.
    """
    window, before = Window(occurred_at, occurred_at + 1), call_id[:-1]
    while True:
        alike = list(ledger.calls(window=window, limit=_ALIKE, after=(occurred_at, before)))
        for call in alike:
            if call.call_id == call_id:
                return call
        if len(alike) < _ALIKE or alike[-1].call_id > call_id:
            return None
        before = alike[-1].call_id
