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
from collections.abc import Callable, Iterable, Mapping, Sequence

from voight_middleware.config.kept_prices import Stamp
from voight_middleware.config.settings import EXIT_SECONDS, Settings, usable_settings
from voight_middleware.context.context import TagContext, on_a_loop
from voight_middleware.diagnostics import counters, report_internal_error, warn_once
from voight_middleware.pipeline import open_calls
from voight_middleware.pipeline.journal import Journal
from voight_middleware.pipeline.listeners import Listener, ListenerQueue
from voight_middleware.pipeline.observers import CallObserver, CallObservers, Observed
from voight_middleware.pipeline.pseudonyms import Pseudonymizer
from voight_middleware.pipeline.supervisor import FORK_SECONDS, hold_imports, reset_imports_after_fork
from voight_middleware.pipeline.worker import IngestWorker
from voight_middleware.records.call import Call, LateAttribution, Submission
from voight_middleware.records.tag_values import user_and_session
from voight_middleware.records.tags import NO_TAGS, Owner, Tags, make_tags

logger = logging.getLogger(__name__)

__all__ = (
    "EXIT_SECONDS",
    "CallObserver",
    "Listener",
    "Meter",
    "add_observer",
    "current_meter",
    "flush_before_exit",
    "remove_observer",
    "swap_meter",
)

BatchOwner = Callable[[str], object]
"""Called with the ``custom_id`` of a request of a batch; returns the user's id, or a mapping of tags. None where it is not known."""

AGAIN_SECONDS = 0.5
MAX_TEXT = 512
"""The longest text of a call but its tags, such as a model's name, in characters."""
_TEXTS = ("requested_model", "model", "host", "service_tier", "response_id", "error", "provider", "endpoint")


