"""The ledger in one SQLite file."""

from voight_middleware.ledger.sqlite.store import SQLiteLedger

__all__ = ("SQLiteLedger",)
