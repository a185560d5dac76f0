"""Streams: however one ends, it is one call, with the outcome and the counts that the provider has reported."""

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import openai
import pytest

from voight_middleware import wrap
from voight_middleware.instrumentation.streams import AsyncMeteredIterator, MeteredIterator
from voight_middleware.records.call import Call
from voight_middleware.records.usage import Usage

from ..support.calls import Calls
from ..support.memory_provider import (
    CHAT_USAGE,
    SSE,
    USAGE,
    Provider,
    chat_chunk,
    chat_events,
    http_library,
    messages_events,
    responses_events,
    sse,
)
from .entry_points import CHAT, MESSAGES, RESPONSES, both_kinds

KINDS = pytest.mark.parametrize("kind", ["chat", "responses", "messages"])
PARTIAL = {
    "chat": Usage(input=3, output=1),
    "responses": Usage(input=2, output=1),
    "messages": Usage(input=100, cache_read=20, cache_write_5m=4, cache_write_1h=3, output=1),
}
"""What a stream comes to of which only its first piece of text was read: the input of a message is exact, the rest an estimate."""
FIRST_TEXT = {"chat": 2, "responses": 4, "messages": 3}
"""How many events it takes to see the first piece of text."""
EVENTS = {"chat": 6, "responses": 9, "messages": 9}


def begin(kind: str, client: Any) -> Any:
    """Start a stream; with an asynchronous client, to be awaited."""
    if kind == "chat":
        return client.chat.completions.create(**CHAT, stream=True)
    if kind == "responses":
        return client.responses.create(**RESPONSES, stream=True)
    return client.messages.create(**MESSAGES, stream=True)


@pytest.fixture
def client(kind: str, provider: Provider) -> Any:
    return wrap(provider.client("anthropic" if kind == "messages" else "openai"))


@pytest.fixture
def aclient(kind: str, provider: Provider) -> Any:
    return wrap(provider.client("anthropic" if kind == "messages" else "openai", asynchronous=True))


def is_whole(call: Call, kind: str) -> None:
    assert (call.outcome, call.usage, call.estimated) == ("ok", USAGE[kind], False)
    assert call.error is None


def is_partial(call: Call, kind: str, outcome: str = "aborted") -> None:
    assert (call.outcome, call.usage, call.estimated) == (outcome, PARTIAL[kind], True)
    assert (call.raw_usage is not None) == (kind == "messages")
    assert call.http_status == 200


# -- read to the end -------------------------------------------------------------------------------------------------------------


@KINDS
def test_a_stream_that_is_read_to_its_end_is_exact(kind: str, client: Any, calls: Calls) -> None:
    """A full read is one call, ended before anybody closes the stream."""
    stream = begin(kind, client)
    assert len(list(stream)) == EVENTS[kind]
    is_whole(calls.one(), kind)

    stream.close()
    del stream
    is_whole(calls.one(), kind)


@KINDS
async def test_an_asynchronous_stream_that_is_read_to_its_end_is_exact(kind: str, aclient: Any, calls: Calls) -> None:
    """The same with ``async for``."""
    stream = await begin(kind, aclient)
    assert len([event async for event in stream]) == EVENTS[kind]
    is_whole(calls.one(), kind)
    await stream.close()
    is_whole(calls.one(), kind)


@KINDS
def test_a_stream_may_be_read_in_another_thread(kind: str, client: Any, calls: Calls) -> None:
    """Begun here and read there, it is one whole call."""
    stream = begin(kind, client)
    thread = threading.Thread(target=lambda: list(stream))
    thread.start()
    thread.join()

    is_whole(calls.one(), kind)


@KINDS
def test_a_stream_that_is_left_after_its_last_event_is_whole(kind: str, client: Any, calls: Calls) -> None:
    """Who stops at the event that ends the answer has not broken anything off."""
    with begin(kind, client) as stream:
        for _ in range(EVENTS[kind]):
            next(stream)

    call = calls.one()
    assert call.outcome == "ok"
    assert call.estimated == (kind == "chat")  # its usage comes behind what the caller sees


def test_a_break_at_the_finish_reason_is_no_abortion(provider: Provider, calls: Calls) -> None:
    """The usual loop of a chat client leaves at ``finish_reason``: the answer was complete, its usage is an estimate."""
    client = wrap(provider.client("openai"))
    with client.chat.completions.create(**CHAT, stream=True) as stream:
        for chunk in stream:
            if chunk.choices[0].finish_reason:
                break

    call = calls.one()
    assert (call.outcome, call.estimated, call.usage) == ("ok", True, Usage(input=3, output=4))


# -- broken off ------------------------------------------------------------------------------------------------------------------


def close_it(stream: Any, events: int) -> None:
    for _ in range(events):
        next(stream)
    stream.close()


def leave_its_block(stream: Any, events: int) -> None:
    with stream:
        for number, _ in enumerate(stream, 1):
            if number == events:
                break


def raise_in_its_block(stream: Any, events: int) -> None:
    def read() -> None:
        with stream:
            for number, _ in enumerate(stream, 1):
                if number == events:
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()


