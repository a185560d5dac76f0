"""``voight export``: calls as data, on standard output or in a file that is written atomically."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from voight_middleware.cli.arguments import add_ledger, add_original_prices, add_selection
from voight_middleware.cli.context import Context
from voight_middleware.cli.output import output
from voight_middleware.cli.privacy import ids_of
from voight_middleware.cli.render import UserError, for_terminal
from voight_middleware.ledger import Ledger, Where, Window
from voight_middleware.records.call import Call

FORMATS = ("jsonl", "csv", "parquet", "focus")
_STEP = 1_000
"""Calls between two updates of the progress bar."""

EXAMPLES = """\
formats:
  jsonl      one JSON object per call and line
  csv        one row per call, safe to open in a spreadsheet
  parquet    for DuckDB, Polars, Spark: pip install 'voight-middleware[parquet]'
  focus      one row per call and SKU, in the columns of FOCUS 1.2 (FinOps), as CSV

examples:
  voight export --format jsonl --since yesterday -o calls.jsonl
  voight export --where tenant=t_1 | jq .cost_usd
  voight export --format parquet --since 2026-11 --until 2026-11 -o november.parquet
  voight export --format focus --since 2026-11 --until 2026-11 -o november.focus.csv
  voight export --user u_7 -o u_7.json            everything about one person
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_ledger(parser)
    add_selection(parser)
    add_original_prices(parser)
    parser.add_argument("--format", choices=FORMATS, help="default: jsonl")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="default: standard output; only you can read a new file",
    )
    parser.add_argument(
        "--user", metavar="ID", help="everything about this person, as one JSON document"
    )


def run(context: Context) -> int:
    """
    Write the calls.

    Raises:
        UserError: The file cannot be written, options contradict each other, or pyarrow is missing.
    """
    args, ledger, where, window = context.args, context.ledger, context.where, context.window
    if args.user is not None:
        return _export_person(context)
    form = args.format or "jsonl"
    if form == "parquet" and args.output is None:
        raise UserError("Parquet is not text: give it a file, such as -o calls.parquet")
    with _progress(ledger, where, window, args) as watched:
        calls = watched(ledger.calls(where, window, original_prices=args.original_prices))
        if form == "parquet":
            _write_parquet(calls, args.output)
        else:
            _write(_lines(form)(calls), args.output, as_json=form == "jsonl")
    return 0


def _lines(form: str) -> Callable[[Iterable[Call]], Iterator[bytes]]:
    if form == "csv":
        from voight_middleware.exporters.files import csv_file

        return csv_file.lines
    if form == "focus":
        from voight_middleware.exporters.files import focus

        return focus.lines
    from voight_middleware.exporters.files import jsonl

    return jsonl.lines


def _export_person(context: Context) -> int:
    from voight_middleware.exporters.files import person

    args, ledger = context.args, context.ledger
    if (
        args.format is not None
        or context.where
        or context.window != Window()
        or args.original_prices
    ):
        raise UserError(
            "--user exports everything about one person, as JSON: leave out the format, the "
            "filters and the times"
        )
    try:
        args.user.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            "the id given to --user is not text in the encoding of this terminal"
        ) from error
    _write(
        person.document(ledger, ids_of(ledger, args.user, context.settings)),
        args.output,
        as_json=False,
    )
    return 0


def _write(lines: Iterator[bytes], path: Path | None, *, as_json: bool) -> None:
    if path is not None:
        with output(path) as file:
            file.writelines(lines)
    elif sys.stdout.isatty():
        for line in lines:
            sys.stdout.write(for_terminal(line) if as_json else _ascii(line))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.writelines(lines)


def _write_parquet(calls: Iterable[Call], path: Path) -> None:
    from voight_middleware.exporters.files import parquet

    try:
        with output(path) as file:
            parquet.write(calls, file)
    except parquet.ParquetMissing as error:
        raise UserError(str(error)) from error


def _ascii(line: bytes) -> str:
    """Escape invisible characters; control characters are escaped already in CSV and JSON."""
    return "".join(
        char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1]
        for char in line.decode()
    )


@contextlib.contextmanager
def _progress(
    ledger: Ledger, where: Where, window: Window, args: Any
) -> Generator[Callable[[Iterable[Call]], Iterable[Call]]]:
    """Yield a function that shows the progress of an iteration on a terminal with rich."""
    if (
        not sys.stderr.isatty()
        or (args.output is None and sys.stdout.isatty())
        or importlib.util.find_spec("rich") is None
    ):
        yield lambda calls: calls
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    (total,) = ledger.spend((), where, window)
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("calls"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("export", total=total.calls)

        def watched(calls: Iterable[Call]) -> Iterator[Call]:
            number = 0
            for number, call in enumerate(calls, 1):
                if number % _STEP == 0:
                    progress.update(task, completed=number)
                yield call
            progress.update(task, completed=number)

        yield watched
