"""Videos, runs of assistants, and what is switched off or fails: each job is one call."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from voight_middleware import Usage, configure, tag, wrap
from voight_middleware.pipeline.meter import current_meter, swap_meter

from ..support.calls import Calls
from ..support.memory_provider import (
    SSE,
    Answer,
    Provider,
)
from .batches import SUBMIT, as_json, chat, kept, line, openai_batches
from .entry_points import both_kinds
from .faults import failing

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def calls(own_calls: Calls) -> Calls:
    """The calls of a test, in a ledger of its own: jobs of other tests have the same names."""
    return own_calls


filming = pytest.mark.skipif(not hasattr(openai.resources, "Videos"), reason="an SDK without videos")


def video(status: str, **more: Any) -> dict[str, Any]:
    said = {"id": "video_1", "object": "video", "created_at": 1, "model": "sora-2", "seconds": "8", "size": "720x1280", "progress": 0}
    return {**said, "status": status, **more}


def videos(*states: str) -> Callable[[str, dict[str, Any]], Answer]:
    left = list(states)
    return lambda path, body: as_json(video("queued" if body else left.pop(0) if len(left) > 1 else left[0]))


@filming
@both_kinds
async def test_a_video_is_billed_by_its_seconds_once_it_is_completed(asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """Queued, polled and downloaded: one call."""
    client = wrap(provider.client("openai", asynchronous=asynchronous))
    provider.answer = videos("queued", "in_progress", "completed")
    with tag(user_id="u_1"):
        made = client.videos.create(prompt="a fjord", model="sora-2", seconds="8")
        _ = await made if asynchronous else made
    assert [call.usage for call in kept(calls)] == [None]
    for _ in range(4):
        made = client.videos.retrieve("video_1")
        _ = await made if asynchronous else made

    (call,) = kept(calls)
    assert (call.endpoint, call.usage, call.model, call.tags.user_id) == ("videos", Usage(seconds=8), "sora-2", "u_1")
    assert json.loads(call.raw_usage or "") == {"seconds": 8, "size": "720x1280"}


@filming
def test_a_video_that_failed_is_an_error_of_unknown_cost(provider: Provider, calls: Calls) -> None:
    """Whether it was billed is not said by the provider."""
    client = wrap(provider.client("openai"))
    provider.answer = videos("failed")
    client.videos.create(prompt="a fjord", model="sora-2", seconds="8")
    client.videos.retrieve("video_1")

    (call,) = kept(calls)
    assert (call.outcome, call.error, call.usage, call.cost_usd) == ("error", "failed", None, None)


@pytest.mark.skipif(not hasattr(getattr(openai.resources, "Videos", None), "extend"), reason="an SDK without extensions of videos")
def test_an_extension_is_billed_by_what_it_adds(provider: Provider, calls: Calls) -> None:
    """The video's own seconds are those of the whole."""
    client = wrap(provider.client("openai"))
    provider.answer = lambda path, body: as_json(video("queued" if path.endswith("extensions") else "completed", seconds="20"))
    client.videos.extend(prompt="more of it", seconds="4", video=("first.mp4", b"....", "video/mp4"))
    client.videos.retrieve("video_1")

    (call,) = kept(calls)
    assert call.usage == Usage(seconds=4)


RUN_USAGE = {"prompt_tokens": 300, "completion_tokens": 40, "total_tokens": 340, "prompt_token_details": {"cached_tokens": 100}}
RUN_COUNTS = Usage(input=200, cache_read=100, output=40)


def run(status: str, usage: Any = None) -> dict[str, Any]:
    said = {"id": "run_1", "object": "thread.run", "created_at": 1, "thread_id": "thread_1", "assistant_id": "asst_1"}
    return {**said, "status": status, "model": "gpt-4o-2024-08-06", "usage": usage, "tools": [], "instructions": ""}


