"""The ledger in a PostgreSQL database."""

from voight_middleware.ledger.postgres.store import PostgresLedger

__all__ = ("PostgresLedger",)
