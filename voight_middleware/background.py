"""
What brings calls into the ledger: a delivery, which is elected, connected, and patient with a ledger that is down; and the background
thread of a meter, which has one, and which hands a process's own calls to its own listeners.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from voight_middleware.call import Call
from voight_middleware.journal import Election
from voight_middleware.outbox import Outbox, open_outbox
from voight_middleware.tag_values import complain

if TYPE_CHECKING:
    from voight_middleware.ingest import Ingester
    from voight_middleware.ledger import Ledger, LedgerError
    from voight_middleware.meter import Meter
    from voight_middleware.pricing import PriceBook
    from voight_middleware.settings import EventsTarget

logger = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two rounds of the background thread."""
ROUND_SECONDS = 1.0
"""How long a round may last where much has to be caught up with; a fork and a flush of another thread come between two rounds."""
BREATH = 0.05
"""Seconds between two rounds while there is more to do."""
SOONEST, LATEST = 0.02, 0.25
"""Seconds between two rounds while somebody waits for them: growing from one to the other."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""How long a ledger that cannot be used is left alone, in seconds: twice as long each time."""
SENDER_SECONDS = 1.0
"""How long the end of the process waits for the answer to the one event that is under way; without it, that one is sent again."""
FORK_SECONDS = 5.0
"""How long a fork may wait for the round that is being made."""
_random = random.Random()  # our own: an application that seeds `random` must get its own numbers


class Sender(Protocol):
    """Sends calls elsewhere, on a thread of its own, in the process that ingests."""

    def refill(self, ledger: Ledger) -> None:
        """Once a round, with the ledger: take some of the outbox's calls from it. Raises ``LedgerError``."""
        ...

    def stop(self, timeout: float) -> None:
        """End the thread; what was not sent stays in the outbox."""
        ...


make_sender: Callable[[EventsTarget, Outbox], Sender] | None = None
"""Makes the sender of a process that has a key; `export` puts it here, as this floor does not know that one."""


class Delivery:
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
        self.election = Election(folder)
        self.errors = 0
        """How often the ledger could not be used."""
        self.error: LedgerError | None = None
        """Why it cannot be used now; None where it can."""
        self.behind = False
        """Whether there is more to bring in than the last run had the time for."""
        self._url = url
        self._prices = prices
        self._delivered = delivered
        self._gentle = gentle
        self._tell = tell
        self._events = events
        self._outbox: Outbox | None = None
        self._sender: Sender | None = None
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
        from voight_middleware.ingest import UnreadableJournal

        if not now and time.monotonic() < self._not_before:
            return False
        try:
            if not self.election.win():
                return False
        except OSError as error:
            raise UnreadableJournal(f"the journal folder {self.election.folder} cannot be written ({error}): make it writable") from error
        return self._run(seconds, self._ledger is None)

    def _run(self, seconds: float | None, fresh: bool) -> bool:
        from voight_middleware.ingest import UnreadableJournal
        from voight_middleware.ledger import LedgerError

        before = self.records
        unreadable: UnreadableJournal | None = None
        try:
            ingester = self._elected()
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
                self.election.delivered()
        self._succeeded()
        self._send()
        if unreadable is not None:
            raise unreadable
        return not self.behind

    def _elected(self) -> Ingester:
        from voight_middleware.ingest import Ingester

        ledger = self._open()
        if self._ingester is None:
            self._ingester = Ingester(ledger, self.election.folder, self._delivered, self._gentle, prices=self._prices)
        elif self._ingester.ledger is not ledger:
            self._ingester.use(ledger)
        if self._outbox is None:
            self._outbox = open_outbox(self.election.folder, create=self._events is not None)
        self._ingester.outbox = self._outbox
        return self._ingester

    def _send(self) -> None:
        """Have the sender go on. Never raises: what cannot be sent is in the ledger all the same, as with a role that only writes."""
        from voight_middleware.ledger import LedgerError

        if self._outbox is None or self._events is None or not self._sends or time.monotonic() < self._send_not_before:
            return
        try:
            if self._sender is None and make_sender is not None:
                with _imports:  # a child that is forked meanwhile could never import what is imported here
                    self._sender = make_sender(self._events, self._outbox)
            if self._sender is not None:
                self._sender.refill(self._open())
        except Exception as error:
            why = error if isinstance(error, LedgerError | OSError) else type(error).__name__
            complain(f"calls wait in {self._outbox.folder}, and are not sent to Voight for now: {why}")
            self.close_ledger()  # the connection may have been cut
            self._send_not_before = time.monotonic() + LONGEST_PAUSE

    def stop_sending(self) -> None:
        """Send nothing any more: before another process may be elected, and send."""
        self._sends = False
        if self._sender is not None:
            self._sender.stop(SENDER_SECONDS)

    def _failed(self, error: LedgerError) -> None:
        self.errors += 1
        self.error = error
        pause = min(FIRST_PAUSE * 2.0 ** min(self._failures, 10), LONGEST_PAUSE)
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

        if not (self.election.folder / name).exists():
            return True
        try:
            return self._open().progress(name) >= length
        except LedgerError:
            self.close_ledger()
            return False

    def left(self) -> int | None:
        """How many records in the journals may not be in the ledger; None where this process does not know."""
        try:
            return self._ingester.left() if self._ingester is not None and self.election.held else None
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
        self.election.resign()

    def abandon(self) -> None:
        """In a forked child: drop the lock's copy, and keep a connection that is still open from being collected and so closed."""
        self.election.resign()
        _of_the_parent.append(self._ledger)

    def _open(self) -> Ledger:
        from voight_middleware.ledger import open_ledger

        if self._ledger is None:
            self._ledger = open_ledger(self._url)
        return self._ledger


