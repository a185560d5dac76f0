"""Faults of ours: any failure inside the instrumentation is counted, and never reaches the caller."""

import gc
from collections.abc import Callable
from typing import Any

import pytest

from voight_middleware import record, tag, wrap
from voight_middleware.config.settings import Settings
from voight_middleware.pipeline import meter
from voight_middleware.providers import base as answers
from voight_middleware.providers.openai import text as openai

from ..support.calls import Calls
from ..support.depth import DEEP
from ..support.memory_provider import Answer, Provider, refusal, usual
from ..support.patching import Patch
from .entry_points import CHAT, WAYS, both_kinds
from .faults import Fault, failing

pytestmark = pytest.mark.slow  # a sweep over many cases

HOOKS = [
    "instrumentation.sdk:_provider",
    "instrumentation.wrap:start_request",
    "instrumentation.request:usage_on_a_line",
    "instrumentation.request:Answer",
    "instrumentation.request:MeteredRequest._finish_as_usual",
    "Meter.finish_answer",
    "instrumentation.request:current_context",
    "instrumentation.request:usage_text",
    "instrumentation.request:new_call_id",
    "instrumentation.request:Call",
    "instrumentation.request:estimate_tokens",
    "instrumentation.request:watch_close",
    "instrumentation.sdk:warn_once",
    "instrumentation.request:ResponseSummary",
    "instrumentation.request:Body",
    "instrumentation.sdk:MeteredIterator",
    "instrumentation.sdk:AsyncMeteredIterator",
    "instrumentation.request:StreamCompletion",
    "instrumentation.request:MeteredRequest.__init__",
    "SdkRequest.ask_for_usage",
    "instrumentation.request:MeteredRequest.finish",
    "instrumentation.request:MeteredRequest.fail",
    "instrumentation.request:MeteredRequest.body_read",
    "SdkRequest.watch",
    "SdkRequest._meter_stream",
    "SdkRequest._meter_when_parsed",
    "instrumentation.request:MeteredRequest.read_when_closed",
    "instrumentation.request:MeteredRequest.read_by_hand",
    "instrumentation.request:MeteredRequest.stream_ended",
    "StreamCompletion.end",
    "StreamCompletion.complete",
    "StreamCompletion.fail",
    "StreamCompletion.close",
    "StreamCompletion.drop",
    "instrumentation.streams:_closing_class",
    "Body.content",
    "Body.events",
    "openai.text:usage_json",
    "ChatParser.__init__",
    "ChatParser.feed",
    "ChatParser.summary",
    "ChatParser.estimated_output",
    "ResponsesParser.feed",
    "ResponsesParser.summary",
    "providers.anthropic:usage_json",
    "MessagesParser.feed",
    "MessagesParser.summary",
    "openai.text:text_or_none",
    "TagContext.owner",
    "records.tags:Tags.merge",
    "Meter.finish",
    "ListenerQueue.hold",
    "Meter._start",
    "Journal.append",
    "pipeline.journal:_encode",
]

CHOSEN = {
    "chat.create",
    "chat.create(stream)",
    "chat.stream",
    "chat.with_raw_response(stream).parse",
    "chat.with_streaming_response.read",
    "responses.create(stream)",
    "responses.with_streaming_response(stream).iter_lines",
    "messages.create",
    "messages.create(stream)",
    "messages.with_streaming_response(stream).iter_lines",
}


ANSWERED_ODDLY = CHOSEN if DEEP else {"chat.create", "chat.create(stream)", "messages.with_streaming_response(stream).iter_lines"}
"""The ways in that are refused, and answered with what cannot be read, besides being answered as usual."""
ANSWERS: list[Callable[[str, dict[str, Any]], Answer]] = [
    usual,
    lambda path, body: refusal(400),
    lambda path, body: (200, {"content-type": "application/json"}, [b"?"]),
]


