"""Send waiting events from a process that makes no calls."""

from __future__ import annotations

import time

from voight_middleware.config.settings import Settings
from voight_middleware.events.api import TIMEOUT
from voight_middleware.events.outbox import Status, open_outbox, status
from voight_middleware.pipeline.supervisor import IngestSupervisor


def send_waiting(settings: Settings, seconds: float | None = None) -> Status | None:
    """
    Send what waits, for *seconds* and one answer at most, from a process that makes no calls: programs that end soon leave most of
    theirs. Meanwhile this process ingests.

    Answers what is left then; None where there is no key or no outbox. Does nothing where a living process ingests, and so sends.

    Raises:
        LedgerError: The ledger cannot be opened or read, or a journal not: what could be read is sent all the same.
    """
    until = None if seconds is None else time.monotonic() + seconds
    if settings.events is None or open_outbox(settings.journal) is None:
        return None
    delivery = IngestSupervisor(settings.ledger, settings.journal, settings.prices, gentle=False, events=settings.events)
    try:
        if delivery.lock.acquire():
            try:
                delivery.run(seconds)
            finally:
                delivery.send_rest(until)
                delivery.stop_sending(TIMEOUT)
            if (error := delivery.error or delivery.sending_error) is not None:
                raise error
    finally:
        delivery.close()
    return status(settings.journal)
