"""Raw HTTP: a fault of ours never reaches the caller."""

import gc
from typing import Any

import httpx
import pytest

from voight_middleware import tag, wrap

from ..support.calls import Calls
from ..support.memory_provider import (
    refusal,
)
from .entry_points import CHAT
from .faults import failing
from .raw_http import CASES, CHAT_URL, KINDS, answering, client_of, got, raw, sent

pytestmark = pytest.mark.slow  # a sweep over many cases

HOOKS = [
    "instrumentation.http:find",
    "instrumentation.http:_body",
    "instrumentation.http:current_meter",
    "instrumentation.http:RawHttpRequest",
    "instrumentation.http:Events",
    "instrumentation.http:Body",
    "instrumentation.http:watch_close",
    "RawHttpRequest.__init__",
    "RawHttpRequest.watch",
    "RawHttpRequest._refused",
    "RawHttpRequest._form",
    "RawHttpRequest._watch_events",
    "RawHttpRequest._watch_body",
    "gemini:prompt_of",
    "ContentParser.__init__",
    "ContentParser.feed",
    "ContentParser.summary",
    "bedrock:counted",
    "ConverseParser.feed",
    "InvokedParser.feed",
    "InvokedParser.summary",
    "instrumentation.request:current_context",
    "instrumentation.request:Call",
    "instrumentation.request:usage_text",
    "instrumentation.request:MeteredRequest.finish",
    "instrumentation.request:MeteredRequest._finish_as_usual",
    "Meter.finish_answer",
    "instrumentation.request:MeteredRequest.fail",
    "instrumentation.request:MeteredRequest.body_read",
    "instrumentation.request:MeteredRequest.read_by_hand",
    "instrumentation.request:MeteredRequest.stream_ended",
    "StreamCompletion.end",
    "instrumentation.streams:_closing_class",
    "event_formats:_loaded",
    "Events.__init__",
    "Events.take",
    "Events.feed",
    "Events.events",
    "Body.content",
    "event_formats:_decode_chunk",
    "Body.take",
    "ChatParser.feed",
    "TagContext.owner",
    "Meter.finish",
    "Journal.append",
]


async def everything(asynchronous: bool, prepare: Any) -> list[Any]:
    """What a caller sees of every case, of refusals, of cut streams and of failing transports."""
    seen: list[Any] = []
    for case in CASES:
        provider = answering(case)
        client = prepare(client_of(httpx, raw(provider, httpx), asynchronous))
        seen.append(await sent(client, case.url, case.body))
        provider.cut = 1 if case.streamed else 0
        with pytest.raises(httpx.RemoteProtocolError) as caught:
            await sent(client, case.url, case.body)
        seen.append(str(caught.value))
        provider.answer = lambda path, body: refusal(400)
        provider.cut = None
        seen.append(await got(client, case.url, case.body))

    def fail(request: Any) -> Any:
        raise httpx.ReadTimeout("no", request=request)

    with pytest.raises(httpx.ReadTimeout):
        await got(prepare(client_of(httpx, httpx.MockTransport(fail), asynchronous)), CHAT_URL, CHAT)
    return seen


_bare: dict[bool, list[Any]] = {}


async def bare_results(asynchronous: bool) -> list[Any]:
    """What the caller sees of the HTTP library alone, asked once."""
    if asynchronous not in _bare:
        _bare[asynchronous] = await everything(asynchronous, lambda client: client)
        gc.freeze()  # what the libraries have made at their first use is not looked at in each test
    return _bare[asynchronous]


@KINDS
@pytest.mark.parametrize("hook", HOOKS)
async def test_a_fault_of_ours_never_reaches_the_caller(hook: str, asynchronous: bool, own_calls: Calls) -> None:
    """Every byte and every exception is what the HTTP library alone gives, and the fault is counted."""
    bare = await bare_results(asynchronous)
    own_calls.faults_expected = True
    with tag(user_id="u_1"), failing(hook) as happened:
        assert await everything(asynchronous, wrap) == bare
        gc.collect()

    if (hook, asynchronous) != ("TagContext.owner", False):
        assert happened
        assert own_calls.faults > 0
