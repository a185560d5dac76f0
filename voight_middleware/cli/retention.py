"""``voight retention``: delete old calls."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from voight_middleware.cli.arguments import add_format, add_ledger
from voight_middleware.cli.context import Context
from voight_middleware.cli.render import UserError
from voight_middleware.maintenance.retention import retain

_DAY = 86_400_000_000
_MAX_DAYS = 36_500

EXAMPLES = """\
Deletes calls with everything about them: reports about that time are empty
then. The file keeps its size, and new calls use its space.

examples:
  voight retention --keep 400d --dry-run
  voight retention --keep 400d --yes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_ledger(parser)
    add_format(parser, "table", "json")
    parser.add_argument(
        "--keep",
        metavar="DAYS",
        required=True,
        help="the age of the oldest call to keep, such as 400d",
    )
    parser.add_argument("--dry-run", action="store_true", help="only show the calls to delete")
    parser.add_argument("--yes", action="store_true", help="delete them")


def run(context: Context) -> int:
    """Delete the calls, or count them."""
    args, ledger = context.args, context.ledger
    match = re.fullmatch(r"([0-9]{1,5})d", args.keep)
    days = int(match[1]) if match else 0
    if not 1 <= days <= _MAX_DAYS:
        raise UserError(
            f"--keep is a number of days, such as 400d (1d to {_MAX_DAYS}d), not {args.keep!r}"
        )
    deletes = args.yes and not args.dry_run
    until = time.time_ns() // 1000 - days * _DAY
    if deletes:
        with _progress("deleting", ledger.expired(until).calls) as advance:
            expired = retain(ledger, until, done=advance)
    else:
        expired = retain(ledger, until, dry_run=True)
    if args.format == "json":
        row = {
            "calls": expired.calls,
            "former_prices": expired.former_prices,
            "submissions": expired.submissions,
            "deleted": deletes,
        }
        print(json.dumps(row, indent=2))
    else:
        counts = (
            f"{expired.calls:,} calls, {expired.former_prices:,} former prices "
            f"and {expired.submissions:,} submitted jobs older than {days} days"
        )
        hint = "" if args.dry_run else ". Add --yes to delete them."
        print(f"deleted: {counts}" if deletes else f"would be deleted: {counts}{hint}")
    return 0 if deletes or args.dry_run or not expired.calls else 1


@contextmanager
def _progress(label: str, total: int) -> Generator[Callable[[int], None]]:
    """Show a progress bar on a terminal."""
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda _count: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)
