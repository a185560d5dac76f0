"""``voight pseudonym``: the pseudonyms of a user id."""

from __future__ import annotations

import argparse

from voight_middleware.cli import privacy
from voight_middleware.cli.arguments import add_ledger
from voight_middleware.cli.context import Context
from voight_middleware.cli.render import printable

EXAMPLES = """\
Prints one line for each key of the ledger. --where user=alice@example.com
matches all of them.

examples:
  voight pseudonym alice@example.com
  voight pseudonym "+1 415 555 2671"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_ledger(parser)
    parser.add_argument(
        "value", metavar="VALUE", help="the id as your application sets it: alice@example.com"
    )


def run(context: Context) -> int:
    """Print the pseudonyms."""
    for name in privacy.names(context.args.value, context.settings):
        print(printable(name))
    return 0
