"""``voight events``, what ``voight doctor`` says of ways to elsewhere, and what ``voight ingest --once`` sends."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import voight_middleware.events.sender  # noqa: F401 - `server` replaces names of it
from voight_middleware.cli import main
from voight_middleware.events.outbox import FOLDER, Outbox, open_outbox
from voight_middleware.pipeline.journal import Journal
from voight_middleware.pipeline.lock import IngestLock
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Tags

from ..support.event_server import EventServer, says
from ..support.patching import Patch

SECRET = "vk_very-secret"
HEADER_KEYS = "v2:" + "n" * 40 + ",v1:" + "o" * 40


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, patch: Patch) -> Iterator[EventServer]:
    """Voight, on loopback, and the environment of somebody who sends there."""
    patch("FIRST_PAUSE", 0.02, within="sender")
    patch("MAX_PAUSE", 0.1, within="sender")
    with EventServer(SECRET) as running:
        monkeypatch.setenv("VOIGHT_KEY", SECRET)
        monkeypatch.setenv("VOIGHT_AGENT", "shop")
        monkeypatch.setenv("VOIGHT_EVENTS_URL", running.url)
        monkeypatch.setenv("VOIGHT_EVENTS_PER_MINUTE", "60000")
        yield running


@pytest.fixture
def journal(place: Path) -> Path:
    """The folder of the journal."""
    return Path(f"{place}.journal")


@pytest.fixture
def write(journal: Path, new_call: Callable[..., Call]) -> Callable[[int], list[str]]:
    """Writes calls as a process that is gone by now; answers their ids."""

    def write(count: int) -> list[str]:
        writer = Journal(journal)
        calls = [new_call(tags=Tags(user_id=f"u_{number}"), attribution="tag") for number in range(count)]
        for call in calls:
            writer.append(call)
        writer.rotate()
        return [call.call_id for call in calls]

    return write


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command: its exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        out, err = capfd.readouterr()
        assert SECRET not in out + err
        return code, out, err

    return run


Run = Callable[..., tuple[int, str, str]]
Write = Callable[[int], list[str]]

# -- voight events ------------------------------------------------------------------------------------------------------------------


def test_without_a_key_and_an_outbox(run: Run, journal: Path) -> None:
    """Nothing waits, and that is said; looking makes nothing; sending needs a key."""
    code, out, _ = run("events")
    assert code == 0
    assert "VOIGHT_KEY is not set" in out
    assert "no call was queued here" in out
    code, out, _ = run("events", "--format", "json")
    shown = json.loads(out)
    assert (code, shown["key"], shown["outbox"], shown["waiting"], shown["sent"]) == (0, False, None, None, None)
    code, out, err = run("events", "send")
    assert (code, out) == (1, "")
    assert "set VOIGHT_KEY" in err
    assert not journal.exists()


def test_a_key_and_nothing_queued(run: Run, server: EventServer, journal: Path) -> None:
    """There is nothing to send, which is no error."""
    code, _, err = run("events", "send")
    assert code == 0
    assert "no call was queued" in err
    assert not (journal / FOLDER).exists()


@pytest.mark.slow
def test_what_waits_is_shown(run: Run, server: EventServer, write: Write, journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many, and how long that takes at the plan's rate; without a key how long is not known."""
    write(300)
    assert run("spend")[0] == 0
    monkeypatch.setenv("VOIGHT_EVENTS_PER_MINUTE", "60")
    code, out, _ = run("events")
    assert code == 0
    assert "300: sending them takes 5 minutes at 60 a minute" in out
    assert "shop (VOIGHT_AGENT)" in out
    assert server.url in out
    shown = json.loads(run("events", "--format", "json")[1])
    assert (shown["waiting"], shown["seconds_to_send"], shown["ingester"], shown["newest_accepted_at"]) == (300, 315.0, False, None)
    monkeypatch.delenv("VOIGHT_KEY")
    shown = json.loads(run("events", "--format", "json")[1])
    assert (shown["waiting"], shown["seconds_to_send"]) == (300, None)
    assert server.times == []


