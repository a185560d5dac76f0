"""The Parquet export: exact decimals, times in UTC, nulls, maps, and row groups, read back by pyarrow and DuckDB."""

import io
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from voight_middleware.exporters.files import jsonl, parquet
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage

from ..support.made_up_ledger import made_up_calls
from ..support.patching import Patch


def make_call(**fields: object) -> Call:
    return Call(**{"call_id": "c", "occurred_at": 1_793_534_400_000_001, "provider": "p", "endpoint": "e", **fields})


@pytest.mark.slow
def test_what_was_written_is_read(tmp_path: Path) -> None:
    """A call comes back with the names of the JSON export, and every value in its own type."""
    call = make_call(
        tags=Tags(user_id="=zoë", extra={"feature": "f", "b": ""}),
        usage=Usage(input=1, cache_read=2, output=3),
        duration=1_500_000,
        cost_femto=2**63 - 1,
        cost_status="partial",
        cost_reasons=("a", "b"),
        estimated_output=3,
    )
    with (tmp_path / "calls.parquet").open("wb") as file:
        parquet.write([call, make_call(call_id="d")], file)
    known, unknown = pq.read_table(tmp_path / "calls.parquet").to_pylist()
    assert list(known) == list(jsonl.as_object(call))
    assert known["occurred_at"] == datetime(2026, 11, 1, 12, 0, 0, 1, tzinfo=UTC)
    assert known["cost_usd"] == Decimal("9223.372036854775807")
    assert (known["user_id"], known["duration_s"], known["estimated"]) == ("=zoë", 1.5, True)
    assert (known["input_tokens"], known["cache_read_tokens"], known["cache_write_tokens"], known["output_tokens"]) == (3, 2, None, 3)
    assert (known["tags"], known["cost_reasons"]) == ([("feature", "f"), ("b", "")], ["a", "b"])
    assert (unknown["cost_usd"], unknown["user_id"], unknown["duration_s"], unknown["tags"]) == (None, None, None, [])


@pytest.mark.slow
def test_sums_in_duckdb_are_exact(tmp_path: Path) -> None:
    """DuckDB adds up cost and tokens, by model, to the femto-dollar."""
    calls = list(made_up_calls(5_000))
    path = tmp_path / "calls.parquet"
    with path.open("wb") as file:
        parquet.write(calls, file)
    expected: dict[str | None, int] = {}
    for call in calls:
        expected[call.model] = expected.get(call.model, 0) + (call.cost_femto or 0)
    with duckdb.connect() as db:
        rows = db.execute("SELECT model, coalesce(sum(cost_usd), 0) FROM read_parquet(?) GROUP BY model", [str(path)]).fetchall()
        (unpriced,) = db.execute("SELECT count(*) FROM read_parquet(?) WHERE cost_usd IS NULL", [str(path)]).fetchone() or ()
    assert {model: int(cost.scaleb(15)) for model, cost in rows} == expected
    assert unpriced == sum(call.cost_femto is None for call in calls) > 0


@pytest.mark.slow
def test_it_streams(patch: Patch) -> None:
    """No more calls than a row group are taken before one is written."""
    patch("ROW_GROUP", 100)
    patch("BATCH", 40, within="parquet")
    file = io.BytesIO()
    sizes: list[int] = []

    def calls() -> Iterator[Call]:
        for number in range(1_000):
            sizes.append(file.tell())
            yield make_call(call_id=f"c{number}")

    parquet.write(calls(), file)
    metadata = pq.ParquetFile(file).metadata
    assert len(set(sizes)) == metadata.num_row_groups == 9
    assert [metadata.row_group(number).num_rows for number in range(9)] == [120] * 8 + [40]


def test_no_calls() -> None:
    """A file without rows has the columns all the same."""
    file = io.BytesIO()
    parquet.write([], file)
    assert (pq.read_table(file).num_rows, "cost_usd" in pq.read_schema(file).names) == (0, True)


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing pyarrow is said with what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(parquet.ParquetMissing, match=r"pip install 'voight-middleware\[parquet\]'"):
        parquet.write([], io.BytesIO())
