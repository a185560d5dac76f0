"""What a ledger should answer, worked out from the calls in plain Python."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, timedelta, tzinfo
from typing import Any, TypeVar

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.records.call import Call

from ..support.depth import DEEP

_Question = TypeVar("_Question")
READ = ("cache_read", "cache_read_audio", "cache_read_image")
WRITTEN = ("cache_write", "cache_write_5m", "cache_write_1h")
INPUT = ("input", "audio_in", "image_in", *READ, *WRITTEN)
OUTPUT = ("output", "audio_out", "image_out")
_TIMES = {"hour": "%Y-%m-%dT%H:00", "day": "%Y-%m-%d", "month": "%Y-%m"}
_TAGS = ("user_id", "plan", "tenant_id", "route", "release", "session_id")
_PLAIN = ("provider", "model", "requested_model", "endpoint", "outcome", "attribution", "cost_status")


def spend(
    calls: Iterable[Call],
    by: Sequence[str] = (),
    where: Where | None = None,
    window: Window = Window(),
    limit: int | None = None,
    zone: tzinfo | None = None,
) -> list[Spend]:
    """As ``Ledger.spend``."""
    groups: dict[tuple[str | None, ...], list[Call]] = {} if by else {(): []}
    for call in chosen(calls, where, window, zone):
        groups.setdefault(tuple(value(call, name, zone) for name in by), []).append(call)
    rows = [_added_up(dict(zip(by, key, strict=True)), some) for key, some in groups.items()]
    rows.sort(key=lambda row: (row.cost_femto is None, -(row.cost_femto or 0), -row.calls, [_bytes(row.dimensions[name]) for name in by]))
    return rows[:limit]


GROUPINGS: tuple[tuple[str, ...], ...] = (
    ("user_id", "month"),
    *((), ("user_id",), ("plan",), ("day", "model"), ("hour",), ("tenant_id", "release"), ("cost_status",)),
)
"""Questions that other sums than those of the calls can answer."""


def check_sums(ledger: Ledger) -> None:
    """Whatever answers are read from, they say what the calls say."""
    kept = list(ledger.calls())
    for by in some(ledger, GROUPINGS, 2):
        assert ledger.spend(by) == spend(kept, by), by


def some(ledger: Ledger, questions: Iterable[_Question], part: float = 1 / 3) -> list[_Question]:
    """
    Return *part* of many questions for ClickHouse, a fraction or a number of them, three times that for PostgreSQL, and all for SQLite.

    A server takes far longer for the few calls of a test, and ClickHouse answers all questions from one place: the calls.
    """
    asked = list(questions)
    if DEEP or ledger.url.startswith("sqlite"):
        return asked
    if ledger.url.startswith("postgres"):
        part *= 3
    count = int(part) if part >= 1 and isinstance(part, int) else math.ceil(len(asked) * part)
    if count >= len(asked):
        return asked
    return asked[:count] if isinstance(part, int) else random.Random(1).sample(asked, count)


def chosen(calls: Iterable[Call], where: Where | None = None, window: Window = Window(), zone: tzinfo | None = None) -> list[Call]:
    """As ``Ledger.calls``."""
    found = [
        call
        for call in calls
        if (window.since is None or call.occurred_at >= window.since)
        and (window.until is None or call.occurred_at < window.until)
        and all(
            _fits(value(call, name.removesuffix("!"), zone), wanted) is not name.endswith("!") for name, wanted in (where or {}).items()
        )
    ]
    return sorted(found, key=lambda call: (call.occurred_at, call.call_id))


def value(call: Call, name: str, zone: tzinfo | None = None) -> str | None:
    """The value of a dimension of *call*."""
    if name == "week":
        day = call.time.astimezone(zone or UTC).date()
        return (day - timedelta(days=day.weekday())).isoformat()
    if name in _TIMES:
        text = call.time.astimezone(zone or UTC).strftime(_TIMES[name])
        if name != "hour":
            return text
        return f"{text}Z" if zone in (None, UTC) else text + call.time.astimezone(zone).isoformat()[-6:]
    found: Any = getattr(call.tags, name) if name in _TAGS else getattr(call, name) if name in _PLAIN else call.tags.extra.get(name)
    return found or None


def _fits(found: str | None, wanted: str | tuple[str | None, ...] | None) -> bool:
    if isinstance(wanted, tuple):
        return any(_fits(found, one) for one in wanted)
    if wanted is None or found is None:
        return wanted is found
    pattern = re.escape(wanted).replace(r"\*\*", "<star>").replace(r"\*", ".*").replace("<star>", r"\*")
    return re.fullmatch(pattern, found, re.DOTALL) is not None


def _added_up(dimensions: dict[str, str | None], calls: list[Call]) -> Spend:
    costs = [call.cost_femto for call in calls if call.cost_femto is not None]
    return Spend(
        dimensions=dimensions,
        calls=len(calls),
        input_tokens=_tokens(calls, INPUT),
        cache_read_tokens=_tokens(calls, READ),
        cache_write_tokens=_tokens(calls, WRITTEN),
        output_tokens=_tokens(calls, OUTPUT),
        cost_femto=sum(costs) if costs else None,
        unpriced_calls=len(calls) - len(costs),
        partial_calls=sum(call.cost_status == "partial" for call in calls),
        estimated_calls=sum(call.estimated for call in calls),
        errors=sum(call.outcome == "error" for call in calls),
    )


def _tokens(calls: list[Call], names: Sequence[str]) -> int | None:
    known = [count for call in calls if call.usage is not None for name in names if (count := getattr(call.usage, name)) is not None]
    return sum(known) if known else None


def _bytes(text: str | None) -> bytes:
    return b"" if text is None else b"\1" + text.encode()