@both_kinds
async def test_a_run_is_one_call_when_it_has_ended(asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """Polled until it is completed, and read once more."""
    client = wrap(provider.client("openai", asynchronous=asynchronous)).beta.threads.runs
    states = iter(["queued", "in_progress", "completed", "completed"])

    def answer(_path: str, body: dict[str, Any]) -> Answer:
        status = "queued" if body else next(states)
        return as_json(run(status, RUN_USAGE if status == "completed" else None))

    provider.answer = answer
    with tag(user_id="u_1"):
        made = client.create("thread_1", assistant_id="asst_1")
        _ = await made if asynchronous else made
    for _ in range(4):
        made = client.retrieve("run_1", thread_id="thread_1")
        _ = await made if asynchronous else made

    (call,) = kept(calls)
    assert (call.endpoint, call.usage, call.model, call.tags.user_id) == ("runs", RUN_COUNTS, "gpt-4o-2024-08-06", "u_1")


@pytest.mark.slow
@both_kinds
async def test_the_steps_of_a_streamed_run_are_not_counted_beside_it(asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """A step reports usage too, and the run reports all of it."""
    client = wrap(provider.client("openai", asynchronous=asynchronous)).beta.threads.runs

    def event(name: str, data: dict[str, Any]) -> bytes:
        return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()

    step = {"id": "step_1", "object": "thread.run.step", "run_id": "run_1", "status": "completed", "usage": RUN_USAGE}
    events = [
        event("thread.run.created", run("queued")),
        event("thread.run.step.completed", step),
        event("thread.run.completed", run("completed", RUN_USAGE)),
        b"event: done\ndata: [DONE]\n\n",
    ]
    provider.answer = lambda path, body: (200, SSE, events)
    made = client.create("thread_1", assistant_id="asst_1", stream=True)
    seen = [one.event async for one in await made] if asynchronous else [one.event for one in made]
    assert seen[-1] == "thread.run.completed"

    (call,) = kept(calls)
    assert (call.usage, call.outcome, call.streamed) == (RUN_COUNTS, "ok", True)


def test_a_run_that_waits_for_a_tool_goes_on_as_the_same_call(provider: Provider, calls: Calls) -> None:
    """The first stream ends without usage; the one with the tool's output has it."""
    client = wrap(provider.client("openai")).beta.threads.runs
    waiting = [f"event: thread.run.requires_action\ndata: {json.dumps(run('requires_action'))}\n\n".encode()]
    ended = [f"event: thread.run.completed\ndata: {json.dumps(run('completed', RUN_USAGE))}\n\n".encode()]
    provider.answer = lambda path, body: (200, SSE, ended if path.endswith("submit_tool_outputs") else waiting)
    with tag(user_id="u_1"):
        list(client.create("thread_1", assistant_id="asst_1", stream=True))
    list(client.submit_tool_outputs("run_1", thread_id="thread_1", tool_outputs=[], stream=True))

    (call,) = kept(calls)
    assert (call.usage, call.tags.user_id, call.outcome) == (RUN_COUNTS, "u_1", "ok")


def test_nothing_is_submitted_while_it_is_switched_off(provider: Provider, calls: Calls, tmp_path: Path) -> None:
    """No journal either."""
    client = wrap(provider.client("openai"))
    provider.answer = openai_batches()
    outer = swap_meter(None)
    try:
        configure(ledger=tmp_path / "off.db", enabled=False)
        client.batches.create(**SUBMIT)
        client.files.content("file-out")
        assert current_meter().journal.written == 0
    finally:
        swap_meter(outer)

    assert kept(calls) == []


FAULTS = [
    "instrumentation.request:MeteredRequest._submit",
    "instrumentation.request:MeteredRequest._submit_all",
    "instrumentation.request:MeteredRequest._line",
    "instrumentation.request:MeteredRequest.lines_read",
    "instrumentation.request:Submission",
    "instrumentation.request:job_call_id",
    "instrumentation.request:_digest",
    "instrumentation.request:Lines",
    "Lines.take",
    "Lines._hand_on",
    "Lines.done",
    "openai.jobs:_decode_batch",
    "openai.jobs:_decode_line",
    "Routes.find",
    "Meter.submit",
    "Meter.link",
    "Meter.finish",
]


@pytest.mark.slow
@pytest.mark.parametrize("hook", FAULTS)
@both_kinds
async def test_a_fault_of_ours_never_reaches_who_runs_a_batch(hook: str, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """Submitting, polling and reading go on, whatever fails inside, and the fault is counted."""
    calls.faults_expected = True
    provider.answer = openai_batches([line(str(number), chat(number)) for number in range(20)])

    async def everything(client: Any) -> list[Any]:
        async def done(made: Any) -> Any:
            return await made if asynchronous else made

        seen = [(await done(client.batches.create(**SUBMIT))).id, (await done(client.batches.retrieve("batch_1"))).output_file_id]
        seen.append((await done(client.files.content("file-out"))).content)
        manager = client.files.with_streaming_response.content("file-out")
        if asynchronous:
            async with manager as response:
                return [*seen, *[part async for part in response.iter_bytes()]]
        with manager as response:
            return [*seen, *response.iter_bytes()]

    bare = await everything(provider.client("openai", asynchronous=asynchronous))
    with failing(hook):
        assert await everything(wrap(provider.client("openai", asynchronous=asynchronous))) == bare
    assert calls.faults > 0