@pytest.mark.slow
def test_events_that_wait_are_sent(run: Run, server: EventServer, write: Write, journal: Path) -> None:
    """What is in the journal and in the outbox goes; the state says when; a second time there is nothing."""
    ids = write(5)
    begun = int(time.time())
    code, out, err = run("events", "send")
    assert (code, out) == (0, "")
    assert "5 sent; 0 pending" in err
    assert server.call_ids() == ids
    assert {event["agentId"] for event in server.events} == {"shop"}
    code, out, err = run("events", "send", "--format", "json")
    shown = json.loads(out)
    assert (code, shown["sent"], shown["waiting"], shown["problem"]) == (0, 5, 0, None)
    assert "0 sent; 0 pending" in err
    assert begun <= time.mktime(time.strptime(shown["newest_accepted_at"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert len(server.events) == 5


@pytest.mark.slow
def test_events_are_sent_for_a_time(run: Run, server: EventServer, write: Write, journal: Path) -> None:
    """With a server that is down it ends in time, with 1 and the reason; the next run sends."""
    ids = write(3)
    server.fault = says(503)
    begun = time.monotonic()
    code, _, err = run("events", "send", "--for", "1")
    assert 1 <= time.monotonic() - begun < 5
    assert code == 1
    assert "0 sent; 3 pending: HTTP 503" in err
    assert "it is retried automatically" in run("events")[1]
    server.fault = None
    assert run("events", "send", "--for", "20")[0] == 0
    assert server.call_ids() == ids


@pytest.mark.slow
def test_a_key_that_was_refused_is_mended(
    run: Run, server: EventServer, write: Write, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at once with the reason and what to do; with the right key the same command goes on."""
    ids = write(3)
    server.key = "vk_another"
    code, _, err = run("events", "send")
    assert code == 1
    assert "0 sent; 3 pending: the key is not accepted (HTTP 401)" in err
    out = run("events")[1]
    assert "the key is not accepted (HTTP 401)" in out
    assert "run voight events send" in out
    assert json.loads(run("events", "--format", "json")[1])["stopped"] is True
    monkeypatch.setenv("VOIGHT_KEY", "vk_another")
    assert run("events", "send")[0] == 0
    assert server.call_ids() == ids
    assert json.loads(run("events", "--format", "json")[1])["stopped"] is False


def test_it_is_left_to_a_living_process(run: Run, server: EventServer, write: Write, journal: Path) -> None:
    """Two would send everything twice."""
    write(3)
    assert run("spend")[0] == 0
    lock = IngestLock(journal)
    assert lock.acquire()
    code, _, err = run("events", "send")
    assert code == 1
    assert "a live process ingests" in err
    assert "3 pending" in err
    assert json.loads(run("events", "--format", "json")[1])["ingester"] is True
    lock.release()
    assert server.times == []


def test_refused_and_dropped_are_shown(run: Run, journal: Path) -> None:
    """With where to look, and only where there are some."""
    outbox = Outbox(journal)
    assert "refused" not in run("events")[1]
    outbox.note(refused=2, dropped=7, gone=1)
    out = run("events")[1]
    assert "refused.jsonl says why" in out
    assert "they are in the ledger, but not in Voight" in out
    shown = json.loads(run("events", "--format", "json")[1])
    assert (shown["refused"], shown["dropped"], shown["gone"]) == (2, 7, 1)


def test_an_outbox_that_cannot_be_read(run: Run, journal: Path) -> None:
    """One sentence, and what to do."""
    Outbox(journal)
    (journal / FOLDER / "state.json").mkdir()
    code, _, err = run("events")
    assert code == 1
    assert "check its owner" in err


def test_for_is_for_sending(run: Run) -> None:
    """A time alone means nothing."""
    code, _, err = run("events", "--for", "5")
    assert code == 1
    assert "voight events send --for" in err


def test_what_killed_processes_left_is_sent(run: Run, server: EventServer, write: Write, journal: Path) -> None:
    """With a key nothing else is needed, and a report that brings it in before is no way for it to be lost."""
    ids = write(3)
    assert run("events", "send")[0] == 0
    assert server.call_ids() == ids


@pytest.mark.slow
def test_what_a_report_brings_in_is_queued(run: Run, server: EventServer, write: Write, journal: Path) -> None:
    """The first ever to touch the journal, with a key."""
    ids = write(3)
    assert run("spend")[0] == 0
    assert server.times == []
    assert run("events", "send")[0] == 0
    assert server.call_ids() == ids


# -- voight ingest --once ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_once_sends_too(run: Run, server: EventServer, write: Write) -> None:
    """From cron it is the only process that could; all of it is sent within the run."""
    ids = write(50)
    code, out, _ = run("ingest", "--once")
    assert code == 0
    assert "50 events sent\n" in out
    assert "50 records ingested; nothing is left" in out
    assert server.call_ids() == ids
    more = write(2)
    assert "2 events sent\n" in run("ingest", "--once")[1]
    assert server.call_ids() == ids + more


@pytest.mark.slow
def test_once_sends_for_a_time(run: Run, server: EventServer, write: Write, patch: Patch) -> None:
    """The ledger has the calls, so that it is no failure; what waits is said, with the reason."""
    patch("SEND_SECONDS", 0.5)
    server.fault = says(503)
    write(3)
    begun = time.monotonic()
    code, out, _ = run("ingest", "--once")
    assert time.monotonic() - begun < 5
    assert code == 0
    assert "0 events sent; 3 wait for the next run, or for voight events send: HTTP 503" in out


def test_once_does_not_wait_for_a_key_that_is_refused(run: Run, server: EventServer, write: Write) -> None:
    """One attempt; the calls are in the ledger."""
    server.key = "vk_another"
    write(3)
    begun = time.monotonic()
    code, out, _ = run("ingest", "--once")
    assert time.monotonic() - begun < 5
    assert code == 0
    assert "3 wait for the next run" in out
    assert "not accepted" in out
    assert len(server.times) == 1


def test_once_without_a_key_sends_nothing(run: Run, write: Write, journal: Path) -> None:
    """Nor does it speak of events."""
    write(3)
    code, out, _ = run("ingest", "--once")
    assert code == 0
    assert "events" not in out
    assert not (journal / FOLDER).exists()


# -- voight doctor ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def doctor(run: Run) -> Callable[[], dict[str, dict[str, Any]]]:
    """The findings on ways to elsewhere, by name."""

    def doctor() -> dict[str, dict[str, Any]]:
        _, out, _ = run("doctor", "--format", "json")
        assert "n" * 40 not in out
        found = json.loads(out)["findings"]
        return {finding["name"]: finding for finding in found if finding["section"] in ("events", "other services")}

    return doctor


Doctor = Callable[[], dict[str, dict[str, Any]]]


def test_doctor_of_nothing_to_elsewhere(doctor: Doctor) -> None:
    """All of it is off, and nothing is to be done."""
    found = doctor()
    assert "VOIGHT_KEY is not set" in found["events"]["value"]
    assert found["header key"]["value"].startswith("not set")
    assert found["otlp token"]["value"].startswith("not set")
    assert [finding["advice"] for finding in found.values()] == [None] * 3


@pytest.mark.slow
def test_doctor_of_events(doctor: Doctor, server: EventServer, write: Write, journal: Path, run: Run) -> None:
    """As whom, where, how fast, what waits, and what is wrong."""
    write(3)
    server.key = "vk_another"
    run("events", "send")
    found = doctor()
    assert found["events"]["value"] == "on (VOIGHT_KEY)"
    assert found["agent"]["value"] == "shop (VOIGHT_AGENT)"
    assert found["server"]["value"] == f"{server.url} (VOIGHT_EVENTS_URL)"
    assert found["rate"]["value"] == "60,000 a minute (VOIGHT_EVENTS_PER_MINUTE)"
    assert found["waiting"]["value"].startswith("3: ")
    assert "HTTP 401" in found["problem"]["value"]
    assert "voight events send" in found["problem"]["advice"]
    assert found["events"]["advice"] is None


@pytest.mark.slow
def test_doctor_of_a_key_that_nobody_uses(doctor: Doctor, server: EventServer, journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that does not ingest sends nothing: somebody else must, and with the key."""
    monkeypatch.setenv("VOIGHT_INGEST", "no")
    journal.mkdir()
    assert "no process ingests this journal" in doctor()["events"]["advice"]
    lock = IngestLock(journal)
    assert lock.acquire()
    assert "start that one with VOIGHT_KEY" in doctor()["events"]["advice"]
    assert open_outbox(journal, create=True) is not None
    assert doctor()["events"]["advice"] is None
    lock.release()


def test_doctor_of_an_outbox_that_cannot_be_read(doctor: Doctor, journal: Path) -> None:
    """The rest of the report is there."""
    Outbox(journal)
    (journal / FOLDER / "state.json").mkdir()
    assert "readable" in doctor()["waiting"]["advice"]


def test_doctor_of_other_services(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions and whether they are set, and never a secret."""
    monkeypatch.setenv("VOIGHT_HEADER_KEY", HEADER_KEYS)
    monkeypatch.setenv("VOIGHT_OTLP_TOKEN", "n" * 40)
    found = doctor()
    assert found["header key"]["value"] == "v2; accepted too: v1 (VOIGHT_HEADER_KEY)"
    assert found["otlp token"] == found["otlp token"] | {"value": "set (VOIGHT_OTLP_TOKEN)", "advice": None}
    monkeypatch.setenv("VOIGHT_OTLP_TOKEN", "short")
    assert "openssl rand" in doctor()["otlp token"]["advice"]
