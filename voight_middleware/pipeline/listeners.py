"""The listeners of a meter: they get its finished calls on their own thread."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable, Iterable, Sequence

from voight_middleware.diagnostics import counters, warn_once
from voight_middleware.records.call import Call

Listener = Callable[[Call], None]

MAX_PENDING_CALLS = 100_000
"""
The maximum number of calls that wait for listeners. More calls are in the ledger only, and are
counted (``unheard_calls``).
"""


class ListenerQueue:
    """
    Delivers the finished calls of this process to its listeners, each call once.

    A call is *held* until it is priced, and then delivered. A listener that blocks delays the
    listeners after it. It never delays the ledger, and delays a flush only up to its timeout.

    Args:
        listeners: Called one after the other with each call.
    """

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self.listeners = tuple(listeners)
        self._start_anew()

    def _start_anew(self) -> None:
        self._held: dict[str, Call] = {}
        self._queue: queue.SimpleQueue[Call | threading.Event] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def reset_after_fork(self) -> None:
        """Drop the parent's thread and calls in a forked child."""
        self._start_anew()

    def hold(self, call: Call) -> None:
        """Keep *call* until it is priced. If too many calls wait, drop the oldest."""
        if not self.listeners:
            return
        self._held[call.call_id] = call
        if len(self._held) > MAX_PENDING_CALLS:
            with contextlib.suppress(KeyError, RuntimeError):
                del self._held[next(iter(self._held))]
                counters["unheard_calls"] += 1

    def pending(self) -> list[Call]:
        """Return the calls that were not delivered yet."""
        return list(self._held.values())

    def deliver(self, calls: Iterable[Call]) -> None:
        """
        Deliver priced calls to the listeners. Calls of other processes are skipped, and so are
        calls that were delivered before.
        """
        for call in calls:
            if self._held.pop(call.call_id, None) is not None:
                self._put(call)

    def _put(self, call: Call) -> None:
        if self._queue.qsize() >= MAX_PENDING_CALLS:
            counters["unheard_calls"] += 1
        elif self.start():
            self._queue.put(call)
        else:
            self._call_listeners(call)

    def start(self) -> bool:
        """
        Start the thread if there are listeners. Return False if the process is ending.

        The thread has its own context, as a listener belongs to no request.
        """
        if self._thread is not None or not self.listeners:
            return True
        run = contextvars.Context().run
        thread = threading.Thread(
            target=run, args=(self._loop, self._queue), name="voight-listeners", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # Python 3.12+ starts no thread while the process ends
            # else there are too many: the next call tries again
            return "shutdown" not in str(error)
        self._thread = thread
        return True

    def wait(self, timeout: float) -> bool:
        """
        Wait until the listeners got all delivered calls. Return False after *timeout* seconds.
        """
        if self._thread is threading.current_thread() or (
            self._thread is None and self._queue.empty()
        ):
            return True
        self.start()
        reached = threading.Event()
        self._queue.put(reached)
        return reached.wait(max(0.0, timeout))

    def _loop(self, items: queue.SimpleQueue[Call | threading.Event]) -> None:
        while items is self._queue:  # else this is the child of a listener that forks
            item = items.get()
            if isinstance(item, Call):
                self._call_listeners(item)
            else:
                item.set()

    def _call_listeners(self, call: Call) -> None:
        for listener in self.listeners:
            try:
                listener(call)
            except BaseException as error:  # CancelledError or SystemExit would end the thread
                counters["listener_errors"] += 1
                name = getattr(listener, "__qualname__", type(listener).__qualname__)
                warn_once(
                    f"the listener {name} raised {type(error).__name__}; the call stays in the "
                    "ledger"
                )
