"""
Voight's event API: every call as an event to ``POST {base}/v1/events``, by the one process of a host that ingests.

Never on the request's path: what is sent comes from the outbox and the ledger. At least once: the place in the outbox is kept after every
answer, and nothing is sent again that was accepted. Twice goes only an event whose acceptance was not heard of: one for a process that is
killed just then, and one whose connection broke or timed out after the server had taken it. Sources: Voight's published
documentation, "Events API"; its Apache-2.0 wrappers ``@voightxyz/sdk`` 0.6.5 and ``@voightxyz/openai`` 0.1.6.
"""

from __future__ import annotations

import encodings.idna
import http.client
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import msgspec

from voight_middleware import __version__
from voight_middleware.call import Call
from voight_middleware.export.event import event
from voight_middleware.ingest import Ingester, call_at
from voight_middleware.journal import Election
from voight_middleware.ledger import Ledger, open_ledger
from voight_middleware.meter import note
from voight_middleware.outbox import Entry, Outbox, Place, State, Status, open_outbox, status
from voight_middleware.settings import EventsTarget, Settings
from voight_middleware.tag_values import complain

__all__ = ["EventSender", "State", "Status", "event", "send_waiting", "status"]

PATH = "/v1/events"
SETTLE_SECONDS = 15.0
"""How long a call without a certain owner waits for the end of its request. Those behind it wait too, once for all of them."""
SPACING = 1.05
"""A little slower than allowed: events that were held up on their way come closer together than they were sent."""
TIMEOUT = 20.0
"""Seconds for a connection, and for each piece of an answer."""
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Between two attempts while the server does not answer or fails, in seconds; doubled each time, and less by up to a half by chance."""
LONGEST_WAIT = 3600.0
"""The most that ``Retry-After`` is followed, and the pause where a quota is spent."""
MOST_READY = 5_000
_ANSWER_BYTES = 64 * 1024

_encode = msgspec.json.Encoder().encode
_looked_up_with = encodings.idna
"""Imported here, as a child that is forked while the thread below imports it, to look up a name, could never import it."""


class _Ready(NamedTuple):
    call_id: str
    body: bytes | None
    """The event; None for a call that is not in the ledger any more."""
    behind: Place


class Answer(NamedTuple):
    """What the server has said; status 0 where there was no answer."""

    status: int
    retry_after: float | None = None
    """Seconds."""
    body: bytes = b""
    error: str = ""


class EventSender:
    """
    Sends the outbox's calls as events, one at a time, on a thread of its own.

    A connection for each event: one that is kept open may be closed by the server just when it is used, and nobody knows then whether
    the event has arrived. Redirects are refused, and certificates are verified; ``HTTPS_PROXY`` and ``NO_PROXY`` are followed.

    Evenly spaced, so that no minute has more than the plan allows, wherever the server lets a minute begin. Several hosts with one key
    share its limit: what that leaves of it, they are told by ``Retry-After``.
    """

    def __init__(self, target: EventsTarget, outbox: Outbox) -> None:
        self._target = target
        self._outbox = outbox
        self._interval = SPACING * 60.0 / target.per_minute
        self._most_ready = min(MOST_READY, max(100, target.per_minute // 10))
        self._ready: deque[_Ready] = deque()
        self._read_up_to: Place | None = None
        self._head: tuple[str, float] | None = None
        self._filled = threading.Event()
        self._stopping = threading.Event()
        self._stopped = False
        self._chance = random.Random()  # not the application's: it may have seeded that
        self._context = ssl.create_default_context() if target.url.startswith("https") else None
        self._thread: threading.Thread | None = None

    # -- rounds of the ingester -----------------------------------------------------------------------------------------------

    def refill(self, ledger: Ledger) -> None:
        """
        Make events of the next calls in the outbox.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        if self._stopped or len(self._ready) > self._most_ready // 2:
            return
        try:
            for waiting in self._outbox.read(self._read_up_to):
                if len(self._ready) >= self._most_ready:
                    break
                call = _find(ledger, waiting.entry)
                if call is None and ledger.progress(waiting.segment) < waiting.end and self._is_there(waiting.segment):
                    break  # its batch has not got into the ledger yet
                if call is not None and not self._is_settled(call):
                    break
                self._ready.append(_Ready(waiting.entry.call_id, None if call is None else self._body(call), waiting.behind))
                self._read_up_to = waiting.behind
        finally:
            if self._ready:
                self._start()
                self._filled.set()

    def _body(self, call: Call) -> bytes | None:
        try:
            return _encode(event(call, self._target.agent))
        except Exception as error:  # one call that nobody has thought of must not stop the others
            note(error)
            return None

    def _is_there(self, segment: str) -> bool:
        return (self._outbox.folder.parent / segment).exists()

    def _is_settled(self, call: Call) -> bool:
        """Whether the owner is certain, or will not be any more."""
        if call.attribution not in ("none", "error", "request"):
            return True
        if time.time() - (call.occurred_at + (call.duration or 0)) / 1e6 >= SETTLE_SECONDS:
            return True
        if self._head is None or self._head[0] != call.call_id:
            self._head = (call.call_id, time.monotonic())
        return time.monotonic() - self._head[1] >= SETTLE_SECONDS  # a call with a time in the future waits no longer either

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="voight-events", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # Python 3.12+ starts no thread while the process ends: the next process sends them
                self._stopped = True

    def stop(self, timeout: float) -> None:
        """End the thread, when the event that is under way has been answered; what was not sent stays in the outbox."""
        self._stopping.set()
        self._filled.set()
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join(timeout)

    # -- the thread -----------------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        if (before := self._outbox.state.sent_at) is not None:  # by the process before this one
            self._stopping.wait(min(self._interval, max(0.0, self._interval - (time.time() - before / 1e6))))
        while not self._stopping.is_set() and not self._stopped:
            self._filled.wait()
            self._filled.clear()
            while self._ready and not self._stopping.is_set() and not self._stopped:
                try:
                    self._deliver(self._ready[0])
                except OSError as error:  # what has been sent cannot be kept: it would be sent again
                    complain(f"no events are sent: {self._outbox.folder} cannot be written ({error.strerror or error})")
                    self._stopping.wait(LONGEST_PAUSE)
                except Exception as error:
                    note(error)
                    self._stopping.wait(LONGEST_PAUSE)

    def _deliver(self, ready: _Ready) -> None:
        """Send one event until it is accepted or refused, or this process ends."""
        outbox = self._outbox
        if ready.body is None:
            outbox.settle(ready.behind, gone=outbox.state.gone + 1)
            self._ready.popleft()
            return
        failures = 0
        while not self._stopping.is_set():
            begun = time.monotonic()
            answer = self._post(ready.body)
            if 200 <= answer.status < 300:
                now = time.time_ns() // 1000
                self._keep(ready, sent=outbox.state.sent + 1, sent_at=now, problem=None, stopped=False)
                self._stopping.wait(max(0.0, self._interval - (time.monotonic() - begun)))
                return
            if answer.status in _STOPS:
                self._stop_for(answer)
                return
            if answer.status in _REFUSED or (answer.status not in _AGAIN and 400 <= answer.status < 500):
                outbox.refuse(ready.call_id, answer.status, _reason(answer))
                complain(f"Voight refuses events (HTTP {answer.status}): they are set aside with the reason, in {outbox.folder}")
                self._keep(ready, refused=outbox.state.refused + 1)
                self._stopping.wait(max(0.0, self._interval - (time.monotonic() - begun)))
                return
            failures += 1
            self._complain(answer)
            self._stopping.wait(max(self._interval, self._pause(answer, failures)))

    def _keep(self, ready: _Ready, **changes: object) -> None:
        """Keep that a call is done, however long the disk refuses: it must not be sent a second time."""
        while True:
            try:
                self._outbox.settle(ready.behind, **changes)
            except OSError as error:
                complain(f"no events are sent: {self._outbox.folder} cannot be written ({error.strerror or error})")
                if self._stopping.wait(LONGEST_PAUSE):
                    return
            else:
                self._ready.popleft()
                return

    def _stop_for(self, answer: Answer) -> None:
        what = _STOPS[answer.status]
        self._stopped = True
        self._ready.clear()
        self._outbox.note(problem=f"{what} (HTTP {answer.status})", stopped=True)
        complain(f"no events are sent any more: Voight says that {what} (HTTP {answer.status}); they wait, up to a million of them")

    def _complain(self, answer: Answer) -> None:
        what = _PROBLEMS.get(answer.status) or (f"HTTP {answer.status}" if answer.status else answer.error)
        if self._outbox.state.problem != what:
            self._outbox.note(problem=what)
        complain(f"events wait, as Voight does not take them: {what}")

    def _pause(self, answer: Answer, failures: int) -> float:
        """Seconds until the next attempt."""
        if answer.retry_after is not None:
            return min(answer.retry_after, LONGEST_WAIT) + self._chance.uniform(0, FIRST_PAUSE / 4)
        if answer.status == 402:
            return LONGEST_WAIT
        longest = LONGEST_PAUSE if answer.status in _AGAIN or answer.status == 0 or answer.status >= 500 else LONGEST_WAIT / 4
        return float(min(longest, FIRST_PAUSE * 2 ** min(failures - 1, 20)) * self._chance.uniform(0.5, 1.0))

    def _post(self, body: bytes) -> Answer:
        target = self._target
        headers = {
            "Authorization": f"Bearer {target.key}",
            "Content-Type": "application/json",
            "User-Agent": f"voight-middleware/{__version__}",
        }
        request = urllib.request.Request(target.url + PATH, data=body, headers=headers, method="POST")
        handlers: list[Any] = [_NoRedirects]
        if self._context is not None:
            handlers.append(urllib.request.HTTPSHandler(context=self._context))
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT) as response:
                return Answer(response.status, body=response.read(_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                try:
                    said = error.read(_ANSWER_BYTES)
                except (OSError, http.client.HTTPException):
                    said = b""
                return Answer(error.code, _retry_after(error.headers.get("Retry-After")), said)
        except urllib.error.URLError as error:
            return Answer(0, error=_kind(error.reason))
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, error=_kind(error))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key goes to the server that it was meant for, and to no other."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_STOPS = {401: "the key is not accepted", 403: "the key may not send events", 410: "the agent was deleted"}
_REFUSED = (400, 413, 415, 422)
_AGAIN = (402, 404, 405, 408, 409, 421, 425, 429)
_PROBLEMS = {
    402: "the quota is spent (HTTP 402)",
    404: "there is no event API at this URL (HTTP 404)",
    405: "there is no event API at this URL (HTTP 405)",
    429: "more events than the plan allows (HTTP 429)",
}


def _kind(error: object) -> str:
    """An error without what the system has added to it, such as an address."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _retry_after(value: str | None) -> float | None:
    """Seconds from now on; of seconds or an HTTP date. Source: RFC 9110, section 10.2.3."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return max(0.0, (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp() - time.time())


def _reason(answer: Answer) -> object:
    """What a refusal says: paths and messages, and nothing else of the body."""
    try:
        said = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if not isinstance(said, Mapping):
        return None
    details = said.get("details")
    paths = [
        {"path": str(one.get("path"))[:200], "message": str(one.get("message"))[:200]}
        for one in (details if isinstance(details, list) else ())[:20]
        if isinstance(one, Mapping)
    ]
    return {"error": str(said.get("error"))[:200], "details": paths}


def _find(ledger: Ledger, entry: Entry) -> Call | None:
    """By its time, which every engine is ordered by; a job's answer may be kept under the time at which the job was submitted."""
    found = call_at(ledger, entry.call_id, entry.occurred_at)
    return ledger.call(entry.call_id) if found is None and entry.job else found


def send_waiting(settings: Settings, seconds: float | None = None) -> Status | None:
    """
    Send what waits, for *seconds* at most, from a process that makes no calls: programs that end soon leave most of theirs.

    Answers what is left then; None where there is no key or no outbox. Does nothing where a living process ingests, and so sends.

    Raises:
        LedgerError: The ledger cannot be opened or read.
    """
    outbox = open_outbox(settings.journal)
    if settings.events is None or outbox is None:
        return None
    election = Election(settings.journal)
    if election.win():
        until = None if seconds is None else time.monotonic() + seconds
        try:
            ledger = open_ledger(settings.ledger)
            sender = EventSender(settings.events, outbox)
            try:
                if Ingester(ledger, settings.journal, gentle=False, prices=settings.prices, outbox=outbox).run():
                    election.delivered()
                while not outbox.state.stopped and next(outbox.read(), None) is not None and (until is None or time.monotonic() < until):
                    sender.refill(ledger)
                    time.sleep(0.1)
            finally:
                sender.stop(TIMEOUT)
                ledger.close()
        finally:
            election.resign()
    return status(settings.journal)
