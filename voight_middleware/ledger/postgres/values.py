"""
The conversion between ``Call`` and the rows of a PostgreSQL ledger: lines of COPY, and JSON for its
functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from voight_middleware.ledger.base import PriceVersion
from voight_middleware.ledger.rows import (
    COUNTED,
    FIGURES,
    SELECTED,
    Row,
    decode_reasons,
    extra_text,
    reasons_text,
    to_row,
)
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Tags

_RENAMED = {"cost_femto": "cost", "list_femto": "list_cost", "price": "price_id"}


def stored(names: Iterable[str]) -> tuple[str, ...]:
    """
    Return the names of the tables' columns for names of ``rows``. Costs are in dollars, and prices
    have their own table.
    """
    return tuple(_RENAMED.get(name, name) for name in names)


STORED = stored(SELECTED)
_COST, _LIST_COST, _PRICE, _EXTRA = (
    STORED.index(name) for name in ("cost", "list_cost", "price_id", "tags_extra")
)
_REPLACED = stored((*COUNTED, *FIGURES))
"""The columns that a repricing replaces."""

_encode = msgspec.json.encode
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def price_id(price: str | None) -> int | None:
    """
    Return a 64-bit id derived from the text, so that a writer need not read the table of prices.
    """
    return (
        None
        if price is None
        else int.from_bytes(hashlib.blake2b(price.encode(), digest_size=8).digest(), signed=True)
    )


def dollars(femto: int | None) -> str | None:
    """Return US dollars in the format of NUMERIC."""
    return None if femto is None else f"{femto // 10**15}.{femto % 10**15:015d}"


def storable(value: Any) -> Any:
    """Return *value* without NUL characters, which PostgreSQL's text cannot hold."""
    if type(value) is list:
        return [storable(item) for item in value]
    return value.replace("\0", "\ufffd") if type(value) is str and "\0" in value else value


def to_stored(call: Call) -> Row:
    """Return the values of ``STORED``. Texts may still contain NUL."""
    values = list(to_row(call))
    values[_COST] = dollars(call.cost_femto)
    values[_LIST_COST] = dollars(call.list_femto)
    values[_PRICE] = price_id(call.price)
    if (extra := values[_EXTRA]) is not None and "\\u0000" in extra:
        values[_EXTRA] = extra_text(
            {storable(key): storable(value) for key, value in call.tags.extra.items()}
        )
    return tuple(values)


def copied(rows: Iterable[Row]) -> bytes:
    """Return rows as text for COPY."""
    return "\n".join([*map(_line, rows), ""]).replace("\0", "\ufffd").encode()


def _line(row: Row) -> str:
    line = "\t".join(
        ["\\N" if value is None else value if type(value) is str else str(value) for value in row]
    )
    if (
        line.count("\\") == row.count(None)
        and line.count("\t") == len(row) - 1
        and "\n" not in line
        and "\r" not in line
    ):
        return line
    return "\t".join(["\\N" if value is None else str(value).translate(_ESCAPES) for value in row])


def calls_json(rows: Iterable[Row]) -> str:
    """Return calls as JSON for ``jsonb_populate_recordset``."""
    return _encode([_object(row) for row in rows]).decode()


def _object(row: Row) -> dict[str, Any]:
    return {
        name: msgspec.Raw(value.encode()) if name == "tags_extra" else storable(value)
        for name, value in zip(STORED, row, strict=True)
        if value is not None
    }


def owner(tags: Tags, attribution: str) -> dict[str, Any]:
    """Return an owner as columns of a call."""
    names = ("user_id", "plan", "tenant_id", "route", "release", "session_id")
    values = {name: storable(value) for name in names if (value := getattr(tags, name))}
    if tags.extra:
        values["tags_extra"] = {storable(key): storable(value) for key, value in tags.extra.items()}
    return values | {"attribution": attribution}


def change(before: Call, after: Call) -> dict[str, Any]:
    """Return a repricing: the values that identify the call, and its new ones."""
    values = dict(zip(STORED, to_stored(after), strict=True))
    return {
        "before": read_values(before),
        "after": {name: storable(values[name]) for name in _REPLACED},
    }


def has_changed(before: Call, after: Call) -> bool:
    """Return whether a repricing changes cost, status or reasons."""
    left, right = read_values(before), read_values(after)
    return any(left[name] != right[name] for name in left if name not in ("call_id", "raw_usage"))


def read_values(call: Call) -> dict[str, Any]:
    """Return the values by which a repricing recognizes a call: its id, its usage and its price."""
    return {
        "call_id": storable(call.call_id),
        "raw_usage": storable(call.raw_usage) or None,
        "cost": dollars(call.cost_femto),
        "list_cost": dollars(call.list_femto),
        "cost_status": call.cost_status,
        "cost_reasons": storable(reasons_text(call.cost_reasons)),
    }


def former_price(row: Sequence[Any]) -> PriceVersion:
    """Return one row of ``SELECT_FORMER``, without the call's id."""
    version, cost, list_cost, cost_status, reasons, price, replaced_at = row
    return PriceVersion(
        version,
        cost,
        list_cost,
        cost_status,
        () if reasons is None else decode_reasons(reasons),
        price,
        replaced_at,
    )


def former_values(call_id: str, price: PriceVersion) -> Row:
    """Return the values of a previous price, in the order of ``FORMER``."""
    figures = (
        dollars(price.cost_femto),
        dollars(price.list_femto),
        price.cost_status,
        storable(reasons_text(price.cost_reasons)),
    )
    return (storable(call_id), price.version, *figures, price_id(price.price), price.replaced_at)


def prices_of(
    calls: Iterable[Call], former: Mapping[str, Sequence[PriceVersion]] = {}
) -> dict[int, str]:
    """Return the texts of all prices by their ids."""
    texts = {call.price for call in calls} | {
        price.price for prices in former.values() for price in prices
    }
    return {
        number: storable(text)
        for text in texts
        if text is not None and (number := price_id(text)) is not None
    }
