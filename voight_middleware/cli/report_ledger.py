"""The ledger of a report, with the journal ingested first."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Generator
from pathlib import Path

from voight_middleware.cli.render import printable
from voight_middleware.config.settings import Settings
from voight_middleware.events.outbox import open_outbox
from voight_middleware.ledger import Ledger, LedgerError, open_ledger
from voight_middleware.pipeline.backlog import LATE_SECONDS, age, waiting_since
from voight_middleware.pipeline.journal import segments

_MENTIONED_RECORDS = 1000
"""An ingest of more records is mentioned on standard error."""


@contextlib.contextmanager
def ingested_ledger(settings: Settings) -> Generator[Ledger]:
    """
    Open the ledger to report on, after an ingest of the segments of dead processes.

    Raises:
        LedgerError: The ledger does not exist, or cannot be opened.
    """
    failed = False
    try:
        if settings.ingest and settings.events is not None:
            queue_events(settings)
        count = _ingest(settings) if settings.ingest else 0
        if count > _MENTIONED_RECORDS:
            _warn(f"ingested {count:,} records from the journal {settings.journal}")
    except (LedgerError, OSError) as error:
        _warn(f"the calls in the journal {settings.journal} are missing here: {error}")
        failed = True
    ledger = open_ledger(settings.ledger, create=False)
    try:
        if not failed:
            _warn_if_late(ledger, settings.journal)
        yield ledger
    finally:
        ledger.close()


def queue_events(settings: Settings) -> None:
    """
    Have the ingest of orphaned segments queue their calls as events.

    Raises:
        OSError: The journal cannot be read.
    """
    if segments(settings.journal):
        open_outbox(settings.journal, create=True)


def _ingest(settings: Settings) -> int:
    """Ingest orphaned segments. Return how many records were read."""
    if not segments(settings.journal):  # most reports find none, and need no prices
        return 0
    from voight_middleware.pipeline.ingest import drain

    return drain(settings.ledger, settings.journal, settings.prices)


def _warn_if_late(ledger: Ledger, journal: Path) -> None:
    """Warn about calls that another process should have ingested: the figures are not current."""
    try:
        since = waiting_since(journal, ledger.progress) if journal.is_dir() else None
    except (LedgerError, OSError):  # a role without that right, or another account's journal
        return
    late = 0.0 if since is None else time.time() - since
    if late > LATE_SECONDS:
        _warn(
            f"calls have waited in {journal} for {age(late)}, and are missing here: run voight "
            "doctor"
        )


def _warn(text: str) -> None:
    print(f"voight: {printable(text)}", file=sys.stderr)
