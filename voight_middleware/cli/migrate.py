"""``voight migrate``: create or upgrade a ledger, grant roles, and make a pseudonym key."""

from __future__ import annotations

import argparse
import secrets
import sys
from contextlib import closing

from voight_middleware.cli.arguments import add_ledger
from voight_middleware.cli.context import Context
from voight_middleware.cli.render import UserError, printable
from voight_middleware.config.ledger_url import shown_url
from voight_middleware.config.paths import pseudonym_key_file
from voight_middleware.config.values import SettingsError
from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.pseudonyms import finding_keys, policy_for

EXAMPLES = """\
On a server, run this once, by an account that can create tables, and again
after an upgrade that asks for it. Applications do not need that right.
With --writer and --reader (PostgreSQL) it grants two existing roles their
rights: the writer inserts calls and can read none, the reader can change
nothing. An SQLite ledger is created and upgraded when it is opened.

E-mail addresses as user ids are stored as pseudonyms, which need the same key
on all hosts: --new-key makes it and prints it. Put it into your secrets.
Without it all such users are one row, redacted:email.

examples:
  voight migrate --ledger postgresql://owner@db.internal/app
  voight migrate --ledger postgresql://owner@db.internal/app --writer voight_writer --reader voight_reader
  voight migrate --ledger postgresql://owner@db.internal/app --new-key
"""  # noqa: E501


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_ledger(parser)
    parser.add_argument(
        "--writer", metavar="ROLE", help="a role that can insert calls, and read none"
    )
    parser.add_argument(
        "--new-key", action="store_true", help="make a pseudonym key for all hosts, and print it"
    )
    parser.add_argument("--reader", metavar="ROLE", help="a role that can read, and change nothing")


def run(context: Context) -> int:
    """
    Open the ledger, create it if it is missing, and grant the roles.

    Raises:
        UserError: The engine has no roles, or there is a key already.
        LedgerError: The ledger cannot be opened, or this account lacks a right.
    """
    args, settings = context.args, context.settings
    writer, reader = args.writer, args.reader
    if (writer or reader) and not settings.ledger.startswith(("postgresql://", "postgres://")):
        raise UserError(
            "--writer and --reader are for PostgreSQL: grant rights in other ledgers on the file "
            "or the server"
        )
    try:
        keys = finding_keys(settings)
    except SettingsError as error:
        raise UserError(str(error)) from error
    if args.new_key and keys:
        raise UserError("there is a pseudonym key already; docs/privacy.md shows how to rotate it")
    with closing(open_ledger(settings.ledger)) as ledger:
        about = dict(ledger.info())
        if writer or reader:
            from voight_middleware.ledger.postgres import PostgresLedger

            assert isinstance(ledger, PostgresLedger)
            ledger.grant(writer=writer, reader=reader)
    print(printable(f"{shown_url(settings.ledger)}: {about['engine']}, schema {about['schema']}"))
    for role, right in ((writer, "can insert calls"), (reader, "can read")):
        if role is not None:
            print(printable(f"{role} {right}"))
    if args.new_key:
        print(
            "set on every host, and wherever you run voight: "
            f"VOIGHT_PSEUDONYM_KEY=v1:{secrets.token_hex(32)}"
        )
    elif (
        not keys
        and pseudonym_key_file(settings.ledger) is None
        and policy_for("user_id", settings.pii) == "pseudonym"
    ):
        together = "all users with e-mail addresses as ids are one row, redacted:email"
        print(
            f"no VOIGHT_PSEUDONYM_KEY is set here: without one on every host {together}; "
            "--new-key makes one",
            file=sys.stderr,
        )
    return 0
