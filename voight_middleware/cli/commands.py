"""The commands of ``voight``, in the groups of its help."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from voight_middleware.cli.context import Context

GROUPS = {
    "Who costs what": {
        "top": "Show the users who cost most, and the trend",
        "spend": "Add up costs by any dimensions",
        "user": "Show the costs and the last calls of one user",
        "plans": "Compare plans: cost, heaviest users, margin",
        "margin": "Compare the cost of each customer with their revenue",
        "release": "Show whose costs a release has changed, and why",
        "unattributed": "Find calls without a user, and the remedy",
        "whatif": "Estimate the cost with other models",
    },
    "Calls": {
        "explain": "Show how the cost of one call adds up",
        "export": "Write calls as JSON lines, CSV, Parquet or FOCUS",
    },
    "Prices": {
        "prices show": "Show the unit prices of a model",
        "prices check": "Check the file of your own prices",
        "reprice": "Price calls again, and keep their former costs",
    },
    "Ledger": {
        "ingest": "Ingest the journal into the ledger until stopped",
        "migrate": "Create the ledger's tables, or upgrade them",
        "move": "Copy one ledger into another, of any engine",
        "rebuild": "Compute the ledger's sums again from its calls",
        "retention": "Delete calls that are older than a number of days",
    },
    "Personal data": {
        "pseudonym": "Show the pseudonyms of a user id, such as an e-mail address",
        "erase": "Erase the ids of one user, and keep the totals",
    },
    "Other services": {
        "events": "Show or send the events that are pending for Voight",
        "otlp": "Receive OpenTelemetry spans, and store the calls in them",
    },
    "Set up and look after": {
        "demo": "Run an example app against a loopback provider",
        "doctor": "Check the installation, the settings, the ledger and the journal",
    },
}
COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}
"""
The line of help of each command: a verb first, and no full stop.

It is here, so that the help and any other command do not import the command's module.
"""


class Command(Protocol):
    """A module that is a command."""

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


def command(name: str) -> Command:
    """Import and return the module of a command."""
    module = import_module(f"voight_middleware.cli.{name.replace(' ', '_')}")
    return cast("Command", module)
