"""``voight prices check``: validate the file of your own prices."""

from __future__ import annotations

import argparse
import sys

from voight_middleware.cli.arguments import add_prices
from voight_middleware.cli.context import Context
from voight_middleware.cli.render import printable

EXAMPLES = """\
Exits with 1 if the file has a mistake: none of it is used then.

examples:
  voight prices check
  voight prices check --prices negotiated.toml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_prices(parser)


def run(context: Context) -> int:
    """Check the file; return 1 after a line for each mistake."""
    from voight_middleware.pricing import OverridesError, read_overrides

    settings = context.settings
    if settings.prices is None:
        print(
            "no prices of your own: set VOIGHT_PRICES to the path of a TOML file, or use --prices "
            "FILE"
        )
        return 0
    source = settings.sources.get("prices", "default")
    path = f"{printable(str(settings.prices))} ({source})"
    try:
        overrides = read_overrides(settings.prices)
    except OverridesError as error:
        for problem in error.problems:
            print(printable(problem), file=sys.stderr)
        count = len(error.problems)
        print(
            f"{path}: {count} {'mistake' if count == 1 else 'mistakes'}, so nothing of it is used",
            file=sys.stderr,
        )
        return 1
    rules, names = len(overrides.rules), len(overrides.deployments)
    print(
        f"{path}: {rules} {'price' if rules == 1 else 'prices'}, {names} "
        f"{'deployment' if names == 1 else 'deployments'}"
    )
    return 0
