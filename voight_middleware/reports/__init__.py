"""
Reports: one module per question.

They read a ledger (``voight_middleware.ledger.open_ledger``) and nothing else. Each returns a
frozen dataclass of rows and totals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from voight_middleware.reports.margin import MarginReport, MarginRow, margin
from voight_middleware.reports.plans import PlanRow, PlansReport, plans
from voight_middleware.reports.release import ReleaseReport, ReleaseRow, release
from voight_middleware.reports.revenue import Revenue, RevenueError, read_csv
from voight_middleware.reports.spend import SpendReport, as_row, spend
from voight_middleware.reports.timespan import parse_window, parse_zone
from voight_middleware.reports.top import TopReport, TopRow, top
from voight_middleware.reports.unattributed import UnattributedReport, UnattributedRow, unattributed
from voight_middleware.reports.unattributed_share import unattributed_share
from voight_middleware.reports.user import UserReport, user

if TYPE_CHECKING:
    from voight_middleware.reports.whatif import WhatIfReport, WhatIfRow, what_if

__all__ = (
    "MarginReport",
    "MarginRow",
    "PlanRow",
    "PlansReport",
    "ReleaseReport",
    "ReleaseRow",
    "Revenue",
    "RevenueError",
    "SpendReport",
    "TopReport",
    "TopRow",
    "UnattributedReport",
    "UnattributedRow",
    "UserReport",
    "WhatIfReport",
    "WhatIfRow",
    "as_row",
    "margin",
    "parse_window",
    "parse_zone",
    "plans",
    "read_csv",
    "release",
    "spend",
    "top",
    "unattributed",
    "unattributed_share",
    "user",
    "what_if",
)


def __getattr__(name: str) -> object:
    if name in ("WhatIfReport", "WhatIfRow", "what_if"):  # brings the price data
        from voight_middleware.reports import whatif

        return getattr(whatif, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
