"""Send pending events from a process that makes no calls."""

from __future__ import annotations

import time

from voight_middleware.config.settings import Settings
from voight_middleware.events.api import TIMEOUT
from voight_middleware.events.outbox import Status, open_outbox, status
from voight_middleware.pipeline.supervisor import IngestSupervisor


def send_waiting(settings: Settings, seconds: float | None = None) -> Status | None:
    """
    Send pending events for up to *seconds*, plus one response. This process ingests meanwhile.

    Short programs leave most of their events to a process that makes no calls. This function does
    nothing if a running process ingests, because that one sends too.

    Returns:
        What is still pending. None without a key or an outbox.

    Raises:
        LedgerError: The ledger or a journal cannot be opened or read. Readable events are sent.
    """
    until = None if seconds is None else time.monotonic() + seconds
    if settings.events is None or open_outbox(settings.journal) is None:
        return None
    supervisor = IngestSupervisor(
        settings.ledger, settings.journal, settings.prices, gentle=False, events=settings.events
    )
    try:
        if supervisor.lock.acquire():
            try:
                supervisor.run(seconds)
            finally:
                supervisor.send_rest(until)
                supervisor.stop_sending(TIMEOUT)
            if (error := supervisor.error or supervisor.sending_error) is not None:
                raise error
    finally:
        supervisor.close()
    return status(settings.journal)
