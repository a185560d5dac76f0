"""``voight release``: the costs that a release has changed, the causes, and the significance."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from voight_middleware.cli.arguments import add_report_arguments, positive
from voight_middleware.cli.context import Context
from voight_middleware.cli.json_values import moment, total_row
from voight_middleware.cli.render import UserError, caveats, condition, money, note_of_calls
from voight_middleware.cli.table import (
    Column,
    amounts,
    change,
    print_notes,
    print_table,
    print_title,
    signed,
    texts,
)
from voight_middleware.ledger import UnknownDimension
from voight_middleware.records.money import from_femto
from voight_middleware.reports.cost_drivers import FACTORS
from voight_middleware.reports.release import ReleaseReport, ReleaseRow, release
from voight_middleware.reports.release_queries import Side
from voight_middleware.reports.significance import FALSE_DISCOVERIES
from voight_middleware.reports.spend import as_row, ratio, usd

EXAMPLES = f"""\
The time of a release is from its first call to its last call, or to the first
call of the next release. Costs are compared per day and per call.

The difference per day is split exactly (Shapley values) by: the number of
users, calls per user and day, tokens per call, models, and prices.

A difference is noise unless Welch's t-test over whole days is significant, or
over whole hours if there are fewer than three days. False discoveries are held
at {FALSE_DISCOVERIES:.0%} over all tested users (Benjamini-Hochberg).

examples:
  voight release 2026.11.3                        against the release before it
  voight release 2026.11.3 --against 2026.10.1 --limit 25
  voight release 2026.11.3 --where plan=free --format json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_report_arguments(parser)
    parser.add_argument("release", metavar="REL", help="the name of a release")
    parser.add_argument(
        "--against",
        metavar="REL",
        default="previous",
        help="another release (default: previous, the one before it)",
    )
    parser.add_argument(
        "--limit", metavar="N", type=positive, default=10, help="how many users (default: 10)"
    )


def run(context: Context) -> int:
    """Print the report."""
    args = context.args
    try:
        report = release(
            context.ledger,
            args.release,
            None if args.against == "previous" else args.against,
            context.where,
            context.window,
            args.limit,
            original_prices=context.original_prices,
            zone=context.zone,
        )
    except UnknownDimension:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
    about = {
        "before": _side(report.before, context),
        "after": {**_side(report.after, context), **total_row(report.after.spend, report.owners)},
        "total": _figures(report.total),
        "test": _test(report),
        "more": report.more,
    }
    rows = [{"user_id": row.user_id, **_figures(row)} for row in report.rows]
    header = ["user_id", *_figures(report.total)]
    return context.print_report(rows, ("user_id",), about, lambda: _print(report, context), header)


def _side(side: Side, context: Context) -> dict[str, Any]:
    return {
        "release": side.release,
        "since": moment(side.window.since, context.zone),
        "until": moment(side.window.until, context.zone),
        "days": round(float(side.days), 6),
        **as_row(side.spend),
        "unowned_calls": side.unowned.calls,
        "unowned_cost_usd": usd(side.unowned.sum_femto),
        "later_calls": side.later,
    }


def _figures(row: ReleaseRow) -> dict[str, Any]:
    sides = (("before", row.before, row.before_per_day), ("after", row.after, row.after_per_day))
    values: dict[str, Any] = {}
    for (name, spend, per_day), per_call in zip(sides, row.per_call, strict=True):
        values |= {
            f"{name}_calls": spend.calls,
            f"{name}_unpriced_calls": spend.unpriced_calls,
            f"{name}_cost_usd": usd(spend.sum_femto),
            f"{name}_cost_per_day_usd": usd(per_day),
            f"{name}_cost_per_call_usd": usd(per_call),
        }
    split = {} if row.causes is None else asdict(row.causes)
    return {
        **values,
        "difference_per_day_usd": usd(row.difference_per_day),
        **{f"by_{factor}_usd": usd(split.get(factor)) for factor in FACTORS},
        "per_day": row.per_day.verdict,
        "per_day_p": row.per_day.p_value,
        "per_call": row.of_a_call.verdict,
        "per_call_p": row.of_a_call.p_value,
        "status": row.status,
    }


