"""``voight export``: calls as data, on standard output or in a file that is there whole or not at all."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import stat
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from voight_middleware.cli import render
from voight_middleware.cli.privacy import called
from voight_middleware.cli.render import UserError
from voight_middleware.config.settings import Settings
from voight_middleware.ledger import Ledger, Where, Window
from voight_middleware.records.call import Call

FORMATS = ("jsonl", "csv", "parquet", "focus")
_STEP = 1_000
"""Calls between two movements of the progress bar."""

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
  voight export --user u_7 -o u_7.json            everything that is kept about one person
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``voight export``, besides the choice of calls."""
    parser.add_argument("--format", choices=FORMATS, help="default: jsonl")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="default: standard output; a new file is readable by you only")
    parser.add_argument("--user", metavar="ID", help="everything that is kept about this person, as one JSON document")


def run(ledger: Ledger, where: Where, window: Window, settings: Settings, args: Any) -> int:
    """
    Write the calls that were asked for; answers 0.

    Raises:
        UserError: The file cannot be written, the options contradict each other, or pyarrow is not installed.
    """
    if args.user is not None:
        return _person(ledger, where, window, settings, args)
    chosen = args.format or "jsonl"
    if chosen == "parquet" and args.output is None:
        raise UserError("Parquet is not text: give it a file, such as -o calls.parquet")
    with _progress(ledger, where, window, args) as watched:
        calls = watched(ledger.calls(where, window, original_prices=args.original_prices))
        if chosen == "parquet":
            _write_parquet(calls, args.output)
        else:
            _write(_lines(chosen)(calls), args.output, as_json=chosen == "jsonl")
    return 0


def _lines(chosen: str) -> Callable[[Iterable[Call]], Iterator[bytes]]:
    if chosen == "csv":
        from voight_middleware.exporters.files import csv_file as csvfile

        return csvfile.lines
    if chosen == "focus":
        from voight_middleware.exporters.files import focus

        return focus.lines
    from voight_middleware.exporters.files import jsonl

    return jsonl.lines


def _person(ledger: Ledger, where: Where, window: Window, settings: Settings, args: Any) -> int:
    from voight_middleware.exporters.files import person

    if args.format is not None or where or window != Window() or args.original_prices:
        raise UserError("--user is for everything that is kept about one person, as JSON: leave out the format, the filters and the times")
    try:
        args.user.encode()
    except UnicodeEncodeError as error:
        raise UserError("the id given to --user is not text in the encoding of this terminal") from error
    _write(person.document(ledger, called(ledger, args.user, settings)), args.output, as_json=False)
    return 0


def _write(lines: Iterator[bytes], path: Path | None, *, as_json: bool) -> None:
    if path is not None:
        with output(path) as file:
            file.writelines(lines)
    elif sys.stdout.isatty():
        for line in lines:
            sys.stdout.write(render.for_terminal(line) if as_json else _ascii(line))
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
    """Text on a terminal: what drives one is escaped already in CSV, and in JSON but for the characters beyond ASCII."""
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in line.decode())


@contextlib.contextmanager
def output(path: Path) -> Generator[IO[bytes]]:
    """
    A file to write under another name, which takes the name of *path* when the block ends well, and is gone when it does not.

    A new file is for its owner only. A link of this account is followed, and one of another is not: it may lead anywhere. What is not a
    plain file, such as a pipe, is written to as it is.

    Raises:
        UserError: It cannot be written.
    """
    import tempfile

    try:
        if path.is_symlink() and path.lstat().st_uid not in (os.getuid(), 0):
            raise UserError(f"{path} is a link that another account has made: choose another name")
        target = path.resolve()
        mode = target.stat().st_mode if target.exists() else None
        if mode is not None and not stat.S_ISREG(mode):
            with target.open("wb") as file:
                yield file
            return
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", suffix=".part", delete=False) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if mode is not None:
                    os.fchmod(file.fileno(), stat.S_IMODE(mode))
                Path(file.name).replace(target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _progress(ledger: Ledger, where: Where, window: Window, args: Any) -> Generator[Callable[[Iterable[Call]], Iterable[Call]]]:
    """What counts calls as they pass by, on a terminal; elsewhere, and where rich is not installed, nothing."""
    if not sys.stderr.isatty() or (args.output is None and sys.stdout.isatty()) or importlib.util.find_spec("rich") is None:
        yield lambda calls: calls
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    (total,) = ledger.spend((), where, window)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("calls"), TimeRemainingColumn())
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
