"""``voight otlp``: receive spans from other languages and libraries."""

from __future__ import annotations

import argparse
import os
import sys

from voight_middleware.cli.arguments import add_ledger
from voight_middleware.cli.context import Context
from voight_middleware.cli.render import UserError
from voight_middleware.config.ledger_url import shown_url
from voight_middleware.pipeline.meter import Meter
from voight_middleware.providers.hosts import is_loopback

EXAMPLES = """\
Set OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 in the sending process
and, with a token, OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer <token>"

examples:
  voight otlp
  VOIGHT_OTLP_TOKEN=… voight otlp --host 0.0.0.0      reachable from other hosts: put TLS before it
"""
MIN_TOKEN = 16
"""The shortest token, in characters."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_ledger(parser)
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="default: 127.0.0.1; any other needs a token",
    )
    parser.add_argument(
        "--port",
        metavar="N",
        type=_port,
        default=4318,
        help="default: 4318, the standard port of OTLP",
    )
    parser.add_argument(
        "--token",
        metavar="TEXT",
        help="the bearer token of senders (default: VOIGHT_OTLP_TOKEN, which ps does not show)",
    )


def run(context: Context) -> int:
    """Receive spans until a signal arrives."""
    args, settings = context.args, context.settings
    try:
        from voight_middleware.otlp.receiver import Server
    except ImportError as error:
        raise UserError(str(error)) from error

    token = args.token if args.token is not None else os.environ.get("VOIGHT_OTLP_TOKEN")
    token = token.strip() if token is not None else None
    if token is not None and not (
        len(token) >= MIN_TOKEN and token.isascii() and token.isprintable() and " " not in token
    ):
        raise UserError(
            f"a token has at least {MIN_TOKEN} characters, without spaces: make one with openssl "
            "rand -hex 32"
        )
    if token is None and not is_loopback(args.host):
        raise UserError(
            f"{args.host} can be reached from other hosts, which could write calls: set "
            "VOIGHT_OTLP_TOKEN"
        )
    try:
        server = Server(Meter(settings), args.host, args.port, token)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {args.host}, port {args.port}: {error}") from error

    def ready() -> None:
        print(
            f"voight: receiving spans at {server.url}/v1/traces, into {shown_url(settings.ledger)}",
            file=sys.stderr,
            flush=True,
        )

    server.serve(ready)
    totals = server.receiver.totals
    spans = (
        f"{totals.repeated:,} spans of known calls, {totals.others:,} of no call, "
        f"{totals.rejected:,} rejected"
    )
    print(f"voight: stopped; {totals.calls:,} calls stored, {spans}", file=sys.stderr)
    return 0


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 to 65535")
    return int(text)
