"""
The meter: the configuration of a process, and the path of every finished call.

A finished call is appended to the journal on the caller's thread. The application waits for
nothing else. One worker thread per process does the rest. In the process that holds the ingest
lock, it ingests. In all other processes, it only delivers their calls to their listeners. Nothing
here raises into the application.
"""

from __future__ import annotations

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
from voight_middleware.lazy import FORK_SECONDS, at_exit, at_fork
from voight_middleware.pipeline import open_calls
from voight_middleware.pipeline.journal import Journal
from voight_middleware.pipeline.listeners import Listener, ListenerQueue
from voight_middleware.pipeline.observers import CallObserver, CallObservers, Observed
from voight_middleware.pipeline.pseudonyms import Pseudonymizer
from voight_middleware.pipeline.worker import IngestWorker
from voight_middleware.records.answer import Answer
from voight_middleware.records.call import Call, LateAttribution, Submission, new_call_id
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
"""
Called with the ``custom_id`` of a request of a batch. Returns the user's id, a mapping of tags, or
None if the owner is unknown.
"""

AGAIN_SECONDS = 0.5
"""How long a second flush before exit waits, if the first one ran out of time."""
MAX_TEXT = 512
"""The maximum length of a call's texts other than tags, such as a model name, in characters."""
_TEXTS = (
    "requested_model",
    "model",
    "host",
    "service_tier",
    "response_id",
    "error",
    "provider",
    "endpoint",
)


