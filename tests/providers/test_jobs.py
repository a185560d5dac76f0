"""What a provider does later: batches, background responses, videos, runs. Each answer is one call, and belongs to who submitted it."""

import asyncio
import gzip
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from voight_middleware import Call, Usage, configure, meter, tag, wrap
from voight_middleware.ledger import open_ledger
from voight_middleware.meter import Meter, current_meter, swap_meter
from voight_middleware.providers import answers, bodies, entry, openai_jobs
from voight_middleware.settings import Settings

from ..support.calls import Calls
from ..support.memory_provider import (
    CHAT_USAGE,
    JSON,
    MESSAGES_USAGE,
    SSE,
    USAGE,
    Answer,
    Provider,
    messages_body,
    responses_body,
    responses_events,
)
from .entry_points import MESSAGES, RESPONSES, both_kinds

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
filming = pytest.mark.skipif(not hasattr(openai.resources, "Videos"), reason="an SDK without videos")


def as_json(body: Any) -> Answer:
    return 200, JSON, [json.dumps(body).encode()]


def kept(calls: Calls) -> list[Call]:
    """What the ledger has in the end: a call that is told of later is the same row."""
    assert calls.meter.flush(30)
    ledger = open_ledger(calls.meter.settings.ledger)
    try:
        return list(ledger.calls())
    finally:
        ledger.close()


class Elsewhere:
    """Another process with the same ledger: its own meter, and its own journal that is ingested before or after the first one's."""

    def __init__(self, calls: Calls, folder: Path) -> None:
        self.meter = Meter(Settings.from_environment(ledger=calls.meter.settings.ledger, journal=folder, environ={}))
        self._outer: Meter | None = None

    def __enter__(self) -> None:
        self._outer = swap_meter(self.meter)

    def __exit__(self, *exc_info: object) -> None:
        swap_meter(self._outer)

    def flush(self) -> None:
        assert self.meter.flush(30)


@pytest.fixture
def elsewhere(calls: Calls, tmp_path: Path) -> Any:
    made = Elsewhere(calls, tmp_path / "elsewhere")
    yield made
    made.meter.close()


# -- background responses ------------------------------------------------------------------------------------------------------------


def in_background(*states: str) -> Callable[[str, dict[str, Any]], Answer]:
    """A response that is in each of these states when it is asked for, and stays in the last one."""
    left = list(states)

    def answer(_path: str, body: dict[str, Any]) -> Answer:
        if body:
            return as_json(responses_body("queued", usage=False, background=True))
        state = left.pop(0) if len(left) > 1 else left[0]
        return as_json(responses_body(state, usage=state not in ("queued", "in_progress", "cancelled"), background=True))

    return answer


async def retrieve(client: Any, asynchronous: bool, **more: Any) -> Any:
    made = client.responses.retrieve("resp_1", **more)
    return await made if asynchronous else made


@both_kinds
async def test_a_background_response_is_one_call_however_often_it_is_retrieved(
    asynchronous: bool, provider: Provider, calls: Calls
) -> None:
    """It is known from the start, unpriced; the first answer with usage completes it; it stays with who submitted it."""
    client = wrap(provider.client("openai", asynchronous=asynchronous))
    provider.answer = in_background("queued", "in_progress", "completed")
    with tag(user_id="u_1", plan="pro"):
        made = client.responses.create(**RESPONSES, background=True)
        begun = await made if asynchronous else made

    (open_call,) = kept(calls)
    assert (open_call.usage, open_call.cost_usd, open_call.cost_status) == (None, None, "unpriced")
    assert open_call.cost_reasons == ("nobody has read yet what this job used",)

    with tag(user_id="u_2"):
        for _ in range(5):
            await retrieve(client, asynchronous)

    (call,) = kept(calls)
    assert (call.call_id, call.response_id) == (open_call.call_id, begun.id)
    assert (call.usage, call.cost_status) == (USAGE["responses"], "priced")
    assert (call.tags.user_id, call.tags.plan, call.attribution) == ("u_1", "pro", "tag")
    assert (call.occurred_at, call.requested_model) == (open_call.occurred_at, "gpt-4o-mini")


def test_a_stored_response_is_not_billed_again(provider: Provider, calls: Calls) -> None:
    """A response that was answered at once is one call, whoever reads it again."""
    client = wrap(provider.client("openai"))
    provider.answer = lambda path, body: as_json(responses_body())
    client.responses.create(**RESPONSES)
    for _ in range(3):
        client.responses.retrieve("resp_1")

    assert len(kept(calls)) == 1


