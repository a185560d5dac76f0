"""``voight top``: who costs most, and whether that is more than before."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import tzinfo
from typing import Any

from voight_middleware.cli.context import ReportContext, moment, names, rate, span, total_row
from voight_middleware.cli.render import UserError, caveats, money, note_of_calls, percent, title_of, together
from voight_middleware.cli.table import Column, amounts, change, counts, print_notes, print_table, print_title, rates, shares, texts
from voight_middleware.records.money import from_femto
from voight_middleware.reports.spend import as_row, usd
from voight_middleware.reports.timespan import describe
from voight_middleware.reports.top import TopReport, TopRow, top

EXAMPLES = """\
The trend compares with the time before: a month that is still running with the same part of the month before, 7d with the 7 days
before. A row that had no calls then is new.

examples:
  voight top                                      ten users
  voight top --by tenant --since month --limit 25
  voight top --by route --where plan=free         which route the free plan costs most on
  voight top --by user --since month --tz Europe/Berlin
  voight top --by feature                         a key of your own: voight.tag(feature="summary")
"""

_HEADER = ("share", "cache_hit_rate", "cost_per_call_usd", "before_calls", "before_cost_usd", "trend", "status")


def answer(asked: ReportContext) -> int:
    """Print the report."""
    by = names(asked.args.by)
    if not by:
        raise UserError("--by needs a dimension, such as user, plan or model")
    report = top(asked.ledger, by, asked.where, asked.window, asked.args.limit, original_prices=asked.original_prices, zone=asked.zone)
    rows = list(map(_row, (*report.rows, *report.gone)))
    compared = None if report.compared_with is None else span(report.compared_with, asked.zone)
    about = {
        "by": report.by,
        "compared_with": compared,
        "ledger_begins": moment(report.begins, asked.zone),
        "total": {**total_row(report.total.spend, report.owners), **_figures(report.total)},
        "more": report.more,
    }
    header = [*as_row(_empty(report)), *_HEADER]
    return asked.answer(rows, report.by, about, lambda: _print(report, asked), header)


def _empty(report: TopReport) -> Any:
    from voight_middleware.ledger import Spend

    return Spend(dict.fromkeys(report.by))


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


def _print(report: TopReport, asked: ReportContext) -> None:
    subject = f"Spend by {', '.join(report.by)}" + (", as first priced" if report.original_prices else "")
    print_title(title_of(subject, report.window, asked.where, asked.zone))
    if not report.total.spend.calls:
        print_notes(["No call matches. `voight spend` shows what there is; `voight doctor` says where calls go."])
        return
    all_rows = (*report.rows, report.total)
    groups = [row.spend for row in all_rows]
    dimensions = [
        texts(name, [row.spend.dimensions[name] for row in report.rows], ("total" if not number else "",))
        for number, name in enumerate(report.by)
    ]
    columns = [
        *dimensions,
        counts("calls", [group.calls for group in groups]),
        counts("input", [group.input_tokens for group in groups]),
        _spare(counts("cached", [group.cache_read_tokens for group in groups]), 4),
        counts("output", [group.output_tokens for group in groups]),
        amounts("cost", [group.cost_femto for group in groups], style="bold"),
        shares("share", [row.share for row in report.rows]),
        rates("cache hits", [row.cache_hit_rate for row in all_rows], 3),
        _spare(amounts("per call", [row.cost_per_call_femto for row in all_rows], absent="-"), 2),
    ]
    if report.compared_with is not None:
        columns.append(Column("trend", [change(row.trend, row.status or "-") for row in all_rows]))
    print_table(columns)
    print_notes(_notes(report, asked.zone))


def _spare(column: Column, order: int) -> Column:
    return Column(column.name, column.cells, column.right, column.style, column.wide, order)


def _notes(report: TopReport, zone: tzinfo) -> Iterator[str]:
    if report.more:
        yield f"{report.more:,} more rows are in the total: --limit {len(report.rows) + report.more}"
    if report.compared_with is not None and report.total.before is not None:
        before = report.total.before
        cost = "no calls" if not before.calls else "unpriced" if before.cost_femto is None else money(from_femto(before.cost_femto))
        yield f"trend: against the time {describe(report.compared_with, zone)} ({cost})"
        if report.begins is not None:
            yield f"the ledger does not have all of that time: its first call is of {moment(report.begins, zone)}"
        if before.unpriced_calls:
            yield f"{note_of_calls(before.unpriced_calls)} of {before.calls:,} of that time without a price"
    for row in report.gone:
        if row.before is not None and row.before.cost_femto is not None:
            name = ", ".join("(none)" if value is None else value for value in row.spend.dimensions.values())
            part = "" if report.total.before is None else _part(row, report.total)
            yield f"gone: {name}, {money(from_femto(row.before.cost_femto))}{part} then"
    yield from together(row.spend for row in report.rows)
    yield from caveats(report.total.spend, report.owners)


def _part(row: TopRow, total: TopRow) -> str:
    from voight_middleware.reports.spend import ratio

    assert row.before is not None
    assert total.before is not None
    return f" ({percent(ratio(row.before.cost_femto, total.before.cost_femto))} of the cost)"
