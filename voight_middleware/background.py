"""
The background thread of a meter: it ingests in the one process of the host that is elected, and in the others hands their own calls to
their own listeners.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

from voight_middleware.call import Call
from voight_middleware.journal import Election
from voight_middleware.outbox import Outbox, open_outbox
from voight_middleware.settings import Settings
from voight_middleware.tag_values import complain

if TYPE_CHECKING:
    from voight_middleware.ingest import Ingester
    from voight_middleware.ledger import Ledger
    from voight_middleware.meter import Meter
    from voight_middleware.pricing import PriceBook

INTERVAL = 1.0
"""Seconds between two rounds of the background thread."""
SENDER_SECONDS = 1.0
"""How long the end of the process waits for the answer to the one event that is under way; without it, that one is sent again."""
FORK_SECONDS = 5.0
"""How long a fork may wait for the round that is being made."""


class Sender(Protocol):
    """Sends calls elsewhere, on a thread of its own, in the process that ingests."""

    def refill(self, ledger: Ledger) -> None:
        """Once a round, with the ledger: take some of the outbox's calls from it. Raises ``LedgerError``."""
        ...

    def stop(self, timeout: float) -> None:
        """End the thread; what was not sent stays in the outbox."""
        ...


make_sender: Callable[[Settings, Outbox], Sender] | None = None
"""Makes the sender of a process whose settings have a key; `export` puts it here, as this floor does not know that one."""


class Background:
    """
    The background thread of a meter, and the rounds that it makes; ``flush`` makes a round on the caller's thread instead of
    waiting for it.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._election = Election(meter.settings.journal)
        self._ledger: Ledger | None = None
        self._ingester: Ingester | None = None
        self._book: PriceBook | None = None
        self._outbox: Outbox | None = None
        self._sender: Sender | None = None
        self._round_lock = threading.Lock()
        self._round_thread: int | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="voight-ingester", daemon=True)

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:  # Python 3.12+ starts no thread while the process ends; `flush` needs none
            if "shutdown" not in str(error):
                raise

    def stop(self, timeout: float) -> None:
        self._stopping.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        if self._round_lock.acquire(timeout=timeout):
            try:
                if self._sender is not None:
                    self._sender.stop(min(timeout, SENDER_SECONDS))  # before another process may be elected, and send
                self._round()  # deletes the segment that this process has just closed
                if self._ledger is not None:
                    self._ledger.close()
                self._ledger = self._ingester = None
                self._election.resign()
            finally:
                self._round_lock.release()

    def pause(self) -> Callable[[], None] | None:
        """
        Close the ledger and hold the rounds until the answer is called. None where that cannot be had, as in a listener that forks.

        SQLite's locks and mutexes are a process's own. A child that inherits an open connection waits for ever for a mutex that a
        thread of its parent held, or takes its parent's file locks for its own.
        """
        if self._round_thread == threading.get_ident() or not self._round_lock.acquire(timeout=FORK_SECONDS):
            return None
        self._close_ledger()
        return self._round_lock.release

    def abandon(self) -> None:
        """In a forked child: drop the lock's copy, and keep a connection that is still open from being collected and so closed."""
        self._election.resign()
        _of_the_parent.append(self._ledger)

    def flush(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        self._meter.journal.retry()
        written = self._meter.journal.position()
        while True:
            if self._round_lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                try:
                    elected = self._round()
                    if not self._meter.journal.waiting and (elected or self._is_ingested(written)) and not self._meter.held():
                        return True
                finally:
                    self._round_lock.release()
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)

    def _loop(self) -> None:
        while not self._stopping.wait(INTERVAL):
            with self._round_lock:
                self._round()

    def _round(self) -> bool:
        """One round; whether everything that was in the journals when it began is now in the ledger."""
        self._round_thread = threading.get_ident()
        try:
            return self._do_round()
        finally:
            self._round_thread = None

    def _do_round(self) -> bool:
        _import_the_rest()
        from voight_middleware.ledger import LedgerError

        meter = self._meter
        held = meter.held()
        done = False
        try:
            meter.journal.check()
            meter.journal.retry()
            if self._election.win():
                self._elected().run()
                done = True
                self._send()
        except LedgerError as error:
            meter.counters["ledger_errors"] += 1
            complain(f"calls stay in the journal for now: {error}")
            self._close_ledger()  # whatever was wrong with it, the next round opens it anew
        except Exception as error:
            meter.note(error)
        if held:
            self._deliver(held)
        return done

    def _elected(self) -> Ingester:
        from voight_middleware.ingest import Ingester

        ledger = self._open()
        if self._ingester is None:
            meter = self._meter
            listening = meter.deliver if meter.listeners else None
            self._ingester = Ingester(ledger, meter.settings.journal, listening, prices=meter.settings.prices)
        self._ingester.ledger = ledger
        if self._outbox is None:
            self._outbox = open_outbox(self._meter.settings.journal, create=self._meter.settings.events is not None)
        self._ingester.outbox = self._outbox
        return self._ingester

    def _send(self) -> None:
        if self._outbox is None or self._ledger is None or self._meter.settings.events is None or self._stopping.is_set():
            return
        if self._sender is None and make_sender is not None:
            with _imports:  # a child that is forked meanwhile could never import what is imported here
                self._sender = make_sender(self._meter.settings, self._outbox)
        if self._sender is not None:
            self._sender.refill(self._ledger)

    def _close_ledger(self) -> None:
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            with contextlib.suppress(Exception):
                ledger.close()

    def _open(self) -> Ledger:
        from voight_middleware.ledger import open_ledger

        if self._ledger is None:
            self._ledger = open_ledger(self._meter.settings.ledger)
        return self._ledger

    def _is_ingested(self, written: tuple[str, int] | None) -> bool:
        from voight_middleware.ledger import LedgerError

        if written is None:
            return True
        name, length = written
        try:
            return self._open().progress(name) >= length or not (self._meter.settings.journal / name).exists()
        except LedgerError:
            return False

    def _deliver(self, held: list[Call]) -> None:
        """
        Complete calls of this process for its listeners that this round has not delivered: where another process ingests or has ingested
        them, or where the ledger refuses.
        """
        from voight_middleware.ingest import complete
        from voight_middleware.pricing import open_book

        try:
            unheard = {call.call_id for call in self._meter.held()}
            held = [call for call in held if call.call_id in unheard]
            if held and self._book is None:
                self._book = open_book(self._meter.settings.prices)
            for call in held:
                assert self._book is not None
                complete(call, self._book)
            self._meter.deliver(held)
        except Exception as error:
            self._meter.note(error)


