"""The CSV export: one row per call, the names of the JSON export, and nothing that a spreadsheet would run."""

import csv
import io
import json

import pytest

from voight_middleware.cli.render import csv_text
from voight_middleware.exporters.files import csv_file as csvfile
from voight_middleware.exporters.files import jsonl
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Tags

from ..support.made_up_ledger import made_up_calls


def read(lines: list[bytes]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(b"".join(lines).decode(), newline="")))


def make_call(**fields: object) -> Call:
    return Call(**{"call_id": "c", "occurred_at": 0, "provider": "p", "endpoint": "e", **fields})


@pytest.mark.slow
def test_rows_agree_with_the_json_export() -> None:
    """Every cell of every call is what the JSON export says; nothing known is an empty cell."""
    calls = list(made_up_calls(2_000))
    rows = read(list(csvfile.lines(calls)))
    assert len(rows) == 2_000
    for row, line in zip(rows, jsonl.lines(calls), strict=True):
        expected = json.loads(line)
        assert list(row) == list(expected)
        assert json.loads(row.pop("tags") or "{}") == expected.pop("tags")
        assert row.pop("cost_reasons") == "; ".join(expected.pop("cost_reasons"))
        assert row.pop("estimated") == str(expected.pop("estimated")).lower()
        assert row == {name: "" if value is None else str(value) for name, value in expected.items()}


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＠"])  # noqa: RUF001
def test_no_cell_begins_a_formula(first: str) -> None:
    """Every text cell that could begin a formula begins with an apostrophe instead, in every column that holds a text."""
    hostile = f"{first}HYPERLINK(1)"
    names = ("user_id", "plan", "tenant_id", "route", "release", "session_id")
    tags = Tags(**dict.fromkeys(names, hostile))
    columns = dict.fromkeys(("call_id", "provider", "endpoint", "model", "requested_model", "outcome", "attribution"), hostile)
    (row,) = read(list(csvfile.lines([make_call(tags=tags, cost_reasons=(hostile,), **columns)])))
    cells = [row[name] for name in (*names, *columns, "cost_reasons")]
    assert all(cell.startswith("'") and cell.endswith("HYPERLINK(1)") for cell in cells)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a;=HYPERLINK(1)", "a;'=HYPERLINK(1)"),
        ('x"; @SUM(1)', "x\"; '@SUM(1)"),
        ("a;\uff1dB1;-1", "a;'\uff1dB1;'-1"),
        (";=1", ";'=1"),
        ("a; b;c", "a; b;c"),
        ("2026-11", "2026-11"),
    ],
)
def test_no_part_of_a_cell_begins_a_formula_where_lists_have_semicolons(text: str, cell: str) -> None:
    """Excel reads a file by the separator of its locale, and keeps no quotes that do not begin a cell of its own."""
    assert csvfile.text_cell(text) == cell
    assert csv_text(["user"], [{"user": text}], ["user"]).count(cell.replace('"', '""')) == 1


def test_reports_and_exports_make_texts_safe_alike() -> None:
    """The wide characters too."""
    for first in "=+-@\uff1d\uff0b\uff0d\uff20":
        assert csv_text(["user"], [{"user": f"{first}1"}], ["user"]) == f"user\n'{first}1\n"


def test_no_cell_breaks_a_line_or_drives_a_terminal() -> None:
    """Line breaks, escape sequences and text that is no Unicode are spelled out, so that a call is one line."""
    lines = list(csvfile.lines([make_call(tags=Tags(user_id='a\n"b",c', plan="\x1b[31m", release="\u202e", extra={"k\r": "\x9b"}))]))
    assert len(lines) == 2
    assert lines[1].count(b"\n") == 1
    assert lines[1].decode().strip().isprintable()
    assert (read(lines)[0]["user_id"], read(lines)[0]["plan"]) == ('a\\n"b",c', "\\x1b[31m")


def test_a_header_alone() -> None:
    """Without a call the header is there all the same."""
    (line,) = csvfile.lines([])
    assert line.startswith(b"call_id,occurred_at,user_id,")