@pytest.mark.parametrize("submitted_first", [True, False], ids=["submission first", "answer first"])
def test_the_answer_may_be_read_by_another_process(submitted_first: bool, provider: Provider, calls: Calls, elsewhere: Elsewhere) -> None:
    """Whichever journal is ingested first, the call is one, complete, and the submitter's."""
    client = wrap(provider.client("openai"))
    provider.answer = in_background("completed")

    def submit() -> None:
        with tag(user_id="u_1", plan="pro"):
            client.responses.create(**RESPONSES, background=True)
        assert calls.meter.flush(30)

    def read() -> None:
        with elsewhere, tag(user_id="worker"):
            client.responses.retrieve("resp_1")
        elsewhere.flush()

    for step in (submit, read) if submitted_first else (read, submit):
        step()

    (call,) = kept(calls)
    assert (call.tags.user_id, call.tags.plan, call.usage) == ("u_1", "pro", USAGE["responses"])


def test_a_background_response_that_is_streamed_is_one_call(provider: Provider, calls: Calls) -> None:
    """Streamed when it is made, and retrieved afterwards: the same call."""
    client = wrap(provider.client("openai"))

    def answer(_path: str, body: dict[str, Any]) -> Answer:
        if body:
            events = [event.replace(b'"created_at": 1', b'"created_at": 1, "background": true') for event in responses_events()]
            return 200, SSE, events
        return as_json(responses_body(background=True))

    provider.answer = answer
    with tag(user_id="u_1"):
        list(client.responses.create(**RESPONSES, background=True, stream=True))
    client.responses.retrieve("resp_1")

    (call,) = kept(calls)
    assert (call.tags.user_id, call.usage, call.outcome) == ("u_1", USAGE["responses"], "ok")


def test_a_background_stream_that_was_left_is_completed_when_it_is_retrieved(provider: Provider, calls: Calls) -> None:
    """The stream broke off without usage; the stored answer has it, exactly."""
    client = wrap(provider.client("openai"))

    def answer(_path: str, body: dict[str, Any]) -> Answer:
        if body:
            events = [event.replace(b'"created_at": 1', b'"created_at": 1, "background": true') for event in responses_events()]
            return 200, SSE, events
        return as_json(responses_body(background=True))

    provider.answer = answer
    with client.responses.create(**RESPONSES, background=True, stream=True) as stream:
        for _ in range(5):
            next(stream)
    assert kept(calls)[0].estimated
    client.responses.retrieve("resp_1")

    (call,) = kept(calls)
    assert (call.usage, call.estimated, call.outcome) == (USAGE["responses"], False, "ok")


def test_a_retrieved_stream_tells_too(provider: Provider, calls: Calls) -> None:
    """``retrieve(stream=True)`` ends with the usage."""
    client = wrap(provider.client("openai"))
    events = [event.replace(b'"created_at": 1', b'"created_at": 1, "background": true') for event in responses_events()]
    provider.answer = lambda path, body: as_json(responses_body("queued", usage=False, background=True)) if body else (200, SSE, events)
    with tag(user_id="u_1"):
        client.responses.create(**RESPONSES, background=True)
    list(client.responses.retrieve("resp_1", stream=True))

    (call,) = kept(calls)
    assert (call.usage, call.tags.user_id) == (USAGE["responses"], "u_1")


def test_a_cancelled_background_response_stays_unknown(provider: Provider, calls: Calls) -> None:
    """Its usage is null for good: the cost is not known, and that is said."""
    client = wrap(provider.client("openai"))
    provider.answer = in_background("cancelled")
    client.responses.create(**RESPONSES, background=True)
    client.responses.retrieve("resp_1")

    (call,) = kept(calls)
    assert (call.cost_usd, call.cost_status) == (None, "unpriced")


def test_a_background_response_that_failed_is_an_error(provider: Provider, calls: Calls) -> None:
    """What it used until then is billed."""
    client = wrap(provider.client("openai"))
    provider.answer = in_background("failed")
    client.responses.create(**RESPONSES, background=True)
    client.responses.retrieve("resp_1")

    (call,) = kept(calls)
    assert (call.outcome, call.error, call.usage) == ("error", "response.failed", USAGE["responses"])


def test_polling_that_fails_is_no_call(provider: Provider, calls: Calls) -> None:
    """Asking for a response costs nothing, whether it is there or not."""
    client = wrap(provider.client("openai"))
    provider.answer = lambda path, body: (404, JSON, [b'{"error": {"message": "no"}}'])
    with pytest.raises(Exception, match="no"):
        client.responses.retrieve("resp_1")

    assert kept(calls) == []