class _Wish:
    """What one ``flush`` waits for: that what was written until then is in the ledger, and was heard of."""

    def __init__(self, meter: Meter, patient: bool) -> None:
        self.closed = meter.journal.closed()
        self.written = meter.journal.position()
        self.unheard = {call.call_id for call in meter.held()}
        self.patient = patient
        self.answered = False
        self._answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def answer(self, granted: bool) -> None:
        self.answered = True
        self._answers.put(granted)

    def wait(self, seconds: float) -> bool | None:
        """The answer; None where there is none in that time."""
        try:
            return self._answers.get(timeout=seconds) if seconds > 0 else self._answers.get_nowait()
        except queue.Empty:
            return None


class Background:
    """The background thread of a meter, and the rounds that it makes."""

    def __init__(self, meter: Meter) -> None:
        settings = meter.settings
        self._meter = meter
        self._delivery: Delivery | None = None
        if settings.ingest:
            listening = meter.deliver if meter.listeners else None
            self._delivery = Delivery(settings.ledger, settings.journal, settings.prices, listening, events=settings.events)
        self._book: PriceBook | None = None
        self._wishes: list[_Wish] = []
        self._pause = SOONEST
        self._round_lock = threading.Lock()
        self._round_thread: int | None = None
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # no Event: a stream that is collected inside its lock may wake, too
        self._stopping = threading.Event()
        self._finished = False
        self._thread = threading.Thread(target=self._loop, name="voight-ingester", daemon=True)

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

    def pause(self) -> Callable[[], None] | None:
        """
        Close the ledger and hold the rounds until the answer is called. None where that cannot be had, as in a listener that forks.

        SQLite's locks and mutexes are a process's own. A child that inherits an open connection waits for ever for a mutex that a
        thread of its parent held, or takes its parent's file locks for its own.
        """
        if self._round_thread == threading.get_ident() or not self._round_lock.acquire(timeout=FORK_SECONDS):
            return None
        if self._delivery is not None:
            self._delivery.close_ledger()
        return self._round_lock.release

    def abandon(self) -> None:
        """In a forked child: leave what is the parent's alone."""
        if self._delivery is not None:
            self._delivery.abandon()

    def flush(self, timeout: float, *, patient: bool = True) -> bool:
        """
        Have a round made now, and wait for it; whether what was written before is in the ledger within *timeout* seconds. A ledger that
        cannot be used is tried again until then; where this is not *patient*, it is not even tried while it is left alone.

        The rounds are the thread's, as nothing but its own timeout ends a call to a server that does not answer.
        """
        if self._round_thread == threading.get_ident() or self._thread is threading.current_thread():
            return False  # a listener: the round that it is called from cannot wait for itself
        if not patient and self._delivery is not None and self._delivery.error is not None:
            return False
        deadline = time.monotonic() + timeout
        self._meter.journal.retry()
        wish = _Wish(self._meter, patient)
        self._wishes.append(wish)
        try:
            while True:
                self._wake.put(None)
                if not self._thread.is_alive() and self._round_lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                    try:
                        self._serve()
                    finally:
                        self._round_lock.release()
                left = deadline - time.monotonic()
                answer = wish.wait(min(left, LATEST))
                if answer is not None or left <= 0:
                    return bool(answer)
        finally:
            self._wishes.remove(wish)

    def hurry(self) -> None:
        """Have a round made now, and do not wait for it."""
        self._wake.put(None)

    def left(self) -> int | None:
        """How many records in the journals may not be in the ledger; None where this process does not know."""
        return self._delivery.left() if self._delivery is not None else None

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
        wishes = list(self._wishes)
        done = self._round(now=bool(wishes))
        for wish in wishes:
            if self._is_granted(wish, done):
                wish.answer(True)
            elif not wish.patient and self._delivery is not None and self._delivery.error is not None:
                wish.answer(False)
        delivery = self._delivery
        if any(not wish.answered for wish in wishes):
            pause, self._pause = self._pause, min(self._pause * 2, LATEST)
            return pause
        self._pause = SOONEST
        if delivery is not None and not delivery.election.held and self._meter.settings.delivery != "synchronous":
            delivery.close_ledger()  # it was opened for a wish: no connection is held by those who are not elected
        return BREATH if delivery is not None and delivery.behind else INTERVAL

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            if self._delivery is not None:
                self._delivery.stop_sending()
            self._round(now=True)
            if self._delivery is not None:
                self._delivery.close()

    def _round(self, now: bool) -> bool:
        """One round; whether everything that was in the journals when it began is now in the ledger, or another's to bring there."""
        self._round_thread = threading.get_ident()
        try:
            return self._do_round(now)
        finally:
            self._round_thread = None

    def _do_round(self, now: bool) -> bool:
        meter, delivery = self._meter, self._delivery
        held = meter.held()
        done = delivery is None
        try:
            meter.journal.check()
            meter.journal.retry()
            if delivery is not None or held:
                _import_the_rest(meter.settings.ledger if delivery is not None else "")
            if delivery is not None:
                done = self._deliver_to(delivery, now)
        except Exception as error:
            meter.note(error)
        if held:
            self._tell_listeners(held)
        return done

    def _deliver_to(self, delivery: Delivery, now: bool) -> bool:
        from voight_middleware.ingest import UnreadableJournal

        before = delivery.errors
        try:
            return delivery.run(ROUND_SECONDS, now=now)
        except UnreadableJournal as error:
            self._meter.counters["ledger_errors"] += 1
            complain(f"calls stay in the journal for now: {error}")
            return False
        finally:
            self._meter.counters["ledger_errors"] += delivery.errors - before

    def _is_granted(self, wish: _Wish, done: bool) -> bool:
        if self._meter.journal.waiting:
            return False
        if wish.unheard and not wish.unheard.isdisjoint(call.call_id for call in self._meter.held()):
            return False
        if done or self._delivery is None:
            return True
        if self._delivery.election.held or any(path.exists() for path in wish.closed):
            return False
        return wish.written is None or self._delivery.is_ingested(*wish.written)

    def _tell_listeners(self, held: list[Call]) -> None:
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
        self._queue: queue.SimpleQueue[Call | threading.Event] = queue.SimpleQueue()
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

    def _loop(self, calls: queue.SimpleQueue[Call | threading.Event]) -> None:
        while calls is self._queue:  # else this is the child of a listener that forks
            one = calls.get()
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
_imported: set[str | None] = set()
_ENGINES = {"sqlite": "sqlite", "postgresql": "postgres", "postgres": "postgres", "clickhouse": "clickhouse"}


def _import_the_rest(url: str) -> None:
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


def renew_imports() -> None:
    """In a forked child: the lock may be held by a thread that is not there."""
    global _imports
    _imports = threading.RLock()
