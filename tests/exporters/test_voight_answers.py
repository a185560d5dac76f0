"""Answers that are cut off, late or make no sense, and owners that change while calls wait."""

import socket
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.events.outbox import FOLDER, REFUSED
from voight_middleware.ledger import Ledger, open_ledger
from voight_middleware.ledger.find_call import find_call
from voight_middleware.pipeline.supervisor import IngestSupervisor
from voight_middleware.records.call import Call

from ..support.depth import times
from ..support.event_server import EventServer, answer, breaks_off, says
from ..support.patching import Patch
from ..support.waiting import wait_until
from .sending import NewCall, Sending

pytestmark = pytest.mark.usefixtures("impatient")


def test_an_answer_that_breaks_off_was_an_answer(server: EventServer, sending: Sending) -> None:
    """Accepted is accepted, whatever becomes of the rest of the answer: the server is not told twice."""
    server.faults.append(breaks_off)
    ids = sending.write("u_1", "u_2")
    sending.until(lambda: sending.kept().state.sent == 2)
    assert len(server.times) == 2
    assert server.call_ids() == ids[1:], "the server has kept the first by its fault"


@pytest.mark.slow
def test_an_error_that_is_told_slowly_holds_up_nothing_for_long(server: EventServer, sending: Sending, patch: Patch) -> None:
    """A byte now and then is no answer for ever."""
    patch("TIMEOUT", 0.2, within="events.api")
    over = threading.Event()

    def dripping(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 503 Slow\r\nContent-Length: 1000\r\n\r\n")
        while not over.wait(0.05):
            request.wfile.write(b"x")

    server.faults.append(dripping)
    ids = sending.write("u_1")
    sending.until(lambda: server.events, 5)
    over.set()
    assert server.call_ids() == ids


@pytest.mark.slow
def test_an_answer_after_the_end_is_not_heard(server: EventServer, sending: Sending) -> None:
    """The outbox is another's by then: its place must not go back to where the one before was."""
    release = threading.Event()

    def late(request: BaseHTTPRequestHandler) -> None:
        release.wait(20)
        answer(request, 202, {"accepted": True})

    server.faults.append(late)
    ids = sending.write("u_1", "u_2", "u_3")
    sending.until(lambda: server.times)
    (thread,) = sending.threads()
    sending.delivery.stop_sending(0.1)
    sending.delivery.close()
    with closing(IngestSupervisor(sending.ledger, sending.folder, events=sending.target)) as next_one:
        wait_until(lambda: next_one.run() and len(server.events) == 3, every=0.05)
    before = sending.kept()
    assert (before.state.sent, before.waiting) == (3, 0)
    release.set()
    thread.join(20)
    assert not thread.is_alive()
    assert sending.kept() == before
    assert server.call_ids() == ids


@pytest.mark.slow
@pytest.mark.parametrize("code", [401, 410, 400])
def test_a_refusal_after_the_end_is_not_heard(server: EventServer, sending: Sending, code: int) -> None:
    """Nor does it stop, or set aside, what another has sent."""
    release = threading.Event()

    def late(request: BaseHTTPRequestHandler) -> None:
        release.wait(20)
        answer(request, code)

    server.faults.append(late)
    sending.write("u_1")
    sending.until(lambda: server.times)
    (thread,) = sending.threads()
    sending.delivery.stop_sending(0.1)
    release.set()
    thread.join(20)
    assert not thread.is_alive()
    assert (sending.kept().waiting, sending.kept().state.problem, sending.kept().state.refused) == (1, None, 0)


SENSELESS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "400, lists in lists": (400, {}, b"[" * 60_000),
    "400, gzip that is none": (400, {"Content-Encoding": "gzip"}, b"\x1f\x8b garbage"),
    "422, objects in objects": (422, {}, b'{"error": ' + b'{"a": ' * 20_000),
    "429, at the end of time": (429, {"Retry-After": "Fri, 31 Dec 9999 23:59:59 -2359"}, b""),
    "503, no text": (503, {"Retry-After": "\xff\x00"}, b"\xff" * 100),
    "302, no host": (302, {"Location": "http://[broken"}, b""),
    "307, a file": (307, {"Location": "file:///etc/passwd"}, b""),
}


