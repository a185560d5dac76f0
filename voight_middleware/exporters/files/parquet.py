"""
Calls as a Parquet file, through pyarrow: exact costs as decimals, times in microseconds, UTC.

DuckDB, Polars, Spark and Athena read it. ``SELECT sum(cost_usd)`` is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from itertools import islice
from typing import IO, Any

from voight_middleware.exporters.files.jsonl import as_object
from voight_middleware.records.call import Call
from voight_middleware.records.money import CONTEXT

ROW_GROUP = 50_000
"""How many calls are in memory at a time, as columns."""
BATCH = 5_000
"""How many calls are in memory at a time as Python objects, which are ten times as large."""

_TEXTS = (
    *(
        "call_id",
        "user_id",
        "plan",
        "tenant_id",
        "route",
        "release",
        "session_id",
        "provider",
        "model",
        "requested_model",
    ),
    *("endpoint", "outcome", "attribution", "cost_status"),
)
_COUNTS = ("attempts", "input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens")


class ParquetMissing(ImportError):
    """pyarrow is not installed. The message has the command to install it."""


def write(calls: Iterable[Call], file: IO[bytes]) -> None:
    """
    Write *calls* into *file*, with the names of the JSON export.

    ``cost_usd`` is a decimal with 15 places, or null without a price.

    Raises:
        ParquetMissing: pyarrow is not installed.
    """
    try:
        import pyarrow as pa  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise ParquetMissing(
            "Parquet needs pyarrow: pip install 'voight-middleware[parquet]'"
        ) from error
    schema = _schema(pa)
    calls = iter(calls)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while batch := list(islice(calls, BATCH)):
            group = [_table(pa, schema, batch)]
            while len(group) * BATCH < ROW_GROUP and (batch := list(islice(calls, BATCH))):
                group.append(_table(pa, schema, batch))
            writer.write_table(pa.concat_tables(group))


def _table(pa: Any, schema: Any, calls: list[Call]) -> Any:
    objects = [as_object(call) for call in calls]
    columns = {name: [row[name] for row in objects] for name in schema.names}
    columns["occurred_at"] = [call.occurred_at for call in calls]
    columns["tags"] = [list(call.tags.extra.items()) for call in calls]
    columns["cost_usd"] = [
        None if call.cost_femto is None else CONTEXT.scaleb(Decimal(call.cost_femto), -15)
        for call in calls
    ]
    return pa.table(columns, schema=schema)


def _schema(pa: Any) -> Any:
    text = pa.string()
    types = {
        **dict.fromkeys(_TEXTS, text),
        **dict.fromkeys(_COUNTS, pa.int64()),
        "occurred_at": pa.timestamp("us", tz="UTC"),
        "tags": pa.map_(text, text),
        "duration_s": pa.float64(),
        "ttft_s": pa.float64(),
        "estimated": pa.bool_(),
        "cost_usd": pa.decimal128(38, 15),
        "cost_reasons": pa.list_(text),
    }
    names = as_object(Call(call_id="", occurred_at=0, provider="", endpoint=""))
    return pa.schema([pa.field(name, types[name]) for name in names])
