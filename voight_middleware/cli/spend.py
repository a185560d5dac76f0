"""``voight spend``: costs by any dimensions."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import UTC
from typing import TYPE_CHECKING

from voight_middleware.cli import plot
from voight_middleware.cli.arguments import add_report_arguments, names, positive
from voight_middleware.cli.context import Context
from voight_middleware.cli.json_values import span, total_row
from voight_middleware.cli.render import (
    caveats,
    csv_text,
    dimension,
    money,
    note_of_rest,
    redacted_users,
    sparkline,
    title_of,
)
from voight_middleware.cli.table import (
    NO_CALLS,
    amounts,
    counts,
    print_notes,
    print_table,
    print_texts,
    print_title,
    shares,
    texts,
)
from voight_middleware.ledger import DIMENSIONS, Ledger, Spend, Where
from voight_middleware.records.money import from_femto
from voight_middleware.reports import timespan
from voight_middleware.reports.spend import SpendReport, as_row, spend
from voight_middleware.reports.unattributed_share import Unattributed, unattributed_beside

if TYPE_CHECKING:
    from rich.text import Text

_TIMES_SHOWN = 80
_LINES_SHOWN = 12

EXAMPLES = f"""\
dimensions:
  {", ".join(DIMENSIONS[:9])},
  {", ".join(DIMENSIONS[9:])}, and the extra keys of your tags;
  user, tenant and session are short for user_id, tenant_id and session_id,
  status for cost_status, requested for requested_model

filters:
  --where plan=free,model=gpt-*                   * stands for any text
  --where plan=free,plan=pro                      one of several values
  --where plan!=free                              any other, and calls without a plan
  --where user=-                                  calls without a user (or user=none); user!=- those with one
  --where 'user=a**b,feature=x\\,y'               ** is a star, \\, a comma, \\- the id "-"
  --where user=alice@example.com                  the user's pseudonyms too

times, for --since and --until, in UTC or the zone of --tz:
  {timespan.FORMS};
  a day, week or month given to --until is included

examples:
  voight spend                                    the total
  voight spend --by day --since month
  voight spend --by plan,model --where plan=free --format csv
  voight spend --by release --since 2026-11-01 --until 2026-11-30 --format json
"""  # noqa: E501


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_report_arguments(parser)
    parser.add_argument(
        "--by",
        metavar="KEY,KEY",
        default="",
        help="the dimensions of a row (default: one row, the total)",
    )
    parser.add_argument("--limit", metavar="N", type=positive, help="how many rows (default: all)")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw spend over time, of --by day or --by day,plan: FILE.png or FILE.svg",
    )


def run(context: Context) -> int:
    """Print the report."""
    args = context.args
    by = names(args.by)
    picture = plot.check(args.plot, by)
    report = spend(
        context.ledger,
        by,
        context.where,
        context.window,
        args.limit,
        original_prices=context.original_prices,
        zone=context.zone,
    )
    if picture is not None:
        title = title_of(f"Spend by {', '.join(by)}", context.window, context.where, context.zone)
        plot.spend_over_time(report, title, picture)
    if args.format == "json":
        owners = _without_owner(context.ledger, report, context.where)
        about = {
            **span(context.window, context.zone),
            "by": report.by,
            "total": total_row(report.total, owners),
            "more": report.more,
        }
        print(json.dumps({**about, "rows": list(map(as_row, report.rows))}, indent=2))
    elif args.format == "csv":
        sys.stdout.write(as_csv(report))
    else:
        print_spend(report, context.where, _without_owner(context.ledger, report, context.where))
    return 0


def as_csv(report: SpendReport) -> str:
    """Return the rows as CSV with a header. Text that looks like a formula is escaped."""
    header = list(as_row(Spend(dimensions=dict.fromkeys(report.by))))
    return csv_text(header, map(as_row, report.rows), report.by)


def print_spend(report: SpendReport, where: Where, owners: Unattributed | None) -> None:
    """Print the rows, the total, and the gaps in the total."""
    subject = f"Spend by {', '.join(report.by)}" if report.by else "Spend"
    if report.original_prices:
        subject += ", as first priced"
    print_title(title_of(subject, report.window, where, report.zone or UTC))
    if not report.total.calls:
        print_notes([NO_CALLS])
        return
    rows = report.rows if report.by else ()
    groups = (*rows, report.total)
    labels = [
        texts(name, [row.dimensions[name] for row in rows], ("" if number else "total",))
        for number, name in enumerate(report.by)
    ]
    columns = [
        *(labels or [texts("", [])]),
        counts("calls", [group.calls for group in groups]),
        counts("input", [group.input_tokens for group in groups]),
        counts("cached", [group.cache_read_tokens for group in groups]),
        counts("output", [group.output_tokens for group in groups]),
        amounts("cost", [group.cost_femto for group in groups], style="bold"),
        shares("share", [report.share(row) for row in rows]),
    ]
    print_table(columns)
    print_texts(_lines_of_time(report))
    print_notes(_notes(report, owners))


def _without_owner(ledger: Ledger, report: SpendReport, where: Where) -> Unattributed | None:
    if not report.total.calls:
        return None
    return unattributed_beside(
        ledger,
        report.total,
        () if report.more else report.rows,
        where,
        report.window,
        original_prices=report.original_prices,
        zone=report.zone,
    )


def _notes(report: SpendReport, owners: Unattributed | None) -> Iterator[str]:
    yield from note_of_rest(len(report.rows), report.more)
    yield from redacted_users(report.rows)
    yield from caveats(report.total, owners)


def _lines_of_time(report: SpendReport) -> Iterator[Text]:
    """Return a line of bars over time for the first values of the second dimension."""
    if not report.over_time or len(report.by) != 2:
        return
    from rich.text import Text

    first, second = report.by
    times = list(dict.fromkeys(row.dimensions[first] for row in report.rows))[-_TIMES_SHOWN:]
    costs: dict[str | None, dict[str | None, int | None]] = {}
    for row in report.rows:
        costs.setdefault(row.dimensions[second], {})[row.dimensions[first]] = row.cost_femto
    totals = {
        value: sum(cost or 0 for cost in of_value.values()) for value, of_value in costs.items()
    }
    values = sorted(costs, key=lambda value: -totals[value])[:_LINES_SHOWN]
    labels = [dimension(value) for value in values]
    width = max(map(len, labels))
    for label, value in zip(labels, values, strict=True):
        label.pad_right(width - len(label))
        bars = sparkline([costs[value].get(time) for time in times])
        yield Text.assemble(label, "  ", (bars, "cyan"), f"  {money(from_femto(totals[value]))}")
