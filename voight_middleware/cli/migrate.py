"""``voight migrate``: make a ledger, or bring it to this version, by the account that may; and say what other accounts may do in it."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

from voight_middleware.cli.render import UserError, printable
from voight_middleware.config.ledger_url import shown_url
from voight_middleware.config.paths import pseudonym_key_file
from voight_middleware.config.settings import Settings
from voight_middleware.config.values import SettingsError
from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.pseudonyms import finding_keys, policy_for

EXAMPLES = {
    "migrate": """\
On a server, applications need not have the right to make tables: run this by an account that has it, once, and again after an upgrade that
asks for it. With --writer and --reader (PostgreSQL) it grants two roles that exist what they need: one brings calls in and can read none,
the other reads and can change nothing. An SQLite ledger is made and upgraded by whoever opens it.

Users whose ids are e-mail addresses are kept under pseudonyms, which need one key on all hosts: --new-key makes it and prints it. Put it
into your secrets. Without it all such users are one row, redacted:email.

examples:
  voight migrate --ledger postgresql://owner@db.internal/app
  voight migrate --ledger postgresql://owner@db.internal/app --writer voight_writer --reader voight_reader
  voight migrate --ledger postgresql://owner@db.internal/app --new-key
"""
}


def add(command: Callable[..., argparse.ArgumentParser], *parents: argparse.ArgumentParser) -> None:
    """Add the command."""
    one = command("migrate", "make the ledger's tables, or bring them to this version", _run, *parents)
    one.add_argument("--writer", metavar="ROLE", help="a role that may bring calls in, and read none")
    one.add_argument("--new-key", action="store_true", help="make a pseudonym key for all hosts, and print it")
    one.add_argument("--reader", metavar="ROLE", help="a role that may read, and change nothing")


def _run(args: Any) -> int:
    return run(Settings.from_environment(ledger=args.ledger), args.writer, args.reader, new_key=args.new_key)


def run(settings: Settings, writer: str | None = None, reader: str | None = None, *, new_key: bool = False) -> int:
    """
    Open the ledger, creating it where it is missing, and grant the roles; say whether pseudonyms have a key, or make one.

    Raises:
        UserError: Roles were given for an engine that has none of ours, or there is a key already.
        LedgerError: The ledger cannot be opened, or this account may not.
    """
    if (writer or reader) and not settings.ledger.startswith(("postgresql://", "postgres://")):
        raise UserError("--writer and --reader are for PostgreSQL: elsewhere rights are the file's or the server's own matter")
    try:
        keys = finding_keys(settings)
    except SettingsError as error:
        raise UserError(str(error)) from error
    if new_key and keys:
        raise UserError("there is a pseudonym key already; docs/privacy.md says how it is rotated")
    with closing(open_ledger(settings.ledger)) as ledger:
        about = dict(ledger.info())
        if writer or reader:
            from voight_middleware.ledger.postgres import PostgresLedger

            assert isinstance(ledger, PostgresLedger)
            ledger.grant(writer=writer, reader=reader)
    print(printable(f"{shown_url(settings.ledger)}: {about['engine']}, schema {about['schema']}"))
    for role, may in ((writer, "may bring calls in"), (reader, "may read")):
        if role is not None:
            print(printable(f"{role} {may}"))
    if new_key:
        print(f"set on every host, and where you run voight: VOIGHT_PSEUDONYM_KEY=v1:{secrets.token_hex(32)}")
    elif not keys and pseudonym_key_file(settings.ledger) is None and policy_for("user_id", settings.pii) == "pseudonym":
        together = "all users with e-mail addresses as ids are one row, redacted:email"
        print(f"no VOIGHT_PSEUDONYM_KEY is set here: without one on every host {together}; --new-key makes one", file=sys.stderr)
    return 0
