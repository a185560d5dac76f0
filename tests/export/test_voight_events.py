"""Events at Voight: every call once, whatever the server does, and nothing on the request's path."""

import json
import os
import random
import resource
import signal
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

import voight_middleware as voight
from voight_middleware.call import Submission, job_call_id
from voight_middleware.export import event_api
from voight_middleware.export import voight as events
from voight_middleware.ingest import Ingester
from voight_middleware.journal import Election, Journal
from voight_middleware.ledger import LedgerError, Progress, open_ledger
from voight_middleware.outbox import FOLDER, REFUSED, Entry, Outbox, Status, open_outbox, status
from voight_middleware.settings import EventsTarget, Settings
from voight_middleware.tags import Tags
from voight_middleware.testing.events import EventServer, check, hang_up, says
from voight_middleware.usage import Usage

USAGE = {"prompt_tokens": 10, "completion_tokens": 2}
FAST = 60_000
"""Events per minute, where the test is about something else."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become hundredths."""
    monkeypatch.setattr(events, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(events, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(events, "SETTLE_SECONDS", 0.3)


@pytest.fixture
def configured(voight_calls: Any, server: EventServer) -> Callable[..., Path]:
    """Configures this process to send to the server; answers the folder of the journal."""

    def configure(**values: Any) -> Path:
        given: dict[str, Any] = {"key": "vk_test", "agent": "tests", "events_url": server.url, "events_per_minute": FAST}
        voight.configure(**(given | values))
        return Path(voight.meter.current_meter().settings.journal)

    return configure


def spend(user: str | None = "u_7", **values: Any) -> str:
    with voight.tag(user_id=user):
        return voight.record(**({"provider": "openai", "model": "gpt-5-nano", "usage": USAGE} | values))


def kept(journal: Path) -> Status:
    """The outbox as it is now."""
    found = status(journal)
    assert found is not None
    return found


def pump(server: EventServer, count: int, seconds: float = 30) -> None:
    """Make rounds until the server has *count* events."""
    deadline = time.monotonic() + seconds
    while len(server.events) < count:
        assert time.monotonic() < deadline, f"{len(server.events)} events came, not {count}"
        voight.flush()
        time.sleep(0.02)


# -- the event ------------------------------------------------------------------------------------------------------------------


def test_a_call_as_it_arrives(server: EventServer, configured: Any) -> None:
    """Its fields are those of the documentation, and our own id is with it."""
    configured()
    with voight.tag(user_id="u_7", plan="pro", tenant_id="acme", route="POST /chat", session_id="s_1", release="r1", feature="summary"):
        call_id = voight.record(provider="openai", model="gpt-5-nano", usage=USAGE, duration=1.2345)
    pump(server, 1)
    (event,) = server.events
    metadata = event.pop("metadata")
    assert event.pop("timestamp").endswith("Z")
    assert event == {"agentId": "tests", "type": "reasoning", "outcome": "success", "durationMs": 1234, "model": "gpt-5-nano"}
    assert metadata == {
        "callId": call_id,
        "privacyLevel": "minimal",
        "source": "openai-sdk",
        "streaming": False,
        "tags": {"userId": "u_7", "plan": "pro", "tenantId": "acme", "release": "r1", "feature": "summary"},
        "attribution": "tag",
        "endpoint": "POST /chat",
        "sessionId": "s_1",
        "costStatus": "priced",
        "costUsd": "0.0000013",
        "tokens": {"input": 10, "output": 2, "total": 12},
        "tokensBreakdown": {"inputBase": 10, "output": 2},
    }


CACHED = Usage(input=70, cache_read=20, cache_write_5m=10, output=5, reasoning=3)


PROVIDERS = [
    ("openai", "chat", 100),
    ("openai", "responses", 100),
    ("anthropic", "messages", 70),
    ("bedrock", "converse", 70),
    ("anthropic", "usage", 70),
]


@pytest.mark.parametrize(("provider", "endpoint", "input_tokens"), PROVIDERS)
def test_tokens_are_counted_as_the_provider_counts(new_call: Any, provider: str, endpoint: str, input_tokens: int) -> None:
    """OpenAI's input has what was cached in it, Anthropic's has not; the breakdown is the same for all."""
    metadata = events.event(new_call(provider=provider, endpoint=endpoint, usage=CACHED), "a")["metadata"]
    assert metadata["tokens"] == {
        "input": input_tokens,
        "output": 5,
        "total": input_tokens + 5,
        "cache_read": 20,
        "cache_creation": 10,
        "reasoning": 3,
    }
    assert metadata["tokensBreakdown"] == {"inputBase": 70, "cacheCreation": 10, "cacheRead": 20, "output": 5}
    assert metadata.get("api") == ("responses" if endpoint == "responses" else None)


def test_what_is_not_known_is_left_out(new_call: Any) -> None:
    """An unknown count is no 0, and an unknown cost none."""
    event = events.event(new_call(model=None, usage=None), "a")
    assert {"model", "durationMs", "errorMessage"}.isdisjoint(event)
    assert {"tokens", "tokensBreakdown", "costUsd", "endpoint", "sessionId"}.isdisjoint(event["metadata"])
    assert events.event(new_call(usage=Usage(images=1)), "a")["metadata"].keys().isdisjoint({"tokens", "tokensBreakdown"})


@pytest.mark.parametrize("outcome", ["error", "aborted", "cancelled", "truncated"])
def test_a_failure_says_its_class_and_no_more(new_call: Any, outcome: str) -> None:
    """A broken-off stream is no success."""
    event = events.event(new_call(outcome=outcome, error="RateLimitError", http_status=429), "a")
    assert (event["outcome"], event["errorMessage"]) == ("failed", "RateLimitError (HTTP 429)")
    assert event["metadata"]["callOutcome"] == outcome
    assert events.event(new_call(outcome=outcome), "a")["errorMessage"] == outcome


def test_every_event_is_one_that_the_server_takes(new_call: Any) -> None:
    """Whatever a call holds: strange tags, a time before 1970, a negative duration."""
    strange = Tags(user_id="\U0001f600" * 256, plan="p" * 256, extra={"userId": "forged", "tokens": "x", "a.b-c": "\\u0000"})
    for values in (
        {"tags": strange},
        {"occurred_at": -1},
        {"occurred_at": 0},
        {"duration": -5},
        {"duration": 1},
        {"usage": CACHED, "cost_femto": 123456789, "cost_status": "partial", "batch": True, "estimated_input": 4, "service_tier": "flex"},
    ):
        event = events.event(new_call(**values), "a")
        assert check(json.dumps(event).encode()) == []
    assert events.event(new_call(tags=strange), "a")["metadata"]["tags"]["userId"] == strange.user_id


# -- what the server says ----------------------------------------------------------------------------------------------------------


def test_without_a_key_nothing_is_queued(server: EventServer, voight_calls: Any) -> None:
    """No key, no folder, no thread."""
    voight.configure(events_url=server.url)
    spend()
    assert voight.flush()
    journal = Path(voight.meter.current_meter().settings.journal)
    assert not (journal / FOLDER).exists()
    assert status(journal) is None
    assert "voight-events" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("code", [500, 502, 503, 404, 301, 408, 200, 204, 407, 451])
def test_what_may_pass_is_tried_again(server: EventServer, configured: Any, code: int) -> None:
    """
    With pauses that grow, and the same event until it is accepted; a redirect is never followed, what a proxy or a page says of all
    requests sets no event aside, and a page that answers everything with 200 has accepted none.
    """
    journal = configured()
    elsewhere = {"Location": f"{server.url}/elsewhere", "Content-Type": "text/html"}
    server.faults.extend([says(code, elsewhere)] * 3)
    ids = [spend(), spend()]
    pump(server, 2)
    assert server.call_ids() == ids
    assert len(server.times) == 5
    voight.meter.current_meter().close()
    assert kept(journal).state.problem is None


def test_a_broken_connection_is_tried_again(server: EventServer, configured: Any) -> None:
    """The server may have taken it or not: at least once."""
    configured()
    server.faults.extend([hang_up, hang_up])
    call_id = spend()
    pump(server, 1)
    assert server.call_ids() == [call_id]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(server: EventServer, configured: Any, form: str) -> None:
    """In both forms of RFC 9110."""
    configured()
    value = "2" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    server.faults.append(says(429, {"Retry-After": value}, {"error": "rate_limited"}))
    spend()
    pump(server, 1)
    first, second = server.times
    assert 1.0 <= second - first < 6
    assert len(server.times) == 2


def test_the_forms_of_retry_after() -> None:
    """What cannot be read is as if it were not there, and nothing makes us wait for ever or not at all."""
    assert event_api.retry_after(" 7 ") == 7
    for nonsense in (None, "", "soon", "-1", "1.5", "٣", "Wed, 99 Foo 2026"):
        assert event_api.retry_after(nonsense) is None
    assert event_api.retry_after("Thu, 01 Jan 1970 00:00:00 GMT") == 0
    assert 0 < (event_api.retry_after("9" * 50) or 0) <= 999_999_999
    sender = events.EventSender(EventsTarget("http://localhost", "k", "a", 60), None)  # type: ignore[arg-type]
    assert sender._pause(events.Answer(429, retry_after=1e9), 1) <= events.LONGEST_WAIT + 1
    assert sender._pause(events.Answer(402), 1) == events.LONGEST_WAIT
    assert all(
        events.LONGEST_PAUSE / 2 <= sender._pause(events.Answer(503), failures) <= events.LONGEST_PAUSE for failures in (9, 99, 9999)
    )


@pytest.mark.parametrize(("code", "words"), [(401, "key is not accepted"), (410, "agent was deleted"), (403, "may not send")])
def test_a_refused_key_stops_and_keeps_everything(
    server: EventServer, configured: Any, code: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One request, one line of the log; another key goes on from there."""
    server.fault = says(code, None, {"error": "unauthorized", "reason": "revoked"})
    journal = configured()
    ids = [spend() for _ in range(5)]
    deadline = time.monotonic() + 10
    while not (found := status(journal)) or not found.state.stopped:
        assert time.monotonic() < deadline
        voight.flush()
        time.sleep(0.02)
    ids += [spend() for _ in range(5)]
    voight.flush()
    time.sleep(0.3)
    assert len(server.times) == 1
    found = kept(journal)
    assert found.waiting == 10
    assert words in (found.state.problem or "")
    server.fault = None
    configured(agent="another")
    ids.append(spend())  # a process without calls has no thread
    pump(server, 11)
    assert server.call_ids() == ids
    voight.meter.current_meter().close()
    assert (kept(journal).state.stopped, kept(journal).waiting) == (False, 0)


def test_a_wrong_key_is_one_that_stops(server: EventServer, configured: Any) -> None:
    """The server's own 401, not one of the test's."""
    journal = configured(key="vk_wrong")
    spend()
    deadline = time.monotonic() + 10
    while not (found := status(journal)) or not found.state.stopped:
        assert time.monotonic() < deadline
        voight.flush()
        time.sleep(0.02)
    assert server.events == []


def test_a_refused_event_is_set_aside(server: EventServer, configured: Any) -> None:
    """With its reason, in a file that names no user; those behind it are sent, and it never again."""
    journal = configured()
    details = [{"path": "metadata.tags", "message": "too many"}]
    server.faults.append(says(400, None, {"error": "validation_failed", "details": details, "echo": "u_7"}))
    ids = [spend() for _ in range(3)]
    pump(server, 2)
    assert server.call_ids() == ids[1:]
    voight.meter.current_meter().close()
    (line,) = (journal / FOLDER / REFUSED).read_text().splitlines()
    assert json.loads(line) == {"call_id": ids[0], "status": 400, "reason": {"error": "validation_failed", "details": details}}
    assert (kept(journal).state.refused, kept(journal).state.sent, kept(journal).waiting) == (1, 2, 0)
    configured()
    ids.append(spend())
    pump(server, 3)
    assert server.call_ids() == ids[1:]


def test_a_certificate_that_nobody_knows_is_not_accepted(configured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is not given to whoever answers."""
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
    ]
    subprocess.run([*made, "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"], check=True, capture_output=True)
    with EventServer() as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
        server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
        journal = configured(events_url=f"https://localhost:{server.port}")
        spend()
        deadline = time.monotonic() + 10
        while not (found := status(journal)) or found.state.problem is None:
            assert time.monotonic() < deadline
            voight.flush()
            time.sleep(0.02)
        assert "certificate is not accepted" in found.state.problem
        assert server.times == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))  # one that is known is
        configured(events_url=f"https://localhost:{server.port}")
        spend()
        pump(server, 2)
        voight.meter.current_meter().close()