class Meter:
    """Owns this process's journal, listeners and ingester. Starts no thread and opens no file before the first call."""

    def __init__(self, settings: Settings, listeners: Sequence[Listener] = (), batch_owner: BatchOwner | None = None) -> None:
        self.settings = settings
        self._batch_owner = batch_owner
        self._listener_queue = ListenerQueue(listeners)
        also: Iterable[object] = listeners
        self.observers = CallObservers((*(one for one in also if isinstance(one, CallObserver)), *_standing))
        stamp = Stamp(settings.journal, settings.prices, ingests=settings.ingest, broken_settings=settings.broken_file)
        self.journal = Journal(settings.journal, settings.journal_limit, stamp)
        self.pricing = stamp
        """How this process's calls are priced, by whichever process."""
        self._pseudonymizer = Pseudonymizer(settings)
        self._below = make_tags(settings.tags).merge(Tags(release=settings.release) if settings.release else NO_TAGS)
        self._worker: IngestWorker | None = None
        self._start_lock = threading.Lock()
        self.synchronous = settings.delivery == "synchronous"
        """Whether a call waits until it is in the ledger, where it may."""
        self._warned_of_pending = False
        self._closed = False

    def finish(self, call: Call, context: TagContext, captured: Owner, named: str | None = None, observed: Observed | None = None) -> None:
        """
        Write a finished call. Its owner is the one *captured* when it began, or where that was unknown the one that *context* knows by
        now, or else the user that the request *named* to the provider.

        Never raises.
        """
        try:
            tags, attribution = captured if captured.tags.user_id is not None else context.owner()
            unsettled = tags.user_id is None
            call.tags, call.attribution = self._stamped(tags, attribution, named)
            _bound(call)
            if not self._pseudonymizer.knows(call.requested_model, call.model, call.service_tier):
                self._pseudonymize_texts(call)
            if self.observers.present or observed:
                self.observers.end(observed, call)
            self._listener_queue.hold(call)
            try:
                self.journal.append(call)
            except UnicodeEncodeError:  # half a character in a model's name, which nothing but a client can have made up
                _make_whole(call)
                self.journal.append(call)
            if unsettled and context.scope is not None:
                context.scope.defer(call.call_id)
            self._wake()
        except Exception as error:
            report_internal_error(error)

    def _pseudonymize_texts(self, call: Call) -> None:
        """Look at texts that a client can choose. A provider's own ids are not: each is new, and nobody's."""
        call.requested_model = self.pseudonymized_text("requested_model", call.requested_model)
        call.model = self.pseudonymized_text("model", call.model)
        call.service_tier = self.pseudonymized_text("service_tier", call.service_tier)

    def pseudonymized_text(self, key: str, value: str | None) -> str | None:
        """Return a text of a call, such as a model, as it may leave the process: bounded, and without personal data. Never raises."""
        try:
            return None if value is None else self._pseudonymizer.text(key, value[:MAX_TEXT])
        except Exception as error:  # what could not be looked at is not kept
            report_internal_error(error)
            return None

    def submit(self, submission: Submission, context: TagContext, captured: Owner, named: str | None = None) -> None:
        """Write who has submitted a job: the owner of its answers, found as that of a call. Never raises."""
        try:
            tags, attribution = captured if captured.tags.user_id is not None else context.owner()
            unsettled = tags.user_id is None
            submission.tags, submission.attribution = self._stamped(tags, attribution, named)
            self.journal.append(submission)
            if unsettled and context.scope is not None:
                context.scope.defer(submission.job)
            self._wake()
        except Exception as error:
            report_internal_error(error)

    def owner_of_line(self, custom_id: str) -> Owner | None:
        """Ask ``batch_owner`` whose a request of a batch is; None where it does not say. Never raises."""
        if self._batch_owner is None:
            return None
        try:
            answer = self._batch_owner(custom_id)
            tags = make_tags(answer if isinstance(answer, Mapping) else {"user_id": answer})
            return Owner(tags, "tag") if tags.user_id is not None else None
        except Exception as error:
            counters["getter_errors"] += 1
            warn_once(f"batch_owner raised {type(error).__name__}: such requests belong to the owner of their batch")
            return None

    def link(self, submission: Submission) -> None:
        """Write what a job is a part of. Never raises."""
        try:
            self.journal.append(submission)
            self._wake()
        except Exception as error:
            report_internal_error(error)

    def _stamped(self, tags: Tags, attribution: str, named: str | None) -> Owner:
        if tags.user_id is None and named is not None:
            user, session = user_and_session(named)
            if user is not None:
                tags, attribution = Tags(user_id=user, session_id=session).merge(tags), "request"
        return Owner(self.pseudonymized(self._below.merge(tags)), attribution)

    def pseudonymized(self, tags: Tags) -> Tags:
        """*tags* as they may leave the process, on disk or in a message to a worker: without personal data. Never raises."""
        try:
            return self._pseudonymizer(tags)
        except Exception as error:  # what could not be looked at is not kept
            report_internal_error(error)
            return NO_TAGS

    def _wake(self) -> None:
        if self._closed:
            return  # a stream that is collected while the process ends: no thread can start, and its call is in the journal
        if self._worker is None:
            self._start(wait=False)  # whoever holds the lock starts it; that may be this thread, collecting a dropped stream in there
        if self.synchronous:
            if not (on_a_loop() or self.journal.is_in_use_here()):
                self.flush_if_synchronous()
            elif (background := self._worker) is not None:
                background.wake()

    def flush_if_synchronous(self) -> None:
        """
        Where delivery is synchronous, wait until what was written is in the ledger: at most ``exit_timeout`` seconds, and not at all
        while the ledger is known to be down. It blocks: at the end of a request on an event loop, call it from a thread. Never raises.
        """
        try:
            if self.synchronous and (background := self._worker) is not None:
                background.flush(self.settings.exit_timeout, patient=False)
        except Exception as error:
            report_internal_error(error)

    def attribute_late(self, call_ids: Iterable[str], owner: Owner) -> None:
        """Write the owner of calls that were finished without one. Never raises."""
        try:
            self.journal.append(
                LateAttribution(call_ids=tuple(call_ids), tags=self.pseudonymized(owner.tags), attribution=owner.attribution)
            )
            if self.synchronous:
                self._wake()
        except Exception as error:
            report_internal_error(error)

    def flush(self, timeout: float = 10.0) -> bool:
        """Bring what this process has written into the ledger and to its listeners; whether it is there within *timeout* seconds."""
        deadline = time.monotonic() + timeout
        open_calls.collect()
        read = open_calls.wait_for_readers(deadline)
        return self._bring_in(max(0.0, deadline - time.monotonic())) and self._listener_queue.wait(deadline - time.monotonic()) and read

    def _bring_in(self, timeout: float) -> bool:
        if self._worker is None:
            if self.journal.written == 0 and not self.journal.waiting:
                return True
            try:
                self._start()
            except RuntimeError as error:  # too many threads
                report_internal_error(error)
        background = self._worker
        return background is not None and background.flush(timeout)

    def flush_before_exit(self, timeout: float | None = None) -> bool:
        """
        As ``flush``, in *timeout* seconds, by default those of ``exit_timeout``; says once what stays behind, and where. The second time,
        as when a server's shutdown is followed by the end of the process, it does not wait for what has not come in the first.
        """
        timeout = self.settings.exit_timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        open_calls.wait_for_readers(deadline)
        done = self._bring_in(min(timeout, AGAIN_SECONDS) if self._warned_of_pending else timeout)
        if not done and not self._warned_of_pending:
            self._warned_of_pending = True
            background = self._worker
            left = background.pending_records() if background is not None else None
            what = f"{self.journal.written:,} records of this process" if left is None else f"{left:,} records"
            logger.warning("up to %s are not in the ledger yet, and stay in the journal %s", what, self.settings.journal)
        return done and self._listener_queue.wait(deadline - time.monotonic())

    def close(self, timeout: float | None = None) -> bool:
        """
        Flush and stop the background thread, in *timeout* seconds, by default those of ``exit_timeout``. What is not in the ledger by then
        stays in the journal, for whoever ingests next.
        """
        timeout = self.settings.exit_timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        done = False
        with contextlib.suppress(Exception):
            done = self.flush_before_exit(timeout)
        self._closed = True
        self.journal.end()
        with self._start_lock:
            background, self._worker = self._worker, None
        if background is not None:
            background.stop(max(deadline - time.monotonic(), 0.1))
            self._listener_queue.wait(max(deadline - time.monotonic(), 0.1))
        return done

    def before_fork(self) -> Callable[[], None] | None:
        """Let the round that is under way end, and close the ledger; answers what to call in the parent afterwards."""
        background = self._worker
        return background.hold() if background is not None else None

    def after_fork(self) -> None:
        """In a child: nothing of the parent's is written, unlocked or closed; everything is made anew at the first call."""
        if self._worker is not None:
            self._worker.discard_after_fork()
        self._worker = None
        self._start_lock = threading.Lock()
        self._listener_queue.reset_after_fork()
        self._closed = False
        self.journal.after_fork()

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """The listeners of this process."""
        return self._listener_queue.listeners

    def _start(self, wait: bool = True) -> None:
        if self._start_lock.acquire(blocking=wait):
            try:
                if self._worker is None:
                    self._listener_queue.start()  # Python 3.12+ starts no thread while the process ends
                    worker = IngestWorker(self.settings, self.journal, self._listener_queue, self.pricing)
                    worker.start()  # raises where there are too many threads: the next call tries again
                    self._worker = worker
            finally:
                self._start_lock.release()