def break_and_drop_it(stream: Any, events: int) -> None:
    for number, _ in enumerate(stream, 1):
        if number == events:
            break


def close_its_response(stream: Any, events: int) -> None:
    for _ in range(events):
        next(stream)
    stream.response.close()


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("how", [close_it, leave_its_block, raise_in_its_block, break_and_drop_it, close_its_response])
def test_a_stream_that_is_broken_off_is_aborted(how: Callable[[Any, int], None], kind: str, client: Any, calls: Calls) -> None:
    """Closed, left, dropped, or an exception of the caller's own: one call, with what was reported, and estimates flagged as such."""
    how(begin(kind, client), FIRST_TEXT[kind])
    gc.collect()  # a stream of openai's refers to itself

    is_partial(calls.one(), kind)


@KINDS
def test_a_stream_that_was_never_begun_is_aborted(kind: str, client: Any, calls: Calls) -> None:
    """Created and dropped: it was sent, so it is a call; nothing has come, so nothing is known of the output."""
    begin(kind, client)
    gc.collect()

    call = calls.one()
    assert (call.outcome, call.ttft) == ("aborted", None)
    assert call.estimated_output in (None, 0)


@KINDS
def test_a_stream_in_a_cycle_ends_with_the_garbage_collector(kind: str, client: Any, calls: Calls) -> None:
    """One that nothing but itself refers to is reported once it is collected."""

    class Holder:
        pass

    holder: Any = Holder()
    holder.me, holder.stream = holder, begin(kind, client)
    for _ in range(FIRST_TEXT[kind]):
        next(holder.stream)
    gc.collect()
    assert calls.all() == []

    del holder
    gc.collect()
    is_partial(calls.one(), kind)


@KINDS
def test_a_stream_that_is_still_open_is_no_call_yet(kind: str, client: Any, calls: Calls) -> None:
    """After a break the caller may go on reading; the call ends when they let go."""
    stream = begin(kind, client)
    for _ in stream:
        break
    assert calls.all() == []

    del stream
    gc.collect()
    assert calls.one().outcome == "aborted"


@KINDS
async def test_an_asynchronous_stream_that_is_closed_is_aborted(kind: str, aclient: Any, calls: Calls) -> None:
    """``await stream.close()`` in the middle of it."""
    stream = await begin(kind, aclient)
    for _ in range(FIRST_TEXT[kind]):
        await anext(stream)
    await stream.close()

    is_partial(calls.one(), kind)


@KINDS
async def test_an_asynchronous_stream_that_is_left_is_aborted(kind: str, aclient: Any, calls: Calls) -> None:
    """A break out of ``async for``, without a block, and dropped."""

    async def leave() -> None:
        number = 0
        async for _ in await begin(kind, aclient):
            number += 1
            if number == FIRST_TEXT[kind]:
                break

    await leave()
    for _ in range(5):  # the event loop closes what was left of the SDK's generators
        gc.collect()
        await asyncio.sleep(0)

    is_partial(calls.one(), kind)


@KINDS
async def test_a_cancelled_stream_is_cancelled(kind: str, aclient: Any, provider: Provider, calls: Calls) -> None:
    """A task that is cancelled while it waits for the next event."""
    seen = asyncio.Event()
    provider.pause_after = FIRST_TEXT[kind]

    async def read() -> None:
        number = 0
        async for _ in await begin(kind, aclient):
            number += 1
            if number == FIRST_TEXT[kind]:
                seen.set()

    task = asyncio.create_task(read())
    await seen.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    is_partial(calls.one(), kind, "cancelled")


# -- ended by the server ---------------------------------------------------------------------------------------------------------


@KINDS
@both_kinds
async def test_a_connection_that_breaks_is_an_error(
    asynchronous: bool, kind: str, client: Any, aclient: Any, provider: Provider, calls: Calls
) -> None:
    """The caller gets the SDK's own exception, and the call keeps what was reported until then."""
    provider.cut = FIRST_TEXT[kind]

    async def read(begun: Any) -> Exception:
        with pytest.raises(Exception, match=r"(?i)connection") as caught:
            _ = [event async for event in await begun] if asynchronous else list(begun)
        return caught.value

    bare = provider.client("anthropic" if kind == "messages" else "openai", asynchronous=asynchronous)
    expected = await read(begin(kind, bare))  # a class of the SDK's own, or of the HTTP library's: that depends on the SDK's version
    error = await read(begin(kind, aclient if asynchronous else client))

    assert (type(error), str(error)) == (type(expected), str(expected))
    is_partial(calls.one(), kind, "error")
    assert calls.one().error == type(expected).__name__


@KINDS
@both_kinds
async def test_a_stream_without_its_last_events_is_truncated(
    asynchronous: bool, kind: str, client: Any, aclient: Any, provider: Provider, calls: Calls
) -> None:
    """It ends in good order, but the provider never said that the answer is complete."""
    events = {"chat": chat_events(usage=True), "responses": responses_events(), "messages": messages_events()}[kind]
    provider.answer = lambda path, body: (200, SSE, events[: FIRST_TEXT[kind]])
    if asynchronous:
        assert len([event async for event in await begin(kind, aclient)]) == FIRST_TEXT[kind]
    else:
        assert len(list(begin(kind, client))) == FIRST_TEXT[kind]

    is_partial(calls.one(), kind, "truncated")


