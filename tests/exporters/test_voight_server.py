"""What the server of the events says: every call arrives once, whatever it is, and is told of as the ledger knows it."""

import json
import ssl
import subprocess
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

import voight_middleware as voight
from voight_middleware.config.values import EventsTarget
from voight_middleware.events import api as event_api
from voight_middleware.events import sender as events
from voight_middleware.events.outbox import FOLDER, REFUSED, status
from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.records.call import Submission, job_call_id
from voight_middleware.records.tags import Owner, Tags

from ..support.event_server import EventServer, hang_up, says
from ..support.patching import Patch
from .sending import close, kept, pump, pump_until, spend

pytestmark = pytest.mark.usefixtures("impatient")


def test_without_a_key_nothing_is_queued(server: EventServer, voight_calls: Any) -> None:
    """No key, no folder, no thread."""
    voight.configure(events_url=server.url)
    spend()
    assert voight.flush()
    journal = Path(current_meter().settings.journal)
    assert not (journal / FOLDER).exists()
    assert status(journal) is None
    assert "voight-events" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.slow
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
    close()
    assert kept(journal).state.problem is None


def test_a_broken_connection_is_tried_again(server: EventServer, configured: Any) -> None:
    """The server may have taken it or not: at least once."""
    configured()
    server.faults.extend([hang_up, hang_up])
    call_id = spend()
    pump(server, 1)
    assert server.call_ids() == [call_id]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(server: EventServer, configured: Any, form: str) -> None:
    """In both forms of RFC 9110."""
    configured()
    value = "1" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    server.faults.append(says(429, {"Retry-After": value}, {"error": "rate_limited"}))
    spend()
    pump(server, 1)
    first, second = server.times
    assert second - first >= 0.9
    assert len(server.times) == 2


def test_the_forms_of_retry_after() -> None:
    """What cannot be read is as if it were not there, and nothing makes us wait for ever or not at all."""
    assert event_api.retry_after(" 7 ") == 7
    for nonsense in (None, "", "soon", "-1", "1.5", "٣", "Wed, 99 Foo 2026"):
        assert event_api.retry_after(nonsense) is None
    assert event_api.retry_after("Thu, 01 Jan 1970 00:00:00 GMT") == 0
    assert 0 < (event_api.retry_after("9" * 50) or 0) <= 999_999_999
    sender = events.EventSender(EventsTarget("http://localhost", "k", "a", 60), None)  # type: ignore[arg-type]
    assert sender._pause(events.Response(429, retry_after=1e9), 1) <= events.MAX_WAIT + 1
    assert sender._pause(events.Response(402), 1) == events.MAX_WAIT
    assert all(events.MAX_PAUSE / 2 <= sender._pause(events.Response(503), failures) <= events.MAX_PAUSE for failures in (9, 99, 9999))


@pytest.mark.slow
@pytest.mark.parametrize(("code", "words"), [(401, "key is not accepted"), (410, "agent was deleted"), (403, "may not send")])
def test_a_refused_key_stops_and_keeps_everything(
    server: EventServer, configured: Any, code: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One request, one line of the log; another key goes on from there."""
    server.fault = says(code, None, {"error": "unauthorized", "reason": "revoked"})
    journal = configured()
    ids = [spend() for _ in range(5)]
    pump_until(lambda: (found := status(journal)) and found.state.stopped)
    ids += [spend() for _ in range(5)]
    voight.flush()
    time.sleep(0.1)  # several pauses
    assert len(server.times) == 1
    found = kept(journal)
    assert found.waiting == 10
    assert words in (found.state.problem or "")
    server.fault = None
    configured(voight_agent="another")
    ids.append(spend())  # a process without calls has no thread
    pump(server, 11)
    assert server.call_ids() == ids
    close()
    assert (kept(journal).state.stopped, kept(journal).waiting) == (False, 0)


def test_a_wrong_key_is_one_that_stops(server: EventServer, configured: Any) -> None:
    """The server's own 401, not one of the test's."""
    journal = configured(voight_api_key="vk_wrong")
    spend()
    pump_until(lambda: (found := status(journal)) and found.state.stopped)
    assert server.events == []


def test_a_refused_event_is_set_aside(server: EventServer, configured: Any) -> None:
    """With its reason, in a file that names no user; those behind it are sent, and it never again."""
    journal = configured()
    details = [{"path": "metadata.tags", "message": "too many"}]
    server.faults.append(says(400, None, {"error": "validation_failed", "details": details, "echo": "u_7"}))
    ids = [spend() for _ in range(3)]
    pump(server, 2)
    assert server.call_ids() == ids[1:]
    close()
    (line,) = (journal / FOLDER / REFUSED).read_text().splitlines()
    assert json.loads(line) == {"call_id": ids[0], "status": 400, "reason": {"error": "validation_failed", "details": details}}
    assert (kept(journal).state.refused, kept(journal).state.sent, kept(journal).waiting) == (1, 2, 0)
    configured()
    ids.append(spend())
    pump(server, 3)
    assert server.call_ids() == ids[1:]


@pytest.mark.server
def test_a_certificate_that_nobody_knows_is_not_accepted(configured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is not given to whoever answers."""
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1", *subject]
    subprocess.run([*made, "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"], check=True, capture_output=True)
    with EventServer() as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
        server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
        journal = configured(events_url=f"https://localhost:{server.port}")
        spend()
        pump_until(lambda: (found := status(journal)) and found.state.problem)
        assert "certificate is not accepted" in (kept(journal).state.problem or "")
        assert server.times == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))  # one that is known is
        configured(events_url=f"https://localhost:{server.port}")
        spend()
        pump(server, 2)
        close()


def test_an_owner_that_comes_later_is_sent(server: EventServer, configured: Any, patch: Patch) -> None:
    """A call without one waits for the end of its request; a call whose owner is certain does not wait for itself."""
    patch("SETTLE_SECONDS", 60.0, within="sender")
    configured()
    call_id = spend(None)
    voight.flush()
    assert server.events == []
    current_meter().attribute_late([call_id], Owner(Tags(user_id="u_late"), "settled"))
    pump(server, 1)
    nobody = spend(None)
    patch("SETTLE_SECONDS", 0.1, within="sender")
    pump(server, 2)
    owners = {event["metadata"]["callId"]: event["metadata"]["tags"].get("userId") for event in server.events}
    assert owners == {call_id: "u_late", nobody: None}


@pytest.mark.slow
def test_who_was_erased_is_not_sent(server: EventServer, configured: Any) -> None:
    """The outbox holds no users: what waits is what the ledger says when its turn comes."""
    server.fault = says(503)
    journal = configured(events_per_minute=1000)
    for number in range(150):  # more than are made ready ahead
        spend(f"u_{number:04}")
    voight.flush()
    close()
    assert not any(b"u_0149" in path.read_bytes() for path in (journal / FOLDER).iterdir())
    ledger = open_ledger(current_meter().settings.ledger)
    ledger.erase(["u_0149"], "erased:1")
    ledger.expire(2**62, 1)
    ledger.close()
    server.fault = None
    configured()
    spend("u_new")
    pump(server, 150)
    users = {f"u_{number:04}" for number in range(1, 149)} | {"erased:1", "u_new"}
    assert {event["metadata"]["tags"]["userId"] for event in server.events} == users
    close()
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
    meter = current_meter()
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
