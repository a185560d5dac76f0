"""
Diagnostics: errors of our own are counted and logged once per kind, and never raised into the
application.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Literal

logger = logging.getLogger(__name__)

__all__ = ("CounterName", "counters", "report_internal_error", "warn_once")

CounterName = Literal[
    "getter_errors",  # a user, plan or tenant getter, or `batch_owner`, raised
    "internal_errors",  # an error in this library; the application was not affected
    "ledger_errors",  # the ledger, or a journal file, could not be used
    "listener_errors",  # a listener raised
    "lost_spans",  # too many spans were open at once
    "observer_errors",  # a call observer raised
    "refused_headers",  # signed tags of another service were forged, expired or cut off
    "spans_without_cost",  # a span ended before its call was priced
    "unheard_calls",  # listeners were too slow: these calls are in the ledger only
    "unreadable_messages",  # tags of a queue's message could not be read
    "unreadable_responses",  # a response, or a part of it, could not be read
]

counters: Counter[CounterName] = Counter()
"""How often each kind of error has happened in this process."""

MAX_KINDS = 1000
"""How many different warnings a process remembers, and so logs."""

_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Log a warning, once per message in this process. Never raises."""
    if message not in _warned and len(_warned) < MAX_KINDS:
        _warned.add(message)
        with contextlib.suppress(Exception):  # an application's logging filter may raise
            logger.warning(message)


def report_internal_error(error: BaseException) -> None:
    """Count an error of our own, and log it once per kind. Never raises."""
    with contextlib.suppress(Exception):
        counters["internal_errors"] += 1
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = (
            f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
            if trace is not None
            else "an unknown place"
        )
        warn_once(
            f"internal error, the application is not affected: {type(error).__name__} at {place}"
        )


os.register_at_fork(after_in_child=counters.clear)
