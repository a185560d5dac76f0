"""``voight plans``: the cost of each plan, its heaviest users, and its margin."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from voight_middleware.cli import plot
from voight_middleware.cli.arguments import add_report_arguments, amount
from voight_middleware.cli.context import Context
from voight_middleware.cli.json_values import rate, total_row
from voight_middleware.cli.render import UserError, caveats, money, note_of_calls, title_of
from voight_middleware.cli.table import (
    NO_CALLS,
    amounts,
    counts,
    print_notes,
    print_table,
    print_title,
    rates,
    shares,
    signed,
    texts,
)
from voight_middleware.ledger import UnknownDimension
from voight_middleware.records.money import from_femto
from voight_middleware.reports.plans import (
    TIMES_THE_MEDIAN,
    TOP_PERCENT,
    PlanRow,
    PlansReport,
    plans,
)
from voight_middleware.reports.spend import as_row, usd

_HEAVY_SHOWN = 5

EXAMPLES = f"""\
A user above the threshold is heavy. The threshold is --threshold, or else the
price of the plan, or else {TIMES_THE_MEDIAN} times the cost of the plan's median user.
The top 1% of the users of a plan are rounded up to whole users.
A price is for a month and a user; other windows count as parts of months.

examples:
  voight plans --since month
  voight plans --since month --price free=0,pro=20,enterprise=200
  voight plans --since 7d --threshold 0.50 --format json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_report_arguments(parser)
    parser.add_argument(
        "--threshold", metavar="USD", help="the cost above which a user is heavy (see below)"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="draw the concentration of each plan: FILE.png or FILE.svg"
    )
    parser.add_argument(
        "--price",
        metavar="PLAN=USD,…",
        action="append",
        default=[],
        help="the price of a plan for one user and month",
    )


def run(context: Context) -> int:
    """Print the report."""
    picture = plot.check(context.args.plot)
    threshold = (
        None
        if context.args.threshold is None
        else int(amount(context.args.threshold, "the threshold").scaleb(15))
    )
    try:
        report = plans(
            context.ledger,
            context.where,
            context.window,
            threshold_femto=threshold,
            prices=read_prices(context.args.price),
            original_prices=context.original_prices,
            zone=context.zone,
        )
    except UnknownDimension:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
    if picture is not None:
        plot.concentration(
            report,
            title_of("Concentration by plan", report.window, context.where, context.zone),
            picture,
        )
    about = {
        "total": {
            **total_row(report.total, report.owners),
            "revenue_usd": usd(report.revenue_femto),
            "margin_usd": usd(report.margin_femto),
        },
        "months": None
        if report.months is None
        else rate(Decimal(report.months.numerator) / Decimal(report.months.denominator)),
        "unused_prices": report.unused_prices,
    }
    rows = list(map(_row, report.rows))
    if context.args.format == "csv":
        rows = [
            {**row, "heavy": len(plan.heavy)} for row, plan in zip(rows, report.rows, strict=True)
        ]
    empty = PlanRow(None, report.total, None, 0, 0, report.total, (), None, ())
    return context.print_report(
        rows, ("plan",), about, lambda: _print(report, context), list(_row(empty))
    )


def read_prices(texts: Sequence[str]) -> dict[str | None, Decimal]:
    """
    Read prices of plans: ``free=0,pro=20``; ``-`` stands for calls without a plan.

    Raises:
        UserError: A price cannot be read, or a plan is named twice.
    """
    prices: dict[str | None, Decimal] = {}
    for text in ",".join(texts).split(",") if texts else ():
        name, equals, price = text.rpartition("=")
        plan = None if name.strip() == "-" else name.strip()
        if not equals or plan == "":
            raise UserError(f"cannot read the price {text!r}; write --price plan=20,plan=0")
        if plan in prices:
            raise UserError(f"the plan {name.strip()!r} has two prices")
        prices[plan] = amount(price, f"the price of {name.strip()!r}")
    return prices


