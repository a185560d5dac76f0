"""
The ingest supervisor: it runs the ingester of a journal folder.

It acquires the ingest lock, opens the ledger, and backs off while the ledger is down. It also
starts the sender of events, if one is configured.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from voight_middleware.diagnostics import warn_once
from voight_middleware.lazy import late_imports
from voight_middleware.pipeline.lock import IngestLock
from voight_middleware.records.call import Call

if TYPE_CHECKING:
    from voight_middleware.config.values import EventsTarget
    from voight_middleware.events.outbox import Outbox
    from voight_middleware.events.sender import EventSender
    from voight_middleware.ledger import Ledger, LedgerError
    from voight_middleware.pipeline.ingest import Ingester

logger = logging.getLogger(__name__)

FIRST_PAUSE, MAX_PAUSE = 1.0, 30.0
"""Seconds between two attempts to use a ledger that is down. The pause doubles each time."""
SENDER_SECONDS = 1.0
"""
How long process exit waits for the response to the event in flight, in seconds. Without a
response, that event is sent again.
"""
SENDING_PAUSE = 0.1
"""Seconds between two runs that only wait for events to be sent."""


class IngestSupervisor:
    """
    Brings the records of a journal folder into its ledger. Used from one thread at a time.

    Args:
        url: The URL of the ledger.
        folder: The journal folder.
        prices: The TOML file of the user's own prices.
        delivered: Called with the priced calls of each batch.
        gentle: Whether to let other threads run after every few records.
        report: Called with a message when the ledger goes down, and when it is back. It is not
            called for each attempt.
        events: The server to send calls to, on a separate thread. None sends nothing, and queues
            calls only if an outbox exists.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        prices: Path | None = None,
        delivered: Callable[[list[Call]], None] | None = None,
        *,
        gentle: bool = True,
        report: Callable[[str], None] = logger.warning,
        events: EventsTarget | None = None,
    ) -> None:
        self.lock = IngestLock(folder)
        self.errors = 0
        """How often the ledger could not be used."""
        self.error: LedgerError | None = None
        """Why the ledger cannot be used now; None if it can."""
        self.behind = False
        """Whether the last run ran out of time before it ingested everything."""
        self.sending_error: Exception | None = None
        """Why events cannot be sent now; None if they can."""
        self._url = url
        self._prices = prices
        self._delivered = delivered
        self._gentle = gentle
        self._report = report
        self._events = events
        self._outbox: Outbox | None = None
        self._sender: EventSender | None = None
        self._sends = True
        self._send_not_before = 0.0
        self._ledger: Ledger | None = None
        self._ingester: Ingester | None = None
        self._failures = 0
        self._not_before = 0.0
        self._records_before: int | None = None

    @property
    def records(self) -> int:
        """How many records this supervisor has ingested."""
        return self._ingester.records if self._ingester is not None else 0

    def run(self, seconds: float | None = None, *, now: bool = False) -> bool:
        """
        Ingest the journals. Return whether all their records are in the ledger now.

        Return False if another process is the ingester, if the ledger cannot be used, or during the
        pause after a failure.

        Args:
            seconds: How long this may last.
            now: Try the ledger even during the pause after a failure.

        Raises:
            UnreadableJournal: The folder cannot be written, or a segment cannot be read or deleted.
                All other segments are ingested.
        """
        if not now and time.monotonic() < self._not_before:
            return False
        try:
            if not self.lock.acquire():
                return False
        except OSError as error:
            from voight_middleware.pipeline.ingest import UnreadableJournal

            raise UnreadableJournal(
                f"the journal folder {self.lock.folder} cannot be written ({error}): make it "
                "writable"
            ) from error
        import_the_rest(self._url)
        return self._run(seconds, self._ledger is None)

    def _run(self, seconds: float | None, fresh: bool) -> bool:
        from voight_middleware.ledger import LedgerError
        from voight_middleware.pipeline.ingest import UnpricedJournal, UnreadableJournal

        before = self.records
        unreadable: UnreadableJournal | None = None
        try:
            ingester = self._locked_ingester()
            try:
                ingester.run(None if seconds is None else time.monotonic() + seconds)
            except UnreadableJournal as error:
                unreadable = error
        except LedgerError as error:
            self.close_ledger()  # the next run opens it again
            if not fresh:  # a restarted server or a cut idle connection is not an outage
                return self._run(seconds, True)
            self._failed(error)
            return False
        except BaseException:
            self.close_ledger()
            raise
        finally:
            if self.records > before:
                self.lock.record_delivery()
        self._succeeded()
        # a flush that waits for its calls must fail at once
        if isinstance(unreadable, UnpricedJournal):
            self.error = unreadable
        self._send()
        if unreadable is not None:
            raise unreadable
        return not self.behind

    def _locked_ingester(self) -> Ingester:
        from voight_middleware.pipeline.ingest import Ingester

        ledger = self._open()
        if self._ingester is None:
            self._ingester = Ingester(
                ledger, self.lock.folder, self._delivered, self._gentle, prices=self._prices
            )
        elif self._ingester.ledger is not ledger:
            self._ingester.use(ledger)
        if self._outbox is None:
            from voight_middleware.events.outbox import open_outbox

            self._outbox = open_outbox(self.lock.folder, create=self._events is not None)
        self._ingester.outbox = self._outbox
        return self._ingester

    def _send(self) -> None:
        """
        Give the sender more events. Never raises.

        Calls that cannot be sent are in the ledger anyway, as with a database role that only
        writes.
        """
        from voight_middleware.ledger import LedgerError

        if (
            self._outbox is None
            or self._events is None
            or not self._sends
            or time.monotonic() < self._send_not_before
        ):
            return
        try:
            if self._sender is None:
                with late_imports():
                    # brings an HTTP client: only if a key is set
                    from voight_middleware.events.sender import EventSender

                    self._sender = EventSender(self._events, self._outbox)
            self._sender.refill(self._open())
            self.sending_error = None
        except Exception as error:
            self.sending_error = error
            cause = error if isinstance(error, LedgerError | OSError) else type(error).__name__
            warn_once(
                f"calls wait in {self._outbox.folder} and are not sent to Voight for now: {cause}"
            )
            self.close_ledger()  # the connection may have been cut
            self._send_not_before = time.monotonic() + MAX_PAUSE

    def send_rest(self, until: float | None = None) -> None:
        """
        Run until all events are sent, until sending fails, or until ``time.monotonic()`` is
        *until*.

        For processes that exit afterwards. Never raises.
        """
        from voight_middleware.pipeline.ingest import UnreadableJournal

        while self.unsent() and (until is None or time.monotonic() < until):
            time.sleep(SENDING_PAUSE)
            with contextlib.suppress(UnreadableJournal):  # the run before this one has reported it
                self.run(SENDER_SECONDS)

    def unsent(self) -> bool:
        """Return whether pending events exist that this process can send."""
        sender, outbox = self._sender, self._outbox
        if sender is None or outbox is None or sender.stopped or self.sending_error is not None:
            return False
        try:
            return next(outbox.read(), None) is not None
        except OSError:
            return False

    def stop_sending(self, seconds: float = SENDER_SECONDS) -> None:
        """
        Stop sending, before another process may become the ingester and send.

        Wait for the event in flight for up to *seconds*.
        """
        self._sends = False
        if self._sender is not None:
            self._sender.stop(seconds)

    def _failed(self, error: LedgerError) -> None:
        self.errors += 1
        self.error = error
        pause = min(FIRST_PAUSE * 2.0 ** min(self._failures, 10), MAX_PAUSE)
        self._failures += 1
        # many hosts must not return all at once: half of the pause, or up to all of it
        self._not_before = time.monotonic() + pause * (0.5 + os.urandom(1)[0] / 510)
        if self._records_before is None:
            self._records_before = self.records
            self._report(f"calls stay in the journal for now: {error}")

    def _succeeded(self) -> None:
        assert self._ingester is not None
        self.behind = self._ingester.behind
        self._failures, self._not_before, self.error = 0, 0.0, None
        if self._records_before is not None and not self.behind:
            count = self.records - self._records_before
            self._records_before = None
            self._report(
                f"the ledger can be used again; it now has the {count:,} records that waited"
            )

    def is_ingested(self, name: str, length: int) -> bool:
        """Return whether the first *length* bytes of a segment are in the ledger."""
        from voight_middleware.ledger import LedgerError

        if not (self.lock.folder / name).exists():
            return True
        try:
            return self._open().progress(name) >= length
        except LedgerError:
            self.close_ledger()
            return False

    def pending_records(self) -> int | None:
        """Return how many journal records may not be in the ledger; None if unknown."""
        try:
            return (
                self._ingester.pending_records()
                if self._ingester is not None and self.lock.held
                else None
            )
        except OSError:
            return None

    def close_ledger(self) -> None:
        """Close the connection. The next run opens another one."""
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            with contextlib.suppress(Exception):
                ledger.close()

    def close(self) -> None:
        """Close the connection, and release the ingest lock."""
        self.stop_sending()
        self.close_ledger()
        self.lock.release()

    def discard_after_fork(self) -> None:
        """
        Drop the copy of the lock in a forked child. Keep a reference to an open connection, because
        its collection would close it for the parent.
        """
        self.lock.release()
        _of_the_parent.append(self._ledger)

    def _open(self) -> Ledger:
        from voight_middleware.ledger import open_ledger

        if self._ledger is None:
            self._ledger = open_ledger(self._url)
        return self._ledger


_imported: set[str | None] = set()
_ENGINES = {
    "sqlite": "sqlite",
    "postgresql": "postgres",
    "postgres": "postgres",
    "clickhouse": "clickhouse",
}


def import_the_rest(url: str) -> None:
    """
    Import the modules of a round, with price data and the ledger's driver.

    Only the process that ingests needs them, and one that prices calls for its listeners.
    """
    engine = _ENGINES.get(url.partition("://")[0])
    if engine in _imported:
        return
    with late_imports():
        from voight_middleware.pricing import PriceBook

        PriceBook()
        for module in ("events.outbox", "pipeline.ingest"):
            importlib.import_module(f"voight_middleware.{module}")
        with contextlib.suppress(ImportError):  # opening the ledger reports the missing package
            if engine is not None:
                importlib.import_module(f"voight_middleware.ledger.{engine}")
        _imported.add(engine)


_of_the_parent: list[object] = []