async def everything(provider: Provider, prepare: Callable[[Any], Any], asynchronous: bool) -> list[Any]:
    """What a caller sees of many requests: whole ones, refused ones, odd ones, and streams that are cut or left."""
    seen = []
    for way in WAYS:
        if way.name in CHOSEN:
            for answer in ANSWERS if way.name in ANSWERED_ODDLY else ANSWERS[:1]:
                provider.answer = answer
                client = prepare(provider.client(way.sdk, asynchronous=asynchronous))
                try:
                    seen.append(await way.arun(client) if asynchronous else way.run(client))
                except Exception as error:
                    seen.append((type(error), str(error)))
    provider.answer = lambda path, body: refusal(400, "no stream_options") if "stream_options" in body else usual(path, body)
    client = prepare(provider.client("openai", asynchronous=asynchronous, base_url="https://old.example.com/v1"))
    made = client.chat.completions.create(**CHAT, stream=True)
    stream = await made if asynchronous else made
    seen.append([event.to_dict() async for event in stream] if asynchronous else [event.to_dict() for event in stream])
    provider.answer = usual
    for cut in (None, 3):
        provider.cut = cut
        client = prepare(provider.client("openai", asynchronous=asynchronous))
        made = client.chat.completions.create(**CHAT, stream=True)
        stream = await made if asynchronous else made
        for _ in range(2 if cut is None else 4):
            try:
                event = await anext(stream) if asynchronous else next(stream)
            except Exception as error:
                seen.append((type(error), str(error)))
            else:
                seen.append(event.to_dict())
        await stream.close() if asynchronous else stream.close()
    provider.cut = None
    return seen


_bare: dict[bool, list[Any]] = {}


async def bare_results(asynchronous: bool) -> list[Any]:
    """What the caller sees of an SDK alone, asked once."""
    if asynchronous not in _bare:
        _bare[asynchronous] = await everything(Provider(), lambda client: client, asynchronous)
        gc.freeze()  # what the libraries have made at their first use is not looked at in each test
    return _bare[asynchronous]


@both_kinds
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
async def test_a_fault_of_ours_never_reaches_the_caller(hook: str, asynchronous: bool, provider: Provider, own_calls: Calls) -> None:
    """Every result, event and exception is what the SDK alone gives, and the fault is counted."""
    bare = await bare_results(asynchronous)
    own_calls.faults_expected = True
    with tag(user_id="u_1"), failing(hook) as happened:
        seen = await everything(provider, wrap, asynchronous)
        gc.collect()

    assert seen == bare
    if (hook, asynchronous) not in {
        ("instrumentation.sdk:MeteredIterator", True),
        ("instrumentation.sdk:AsyncMeteredIterator", False),
        ("TagContext.owner", False),
    }:
        assert happened
        assert own_calls.faults > 0


@both_kinds
async def test_without_any_meter_the_caller_gets_his_answers(asynchronous: bool, provider: Provider, calls: Calls, patch: Patch) -> None:
    """A configuration that cannot even be read, such as a missing home directory, takes nothing down."""
    calls.faults_expected = True
    bare = await bare_results(asynchronous)

    def fail(**kwargs: object) -> Settings:
        raise RuntimeError("Could not determine home directory.")

    outer = meter.swap_meter(None)
    try:
        patch("Settings.from_environment", fail)
        seen = await everything(provider, wrap, asynchronous)
    finally:
        meter.swap_meter(outer)

    assert seen == bare


def test_a_reader_that_fails_costs_the_usage_and_not_the_call(provider: Provider, calls: Calls, patch: Patch) -> None:
    """The call is there, with its owner and without its counts."""

    def fail(self: object) -> answers.ResponseSummary:
        raise Fault

    calls.faults_expected = True
    patch("ChatParser.summary", fail)
    with tag(user_id="u_1"):
        list(wrap(provider.client("openai")).chat.completions.create(**CHAT, stream=True))

    call = calls.one()
    assert (call.outcome, call.tags.user_id, call.raw_usage) == ("ok", "u_1", None)
    assert calls.faults == 1


def test_an_endpoint_that_fails_costs_the_usage_and_not_the_call(provider: Provider, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for an answer that is not streamed."""

    def fail(body: bytes) -> answers.ResponseSummary:
        raise Fault

    calls.faults_expected = True
    monkeypatch.setitem(openai.ROUTES._posts, "/chat/completions", answers.Endpoint(name="chat", parse=fail))
    wrap(provider.client("openai")).chat.completions.create(**CHAT)

    assert (calls.one().outcome, calls.one().raw_usage) == ("ok", None)
    assert calls.faults == 1


def test_record_survives_a_journal_that_fails(calls: Calls, patch: Patch) -> None:
    """A call that is recorded by hand raises nothing either."""

    def fail(self: object, one: object) -> None:
        raise Fault

    calls.faults_expected = True
    patch("Journal.append", fail)

    assert record(provider="openai", model="gpt-4o-mini", usage={"prompt_tokens": 1, "completion_tokens": 1})
    assert calls.faults == 1
