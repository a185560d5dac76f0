"""Arguments that several commands have, and the reading of their values."""

from __future__ import annotations

import argparse
from decimal import Decimal
from pathlib import Path

from voight_middleware.cli.render import UserError

SHORT = {
    "user": "user_id",
    "tenant": "tenant_id",
    "session": "session_id",
    "requested": "requested_model",
    "status": "cost_status",
}
"""Short names of dimensions."""


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every report."""
    add_ledger(parser)
    add_selection(parser)
    add_original_prices(parser)
    add_format(parser, "table", "json", "csv")


def add_ledger(parser: argparse.ArgumentParser) -> None:
    """Add ``--ledger``."""
    parser.add_argument(
        "--ledger",
        metavar="URL",
        help=(
            "a path, postgresql://… or clickhouse://… "
            "(default: VOIGHT_LEDGER, then the default path)"
        ),
    )


def add_selection(parser: argparse.ArgumentParser, *, since_required: bool = False) -> None:
    """Add the filters and the window: ``--where``, ``--since``, ``--until`` and ``--tz``."""
    parser.add_argument(
        "--where",
        metavar="K=V,K=V",
        action="append",
        default=[],
        help="only these calls; * is any text, - is none",
    )
    parser.add_argument(
        "--since",
        metavar="TIME",
        required=since_required,
        help="only calls from this time on: today, week, month, 7d, 24h, 2026-11-01, …",
    )
    parser.add_argument(
        "--until", metavar="TIME", help="only calls up to this time; a day or month is included"
    )
    parser.add_argument(
        "--tz",
        metavar="ZONE",
        help="the time zone of days, weeks and months: Europe/Berlin, … (default: UTC)",
    )


def add_original_prices(parser: argparse.ArgumentParser) -> None:
    """Add ``--original-prices``."""
    parser.add_argument(
        "--original-prices",
        action="store_true",
        help="use the first price of each call, before any repricing",
    )


def add_prices(parser: argparse.ArgumentParser) -> None:
    """Add ``--prices``."""
    parser.add_argument(
        "--prices", metavar="FILE", type=Path, help="your own prices (default: VOIGHT_PRICES)"
    )


def add_format(parser: argparse.ArgumentParser, *formats: str) -> None:
    """Add ``--format``; the first format is the default."""
    parser.add_argument(
        "--format", choices=formats, default=formats[0], help=f"default: {formats[0]}"
    )


def positive(text: str) -> int:
    """Read a whole number above 0."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


positive.__name__ = "positive number"  # argparse: "invalid positive number value: '0'"


def names(text: str) -> list[str]:
    """Read ``user,model`` as names of dimensions."""
    return [SHORT.get(name, name) for name in map(str.strip, text.split(",")) if name]


def amount(text: str, subject: str) -> Decimal:
    """
    Read US dollars as people type them: ``20``, ``$0.05``.

    Raises:
        UserError: It is not such an amount.
    """
    plain = text.strip().removeprefix("$")
    whole, _, fraction = plain.partition(".")
    if (
        plain.isascii()
        and (whole + fraction).isdigit()
        and len(whole) <= 12
        and len(fraction) <= 15
    ):
        return Decimal(plain)
    raise UserError(f"{subject} is {text!r}, not an amount of US dollars such as 20 or 0.05")
