"""The reports as commands: their arguments, and which module answers them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeAlias

from voight_middleware.cli import margin, plans, release, top, unattributed, user, whatif
from voight_middleware.cli.context import ReportContext

Answer: TypeAlias = Callable[[ReportContext], int]
Command: TypeAlias = Callable[..., argparse.ArgumentParser]

EXAMPLES = {
    "top": top.EXAMPLES,
    "plans": plans.EXAMPLES,
    "release": release.EXAMPLES,
    "margin": margin.EXAMPLES,
    "unattributed": unattributed.EXAMPLES,
    "whatif": whatif.EXAMPLES,
    "user": user.EXAMPLES,
}


def add(command: Command, ask: Callable[[Answer], Callable[[Any], int]], *parents: argparse.ArgumentParser) -> None:
    """
    Add the commands.

    Args:
        command: Adds one, of a name, a text, what runs it, and the arguments that it shares with others.
        ask: What opens the ledger for an answer.
        parents: The arguments that every report takes.
    """
    foremost = command("top", "who costs most, and whether that is more than before", ask(top.answer), *parents)
    foremost.add_argument(
        "--by", metavar="KEY", default="user", help="user, tenant, plan, model, route, …, or an extra key (default: user)"
    )
    foremost.add_argument("--limit", metavar="N", type=positive, default=10, help="how many rows (default: 10)")
    plans.add_arguments(
        command("plans", "what plans cost, how much their heaviest users take, who pays for whom", ask(plans.answer), *parents)
    )
    text = "whose bill a release has changed, why, and whether that is more than noise"
    release.add_arguments(command("release", text, ask(release.answer), *parents), positive)
    margin.add_arguments(command("margin", "what each customer costs, beside what he pays", ask(margin.answer), *parents), positive)
    text = "which calls have no owner, how that came, and what to do about it"
    unattributed.add_arguments(command("unattributed", text, ask(unattributed.answer), *parents), positive)
    whatif.add_arguments(command("whatif", "what calls would have cost with other models", ask(whatif.answer), *parents), positive)
    user.add_arguments(command("user", "what one user has done: days, models, routes, last calls", ask(user.answer), *parents), positive)


def positive(text: str) -> int:
    """A whole number above 0."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


positive.__name__ = "positive number"  # argparse: "invalid positive number value: '0'"