def _test(report: ReleaseReport) -> dict[str, Any]:
    return {
        "name": "Welch's t-test, two-sided, with Benjamini-Hochberg over all users and both costs",
        "false_discoveries": FALSE_DISCOVERIES,
        "of": None
        if report.grain is None
        else f"the cost of each whole {report.grain}, and of a call in it",
        "tested": report.tested,
        "changed": report.changed,
    }


def _print(report: ReleaseReport, context: Context) -> None:
    before, after = report.before, report.after
    conditions = "".join(f" · {condition(item)}" for item in context.where.items())
    priced = ", as first priced" if context.original_prices else ""
    print_title(
        f"Release {after.release} against {before.release}, US dollars per day{priced}{conditions}"
    )
    rows = (*report.rows, report.total)
    split = [asdict(row.causes) if row.causes is not None else {} for row in rows]
    columns = [
        texts("user_id", [row.user_id for row in report.rows]),
        amounts("before", [row.before_per_day for row in rows]),
        amounts("after", [row.after_per_day for row in rows]),
        amounts(
            "difference", [row.difference_per_day for row in rows], written=signed, style="bold"
        ),
        *(
            amounts(
                f"by {factor}",
                [parts.get(factor) for parts in split],
                written=signed,
                absent="-",
                spare=3,
            )
            for factor in FACTORS
        ),
        Column("per day", [_verdict(row, row.per_day.verdict) for row in rows], right=False),
        Column("per call", [_change(row) for row in rows], right=False),
    ]
    print_table(columns)
    print_notes(_notes(report, context))


def _verdict(row: ReleaseRow, verdict: str) -> str:
    return row.status or ("-" if verdict == "untested" else verdict)


def _change(row: ReleaseRow) -> str:
    first, second = row.per_call
    factor = ratio(second, first)
    text = "-" if factor is None else change(factor - 1)
    verdict = row.of_a_call.verdict
    return text if verdict == "untested" else f"{text} {verdict}"


def _notes(report: ReleaseReport, context: Context) -> Iterator[str]:
    if report.more:
        yield (
            f"{report.more:,} more users are in the total: --limit {len(report.rows) + report.more}"
        )
    for side in (report.before, report.after):
        cost = (
            "no price"
            if side.spend.cost_femto is None
            else money(from_femto(side.spend.cost_femto))
        )
        until = moment(side.window.until, context.zone)
        yield (
            f"{side.release}: {note_of_calls(side.spend.calls)}, {cost} in {float(side.days):.2f} "
            "days "
            f"from {moment(side.window.since, context.zone)} until {until}"
        )
        if side.later:
            yield (
                f"{side.release}: {note_of_calls(side.later)} after that, after the start of "
                "another release, not compared"
            )
        if side.spend.unpriced_calls:
            yield (
                f"{side.release}: {note_of_calls(side.spend.unpriced_calls)} without a price, in "
                "no cost and no cause"
            )
    yield (
        "by …: the difference per day split by Shapley values over users, calls of a user, tokens "
        "of a call, models, and prices"
    )
    if report.grain is None:
        yield (
            "noise: not tested, as both releases need three whole days, or twelve whole hours, "
            "for that"
        )
    else:
        yield (
            f"noise: Welch's t-test over whole {report.grain}s, for the {report.tested:,} users "
            "who cost most; "
            f"{report.changed:,} changed by more, at {FALSE_DISCOVERIES:.0%} false discoveries "
            "(Benjamini-Hochberg)"
        )
        if report.grain == "hour":
            yield (
                "the hours of a day differ anyway: run this again when both releases have three "
                "whole days"
            )
    yield from caveats(report.after.spend, report.owners)
