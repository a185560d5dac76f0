"""The commands of ``voight``, in the groups of its help."""

from __future__ import annotations

import argparse
from typing import Protocol

from voight_middleware.cli import (
    demo,
    doctor,
    erase,
    events,
    explain,
    export,
    ingest,
    margin,
    migrate,
    move,
    otlp,
    plans,
    prices_check,
    prices_show,
    pseudonym,
    rebuild,
    release,
    reprice,
    retention,
    spend,
    top,
    unattributed,
    user,
    whatif,
)
from voight_middleware.cli.context import Context


class Command(Protocol):
    """A module that is a command."""

    @property
    def HELP(self) -> str:  # noqa: N802  a constant of the module
        """One line, with a verb first and no full stop."""
        ...

    @property
    def EXAMPLES(self) -> str:  # noqa: N802  a constant of the module
        """Explanations and examples, which follow the options in the help of the command."""
        ...

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of the command."""
        ...

    def run(self, context: Context) -> int:
        """
        Run the command, and return the exit code.

        Raises:
            UserError: The user can fix it.
        """
        ...


GROUPS: dict[str, dict[str, Command]] = {
    "Who costs what": {
        "top": top,
        "spend": spend,
        "user": user,
        "plans": plans,
        "margin": margin,
        "release": release,
        "unattributed": unattributed,
        "whatif": whatif,
    },
    "Calls": {"explain": explain, "export": export},
    "Prices": {"prices show": prices_show, "prices check": prices_check, "reprice": reprice},
    "Ledger": {
        "ingest": ingest,
        "migrate": migrate,
        "move": move,
        "rebuild": rebuild,
        "retention": retention,
    },
    "Personal data": {"pseudonym": pseudonym, "erase": erase},
    "Other services": {"events": events, "otlp": otlp},
    "Set up and look after": {"demo": demo, "doctor": doctor},
}
COMMANDS: dict[str, Command] = {
    name: command for group in GROUPS.values() for name, command in group.items()
}
