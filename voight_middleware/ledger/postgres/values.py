"""The translation between ``Call`` and the rows of a PostgreSQL ledger: lines of COPY, and JSON for its functions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from voight_middleware.ledger.base import PriceVersion
from voight_middleware.ledger.rows import COUNTED, FIGURES, SELECTED, Row, decode_reasons, extra_text, reasons_text, to_row
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Tags

_RENAMED = {"cost_femto": "cost", "list_femto": "list_cost", "price": "price_id"}


def stored(names: Iterable[str]) -> tuple[str, ...]:
    """The columns of the tables, by the names of ``rows``: costs are in dollars, and prices in a table of their own."""
    return tuple(_RENAMED.get(name, name) for name in names)


STORED = stored(SELECTED)
_COST, _LIST_COST, _PRICE, _EXTRA = (STORED.index(name) for name in ("cost", "list_cost", "price_id", "tags_extra"))
_REPLACED = stored((*COUNTED, *FIGURES))
"""What a repricing replaces."""

_encode = msgspec.json.encode
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def price_id(price: str | None) -> int | None:
    """A number of 64 bits that follows from the text: who brings calls in need not read the table of prices."""
    return None if price is None else int.from_bytes(hashlib.blake2b(price.encode(), digest_size=8).digest(), signed=True)


def dollars(femto: int | None) -> str | None:
    """US dollars as NUMERIC reads them."""
    return None if femto is None else f"{femto // 10**15}.{femto % 10**15:015d}"


def storable(value: Any) -> Any:
    """*value*; a text without NUL characters, which PostgreSQL's text cannot hold."""
    if type(value) is list:
        return [storable(item) for item in value]
    return value.replace("\0", "\ufffd") if type(value) is str and "\0" in value else value


def to_stored(call: Call) -> Row:
    """The values of ``STORED``; texts may have a NUL in them still."""
    values = list(to_row(call))
    values[_COST], values[_LIST_COST], values[_PRICE] = dollars(call.cost_femto), dollars(call.list_femto), price_id(call.price)
    if (extra := values[_EXTRA]) is not None and "\\u0000" in extra:
        values[_EXTRA] = extra_text({storable(key): storable(value) for key, value in call.tags.extra.items()})
    return tuple(values)


def copied(rows: Iterable[Row]) -> bytes:
    """Rows as the text that COPY reads."""
    return "\n".join([*map(_line, rows), ""]).replace("\0", "\ufffd").encode()


def _line(row: Row) -> str:
    line = "\t".join(["\\N" if value is None else value if type(value) is str else str(value) for value in row])
    if line.count("\\") == row.count(None) and line.count("\t") == len(row) - 1 and "\n" not in line and "\r" not in line:
        return line
    return "\t".join(["\\N" if value is None else str(value).translate(_ESCAPES) for value in row])


def calls_json(rows: Iterable[Row]) -> str:
    """Calls as JSON, for ``jsonb_populate_recordset``."""
    return _encode([_object(row) for row in rows]).decode()


def _object(row: Row) -> dict[str, Any]:
    return {
        name: msgspec.Raw(value.encode()) if name == "tags_extra" else storable(value)
        for name, value in zip(STORED, row, strict=True)
        if value is not None
    }


def owner(tags: Tags, attribution: str) -> dict[str, Any]:
    """An owner as the columns of a call."""
    names = ("user_id", "plan", "tenant_id", "route", "release", "session_id")
    values = {name: storable(value) for name in names if (value := getattr(tags, name))}
    if tags.extra:
        values["tags_extra"] = {storable(key): storable(value) for key, value in tags.extra.items()}
    return values | {"attribution": attribution}


def change(before: Call, after: Call) -> dict[str, Any]:
    """A repricing: what the call is known by, and what it is given."""
    values = dict(zip(STORED, to_stored(after), strict=True))
    return {"before": read_values(before), "after": {name: storable(values[name]) for name in _REPLACED}}


def has_changed(before: Call, after: Call) -> bool:
    """Whether a repricing makes a difference to cost, status or reasons."""
    left, right = read_values(before), read_values(after)
    return any(left[name] != right[name] for name in left if name not in ("call_id", "raw_usage"))


def read_values(call: Call) -> dict[str, Any]:
    """What a repricing knows a call by: its id, its usage and its figures."""
    return {
        "call_id": storable(call.call_id),
        "raw_usage": storable(call.raw_usage) or None,
        "cost": dollars(call.cost_femto),
        "list_cost": dollars(call.list_femto),
        "cost_status": call.cost_status,
        "cost_reasons": storable(reasons_text(call.cost_reasons)),
    }


def former_price(row: Sequence[Any]) -> PriceVersion:
    """One row of ``SELECT_FORMER`` behind the call's id."""
    version, cost, list_cost, cost_status, reasons, price, replaced_at = row
    return PriceVersion(version, cost, list_cost, cost_status, () if reasons is None else decode_reasons(reasons), price, replaced_at)


def former_values(call_id: str, price: PriceVersion) -> Row:
    """What a former price is kept as, in the order of ``FORMER``."""
    figures = dollars(price.cost_femto), dollars(price.list_femto), price.cost_status, storable(reasons_text(price.cost_reasons))
    return (storable(call_id), price.version, *figures, price_id(price.price), price.replaced_at)


def prices_of(calls: Iterable[Call], former: Mapping[str, Sequence[PriceVersion]] = {}) -> dict[int, str]:
    """The texts of all prices, by their numbers."""
    texts = {call.price for call in calls} | {price.price for prices in former.values() for price in prices}
    return {number: storable(text) for text in texts if text is not None and (number := price_id(text)) is not None}