# -- owners, jobs, ids -------------------------------------------------------------------------------------------------------------


def test_an_owner_that_comes_later_is_sent(server: EventServer, configured: Any) -> None:
    """A call without one waits for the end of its request; a call whose owner is certain does not wait for itself."""
    configured()
    meter = voight.meter.current_meter()
    from voight_middleware.tags import Owner

    call_id = spend(None)
    voight.flush()
    assert server.events == []
    meter.settle([call_id], Owner(Tags(user_id="u_late"), "settled"))
    nobody = spend(None)
    pump(server, 2)
    owners = {event["metadata"]["callId"]: event["metadata"]["tags"].get("userId") for event in server.events}
    assert owners == {call_id: "u_late", nobody: None}


def test_who_was_erased_is_not_sent(server: EventServer, configured: Any) -> None:
    """The outbox holds no users: what waits is what the ledger says when its turn comes."""
    server.fault = says(503)
    journal = configured(events_per_minute=1000)
    for number in range(150):  # more than are made ready ahead
        spend(f"u_{number:04}")
    voight.flush()
    voight.meter.current_meter().close()
    assert not any(b"u_0149" in path.read_bytes() for path in (journal / FOLDER).iterdir())
    ledger = open_ledger(voight.meter.current_meter().settings.ledger)
    ledger.erase(["u_0149"], "erased:1")
    ledger.expire(2**62, 1)
    ledger.close()
    server.fault = None
    configured()
    spend("u_new")
    pump(server, 150)
    users = {f"u_{number:04}" for number in range(1, 149)} | {"erased:1", "u_new"}
    assert {event["metadata"]["tags"]["userId"] for event in server.events} == users
    voight.meter.current_meter().close()
    assert kept(journal).state.gone == 1


