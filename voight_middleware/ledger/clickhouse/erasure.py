"""Erasure in a ClickHouse ledger: a person's ids in every column that can hold them, and in the parts that the server keeps."""

from __future__ import annotations

from collections.abc import Collection

from voight_middleware.ledger.base import Holdings
from voight_middleware.ledger.clickhouse.database import Database


def holdings(db: Database, names: Collection[str]) -> Holdings:
    raise NotImplementedError


def erase(db: Database, names: Collection[str], token: str) -> Holdings:
    raise NotImplementedError


def purge(db: Database, names: Collection[str]) -> list[str]:
    raise NotImplementedError
