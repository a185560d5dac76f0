"""The audience: the listeners of a meter, which hear of its finished calls on a thread of their own."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable, Sequence

from voight_middleware.call import Call
from voight_middleware.tag_values import complain


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
        if not self.start():
            self._tell(call)
            return
        self._queue.put(call)

    def start(self) -> bool:
        """
        Start the thread where there are listeners, in a context of its own: what a listener does belongs to no request. False while the
        process ends.
        """
        if self._thread is not None or not self.listeners:
            return True
        run = contextvars.Context().run
        thread = threading.Thread(target=run, args=(self._loop, self._queue), name="voight-listeners", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # Python 3.12+ starts no thread while the process ends
            return "shutdown" not in str(error)  # else there are too many: the next call tries again
        self._thread = thread
        return True

    def wait(self, timeout: float) -> bool:
        """Wait until they have heard what there is by now; whether that is so within *timeout* seconds."""
        if self._thread is threading.current_thread() or (self._thread is None and self._queue.empty()):
            return True
        self.start()
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
            except BaseException as error:  # a CancelledError or SystemExit, too, would end the thread
                self._count("listener_errors")
                with contextlib.suppress(Exception):  # an application's logging filter may raise
                    name = getattr(listener, "__qualname__", type(listener).__qualname__)
                    complain(f"the listener {name} raised {type(error).__name__}; the call is kept all the same")