# -- batches -------------------------------------------------------------------------------------------------------------------------


def line(custom_id: str, body: Any, status: int = 200) -> dict[str, Any]:
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": f"batch_req_{custom_id}", "custom_id": custom_id, "response": response, "error": None}


def chat(number: int) -> dict[str, Any]:
    return {"id": f"chatcmpl-{number}", "object": "chat.completion", "model": "gpt-4o-mini-2024-07-18", "choices": [], "usage": CHAT_USAGE}


EMBEDDED = {"object": "list", "model": "text-embedding-3-small", "data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}}
LINES = [
    line("a", chat(1)),
    line("b", chat(2)),
    line("c", responses_body()),
    line("d", EMBEDDED),
    line("e", {"error": {"message": "no"}}, status=400),
    {"id": "batch_req_f", "custom_id": "f", "response": None, "error": {"code": "batch_expired", "message": "late"}},
]


def openai_batches(lines: list[dict[str, Any]] = LINES, **headers: str) -> Callable[[str, dict[str, Any]], Answer]:
    """OpenAI with one batch that is completed when it is asked for, and its file of answers."""
    batch = {"id": "batch_1", "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": "file-in", "created_at": 1}
    content = "\n".join(map(json.dumps, lines)).encode() + b"\n"

    def answer(path: str, body: dict[str, Any]) -> Answer:
        if path.endswith("/content"):
            parts = [content[start : start + 1000] for start in range(0, len(content), 1000)]
            return 200, {"content-type": "application/octet-stream", **headers}, parts
        done = {**batch, "status": "completed", "output_file_id": "file-out", "completion_window": "24h"}
        if body:
            return as_json({**batch, "status": "validating", "completion_window": "24h"})
        return as_json(done if path.endswith("/batch_1") else {"object": "list", "data": [done], "has_more": False})

    return answer


SUBMIT: dict[str, Any] = {"input_file_id": "file-in", "endpoint": "/v1/chat/completions", "completion_window": "24h"}


@both_kinds
@pytest.mark.parametrize("way", ["content", "raw", "opened"])
async def test_each_answer_of_a_batch_is_one_call(way: str, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """However often the file is read, each custom id is one call at the batch rate, and the submitter's; what failed is not billed."""
    client = wrap(provider.client("openai", asynchronous=asynchronous))
    provider.answer = openai_batches()

    async def done(made: Any) -> Any:
        return await made if asynchronous else made

    async def read() -> bytes:
        if way == "content":
            return (await done(client.files.content("file-out"))).content
        if way == "raw":
            return (await done(client.files.with_raw_response.content("file-out"))).http_response.content
        manager = client.files.with_streaming_response.content("file-out")
        if asynchronous:
            async with manager as response:
                return b"".join([part async for part in response.iter_bytes()])
        with manager as response:
            return b"".join(response.iter_bytes())

    with tag(user_id="u_1", plan="pro"):
        await done(client.batches.create(**SUBMIT))
    assert kept(calls) == []
    with tag(user_id="worker"):
        await done(client.batches.retrieve("batch_1"))
        for _ in range(2):
            assert (await read()).count(b"\n") == len(LINES)

    made = kept(calls)
    assert [(call.endpoint, call.usage) for call in sorted(made, key=lambda call: (call.endpoint, call.response_id or ""))] == [
        ("chat", USAGE["chat"]),
        ("chat", USAGE["chat"]),
        ("embeddings", USAGE["embeddings"]),
        ("responses", USAGE["responses"]),
    ]
    assert {(call.tags.user_id, call.tags.plan, call.batch, call.attribution) for call in made} == {("u_1", "pro", True, "tag")}


def test_a_batch_that_is_only_listed_is_linked_to_its_file(provider: Provider, calls: Calls) -> None:
    """``batches.list()`` names the file as well."""
    client = wrap(provider.client("openai"))
    provider.answer = openai_batches()
    with tag(user_id="u_1"):
        client.batches.create(**SUBMIT)
    list(client.batches.list())
    client.files.content("file-out")

    assert {call.tags.user_id for call in kept(calls)} == {"u_1"}


@pytest.mark.parametrize("order", ["submit link read", "read link submit", "link read submit", "read submit link"])
def test_the_submitter_owns_the_answers_in_whatever_order_they_come_in(
    order: str, provider: Provider, calls: Calls, elsewhere: Elsewhere
) -> None:
    """Journals of several processes are ingested in any order."""
    client = wrap(provider.client("openai"))
    provider.answer = openai_batches()

    def submit() -> None:
        with tag(user_id="u_1", plan="pro", feature="night"):
            client.batches.create(**SUBMIT)
        assert calls.meter.flush(30)

    def link() -> None:
        with elsewhere:
            client.batches.retrieve("batch_1")
        elsewhere.flush()

    def read() -> None:
        with elsewhere, tag(user_id="worker"):
            client.files.content("file-out")
        elsewhere.flush()

    for step in order.split():
        {"submit": submit, "link": link, "read": read}[step]()

    made = kept(calls)
    assert len(made) == 4
    assert {(call.tags.user_id, call.tags.plan, call.tags.extra["feature"]) for call in made} == {("u_1", "pro", "night")}


def test_a_batch_of_somebody_unknown_belongs_to_who_reads_it(provider: Provider, calls: Calls) -> None:
    """Submitted by a process that is not metered: better the reader than nobody."""
    client = wrap(provider.client("openai"))
    provider.answer = openai_batches()
    with tag(user_id="worker"):
        client.files.content("file-out")

    assert {call.tags.user_id for call in kept(calls)} == {"worker"}


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_large_file_of_answers_is_read_beside_the_caller(encoding: str, provider: Provider, calls: Calls) -> None:
    """Thousands of answers, whole and while they pass by."""
    many = [line(str(number), {**chat(number), "choices": [{"message": {"content": "x" * 300}}]}) for number in range(2_000)]
    client = wrap(provider.client("openai"))
    answer = openai_batches(many)

    def encoded(path: str, body: dict[str, Any]) -> Answer:
        status, headers, parts = answer(path, body)
        return (
            (status, {**headers, "content-encoding": "gzip"}, [gzip.compress(b"".join(parts))])
            if encoding == "gzip"
            else (status, headers, parts)
        )

    provider.answer = encoded
    whole = client.files.content("file-out").content
    with client.files.with_streaming_response.content("file-out") as response:
        assert b"".join(response.iter_bytes()) == whole
    for thread in [thread for thread in threading.enumerate() if thread.name == "voight-batch"]:
        thread.join(30)

    assert len(kept(calls)) == 2_000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"%PDF-1.4",
        b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n',
        b'{"prompt": "x"}\n',
        b"\xff\n",
    ],
    ids=["empty", "blank", "pdf", "input file", "training file", "binary"],
)
def test_any_other_file_is_no_batch(content: bytes, provider: Provider, calls: Calls) -> None:
    """Downloading a file is no call."""
    client = wrap(provider.client("openai"))
    provider.answer = lambda path, body: (200, {"content-type": "application/octet-stream"}, [content])
    assert client.files.content("file-x").content == content
    with client.files.with_streaming_response.content("file-x") as response:
        assert response.read() == content

    assert kept(calls) == []
    assert not calls.meter.counters


