"""
The meter: the configuration, and the path that every finished call takes.

A finished call is appended to the journal on the caller's thread; that is all the application waits for. One background thread
per process does the rest: in the one process of the host that is elected it ingests, in the others it only hands their own calls
to their own listeners. Nothing here raises into the application.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from voight_middleware.call import Call, Settlement
from voight_middleware.journal import Election, Journal
from voight_middleware.settings import Settings, SettingsError
from voight_middleware.tag_values import complain
from voight_middleware.tags import NO_TAGS, Frame, Owner, Tags

if TYPE_CHECKING:
    from voight_middleware.ingest import Ingester
    from voight_middleware.ledger import Ledger
    from voight_middleware.pricing import PriceBook

logger = logging.getLogger(__name__)

Listener = Callable[[Call], None]

INTERVAL = 1.0
"""Seconds between two rounds of the background thread."""
EXIT_SECONDS = 5.0
"""How long the end of the process may wait for the ledger. What it does not reach stays in the journal."""
HELD_CALLS = 100_000
"""How many calls wait for listeners at most; beyond it the oldest go unheard and are counted. The journal has them all the same."""


class Meter:
    """Owns this process's journal, listeners and ingester. Starts no thread and opens no file before the first call."""

    def __init__(self, settings: Settings, listeners: Sequence[Listener] = ()) -> None:
        self.settings = settings
        self.listeners = tuple(listeners)
        self.journal = Journal(settings.journal)
        self.counters: Counter[str] = Counter()
        """What went wrong inside: ``internal_errors``, ``listener_errors``, ``ledger_errors``, ``unheard_calls``."""
        self._release = Tags(release=settings.release) if settings.release else NO_TAGS
        self._held: dict[str, Call] = {}
        self._background: _Background | None = None
        self._start_lock = threading.Lock()

    def finish(self, call: Call, frame: Frame, captured: Owner) -> None:
        """
        Write a finished call. Its owner is the one *captured* when it began, or where that was unknown the one that *frame* knows by now.

        Never raises.
        """
        try:
            tags, attribution = captured if captured.tags.user_id is not None else frame.owner()
            call.tags = self._release.merge(tags)
            call.attribution = attribution
            if self.listeners:
                self._hold(call)
            self.journal.append(call)
            if tags.user_id is None and frame.scope is not None:
                frame.scope.await_settlement(call.call_id)
            if self._background is None:
                self._start(wait=False)  # whoever holds the lock starts it; that may be this thread, collecting a dropped stream in there
        except Exception as error:
            self.note(error)

    def settle(self, call_ids: Iterable[str], owner: Owner) -> None:
        """Write the owner of calls that were finished without one. Never raises."""
        try:
            self.journal.append(Settlement(call_ids=tuple(call_ids), tags=owner.tags, attribution=owner.attribution))
        except Exception as error:
            self.note(error)

    def note(self, error: BaseException) -> None:
        """Count an error of our own, and log it once per kind."""
        self.counters["internal_errors"] += 1
        _complain_of(error)

    def flush(self, timeout: float = 10.0) -> bool:
        """Bring what this process has written into the ledger; whether it is there within *timeout* seconds."""
        if self._background is None:
            if self.journal.written == 0 and not self.journal.waiting:
                return True
            self._start()
        background = self._background
        return background is not None and background.flush(timeout)

    def close(self, timeout: float = EXIT_SECONDS) -> bool:
        """Flush and stop the background thread. What is not in the ledger by then stays in the journal, for whoever ingests next."""
        done = False
        with contextlib.suppress(Exception):
            done = self.flush(timeout)
        self.journal.rotate()
        with self._start_lock:
            background, self._background = self._background, None
        if background is not None:
            background.stop(timeout)
        return done

    def before_fork(self) -> Callable[[], None] | None:
        """Let the round that is under way end, and close the ledger; answers what to call in the parent afterwards."""
        background = self._background
        return background.pause() if background is not None else None

    def after_fork(self) -> None:
        """In a child: nothing of the parent's is written, unlocked or closed; everything is made anew at the first call."""
        if self._background is not None:
            self._background.abandon()
        self._background = None
        self._start_lock = threading.Lock()
        self._held = {}
        self.counters = Counter()
        self.journal.after_fork()

    def deliver(self, calls: Iterable[Call]) -> None:
        """Hand completed calls to the listeners: those that this process made, each once."""
        for call in calls:
            if self._held.pop(call.call_id, None) is None:
                continue
            for listener in self.listeners:
                try:
                    listener(call)
                except Exception as error:
                    self.counters["listener_errors"] += 1
                    complain(f"a listener raised {type(error).__name__}; the call is in the ledger all the same")

    def held(self) -> list[Call]:
        """The calls of this process that its listeners have not heard of yet."""
        return list(self._held.values())

    def _hold(self, call: Call) -> None:
        self._held[call.call_id] = call
        if len(self._held) > HELD_CALLS:
            with contextlib.suppress(KeyError, RuntimeError):
                del self._held[next(iter(self._held))]
                self.counters["unheard_calls"] += 1

    def _start(self, wait: bool = True) -> None:
        if self._start_lock.acquire(blocking=wait):
            try:
                if self._background is None:
                    self._background = _Background(self)
                    self._background.start()
            finally:
                self._start_lock.release()