def _bound(call: Call) -> None:
    """Cut texts that a client or a provider may have made as long as it likes."""
    for name in _TEXTS:
        value = getattr(call, name)
        if value is not None and len(value) > MAX_TEXT:
            setattr(call, name, value[:MAX_TEXT])


def _make_whole(call: Call) -> None:
    """Spell out halves of characters (lone surrogates), which no file and no ledger can hold."""
    for name in call.__struct_fields__:
        if isinstance(value := getattr(call, name), str):
            setattr(call, name, value.encode(errors="backslashreplace").decode())


_standing: tuple[CallObserver, ...] = ()
"""Who watches every meter of this process."""
_meter: Meter | None = None
_meter_lock = threading.Lock()


def current_meter() -> Meter:
    """The meter of this process, made from the environment at first use."""
    return _meter if _meter is not None else _make_meter()


def _make_meter() -> Meter:
    global _meter
    with _meter_lock:
        if _meter is None:
            settings, errors = usable_settings()
            for error in errors:
                warn_once(f"a variable of the environment cannot be used, and what does less holds in its place: {error}")
            _meter = Meter(settings)
        return _meter


def swap_meter(new: Meter | None) -> Meter | None:
    """Put another meter in place and answer the old one, which is neither flushed nor closed: for tests."""
    global _meter
    with _meter_lock:
        old, _meter = _meter, new
    return old


def add_observer(watcher: CallObserver) -> None:
    """Let *watcher* see the calls of this process, whatever ``configure()`` puts in place later. Twice is the same as once."""
    global _standing
    with _meter_lock:
        if watcher not in _standing:
            _standing = (*_standing, watcher)
            if _meter is not None:
                _meter.observers.present = (*_meter.observers.present, watcher)


def remove_observer(watcher: CallObserver) -> None:
    """Show *watcher*, of ``watch()``, no more calls; the end of those that have begun it still sees."""
    global _standing
    with _meter_lock:
        _standing = tuple(one for one in _standing if one is not watcher)
        if _meter is not None:
            _meter.observers.present = tuple(one for one in _meter.observers.present if one is not watcher)


def flush_before_exit() -> bool:
    """
    As ``flush``, where the process is about to end: in the time of the setting ``exit_timeout``, and saying once what stays behind. What
    is still open ends.
    """
    open_calls.end_all()
    return current_meter().flush_before_exit()


def _before_fork() -> None:
    if _meter_lock.acquire(timeout=FORK_SECONDS):  # the child could not go on with what another thread is importing for its meter
        _after_the_fork.append(_meter_lock.release)
    release = _meter.before_fork() if _meter is not None else None
    if release is not None:
        _after_the_fork.append(release)
    if (imports := hold_imports()) is not None:
        _after_the_fork.append(imports)


def _after_fork_in_parent() -> None:
    while _after_the_fork:
        _after_the_fork.pop()()


def _after_fork() -> None:
    global _meter_lock
    reset_imports_after_fork()
    _after_the_fork.clear()
    _meter_lock = threading.Lock()
    if _meter is not None:
        _meter.after_fork()


def _at_exit() -> None:
    open_calls.end_all()
    if _meter is not None:
        _meter.close()


_after_the_fork: list[Callable[[], None]] = []
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork)
atexit.register(_at_exit)