def test_an_id_that_comes_again_is_one_event(server: EventServer, configured: Any) -> None:
    """As it is one call in the ledger: told twice in one round, and in another."""
    configured()
    at, last = datetime(2026, 11, 3, tzinfo=UTC), ""
    for _ in range(2):
        for _ in range(2):
            spend(call_id="my-own-id", occurred_at=at)
        last = spend()
        voight.flush()
    pump(server, 3)
    time.sleep(0.1)
    assert Counter(server.call_ids())["my-own-id"] == 1
    assert len(server.events) == 3
    assert last in server.call_ids()


def test_a_job_is_an_event_when_its_usage_is_known(server: EventServer, configured: Any, new_call: Any) -> None:
    """Not when it is submitted, and once however often its answer is read; its owner is who has submitted it."""
    configured()
    meter = voight.meter.current_meter()
    job, call_id = "openai/resp_1", job_call_id("openai/resp_1")
    meter.journal.append(Submission(job=job, submitted_at=time.time_ns() // 1000, tags=Tags(user_id="u_7"), attribution="tag"))
    meter.journal.append(new_call(call_id=call_id, job=job, raw_usage=None, tags=Tags(user_id="u_7"), attribution="tag"))
    spend()
    pump(server, 1)
    assert call_id not in server.call_ids()
    for _ in range(3):
        time.sleep(0.002)
        meter.journal.append(new_call(call_id=call_id, job=job))
        spend()
        voight.flush()
    pump(server, 5)
    time.sleep(0.1)
    assert len(server.events) == 5
    (event,) = [event for event in server.events if event["metadata"]["callId"] == call_id]
    assert event["metadata"]["tags"] == {"userId": "u_7"}
    assert event["metadata"]["tokens"]["input"] == 10


# -- the outbox --------------------------------------------------------------------------------------------------------------------


def entries(count: int, start: int = 0) -> list[Entry]:
    return [Entry(f"{number:032x}", number, number * 10, False) for number in range(start, start + count)]


def test_what_is_read_again_is_not_queued_again(tmp_path: Path) -> None:
    """After a crash the journal is read from before, perhaps in other pieces."""
    Outbox(tmp_path).append("s", 100, entries(10))
    outbox = Outbox(tmp_path)
    outbox.append("s", 150, entries(15))
    outbox.append("t", 50, entries(5, 100))
    outbox.append("s", 100, entries(10))
    assert [waiting.entry for waiting in outbox.read()] == [*entries(15), *entries(5, 100)]


def test_a_torn_line_is_written_anew(tmp_path: Path) -> None:
    """Killed within a write: that batch is not in the ledger either, and comes again."""
    Outbox(tmp_path).append("s", 100, entries(10))
    (path,) = (tmp_path / FOLDER).glob("*.ids")
    whole = path.read_bytes()
    Outbox(tmp_path).append("s", 150, entries(15))
    for length in range(len(whole), path.stat().st_size):
        path.write_bytes(path.read_bytes()[:length])
        outbox = Outbox(tmp_path)
        assert [waiting.entry for waiting in outbox.read()] == entries(10)
        outbox.append("s", 150, entries(15))
        assert [waiting.entry for waiting in outbox.read()] == entries(15)


def test_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a line, at the end of a file, with a state that was kept; and what has been sent takes no room."""
    monkeypatch.setattr("voight_middleware.outbox.FILE_BYTES", 1000)
    outbox = Outbox(tmp_path)
    everything = entries(300)
    for start in range(0, 300, 7):
        outbox.append("s", (start + 7) * 10, everything[start : start + 7])
    assert len(list((tmp_path / FOLDER).glob("*.ids"))) > 5
    sent: list[Entry] = []
    while waiting := next(Outbox(tmp_path).read(), None):
        sent.append(waiting.entry)
        Outbox(tmp_path).settle(waiting.behind)
    assert sent == everything
    assert len(list((tmp_path / FOLDER).glob("*.ids"))) == 1


def test_the_oldest_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is bounded: they are counted, and the ledger has them all."""
    monkeypatch.setattr("voight_middleware.outbox.FILE_BYTES", 1000)
    monkeypatch.setattr("voight_middleware.outbox.MOST_BYTES", 5000)
    outbox = Outbox(tmp_path)
    for start in range(0, 1000, 10):
        outbox.append("s", (start + 10) * 10, entries(10, start))
    left = [waiting.entry for waiting in outbox.read()]
    assert left == entries(len(left), 1000 - len(left))
    assert outbox.state.dropped == 1000 - len(left) > 0
    assert sum(path.stat().st_size for path in (tmp_path / FOLDER).glob("*.ids")) < 7000
    assert kept(tmp_path).waiting == len(left)


def test_a_disk_that_refuses_does_not_hold_up_the_ledger(server: EventServer, configured: Any, voight_calls: Any) -> None:
    """What could not be queued is counted as dropped."""
    journal = configured()
    (journal / FOLDER).mkdir(parents=True)
    (journal / FOLDER / "000000000001.ids").symlink_to(journal / "nowhere" / "file")
    spend()
    assert len(voight_calls.all()) == 1
    assert kept(journal).state.dropped == 1


def test_what_the_ledger_refuses_for_now_waits(tmp_path: Path, new_call: Any) -> None:
    """Queued before the insert: neither sent nor skipped until the ledger has it, and then once."""

    class Down:
        def __init__(self, ledger: Any) -> None:
            self.ledger, self.down = ledger, True

        def insert(self, records: Any, progress: Progress | None = None) -> int:
            if self.down:
                raise LedgerError("down")
            return int(self.ledger.insert(records, progress))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.ledger, name)

    folder = tmp_path / "journal"
    journal, ledger = Journal(folder), Down(open_ledger(f"sqlite:///{tmp_path}/ledger.db"))
    ids = []
    with EventServer() as server:
        outbox = open_outbox(folder, create=True)
        assert outbox is not None
        sender = events.EventSender(EventsTarget(server.url, "vk_test", "a", FAST), outbox)
        for _ in range(5):
            call = new_call(attribution="tag")
            ids.append(call.call_id)
            journal.append(call)
            with pytest.raises(LedgerError):
                Ingester(ledger, folder, outbox=Outbox(folder)).run()
            sender.refill(ledger)
        time.sleep(0.1)
        assert server.events == []
        ledger.down = False
        Ingester(ledger, folder, outbox=Outbox(folder)).run()
        sender.refill(ledger)
        server.wait_for(5)
        sender.stop(5)
        assert server.call_ids() == ids
    assert outbox.state.gone == 0
    ledger.close()
    journal.rotate()


# -- under load ---------------------------------------------------------------------------------------------------------------------


def test_a_server_that_is_down_is_not_felt(server: EventServer, configured: Any) -> None:
    """Four seconds without it: no call takes longer, and all of them arrive afterwards, none twice."""

    def load(seconds: float) -> tuple[list[str], float]:
        ids: list[str] = []
        slowest: list[float] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            begun = time.perf_counter()
            ids.append(spend(f"u_{len(ids) % 50}"))
            slowest.append(time.perf_counter() - begun)
            time.sleep(0.005)
        return ids, sorted(slowest)[len(slowest) // 2]

    journal = configured()
    up, typical_up = load(2)
    server.close()
    down, typical_down = load(4)
    assert typical_down < typical_up * 3 + 0.001
    server.open()
    pump(server, len(up) + len(down), 60)
    assert sorted(server.call_ids()) == sorted(up + down)
    voight.meter.current_meter().close()
    assert (kept(journal).waiting, kept(journal).state.sent) == (0, len(up) + len(down))


def test_the_limit_of_the_plan_is_kept_without_running_in_circles(configured: Any) -> None:
    """A server that takes 60 a minute never has to refuse; spaced a second apart, and the thread sleeps in between."""
    with EventServer(per_minute=60) as server:
        configured(events_url=server.url, events_per_minute=60)
        for _ in range(30):
            spend()
        pump(server, 2)
        busy = time.process_time()
        time.sleep(4)
        busy = time.process_time() - busy
        voight.meter.current_meter().close()
        gaps = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
        assert 3 <= len(gaps) <= 8
        assert sum(gaps) > len(gaps) * 1.05 - 0.5, "the first may have been held up on its way"
        assert min(gaps) > 0.5
        assert len(server.events) == len(server.times)
        assert busy < 1.0, busy


def test_a_backlog_of_ten_thousand_is_not_kept_in_memory(server: EventServer, configured: Any, new_call: Any) -> None:
    """A few hundred events are ready at a time; the rest is on disk, as ids."""
    server.fault = says(503)
    journal = configured(events_per_minute=600)
    meter = voight.meter.current_meter()
    for number in range(10_000):
        meter.journal.append(new_call(tags=Tags(user_id=f"u_{number}", extra={"note": "x" * 200}), attribution="tag"))
    assert meter.flush(60) or meter._background is None
    spend()
    assert voight.flush(60)
    background = meter._background
    assert background is not None
    assert background._delivery is not None
    sender = background._delivery._sender
    assert isinstance(sender, events.EventSender)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        voight.flush(60)
    assert 0 < len(sender._ready) <= 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "kilobytes"
    meter.close()
    left = kept(journal)
    assert left.waiting == 10_001
    assert left.size < 1_000_000


KILLED = """
import sys, time, voight_middleware as voight
voight.configure(key="vk_test", events_url=sys.argv[1], events_per_minute=60000)
usage = {"prompt_tokens": 1, "completion_tokens": 1}
number = 0
while True:
    with voight.tag(user_id="u"):
        print(voight.record(provider="openai", model="gpt-5-nano", usage=usage), flush=True)
    number += 1
    if number % 20 == 0:
        voight.flush()
    time.sleep(0.002)
"""


def test_a_process_that_is_killed_loses_no_event_and_repeats_one_at_most(scripts: Any, server: EventServer) -> None:
    """Twenty times, at any moment: every call arrives, and not more are doubled than processes were killed."""
    ids: list[str] = []
    chance = random.Random(8)
    kills = 20
    for _ in range(kills):
        process = scripts.start(KILLED, server.url)
        assert process.stdout.readline()
        before = len(server.events)
        deadline = time.monotonic() + 20
        while len(server.events) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        ids += output.split()
    known = Counter(server.call_ids())
    last = scripts.start(KILLED, server.url)
    deadline = time.monotonic() + 60
    while set(ids) - set(server.call_ids()):
        assert time.monotonic() < deadline, f"{len(set(ids) - set(server.call_ids()))} of {len(ids)} are missing"
        time.sleep(0.1)
    last.send_signal(signal.SIGTERM)
    last.communicate()
    assert sum(known.values()) > 20
    doubled = sum(count - 1 for count in Counter(server.call_ids()).values())
    assert doubled <= kills
    print(f"{len(ids)} calls, {doubled} doubled by {kills} kills")


FORKED = """
import os, sys, time, voight_middleware as voight
voight.configure(key="vk_test", events_url=sys.argv[1], events_per_minute=60000)

def spend(count):
    for _ in range(count):
        with voight.tag(user_id="u"):
            os.write(1, voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1}).encode() + b"\\n")

spend(20)
assert voight.flush()
for _ in range(10):
    child = os.fork()
    spend(20)
    if child == 0:
        assert voight.flush(30)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
if os.fork():
    assert voight.flush(30)
    voight.meter.current_meter().close()
    os._exit(0)
spend(1)  # a process without calls of its own sends none
sys.stdin.readline()
"""


def test_a_fork_sends_nothing_twice(scripts: Any, server: EventServer) -> None:
    """Children of a process that is sending leave that to it, and the last one goes on where it ended."""
    process = scripts.start(FORKED, server.url)
    ids = [process.stdout.readline().strip() for _ in range(421)]
    server.wait_for(421, 60)
    process.stdin.close()
    process.stdin = None
    process.communicate()
    assert sorted(server.call_ids()) == sorted(ids)


def test_a_process_that_ends_leaves_the_rest_to_the_next(scripts: Any) -> None:
    """It does not wait for the server; the next one begins where it ended, and not before its time."""
    source = """
    import sys, time, voight_middleware as voight
    voight.configure(key="vk_test", events_url=sys.argv[1], events_per_minute=60)
    for _ in range(5):
        with voight.tag(user_id="u"):
            print(voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1}), flush=True)
    assert voight.flush()
    time.sleep(float(sys.argv[2]))
    """
    with EventServer(per_minute=60) as server:
        begun = time.monotonic()
        ids = scripts.run(source, server.url, "0").split()
        assert time.monotonic() - begun < 5
        left = status(scripts.journal)
        assert left is not None
        assert 4 <= left.waiting <= 5
        ids += scripts.run(source, server.url, "4").split()
        sent = server.call_ids()
        assert 3 <= len(sent) < 10
        assert sent == ids[: len(sent)]
        assert all(later - earlier > 0.5 for earlier, later in zip(server.times, server.times[1:], strict=False))


def test_what_short_programs_leave_can_be_sent(scripts: Any, server: EventServer) -> None:
    """By a process that makes no calls; beside one that is sending it does nothing."""
    source = """
    import sys, voight_middleware as voight
    voight.configure(key="vk_test", events_url=sys.argv[1], events_per_minute=1)
    for number in range(300):
        with voight.tag(user_id="u"):
            print(voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1}, call_id=f"import-{number}"))
    """
    ids = scripts.run(source, server.url).split()
    settings = Settings.from_environment(
        ledger=scripts.ledger, journal=scripts.journal, key="vk_test", events_url=server.url, events_per_minute=FAST, environ={}
    )
    assert events.send_waiting(Settings.from_environment(ledger=scripts.ledger, environ={})) is None
    election = Election(scripts.journal)
    assert election.win()
    beside = events.send_waiting(settings)
    assert beside is not None
    assert beside.waiting >= 299
    election.resign()
    left = events.send_waiting(settings, 30)
    assert left is not None
    assert (left.waiting, left.state.sent) == (0, 300)
    assert server.call_ids() == ids
    scripts.run(source, server.url)  # the same ids at other times: nothing new to the ledger
    server.events.clear()
    events.send_waiting(settings, 30)
    assert kept(scripts.journal).state.gone == 300
    assert server.events == []


def test_many_calls_of_one_time_are_found(server: EventServer, configured: Any) -> None:
    """An import may give hundreds of calls one date: each is looked up by itself, and told twice it is one event."""
    configured()
    at = datetime(2026, 11, 3, tzinfo=UTC)
    ids = [f"row-{number}" for number in range(1, 300)]
    for _ in range(2):
        for call_id in ids:
            spend(call_id=call_id, occurred_at=at)
        assert voight.flush(60)
    pump(server, len(ids), 60)
    last = spend()
    pump(server, len(ids) + 1)
    assert sorted(server.call_ids()) == sorted([*ids, last])


def test_a_server_that_hangs_does_not_hold_up_the_end(scripts: Any, server: EventServer) -> None:
    """The process ends within a second or two; the event that got no answer is sent again, by the next."""
    source = """
    import atexit, sys, time
    atexit.register(lambda: print(time.monotonic() - begun))  # before ours is, and so called after it
    import voight_middleware as voight
    voight.configure(key="vk_test", events_url=sys.argv[1], events_per_minute=60000)
    with voight.tag(user_id="u"):
        print(voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1}), flush=True)
    assert voight.flush()
    time.sleep(0.5)
    begun = time.monotonic()
    """
    server.fault = lambda request: time.sleep(30)
    first, seconds = scripts.run(source, server.url).split()
    assert len(server.times) == 1
    assert float(seconds) < 3.5
    server.fault = None
    second, _ = scripts.run(source, server.url).split()
    assert server.call_ids() == [first, second]
