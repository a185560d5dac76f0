"""The figures of reports, computed by DuckDB from the same calls."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa

from voight_middleware.ledger import Spend, Window, open_ledger
from voight_middleware.records.call import Call

ZONES = {name: ZoneInfo(name) for name in ("Europe/Berlin", "America/Los_Angeles", "Asia/Kathmandu")}
COUNTS = (
    *("input", "audio_in", "image_in", "cache_read", "cache_read_audio", "cache_read_image"),
    *("cache_write", "cache_write_5m", "cache_write_1h", "output", "audio_out", "image_out"),
)
TEXTS = (
    *("user_id", "plan", "tenant_id", "route", "release", "session_id", "provider", "model", "requested_model", "endpoint", "outcome"),
    *("attribution", "cost_status", "feature", "experiment"),
)
FORMS = {"hour": "%Y-%m-%dT%H:00", "day": "%Y-%m-%d", "week": "%Y-%m-%d", "month": "%Y-%m"}
Where = Mapping[str, str | None]
Row = tuple[Any, ...]


def _row_sum(names: Sequence[str]) -> str:
    known = f"coalesce({', '.join(names)}) IS NOT NULL"
    return f"sum(CASE WHEN {known} THEN {' + '.join(f'coalesce({name}, 0)' for name in names)} END)"


FIGURES = f"""
    count(*), {_row_sum(COUNTS[:9])}, {_row_sum(COUNTS[3:6])}, {_row_sum(COUNTS[6:9])}, {_row_sum(COUNTS[9:])}, sum(cost),
    count(*) FILTER (cost_status = 'unpriced'), count(*) FILTER (cost_status = 'partial'), count(*) FILTER (estimated),
    count(*) FILTER (outcome = 'error')"""
"""The figures of ``Spend``, in its order, as DuckDB computes them."""


class Both:
    """The same calls in a ledger and in DuckDB, where times are cut by Python's own zones."""

    def __init__(self, path: Path, calls: Sequence[Call]) -> None:
        self.path = path
        self.calls = calls
        self.ledger = open_ledger(str(path))
        self.db = duckdb.connect()
        self.load("calls", calls)

    def load(self, table: str, calls: Sequence[Call], zones: Mapping[str, tzinfo] = ZONES) -> None:
        columns: dict[str, Any] = {
            "call_id": pa.array([call.call_id for call in calls]),
            "occurred_at": pa.array([call.occurred_at for call in calls], pa.int64()),
            "cost": pa.array([None if call.cost_femto is None else Decimal(call.cost_femto) for call in calls], pa.decimal128(38, 0)),
            "estimated": pa.array([call.estimated_output is not None or call.estimated_input is not None for call in calls]),
        }
        for name in TEXTS:
            columns[name] = pa.array([text_of(call, name) for call in calls], pa.string())
        for name in COUNTS:
            columns[name] = pa.array([None if call.usage is None else getattr(call.usage, name) for call in calls], pa.int64())
        for label, zone in {"UTC": UTC, **zones}.items():
            local = [call.time.astimezone(zone) for call in calls]
            for name, form in FORMS.items():
                columns[f"{name}@{label}"] = pa.array([cut_time(moment, name, form, label) for moment in local])
        arrow = pa.table(columns)  # DuckDB finds it by its name
        self.db.execute(f"CREATE TABLE {table} AS SELECT * FROM arrow")
        assert arrow.num_rows == len(calls)

    def figures(
        self, by: Sequence[str], condition: str = "true", window: Window = Window(), zone: str = "UTC", table: str = "calls"
    ) -> dict[Row, Row]:
        """For each group its figures."""
        names = [f'"{name}@{zone}"' if name in FORMS else name for name in by]
        times = f"occurred_at >= {window.since or 0} AND occurred_at < {window.until or 2**62}"
        grouped = f"GROUP BY {', '.join(names)}" if by else "HAVING count(*) > 0"
        rows = self.db.execute(
            f"SELECT {''.join(f'{name}, ' for name in names)}{FIGURES} FROM {table} WHERE {times} AND ({condition}) {grouped}"
        ).fetchall()
        return {row[: len(by)]: tuple(map(whole, row[len(by) :])) for row in rows}


def text_of(call: Call, name: str) -> str | None:
    if name in ("feature", "experiment"):
        return call.tags.extra.get(name)
    return getattr(call.tags if name in call.tags.__struct_fields__ else call, name)


def cut_time(moment: datetime, name: str, form: str, zone: str) -> str:
    text = (moment - timedelta(days=moment.weekday()) if name == "week" else moment).strftime(form)
    return text if name != "hour" else f"{text}Z" if zone == "UTC" else f"{text}{moment.strftime('%z')[:3]}:{moment.strftime('%z')[3:]}"


def whole(value: Any) -> int | None:
    assert value is None or value == int(value)
    return None if value is None else int(value)


def found(rows: Sequence[Spend], by: Sequence[str]) -> dict[Row, Row]:
    """What a report says, in the shape of ``Both.figures``; in the order that it promises."""
    if by and by[0] in FORMS:
        times = [
            datetime.fromisoformat(f"{row.dimensions['month']}-01" if by[0] == "month" else row.dimensions[by[0]] or "") for row in rows
        ]
        assert times == sorted(times)
    else:
        costs = [row.cost_femto for row in rows]
        known = [cost for cost in costs if cost is not None]
        assert costs == [*sorted(known, reverse=True), *[None] * (len(costs) - len(known))]
    figures = {
        tuple(row.dimensions[name] for name in by): (
            *(row.calls, row.input_tokens, row.cache_read_tokens, row.cache_write_tokens, row.output_tokens, row.cost_femto),
            *(row.unpriced_calls, row.partial_calls, row.estimated_calls, row.errors),
        )
        for row in rows
    }
    assert len(figures) == len(rows)
    return figures


def assert_ratio(share: Decimal | None, part: int | None, of: int | None) -> None:
    """A share is the exact fraction to forty digits; there is none of nothing."""
    if part is None or not of:
        assert share is None
    else:
        assert share is not None
        assert abs(Fraction(share) - Fraction(part, of)) < Fraction(1, 10**40)