def _row(row: PlanRow) -> dict[str, Any]:
    return {
        "plan": row.plan,
        **as_row(row.spend),
        "share": rate(row.share),
        "users": row.users,
        "unpriced_users": row.unpriced_users,
        "unowned_calls": row.unowned.calls,
        "unowned_cost_usd": usd(row.unowned.cost_femto),
        "mean_usd": usd(row.mean_femto),
        "median_usd": usd(row.median_femto),
        **{f"top_{part}_percent": rate(row.concentration(part)) for part in TOP_PERCENT},
        "threshold_usd": usd(row.threshold_femto),
        "heavy": [
            {
                "user_id": user.user_id,
                "calls": user.spend.calls,
                "cost_usd": usd(user.spend.cost_femto),
            }
            for user in row.heavy
        ],
        "price_usd": usd(row.price_femto),
        "revenue_usd": usd(row.revenue_femto),
        "cost_to_revenue": rate(row.cost_to_revenue),
        "margin_usd": usd(row.margin_femto),
        "users_at_a_loss": row.users_at_a_loss,
    }


def _print(report: PlansReport, context: Context) -> None:
    print_title(
        title_of(
            "Plans" + (", as first priced" if report.original_prices else ""),
            report.window,
            context.where,
            context.zone,
        )
    )
    if not report.total.calls:
        print_notes([NO_CALLS])
        return
    rows = report.rows
    columns = [
        texts("plan", [row.plan for row in rows]),
        counts("calls", [*(row.spend.calls for row in rows), report.total.calls]),
        amounts(
            "cost", [*(row.spend.cost_femto for row in rows), report.total.cost_femto], style="bold"
        ),
        shares("share", [row.share for row in rows]),
        counts("users", [*(row.users for row in rows), None]),
        amounts("mean", [*(row.mean_femto for row in rows), None], absent="-"),
        amounts("median", [*(row.median_femto for row in rows), None], absent="-"),
        *(
            rates(f"top {part}%", [*(row.concentration(part) for row in rows), None])
            for part in TOP_PERCENT
        ),
        counts("heavy", [*(len(row.heavy) for row in rows), sum(len(row.heavy) for row in rows)]),
    ]
    if report.months is not None:
        columns += [
            amounts(
                "revenue", [*(row.revenue_femto for row in rows), report.revenue_femto], absent="-"
            ),
            rates("cost/revenue", [*(row.cost_to_revenue for row in rows), None]),
            amounts(
                "margin",
                [*(row.margin_femto for row in rows), report.margin_femto],
                written=signed,
                absent="-",
            ),
        ]
    print_table(columns)
    print_notes(_notes(report))


# Complex: one condition for each note.
def _notes(report: PlansReport) -> Iterator[str]:
    for row in report.rows:
        plan = "calls without a plan" if row.plan is None else row.plan
        if row.heavy and row.threshold_femto is not None:
            named = ", ".join(
                f"{user.user_id} {money(from_femto(user.spend.cost_femto or 0))}"
                for user in row.heavy[:_HEAVY_SHOWN]
            )
            more = "" if len(row.heavy) <= _HEAVY_SHOWN else ", …"
            users = "1 user" if len(row.heavy) == 1 else f"{len(row.heavy):,} users"
            yield f"{plan}: {users} above {money(from_femto(row.threshold_femto))}: {named}{more}"
        if row.users_at_a_loss and not row.heavy:
            yield f"{plan}: {row.users_at_a_loss:,} of {row.users:,} users cost more than they pay"
        if row.unowned.calls and row.plan is not None:
            yield (
                f"{plan}: {note_of_calls(row.unowned.calls)} without a user, in the cost of the "
                "plan and of no user"
            )
        if row.unpriced_users:
            yield (
                f"{plan}: {row.unpriced_users:,} of {row.users:,} users have no call with a "
                "price, and are in no mean, median or share"
            )
    if report.months is not None:
        yield (
            f"revenue: price times users with calls times {float(report.months):.3f} months; "
            "users without calls are not in it"
        )
        losing = [
            row for row in report.rows if row.margin_femto is not None and row.margin_femto < 0
        ]
        paying = [
            row for row in report.rows if row.margin_femto is not None and row.margin_femto > 0
        ]
        for row in losing:
            by = ", ".join(plan.plan or "(none)" for plan in paying)
            loss = money(from_femto(-(row.margin_femto or 0)))
            payers = f": {by} pay{'s' if len(paying) == 1 else ''} for it" if by else ""
            yield f"{row.plan or '(none)'} costs {loss} more than it brings in{payers}"
        for row in report.rows:
            if row.price_femto is None:
                yield f"{row.plan or '(none)'} has no price: give --price {row.plan or '-'}=USD"
    for plan in report.unused_prices:
        yield f"{plan} has a price, and no call"
    yield (
        "top 1%, 5%, 10%: the share of a plan's cost that its most expensive users cause, rounded "
        "up to whole users"
    )
    yield from caveats(report.total, report.owners)