def test_an_error_event_in_a_chat_stream_is_an_error(provider: Provider, calls: Calls) -> None:
    """Some providers answer 200 and fail later: the SDK raises, and the call is an error."""
    provider.answer = lambda path, body: (200, SSE, sse(chat_chunk({"content": "hi"}), {"error": {"message": "overloaded"}}))
    with pytest.raises(openai.APIError, match="overloaded"):
        list(wrap(provider.client("openai")).chat.completions.create(**CHAT, stream=True))

    call = calls.one()
    assert (call.outcome, call.error, call.http_status) == ("error", "APIError", 200)


@pytest.mark.parametrize("leave", [False, True], ids=["read", "left"])
def test_a_failed_response_is_an_error_that_is_billed(leave: bool, provider: Provider, calls: Calls) -> None:
    """``response.failed`` raises nothing in the SDK; the call says it, and has the counts that came with it."""
    provider.answer = lambda path, body: (200, SSE, responses_events("response.failed"))
    with wrap(provider.client("openai")).responses.create(**RESPONSES, stream=True) as stream:
        for event in stream:
            if leave and event.type == "response.failed":
                break

    call = calls.one()
    assert (call.outcome, call.error, call.usage) == ("error", "response.failed", USAGE["responses"])


def test_an_incomplete_response_is_whole(provider: Provider, calls: Calls) -> None:
    """``response.incomplete`` (a token limit) ends an answer as well, with its counts."""
    provider.answer = lambda path, body: (200, SSE, responses_events("response.incomplete"))
    list(wrap(provider.client("openai")).responses.create(**RESPONSES, stream=True))

    is_whole(calls.one(), "responses")


def test_the_last_counts_of_a_message_are_the_ones_that_hold(provider: Provider, calls: Calls) -> None:
    """Where the server ran tools, ``message_delta`` raises the input as well; what it leaves out or leaves null stays."""
    last = {"input_tokens": 2411, "cache_read_input_tokens": None, "output_tokens": 45}
    events = [event for event in messages_events() if b"message_delta" not in event]
    deltas = [{"type": "message_delta", "delta": {"stop_reason": None}, "usage": usage} for usage in ({"input_tokens": 9}, last)]
    provider.answer = lambda path, body: (200, SSE, [*events[:-1], *sse(*deltas), events[-1]])
    list(wrap(provider.client("anthropic")).messages.create(**MESSAGES, stream=True))

    assert calls.one().usage == Usage(input=2411, cache_read=20, cache_write_5m=4, cache_write_1h=3, output=45)


def test_a_connection_that_breaks_behind_the_answer_costs_no_counts(provider: Provider, calls: Calls) -> None:
    """The usage had come already: the caller sees the break, and the call is exact."""
    provider.cut = len(chat_events(usage=True)) - 1
    with pytest.raises((openai.APIConnectionError, http_library(openai).RemoteProtocolError)):
        list(wrap(provider.client("openai")).chat.completions.create(**CHAT, stream=True))

    is_whole(calls.one(), "chat")


# -- the metered iterator itself -------------------------------------------------------------------------------------------------


@KINDS
def test_the_stream_is_the_sdks_own(kind: str, client: Any, provider: Provider, calls: Calls) -> None:
    """Class and response are what the SDK alone gives; only its iterator is ours."""
    stream = begin(kind, client)
    bare = begin(kind, provider.client("anthropic" if kind == "messages" else "openai"))

    assert type(stream) is type(bare)
    assert stream.response.status_code == 200
    assert isinstance(stream._iterator, MeteredIterator)
    assert not isinstance(bare._iterator, MeteredIterator | AsyncMeteredIterator)
    stream.close()
    bare.close()


def test_the_arguments_of_a_tool_count_as_output_of_a_stream_that_is_broken_off(provider: Provider, calls: Calls) -> None:
    """An answer that is nothing but a tool call is not estimated at zero tokens."""
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    pieces = [{"tool_calls": [{**call, "function": {"arguments": "12345678"}}]} for _ in range(5)]
    provider.answer = lambda path, body: (200, SSE, sse(chat_chunk({"tool_calls": [call]}), *map(chat_chunk, pieces)))
    list(wrap(provider.client("openai")).chat.completions.create(**CHAT, stream=True))

    assert (calls.one().outcome, calls.one().estimated_output) == ("truncated", 10)


def test_odd_chunks_are_read_as_far_as_they_go(provider: Provider, calls: Calls) -> None:
    """Azure's filter results have no delta, and a compatible server may leave out names, ids and choices: the usage still counts."""
    filtered = {"choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {}}], "model": 7, "id": None}
    provider.answer = lambda path, body: (200, SSE, sse(filtered, chat_chunk({"content": "hi"}), {"usage": CHAT_USAGE}))
    list(wrap(provider.client("openai")).chat.completions.create(**CHAT, stream=True))

    call = calls.one()
    assert (call.outcome, call.usage, call.model) == ("ok", USAGE["chat"], None)