def test_a_file_that_is_only_begun_is_read_as_far_as_it_came(provider: Provider, calls: Calls) -> None:
    """Whole lines that have passed are calls; the rest comes when the file is read again."""
    client = wrap(provider.client("openai"))
    provider.answer = openai_batches([line(str(number), chat(number)) for number in range(20)])
    with client.files.with_streaming_response.content("file-out") as response:
        next(response.iter_bytes())
    some = len(kept(calls))
    assert 0 < some < 20
    client.files.content("file-out")

    assert len(kept(calls)) == 20


RESULTS = [
    {"custom_id": "a", "result": {"type": "succeeded", "message": messages_body({**MESSAGES_USAGE, "service_tier": "batch"})}},
    {"custom_id": "b", "result": {"type": "succeeded", "message": messages_body({**MESSAGES_USAGE, "service_tier": "batch"})}},
    {
        "custom_id": "c",
        "result": {"type": "errored", "error": {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}},
    },
    {"custom_id": "d", "result": {"type": "expired"}},
    {"custom_id": "e", "result": {"type": "canceled"}},
]


def anthropic_batches(path: str, _body: dict[str, Any]) -> Answer:
    """Anthropic with one batch that has ended when it is asked for."""
    if path.endswith("/results"):
        return 200, {"content-type": "application/x-jsonl"}, [json.dumps(one).encode() + b"\n" for one in RESULTS]
    counts = {"processing": 0, "succeeded": 2, "errored": 1, "canceled": 1, "expired": 1}
    url = "https://api.anthropic.com/v1/messages/batches/msgbatch_1/results"
    ended = path.endswith("/msgbatch_1")
    return as_json(
        {
            "id": "msgbatch_1",
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": counts,
            "results_url": url if ended else None,
        }
    )


