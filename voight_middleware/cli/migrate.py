"""``voight migrate``: make a ledger, or bring it to this version, by the account that may; and say what other accounts may do in it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import closing
from typing import Any

from voight_middleware.cli.render import UserError, printable
from voight_middleware.ledger import open_ledger
from voight_middleware.settings import Settings, shown_url

EXAMPLES = {
    "migrate": """\
On a server, applications need not have the right to make tables: run this by an account that has it, once, and again after an upgrade that
asks for it. With --writer and --reader (PostgreSQL) it grants two roles that exist what they need: one brings calls in and can read none,
the other reads and can change nothing. An SQLite ledger is made and upgraded by whoever opens it.

examples:
  voight migrate --ledger postgresql://owner@db.internal/app
  voight migrate --ledger postgresql://owner@db.internal/app --writer voight_writer --reader voight_reader
"""
}


def add(command: Callable[..., argparse.ArgumentParser], *parents: argparse.ArgumentParser) -> None:
    """Add the command."""
    one = command("migrate", "make the ledger's tables, or bring them to this version", _run, *parents)
    one.add_argument("--writer", metavar="ROLE", help="a role that may bring calls in, and read none")
    one.add_argument("--reader", metavar="ROLE", help="a role that may read, and change nothing")


def _run(args: Any) -> int:
    return run(Settings.from_environment(ledger=args.ledger), args.writer, args.reader)


def run(settings: Settings, writer: str | None = None, reader: str | None = None) -> int:
    """
    Open the ledger, creating it where it is missing, and grant the roles.

    Raises:
        UserError: Roles were given for an engine that has none of ours.
        LedgerError: The ledger cannot be opened, or this account may not.
    """
    if (writer or reader) and not settings.ledger.startswith(("postgresql://", "postgres://")):
        raise UserError("--writer and --reader are for PostgreSQL: elsewhere rights are the file's or the server's own matter")
    with closing(open_ledger(settings.ledger)) as ledger:
        about = dict(ledger.about())
        if writer or reader:
            from voight_middleware.ledger.postgres import PostgresLedger

            assert isinstance(ledger, PostgresLedger)
            ledger.grant(writer=writer, reader=reader)
    print(printable(f"{shown_url(settings.ledger)}: {about['engine']}, schema {about['schema']}"))
    for role, may in ((writer, "may bring calls in"), (reader, "may read")):
        if role is not None:
            print(printable(f"{role} {may}"))
    return 0
