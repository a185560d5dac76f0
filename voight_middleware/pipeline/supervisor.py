"""
A delivery: what brings a journal folder's calls into its ledger, elected, connected, and patient with a ledger that is down; and has
them sent on, where there is somebody who does.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from voight_middleware.diagnostics import warn_once
from voight_middleware.events.outbox import Outbox, open_outbox
from voight_middleware.pipeline.lock import IngestLock
from voight_middleware.records.call import Call

if TYPE_CHECKING:
    from voight_middleware.config.values import EventsTarget
    from voight_middleware.events.sender import EventSender
    from voight_middleware.ledger import Ledger, LedgerError
    from voight_middleware.pipeline.ingest import Ingester

logger = logging.getLogger(__name__)

FIRST_PAUSE, MAX_PAUSE = 1.0, 30.0
"""How long a ledger that cannot be used is left alone, in seconds: twice as long each time."""
SENDER_SECONDS = 1.0
"""How long the end of the process waits for the answer to the one event that is under way; without it, that one is sent again."""
SENDING_PAUSE = 0.1
"""Between two runs while nothing is awaited but events that are sent, in seconds."""
FORK_SECONDS = 5.0
"""How long a fork may wait for the round that is being made."""
_random = random.Random()  # our own: an application that seeds `random` must get its own numbers


class IngestSupervisor:
    """
    The way of a journal folder into its ledger. Used from one thread at a time.

    Args:
        url: The ledger.
        folder: The journal.
        prices: The file of the user's own prices.
        delivered: Called with the completed calls of each batch.
        gentle: Whether to let other threads run after every few records.
        tell: Called with a sentence when the ledger cannot be used any more, and when it can again; not each time that it is tried.
        events: Where calls are sent on to, on a thread beside the runs; None sends none, and queues them only where others are queued.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        prices: Path | None = None,
        delivered: Callable[[list[Call]], None] | None = None,
        *,
        gentle: bool = True,
        tell: Callable[[str], None] = logger.warning,
        events: EventsTarget | None = None,
    ) -> None:
        self.lock = IngestLock(folder)
        self.errors = 0
        """How often the ledger could not be used."""
        self.error: LedgerError | None = None
        """Why it cannot be used now; None where it can."""
        self.behind = False
        """Whether there is more to bring in than the last run had the time for."""
        self.sending_error: Exception | None = None
        """Why nothing can be taken to be sent; None where it can."""
        self._url = url
        self._prices = prices
        self._delivered = delivered
        self._gentle = gentle
        self._tell = tell
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
        """How many records this delivery has brought in."""
        return self._ingester.records if self._ingester is not None else 0

    def run(self, seconds: float | None = None, *, now: bool = False) -> bool:
        """
        Bring in what is there; whether all of it is in the ledger now. It is not where another process is elected, where the ledger
        cannot be used, or where it is left alone after it could not.

        Args:
            seconds: How long this may last, if there is much.
            now: Try a ledger that is left alone, too.

        Raises:
            UnreadableJournal: The folder cannot be written, or a segment not be read or deleted; all others are brought in.
        """
        from voight_middleware.pipeline.ingest import UnreadableJournal

        if not now and time.monotonic() < self._not_before:
            return False
        try:
            if not self.lock.acquire():
                return False
        except OSError as error:
            raise UnreadableJournal(f"the journal folder {self.lock.folder} cannot be written ({error}): make it writable") from error
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
            self.close_ledger()  # whatever was wrong with it, the next run opens it anew
            if not fresh:  # a server that was restarted, or a connection that was cut while it was idle, is no outage
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
        if isinstance(unreadable, UnpricedJournal):  # whoever would wait for its calls is told at once
            self.error = unreadable
        self._send()
        if unreadable is not None:
            raise unreadable
        return not self.behind

    def _locked_ingester(self) -> Ingester:
        from voight_middleware.pipeline.ingest import Ingester

        ledger = self._open()
        if self._ingester is None:
            self._ingester = Ingester(ledger, self.lock.folder, self._delivered, self._gentle, prices=self._prices)
        elif self._ingester.ledger is not ledger:
            self._ingester.use(ledger)
        if self._outbox is None:
            self._outbox = open_outbox(self.lock.folder, create=self._events is not None)
        self._ingester.outbox = self._outbox
        return self._ingester

    def _send(self) -> None:
        """Have the sender go on. Never raises: what cannot be sent is in the ledger all the same, as with a role that only writes."""
        from voight_middleware.ledger import LedgerError

        if self._outbox is None or self._events is None or not self._sends or time.monotonic() < self._send_not_before:
            return
        try:
            if self._sender is None:
                with _imports:  # a child that is forked meanwhile could never import what is imported here
                    from voight_middleware.events.sender import EventSender  # brings an HTTP client: only if a key is set

                    self._sender = EventSender(self._events, self._outbox)
            self._sender.refill(self._open())
            self.sending_error = None
        except Exception as error:
            self.sending_error = error
            why = error if isinstance(error, LedgerError | OSError) else type(error).__name__
            warn_once(f"calls wait in {self._outbox.folder}, and are not sent to Voight for now: {why}")
            self.close_ledger()  # the connection may have been cut
            self._send_not_before = time.monotonic() + MAX_PAUSE

    def send_rest(self, until: float | None = None) -> None:
        """
        Go on with runs until nothing waits to be sent, nothing can be sent, or ``time.monotonic()`` is *until*; for processes that end
        then. Raises nothing.
        """
        from voight_middleware.pipeline.ingest import UnreadableJournal

        while self.unsent() and (until is None or time.monotonic() < until):
            time.sleep(SENDING_PAUSE)
            with contextlib.suppress(UnreadableJournal):  # the run before this has said so
                self.run(SENDER_SECONDS)

    def unsent(self) -> bool:
        """Whether calls wait that this process can send."""
        sender, outbox = self._sender, self._outbox
        if sender is None or outbox is None or sender.stopped or self.sending_error is not None:
            return False
        try:
            return next(outbox.read(), None) is not None
        except OSError:
            return False

    def stop_sending(self, seconds: float = SENDER_SECONDS) -> None:
        """Send nothing any more: before another process may be elected, and send. Waits for the event that is under way, so long."""
        self._sends = False
        if self._sender is not None:
            self._sender.stop(seconds)

    def _failed(self, error: LedgerError) -> None:
        self.errors += 1
        self.error = error
        pause = min(FIRST_PAUSE * 2.0 ** min(self._failures, 10), MAX_PAUSE)
        self._failures += 1
        self._not_before = time.monotonic() + pause * _random.uniform(0.5, 1.0)  # many hosts do not come back all at once
        if self._records_before is None:
            self._records_before = self.records
            self._tell(f"calls stay in the journal for now: {error}")

    def _succeeded(self) -> None:
        assert self._ingester is not None
        self.behind = self._ingester.behind
        self._failures, self._not_before, self.error = 0, 0.0, None
        if self._records_before is not None and not self.behind:
            waited = self.records - self._records_before
            self._records_before = None
            self._tell(f"the ledger can be used again; the {waited:,} records that have waited are in it")

    def is_ingested(self, name: str, length: int) -> bool:
        """Whether the segment of that name is in the ledger up to that length, whoever has brought it in."""
        from voight_middleware.ledger import LedgerError

        if not (self.lock.folder / name).exists():
            return True
        try:
            return self._open().progress(name) >= length
        except LedgerError:
            self.close_ledger()
            return False

    def pending_records(self) -> int | None:
        """How many records in the journals may not be in the ledger; None where this process does not know."""
        try:
            return self._ingester.left() if self._ingester is not None and self.lock.held else None
        except OSError:
            return None

    def close_ledger(self) -> None:
        """Close the connection; the next run opens another one."""
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            with contextlib.suppress(Exception):
                ledger.close()

    def close(self) -> None:
        """Close the connection, and let another process be elected."""
        self.stop_sending()
        self.close_ledger()
        self.lock.release()

    def discard_after_fork(self) -> None:
        """In a forked child: drop the lock's copy, and keep a connection that is still open from being collected and so closed."""
        self.lock.release()
        _of_the_parent.append(self._ledger)

    def _open(self) -> Ledger:
        from voight_middleware.ledger import open_ledger

        if self._ledger is None:
            self._ledger = open_ledger(self._url)
        return self._ledger


_imports = threading.RLock()
_imported: set[str | None] = set()
_ENGINES = {"sqlite": "sqlite", "postgresql": "postgres", "postgres": "postgres", "clickhouse": "clickhouse"}


def import_the_rest(url: str) -> None:
    """
    Import what a round needs, price data and the ledger's driver included, while no fork can happen.

    A child that is forked while another thread imports a module can never import it: the module's lock stays taken.
    """
    engine = _ENGINES.get(url.partition("://")[0])
    if engine in _imported:
        return
    with _imports:
        from voight_middleware.pricing import PriceBook

        PriceBook()
        with contextlib.suppress(ImportError):  # opening the ledger says what is missing
            if engine is not None:
                importlib.import_module(f"voight_middleware.ledger.{engine}")
        _imported.add(engine)


_of_the_parent: list[object] = []


def hold_imports() -> Callable[[], None] | None:
    """Wait until no import of ours is under way, and let none begin until the answer is called; None where that takes too long."""
    return _imports.release if _imports.acquire(timeout=FORK_SECONDS) else None


def reset_imports_after_fork() -> None:
    """In a forked child: the lock may be held by a thread that is not there."""
    global _imports
    _imports = threading.RLock()
