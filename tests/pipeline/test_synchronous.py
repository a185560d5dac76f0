"""Synchronous delivery: a call is in the ledger when it ends."""

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.ledger.sqlite import SQLiteLedger
from voight_middleware.middleware.asgi import CostTagMiddleware
from voight_middleware.pipeline.meter import Meter, current_meter, swap_meter
from voight_middleware.records.tags import Owner, Tags

from .journals import NOBODY, NOBODYS, NewCall, finish
from .switched_server import Server


def test_synchronous_calls_are_in_the_ledger_when_they_end(server: Server, make_meter: Callable[..., Meter], new_call: NewCall) -> None:
    """Each call and each late owner is in the ledger when the caller goes on, as the platform may freeze the process then."""
    meter = make_meter(delivery="synchronous")
    ids = []
    for _ in range(5):
        ids.append(finish(meter, new_call()))
        assert server.kept() == sorted(ids)
    meter.attribute_late([ids[0]], Owner(Tags(user_id="late"), "settled"))
    with closing(SQLiteLedger(server.path)) as ledger:
        assert [call.call_id for call in ledger.calls({"user_id": "late"})] == [ids[0]]


@pytest.mark.slow
def test_synchronous_delivery_waits_once_for_a_server_that_is_down(
    server: Server, make_meter: Callable[..., Meter], new_call: NewCall
) -> None:
    """The call that finds the ledger down returns at once, or after `exit_timeout` where nothing answers; those behind do not wait."""
    meter = make_meter(delivery="synchronous", exit_timeout=0.5)
    server.down = "down"
    begun = time.monotonic()
    ids = [finish(meter, new_call()) for _ in range(50)]
    assert time.monotonic() - begun < 3
    assert server.tried <= 5
    server.down = None
    assert meter.flush()
    server.going.clear()
    begun = time.monotonic()
    ids.append(finish(meter, new_call()))
    assert 0.4 < time.monotonic() - begun < 3
    server.going.set()
    assert meter.flush()
    assert server.kept() == sorted(ids)


async def test_synchronous_delivery_never_waits_on_an_event_loop(
    server: Server, make_meter: Callable[..., Meter], new_call: NewCall
) -> None:
    """There the round is only begun at once; a `flush` in a thread, or `hand_over`, waits for it."""
    meter = make_meter(delivery="synchronous", exit_timeout=30)
    server.going.clear()
    begun = time.monotonic()
    ids = [finish(meter, new_call()) for _ in range(20)]
    assert time.monotonic() - begun < 2
    server.going.set()
    await asyncio.to_thread(meter.flush_if_synchronous)
    assert server.kept() == sorted(ids)
    ids.append(finish(meter, new_call()))
    for _ in range(90):
        if len(server.kept()) == 21:
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("the round was not begun at once")


@pytest.mark.slow
async def test_synchronous_delivery_waits_at_the_end_of_an_asynchronous_request(
    server: Server, make_meter: Callable[..., Meter], new_call: NewCall
) -> None:
    """When the server is told that a request is over, and may be frozen, its calls are in the ledger; the loop has gone on meanwhile."""
    old = swap_meter(make_meter(delivery="synchronous", exit_timeout=30))
    ids: list[str] = []
    ticks = 0

    async def app(*_: Any) -> None:
        server.going.clear()
        ids.append(finish(current_meter(), new_call()))
        asyncio.get_running_loop().call_later(0.3, server.going.set)

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    try:
        middleware: Any = CostTagMiddleware(app)
        await middleware({"type": "http", "headers": []}, None, None)
        assert server.kept() == ids
        assert ticks > 5
    finally:
        ticking.cancel()
        swap_meter(old)


def test_a_stream_that_is_collected_while_delivery_is_synchronous(
    server: Server, make_meter: Callable[..., Meter], new_call: NewCall
) -> None:
    """A dropped stream's call may end inside any code of ours, wherever the collector runs: nothing waits for itself."""
    meter = make_meter(delivery="synchronous", exit_timeout=5)
    ids: list[str] = []

    def interrupt(frame: Any, event: str, arg: Any) -> Any:
        path = frame.f_code.co_filename
        if event == "call" and not busy and ("voight_middleware" in path or path.endswith(("queue.py", "threading.py"))):
            seen.add((Path(path).name, frame.f_code.co_name))
            if len(seen) > len(done):
                done.update(seen)
                busy.append(1)
                ids.append(finish(meter, new_call()))
                busy.clear()
        return None

    busy: list[int] = []
    seen: set[tuple[str, str]] = set()
    done: set[tuple[str, str]] = set()
    begun = time.monotonic()
    sys.setprofile(interrupt)
    try:
        for _ in range(3):
            call = new_call()
            ids.append(call.call_id)
            meter.finish(call, NOBODY, NOBODYS)
    finally:
        sys.setprofile(None)
    assert len(done) > 5
    assert time.monotonic() - begun < 4, "nothing waits for what it holds itself"
    assert meter.flush()
    assert server.kept() == sorted(set(ids))