@pytest.mark.slow
@pytest.mark.parametrize(("status_code", "headers", "body"), SENSELESS.values(), ids=SENSELESS)
def test_answers_that_make_no_sense(
    server: EventServer, sending: Sending, patch: Patch, status_code: int, headers: dict[str, str], body: bytes
) -> None:
    """None of them is an error of ours, and whatever is behind the event is sent."""
    errors: list[BaseException] = []
    patch("report_internal_error", errors.append, within="sender")
    patch("MAX_WAIT", 0.3, within="sender")

    def strange(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status_code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    server.faults.append(strange)
    ids = sending.write("u_1", "u_2")
    sending.until(lambda: sending.kept().waiting == 0, 5)
    assert server.call_ids() == (ids[1:] if status_code in (400, 422) else ids)
    assert errors == []


NO_HTTP = {
    "nothing": b"",
    "half a line": b"HTTP/1.1 20",
    "no number": b"HTTP/1.1 banana\r\n\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02",
    "a line without an end": b"x" * 70_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("said", NO_HTTP.values(), ids=NO_HTTP)
def test_what_is_no_http_is_tried_again(server: EventServer, sending: Sending, said: bytes) -> None:
    """Another program on the port, or an answer that is cut off before its first line ends."""

    def other(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(said)
        request.close_connection = True

    server.faults.append(other)
    ids = sending.write("u_1")
    sending.until(lambda: server.events, 5)
    assert server.call_ids() == ids


def test_a_proxy_is_not_shown_the_key(server: EventServer, sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain HTTP is for this machine alone, whatever HTTP_PROXY says."""
    with EventServer() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        ids = sending.write("u_1")
        sending.until(lambda: server.events or proxy.times)
        assert proxy.times == []
    assert server.call_ids() == ids


@pytest.mark.slow
def test_a_quota_that_is_spent_is_waited_for(server: EventServer, sending: Sending, patch: Patch) -> None:
    """Not tried again at once, as a fault would be; the reason is there to be read, and everything arrives afterwards."""
    patch("MAX_WAIT", 0.5, within="sender")
    server.faults.append(says(402, None, {"error": "quota_exceeded"}))
    ids = sending.write("u_1", "u_2")
    sending.until(lambda: server.times)
    sending.until(lambda: sending.kept().state.problem is not None)
    assert "quota" in (sending.kept().state.problem or "")
    sending.until(lambda: len(server.events) == 2)
    assert server.times[1] - server.times[0] >= 0.5
    assert server.call_ids() == ids


@pytest.mark.slow
def test_who_is_erased_during_an_outage_is_not_named_after_it(server: EventServer, sending: Sending, patch: Patch) -> None:
    """What was read from the ledger is read again, by a process that knows nothing of the erasure."""
    patch("FRESH_SECONDS", 0.3, within="sender")
    server.fault = says(503)
    ids = sending.write(*(f"u_{number}" for number in range(40)))
    sending.until(lambda: len(server.times) >= 2)
    with closing(open_ledger(sending.ledger)) as ledger:
        ledger.erase(["u_0", "u_7"], "erased:1")
    time.sleep(0.4)  # until it is old
    server.fault = None
    sending.until(lambda: sending.kept().waiting == 0)
    assert server.call_ids() == ids
    users = [event["metadata"]["tags"]["userId"] for event in server.events]
    assert users == ["erased:1" if number in (0, 7) else f"u_{number}" for number in range(40)]
    assert (sending.kept().state.sent, sending.kept().waiting) == (40, 0)


@pytest.mark.slow
def test_old_bodies_are_not_sent_while_the_ledger_is_away(server: EventServer, sending: Sending, patch: Patch) -> None:
    """Nobody knows then whether they are still true; they go when it is back, each once."""
    patch("FRESH_SECONDS", 0.1, within="sender")
    server.fault = says(503)
    ids = sending.write("u_1", "u_2", "u_3")
    sending.until(lambda: server.times)
    time.sleep(0.2)  # no rounds: the ledger cannot be asked
    server.fault = None
    time.sleep(0.3)  # more than the longest pause
    assert server.events == []
    sending.until(lambda: len(server.events) >= 3)
    assert server.call_ids() == ids


@pytest.mark.slow
def test_reading_again_and_again_sends_each_once(server: EventServer, sending: Sending, patch: Patch) -> None:
    """At every moment of a backlog: what is thrown away is read again from where the sending is."""
    count = times(60, 300)
    ids = sending.write(*(f"u_{number}" for number in range(count)))
    sending.delivery.run()
    while sending.kept().waiting:
        sent = len(server.events)
        patch("FRESH_SECONDS", -1.0, within="sender")  # whatever was read is old
        sending.delivery.run()
        time.sleep(0.005)
        patch("FRESH_SECONDS", 60.0, within="sender")
        sending.until(lambda sent=sent: len(server.events) > sent or not sending.kept().waiting)
    assert server.call_ids() == ids
    assert sending.kept().state.sent == count


@pytest.mark.slow
def test_a_ledger_that_is_slow_holds_up_no_round(server: EventServer, sending: Sending, patch: Patch) -> None:
    """What is looked up in one round has its time; the first are sent before the last are read."""
    patch("REFILL_SECONDS", 0.2, within="sender")

    def slow(ledger: Ledger, call_id: str, occurred_at: int) -> Call | None:
        time.sleep(0.05)
        return find_call(ledger, call_id, occurred_at)

    patch("find_call", slow, within="sender")
    ids = sending.write(*(f"u_{number}" for number in range(20)))
    begun = time.monotonic()
    sending.delivery.run()
    assert time.monotonic() - begun < 0.7, "all of them take a second"
    server.wait_for(3)
    sending.until(lambda: len(server.events) == 20)
    assert server.call_ids() == ids


def test_a_call_that_is_no_event_is_set_aside(server: EventServer, sending: Sending) -> None:
    """With the reason, and not as if it had been deleted; those behind it are sent."""
    strange = sending.write("u_1", occurred_at=2**58)
    ids = sending.write("u_2")
    sending.until(lambda: server.events)
    sending.until(lambda: sending.kept().waiting == 0)
    assert server.call_ids() == ids
    assert (sending.kept().state.refused, sending.kept().state.gone) == (1, 0)
    assert strange[0] in (sending.folder / FOLDER / REFUSED).read_text()


@pytest.mark.slow
def test_hosts_of_one_key_wait_for_their_turn(server: EventServer, tmp_path: Path, new_call: NewCall) -> None:
    """Two hosts share a limit that neither knows of: what is too much is told by 429, and everything arrives once."""
    said = {"Retry-After": "0"}
    server.faults.extend([says(429, said, {"error": "rate_limited"})] * 5)
    hosts = [Sending(server, tmp_path / name / "journal", new_call) for name in ("a", "b")]
    ids = [call_id for host in hosts for call_id in host.write(*(f"u_{number}" for number in range(10)))]
    threads = [threading.Thread(target=host.until, args=(lambda: len(server.events) >= 20,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for host in hosts:
        host.delivery.close()
        assert host.kept().waiting == 0
    assert sorted(server.call_ids()) == sorted(ids)


def test_a_name_that_is_not_found_is_tried_again(sending: Sending, monkeypatch: pytest.MonkeyPatch, server: EventServer) -> None:
    """A resolver that is down says no more than that it is."""
    asked: list[object] = []
    real = socket.getaddrinfo

    def down(host: Any, *args: Any, **values: Any) -> Any:
        if len(asked) < 2:
            asked.append(host)
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return real(host, *args, **values)

    monkeypatch.setattr(socket, "getaddrinfo", down)
    ids = sending.write("u_1")
    sending.until(lambda: asked)
    sending.until(lambda: server.events)
    assert server.call_ids() == ids
