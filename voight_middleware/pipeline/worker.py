"""
The worker of a meter: a thread that ingests in rounds, and delivers this process's calls to its
listeners.
"""

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
from voight_middleware.lazy import FORK_SECONDS
from voight_middleware.pipeline import open_calls
from voight_middleware.pipeline.journal import Journal
from voight_middleware.pipeline.listeners import ListenerQueue
from voight_middleware.pipeline.supervisor import IngestSupervisor, import_the_rest
from voight_middleware.records.call import Call

if TYPE_CHECKING:
    from voight_middleware.pricing.price_books import PriceBooks

INTERVAL = 1.0
"""Seconds between two rounds."""
ROUND_SECONDS = 1.0
"""The maximum length of a round, in seconds. Forks and flushes wait for the end of a round."""
BUSY_INTERVAL = 0.05
"""Seconds between two rounds while records are left over from the last one."""
MIN_POLL, MAX_POLL = 0.02, 0.25
"""Seconds between two rounds while a flush waits: from the first doubled up to the second."""


class _FlushRequest:
    """
    One ``flush``: it waits until the records so far are in the ledger, and the calls delivered.
    """

    def __init__(self, journal: Journal, listeners: ListenerQueue, patient: bool) -> None:
        self.closed = journal.closed()
        self.written = journal.position()
        self.undelivered = {call.call_id for call in listeners.pending()}
        self.patient = patient
        self.finished = False
        self._results: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def finish(self, done: bool) -> None:
        self.finished = True
        self._results.put(done)

    def wait(self, seconds: float) -> bool | None:
        """Return the result; None if there is none within *seconds*."""
        try:
            return self._results.get(timeout=seconds) if seconds > 0 else self._results.get_nowait()
        except queue.Empty:
            return None


