"""``voight erase``: take one user's ids out of the ledger and the journals."""

from __future__ import annotations

import argparse
import json

from voight_middleware.cli.arguments import add_format, add_ledger
from voight_middleware.cli.context import Context
from voight_middleware.cli.privacy import ids_of
from voight_middleware.cli.render import UserError
from voight_middleware.maintenance.erasure import ErasureResult, erase
from voight_middleware.reports.spend import usd

EXAMPLES = """\
Replaces the ids with one token that nobody can trace back. Calls, tokens and
costs stay exactly as they are. Journals of this host are erased too. Backups,
other hosts and the data of listeners are not: erase those yourself.

examples:
  voight erase u_7 --dry-run
  voight erase alice@example.com --yes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_ledger(parser)
    add_format(parser, "table", "json")
    parser.add_argument("user", metavar="USER", help="the user's id, as your application sets it")
    parser.add_argument("--dry-run", action="store_true", help="only show the calls of the user")
    parser.add_argument("--yes", action="store_true", help="erase the user")


def run(context: Context) -> int:
    """Erase the user, or count their calls."""
    args = context.args
    if not args.user.strip():
        raise UserError("give the whole id of the user: voight erase USER")
    erases = args.yes and not args.dry_run
    names = ids_of(context.ledger, args.user, context.settings)
    result = erase(context.ledger, context.settings, names, dry_run=not erases)
    if args.format == "json":
        print(json.dumps(_row(result), indent=2))
    else:
        print(_text(result, erases))
    if result.remains or result.waiting:
        return 1
    return 0 if erases or args.dry_run or not result.found else 1


def _row(result: ErasureResult) -> dict[str, object]:
    data = result.found
    return {
        "calls": data.calls,
        "cost_usd": usd(data.cost_femto),
        "elsewhere": data.elsewhere,
        "submissions": data.submissions,
        "token": result.token,
        "remains": list(result.remains),
        "waiting": list(result.waiting),
    }


def _text(result: ErasureResult, erases: bool) -> str:
    data, cost = result.found, usd(result.found.cost_femto)
    counts = (
        f"{data.calls:,} calls{'' if cost is None else f' of ${cost}'}, "
        f"{data.elsewhere:,} calls of others that name this user, {data.submissions:,} submitted "
        "jobs"
    )
    if not erases:
        return (
            f"would be erased: {counts}. Add --yes to erase them."
            if data
            else "there is no data under this id"
        )
    lines = [
        f"erased: {counts}; they belong to {result.token} now"
        if data
        else "there was no data under this id"
    ]
    lines += [
        f"still in {path}: other text has the same characters, or another process wrote meanwhile"
        for path in result.remains
    ]
    lines += [
        f"not ingested yet: {name}: run this again when its process has gone on"
        for name in result.waiting
    ]
    return "\n".join(lines)
