"""The background thread of a meter: it makes the rounds of a delivery, and hands a process's own calls to its own listeners."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from voight_middleware.config.kept_prices import Stamp
from voight_middleware.config.settings import Settings
from voight_middleware.diagnostics import counters, report_internal_error, warn_once
from voight_middleware.pipeline import open_calls
from voight_middleware.pipeline.journal import Journal
from voight_middleware.pipeline.listeners import ListenerQueue
from voight_middleware.pipeline.supervisor import FORK_SECONDS, IngestSupervisor, import_the_rest
from voight_middleware.records.call import Call

if TYPE_CHECKING:
    from voight_middleware.pricing.price_books import PriceBooks

INTERVAL = 1.0
"""Seconds between two rounds of the background thread."""
ROUND_SECONDS = 1.0
"""How long a round may last where much has to be caught up with; a fork and a flush of another thread come between two rounds."""
BUSY_INTERVAL = 0.05
"""Seconds between two rounds while there is more to do."""
MIN_POLL, MAX_POLL = 0.02, 0.25
"""Seconds between two rounds while somebody waits for them: growing from one to the other."""


class _FlushRequest:
    """What one ``flush`` waits for: that what was written until then is in the ledger, and was heard of."""

    def __init__(self, journal: Journal, listeners: ListenerQueue, patient: bool) -> None:
        self.closed = journal.closed()
        self.written = journal.position()
        self.unheard = {call.call_id for call in listeners.pending()}
        self.patient = patient
        self.answered = False
        self._answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def finish(self, granted: bool) -> None:
        self.answered = True
        self._answers.put(granted)

    def wait(self, seconds: float) -> bool | None:
        """The answer; None where there is none in that time."""
        try:
            return self._answers.get(timeout=seconds) if seconds > 0 else self._answers.get_nowait()
        except queue.Empty:
            return None


class IngestWorker:
    """
    The background thread of a meter, and the rounds that it makes.

    Args:
        settings: How this process was configured.
        journal: Where its calls are written.
        listeners: They get its calls, priced.
        stamp: Writes and names the prices that its calls are priced with.
    """

    def __init__(self, settings: Settings, journal: Journal, listeners: ListenerQueue, stamp: Stamp) -> None:
        self._settings = settings
        self._journal = journal
        self._listeners = listeners
        self._stamp = stamp
        self._supervisor: IngestSupervisor | None = None
        if settings.ingest:
            delivered = listeners.deliver if listeners.listeners else None
            self._supervisor = IngestSupervisor(settings.ledger, settings.journal, settings.prices, delivered, events=settings.events)
        self._books: PriceBooks | None = None
        self._flushes: list[_FlushRequest] = []
        self._pause = MIN_POLL
        self._round_lock = threading.Lock()
        self._round_thread: int | None = None
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # no Event: a stream that is collected inside its lock may wake, too
        self._stopping = threading.Event()
        self._finished = False
        run = contextvars.Context().run  # in the context of no request, though instrumentations of threads take that along
        self._thread = threading.Thread(target=run, args=(self._loop,), name="voight-ingester", daemon=True)

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:  # Python 3.12+ starts no thread while the process ends; `flush` needs none
            if "shutdown" not in str(error):
                raise

    def stop(self, timeout: float) -> None:
        """Make a last round, which deletes the segment that this process has just closed, and end; in *timeout* seconds, or later."""
        self._stopping.set()
        self._wake.put(None)
        if self._thread is threading.current_thread():
            return
        if self._thread.is_alive():
            self._thread.join(timeout)
        elif self._round_lock.acquire(timeout=timeout):
            try:
                self._finish()
            finally:
                self._round_lock.release()

    def hold(self) -> Callable[[], None] | None:
        """
        Close the ledger and hold the rounds until the answer is called. None where that cannot be had, as in a listener that forks.

        SQLite's locks and mutexes are a process's own. A child that inherits an open connection waits for ever for a mutex that a
        thread of its parent held, or takes its parent's file locks for its own.
        """
        if self._round_thread == threading.get_ident() or not self._round_lock.acquire(timeout=FORK_SECONDS):
            return None
        if self._supervisor is not None:
            self._supervisor.close_ledger()
        return self._round_lock.release

    def discard_after_fork(self) -> None:
        """In a forked child: leave what is the parent's alone."""
        if self._supervisor is not None:
            self._supervisor.discard_after_fork()

    def flush(self, timeout: float, *, patient: bool = True) -> bool:
        """
        Have a round made now, and wait for it; whether what was written before is in the ledger within *timeout* seconds. A ledger that
        cannot be used is tried again until then; where this is not *patient*, it is not even tried while it is left alone.

        The rounds are the thread's, as nothing but its own timeout ends a call to a server that does not answer.
        """
        if self._round_thread == threading.get_ident() or self._thread is threading.current_thread():
            return False  # a listener: the round that it is called from cannot wait for itself
        if not patient and self._supervisor is not None and self._supervisor.error is not None:
            return False
        deadline = time.monotonic() + timeout
        self._journal.retry()
        wish = _FlushRequest(self._journal, self._listeners, patient)
        self._flushes.append(wish)
        try:
            while True:
                self._wake.put(None)
                if not self._thread.is_alive() and self._round_lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                    try:
                        self._serve()
                    finally:
                        self._round_lock.release()
                left = deadline - time.monotonic()
                answer = wish.wait(min(left, MAX_POLL))
                if answer is not None or left <= 0:
                    return bool(answer)
        finally:
            self._flushes.remove(wish)

    def wake(self) -> None:
        """Have a round made now, and do not wait for it."""
        self._wake.put(None)

    def pending_records(self) -> int | None:
        """How many records in the journals may not be in the ledger; None where this process does not know."""
        return self._supervisor.pending_records() if self._supervisor is not None else None

    def _loop(self) -> None:
        pause = INTERVAL
        while not self._stopping.is_set():
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=pause)
                while True:
                    self._wake.get_nowait()
            with self._round_lock:
                pause = self._serve()
        with self._round_lock:
            self._finish()

    def _serve(self) -> float:
        """One round, and the answers to those who wait for it; in how many seconds there should be another."""
        wishes = list(self._flushes)
        done = self._round(now=bool(wishes))
        for wish in wishes:
            if self._is_done(wish, done):
                wish.finish(True)
            elif not wish.patient and self._supervisor is not None and self._supervisor.error is not None:
                wish.finish(False)
        delivery = self._supervisor
        if any(not wish.answered for wish in wishes):
            pause, self._pause = self._pause, min(self._pause * 2, MAX_POLL)
            return pause
        self._pause = MIN_POLL
        if delivery is not None and not delivery.lock.held and self._settings.delivery != "synchronous":
            delivery.close_ledger()  # it was opened for a wish: no connection is held by those who are not elected
        return BUSY_INTERVAL if delivery is not None and delivery.behind else INTERVAL

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            if self._supervisor is not None:
                self._supervisor.stop_sending()
            self._round(now=True)
            if self._supervisor is not None:
                self._supervisor.close()

    def _round(self, now: bool) -> bool:
        """One round; whether everything that was in the journals when it began is now in the ledger, or another's to bring there."""
        self._round_thread = threading.get_ident()
        try:
            return self._do_round(now)
        finally:
            self._round_thread = None

    def _do_round(self, now: bool) -> bool:
        delivery = self._supervisor
        held = self._listeners.pending()
        done = delivery is None
        try:
            open_calls.look_after()
            self._journal.check()
            self._journal.retry()
            if delivery is not None or held:
                import_the_rest(self._settings.ledger if delivery is not None else "")
            if delivery is not None:
                done = self._run_supervisor(delivery, now)
        except Exception as error:
            report_internal_error(error)
        if held:
            self._tell_listeners(held)
        return done

    def _run_supervisor(self, delivery: IngestSupervisor, now: bool) -> bool:
        from voight_middleware.pipeline.ingest import UnreadableJournal

        before = delivery.errors
        try:
            return delivery.run(ROUND_SECONDS, now=now)
        except UnreadableJournal as error:
            counters["ledger_errors"] += 1
            warn_once(f"calls stay in the journal for now: {error}")
            return False
        finally:
            counters["ledger_errors"] += delivery.errors - before

    def _is_done(self, wish: _FlushRequest, done: bool) -> bool:
        if self._journal.waiting:
            return False
        if wish.unheard and not wish.unheard.isdisjoint(call.call_id for call in self._listeners.pending()):
            return False
        if done or self._supervisor is None:
            return True
        if self._supervisor.lock.held or any(path.exists() for path in wish.closed):
            return False
        return wish.written is None or self._supervisor.is_ingested(*wish.written)

    def _tell_listeners(self, held: list[Call]) -> None:
        """
        Complete calls of this process for its listeners that this round has not delivered: where another process ingests or has ingested
        them, or where the ledger refuses.
        """
        from voight_middleware.pricing.price_books import PriceBooks
        from voight_middleware.pricing.price_call import price_call

        try:
            unheard = {call.call_id for call in self._listeners.pending()}
            held = [call for call in held if call.call_id in unheard]
            if self._books is None:
                self._books = PriceBooks(self._settings.journal, self._settings.prices)
            stamp = ""
            with contextlib.suppress(OSError):  # the journal's folder cannot be written: the same prices, from their file
                stamp = self._stamp()
            for call in held:
                price_call(call, self._books.book(stamp))
            self._listeners.deliver(held)
        except Exception as error:
            report_internal_error(error)
