"""``voight unattributed``: calls without a user, the reasons, and the remedies."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from voight_middleware.cli.arguments import add_report_arguments, names, positive
from voight_middleware.cli.context import Context
from voight_middleware.cli.json_values import rate
from voight_middleware.cli.render import (
    UserError,
    caveats,
    note_of_calls,
    note_of_rest,
    percent,
    title_of,
)
from voight_middleware.cli.table import (
    NO_CALLS,
    Column,
    amounts,
    counts,
    print_notes,
    print_table,
    print_title,
    rates,
    shares,
    texts,
)
from voight_middleware.ledger import Spend
from voight_middleware.reports.spend import as_row, ratio, usd
from voight_middleware.reports.unattributed import (
    Section,
    Source,
    UnattributedReport,
    UnattributedRow,
    unattributed,
)

EXAMPLES = """\
examples:
  voight unattributed                             by source, route and model
  voight unattributed --since 7d --by route,model
  voight unattributed --by feature --format csv
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_report_arguments(parser)
    parser.add_argument(
        "--by",
        metavar="KEY,KEY",
        default="",
        help="the dimensions of a row (default: route, then model)",
    )
    parser.add_argument(
        "--limit", metavar="N", type=positive, default=10, help="how many rows (default: 10)"
    )


def run(context: Context) -> int:
    """Print the report."""
    if {"user_id", "user_id!"} & context.where.keys():
        raise UserError("this report is about calls without a user: filter by other dimensions")
    by = names(context.args.by)
    groupings = [by] if by else [["route"], ["model"]]
    if context.args.format == "csv" and not by:
        groupings = [["attribution", "route", "model"]]
    report = unattributed(
        context.ledger,
        groupings,
        context.where,
        context.window,
        context.args.limit,
        original_prices=context.original_prices,
        zone=context.zone,
    )
    about = {
        "share_of_calls": rate(report.owners.share_of_calls),
        "share_of_spend": rate(report.owners.share_of_spend),
        "unowned": as_row(report.owners.unowned),
        "total": as_row(report.owners.total),
        "sources": list(map(_source, report.sources)),
        "sections": [
            {"by": section.by, "rows": list(map(_row, section.rows)), "more": section.more}
            for section in report.sections
        ],
    }
    rows = (
        [_row(row) for section in report.sections for row in section.rows]
        if context.args.format == "csv" or by
        else []
    )
    group = Spend(dict.fromkeys(groupings[0]))
    header = list(_row(UnattributedRow(group, group, None, None)))
    return context.print_report(rows, groupings[0], about, lambda: _print(report, context), header)


def _source(source: Source) -> dict[str, Any]:
    return {
        "attribution": source.attribution,
        "calls": source.spend.calls,
        "cost_usd": usd(source.spend.cost_femto),
        "unowned_calls": source.unowned.calls,
        "unowned_cost_usd": usd(source.unowned.sum_femto),
        "unowned_unpriced_calls": source.unowned.unpriced_calls,
        "advice": source.advice,
    }


def _row(row: UnattributedRow) -> dict[str, Any]:
    return {
        **as_row(row.unowned),
        "share_of_calls": rate(row.share_of_calls),
        "share_of_spend": rate(row.share_of_spend),
        "all_calls": row.all.calls,
        "all_cost_usd": usd(row.all.cost_femto),
    }


def _print(report: UnattributedReport, context: Context) -> None:
    owners = report.owners
    subject = "Without an owner" + (", as first priced" if report.original_prices else "")
    print_title(title_of(subject, report.window, context.where, context.zone))
    if not owners.total.calls:
        print_notes([NO_CALLS])
        return
    sources = report.sources
    totals = [owners.total.calls, owners.unowned.calls]
    columns = [
        texts("attribution", [source.attribution for source in sources]),
        counts("calls", [*(source.spend.calls for source in sources), totals[0]]),
        counts("without owner", [*(source.unowned.calls for source in sources), totals[1]]),
        rates(
            "of its calls",
            [
                *(ratio(source.unowned.calls, source.spend.calls) for source in sources),
                owners.share_of_calls,
            ],
        ),
        amounts(
            "cost",
            [
                group.sum_femto
                for group in (*(source.unowned for source in sources), owners.unowned)
            ],
        ),
    ]
    print_table(columns)
    print_notes(_advice(report))
    for section in report.sections:
        _print_section(section, owners.unowned)
    print_notes(caveats(owners.unowned, None))


def _advice(report: UnattributedReport) -> Iterator[str]:
    owners = report.owners
    if not owners.unowned.calls:
        yield "every call has an owner"
    else:
        spend = (
            ""
            if owners.share_of_spend is None
            else f", {percent(owners.share_of_spend)} of the cost"
        )
        yield (
            f"{note_of_calls(owners.unowned.calls)} of {owners.total.calls:,} "
            f"({percent(owners.share_of_calls)}{spend}) without an owner"
        )
    for source in report.sources:
        if source.advice is not None:
            yield f"{source.attribution}: {source.advice}"


def _print_section(section: Section, total: Spend) -> None:
    rows = section.rows
    columns: list[Column] = [
        texts(
            name, [row.unowned.dimensions[name] for row in rows], ("total" if not number else "",)
        )
        for number, name in enumerate(section.by)
    ]
    columns += [
        counts("without owner", [*(row.unowned.calls for row in rows), total.calls]),
        rates("of its calls", [*(ratio(row.unowned.calls, row.all.calls) for row in rows), None]),
        amounts(
            "cost", [*(row.unowned.cost_femto for row in rows), total.cost_femto], style="bold"
        ),
        shares("share", [row.share_of_spend for row in rows]),
    ]
    print_table(columns)
    print_notes(note_of_rest(len(rows), section.more))