class Audience:
    """
    The listeners of a meter, on a thread of their own: one that blocks holds up those behind it, and neither the ledger nor a flush for
    longer than that waits.

    Args:
        listeners: Called one after the other with each call.
        count: Told what went wrong: ``listener_errors``, ``unheard_calls``.
        most: How many calls wait at most; beyond it the newest go unheard.
    """

    def __init__(self, listeners: Sequence[Callable[[Call], None]], count: Callable[[str], None], most: int) -> None:
        self.listeners = tuple(listeners)
        self._count = count
        self._most = most
        self.renew()

    def renew(self) -> None:
        """In a forked child: the thread is not there, and what waits is the parent's to hear."""
        self._queue: SimpleQueue[Call | threading.Event] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def hear(self, call: Call) -> None:
        """Hand *call* to the listeners, in their time."""
        if self._queue.qsize() >= self._most:
            self._count("unheard_calls")
            return
        self._queue.put(call)
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, args=(self._queue,), name="voight-listeners", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:  # Python 3.12+ starts no thread while the process ends
                if "shutdown" not in str(error):
                    raise
                self._thread = None
                self._tell(call)

    def wait(self, timeout: float) -> bool:
        """Wait until they have heard what there is by now; whether that is so within *timeout* seconds."""
        if self._thread is None or self._thread is threading.current_thread():
            return True
        heard = threading.Event()
        self._queue.put(heard)
        return heard.wait(max(0.0, timeout))

    def _loop(self, queue: SimpleQueue[Call | threading.Event]) -> None:
        while queue is self._queue:  # else this is the child of a listener that forks
            one = queue.get()
            if isinstance(one, Call):
                self._tell(one)
            else:
                one.set()

    def _tell(self, call: Call) -> None:
        for listener in self.listeners:
            try:
                listener(call)
            except Exception as error:
                self._count("listener_errors")
                with contextlib.suppress(Exception):  # an application's logging filter may raise
                    complain(f"a listener raised {type(error).__name__}; the call is in the ledger all the same")


_imports = threading.RLock()
_imported = False


def _import_the_rest() -> None:
    """
    Import what a round needs, price data included, while no fork can happen.

    A child that is forked while another thread imports a module can never import it: the module's lock stays taken.
    """
    global _imported
    if _imported:
        return
    with _imports:
        from voight_middleware.pricing import PriceBook

        PriceBook()
        _imported = True


_of_the_parent: list[object] = []


def hold_imports() -> Callable[[], None] | None:
    """Wait until no import of ours is under way, and let none begin until the answer is called; None where that takes too long."""
    return _imports.release if _imports.acquire(timeout=FORK_SECONDS) else None


def renew_imports() -> None:
    """In a forked child: the lock may be held by a thread that is not there."""
    global _imports
    _imports = threading.RLock()
