"""``voight otlp``: receive spans from other languages and libraries."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from voight_middleware.cli.render import UserError
from voight_middleware.config.ledger_url import shown_url
from voight_middleware.config.settings import Settings
from voight_middleware.pipeline.meter import Meter
from voight_middleware.providers.hosts import is_loopback

EXAMPLES = """\
Exporters find it with OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 and, where it has a token,
OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer <token>"

examples:
  voight otlp
  VOIGHT_OTLP_TOKEN=… voight otlp --host 0.0.0.0      reachable from elsewhere: put TLS before it
"""
MIN_TOKEN = 16
"""The shortest token, in characters."""


def add(command: Callable[..., argparse.ArgumentParser], run: Callable[[Any], int], place: argparse.ArgumentParser) -> None:
    """Give the command line this command."""
    added = command("otlp", "receive spans (OTLP over HTTP) and keep the calls that they tell of", run, place)
    added.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="default: 127.0.0.1; any other needs a token")
    added.add_argument("--port", metavar="N", type=_port, default=4318, help="default: 4318, OTLP's own")
    added.add_argument("--token", metavar="TEXT", help="what senders show as a bearer (default: VOIGHT_OTLP_TOKEN, which ps does not show)")


def run(settings: Settings, args: Any) -> int:
    """Receive until the process is told to stop."""
    try:
        from voight_middleware.otlp.receiver import Server
    except ImportError as error:
        raise UserError(str(error)) from error

    token = args.token if args.token is not None else os.environ.get("VOIGHT_OTLP_TOKEN")
    token = token.strip() if token is not None else None
    if token is not None and not (len(token) >= MIN_TOKEN and token.isascii() and token.isprintable() and " " not in token):
        raise UserError(f"a token has {MIN_TOKEN} characters or more, without spaces, such as those of: openssl rand -hex 32")
    if token is None and not is_loopback(args.host):
        raise UserError(f"{args.host} can be reached from elsewhere, and whoever reaches it can write calls: set VOIGHT_OTLP_TOKEN")
    try:
        server = Server(Meter(settings), args.host, args.port, token)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {args.host}, port {args.port}: {error}") from error

    def ready() -> None:
        print(f"voight: receiving spans at {server.url}/v1/traces, into {shown_url(settings.ledger)}", file=sys.stderr, flush=True)

    server.serve(ready)
    totals = server.receiver.totals
    spans = f"{totals.repeated:,} spans of calls that were known already, {totals.others:,} of no call, {totals.rejected:,} not used"
    print(f"voight: stopped; {totals.calls:,} calls kept, {spans}", file=sys.stderr)
    return 0


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 0 to 65535")
    return int(text)
