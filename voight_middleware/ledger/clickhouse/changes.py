"""
Changes to existing calls of a ClickHouse ledger: late attributions, results of jobs, repricings.

A change names columns and never rewrites a row, so that concurrent changes of owner and price both
survive. The engine evaluates the condition when it makes the change, one change after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from voight_middleware.ledger.clickhouse.dialect import literal
from voight_middleware.ledger.clickhouse.schema import MONEY, kept_as, type_of, usd
from voight_middleware.ledger.rows import (
    OWNER,
    REATTRIBUTABLE_SQL,
    REQUIRED,
    RESULT_COLUMNS,
    SELECTED,
    Row,
    extra_text,
)
from voight_middleware.records.call import REATTRIBUTABLE, Call, LateAttribution
from voight_middleware.records.tags import Tags

OPEN = "job IS NOT NULL AND raw_usage IS NULL"
"""The condition for a job's call without usage."""
_PIECE = 500
"""The maximum number of calls in one statement: the engine keeps its text."""
_POSITIONS = {name: index for index, name in enumerate(SELECTED)}


class Change:
    """
    An UPDATE of calls, without its table.

    Args:
        sets: SQL of the new value of each column, by its name in ``rows.SELECTED``.
        condition: SQL that selects the calls.
    """

    def __init__(self, sets: Mapping[str, str], condition: str) -> None:
        self.sql = (
            f"{', '.join(f'{kept_as(name)} = {value}' for name, value in sets.items())} WHERE "
            f"{condition}"
        )


def has_result(call: Call) -> bool:
    """Return whether *call* is the result of a job."""
    return call.raw_usage is not None or call.outcome != "ok"


def attributed_late(call: Call, late: LateAttribution) -> Call:
    """Return *call* with the owner that it lacks."""
    if late.tags.user_id is None or call.attribution not in REATTRIBUTABLE:
        return call
    tags = late.tags.merge(call.tags)
    if call.attribution == "request":
        tags = replace(tags, user_id=late.tags.user_id)
    return replace(call, tags=tags, attribution=late.attribution)


def results(rows: Sequence[Row]) -> Iterator[Change]:
    """Yield changes that add the results of jobs."""
    for piece in pieces(rows):
        by_call = {row[_POSITIONS["call_id"]]: row for row in piece}
        sets = {
            name: _of(name, {call_id: row[_POSITIONS[name]] for call_id, row in by_call.items()})
            for name in RESULT_COLUMNS
        }
        yield Change(sets, f"{_among(by_call)} AND {OPEN}")


def late_attributions(owners: Mapping[str, LateAttribution]) -> Iterator[Change]:
    """Yield changes that add owners to calls without one."""
    for piece in pieces(list(owners)):
        sets = {}
        for name in OWNER:
            value = _of(name, {call_id: _tag(owners[call_id].tags, name) for call_id in piece})
            if name == "user_id":
                sets[name] = f"IF(attribution = 'request', {value}, COALESCE(user_id, {value}))"
            else:
                sets[name] = (
                    f"mapUpdate({value}, tags_extra)"
                    if name == "tags_extra"
                    else f"COALESCE({name}, {value})"
                )
        sets["attribution"] = _of(
            "attribution", {call_id: owners[call_id].attribution for call_id in piece}
        )
        yield Change(sets, f"{_among(piece)} AND attribution IN {REATTRIBUTABLE_SQL}")


def owners(given: Mapping[str, tuple[Tags, str]]) -> Iterator[Change]:
    """
    Yield changes that give calls the owner of their job: tags and attribution, by ``call_id``.
    """
    return values(
        {
            call_id: {name: _tag(tags, name) for name in OWNER} | {"attribution": by}
            for call_id, (tags, by) in given.items()
        }
    )


def values(changed: Mapping[str, Mapping[str, Any]], condition: str = "1") -> Iterator[Change]:
    """Yield changes to other values, by ``call_id``. Each call has the same columns."""
    for piece in pieces(list(changed)):
        names = changed[piece[0]]
        yield Change(
            {
                name: _of(name, {call_id: changed[call_id][name] for call_id in piece})
                for name in names
            },
            f"{_among(piece)} AND {condition}",
        )


def pieces(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), _PIECE):
        yield items[start : start + _PIECE]


def _among(call_ids: Sequence[str] | Mapping[str, Any]) -> str:
    return f"call_id IN ({', '.join(map(literal, call_ids))})"


def _of(name: str, by_call: Mapping[str, Any]) -> str:
    """Return SQL for the value of a column, by the id of the call."""
    texts = {call_id: _text(name, value) for call_id, value in by_call.items()}
    first = next(iter(texts.values()))
    if all(text == first for text in texts.values()):
        return _cast(name, literal(first))
    return _cast(
        name,
        f"transform(call_id, {literal(list(texts))}, {literal(list(texts.values()))}, "
        f"{literal(first)})",
    )


def _text(name: str, value: Any) -> str:
    """Return a value as text, empty for None."""
    if name == "tags_extra":
        return value or "{}"
    if name in MONEY:
        value = usd(value)
    return "" if value is None else str(value)


def _cast(name: str, text: str) -> str:
    kind = type_of(name)
    if name == "tags_extra":
        return f"JSONExtract({text}, '{kind}')"
    known = text if name in REQUIRED else f"nullIf({text}, '')"
    return f"CAST({known}, '{kind}')"


def _tag(tags: Tags, name: str) -> str | None:
    return extra_text(tags.extra) if name == "tags_extra" else getattr(tags, name)
