"""
Calls as CSV, safe to open in a spreadsheet.

A text that looks like a formula gets a leading apostrophe, also after a semicolon. Control
characters of terminals are escaped. JSON Lines and Parquet keep every text unchanged. Source:
OWASP, "CSV Injection".
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from voight_middleware.exporters.files.jsonl import as_object
from voight_middleware.records.call import Call

_FORMULA = frozenset("=+-@\t\r\n＝＋－＠")  # noqa: RUF001 - spreadsheets treat the wide ones alike
_NEXT_CELL = re.compile("(;\\s*)(?=[=+@\uff1d\uff0b\uff0d\uff20-])")
"""
A formula after a semicolon. In locales with semicolons as separators, a spreadsheet ends the cell
there, quoted or not.
"""
_EMPTY = Call(call_id="", occurred_at=0, provider="", endpoint="")


def lines(calls: Iterable[Call]) -> Iterator[bytes]:
    """
    Yield a header and a row per call, in UTF-8. The columns have the names of the JSON export.
    ``tags`` is a JSON object.
    """
    yield from rows(list(as_object(_EMPTY)), map(_as_row, calls))


def rows(header: Sequence[str], objects: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """
    Yield a header and rows as lines of CSV in UTF-8. Texts are made safe; None is an empty cell.
    """
    buffer = io.StringIO()
    write = csv.writer(buffer, lineterminator="\n").writerow
    write(header)
    for row in objects:
        yield _taken(buffer)
        write([text_cell(cell) if type(cell) is str else cell for cell in map(row.get, header)])
    yield _taken(buffer)


def text_cell(text: str) -> str:
    """Return *text*, safe for spreadsheets and terminals."""
    shown = (
        text
        if text.isprintable()
        else "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
        )
    )
    if ";" in shown:
        shown = _NEXT_CELL.sub(r"\1'", shown)
    return f"'{shown}" if text[:1] in _FORMULA else shown


def _as_row(call: Call) -> dict[str, Any]:
    row = as_object(call)
    row["tags"] = json.dumps(row["tags"], ensure_ascii=False) if row["tags"] else None
    row["estimated"] = "true" if row["estimated"] else "false"
    row["cost_reasons"] = "; ".join(row["cost_reasons"]) or None
    return row


def _taken(buffer: io.StringIO) -> bytes:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text.encode(errors="backslashreplace")
