"""``voight rebuild``: the ledger's sums, computed again from its calls."""

from __future__ import annotations

import argparse
import sys

from voight_middleware.cli.arguments import add_format, add_ledger
from voight_middleware.cli.context import Context

EXAMPLES = """\
Every insert updates the sums in the same transaction. Rebuild them only after a
change of the tables by hand. In ClickHouse, days have sums an hour after their
last change.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_ledger(parser)
    add_format(parser, "table", "json")


def run(context: Context) -> int:
    """Rebuild the sums."""
    months = 0
    for month in context.ledger.rebuild():
        months += 1
        print(f"rebuilt {month}", file=sys.stderr)
    (total,) = context.ledger.spend()
    if months:
        print(f"rebuilt the sums of {total.calls:,} calls")
    else:
        print("there is nothing to rebuild: this ledger keeps no sums")
    return 0
