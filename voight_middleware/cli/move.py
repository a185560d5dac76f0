"""``voight move``: copy one ledger into another, of any engine."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from contextlib import closing
from pathlib import Path

from voight_middleware.cli.arguments import add_format
from voight_middleware.cli.context import Context
from voight_middleware.cli.render import UserError, printable
from voight_middleware.config.ledger_url import ledger_url, shown_url, sqlite_path
from voight_middleware.config.paths import pseudonym_key_file
from voight_middleware.ledger import Ledger, LedgerError, open_ledger
from voight_middleware.maintenance.transfer import Difference, Sums, Transfer, move
from voight_middleware.records.money import from_femto, usd_text

_LINE_SECONDS = 10.0
"""The interval of progress lines if standard error is not a terminal."""
_LISTED = 20

EXAMPLES = """\
Copies calls with all their prices, submitted jobs and tags; the source stays as
it is. Calls are matched by their ids: the target may have other calls, and the
next run finishes an interrupted one. Applications may keep writing into the
source: set VOIGHT_LEDGER to the target in all of them, then run this once more.
That copies the rest, with late owners and new prices. Calls that were deleted
from the target (voight retention) come back: delete them from the source too.

At the end the days of both ledgers are compared: calls, costs to the
femto-dollar, calls without a price, and calls priced in part. Exits with 1 if
they differ.

examples:
  voight move --from sqlite:///voight.db --to postgresql://voight@db.internal/app --dry-run
  voight move --from sqlite:///voight.db --to postgresql://voight@db.internal/app
  voight move --from postgresql://voight@db.internal/app --to clickhouse://voight@ch.internal/voight
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_format(parser, "table", "json")
    # `ledger`: the source is the ledger of the context, whose journal is ingested first.
    parser.add_argument(
        "--from", dest="ledger", metavar="URL", required=True, help="the ledger that has the calls"
    )
    parser.add_argument(
        "--to",
        dest="target",
        metavar="URL",
        required=True,
        help="the ledger to copy into; created if it is missing",
    )
    parser.add_argument("--dry-run", action="store_true", help="only count the calls to copy")


def run(context: Context) -> int:
    """
    Copy the calls, and print the result.

    Raises:
        UserError: Source and target are the same ledger.
        LedgerError: A ledger cannot be opened, read or written, or another run is active.
    """
    args = context.args
    _check(args.ledger, args.target)
    source = context.ledger
    if args.dry_run:
        report = _look(source, args.target)
    else:
        with closing(open_ledger(args.target)) as target:
            lines = Progress(source.spend()[0].calls)
            try:
                report = move(source, target, done=lines.advance)
            finally:
                lines.end()
    print(as_json(report) if args.format == "json" else printable_lines(report, args.ledger))
    return 0 if report.complete else 1


def _check(source: str, target: str) -> None:
    first, second = ledger_url(source), ledger_url(target)
    same = first == second
    if first.startswith("sqlite:") and second.startswith("sqlite:"):
        with contextlib.suppress(OSError):
            same = same or Path(sqlite_path(first)).samefile(sqlite_path(second))
    if same:
        raise UserError(
            f"--from and --to are the same ledger, {shown_url(first)}: there is nothing to move"
        )


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
    The progress on standard error: a changing line with the rate and the time left on a terminal,
    otherwise a line every ten seconds.

    Args:
        total: How many calls there are.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._calls = 0
        self._begin = self._said = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def advance(self, calls: int) -> None:
        """Count *calls* more."""
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
        """Clear the line on the terminal."""
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
    return (
        f"{hours} h {minutes:02} min"
        if hours
        else f"{minutes} min {seconds:02} s"
        if minutes
        else f"{seconds} s"
    )


def printable_lines(report: Transfer, source: str) -> str:
    """Return the result and the differences for a terminal."""
    if report.dry_run:
        counts = f"{_calls(report.copied)} and {report.jobs:,} submitted jobs"
        lines = [
            (
                f"would be moved: {counts}, of {_calls(report.calls)} in the source; nothing was "
                "written: run it without --dry-run"
            )
        ]
    else:
        lines = [
            (
                f"moved: {_calls(report.copied)} and {report.jobs:,} submitted jobs, of "
                f"{_calls(report.calls)} in the source"
            )
        ]
    if report.changed:
        lines.append(
            f"{_calls(report.changed)} updated in the target: the source had a later owner, usage "
            "or price"
        )
    if report.left:
        lines.append(
            f"{_calls(report.left)} unchanged in the target, which has a later version of them"
        )
    lines += [
        f"refused: {call_id}: {reason}"
        for call_id, reason in list(report.refused.items())[:_LISTED]
    ]
    if len(report.refused) > _LISTED:
        lines.append(f"refused: {len(report.refused) - _LISTED:,} more")
    if not report.dry_run and not report.differences:
        lines.append(
            "compared: calls, costs, unpriced and partly priced calls are the same on every day"
        )
    lines += [_difference(difference) for difference in report.differences[:_LISTED]]
    if len(report.differences) > _LISTED:
        lines.append(f"{len(report.differences) - _LISTED:,} more days differ")
    if not all(difference.rollups for difference in report.differences):
        lines.append(
            "If applications write into the source, run this again: no call is copied twice."
        )
    key = pseudonym_key_file(ledger_url(source))
    if key is not None and key.exists() and not report.dry_run:
        lines.append(
            f"Its pseudonyms were made with the key in {key}: every host needs it, see "
            "VOIGHT_PSEUDONYM_KEY in docs/privacy.md."
        )
    return "\n".join(map(printable, lines))


def _difference(difference: Difference) -> str:
    if difference.rollups:
        return (
            f"{difference.day}: the calls are right, but the target's sums of them are not: "
            "voight rebuild --ledger URL"
        )
    return (
        f"{difference.day} differs: {_sums(difference.source)} in the source, "
        f"{_sums(difference.target)} in the target"
    )


def _sums(sums: Sums) -> str:
    cost = usd_text(from_femto(sums.cost_femto))
    return (
        f"{_calls(sums.calls)} of ${cost}, {sums.unpriced_calls:,} without a price, "
        f"{sums.partial_calls:,} priced in part"
    )


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count:,} calls"


def as_json(report: Transfer) -> str:
    """Return the result as a JSON object in ASCII."""
    row = {
        "dry_run": report.dry_run,
        "calls": report.calls,
        "copied": report.copied,
        "changed": report.changed,
        "left": report.left,
        "submissions": report.jobs,
        "refused": report.refused,
        "differences": [
            {
                "day": difference.day,
                "source": _row(difference.source),
                "target": _row(difference.target),
                "rollups": difference.rollups,
            }
            for difference in report.differences
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