def requests(**users: str) -> list[dict[str, Any]]:
    named = {name: {"metadata": {"user_id": user}} for name, user in users.items()}
    return [{"custom_id": name, "params": {**MESSAGES, **named.get(name, {})}} for name in "abcde"]


@both_kinds
@pytest.mark.parametrize("beta", [False, True], ids=["messages", "beta"])
async def test_each_result_of_a_message_batch_is_one_call(beta: bool, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """Read twice, and with a caller who sees every line."""
    client = wrap(provider.client("anthropic", asynchronous=asynchronous))
    batches = client.beta.messages.batches if beta else client.messages.batches
    provider.answer = anthropic_batches
    with tag(user_id="u_1", plan="pro"):
        made = batches.create(requests=requests())
        batch = await made if asynchronous else made
    with tag(user_id="worker"):
        for _ in range(2):
            found = batches.results(batch.id)
            seen = [one.custom_id async for one in await found] if asynchronous else [one.custom_id for one in found]
            assert seen == list("abcde")

    both = kept(calls)
    assert [(call.usage, call.batch, call.service_tier, call.model) for call in both] == [
        (USAGE["messages"], True, "batch", "claude-opus-4-8-20260101")
    ] * 2
    assert {(call.tags.user_id, call.tags.plan) for call in both} == {("u_1", "pro")}


def test_the_users_of_a_batch_that_names_them_are_kept_apart(provider: Provider, calls: Calls) -> None:
    """A batch that nobody owns, whose requests name a user each: the owner of last resort."""
    client = wrap(provider.client("anthropic"))
    provider.answer = anthropic_batches
    client.messages.batches.create(requests=requests(a="u_7"))
    list(client.messages.batches.results("msgbatch_1"))

    assert [(call.tags.user_id, call.attribution) for call in sorted(kept(calls), key=lambda call: call.tags.user_id or "")] == [
        (None, "none"),
        ("u_7", "request"),
    ]


def test_a_batch_of_somebody_belongs_to_him_whomever_it_names(provider: Provider, calls: Calls) -> None:
    """An explicit tag is above what a request says."""
    client = wrap(provider.client("anthropic"))
    provider.answer = anthropic_batches
    with tag(user_id="u_1"):
        client.messages.batches.create(requests=requests(a="u_7", b="u_8"))
    list(client.messages.batches.results("msgbatch_1"))

    assert {call.tags.user_id for call in kept(calls)} == {"u_1"}


async def test_results_that_are_left_are_completed_later(provider: Provider, calls: Calls) -> None:
    """Broken off after the first line, and read again."""
    client = wrap(provider.client("anthropic", asynchronous=True))
    provider.answer = anthropic_batches
    found = await client.messages.batches.results("msgbatch_1")
    async for _ in found:
        break
    await found.close()
    assert len(await asyncio.to_thread(kept, calls)) <= 2
    async for _ in await client.messages.batches.results("msgbatch_1"):
        pass

    assert len(await asyncio.to_thread(kept, calls)) == 2


# -- videos and runs -----------------------------------------------------------------------------------------------------------------


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
    (entry.Entry, "_submit"),
    (entry.Entry, "_submit_all"),
    (entry.Entry, "_line"),
    (entry.Entry, "lines_read"),
    (entry, "Submission"),
    (entry, "job_call_id"),
    (entry, "_digest"),
    (entry, "Lines"),
    (bodies.Lines, "take"),
    (bodies.Lines, "_hand_on"),
    (bodies.Lines, "done"),
    (openai_jobs, "_decode_batch"),
    (openai_jobs, "_decode_line"),
    (answers.Routes, "find"),
    (meter.Meter, "submit"),
    (meter.Meter, "link"),
    (meter.Meter, "finish"),
]


@pytest.mark.parametrize(("place", "name"), FAULTS, ids=[f"{place.__name__}.{name}" for place, name in FAULTS])
@both_kinds
async def test_a_fault_of_ours_never_reaches_who_runs_a_batch(
    place: Any, name: str, asynchronous: bool, provider: Provider, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
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

    def fail(*args: object, **kwargs: object) -> Any:
        raise RuntimeError(name)

    bare = await everything(provider.client("openai", asynchronous=asynchronous))
    with monkeypatch.context() as patch:
        patch.setattr(place, name, fail)
        assert await everything(wrap(provider.client("openai", asynchronous=asynchronous))) == bare
    assert calls.faults > 0
