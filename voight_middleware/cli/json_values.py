"""Values of reports as JSON and CSV have them."""

from __future__ import annotations

import json
from datetime import UTC, tzinfo
from decimal import Decimal

from voight_middleware.ledger import Spend, Window
from voight_middleware.records.money import usd_text
from voight_middleware.reports import timespan
from voight_middleware.reports.spend import as_row, usd
from voight_middleware.reports.unattributed_share import Unattributed


def span(window: Window, zone: tzinfo) -> dict[str, str | None]:
    """Return a window as ``since``, ``until`` and ``tz``, the time zone of its days."""
    return {
        "since": moment(window.since, zone),
        "until": moment(window.until, zone),
        "tz": timespan.zone_name(zone),
    }


def moment(microseconds: int | None, zone: tzinfo = UTC) -> str | None:
    """Return microseconds since 1970 as ISO 8601, with the offset of *zone*."""
    return (
        None
        if microseconds is None
        else timespan.to_datetime(microseconds).astimezone(zone).isoformat()
    )


def utc(microseconds: int) -> str:
    """Return microseconds since 1970 as ISO 8601 in seconds: ``2026-11-01T09:30:00Z``."""
    return (
        timespan.to_datetime(microseconds).replace(microsecond=0).isoformat().replace("+00:00", "Z")
    )


def plain_value(value: object) -> object:
    """Return decimals as strings that read as numbers, and nested values as JSON."""
    if isinstance(value, Decimal):
        return usd_text(value)
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, default=plain_value)
    return value


def rate(value: Decimal | None) -> float | None:
    """Return a share, ratio or change as a JSON number."""
    return None if value is None else round(float(value), 6)


def total_row(total: Spend, owners: Unattributed | None) -> dict[str, object]:
    """Return a total and its part without a user; null if the report is about certain users."""
    return {
        **as_row(total),
        "unowned_calls": None if owners is None else owners.unowned.calls,
        "unowned_cost_usd": None if owners is None else usd(owners.unowned.sum_femto),
    }
