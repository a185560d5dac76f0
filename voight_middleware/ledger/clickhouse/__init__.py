"""The ledger in a ClickHouse database."""

from voight_middleware.ledger.clickhouse.store import ClickHouseLedger

__all__ = ("ClickHouseLedger",)
