"""Raw HTTP: what goes through a metered transport of httpx or httpx2 to a provider is a call, and passes untouched."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import httpx2
import pytest

from voight_middleware import metered_transport, tag, wrap
from voight_middleware.context import context as tags
from voight_middleware.context.context import NOBODY
from voight_middleware.records.tags import Owner, Tags
from voight_middleware.records.usage import Usage

from ..support.calls import Calls
from ..support.memory_provider import (
    JSON,
    MESSAGES_USAGE,
    MODELS,
    SSE,
    USAGE,
    Provider,
    chat_body,
)
from .entry_points import CHAT
from .raw_http import (
    ANTHROPIC,
    ASKS,
    CASES,
    CHAT_URL,
    KINDS,
    LIBRARIES,
    OPENAI,
    Case,
    answering,
    client_of,
    got,
    raw,
    sent,
)


@pytest.mark.slow
@LIBRARIES
@KINDS
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_request_to_a_provider_is_one_call_and_passes_untouched(case: Case, asynchronous: bool, library: Any, calls: Calls) -> None:
    """Exactly one call with exactly the usage that was reported; the caller gets the same bytes in the same parts."""
    provider = answering(case)
    bare = client_of(library, raw(provider, library), asynchronous)
    client = client_of(library, metered_transport(raw(provider, library)), asynchronous)
    parts = await sent(bare, case.url, case.body)
    content = await got(bare, case.url, case.body)
    with tag(user_id="u_1"):
        assert await sent(client, case.url, case.body) == parts
        assert await got(client, case.url, case.body) == content

    assert provider.bodies == [case.body] * 4
    by_hand, at_once = calls.all()
    for call in (by_hand, at_once):
        assert (call.endpoint, call.provider, call.usage) == (case.endpoint, case.provider, case.usage)
        assert (call.requested_model, call.model, call.response_id) == (case.requested, case.model, case.identity)
        assert (call.outcome, call.http_status, call.error, call.streamed) == ("ok", 200, None, case.streamed)
        assert (call.attempts, call.estimated, call.tags.user_id) == (1, False, "u_1")
        assert (call.ttft is None) == (not case.streamed)
        assert (call.host, call.finish_reasons) == (library.URL(case.url).host, case.reasons)


# -- whose it is


@KINDS
async def test_a_call_belongs_to_whoever_sent_it(asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """Not to whoever reads its answer."""
    client = wrap(client_of(httpx2, raw(provider, httpx2), asynchronous))
    request = client.build_request("POST", CHAT_URL, json={**CHAT, **ASKS})
    with tag(user_id="u_1", plan="pro", feature="summary"):
        answer = client.send(request, stream=True)
        response = await answer if asynchronous else answer
    with tag(user_id="u_2"):
        await response.aread() if asynchronous else response.read()

    call = calls.one()
    assert (call.tags.user_id, call.tags.plan, dict(call.tags.extra)) == ("u_1", "pro", {"feature": "summary"})


class Asked:
    """A request's identity, of which something is known only when it is asked for."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()
        self.answer.set()

    def known(self) -> Owner:
        return NOBODY

    def resolve(self) -> Owner:
        return Owner(Tags(user_id="u_sync"), "getter")

    async def aresolve(self) -> Owner:
        await self.answer.wait()
        return Owner(Tags(user_id="u_async"), "getter")

    def identify(self, tags: Tags, attribution: str) -> None: ...

    def set_tags(self, tags: Tags) -> None: ...

    def await_settlement(self, call_id: str) -> None: ...


