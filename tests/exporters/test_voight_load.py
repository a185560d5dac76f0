"""Events under load: nothing is felt on the path of a request, and the limit of the plan is kept."""

import itertools
import resource
import time
from datetime import UTC, datetime
from typing import Any

import pytest

import voight_middleware as voight
from voight_middleware.events import sender as events
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.records.tags import Tags

from ..support.depth import times
from ..support.event_server import EventServer, says
from .sending import close, kept, pump, spend

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.mark.slow
def test_a_server_that_is_down_is_not_felt(server: EventServer, configured: Any) -> None:
    """Without it no call takes longer, and all of them arrive afterwards, none twice."""

    def load(seconds: float) -> tuple[list[str], float]:
        ids: list[str] = []
        slowest: list[float] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            begun = time.perf_counter()
            ids.append(spend(f"u_{len(ids) % 50}"))
            slowest.append(time.perf_counter() - begun)
            time.sleep(0.01)
        return ids, sorted(slowest)[len(slowest) // 2]

    journal = configured()
    up, typical_up = load(times(1, 2))
    server.close()
    down, typical_down = load(times(2, 4))
    assert typical_down < typical_up * 3 + 0.001
    server.open()
    pump(server, len(up) + len(down), 60)
    assert sorted(server.call_ids()) == sorted(up + down)
    close()
    assert (kept(journal).waiting, kept(journal).state.sent) == (0, len(up) + len(down))


@pytest.mark.slow
def test_the_limit_of_the_plan_is_kept_without_running_in_circles(configured: Any) -> None:
    """A server that takes 120 a minute never has to refuse; spaced half a second apart, and the thread sleeps in between."""
    with EventServer(per_minute=120) as server:
        configured(events_url=server.url, events_per_minute=120)
        for _ in range(30):
            spend()
        pump(server, 1)
        busy = time.process_time()
        server.wait_for(5)
        busy = time.process_time() - busy
        close()
        gaps = [later - earlier for earlier, later in itertools.pairwise(server.times)]
        assert sum(gaps) > len(gaps) * 0.525 - 0.4, "the first may have been held up on its way"
        assert min(gaps) > 0.1
        assert len(server.events) == len(server.times)
        assert busy < 0.5, busy


@pytest.mark.slow
def test_a_backlog_of_ten_thousand_is_not_kept_in_memory(server: EventServer, configured: Any, new_call: Any) -> None:
    """A few hundred events are ready at a time; the rest is on disk, as ids."""
    server.fault = says(503)
    journal = configured(events_per_minute=600)
    meter = current_meter()
    for number in range(10_000):
        meter.journal.append(new_call(tags=Tags(user_id=f"u_{number}", extra={"note": "x" * 200}), attribution="tag"))
    assert meter.flush(60) or meter._worker is None
    spend()
    assert voight.flush(60)
    background = meter._worker
    assert background is not None
    assert background._supervisor is not None
    sender = background._supervisor._sender
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


@pytest.mark.slow
def test_many_calls_of_one_time_are_found(server: EventServer, configured: Any) -> None:
    """An import may give many calls one date: each is looked up by itself, and told twice it is one event."""
    configured()
    at = datetime(2026, 11, 3, tzinfo=UTC)
    ids = [f"row-{number}" for number in range(1, times(100, 300))]
    for _ in range(2):
        for call_id in ids:
            spend(call_id=call_id, occurred_at=at)
        assert voight.flush(60)
    pump(server, len(ids), 60)
    last = spend()
    pump(server, len(ids) + 1)
    assert sorted(server.call_ids()) == sorted([*ids, last])
