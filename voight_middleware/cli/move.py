"""``voight move``: everything of one ledger into another one, of whatever engine."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from voight_middleware.cli.render import UserError, printable
from voight_middleware.config.ledger_url import ledger_url, shown_url, sqlite_path
from voight_middleware.config.paths import pseudonym_key_file
from voight_middleware.ledger import Ledger, LedgerError, open_ledger
from voight_middleware.maintenance.transfer import Difference, Sums, Transfer, move
from voight_middleware.records.money import from_femto, usd_text

_LINE_SECONDS = 10.0
"""How often progress is said where it is no terminal."""
_LISTED = 20

EXAMPLES = {
    "move": """\
Calls with every price that they have had, submitted jobs and tags go over; the source stays as it is. A call is one by its id: the target
may have calls of its own, and a run that was broken off is finished by the next one. Applications may go on writing into the source: set
VOIGHT_LEDGER to the target in all of them, then run this once more, and it brings the rest, late owners and new prices among it. What
was deleted from the target meanwhile (voight retention) would come back: delete it from the source too.

At the end the days of both are compared: calls, costs to the femto-dollar, calls without a price and with a price in part. Exits with 1
where they differ.

examples:
  voight move --from sqlite:///voight.db --to postgresql://voight@db.internal/app --dry-run
  voight move --from sqlite:///voight.db --to postgresql://voight@db.internal/app
  voight move --from postgresql://voight@db.internal/app --to clickhouse://voight@ch.internal/voight
"""
}


def add(command: Callable[..., argparse.ArgumentParser], run: Callable[[Any], int], *parents: argparse.ArgumentParser) -> None:
    """Add the command; *run* runs it."""
    one = command("move", "bring everything of one ledger into another one", run, *parents)
    one.add_argument("--from", dest="source", metavar="URL", required=True, help="the ledger that has the calls")
    one.add_argument("--to", dest="target", metavar="URL", required=True, help="the ledger that they go to; made where it is missing")
    one.add_argument("--dry-run", action="store_true", help="only say how many calls there are to move")


def check(source: str, target: str) -> None:
    """
    Whether one ledger can be moved into the other, as far as their URLs tell.

    Raises:
        UserError: Both name the same ledger.
        SettingsError: One of them names none.
    """
    one, other = ledger_url(source), ledger_url(target)
    same = one == other
    if one.startswith("sqlite:") and other.startswith("sqlite:"):
        with contextlib.suppress(OSError):
            same = same or Path(sqlite_path(one)).samefile(sqlite_path(other))
    if same:
        raise UserError(f"--from and --to are the same ledger, {shown_url(one)}: there is nothing to move")


def run(source: Ledger, args: Any) -> int:
    """
    Move the calls, and say what has become of them.

    Raises:
        LedgerError: One of the ledgers cannot be opened, read or written; another run goes on.
    """
    if args.dry_run:
        report = _look(source, args.target)
    else:
        with closing(open_ledger(args.target)) as target:
            lines = Progress(source.spend()[0].calls)
            try:
                report = move(source, target, done=lines.advance)
            finally:
                lines.end()
    print(as_json(report) if args.format == "json" else printable_lines(report, args.source))
    return 0 if report.complete else 1


def _look(source: Ledger, url: str) -> Transfer:
    try:
        target = open_ledger(url, create=False)
    except LedgerError as error:
        if "there is no ledger" not in str(error):
            raise
        return move(source, None, dry_run=True)
    with closing(target):
        return move(source, target, dry_run=True)


class Progress:
    """
    How far it is, on standard error: a line that changes, with rate and time left, on a terminal; elsewhere a line now and then.

    Args:
        total: How many calls there are.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._calls = 0
        self._begin = self._said = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def advance(self, calls: int) -> None:
        """So many more are done."""
        self._calls += calls
        now = time.monotonic()
        if self._terminal:
            rate = self._calls / max(now - self._begin, 0.001)
            left = max(self._total - self._calls, 0) / rate
            text = f"{self._text()}, {rate:,.0f} a second, {_span(left)} left"
            sys.stderr.write(f"\r{text[: (columns := _columns() - 1)]:<{columns}}")
            sys.stderr.flush()
        elif now - self._said >= _LINE_SECONDS:
            self._said = now
            print(f"voight: {self._text()}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take the line off the terminal."""
        if self._terminal and self._calls:
            sys.stderr.write(f"\r{'':<{_columns() - 1}}\r")
            sys.stderr.flush()

    def _text(self) -> str:
        return f"{self._calls:,} of {max(self._total, self._calls):,} calls"


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


def _span(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def printable_lines(report: Transfer, source: str) -> str:
    """What has been done, and what differs."""
    if report.dry_run:
        would = f"{_calls(report.copied)} and {report.jobs:,} submitted jobs"
        lines = [f"would be moved: {would}, of {_calls(report.calls)} in the source; nothing was written: run it without --dry-run"]
    else:
        lines = [f"moved: {_calls(report.copied)} and {report.jobs:,} submitted jobs, of {_calls(report.calls)} in the source"]
    if report.changed:
        lines.append(f"{_calls(report.changed)} of the target: the source knew more of them, an owner, a usage or a price")
    if report.left:
        lines.append(f"{_calls(report.left)} of both: they stay as they are in the target, which knows more of them")
    lines += [f"refused: {call_id}: {reason}" for call_id, reason in list(report.refused.items())[:_LISTED]]
    if len(report.refused) > _LISTED:
        lines.append(f"refused: {len(report.refused) - _LISTED:,} more")
    if not report.dry_run and not report.differences:
        lines.append("compared: on every day the same calls, costs, calls without a price and with one in part")
    lines += [_difference(one) for one in report.differences[:_LISTED]]
    if len(report.differences) > _LISTED:
        lines.append(f"{len(report.differences) - _LISTED:,} more days differ")
    if not all(one.rollups for one in report.differences):
        lines.append("Is the source being written? Run it again: what is there already is not copied twice.")
    key = pseudonym_key_file(ledger_url(source))
    if key is not None and key.exists() and not report.dry_run:
        lines.append(f"Pseudonyms in it were made with the key in {key}: every host needs it, see VOIGHT_PSEUDONYM_KEY in docs/privacy.md.")
    return "\n".join(map(printable, lines))


def _difference(one: Difference) -> str:
    if one.rollups:
        return f"{one.day}: the calls are right, and the sums that the target keeps beside them are not: voight rebuild --ledger URL"
    return f"{one.day} differs: {_sums(one.source)} in the source, {_sums(one.target)} in the target"


def _sums(sums: Sums) -> str:
    cost = usd_text(from_femto(sums.cost_femto))
    return f"{_calls(sums.calls)} of ${cost}, {sums.unpriced_calls:,} without a price, {sums.partial_calls:,} priced in part"


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count:,} calls"


def as_json(report: Transfer) -> str:
    """The same as one JSON object, in ASCII."""
    row = {
        "dry_run": report.dry_run,
        "calls": report.calls,
        "copied": report.copied,
        "changed": report.changed,
        "left": report.left,
        "submissions": report.jobs,
        "refused": report.refused,
        "differences": [
            {"day": one.day, "source": _row(one.source), "target": _row(one.target), "rollups": one.rollups} for one in report.differences
        ],
    }
    return json.dumps(row, indent=2)


def _row(sums: Sums) -> dict[str, object]:
    return {
        "calls": sums.calls,
        "cost_usd": usd_text(from_femto(sums.cost_femto)),
        "unpriced_calls": sums.unpriced_calls,
        "partial_calls": sums.partial_calls,
    }
