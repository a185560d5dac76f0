"""While the server of the ledger is down, requests are not affected; afterwards every call arrives once."""

import itertools
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from voight_middleware.diagnostics import counters
from voight_middleware.pipeline.journal import segments
from voight_middleware.pipeline.meter import Meter
from voight_middleware.pipeline.supervisor import IngestSupervisor

from ..support.patching import Patch
from ..support.waiting import wait_until
from .journals import NewCall, finish, said, write
from .switched_server import Server


@pytest.mark.slow
def test_an_hour_without_the_server(server: Server, folder: Path, new_call: NewCall, patch: Patch) -> None:
    """It is tried after 1, 2, 4, … 30 seconds, each shortened at random; two sentences are said in all, and everything arrives once."""
    clock = SimpleNamespace(now=1000.0)
    patch("time", SimpleNamespace(monotonic=lambda: clock.now), within="supervisor")
    told: list[str] = []
    supervisor = IngestSupervisor("postgresql://h/d", folder, report=told.append)
    write(folder, new_call())
    assert supervisor.run()
    server.down = "connection refused"
    supervisor.close_ledger()
    times: list[float] = []
    calls = [new_call() for _ in range(300)]
    for number in range(7_200):
        tried = server.tried
        if number % 24 == 0:
            write(folder, calls[number // 24])
        assert not supervisor.run()
        if server.tried > tried:
            times.append(clock.now)
        clock.now += 0.5
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    for pause, longest in zip(pauses, [1.0, 2.0, 4.0, 8.0, 16.0, *[30.0] * len(pauses)], strict=False):
        assert longest / 2 <= pause <= longest + 0.5
    assert len(set(pauses[5:])) > 10, "many hosts must not come back at the same moment"
    assert told == ["calls stay in the journal for now: connection refused"]
    assert supervisor.pending_records() == 300
    server.down = None
    clock.now += 31
    assert supervisor.run()
    assert told[1:] == ["the ledger can be used again; it now has the 300 records that waited"]
    assert len(server.kept()) == 301
    assert set(server.kept()) > {call.call_id for call in calls}
    assert segments(folder) == []
    supervisor.close()


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
def test_requests_are_not_affected_and_the_log_is_short(
    server: Server, make_meter: Callable[..., Meter], new_call: NewCall, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls end as fast as ever while the server is down; each of two outages is said once when it begins and once when it is over."""
    meter = make_meter()
    ids = []
    for outage in (1, 2):
        server.down = f"outage {outage}"
        begun, tried = time.monotonic(), server.tried
        while server.tried < tried + 4:
            assert time.monotonic() < begun + 30
            before = time.thread_time()
            ids.append(finish(meter, new_call()))
            assert time.thread_time() - before < 0.05
            time.sleep(0.005)
        assert time.monotonic() - begun >= 0.17, "a server that is down is left alone longer and longer"
        server.down = None
        wait_until(lambda: server.path.exists() and len(server.kept()) == len(ids))
        assert meter.flush()
    assert server.kept() == sorted(ids)
    lines = said(caplog)
    assert [re.sub(r"[0-9,]+ records", "N records", line) for line in lines] == [
        "calls stay in the journal for now: outage 1",
        "the ledger can be used again; it now has the N records that waited",
        "calls stay in the journal for now: outage 2",
        "the ledger can be used again; it now has the N records that waited",
    ]
    assert counters["internal_errors"] == 0


@pytest.mark.slow
def test_flush_and_exit_try_at_once_and_keep_their_time(
    server: Server, make_meter: Callable[..., Meter], new_call: NewCall, caplog: pytest.LogCaptureFixture
) -> None:
    """However long the ledger is to be left alone: `flush()` and the end of the process ask it, and what stays behind is said once."""
    first = make_meter()
    ids = [finish(first, new_call())]
    assert first.close(), "what a first round imports may take longer than the test gives the others"
    meter = make_meter(exit_timeout=0.3)
    server.down = "connection refused"
    ids += [finish(meter, new_call()) for _ in range(3)]
    begun, tried = time.monotonic(), server.tried
    assert not meter.flush(1)
    assert server.tried > tried + 2
    assert not meter.close()
    assert not meter.close()
    assert time.monotonic() - begun < 5
    lines = said(caplog)
    assert [line for line in lines if line != "calls stay in the journal for now: connection refused"] == lines[1:2]
    assert lines[1] == f"up to 3 records of this process are not in the ledger yet and stay in the journal {meter.settings.journal}"
    server.down = None
    assert meter.flush()
    assert server.kept() == sorted(ids)


@pytest.mark.slow
def test_a_server_that_does_not_answer_holds_nobody_up(
    server: Server, make_meter: Callable[..., Meter], new_call: NewCall, caplog: pytest.LogCaptureFixture
) -> None:
    """Connected and silent: calls end, `flush()` and `close()` come back in their time, and nothing is lost or doubled when it wakes up."""
    meter = make_meter()
    ids = [finish(meter, new_call())]
    assert meter.flush()
    server.going.clear()
    for act in (lambda: meter.flush(0.3), lambda: meter.close(0.3)):
        ids += [finish(meter, new_call()) for _ in range(100)]
        begun = time.monotonic()
        assert not act()
        assert time.monotonic() - begun < 3
    assert said(caplog) == [f"up to 200 records are not in the ledger yet and stay in the journal {meter.settings.journal}"]
    server.going.set()
    ids.append(finish(meter, new_call()))
    assert meter.flush(30)
    assert server.kept() == sorted(ids)