@KINDS
async def test_the_getters_of_a_request_are_asked_before_it_is_sent(asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """Awaited in asynchronous code. A task that is cancelled meanwhile has sent nothing: that is no call."""
    client = wrap(client_of(httpx, raw(provider, httpx), asynchronous))
    source = Asked()
    with tags.use_scope(source):
        await got(client, CHAT_URL, CHAT)
        assert (calls.one().tags.user_id, calls.one().attribution) == ("u_async" if asynchronous else "u_sync", "getter")
        if asynchronous:
            source.answer.clear()
            task = asyncio.create_task(got(client, CHAT_URL, CHAT))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert len(calls.all()) == len(provider.bodies) == 1


# -- requests that cannot be looked into


@LIBRARIES
async def test_a_request_that_is_streamed_up_is_not_read(library: Any, provider: Provider, calls: Calls) -> None:
    """Its model is not known; what the answer says is."""
    taken = []

    def upload() -> Iterator[bytes]:
        for part in (b'{"model": "gpt-4o-mini",', b'"messages": []}'):
            taken.append(part)
            yield part

    client = wrap(client_of(library, raw(provider, library)))
    client.post(CHAT_URL, content=upload())

    assert len(taken) == 2
    call = calls.one()
    assert (call.requested_model, call.model, call.usage) == (None, MODELS["chat"][1], USAGE["chat"])


@LIBRARIES
@KINDS
async def test_the_fields_of_a_form_are_known(asynchronous: bool, library: Any, calls: Calls) -> None:
    """A transcription says nothing of its model; the form that was sent does."""

    def handle(request: Any) -> Any:
        return library.Response(200, json={"text": "Hi", "usage": {"type": "duration", "seconds": 9}})

    client = wrap(client_of(library, library.MockTransport(handle), asynchronous))
    posted = client.post(f"{OPENAI}/audio/transcriptions", data={"model": "whisper-1"}, files={"file": ("a.wav", b"RIFF")})
    assert (await posted if asynchronous else posted).status_code == 200

    call = calls.one()
    assert (call.requested_model, call.endpoint) == ("whisper-1", "transcriptions")
    assert call.usage == Usage(seconds=9)
    assert call.cost_usd


@pytest.mark.parametrize("content", [b"", b"[]", b"{?", b"\xff"])
async def test_a_body_that_is_no_json_object_is_unknown(content: bytes, calls: Calls) -> None:
    client = wrap(client_of(httpx, httpx.MockTransport(lambda request: httpx.Response(200, json=chat_body()))))
    client.post(CHAT_URL, content=content)

    assert calls.one().requested_model is None


# -- batches, assistants


async def test_a_batch_belongs_to_who_submitted_it(calls: Calls) -> None:
    """Its answers are read by somebody else, line by line as they pass."""
    line = {
        "custom_id": "a",
        "result": {"type": "succeeded", "message": {"id": "msg_1", "model": "claude-opus-4-8", "usage": MESSAGES_USAGE}},
    }
    provider = Provider()
    provider.answer = lambda path, body: (
        (200, {"content-type": "application/x-jsonl"}, [json.dumps(line).encode(), b"\n"])
        if path.endswith("results")
        else (200, JSON, [b'{"id": "b_1"}'])
    )
    client = wrap(client_of(httpx, raw(provider, httpx)))
    with tag(user_id="u_1"):
        await got(client, f"{ANTHROPIC}/messages/batches", {"requests": []})
    await sent(client, f"{ANTHROPIC}/messages/batches/b_1/results", None, method="GET")

    call = calls.one()
    assert (call.batch, call.usage, call.endpoint, call.tags.user_id) == (True, USAGE["messages"], "messages", "u_1")


async def test_an_assistants_run_is_told_by_the_names_of_its_events(calls: Calls) -> None:
    run = {"id": "run_1", "model": "gpt-4o", "status": "completed", "created_at": 1, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    begun = {**run, "status": "queued", "usage": None}
    parts = [f"event: thread.run.{one['status']}\ndata: {json.dumps(one)}\n\n".encode() for one in (begun, run)]
    provider = Provider()
    provider.answer = lambda path, body: (200, SSE, parts)
    await sent(wrap(client_of(httpx, raw(provider, httpx))), f"{OPENAI}/threads/t_1/runs", {"assistant_id": "a_1", "stream": True})

    call = calls.one()
    assert (call.outcome, call.model, call.usage) == ("ok", "gpt-4o", Usage(input=3, output=2))
