"""Streams that nobody ends: in cycles, in globals, in generators that are left suspended, and across a fork."""

import gc
import json
import os
from typing import Any

import pytest

from voight_middleware import flush, tag, wrap
from voight_middleware.pipeline import open_calls

from ..support.calls import Calls
from ..support.memory_provider import Provider
from .entry_points import CHAT, MESSAGES

STREAMS = {
    "chat": ("openai", lambda client: client.chat.completions.create(**CHAT, stream=True)),
    "messages": ("anthropic", lambda client: client.messages.create(**MESSAGES, stream=True)),
}


@pytest.fixture(params=list(STREAMS))
def begin(request: pytest.FixtureRequest, provider: Provider) -> Any:
    """Begins a stream of an SDK, and reads three events of it."""
    sdk, create = STREAMS[request.param]
    client = wrap(provider.client(sdk))

    def begin() -> Any:
        with tag(user_id="u_1"):
            stream = create(client)
        for _ in range(3):
            next(stream)
        return stream

    return begin


def test_a_stream_that_a_global_holds_ends_with_the_process(begin: Any, calls: Calls) -> None:
    """Its call is aborted, has its owner, and is counted once."""
    stream = begin()
    open_calls.end_all()
    call = calls.one()
    assert (call.outcome, call.tags.user_id) == ("aborted", "u_1")
    stream.close()
    open_calls.end_all()
    assert calls.one() == call


def test_a_stream_that_a_cycle_holds_ends_before_a_flush_returns(begin: Any, calls: Calls) -> None:
    """`flush()` looks for what is abandoned."""
    gc.disable()
    try:
        box: list[Any] = [begin()]
        box.append(box)
        del box
        flush()
        assert calls.one().outcome == "aborted"
    finally:
        gc.enable()


def test_a_flush_leaves_a_stream_alone_that_is_being_read(begin: Any, calls: Calls) -> None:
    """What comes after it is counted too."""
    stream = begin()
    flush()
    assert calls.all() == []
    list(stream)
    assert calls.one().outcome == "ok"


def test_the_rounds_of_the_background_thread_collect_what_is_abandoned(begin: Any, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """After two rounds in which nobody waited for an event."""
    monkeypatch.setattr(open_calls, "_next_look", 0.0)
    gc.disable()
    try:
        box: list[Any] = [begin()]
        box.append(box)
        del box
        open_calls.look_after()
        open_calls.look_after()
        assert calls.one().outcome == "aborted"
    finally:
        gc.enable()


def test_a_stream_that_is_held_costs_one_collection(begin: Any, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection takes half a second in a large application: it is not asked twice for the same stream."""
    stream = begin()
    collected: list[int] = []
    collect = gc.collect
    monkeypatch.setattr(open_calls, "look_after", lambda: None)  # the background thread's own collections are another test's
    monkeypatch.setattr(gc, "collect", lambda: collected.append(collect()))
    for _ in range(5):
        flush()
    assert len(collected) == 1
    stream.close()
    assert calls.one().outcome == "aborted"


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_a_body_that_is_read_by_hand_is_read_as_far_as_it_came(asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """The estimate is made of the text that has passed."""
    client = wrap(provider.client("openai", asynchronous=asynchronous))
    manager = client.chat.completions.with_streaming_response.create(**CHAT, stream=True)
    if asynchronous:
        response = await manager.__aenter__()
        lines = response.iter_lines()
        for _ in range(6):
            await anext(lines)
    else:
        response = manager.__enter__()
        lines = response.iter_lines()
        for _ in range(6):
            next(lines)
    open_calls.end_all()
    call = calls.one()
    assert call.outcome == "aborted"
    assert call.estimated_output
    if asynchronous:
        await manager.__aexit__(None, None, None)
    else:
        manager.__exit__(None, None, None)
    assert calls.one() == call


@pytest.mark.server
def test_a_stream_that_is_open_across_a_fork_is_its_parents(begin: Any, calls: Calls) -> None:
    """The child reports nothing of it, even if it drops it."""
    stream = begin()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            open_calls.end_all()
            stream._iterator._completion.drop()
            status = len(calls.heard) + calls.meter.journal.written
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    list(stream)
    assert calls.one().outcome == "ok"


@pytest.mark.slow
def test_a_flush_waits_for_a_large_file_of_batch_answers(provider: Provider, calls: Calls) -> None:
    """Each of its calls is in the ledger when `flush()` has returned."""
    body = {
        "id": "c",
        "object": "chat.completion",
        "model": "gpt-4o-mini",
        "choices": [],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1},
    }
    lines = [
        json.dumps({"id": f"b_{n}", "custom_id": f"r_{n}", "response": {"status_code": 200, "body": {**body, "note": "x" * 300}}})
        for n in range(1_000)
    ]
    provider.answer = lambda path, _: (200, {"content-type": "application/octet-stream"}, ["\n".join(lines).encode()])
    wrap(provider.client("openai")).files.content("file-1")
    assert flush()
    assert len(calls.all()) == 1_000


@pytest.mark.server
@pytest.mark.parametrize("end", ["pass", "import sys; sys.exit(0)", "raise SystemExit"], ids=["end", "sys.exit", "SystemExit"])
def test_a_script_ends_though_a_stream_is_half_read(end: str, scripts: Any) -> None:
    """And its call is in the ledger. Python 3.11 would wait for ever for a thread that a finalizer starts."""
    from voight_middleware.testing.provider import LoopbackProvider

    with LoopbackProvider() as loopback:
        scripts.run(
            f"""
            import openai, voight_middleware as voight
            client = voight.wrap(openai.OpenAI(base_url="{loopback.openai_base_url}", api_key="k"))
            with voight.tag(user_id="u_1"):
                stream = client.chat.completions.create(model="gpt-4o-mini", messages=[{{"role": "user", "content": "x"}}], stream=True)
            next(stream)
            cycle = [stream]
            cycle.append(cycle)
            {end}
            """
        )
    from voight_middleware.ledger import open_ledger

    ledger = open_ledger(str(scripts.ledger))
    (call,) = ledger.calls()
    ledger.close()
    assert (call.outcome, call.tags.user_id) == ("aborted", "u_1")
