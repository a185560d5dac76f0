"""``voight top``: the groups of calls that cost most, and their trend."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import tzinfo

from voight_middleware.cli.arguments import add_report_arguments, names, positive
from voight_middleware.cli.context import Context
from voight_middleware.cli.json_values import moment, rate, span, total_row
from voight_middleware.cli.render import (
    UserError,
    caveats,
    money,
    note_of_calls,
    note_of_rest,
    percent,
    redacted_users,
    title_of,
)
from voight_middleware.cli.table import (
    NO_CALLS,
    Column,
    amounts,
    change,
    counts,
    print_notes,
    print_table,
    print_title,
    rates,
    shares,
    texts,
)
from voight_middleware.ledger import Spend
from voight_middleware.records.money import from_femto
from voight_middleware.reports.spend import as_row, ratio, usd
from voight_middleware.reports.timespan import describe
from voight_middleware.reports.top import TopReport, TopRow, top

EXAMPLES = """\
The trend compares with the time before: a running month with the same part of
the month before, 7d with the 7 days before. A row without calls then is new.

examples:
  voight top                                      ten users
  voight top --by tenant --since month --limit 25
  voight top --by route --where plan=free         the most expensive routes of the free plan
  voight top --by user --since month --tz Europe/Berlin
  voight top --by feature                         your own key: voight.tag(feature="summary")
"""

_HEADER = (
    "share",
    "cache_hit_rate",
    "cost_per_call_usd",
    "before_calls",
    "before_cost_usd",
    "trend",
    "status",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_report_arguments(parser)
    parser.add_argument(
        "--by",
        metavar="KEY",
        default="user",
        help="user, tenant, plan, model, route, …, or an extra key (default: user)",
    )
    parser.add_argument(
        "--limit", metavar="N", type=positive, default=10, help="how many rows (default: 10)"
    )


def run(context: Context) -> int:
    """Print the report."""
    by = names(context.args.by)
    if not by:
        raise UserError("--by needs a dimension, such as user, plan or model")
    report = top(
        context.ledger,
        by,
        context.where,
        context.window,
        context.args.limit,
        original_prices=context.original_prices,
        zone=context.zone,
    )
    rows = list(map(_row, (*report.rows, *report.gone)))
    compared = None if report.compared_with is None else span(report.compared_with, context.zone)
    about = {
        "by": report.by,
        "compared_with": compared,
        "ledger_begins": moment(report.begins, context.zone),
        "total": {**total_row(report.total.spend, report.owners), **_figures(report.total)},
        "more": report.more,
    }
    header = [*as_row(Spend(dict.fromkeys(report.by))), *_HEADER]
    return context.print_report(rows, report.by, about, lambda: _print(report, context), header)


def _row(row: TopRow) -> dict[str, object]:
    return {**as_row(row.spend), **_figures(row)}


def _figures(row: TopRow) -> dict[str, object]:
    return {
        "share": rate(row.share),
        "cache_hit_rate": rate(row.cache_hit_rate),
        "cost_per_call_usd": usd(row.cost_per_call_femto),
        "before_calls": None if row.before is None else row.before.calls,
        "before_cost_usd": None if row.before is None else usd(row.before.cost_femto),
        "trend": rate(row.trend),
        "status": row.status,
    }


def _print(report: TopReport, context: Context) -> None:
    subject = f"Spend by {', '.join(report.by)}" + (
        ", as first priced" if report.original_prices else ""
    )
    print_title(title_of(subject, report.window, context.where, context.zone))
    if not report.total.spend.calls:
        print_notes([NO_CALLS])
        return
    all_rows = (*report.rows, report.total)
    groups = [row.spend for row in all_rows]
    dimensions = [
        texts(
            name,
            [row.spend.dimensions[name] for row in report.rows],
            ("total" if not number else "",),
        )
        for number, name in enumerate(report.by)
    ]
    columns = [
        *dimensions,
        counts("calls", [group.calls for group in groups]),
        counts("input", [group.input_tokens for group in groups]),
        counts("cached", [group.cache_read_tokens for group in groups], spare=4),
        counts("output", [group.output_tokens for group in groups]),
        amounts("cost", [group.cost_femto for group in groups], style="bold"),
        shares("share", [row.share for row in report.rows]),
        rates("cache hits", [row.cache_hit_rate for row in all_rows], 3),
        amounts("per call", [row.cost_per_call_femto for row in all_rows], absent="-", spare=2),
    ]
    if report.compared_with is not None:
        columns.append(Column("trend", [change(row.trend, row.status or "-") for row in all_rows]))
    print_table(columns)
    print_notes(_notes(report, context.zone))


def _notes(report: TopReport, zone: tzinfo) -> Iterator[str]:
    yield from note_of_rest(len(report.rows), report.more)
    if report.compared_with is not None and report.total.before is not None:
        before = report.total.before
        cost = (
            "no calls"
            if not before.calls
            else "unpriced"
            if before.cost_femto is None
            else money(from_femto(before.cost_femto))
        )
        yield f"trend: against the time {describe(report.compared_with, zone)} ({cost})"
        if report.begins is not None:
            yield (
                "the ledger does not have all of that time: its first call was at "
                f"{moment(report.begins, zone)}"
            )
        if before.unpriced_calls:
            yield (
                f"{note_of_calls(before.unpriced_calls)} of {before.calls:,} of that time without "
                "a price"
            )
    for row in report.gone:
        if row.before is not None and row.before.cost_femto is not None:
            name = ", ".join(
                "(none)" if value is None else value for value in row.spend.dimensions.values()
            )
            part = "" if report.total.before is None else _part(row, report.total)
            yield f"gone: {name}, {money(from_femto(row.before.cost_femto))}{part} then"
    yield from redacted_users(row.spend for row in report.rows)
    yield from caveats(report.total.spend, report.owners)


def _part(row: TopRow, total: TopRow) -> str:
    assert row.before is not None
    assert total.before is not None
    return f" ({percent(ratio(row.before.cost_femto, total.before.cost_femto))} of the cost)"
