"""Faults of ours: whatever fails inside the gate is counted, and the caller never hears of it."""

import gc
from collections.abc import Callable, Collection
from typing import Any

import pytest

from voight_middleware import journal, meter, record, tag, tags, wrap
from voight_middleware.providers import answers, anthropic, bodies, entry, openai, sdk, streams
from voight_middleware.settings import Settings

from ..support.calls import Calls
from ..support.memory_provider import Provider, refusal, usual
from .entry_points import CHAT, WAYS, both_kinds

HOOKS: list[tuple[Any, str]] = [
    (sdk, "_whose"),
    (entry, "current_frame"),
    (entry, "kept"),
    (entry, "new_call_id"),
    (entry, "Call"),
    (entry, "estimate_tokens"),
    (entry, "watch_close"),
    (sdk, "complain"),
    (entry, "Answer"),
    (entry, "Body"),
    (sdk, "Tap"),
    (sdk, "AsyncTap"),
    (entry, "Ending"),
    (entry.Entry, "__init__"),
    (sdk.SdkEntry, "_ask_for_usage"),
    (entry.Entry, "answered"),
    (entry.Entry, "failed"),
    (entry.Entry, "body_read"),
    (sdk.SdkEntry, "watch"),
    (sdk.SdkEntry, "_tap"),
    (sdk.SdkEntry, "_tap_when_parsed"),
    (entry.Entry, "read_when_closed"),
    (entry.Entry, "read_by_hand"),
    (entry.Entry, "stream_ended"),
    (streams.Ending, "end"),
    (streams.Ending, "exhausted"),
    (streams.Ending, "failed"),
    (streams.Ending, "closed"),
    (streams.Ending, "dropped"),
    (streams, "_closing_class"),
    (bodies.Body, "content"),
    (bodies.Body, "events"),
    (openai, "usage_json"),
    (openai.ChatReader, "__init__"),
    (openai.ChatReader, "see"),
    (openai.ChatReader, "answer"),
    (openai.ChatReader, "estimated_output"),
    (openai.ResponsesReader, "see"),
    (openai.ResponsesReader, "answer"),
    (anthropic, "usage_json"),
    (anthropic.MessagesReader, "see"),
    (anthropic.MessagesReader, "answer"),
    (openai, "text_or_none"),
    (tags.Frame, "owner"),
    (tags.Tags, "merge"),
    (meter.Meter, "finish"),
    (meter.Meter, "_hold"),
    (meter.Meter, "_start"),
    (journal.Journal, "append"),
    (journal, "_encode"),
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


class Fault(Exception):
    """Something of ours that fails."""


async def everything(provider: Provider, prepare: Callable[[Any], Any], asynchronous: bool, ways: Collection[str] = CHOSEN) -> list[Any]:
    """What a caller sees of many requests: whole ones, refused ones, odd ones, and streams that are cut or left."""
    seen = []
    for way in WAYS:
        if way.name in ways:
            for answer in (usual, lambda path, body: refusal(400), lambda path, body: (200, {"content-type": "application/json"}, [b"?"])):
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


@both_kinds
@pytest.mark.parametrize(("place", "name"), HOOKS, ids=[f"{getattr(place, '__name__', place)}.{name}" for place, name in HOOKS])
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
async def test_a_fault_of_ours_never_reaches_the_caller(
    place: Any, name: str, asynchronous: bool, provider: Provider, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every result, event and exception is what the SDK alone gives, and the fault is counted."""
    bare = await everything(provider, lambda client: client, asynchronous)
    happened = []
    calls.faults_expected = True

    def fail(*args: object, **kwargs: object) -> Any:
        happened.append(name)
        raise Fault(name)

    with monkeypatch.context() as patch, tag(user_id="u_1"):
        patch.setattr(place, name, fail)
        seen = await everything(provider, wrap, asynchronous)
        gc.collect()

    assert seen == bare
    if (name, asynchronous) not in {("Tap", True), ("AsyncTap", False), ("owner", False)}:
        assert happened
        assert calls.faults > 0


@both_kinds
async def test_without_any_meter_the_caller_gets_his_answers(
    asynchronous: bool, provider: Provider, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration that cannot even be read, such as a missing home directory, takes nothing down."""
    bare = await everything(provider, lambda client: client, asynchronous)

    def fail(**kwargs: object) -> Settings:
        raise RuntimeError("Could not determine home directory.")

    outer = meter.swap_meter(None)
    try:
        monkeypatch.setattr(Settings, "from_environment", fail)
        seen = await everything(provider, wrap, asynchronous)
    finally:
        meter.swap_meter(outer)

    assert seen == bare


def test_a_reader_that_fails_costs_the_usage_and_not_the_call(provider: Provider, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is there, with its owner and without its counts."""

    def fail(self: object) -> answers.Answer:
        raise Fault

    calls.faults_expected = True
    monkeypatch.setattr(openai.ChatReader, "answer", fail)
    with tag(user_id="u_1"):
        list(wrap(provider.client("openai")).chat.completions.create(**CHAT, stream=True))

    call = calls.one()
    assert (call.outcome, call.tags.user_id, call.raw_usage) == ("ok", "u_1", None)
    assert calls.faults == 1


def test_an_endpoint_that_fails_costs_the_usage_and_not_the_call(provider: Provider, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for an answer that is not streamed."""

    def fail(body: bytes) -> answers.Answer:
        raise Fault

    calls.faults_expected = True
    monkeypatch.setitem(openai.ROUTES._posts, "/chat/completions", answers.Endpoint(name="chat", read=fail))
    wrap(provider.client("openai")).chat.completions.create(**CHAT)

    assert (calls.one().outcome, calls.one().raw_usage) == ("ok", None)
    assert calls.faults == 1


def test_record_survives_a_journal_that_fails(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is recorded by hand raises nothing either."""

    def fail(self: object, one: object) -> None:
        raise Fault

    calls.faults_expected = True
    monkeypatch.setattr(journal.Journal, "append", fail)

    assert record(provider="openai", model="gpt-4o-mini", usage={"prompt_tokens": 1, "completion_tokens": 1})
    assert calls.faults == 1
