"""The ledger: where calls are kept and questions are answered."""

from __future__ import annotations

from pathlib import Path

from voight_middleware.ledger.base import (
    DIMENSIONS,
    Expired,
    ForeignLedger,
    FormerPrice,
    Holdings,
    Ledger,
    LedgerError,
    Progress,
    Spend,
    UnknownDimension,
    Where,
    Window,
)
from voight_middleware.settings import SettingsError, ledger_url, sqlite_path

__all__ = (
    "DIMENSIONS",
    "Expired",
    "ForeignLedger",
    "FormerPrice",
    "Holdings",
    "Ledger",
    "LedgerError",
    "Progress",
    "Spend",
    "UnknownDimension",
    "Where",
    "Window",
    "open_ledger",
)


def open_ledger(url: str, *, create: bool = True) -> Ledger:
    """
    The ledger at *url*: ``sqlite:///path``, or a path alone.

    Args:
        url: Where the ledger is.
        create: False for reports: a ledger that is not there is an error, not an empty ledger.

    Raises:
        ForeignLedger: There is a file, and it is no ledger.
        LedgerError: The ledger cannot be opened, or *url* names an engine that this version does not have.
    """
    from voight_middleware.ledger.sqlite import SQLiteLedger

    try:
        place = ledger_url(url)
    except SettingsError as error:
        raise LedgerError(str(error)) from error
    if not place.startswith("sqlite:///"):
        engine = place.partition("://")[0]
        raise LedgerError(f"this version keeps calls in SQLite only, not in {engine}: give a path, or sqlite:///path")
    return SQLiteLedger(Path(sqlite_path(place)), create=create)
