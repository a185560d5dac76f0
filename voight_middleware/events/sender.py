"""
The sender: every call as an event to Voight's ``POST {base}/v1/events``, from the one ingesting
process of a host.

It never runs on the request's path: it reads the outbox and the ledger. Delivery is at least once.
The position is saved after each response, and accepted events are not sent again. An event is sent
twice only if its acceptance is unknown: the process was killed at that moment, or the connection
broke or timed out after the server took it.

Sources: Voight's published documentation, "Events API"; its Apache-2.0 wrappers ``@voightxyz/sdk``
0.6.5 and ``@voightxyz/openai`` 0.1.6.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from typing import NamedTuple

import msgspec

from voight_middleware.config.values import EventsTarget
from voight_middleware.diagnostics import report_internal_error, warn_once
from voight_middleware.events.api import EventApi, Response, reason
from voight_middleware.events.event import event
from voight_middleware.events.outbox import Cursor, Entry, Outbox
from voight_middleware.ledger import Ledger
from voight_middleware.ledger.find_call import find_call
from voight_middleware.records.call import REATTRIBUTABLE, Call

SETTLE_SECONDS = 15.0
"""
How long a call without a certain owner waits for the end of its request. Later calls wait too, once
for all of them.
"""
SPACING = 1.05
"""A little slower than the limit: delayed events arrive closer together than they were sent."""
FIRST_PAUSE = 1.0
MAX_PAUSE = 60.0
"""
The maximum pause in seconds between attempts while the server fails. Pauses double each time, minus
up to a half at random.
"""
MAX_WAIT = 3600.0
"""The maximum of ``Retry-After``, and the pause after a used-up quota."""
MAX_READY = 5_000
FRESH_SECONDS = 60.0
"""
How long data read from the ledger may be sent. A person erased meanwhile must not be named an hour
later, when a server is back.
"""
REFILL_SECONDS = 1.0
"""How long one round may look up calls. A fork, a flush and the next calls wait for its end."""

_encode = msgspec.json.Encoder().encode


class _Ready(NamedTuple):
    call_id: str
    body: bytes | None
    """The event. None if the call is not in the ledger any more, or cannot become an event."""
    next: Cursor
    read_at: float
    """By ``time.monotonic()``."""
    defect: str | None = None
    """Why the call cannot become an event."""


class EventSender:
    """
    Sends the outbox's calls as events, one at a time, on its own thread.

    Events are evenly spaced, so that no minute exceeds the plan's limit, whenever the server's
    minute begins. Several hosts with one key share the limit. ``Retry-After`` tells them what is
    left.
    """

    def __init__(self, target: EventsTarget, outbox: Outbox) -> None:
        self._target = target
        self._outbox = outbox
        self._interval = SPACING * 60.0 / target.per_minute
        self._most_ready = min(MAX_READY, max(20, target.per_minute // 10))
        self._ready: deque[_Ready] = deque()
        self._read_up_to: Cursor | None = None
        self._generation = 0
        self._reading = threading.Lock()
        self._head: tuple[str, float] | None = None
        self._filled = threading.Event()
        self._stopping = threading.Event()
        self.stopped = False
        """Whether sending has stopped until a person fixes something."""
        self._failures = 0
        self._answering = threading.Lock()
        self._abandoned = False
        self._chance = random.Random()  # not the application's, which may have seeded it
        self._api = EventApi(target)
        self._thread: threading.Thread | None = None

    # -- rounds of the ingester --------------------------------------------------------------------

    def refill(self, ledger: Ledger) -> None:
        """
        Make events of the next calls in the outbox.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        with self._reading:
            generation, start = self._generation, self._read_up_to
        if self.stopped or len(self._ready) > self._most_ready // 2:
            return
        until = time.monotonic() + REFILL_SECONDS
        try:
            for waiting in self._outbox.read(start):
                if len(self._ready) >= self._most_ready or time.monotonic() >= until:
                    break
                call = _find(ledger, waiting.entry)
                if (
                    call is None
                    and ledger.progress(waiting.segment) < waiting.end
                    and self._is_there(waiting.segment)
                ):
                    break  # its batch is not in the ledger yet
                if call is not None and not self._is_settled(call):
                    break
                ready = self._event_of(waiting.entry.call_id, call, waiting.next)
                with self._reading:
                    # The thread has dropped the data: this call comes after it.
                    if generation != self._generation:
                        break
                    self._ready.append(ready)
                    self._read_up_to = waiting.next
        finally:
            if self._ready:
                self._start()
                self._filled.set()

    def _event_of(self, call_id: str, call: Call | None, after: Cursor) -> _Ready:
        ready = _Ready(call_id, None, after, time.monotonic())
        try:
            return (
                ready
                if call is None
                else ready._replace(body=_encode(event(call, self._target.agent)))
            )
        except Exception as error:  # one unexpected call must not stop the others
            report_internal_error(error)
            return ready._replace(defect=f"cannot become an event: {type(error).__name__}")

    def _is_there(self, segment: str) -> bool:
        return (self._outbox.folder.parent / segment).exists()

    def _is_settled(self, call: Call) -> bool:
        """Return whether the owner is certain, or will not change any more."""
        if call.attribution not in REATTRIBUTABLE:
            return True
        if time.time() - (call.occurred_at + (call.duration or 0)) / 1e6 >= SETTLE_SECONDS:
            return True
        if self._head is None or self._head[0] != call.call_id:
            self._head = (call.call_id, time.monotonic())
        # A call with a future time waits no longer either.
        return time.monotonic() - self._head[1] >= SETTLE_SECONDS

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="voight-events", daemon=True)
            try:
                self._thread.start()
            # Python 3.12+ starts no thread while the process ends: the next process sends them
            except RuntimeError:
                self.stopped = True

    def stop(self, timeout: float) -> None:
        """
        Stop the thread after the response to the current event. Unsent calls stay in the outbox.

        A response after *timeout* seconds is ignored: another process may have continued in the
        outbox by then.
        """
        self._stopping.set()
        self._filled.set()
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join(timeout)
        self._abandoned = True
        if self._answering.acquire(timeout=timeout):  # wait for the state being written
            self._answering.release()

    # -- the thread --------------------------------------------------------------------------------

    def _loop(self) -> None:
        if (before := self._outbox.state.sent_at) is not None:  # of the previous process
            self._stopping.wait(
                min(self._interval, max(0.0, self._interval - (time.time() - before / 1e6)))
            )
        while not self._stopping.is_set() and not self.stopped:
            ready = self._take()
            if ready is None:
                self._filled.wait()
                self._filled.clear()
                continue
            try:
                pause = self._deliver(ready)
            except OSError as error:  # the position cannot be saved: the event would be sent again
                self._report_disk_error(error)
                pause = MAX_PAUSE
            except Exception as error:
                report_internal_error(error)
                self._outbox.note(problem=f"an internal error: {type(error).__name__}")
                pause = MAX_PAUSE
            self._stopping.wait(pause)

    def _take(self) -> _Ready | None:
        """
        Return the next event. If the data is old, drop all of it: the next round of the ingester
        reads it again.
        """
        with self._reading:
            if self._ready and time.monotonic() - self._ready[0].read_at > FRESH_SECONDS:
                self._ready.clear()
                self._read_up_to = None
                self._generation += 1
            return self._ready[0] if self._ready else None

    def _deliver(self, ready: _Ready) -> float:
        """Send one event, once. Return the seconds until the next attempt."""
        begun = time.monotonic()
        response = None if ready.body is None else self._api.post(ready.body)
        with self._answering:
            return 0.0 if self._abandoned else self._handle(ready, response, begun)

    def _handle(self, ready: _Ready, response: Response | None, begun: float) -> float:
        outbox = self._outbox
        if response is None:
            if ready.defect is None:
                self._keep(ready, gone=outbox.state.gone + 1)
            else:
                outbox.reject(ready.call_id, 0, ready.defect)
                self._keep(ready, refused=outbox.state.refused + 1)
            return 0.0
        if response.accepted:
            self._keep(
                ready,
                sent=outbox.state.sent + 1,
                sent_at=time.time_ns() // 1000,
                problem=None,
                stopped=False,
            )
        elif response.status in _STOPS:
            self._stop_for(response)
            return 0.0
        elif response.status in _REFUSED:
            outbox.reject(ready.call_id, response.status, reason(response))
            warn_once(
                f"Voight refuses events (HTTP {response.status}): the events and the reasons are "
                f"in {outbox.folder}"
            )
            self._keep(ready, refused=outbox.state.refused + 1, problem=None, stopped=False)
        else:
            self._failures += 1
            self._report_problem(response)
            return max(self._interval, self._pause(response, self._failures))
        self._failures = 0
        return max(0.0, self._interval - (time.monotonic() - begun))

    def _keep(self, ready: _Ready, **changes: object) -> None:
        """Save that a call is done, however long the disk refuses. It must not be sent twice."""
        while True:
            try:
                self._outbox.advance(ready.next, **changes)
            except OSError as error:
                self._report_disk_error(error)
                if self._stopping.wait(MAX_PAUSE):
                    return
            else:
                self._ready.popleft()
                return

    def _stop_for(self, response: Response) -> None:
        problem = _STOPS[response.status]
        self.stopped = True
        self._outbox.note(problem=f"{problem} (HTTP {response.status})", stopped=True)
        warn_once(
            f"events are no longer sent: Voight says that {problem} (HTTP {response.status}); up "
            "to a million of them wait"
        )

    def _report_disk_error(self, error: OSError) -> None:
        warn_once(
            f"no events are sent: {self._outbox.folder} cannot be written "
            f"({error.strerror or error})"
        )

    def _report_problem(self, response: Response) -> None:
        problem = _PROBLEMS.get(response.status) or (
            f"HTTP {response.status}" if response.status else response.error
        )
        if 200 <= response.status < 400:
            problem = f"there is no event API at this URL (HTTP {response.status})"
        if self._outbox.state.problem != problem or self._outbox.state.stopped:
            self._outbox.note(problem=problem, stopped=False)
        warn_once(f"events wait, because Voight does not accept them: {problem}")

    def _pause(self, response: Response, failures: int) -> float:
        """Return the seconds until the next attempt."""
        if response.retry_after is not None:
            return min(response.retry_after, MAX_WAIT) + self._chance.uniform(0, FIRST_PAUSE / 4)
        if response.status == 402:
            return MAX_WAIT
        longest = (
            MAX_PAUSE
            if response.status in _AGAIN or response.status == 0 or response.status >= 500
            else MAX_WAIT / 4
        )
        return float(
            min(longest, FIRST_PAUSE * 2 ** min(failures - 1, 20)) * self._chance.uniform(0.5, 1.0)
        )


_STOPS = {
    401: "the key is not accepted",
    403: "the key may not send events",
    410: "the agent was deleted",
}
_REFUSED = (400, 413, 415, 422)
"""
The statuses that reject this one event. With any other status, from a server or a proxy, the event
waits until it is accepted.
"""
_AGAIN = (402, 404, 405, 408, 409, 421, 425, 429)
_PROBLEMS = {
    402: "the quota is used up (HTTP 402)",
    404: "there is no event API at this URL (HTTP 404)",
    405: "there is no event API at this URL (HTTP 405)",
    429: "more events than the plan allows (HTTP 429)",
}


def _find(ledger: Ledger, entry: Entry) -> Call | None:
    """
    Find a call by its time, the sort key of every engine. A job's call may have the time of the
    job's submission.
    """
    call = find_call(ledger, entry.call_id, entry.occurred_at)
    return ledger.call(entry.call_id) if call is None and entry.job else call
