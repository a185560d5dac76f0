"""
The conversion between a call and named column values. All engines share the columns and limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import msgspec

from voight_middleware.ledger.base import MAX_COUNT, LedgerError
from voight_middleware.records.call import FIXED_AT_SUBMISSION, REATTRIBUTABLE, Call
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import COUNT_NAMES, Component, Usage

Row: TypeAlias = tuple[Any, ...]

COUNTS = (*COUNT_NAMES, "estimated_input", "estimated_output")
"""Columns of counts: 0 to ``MAX_COUNT``, or NULL if unknown."""
READ = ("cache_read", "cache_read_audio", "cache_read_image")
WRITTEN = ("cache_write", "cache_write_5m", "cache_write_1h")
INPUT = ("input", "audio_in", "image_in", *READ, *WRITTEN)
OUTPUT = ("output", "audio_out", "image_out")
"""The counts that a report sums up as cache read, cache write, input and output."""

OWNER = ("user_id", "plan", "tenant_id", "route", "release", "session_id", "tags_extra")
FIGURES = ("cost_femto", "list_femto", "cost_status", "cost_reasons", "price")
"""The columns that a repricing replaces. An engine may store the price elsewhere."""
COUNTED = (*COUNT_NAMES, "tools", "components")
"""The columns that a newer parser of usage may fill better."""
SELECTED = (
    *(
        "occurred_at",
        "call_id",
        *OWNER,
        "attribution",
        "provider",
        "endpoint",
        "requested_model",
        "model",
        "host",
        "streamed",
        "outcome",
    ),
    *(
        "error",
        "http_status",
        "attempts",
        "possibly_billed",
        "duration",
        "ttft",
        "response_id",
        "job",
        "service_tier",
        "batch",
    ),
    *(*COUNTS, "tools", "components", "tool_calls", "raw_usage", *FIGURES),
)
"""The columns of a call, in the order of ``to_row`` and ``from_row``. NULL means missing."""
RESULT_COLUMNS = tuple(name for name in SELECTED if name not in (*FIXED_AT_SUBMISSION, *OWNER))
"""The columns that a job's result fills in."""
REATTRIBUTABLE_SQL = f"({', '.join(map(repr, REATTRIBUTABLE))})"
"""``REATTRIBUTABLE`` as a list in SQL."""
REQUIRED = frozenset(
    (
        "occurred_at",
        "call_id",
        "attribution",
        "provider",
        "endpoint",
        "streamed",
        "outcome",
        "attempts",
        "batch",
        "cost_status",
    )
)
"""Columns that are never NULL."""
NUMBERS = frozenset(
    (
        *(
            "occurred_at",
            "streamed",
            "http_status",
            "attempts",
            "possibly_billed",
            "duration",
            "ttft",
            "batch",
        ),
        *(*COUNTS, "cost_femto", "list_femto"),
    )
)
"""Columns of whole numbers. The others are text."""

NO_USAGE = Usage()
encode = msgspec.json.Encoder().encode
decode_reasons = msgspec.json.Decoder(tuple[str, ...]).decode
_extra = msgspec.json.Decoder(dict[str, str]).decode
_counts = msgspec.json.Decoder(dict[str, int]).decode
_components = msgspec.json.Decoder(tuple[Component, ...]).decode
_TAGS = tuple(name for name in Tags.__struct_fields__ if name != "extra")
_CONVERTED = {"tags", "streamed", "batch", "tool_calls", "usage", "components", "cost_reasons"}
_tags_of = attrgetter(*OWNER[:-1])
_begin_of = attrgetter(*SELECTED[SELECTED.index("attribution") : SELECTED.index("streamed")])
_middle_of = attrgetter(*SELECTED[SELECTED.index("outcome") : SELECTED.index("batch")])
_counts_of = attrgetter(*COUNT_NAMES)
_AS_IT_IS = tuple(
    name for name in Call.__struct_fields__ if name not in _CONVERTED and name in SELECTED
)


