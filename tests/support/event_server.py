"""A stand-in for Voight's event API on loopback: as strict as it, and as unreliable as the test wants."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, cast

KEYS = frozenset(
    ("agentId", "timestamp", "type", "input", "outcome", "durationMs", "errorMessage", "model", "metadata")
)  # Voight's documentation, "Events API": others are refused
TYPES = frozenset(("reasoning", "tool", "tx", "decision", "action", "error"))
OUTCOMES = frozenset(("pending", "success", "failed"))
Fault = Callable[[BaseHTTPRequestHandler], None]
"""Answers a request in place of the server: with ``answer``, with nothing, or by closing the connection."""


class EventServer:
    """
    Takes events as ``POST /v1/events`` until it is closed; usable in a ``with`` block.

    Args:
        key: The bearer key that is accepted.
        per_minute: How many requests of one key are taken in any 60 seconds; more get a 429. None for any number.
    """

    def __init__(self, key: str = "vk_test", per_minute: int | None = None) -> None:
        self.key = key
        self.per_minute = per_minute
        self.events: list[dict[str, Any]] = []
        """Every event that was accepted, in order of arrival."""
        self.times: list[float] = []
        """When each request came, refused ones too, by ``time.monotonic()``."""
        self.faults: deque[Fault] = deque()
        """What happens to the next requests, one each."""
        self.fault: Fault | None = None
        """What happens to every request while it is set."""
        self.refusals: list[dict[str, Any]] = []
        """What was answered with a 400, and why."""
        self._taken: deque[float] = deque()
        self._lock = threading.Lock()
        self.port = 0
        self.open()

    @property
    def url(self) -> str:
        """The base URL, for ``VOIGHT_EVENTS_URL``."""
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        """Listen, again on the same port after ``close``."""
        self._http = _Server(("127.0.0.1", self.port), _Handler)
        self._http.owner = self
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more: connections are refused."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def call_ids(self) -> list[str]:
        """Our own ids of the calls whose events were accepted."""
        with self._lock:
            return [event["metadata"]["callId"] for event in self.events]

    def wait_for(self, count: int, seconds: float = 30.0) -> list[dict[str, Any]]:
        """The events, once there are *count* of them."""
        deadline = time.monotonic() + seconds
        while len(self.events) < count:
            assert time.monotonic() < deadline, f"{len(self.events)} events came, not {count}"
            time.sleep(0.01)
        return list(self.events)

    def take(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        """Answer one request."""
        now = time.monotonic()
        with self._lock:
            self.times.append(now)
            fault = self.faults.popleft() if self.faults else self.fault
            while self._taken and self._taken[0] <= now - 60:
                self._taken.popleft()
            spent = self.per_minute is not None and len(self._taken) >= self.per_minute
            if fault is None and not spent:
                self._taken.append(now)
        if fault is not None:
            return fault(request)
        if request.path != "/v1/events":
            return answer(request, 404, {"error": "not_found"})
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return answer(request, 401, {"error": "unauthorized", "reason": "unknown_key"})
        if spent:
            return answer(request, 429, {"error": "rate_limited"}, {"Retry-After": str(int(61 - (now - self._taken[0])))})
        problems = check(body)
        if problems:
            said = {"error": "validation_failed", "details": [{"path": path, "message": message} for path, message in problems]}
            self.refusals.append(said)
            return answer(request, 400, said)
        event = json.loads(body)
        with self._lock:
            self.events.append(event)
            number = len(self.events)
        return answer(request, 202, {"id": f"ev_{number}", "accepted": True, "agentId": event["agentId"], "eventId": f"ev_{number}"})


def answer(request: BaseHTTPRequestHandler, status: int, body: object = None, headers: Mapping[str, str] | None = None) -> None:
    """Send an answer with a JSON body."""
    data = json.dumps(body or {}).encode()
    request.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(data)


def says(status: int, headers: Mapping[str, str] | None = None, body: object = None) -> Fault:
    """A fault that answers with *status*."""
    return lambda request: answer(request, status, body, headers)


def hang_up(request: BaseHTTPRequestHandler) -> None:
    """A fault that closes the connection without an answer."""
    request.close_connection = True
    request.connection.shutdown(socket.SHUT_RDWR)


def breaks_off(request: BaseHTTPRequestHandler) -> None:
    """A fault that accepts an event, and resets the connection in the middle of saying so."""
    request.wfile.write(b"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    request.wfile.flush()
    time.sleep(0.05)  # what was sent must be read before the reset, which would take it back
    request.close_connection = True
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()


def check(body: bytes) -> list[tuple[str, str]]:
    """What is wrong with an event, as paths and messages; empty where it is accepted."""
    try:
        event = json.loads(body)
    except ValueError:
        return [("", "no JSON")]
    if not isinstance(event, dict):
        return [("", "no object")]
    problems = [(key, "unknown key") for key in event.keys() - KEYS]
    agent, duration, metadata = event.get("agentId"), event.get("durationMs", 0), event.get("metadata", {})
    if not isinstance(agent, str) or not 1 <= len(agent) <= 120:
        problems.append(("agentId", "1 to 120 characters"))
    if not _is_time(event.get("timestamp")):
        problems.append(("timestamp", "ISO 8601 or milliseconds"))
    if event.get("type") not in TYPES:
        problems.append(("type", "unknown"))
    if event.get("outcome", "success") not in OUTCOMES:
        problems.append(("outcome", "unknown"))
    if not isinstance(duration, int) or isinstance(duration, bool) or duration < 0:
        problems.append(("durationMs", "a whole number"))
    problems += [(key, "text") for key in ("errorMessage", "model") if not isinstance(event.get(key, ""), str)]
    if not isinstance(metadata, dict):
        return [*problems, ("metadata", "an object")]
    tags = metadata.get("tags", {})
    if not isinstance(tags, dict) or not all(isinstance(value, str) and len(value) <= 256 for value in tags.values()):
        problems.append(("metadata.tags", "flat texts of at most 256 characters"))
    for name in ("tokens", "tokensBreakdown"):
        counts = metadata.get(name, {})
        if not isinstance(counts, dict) or not all(type(count) is int and count >= 0 for count in counts.values()):
            problems.append((f"metadata.{name}", "whole numbers"))
    return problems


def _is_time(value: object) -> bool:
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).tzinfo is not None
        except ValueError:
            return False
    return isinstance(value, int) and not isinstance(value, bool)


class _Server(ThreadingHTTPServer):
    owner: EventServer
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed, or a fault that hung up: nothing to say."""


class _Handler(BaseHTTPRequestHandler):
    timeout = 10

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        cast("_Server", self.server).owner.take(self, body)

    def do_GET(self) -> None:
        cast("_Server", self.server).owner.take(self, b"")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  its name there
        pass
