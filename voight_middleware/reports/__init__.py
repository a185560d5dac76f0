"""
Reports: one module per question.

They read a ledger (``voight_middleware.ledger.open_ledger``) and nothing else. Each returns a
frozen dataclass of rows and totals. A report is imported at its first use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from voight_middleware.reports.margin import MarginReport, MarginRow, margin
    from voight_middleware.reports.plans import PlanRow, PlansReport, plans
    from voight_middleware.reports.release import ReleaseReport, ReleaseRow, release
    from voight_middleware.reports.revenue import Revenue, RevenueError, read_csv
    from voight_middleware.reports.spend import SpendReport, as_row, spend
    from voight_middleware.reports.timespan import parse_window, parse_zone
    from voight_middleware.reports.top import TopReport, TopRow, top
    from voight_middleware.reports.unattributed import (
        UnattributedReport,
        UnattributedRow,
        unattributed,
    )
    from voight_middleware.reports.unattributed_share import unattributed_share
    from voight_middleware.reports.user import UserReport, user
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

_HOMES = {
    "margin": ("MarginReport", "MarginRow", "margin"),
    "plans": ("PlanRow", "PlansReport", "plans"),
    "release": ("ReleaseReport", "ReleaseRow", "release"),
    "revenue": ("Revenue", "RevenueError", "read_csv"),
    "spend": ("SpendReport", "as_row", "spend"),
    "timespan": ("parse_window", "parse_zone"),
    "top": ("TopReport", "TopRow", "top"),
    "unattributed": ("UnattributedReport", "UnattributedRow", "unattributed"),
    "unattributed_share": ("unattributed_share",),
    "user": ("UserReport", "user"),
    "whatif": ("WhatIfReport", "WhatIfRow", "what_if"),
}
"""The module of each name."""
_HOME = {name: module for module, names in _HOMES.items() for name in names}


class _Reports(ModuleType):
    """``reports.top`` is the report, not its module, which importing it would set here."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Reports

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        return value


def __dir__() -> list[str]:
    return list(__all__)
