"""``voight reprice``: price calls again, and keep their former costs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from voight_middleware.cli.arguments import add_format, add_ledger, add_prices, add_selection
from voight_middleware.cli.context import Context
from voight_middleware.cli.render import csv_text, note_of_calls, title_of
from voight_middleware.cli.table import (
    amounts,
    counts,
    print_notes,
    print_table,
    print_title,
    signed,
    texts,
)
from voight_middleware.ledger import Where
from voight_middleware.maintenance.repricing import Difference, Repricing, reprice
from voight_middleware.reports.spend import usd

EXAMPLES = """\
Uses today's price book for the time of each call: dated prices, and your own.
The former figures stay readable with --original-prices.

examples:
  voight reprice --since month --dry-run          show the changes only
  voight reprice --since 2026-11-01 --until 2026-11-30 --where provider=openai
  voight reprice --since month --dry-run --prices negotiated.toml --format csv
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_ledger(parser)
    add_selection(parser, since_required=True)
    add_prices(parser)
    add_format(parser, "table", "json", "csv")
    parser.add_argument("--dry-run", action="store_true", help="only show the changes")


def run(context: Context) -> int:
    """Reprice, and print the differences."""
    args, book = context.args, context.open_prices()
    report = reprice(context.ledger, book, context.where, context.window, args.dry_run)
    if args.format == "json":
        print(as_json(report))
    elif args.format == "csv":
        sys.stdout.write(as_csv(report))
        if report.priced_by_own:
            print(f"voight: {priced_by_own(report)}", file=sys.stderr)
    else:
        print_repricing(report, context.where)
    return 0


def as_json(report: Repricing) -> str:
    """Return the totals, and the users and models with a new cost, as a JSON object in ASCII."""
    value = {
        "dry_run": report.dry_run,
        "written": report.written,
        "passed_over": report.passed_over,
        "priced_by_own": report.priced_by_own,
        "total": _counts(report.total),
        "rows": list(map(_row, report.rows)),
    }
    return json.dumps(value, indent=2)


def as_csv(report: Repricing) -> str:
    """Return the users and models with a new cost, as CSV with a header."""
    return csv_text(list(_row(Difference())), map(_row, report.rows), ("user_id", "model"))


def print_repricing(report: Repricing, where: Where) -> None:
    """Print the difference by user and model, the totals, and the result."""
    subject = "Repricing, dry run" if report.dry_run else "Repricing"
    print_title(title_of(subject, report.window, where))
    if report.rows:
        every = (*report.rows, report.total)
        columns = [
            texts("user_id", [row.user_id for row in report.rows]),
            texts("model", [row.model for row in report.rows], ("",)),
            counts("calls", [row.calls for row in every]),
            counts("changed", [row.changed for row in every]),
            amounts("before", [row.before_femto for row in every]),
            amounts("after", [row.after_femto for row in every]),
            amounts(
                "difference", [row.difference_femto for row in every], written=signed, style="bold"
            ),
        ]
        print_table(columns)
    print_notes(_notes(report))


def _notes(report: Repricing) -> Iterator[str]:
    total = report.total
    if not total.calls:
        yield "No call matches. `voight spend` shows what there is."
        return
    if not total.changed:
        yield f"{note_of_calls(total.calls)} looked at: no price has changed"
    elif report.dry_run:
        yield (
            f"{note_of_calls(total.changed)} would get a new price; nothing was written: run it "
            "without --dry-run"
        )
    else:
        yield (
            f"{note_of_calls(report.written)} got a new price; --original-prices and voight "
            "explain CALL_ID show the former ones"
        )
    if not report.dry_run and report.written < total.changed:
        yield (
            f"{note_of_calls(total.changed - report.written)} changed in another process "
            "meanwhile: run it again"
        )
    for name, before, after in (
        ("without a price", total.unpriced_before, total.unpriced_after),
        ("priced in part", total.partial_before, total.partial_after),
    ):
        if before or after:
            yield f"{name}: {note_of_calls(before)} before, {after:,} after"
    if report.priced_by_own:
        yield priced_by_own(report)
    if report.passed_over:
        yield (
            f"{note_of_calls(report.passed_over)} left as they are: the provider reported no "
            "usage to price them by"
        )


def priced_by_own(report: Repricing) -> str:
    """Note the calls that keep the prices of the user's own file."""
    count = note_of_calls(report.priced_by_own)
    return (
        f"{count} left as they are: they have prices of your own: use --prices FILE (an empty "
        "file drops them)"
    )


def _row(difference: Difference) -> dict[str, Any]:
    return {"user_id": difference.user_id, "model": difference.model, **_counts(difference)}


def _counts(difference: Difference) -> dict[str, Any]:
    return {
        "calls": difference.calls,
        "changed": difference.changed,
        "before_usd": usd(difference.before_femto),
        "after_usd": usd(difference.after_femto),
        "difference_usd": usd(difference.difference_femto),
        "unpriced_before": difference.unpriced_before,
        "unpriced_after": difference.unpriced_after,
        "partial_before": difference.partial_before,
        "partial_after": difference.partial_after,
    }
