"""``voight margin``: the cost of each customer, and their revenue."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from voight_middleware.cli.arguments import add_report_arguments, amount, names, positive
from voight_middleware.cli.context import Context
from voight_middleware.cli.json_values import rate, total_row
from voight_middleware.cli.render import (
    UserError,
    caveats,
    money,
    note_of_calls,
    note_of_rest,
    title_of,
)
from voight_middleware.cli.table import (
    Column,
    amounts,
    counts,
    print_notes,
    print_table,
    print_title,
    rates,
    signed,
    texts,
)
from voight_middleware.config.settings import Settings
from voight_middleware.ledger import Window
from voight_middleware.pipeline.pseudonyms import known_as
from voight_middleware.records.money import from_femto
from voight_middleware.reports import timespan
from voight_middleware.reports.margin import AmbiguousCustomers, MarginReport, MarginRow, margin
from voight_middleware.reports.revenue import Revenue, RevenueError, read_csv
from voight_middleware.reports.spend import as_row, usd
from voight_middleware.reports.stripe_revenue import StripeMissing, connect, read_stripe

EXAMPLES = """\
A CSV file has the columns id and revenue, and optionally currency. Every
mistake in it is reported with its line. Revenue and calls are of the same time,
by default this month.

With stripe, revenue is the sum of the invoices paid in that time, without tax,
less credit notes. Customers are matched by an id in their metadata. Set
STRIPE_API_KEY to a key that can read invoices and customers; it needs no more.

examples:
  voight margin --revenue november.csv --month 2026-11
  voight margin --revenue customers.csv --on tenant --since 2026-10 --until 2026-11
  voight margin --revenue stripe --stripe-key-field user_id
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_report_arguments(parser)
    parser.add_argument(
        "--revenue",
        metavar="FILE|stripe",
        required=True,
        help="a CSV file with the columns id and revenue, or stripe",
    )
    parser.add_argument(
        "--on",
        metavar="KEY",
        default="user",
        help="what the ids are: user, tenant, or an extra key (default: user)",
    )
    parser.add_argument(
        "--month",
        metavar="MONTH",
        help="the calls and invoices of a month: 2026-11 (default: this month)",
    )
    parser.add_argument(
        "--rate", metavar="USD", help="US dollars for one unit of the revenue's currency"
    )
    parser.add_argument("--limit", metavar="N", type=positive, help="how many rows (default: all)")
    parser.add_argument(
        "--stripe-key-field",
        metavar="KEY",
        help="the key of the id in a customer's metadata (default: --on)",
    )


def run(context: Context) -> int:
    """Print the report."""
    args = context.args
    (on, *others) = names(args.on) or [""]
    if others or not on:
        raise UserError("--on takes one key: user, tenant, or an extra key")
    context.window = _window(context)
    try:
        revenue = _revenue(context, on)
        in_usd = revenue.in_usd(None if args.rate is None else amount(args.rate, "the rate"))
        report = margin(
            context.ledger,
            in_usd,
            on,
            context.where,
            context.window,
            args.limit,
            known_as=_known_as(context.settings),
            original_prices=context.original_prices,
            zone=context.zone,
        )
    except (RevenueError, AmbiguousCustomers, StripeMissing) as error:
        raise UserError(str(error)) from error
    about = {
        "on": on,
        "total": {
            **total_row(report.total, report.owners),
            "revenue_usd": usd(report.revenue_femto),
            "cost_to_revenue": rate(report.cost_to_revenue),
            "margin_usd": usd(report.margin_femto),
        },
        "source": revenue.source,
        "notes": revenue.notes,
        "more": report.more,
    }
    rows = list(map(_row, report.rows))
    header = list(_row(MarginRow("", None, report.total)))
    return context.print_report(
        rows, ("id",), about, lambda: _print(report, revenue, context), header
    )


def _known_as(settings: Settings) -> Callable[[str], Sequence[str]]:
    """Return a function from a customer's id to its names in the ledger, with pseudonyms."""
    return lambda id_: (id_, *(name for name in known_as(id_, settings) if "*" not in name))


def _window(context: Context) -> Window:
    month, args = context.args.month, context.args
    if month is None and (args.since or args.until):
        return context.window
    if month is not None and (args.since or args.until):
        raise UserError("--month is short for --since and --until: give only one of them")
    try:
        return timespan.parse_window(
            month or "month", month or "month", datetime.now(UTC), context.zone
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _revenue(context: Context, on: str) -> Revenue:
    if context.args.revenue != "stripe":
        return read_csv(Path(context.args.revenue), on)
    if context.window.since is None:
        raise UserError("give the time of the invoices with --since or --month")
    key = os.environ.get("STRIPE_API_KEY")
    if not key:
        raise UserError(
            "set STRIPE_API_KEY to a key of Stripe that can read invoices and customers"
        )
    return read_stripe(
        connect(key, os.environ.get("STRIPE_API_BASE")),
        context.window,
        context.args.stripe_key_field or on,
    )


def _row(row: MarginRow) -> dict[str, Any]:
    return {
        "id": row.id,
        **{
            name: value
            for name, value in as_row(row.spend).items()
            if name not in row.spend.dimensions
        },
        "revenue_usd": usd(row.revenue_femto),
        "cost_to_revenue": rate(row.cost_to_revenue),
        "margin_usd": usd(row.margin_femto),
        "status": row.status,
    }


def _print(report: MarginReport, revenue: Revenue, context: Context) -> None:
    rows = report.rows
    subject = f"Margin by {report.on}" + (", as first priced" if report.original_prices else "")
    print_title(title_of(subject, report.window, context.where, context.zone))
    total_cost = report.total.cost_femto if report.total.calls else 0
    columns = [
        texts(report.on, [row.id for row in rows]),
        counts("calls", [*(row.spend.calls for row in rows), report.total.calls]),
        amounts(
            "revenue", [*(row.revenue_femto for row in rows), report.revenue_femto], absent="-"
        ),
        amounts("cost", [*(row.cost_femto for row in rows), total_cost]),
        rates("cost/revenue", [*(row.cost_to_revenue for row in rows), report.cost_to_revenue]),
        amounts(
            "margin",
            [*(row.margin_femto for row in rows), report.margin_femto],
            written=signed,
            style="bold",
            absent="-",
        ),
        Column("", [*(row.status or "" for row in rows), ""], right=False),
    ]
    print_table(columns)
    print_notes(_notes(report, revenue))


def _notes(report: MarginReport, revenue: Revenue) -> Iterator[str]:
    yield from note_of_rest(len(report.rows), report.more)
    idle, unpaid, customers = report.idle, report.unpaid, report.customers
    if unpaid.customers:
        yield (
            f"{unpaid.customers:,} of {customers:,} have calls and no revenue: they cost "
            f"{money(from_femto(unpaid.femto))}"
        )
    if idle.customers:
        yield (
            f"{idle.customers:,} of {customers:,} have revenue and no calls: they pay "
            f"{money(from_femto(idle.femto))}"
        )
    if idle.customers + unpaid.customers == customers and idle.customers and unpaid.customers:
        yield f"no id of the revenue is one of the ledger: are both of {report.on}?"
    if report.unowned.calls:
        cost_ = (
            ""
            if report.unowned.cost_femto is None
            else f" ({money(from_femto(report.unowned.cost_femto))})"
        )
        yield (
            f"{note_of_calls(report.unowned.calls)}{cost_} without {report.on}, in the total and "
            "in no row"
        )
    if report.unknown:
        yield (
            f"{report.unknown:,} of {customers:,} have no call with a price: their margin is "
            "unknown"
        )
    yield from revenue.notes
    yield from caveats(report.total, None)
