"""The ledger: stores calls and answers reports."""

from __future__ import annotations

from pathlib import Path

from voight_middleware.config.ledger_url import ledger_url, sqlite_path
from voight_middleware.config.values import SettingsError
from voight_middleware.ledger.base import (
    DIMENSIONS,
    Expired,
    ForeignLedger,
    Ledger,
    LedgerError,
    PersonalData,
    PriceVersion,
    Progress,
    Spend,
    UnknownDimension,
    Where,
    Window,
)

__all__ = (
    "DIMENSIONS",
    "Expired",
    "ForeignLedger",
    "Ledger",
    "LedgerError",
    "PersonalData",
    "PriceVersion",
    "Progress",
    "Spend",
    "UnknownDimension",
    "Where",
    "Window",
    "open_ledger",
)


def open_ledger(url: str, *, create: bool = True) -> Ledger:
    """
    Open the ledger at *url*: ``sqlite:///path`` or a plain path, ``postgresql://…`` or
    ``clickhouse://…``.

    Args:
        url: The location of the ledger.
        create: False for reports: a missing ledger is an error then, not an empty ledger.

    Raises:
        ForeignLedger: *url* is in use, but not by a ledger.
        LedgerError: The ledger cannot be opened, *url* names an unknown engine, or the engine's
            driver is not installed.
    """
    try:
        place = ledger_url(url)
    except SettingsError as error:
        raise LedgerError(str(error)) from error
    engine = place.partition("://")[0]
    try:
        if engine == "sqlite":
            from voight_middleware.ledger.sqlite import SQLiteLedger

            return SQLiteLedger(Path(sqlite_path(place)), create=create)
        if engine in ("postgresql", "postgres"):
            from voight_middleware.ledger.postgres import PostgresLedger

            return PostgresLedger(place, create=create)
        if engine == "clickhouse":
            from voight_middleware.ledger.clickhouse import ClickHouseLedger

            return ClickHouseLedger(place, create=create)
    except ImportError as error:
        extra = "clickhouse" if engine == "clickhouse" else "postgres"
        raise LedgerError(
            f"the driver of this ledger is not installed ({error}): run pip install "
            f"'voight-middleware[{extra}]'"
        ) from error
    raise LedgerError(
        f"unknown ledger engine {engine!r}: use a path, sqlite:///path, postgresql://… or "
        "clickhouse://…"
    )