def to_row(call: Call) -> Row:
    """Return the values of ``SELECTED``: whole numbers and text. An empty text becomes None."""
    usage = call.usage or NO_USAGE
    row = (
        call.occurred_at,
        call.call_id,
        *_tags_of(call.tags),
        extra_text(call.tags.extra) or None,
        *_begin_of(call),
        int(call.streamed),
        *_middle_of(call),
        int(call.batch),
        *_counts_of(usage),
        call.estimated_input,
        call.estimated_output,
        None if usage.tools is None else encode(usage.tools).decode(),
        components_text(call),
        None if call.tool_calls is None else encode(call.tool_calls).decode(),
        call.raw_usage,
        call.cost_femto,
        call.list_femto,
        call.cost_status,
        reasons_text(call.cost_reasons),
        call.price,
    )
    if "" in row:
        return tuple(
            None if value == "" and name not in REQUIRED else value
            for name, value in zip(SELECTED, row, strict=True)
        )
    return row


def from_row(row: Row) -> Call:
    """
    Return the call of a row of ``SELECTED``. An empty text and a usage without any count become
    None.

    Raises:
        LedgerError: A value is not valid JSON: the ledger is damaged.
    """
    try:
        return _from_row(row)
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        problem = (
            f"the call {ascii(row[SELECTED.index('call_id')])[:80]} in the ledger is damaged "
            f"({str(error)[:200]})"
        )
        raise LedgerError(
            f"{problem}: restore a backup, or exclude the call with a filter on its time"
        ) from error


def _from_row(row: Row) -> Call:
    value = dict(zip(SELECTED, row, strict=True))
    usage: Usage | None = Usage(
        tools=None if value["tools"] is None else _counts(value["tools"]),
        **{name: value[name] for name in COUNT_NAMES},
    )
    if usage == NO_USAGE:
        usage = None
    extra = value["tags_extra"]
    components = value["components"]
    tool_calls = value["tool_calls"]
    reasons = value["cost_reasons"]
    return Call(
        **{name: value[name] for name in _AS_IT_IS},
        tags=Tags(
            extra={} if extra is None else _extra(extra), **{name: value[name] for name in _TAGS}
        ),
        streamed=bool(value["streamed"]),
        batch=bool(value["batch"]),
        usage=usage,
        components=only(usage) if components is None else _components(components),
        tool_calls=None if tool_calls is None else _counts(tool_calls),
        cost_reasons=() if reasons is None else decode_reasons(reasons),
    )


def only_match(calls: Sequence[Call], call_id: str) -> Call | None:
    """
    Return the only one of *calls*, found by *call_id* or its beginning. Return None if there is
    none.

    Raises:
        LedgerError: There are several.
    """
    if len(calls) > 1:
        ids = " and ".join(call.call_id for call in calls)
        raise LedgerError(
            f"several call ids begin with {call_id!r}, such as {ids}: give more characters"
        )
    return calls[0] if calls else None


def extra_text(extra: Mapping[str, str]) -> str:
    """Return extra keys as the JSON text of ``tags_extra``, empty for none."""
    return encode(extra).decode() if extra else ""


def components_text(call: Call) -> str | None:
    """Return components as JSON text. Return None if they say no more than the usage."""
    components = call.components
    if len(components) == 1 and components[0].usage is call.usage and components[0].model is None:
        return None
    return None if components == only(call.usage) else encode(components).decode()


def reasons_text(reasons: Sequence[str]) -> str | None:
    """Return reasons as JSON text, None for none."""
    return encode(reasons).decode() if reasons else None


def only(usage: Usage | None) -> tuple[Component, ...]:
    """Return the components of a call with one component, or without any."""
    return () if usage is None else (Component(usage=usage),)


def within_range(call: Call) -> Call:
    """
    Return *call* without counts and costs that no column can hold, with the reason in
    ``cost_reasons``.

    ``raw_usage`` keeps the provider's report.
    """
    counts = [getattr(call.usage, name) for name in COUNT_NAMES] if call.usage is not None else []
    counts += [call.estimated_input, call.estimated_output]
    amounts = (call.cost_femto or 0, call.list_femto or 0)
    if all(count is None or 0 <= count <= MAX_COUNT for count in counts) and all(
        0 <= amount < 2**63 for amount in amounts
    ):
        return call
    return msgspec.structs.replace(
        call,
        usage=None,
        components=(),
        estimated_input=None,
        estimated_output=None,
        cost_femto=None,
        list_femto=None,
        cost_status="unpriced",
        cost_reasons=(*call.cost_reasons, "usage out of range"),
        price=None,
    )
