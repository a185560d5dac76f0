"""What goes wrong between a call and Voight beside the server's plain words: answers cut off or late, stale owners, files and clocks."""

import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.call import Call
from voight_middleware.delivery import Delivery
from voight_middleware.export import event_api
from voight_middleware.export import voight as events
from voight_middleware.ingest import call_at
from voight_middleware.journal import Journal
from voight_middleware.ledger import Ledger, LedgerError, open_ledger
from voight_middleware.outbox import FOLDER, REFUSED, Entry, Outbox, Status, open_outbox, status
from voight_middleware.settings import EventsTarget, Settings
from voight_middleware.tags import Tags
from voight_middleware.testing.events import EventServer, answer, breaks_off, says

NewCall = Callable[..., Call]
FAST = 60_000


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become hundredths."""
    monkeypatch.setattr(events, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(events, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(events, "LONGEST_WAIT", 0.8)
    for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the journals."""
    return tmp_path / "journal"


class Sending:
    """A delivery that makes rounds on demand."""

    def __init__(self, server: EventServer, folder: Path, new_call: NewCall) -> None:
        self.server, self.folder, self.new_call = server, folder, new_call
        self.ledger = f"sqlite:///{folder}.db"
        self.target = EventsTarget(server.url, "vk_test", "tests", FAST)
        self.delivery = Delivery(self.ledger, folder, events=self.target)
        self._before = set(threading.enumerate())

    def threads(self) -> list[threading.Thread]:
        """Those that send here."""
        return [thread for thread in threading.enumerate() if thread.name == "voight-events" and thread not in self._before]

    def write(self, *users: str, **values: Any) -> list[str]:
        """As a process that is gone by now; answers the ids."""
        journal, ids = Journal(self.folder), []
        for user in users:
            call = self.new_call(**{"tags": Tags(user_id=user), "attribution": "tag", **values})
            journal.append(call)
            ids.append(call.call_id)
        journal.rotate()
        return ids

    def until(self, done: Callable[[], object], seconds: float = 20) -> None:
        """Make rounds until then."""
        deadline = time.monotonic() + seconds
        self.delivery.run()
        while not done():
            assert time.monotonic() < deadline
            time.sleep(0.02)
            self.delivery.run()

    def kept(self) -> Status:
        """The outbox as it is now."""
        found = status(self.folder)
        assert found is not None
        return found

    def send_waiting(self, seconds: float | None = 20) -> Status:
        """As `voight events send` does; answers what is left."""
        settings = Settings.from_environment(
            ledger=self.ledger, journal=self.folder, environ={}, key="vk_test", events_url=self.server.url, events_per_minute=FAST
        )
        left = events.send_waiting(settings, seconds)
        assert left is not None
        return left


@pytest.fixture
def sending(server: EventServer, folder: Path, new_call: NewCall) -> Iterator[Sending]:
    """A delivery to the server."""
    made = Sending(server, folder, new_call)
    with closing(made.delivery):
        yield made


# -- answers ----------------------------------------------------------------------------------------------------------------------


def test_an_answer_that_breaks_off_was_an_answer(server: EventServer, sending: Sending) -> None:
    """Accepted is accepted, whatever becomes of the rest of the answer: the server is not told twice."""
    server.faults.append(breaks_off)
    ids = sending.write("u_1", "u_2")
    sending.until(lambda: sending.kept().state.sent == 2)
    assert len(server.times) == 2
    assert server.call_ids() == ids[1:], "the server has kept the first by its fault"