class Meter:
    """
    The journal, the listeners and the worker of this process. It starts no thread and opens no
    file before the first call.
    """

    def __init__(
        self,
        settings: Settings,
        listeners: Sequence[Listener] = (),
        batch_owner: BatchOwner | None = None,
    ) -> None:
        self.settings = settings
        self._batch_owner = batch_owner
        self._listener_queue = ListenerQueue(listeners)
        candidates: Iterable[object] = listeners
        observers = (listener for listener in candidates if isinstance(listener, CallObserver))
        self.observers = CallObservers((*observers, *_standing))
        stamp = Stamp(
            settings.journal,
            settings.prices,
            ingests=settings.ingest,
            broken_settings=settings.broken_file,
        )
        self.journal = Journal(settings.journal, settings.journal_limit, stamp)
        self.pricing = stamp
        """Names the prices of this process's calls, whichever process ingests them."""
        self._pseudonymizer = Pseudonymizer(settings)
        self._below = make_tags(settings.tags).merge(
            Tags(release=settings.release) if settings.release else NO_TAGS
        )
        self._worker: IngestWorker | None = None
        self._start_lock = threading.Lock()
        self.synchronous = settings.delivery == "synchronous"
        """Whether a call waits until it is in the ledger, if its thread may block."""
        self._warned_of_pending = False
        self._closed = False

    def finish(
        self,
        call: Call,
        context: TagContext,
        captured: Owner,
        named: str | None = None,
        observed: Observed | None = None,
    ) -> None:
        """
        Write a finished call. Never raises.

        The owner is the one *captured* when the call started. If that is unknown, it is the owner
        that *context* knows now, or else the user that the request *named* to the provider.
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
            self.journal.append(call)
            if unsettled and context.scope is not None:
                context.scope.defer(call.call_id)
            self._wake()
        except Exception as error:
            report_internal_error(error)

    def finish_answer(self, answer: Answer, owner: Owner, reasons: tuple[str, ...] | None) -> None:
        """
        Write a finished call of a known *owner* that no observer sees. Never raises.

        Args:
            answer: The call, without an owner.
            owner: Its owner.
            reasons: The finish reasons, for the listeners.
        """
        try:
            answer.attribution = owner.attribution
            answer.tags = self._pseudonymizer(self._below.merge(owner.tags))
            if not self._pseudonymizer.knows(
                answer.requested_model, answer.model, answer.service_tier
            ):
                _bound(answer)
                self._pseudonymize_texts(answer)
            elif answer.response_id is not None and len(answer.response_id) > MAX_TEXT:
                _bound(answer)
            if self._listener_queue.listeners:
                answer.call_id, answer.finish_reasons = new_call_id(), reasons
                self._listener_queue.hold(answer.call())
            self.journal.append(answer)
            if self._worker is None or self.synchronous:
                self._wake()
        except Exception as error:
            report_internal_error(error)

    def _pseudonymize_texts(self, call: Call | Answer) -> None:
        """
        Pseudonymize the texts that a client can choose. A provider's own ids are skipped: they name
        no person.
        """
        call.requested_model = self.pseudonymized_text("requested_model", call.requested_model)
        call.model = self.pseudonymized_text("model", call.model)
        call.service_tier = self.pseudonymized_text("service_tier", call.service_tier)

    def pseudonymized_text(self, key: str, value: str | None) -> str | None:
        """
        Return a text of a call, such as a model, that may leave the process. Never raises.

        The text is cut to ``MAX_TEXT`` and has no personal data.
        """
        try:
            return None if value is None else self._pseudonymizer.text(key, value[:MAX_TEXT])
        except Exception as error:  # an unchecked text is not stored
            report_internal_error(error)
            return None

    def submit(
        self, submission: Submission, context: TagContext, captured: Owner, named: str | None = None
    ) -> None:
        """
        Write the owner of a submitted job, who also owns its results. Never raises.

        The owner is found as in ``finish``.
        """
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
        """
        Return the owner of a batch's request as given by ``batch_owner``. Never raises.

        None if there is no ``batch_owner``, or if it names no user.
        """
        if self._batch_owner is None:
            return None
        try:
            owner = self._batch_owner(custom_id)
            tags = make_tags(owner if isinstance(owner, Mapping) else {"user_id": owner})
            return Owner(tags, "tag") if tags.user_id is not None else None
        except Exception as error:
            counters["getter_errors"] += 1
            warn_once(
                f"batch_owner raised {type(error).__name__}; such requests belong to the owner of "
                "their batch"
            )
            return None

    def link(self, submission: Submission) -> None:
        """Write which larger job a job is a part of. Never raises."""
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
        """
        Return *tags* without personal data, ready to leave the process. Never raises.

        They leave the process on disk, or in a message to a queue worker.
        """
        try:
            return self._pseudonymizer(tags)
        except Exception as error:  # unchecked tags are not stored
            report_internal_error(error)
            return NO_TAGS

    def _wake(self) -> None:
        if self._closed:
            # a stream collected while the process ends: no thread can start, and its call is in the
            # journal
            return
        if self._worker is None:
            # The thread that holds the lock starts the worker. It may be this very thread, which
            # collects a dropped stream in there.
            self._start(wait=False)
        if self.synchronous:
            if not (on_a_loop() or self.journal.is_in_use_here()):
                self.flush_if_synchronous()
            elif (worker := self._worker) is not None:
                worker.wake()

    def flush_if_synchronous(self) -> None:
        """
        In synchronous mode, block until the written records reach the ledger. Never raises.

        It waits for up to ``exit_timeout`` seconds, and returns at once while the ledger is known
        to be down. At the end of a request on an event loop, call it from a thread.
        """
        try:
            if self.synchronous and (worker := self._worker) is not None:
                worker.flush(self.settings.exit_timeout, patient=False)
        except Exception as error:
            report_internal_error(error)

    def attribute_late(self, call_ids: Iterable[str], owner: Owner) -> None:
        """Write the owner of calls that ended without one. Never raises."""
        try:
            self.journal.append(
                LateAttribution(
                    call_ids=tuple(call_ids),
                    tags=self.pseudonymized(owner.tags),
                    attribution=owner.attribution,
                )
            )
            if self.synchronous:
                self._wake()
        except Exception as error:
            report_internal_error(error)

    def flush(self, timeout: float = 10.0) -> bool:
        """
        Bring this process's records into the ledger and to its listeners. Return whether they all
        arrived within *timeout* seconds.
        """
        deadline = time.monotonic() + timeout
        open_calls.collect()
        read = open_calls.wait_for_readers(deadline)
        return (
            self._flush_worker(max(0.0, deadline - time.monotonic()))
            and self._listener_queue.wait(deadline - time.monotonic())
            and read
        )

    def _flush_worker(self, timeout: float) -> bool:
        if self._worker is None:
            if self.journal.written == 0 and not self.journal.waiting:
                return True
            try:
                self._start()
            except RuntimeError as error:  # too many threads
                report_internal_error(error)
        worker = self._worker
        return worker is not None and worker.flush(timeout)

    def flush_before_exit(self, timeout: float | None = None) -> bool:
        """
        Flush within *timeout* seconds (default: ``exit_timeout``). Warn once about the records that
        stay in the journal.

        A second call, such as at process exit after a server's shutdown, does not wait again for
        records that did not arrive in time.
        """
        timeout = self.settings.exit_timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        open_calls.wait_for_readers(deadline)
        done = self._flush_worker(
            min(timeout, AGAIN_SECONDS) if self._warned_of_pending else timeout
        )
        if not done and not self._warned_of_pending:
            self._warned_of_pending = True
            worker = self._worker
            count = worker.pending_records() if worker is not None else None
            pending = (
                f"{self.journal.written:,} records of this process"
                if count is None
                else f"{count:,} records"
            )
            logger.warning(
                "up to %s are not in the ledger yet and stay in the journal %s",
                pending,
                self.settings.journal,
            )
        return done and self._listener_queue.wait(deadline - time.monotonic())

    def close(self, timeout: float | None = None) -> bool:
        """
        Flush and stop the worker within *timeout* seconds (default: ``exit_timeout``).

        Records that are not in the ledger by then stay in the journal for the next ingester.
        """
        timeout = self.settings.exit_timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        done = False
        with contextlib.suppress(Exception):
            done = self.flush_before_exit(timeout)
        self._closed = True
        self.journal.end()
        with self._start_lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop(max(deadline - time.monotonic(), 0.1))
            self._listener_queue.wait(max(deadline - time.monotonic(), 0.1))
        return done

    def before_fork(self) -> Callable[[], None] | None:
        """
        Let the current round end, and close the ledger. Return the function to call in the parent
        after the fork.
        """
        worker = self._worker
        return worker.hold() if worker is not None else None

    def after_fork(self) -> None:
        """
        Reset the meter in a forked child. The parent's files and locks stay untouched, and the
        first call makes new ones.
        """
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
                    # Python 3.12+ starts no thread while the process ends
                    self._listener_queue.start()
                    worker = IngestWorker(
                        self.settings, self.journal, self._listener_queue, self.pricing
                    )
                    # raises if there are too many threads: the next call tries again
                    worker.start()
                    self._worker = worker
            finally:
                self._start_lock.release()


def _bound(call: Call | Answer) -> None:
    """Cut texts whose length a client or a provider chooses."""
    for name in _TEXTS:
        value = getattr(call, name, None)
        if value is not None and len(value) > MAX_TEXT:
            setattr(call, name, value[:MAX_TEXT])


_standing: tuple[CallObserver, ...] = ()
"""The observers of every meter of this process."""
_meter: Meter | None = None
_meter_lock = threading.Lock()


def current_meter() -> Meter:
    """Return the meter of this process. The first use makes it from the environment."""
    return _meter if _meter is not None else _make_meter()


def _make_meter() -> Meter:
    global _meter
    with _meter_lock:
        if _meter is None:
            settings, errors = usable_settings()
            for error in errors:
                warn_once(
                    f"an environment variable cannot be used; a safe default replaces it: {error}"
                )
            _meter = Meter(settings)
        return _meter


def swap_meter(new: Meter | None) -> Meter | None:
    """Replace the meter, and return the old one, which is neither flushed nor closed."""
    global _meter
    with _meter_lock:
        old, _meter = _meter, new
    return old


def add_observer(observer: CallObserver) -> None:
    """
    Let *observer* see the calls of this process, also after a later ``configure()``. Adding it
    again changes nothing.
    """
    global _standing
    with _meter_lock:
        if observer not in _standing:
            _standing = (*_standing, observer)
            if _meter is not None:
                _meter.observers.present = (*_meter.observers.present, observer)


def remove_observer(observer: CallObserver) -> None:
    """Undo ``add_observer``. The observer still sees the end of calls that it saw start."""
    global _standing
    with _meter_lock:
        _standing = tuple(standing for standing in _standing if standing is not observer)
        if _meter is not None:
            _meter.observers.present = tuple(
                present for present in _meter.observers.present if present is not observer
            )


def flush_before_exit() -> bool:
    """
    Flush for up to ``exit_timeout`` seconds before the process exits. End what is still open, and
    warn once about the records that stay in the journal.
    """
    open_calls.end_all()
    return current_meter().flush_before_exit()


def _before_fork() -> None:
    # The child could never finish an import that another thread has started for its meter.
    if _meter_lock.acquire(timeout=FORK_SECONDS):
        _after_the_fork.append(_meter_lock.release)
    release = _meter.before_fork() if _meter is not None else None
    if release is not None:
        _after_the_fork.append(release)


def _after_fork_in_parent() -> None:
    while _after_the_fork:
        _after_the_fork.pop()()


def _after_fork() -> None:
    global _meter_lock
    _after_the_fork.clear()
    _meter_lock = threading.Lock()
    if _meter is not None:
        _meter.after_fork()


def _at_exit() -> None:
    open_calls.end_all()
    if _meter is not None:
        _meter.close()


_after_the_fork: list[Callable[[], None]] = []
at_fork(_before_fork, _after_fork_in_parent)
os.register_at_fork(after_in_child=_after_fork)
at_exit(_at_exit)