class IngestWorker:
    """
    The worker thread of a meter, and its rounds.

    Args:
        settings: The settings of this process.
        journal: The journal of this process.
        listeners: They get the priced calls of this process.
        stamp: Stores and names the prices of this process's calls.
    """

    def __init__(
        self, settings: Settings, journal: Journal, listeners: ListenerQueue, stamp: Stamp
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._listeners = listeners
        self._stamp = stamp
        self._supervisor: IngestSupervisor | None = None
        if settings.ingest:
            delivered = listeners.deliver if listeners.listeners else None
            self._supervisor = IngestSupervisor(
                settings.ledger,
                settings.journal,
                settings.prices,
                delivered,
                events=settings.events,
            )
        self._price_books: PriceBooks | None = None
        self._flushes: list[_FlushRequest] = []
        self._pause = MIN_POLL
        self._round_lock = threading.Lock()
        self._round_thread: int | None = None
        # not an Event: a stream collected inside the Event's lock may wake, too
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._finished = False
        # an empty context, even if other instrumentation copies the request's context into threads
        run = contextvars.Context().run
        self._thread = threading.Thread(
            target=run, args=(self._loop,), name="voight-ingester", daemon=True
        )

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:
            # Python 3.12+ starts no thread while the process ends; `flush` needs none
            if "shutdown" not in str(error):
                raise

    def stop(self, timeout: float) -> None:
        """
        Run a last round and stop. Wait for up to *timeout* seconds.

        The last round deletes the segment that this process has just closed.
        """
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
        Close the ledger, and pause the rounds until the returned function is called.

        Return None if that is impossible, as in a listener that forks. SQLite's locks and mutexes
        belong to one process. A child with an inherited connection may wait forever for a mutex
        that a thread of its parent held. It may also take its parent's file locks for its own.
        """
        if self._round_thread == threading.get_ident() or not self._round_lock.acquire(
            timeout=FORK_SECONDS
        ):
            return None
        if self._supervisor is not None:
            self._supervisor.close_ledger()
        return self._round_lock.release

    def discard_after_fork(self) -> None:
        """Drop the supervisor's resources in a forked child, without touching the parent's."""
        if self._supervisor is not None:
            self._supervisor.discard_after_fork()

    def flush(self, timeout: float, *, patient: bool = True) -> bool:
        """
        Start a round now, and wait for it. Return whether the records so far are in the ledger
        within *timeout* seconds.

        A ledger that cannot be used is retried until then. If not *patient*, return False at once
        while the ledger is known to be down. The rounds run on the worker thread, because a call
        to a server that doesn't respond ends only by its own timeout.
        """
        if (
            self._round_thread == threading.get_ident()
            or self._thread is threading.current_thread()
        ):
            return False  # a listener flushes: its own round cannot wait for itself
        if not patient and self._supervisor is not None and self._supervisor.error is not None:
            return False
        deadline = time.monotonic() + timeout
        self._journal.retry()
        request = _FlushRequest(self._journal, self._listeners, patient)
        self._flushes.append(request)
        try:
            while True:
                self._wake.put(None)
                if not self._thread.is_alive() and self._round_lock.acquire(
                    timeout=max(0.0, deadline - time.monotonic())
                ):
                    try:
                        self._serve()
                    finally:
                        self._round_lock.release()
                remaining = deadline - time.monotonic()
                result = request.wait(min(remaining, MAX_POLL))
                if result is not None or remaining <= 0:
                    return bool(result)
        finally:
            self._flushes.remove(request)

    def wake(self) -> None:
        """Start a round now, without waiting for it."""
        self._wake.put(None)

    def pending_records(self) -> int | None:
        """Return how many journal records may not be in the ledger; None if unknown."""
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
        """
        Run a round, and finish the flushes that it completes. Return the seconds until the next
        round.
        """
        requests = list(self._flushes)
        done = self._round(now=bool(requests))
        for request in requests:
            if self._is_done(request, done):
                request.finish(True)
            elif (
                not request.patient
                and self._supervisor is not None
                and self._supervisor.error is not None
            ):
                request.finish(False)
        supervisor = self._supervisor
        if any(not request.finished for request in requests):
            pause, self._pause = self._pause, min(self._pause * 2, MAX_POLL)
            return pause
        self._pause = MIN_POLL
        if (
            supervisor is not None
            and not supervisor.lock.held
            and self._settings.delivery != "synchronous"
        ):
            # a flush opened it; only the ingester keeps a connection open
            supervisor.close_ledger()
        return BUSY_INTERVAL if supervisor is not None and supervisor.behind else INTERVAL

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            if self._supervisor is not None:
                self._supervisor.stop_sending()
            self._round(now=True)
            if self._supervisor is not None:
                self._supervisor.close()

    def _round(self, now: bool) -> bool:
        """
        Run a round. Return whether all records from before it are in the ledger, or left to a
        separate ingester (``ingest=False``).
        """
        self._round_thread = threading.get_ident()
        try:
            return self._do_round(now)
        finally:
            self._round_thread = None

    def _do_round(self, now: bool) -> bool:
        supervisor = self._supervisor
        pending = self._listeners.pending()
        done = supervisor is None
        try:
            open_calls.look_after()
            self._journal.check()
            self._journal.retry()
            if pending:
                import_the_rest("")
            if supervisor is not None:
                done = self._run_supervisor(supervisor, now)
        except Exception as error:
            report_internal_error(error)
        if pending:
            self._deliver_pending(pending)
        return done

    def _run_supervisor(self, supervisor: IngestSupervisor, now: bool) -> bool:
        before = supervisor.errors
        try:
            return supervisor.run(ROUND_SECONDS, now=now)
        except Exception as error:
            # here, as only the process that ingests has this module, and the ledger's with it
            from voight_middleware.pipeline.ingest import UnreadableJournal

            if not isinstance(error, UnreadableJournal):
                raise
            counters["ledger_errors"] += 1
            warn_once(f"calls stay in the journal for now: {error}")
            return False
        finally:
            counters["ledger_errors"] += supervisor.errors - before

    def _is_done(self, request: _FlushRequest, done: bool) -> bool:
        if self._journal.waiting:
            return False
        if request.undelivered and not request.undelivered.isdisjoint(
            call.call_id for call in self._listeners.pending()
        ):
            return False
        if done or self._supervisor is None:
            return True
        if self._supervisor.lock.held or any(path.exists() for path in request.closed):
            return False
        return request.written is None or self._supervisor.is_ingested(*request.written)

    def _deliver_pending(self, pending: list[Call]) -> None:
        """
        Price and deliver the calls of this process that this round did not deliver.

        Either another process ingests them, or the ledger refuses them.
        """
        from voight_middleware.pricing.price_books import PriceBooks
        from voight_middleware.pricing.price_call import price_call

        try:
            undelivered = {call.call_id for call in self._listeners.pending()}
            pending = [call for call in pending if call.call_id in undelivered]
            if self._price_books is None:
                self._price_books = PriceBooks(self._settings.journal, self._settings.prices)
            stamp = ""
            # the journal folder cannot be written: use the same prices, from their file
            with contextlib.suppress(OSError):
                stamp = self._stamp()
            for call in pending:
                price_call(call, self._price_books.book(stamp))
            self._listeners.deliver(pending)
        except Exception as error:
            report_internal_error(error)