def test_an_error_that_is_told_slowly_holds_up_nothing_for_long(
    server: EventServer, sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then is no answer for ever."""
    monkeypatch.setattr(event_api, "TIMEOUT", 0.5)
    over = threading.Event()

    def dripping(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 503 Slow\r\nContent-Length: 1000\r\n\r\n")
        while not over.wait(0.1):
            request.wfile.write(b"x")

    server.faults.append(dripping)
    ids = sending.write("u_1")
    sending.until(lambda: server.events, 5)
    over.set()
    assert server.call_ids() == ids


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
    with closing(Delivery(sending.ledger, sending.folder, events=sending.target)) as next_one:
        assert next_one.run()
        server.wait_for(3)
    before = sending.kept()
    assert (before.state.sent, before.waiting) == (3, 0)
    release.set()
    thread.join(20)
    assert not thread.is_alive()
    assert sending.kept() == before
    assert server.call_ids() == ids


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


@pytest.mark.parametrize(
    ("status_code", "headers", "body"),
    [
        (400, {}, b"[" * 60_000),
        (400, {"Content-Encoding": "gzip"}, b"\x1f\x8b garbage"),
        (422, {}, b'{"error": ' + b'{"a": ' * 20_000),
        (429, {"Retry-After": "Fri, 31 Dec 9999 23:59:59 -2359"}, b""),
        (503, {"Retry-After": "\xff\x00"}, b"\xff" * 100),
        (302, {"Location": "http://[broken"}, b""),
        (307, {"Location": "file:///etc/passwd"}, b""),
    ],
)
def test_answers_that_make_no_sense(
    server: EventServer, sending: Sending, monkeypatch: pytest.MonkeyPatch, status_code: int, headers: dict[str, str], body: bytes
) -> None:
    """None of them is an error of ours, and whatever is behind the event is sent."""
    errors: list[BaseException] = []
    monkeypatch.setattr(events, "note", errors.append)

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


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 20", b"HTTP/1.1 banana\r\n\r\n", b"\x15\x03\x01\x00\x02\x02", b"x" * 70_000])
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


def test_a_quota_that_is_spent_is_waited_for(server: EventServer, sending: Sending) -> None:
    """Not tried again at once, as a fault would be; the reason is there to be read, and everything arrives afterwards."""
    server.faults.append(says(402, None, {"error": "quota_exceeded"}))
    ids = sending.write("u_1", "u_2")
    sending.until(lambda: server.times)
    sending.until(lambda: sending.kept().state.problem is not None)
    assert "quota" in (sending.kept().state.problem or "")
    sending.until(lambda: len(server.events) == 2)
    assert server.times[1] - server.times[0] >= events.LONGEST_WAIT
    assert server.call_ids() == ids


# -- owners that change while calls wait --------------------------------------------------------------------------------------------


def test_who_is_erased_during_an_outage_is_not_named_after_it(
    server: EventServer, sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read from the ledger is read again, by a process that knows nothing of the erasure."""
    monkeypatch.setattr(events, "FRESH_SECONDS", 0.3)
    server.fault = says(503)
    ids = sending.write(*(f"u_{number}" for number in range(40)))
    sending.until(lambda: len(server.times) >= 2)
    with closing(open_ledger(sending.ledger)) as ledger:
        ledger.erase(["u_0", "u_7"], "erased:1")
    time.sleep(0.4)
    server.fault = None
    sending.until(lambda: sending.kept().waiting == 0)
    assert server.call_ids() == ids
    users = [event["metadata"]["tags"]["userId"] for event in server.events]
    assert users == ["erased:1" if number in (0, 7) else f"u_{number}" for number in range(40)]
    assert (sending.kept().state.sent, sending.kept().waiting) == (40, 0)


def test_old_bodies_are_not_sent_while_the_ledger_is_away(server: EventServer, sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows then whether they are still true; they go when it is back, each once."""
    monkeypatch.setattr(events, "FRESH_SECONDS", 0.2)
    server.fault = says(503)
    ids = sending.write("u_1", "u_2", "u_3")
    sending.until(lambda: server.times)
    time.sleep(0.3)  # no rounds: the ledger cannot be asked
    server.fault = None
    time.sleep(0.5)
    assert server.events == []
    sending.until(lambda: len(server.events) >= 3)
    assert server.call_ids() == ids


def test_reading_again_and_again_sends_each_once(server: EventServer, sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every moment of a backlog: what is thrown away is read again from where the sending is."""
    monkeypatch.setattr(events, "FRESH_SECONDS", 0.05)
    ids = sending.write(*(f"u_{number}" for number in range(300)))
    sending.until(lambda: sending.kept().waiting == 0, 60)
    assert server.call_ids() == ids
    assert sending.kept().state.sent == 300


def test_a_ledger_that_is_slow_holds_up_no_round(server: EventServer, sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked up in one round has its time; the first are sent before the last are read."""
    monkeypatch.setattr(events, "REFILL_SECONDS", 0.2)

    def slow(ledger: Ledger, call_id: str, occurred_at: int) -> Call | None:
        time.sleep(0.05)
        return call_at(ledger, call_id, occurred_at)

    monkeypatch.setattr(events, "call_at", slow)
    ids = sending.write(*(f"u_{number}" for number in range(20)))
    begun = time.monotonic()
    sending.delivery.run()
    assert time.monotonic() - begun < 0.7, "all of them take a second"
    server.wait_for(3)
    sending.until(lambda: len(server.events) == 20)
    assert server.call_ids() == ids


# -- what cannot be told ------------------------------------------------------------------------------------------------------------


def test_a_call_that_is_no_event_is_set_aside(server: EventServer, sending: Sending) -> None:
    """With the reason, and not as if it had been deleted; those behind it are sent."""
    strange = sending.write("u_1", occurred_at=2**58)
    ids = sending.write("u_2")
    sending.until(lambda: server.events)
    sending.until(lambda: sending.kept().waiting == 0)
    assert server.call_ids() == ids
    assert (sending.kept().state.refused, sending.kept().state.gone) == (1, 0)
    assert strange[0] in (sending.folder / FOLDER / REFUSED).read_text()


# -- files and clocks ---------------------------------------------------------------------------------------------------------------


def test_files_that_somebody_deletes_hide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is queued afterwards is sent: the place is not in front of it."""
    monkeypatch.setattr("voight_middleware.outbox.FILE_BYTES", 300)
    outbox = Outbox(tmp_path)
    for start in range(0, 100, 5):
        outbox.append("s", (start + 5) * 10, [Entry(f"{number:032x}", number, number * 10, False) for number in range(start, start + 5)])
    for waiting in list(outbox.read()):
        outbox.settle(waiting.behind)
    for path in (tmp_path / FOLDER).glob("*.ids"):
        path.unlink()
    new = [Entry("a" * 32, 1, 0, False), Entry("b" * 32, 2, 10, False)]
    Outbox(tmp_path).append("t", 20, new)
    assert [waiting.entry for waiting in Outbox(tmp_path).read()] == new


def test_processes_that_come_and_go_leave_nothing_in_memory(tmp_path: Path) -> None:
    """A sidecar lives for months, beside programs that end after a call; what a living one has queued is known all the same."""
    outbox = Outbox(tmp_path)
    living = tmp_path / "9-living.jsonl"
    living.touch()
    outbox.append(living.name, 20, [Entry("a" * 32, 1, 0, False)])
    tracemalloc.start()
    try:
        for number in range(5000):
            outbox.append(f"{number:060}.jsonl", 10, [Entry(f"{number:032x}", number, 0, False)])
        ours = [tracemalloc.Filter(True, path) for path in (__file__, "*/outbox.py")]  # other threads have memory of their own
        held = tracemalloc.take_snapshot().filter_traces(ours)
        assert sum(trace.size for trace in held.traces) < 400_000, "bytes"
    finally:
        tracemalloc.stop()
    outbox.append(living.name, 20, [Entry("a" * 32, 1, 0, False)])
    assert sum(waiting.entry.call_id == "a" * 32 for waiting in outbox.read()) == 1


def test_a_state_that_may_not_be_read_sends_nothing(tmp_path: Path) -> None:
    """From its beginning everything would go a second time."""
    Outbox(tmp_path).append("s", 20, [Entry("a" * 32, 1, 0, False)])
    (tmp_path / FOLDER / "state.json").mkdir()  # as if it were another account's, for an account that may read everything
    assert open_outbox(tmp_path) is None
    with pytest.raises(OSError, match="directory"):
        status(tmp_path)


def test_a_disk_that_is_full_sends_nothing_twice(server: EventServer, sending: Sending) -> None:
    """What was accepted cannot be kept: nothing else goes until it can, and then what is behind it."""
    outbox = open_outbox(sending.folder, create=True)
    assert outbox is not None
    (outbox.folder / "state.new").mkdir()
    ids = sending.write("u_1", "u_2", "u_3")
    sending.until(lambda: server.events)
    time.sleep(0.5)
    assert server.call_ids() == ids[:1]
    (outbox.folder / "state.new").rmdir()
    sending.until(lambda: sending.kept().waiting == 0)
    assert server.call_ids() == ids
    assert sending.kept().state.sent == 3


def test_a_call_of_the_future_without_an_owner_waits_no_longer(
    server: EventServer, sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock was put back an hour: its owner is waited for as long as any other's."""
    monkeypatch.setattr(events, "SETTLE_SECONDS", 0.3)
    ids = sending.write("u_1", attribution="none", occurred_at=(time.time_ns() // 1000) + 3_600_000_000)
    sending.until(lambda: server.events, 5)
    assert server.call_ids() == ids


def test_a_clock_that_was_put_back_holds_nothing_up(server: EventServer, sending: Sending) -> None:
    """The newest event was accepted tomorrow: the next goes when its turn is, and not then."""
    outbox = open_outbox(sending.folder, create=True)
    assert outbox is not None
    outbox.note(sent_at=(time.time_ns() // 1000) + 86_400_000_000)
    ids = sending.write("u_1", occurred_at=(time.time_ns() // 1000) + 3_600_000_000)
    sending.until(lambda: server.events, 5)
    assert server.call_ids() == ids


# -- sending from a process that makes no calls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [401, 410, 403])
def test_send_waiting_goes_on_after_a_stop(server: EventServer, sending: Sending, code: int) -> None:
    """It is how somebody tries again who has mended the key; one attempt, where it is not mended."""
    ids = sending.write("u_1", "u_2")
    server.fault = says(code)
    sending.until(lambda: sending.kept().state.stopped)
    sending.delivery.close()
    left = sending.send_waiting()
    assert (left.waiting, left.state.stopped, len(server.times)) == (2, True, 2)
    server.fault = None
    left = sending.send_waiting()
    assert (left.waiting, left.state.stopped, left.state.problem) == (0, False, None)
    assert server.call_ids() == ids


@pytest.mark.parametrize(("code", "problem"), [(503, "HTTP 503"), (400, None)])
def test_what_was_put_right_is_not_said_any_more(server: EventServer, sending: Sending, code: int, problem: str | None) -> None:
    """The key is good again; what the server says now is something else, and tried again by itself or set aside."""
    sending.write("u_1")
    server.fault = says(401)
    sending.until(lambda: sending.kept().state.stopped)
    sending.delivery.close()
    server.fault = says(code)
    left = sending.send_waiting(1.0)
    assert (left.state.stopped, left.state.problem) == (False, problem)


def test_send_waiting_sends_beside_a_journal_that_cannot_be_read(server: EventServer, sending: Sending) -> None:
    """One segment keeps back no event of others; it is an error all the same."""
    open_outbox(sending.folder, create=True)
    (sending.folder / "1-blocked.jsonl").mkdir(parents=True)
    ids = sending.write("u_1", "u_2")
    sending.delivery.close()
    with pytest.raises(LedgerError, match="cannot be read"):
        sending.send_waiting()
    assert server.call_ids() == ids


def test_send_waiting_brings_in_what_others_write_meanwhile(server: EventServer, sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the elected one for as long as it sends: nobody else brings their calls into the ledger."""
    sending.delivery.run()
    ids = sending.write(*(f"u_{number}" for number in range(3)))
    sending.delivery.close()
    server.fault = says(503)
    thread = threading.Thread(target=sending.send_waiting)
    thread.start()
    while not server.times:
        time.sleep(0.01)
    ids += sending.write("u_late")
    deadline = time.monotonic() + 10
    found: list[str] = []
    while len(found) < 4:
        assert time.monotonic() < deadline
        with closing(open_ledger(sending.ledger)) as ledger:
            found = [call.call_id for call in ledger.calls()]
    server.fault = None
    thread.join(20)
    assert not thread.is_alive()
    assert server.call_ids() == ids


def test_send_waiting_keeps_its_time(server: EventServer, sending: Sending) -> None:
    """With a server that is down, too."""
    sending.delivery.run()
    sending.write("u_1")
    sending.delivery.close()
    server.fault = says(503)
    begun = time.monotonic()
    left = sending.send_waiting(1)
    assert 1 <= time.monotonic() - begun < 4
    assert (left.waiting, left.state.problem) == (1, "HTTP 503")


def test_send_waiting_says_when_the_ledger_cannot_be_asked(server: EventServer, sending: Sending) -> None:
    """And does not wait for ever, without a time given."""
    sending.delivery.run()
    sending.write("u_1")
    sending.delivery.close()
    Path(f"{sending.folder}.db").write_text("no ledger")
    with pytest.raises(LedgerError):
        sending.send_waiting(None)
    assert server.times == []


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