class _Background:
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
        self._round_lock = threading.Lock()
        self._round_thread: int | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="voight-ingester", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        self._stopping.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)
        if self._round_lock.acquire(timeout=timeout):
            try:
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
        if self._round_thread == threading.get_ident() or not self._round_lock.acquire(timeout=EXIT_SECONDS):
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
            self._ingester = Ingester(ledger, meter.settings.journal, meter.deliver if meter.listeners else None)
        self._ingester.ledger = ledger
        return self._ingester

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
        from voight_middleware.pricing import PriceBook

        try:
            unheard = {call.call_id for call in self._meter.held()}
            held = [call for call in held if call.call_id in unheard]
            if held and self._book is None:
                self._book = PriceBook()
            for call in held:
                assert self._book is not None
                complete(call, self._book)
            self._meter.deliver(held)
        except Exception as error:
            self._meter.note(error)


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
_meter: Meter | None = None
_meter_lock = threading.Lock()


def current_meter() -> Meter:
    """The meter of this process, made from the environment at first use."""
    return _meter if _meter is not None else _make_meter()


def _make_meter() -> Meter:
    global _meter
    with _meter_lock:
        if _meter is None:
            try:
                settings = Settings.from_environment()
            except SettingsError as error:
                complain(f"the environment is not usable ({error}); the defaults are used")
                settings = Settings.from_environment(
                    environ={key: os.environ[key] for key in ("HOME", "XDG_STATE_HOME") if key in os.environ}
                )
            _meter = Meter(settings)
        return _meter


def swap_meter(new: Meter | None) -> Meter | None:
    """Put another meter in place and answer the old one, which is neither flushed nor closed: for tests."""
    global _meter
    with _meter_lock:
        old, _meter = _meter, new
    return old


def note(error: BaseException) -> None:
    """Count and log an error of our own, even where there is no meter to count it. Never raises."""
    with contextlib.suppress(Exception):
        _complain_of(error)
        current_meter().counters["internal_errors"] += 1


def _complain_of(error: BaseException) -> None:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else "an unknown place"
    with contextlib.suppress(Exception):  # an application's logging filter may raise
        complain(f"internal error, the application is not affected: {type(error).__name__} at {place}")


def configure(
    *,
    ledger: str | Path | None = None,
    journal: str | Path | None = None,
    release: str | None = None,
    listeners: Sequence[Listener] = (),
    enabled: bool | None = None,
) -> None:
    """
    Configure this process's meter. Whatever is not given comes from the environment, then from the defaults.

    Args:
        ledger: URL of the ledger (``sqlite:////var/lib/app/ledger.db``) or the path of an SQLite file. ``VOIGHT_LEDGER``.
        journal: Folder of this host's journals; by default beside an SQLite ledger. ``VOIGHT_JOURNAL``.
        release: Stamped on every call that has no release of its own. ``VOIGHT_RELEASE``.
        listeners: Called with each finished, priced call of this process, on a background thread. What they raise is counted,
            never passed on.
        enabled: False meters nothing. ``VOIGHT_ENABLED``.

    Raises:
        SettingsError: A value cannot be used.
    """
    settings = Settings.from_environment(ledger=ledger, journal=journal, release=release, enabled=enabled)
    old = swap_meter(Meter(settings, listeners))
    if old is not None:
        old.close()


def flush(timeout: float = 10.0) -> bool:
    """
    Wait until what this process has written is in the ledger; whether that happened within *timeout* seconds.

    Never needed for safety: a finished call is on disk already. It blocks, so call it from a thread in asynchronous code.
    """
    return current_meter().flush(timeout)


def _before_fork() -> None:
    release = _meter.before_fork() if _meter is not None else None
    if release is not None:
        _after_the_fork.append(release)
    if _imports.acquire(timeout=EXIT_SECONDS):
        _after_the_fork.append(_imports.release)


def _after_fork_in_parent() -> None:
    while _after_the_fork:
        _after_the_fork.pop()()


def _after_fork() -> None:
    global _imports, _meter_lock
    _imports = threading.RLock()
    _after_the_fork.clear()
    _meter_lock = threading.Lock()
    if _meter is not None:
        _meter.after_fork()


def _at_exit() -> None:
    if _meter is not None:
        _meter.close()


_after_the_fork: list[Callable[[], None]] = []
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork)
atexit.register(_at_exit)
