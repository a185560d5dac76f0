"""``voight user``: the costs of one user by day, model and route, and their last calls."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

from voight_middleware.cli.arguments import add_report_arguments, positive
from voight_middleware.cli.context import Context
from voight_middleware.cli.json_values import moment
from voight_middleware.cli.privacy import ids_of, no_key
from voight_middleware.cli.render import UserError, caveats, sparkline, title_of
from voight_middleware.cli.table import (
    amounts,
    counts,
    print_notes,
    print_table,
    print_title,
    shares,
    texts,
    whole,
)
from voight_middleware.ledger import Spend
from voight_middleware.pipeline.pseudonyms import finding_keys
from voight_middleware.records.call import Call
from voight_middleware.records.pii import find
from voight_middleware.reports.spend import as_row, ratio, usd
from voight_middleware.reports.timespan import to_datetime
from voight_middleware.reports.user import PARTS, UserReport, user

_DAYS_SHOWN = 60

EXAMPLES = """\
examples:
  voight user u_7
  voight user u_7 --since month --tz Europe/Berlin
  voight user u_7 --last 50 --format csv          their last calls
  voight user u_7 --format json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_report_arguments(parser)
    parser.add_argument("user", metavar="ID", help="the id of a user, as your application sets it")
    parser.add_argument(
        "--last",
        metavar="N",
        type=positive,
        default=10,
        help="how many of the last calls (default: 10)",
    )


def run(context: Context) -> int:
    """Print the report."""
    if {"user_id", "user_id!"} & context.where.keys():
        raise UserError("the user is an argument here: voight user ID")
    try:
        context.args.user.encode()
    except UnicodeEncodeError as error:
        raise UserError("the id is not text in the encoding of this terminal") from error
    report = user(
        context.ledger,
        context.args.user,
        context.where,
        context.window,
        known_as=ids_of(context.ledger, context.args.user, context.settings),
        last=context.args.last,
        original_prices=context.original_prices,
        zone=context.zone,
    )
    if not report.total.calls:
        raise UserError(
            f"there is no call of {report.user_id!r} here; voight top --by user lists the "
            f"users{_lost_key(context)}"
        )
    about = {
        "user_id": report.user_id,
        "total": as_row(report.total),
        "days": list(map(as_row, report.days)),
        **{f"by_{name}": list(map(as_row, report.parts[name])) for name in PARTS},
    }
    rows = [_call(call, context) for call in report.last]
    return context.print_report(rows, _TEXTS, about, lambda: _print(report, context))


def _lost_key(context: Context) -> str:
    """Explain that a user may be here under a pseudonym, which needs the key."""
    if find(context.args.user) is None or finding_keys(context.settings):
        return ""
    users = context.ledger.spend(["user_id"], {"user_id": "*:v*:*"}, limit=1)
    return (
        f". {no_key(context.settings)}, and users are kept under pseudonyms here: give the key of "
        "the application"
        if users
        else ""
    )


_TEXTS = (
    "call_id",
    "provider",
    "model",
    "route",
    "release",
    "plan",
    "tenant_id",
    "outcome",
    "attribution",
    "cost_status",
)


def _call(call: Call, context: Context) -> dict[str, Any]:
    usage = call.usage
    return {
        "call_id": call.call_id,
        "occurred_at": moment(call.occurred_at, context.zone),
        "provider": call.provider,
        "model": call.model or call.requested_model,
        "route": call.tags.route,
        "release": call.tags.release,
        "plan": call.tags.plan,
        "tenant_id": call.tags.tenant_id,
        "outcome": call.outcome,
        "attribution": call.attribution,
        "input_tokens": None if usage is None else usage.input_tokens,
        "output_tokens": None if usage is None else usage.output_tokens,
        "cost_usd": usd(call.cost_femto),
        "cost_status": call.cost_status,
    }


def _print(report: UserReport, context: Context) -> None:
    subject = f"User {report.user_id}" + (", as first priced" if report.original_prices else "")
    print_title(title_of(subject, report.window, context.where, context.zone))
    for name in PARTS:
        rows = report.parts[name]
        if name not in ("model", "route") and len(rows) == 1 and rows[0].dimensions[name] is None:
            continue
        _print_part(name, rows, report.total)
    print_notes(_timeline(report))
    calls = report.last
    print_table(
        [
            whole("last calls", [_second(call, context) for call in calls]),
            whole("id", [call.call_id for call in calls]),
            replace(
                texts("model", [call.model or call.requested_model for call in calls], ()), spare=2
            ),
            replace(texts("route", [call.tags.route for call in calls], ()), spare=3),
            whole("outcome", [call.outcome for call in calls], 1),
            amounts("cost", [call.cost_femto for call in calls]),
        ],
        footers=0,
    )
    print_notes(caveats(report.total, None))


def _second(call: Call, context: Context) -> str:
    """Return the time of a call in the zone of the title."""
    return to_datetime(call.occurred_at).astimezone(context.zone).strftime("%Y-%m-%d %H:%M:%S")


def _print_part(name: str, rows: tuple[Spend, ...], total: Spend) -> None:
    groups = (*rows, total)
    print_table(
        [
            texts(name, [row.dimensions[name] for row in rows]),
            counts("calls", [row.calls for row in groups]),
            counts("input", [row.input_tokens for row in groups]),
            counts("output", [row.output_tokens for row in groups]),
            amounts("cost", [row.cost_femto for row in groups], style="bold"),
            shares("share", [ratio(row.cost_femto, total.cost_femto) for row in rows]),
        ]
    )


def _timeline(report: UserReport) -> Iterator[str]:
    costs = {str(day.dimensions["day"]): day.cost_femto or 0 for day in report.days}
    first, last = date.fromisoformat(min(costs)), date.fromisoformat(max(costs))
    first = max(first, last - timedelta(days=_DAYS_SHOWN - 1))
    days = [
        (first + timedelta(days=number)).isoformat() for number in range((last - first).days + 1)
    ]
    yield f"cost per day from {first} to {last}: {sparkline([costs.get(day) for day in days])}"
