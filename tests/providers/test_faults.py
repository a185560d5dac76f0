"""What goes wrong at the provider, or on the way there: the caller gets the SDK's own exception, and the call says what happened."""

import asyncio
import contextlib
import gc
import gzip
import json
import threading
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from voight_middleware import wrap
from voight_middleware.config.settings import Settings
from voight_middleware.context.context import NOBODY, TagContext
from voight_middleware.diagnostics import counters
from voight_middleware.pipeline.meter import Meter
from voight_middleware.pipeline.worker import IngestWorker
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage

from ..support.calls import Calls
from ..support.memory_provider import (
    CHAT_USAGE,
    JSON,
    SSE,
    USAGE,
    Provider,
    chat_body,
    http_library,
    messages_body,
    refusal,
    responses_body,
    sse,
    usual,
)
from ..support.patching import Patch
from .entry_points import CHAT, MESSAGES, RESPONSES, Way, both_kinds, ways

SDKS = pytest.mark.parametrize("sdk", ["openai", "anthropic"])


def send(client: Any, sdk: str, **options: Any) -> Any:
    """One plain request; with an asynchronous client, to be awaited."""
    return client.chat.completions.create(**CHAT, **options) if sdk == "openai" else client.messages.create(**MESSAGES, **options)


# -- retries and refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@SDKS
@both_kinds
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_retries_are_attempts_of_one_call(sdk: str, asynchronous: bool, stream: bool, provider: Provider, calls: Calls) -> None:
    """429, 500, 200 is one call that took three attempts."""
    provider.answer_in_turn(refusal(429), refusal(500), None)
    client = wrap(provider.client(sdk, asynchronous=asynchronous, max_retries=2))
    result = send(client, sdk, stream=stream)
    if asynchronous:
        result = await result
        if stream:
            _ = [event async for event in result]
    elif stream:
        list(result)

    call = calls.one()
    assert (call.outcome, call.attempts, call.http_status) == ("ok", 3, 200)
    assert call.usage == USAGE["chat" if sdk == "openai" else "messages"]


@pytest.mark.slow
@SDKS
@both_kinds
@pytest.mark.parametrize(
    ("status", "error"),
    [(400, "BadRequestError"), (401, "AuthenticationError"), (404, "NotFoundError"), (429, "RateLimitError"), (500, "InternalServerError")],
)
async def test_a_refusal_is_an_error_that_cost_nothing(
    status: int, error: str, sdk: str, asynchronous: bool, provider: Provider, calls: Calls
) -> None:
    """The caller gets the SDK's own exception, and the call has its class and status, and no usage."""
    provider.answer_in_turn(refusal(status, "secret words"))
    client = wrap(provider.client(sdk, asynchronous=asynchronous))
    with pytest.raises(getattr(openai if sdk == "openai" else anthropic, error), match="secret words"):
        await send(client, sdk) if asynchronous else send(client, sdk)

    call = calls.one()
    assert (call.outcome, call.error, call.http_status, call.attempts) == ("error", error, status, 1)
    assert (call.usage, call.raw_usage, call.estimated) == (None, None, False)
    assert "secret" not in repr(call)


@SDKS
def test_a_refusal_after_retries_counts_them(sdk: str, provider: Provider, calls: Calls) -> None:
    """Three attempts, and none of them served."""
    provider.answer = lambda path, body: refusal(503)
    with pytest.raises((openai.InternalServerError, anthropic.InternalServerError)):
        send(wrap(provider.client(sdk, max_retries=2)), sdk)

    assert len(provider.bodies) == 3
    assert (calls.one().attempts, calls.one().http_status) == (3, 503)


@SDKS
@both_kinds
async def test_a_connection_that_is_refused_is_an_error_without_status(sdk: str, asynchronous: bool, calls: Calls) -> None:
    """Nobody listens on that port: there is no answer, and so no status."""
    make: Any = {
        ("openai", False): openai.OpenAI,
        ("openai", True): openai.AsyncOpenAI,
        ("anthropic", False): anthropic.Anthropic,
        ("anthropic", True): anthropic.AsyncAnthropic,
    }[sdk, asynchronous]
    client = wrap(make(api_key="k", base_url="http://127.0.0.1:1/v1", max_retries=0))
    with pytest.raises((openai.APIConnectionError, anthropic.APIConnectionError)):
        await send(client, sdk) if asynchronous else send(client, sdk)
    await client.close() if asynchronous else client.close()

    call = calls.one()
    assert (call.outcome, call.error, call.http_status, call.host) == ("error", "APIConnectionError", None, "127.0.0.1")


@SDKS
def test_a_timeout_is_an_error(sdk: str, provider: Provider, calls: Calls) -> None:
    """Attempts that timed out are counted."""

    def late(path: str, body: dict[str, Any]) -> Any:
        raise http_library(openai if sdk == "openai" else anthropic).ReadTimeout("late")

    provider.answer = late
    with pytest.raises((openai.APITimeoutError, anthropic.APITimeoutError)):
        send(wrap(provider.client(sdk)), sdk)

    assert (calls.one().outcome, calls.one().error) == ("error", "APITimeoutError")


async def test_a_cancelled_request_is_cancelled(calls: Calls, provider: Provider) -> None:
    """A task that is cancelled before the answer has come."""
    client = wrap(provider.client("openai", asynchronous=True))
    provider.pause_after = 0
    sent = asyncio.Event()

    def answer(path: str, body: dict[str, Any]) -> Any:
        sent.set()
        return usual(path, body)

    provider.answer = answer
    task = asyncio.create_task(client.chat.completions.create(**CHAT))
    await sent.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (calls.one().outcome, calls.one().error, calls.one().usage) == ("cancelled", "CancelledError", None)


@SDKS
def test_what_is_no_exception_of_the_sdks_is_passed_on(sdk: str, provider: Provider, calls: Calls) -> None:
    """A worker that is told to stop gets the very object that it was told to stop with."""
    stop = KeyboardInterrupt("enough")

    def broken(path: str, body: dict[str, Any]) -> Any:
        raise stop

    provider.answer = broken
    with pytest.raises(KeyboardInterrupt) as caught:
        send(wrap(provider.client(sdk)), sdk)

    assert caught.value is stop
    assert (calls.one().outcome, calls.one().error) == ("cancelled", "KeyboardInterrupt")


# -- odd answers -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("body", [b"<html>", b"[]", b'"hi"', b"", b"\xff"], ids=["html", "array", "text", "nothing", "binary"])
def test_an_answer_that_is_none_is_counted(body: bytes, provider: Provider, calls: Calls) -> None:
    """Whatever the SDK makes of it, it is a call without usage, and visible as unreadable."""
    provider.answer = lambda path, sent: (200, JSON, [body])
    try:
        result: Any = send(wrap(provider.client("openai")), "openai")
    except Exception as error:
        result = error
    try:
        bare: Any = send(provider.client("openai"), "openai")
    except Exception as error:
        bare = error

    assert (type(result), repr(result)) == (type(bare), repr(bare))
    assert calls.one().raw_usage is None
    assert counters["unreadable_responses"] == 1


@pytest.mark.parametrize(
    ("changes", "usage"),
    [
        ({"id": 7}, USAGE["chat"]),
        ({"id": None, "model": None, "service_tier": {"name": "odd"}}, USAGE["chat"]),
        ({"usage": None}, None),
        ({"usage": {}}, Usage()),
        ({"usage": {"prompt_tokens": 3}}, Usage(input=3)),
        (
            {"usage": {**CHAT_USAGE, "cost": 0.5, "prompt_tokens_details": None, "completion_tokens_details": "?"}},
            Usage(input=120, output=45),
        ),
    ],
    ids=["number as id", "nulls", "no usage", "empty usage", "half a usage", "odd usage"],
)
def test_a_compatible_servers_own_ideas_cost_no_usage(
    changes: dict[str, Any], usage: Usage | None, provider: Provider, calls: Calls
) -> None:
    """What is odd about an answer is left out, and its usage counts; a missing count is None, and not 0."""
    provider.answer = lambda path, sent: (200, JSON, [json.dumps({**chat_body(), **changes}).encode()])
    send(wrap(provider.client("openai")), "openai")

    assert calls.one().usage == usage
    assert counters["unreadable_responses"] == 0


def test_a_response_without_output_is_read(provider: Provider, calls: Calls) -> None:
    """``"output": null`` is no reason to lose the counts."""
    provider.answer = lambda path, sent: (200, JSON, [json.dumps(responses_body(output=None)).encode()])
    wrap(provider.client("openai")).responses.with_raw_response.create(**RESPONSES)

    assert calls.one().usage == USAGE["responses"]


def test_a_usage_that_contradicts_itself_is_priced_by_its_totals(provider: Provider, calls: Calls) -> None:
    """More cached tokens than input tokens: the totals are billed, the cost is partial and says why, and the JSON is kept."""
    usage = {**CHAT_USAGE, "prompt_tokens_details": {"cached_tokens": 9999}}
    provider.answer = lambda path, sent: (200, JSON, [json.dumps({**chat_body(), "usage": usage}).encode()])
    send(wrap(provider.client("openai")), "openai")

    call = calls.one()
    assert json.loads(call.raw_usage or "") == usage
    assert call.usage is not None
    assert (call.usage.input_tokens, call.usage.output_tokens, call.cost_status) == (120, 45, "partial")
    assert "add up to more than its 120" in call.cost_reasons[0]


def test_a_usage_that_is_spread_over_lines_is_kept_on_one(provider: Provider, calls: Calls) -> None:
    """A journal line is one line, however the provider formats its JSON."""
    provider.answer = lambda path, sent: (200, JSON, [json.dumps(chat_body(), indent=4).encode()])
    send(wrap(provider.client("openai")), "openai")

    assert "\n" not in (calls.one().raw_usage or "")
    assert calls.one().usage == USAGE["chat"]


def test_a_message_stream_without_usage_is_estimated(provider: Provider, calls: Calls) -> None:
    """A server that speaks Anthropic's events and counts nothing."""
    start = {key: value for key, value in messages_body(text=None).items() if key != "usage"}
    text = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "12345678"}}
    provider.answer = lambda path, sent: (200, SSE, sse({"type": "message_start", "message": start}, text, {"type": "message_stop"}))
    list(send(wrap(provider.client("anthropic")), "anthropic", stream=True))

    assert (calls.one().outcome, calls.one().estimated_output, calls.one().raw_usage) == ("ok", 2, None)


# -- bodies that are read by hand ------------------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("read", [0, 1])
async def test_a_body_that_is_left_unread_is_aborted(read: int, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """``with_streaming_response`` left before the end: one call, and nothing is known of its usage."""
    whole = json.dumps(chat_body()).encode()
    provider.answer = lambda path, sent: (200, JSON, [whole[:20], whole[20:]])
    client = wrap(provider.client("openai", asynchronous=asynchronous))
    if asynchronous:
        async with client.chat.completions.with_streaming_response.create(**CHAT) as aresponse:
            parts = aresponse.iter_bytes()
            for _ in range(read):
                await anext(parts)
    else:
        with client.chat.completions.with_streaming_response.create(**CHAT) as response:
            few = response.iter_bytes()
            for _ in range(read):
                next(few)

    assert (calls.one().outcome, calls.one().raw_usage, calls.one().http_status) == ("aborted", None, 200)


def test_a_body_that_breaks_while_it_is_read_is_an_error(provider: Provider, calls: Calls) -> None:
    """The connection is cut under a caller who reads by hand."""
    provider.cut = 1
    client = wrap(provider.client("anthropic"))
    opened = client.messages.with_streaming_response.create(**MESSAGES, stream=True)
    with opened as response, pytest.raises(http_library(anthropic).RemoteProtocolError):
        list(response.iter_lines())

    assert (calls.one().outcome, calls.one().error) == ("error", "RemoteProtocolError")
    assert calls.one().usage == Usage(input=100, cache_read=20, cache_write_5m=4, cache_write_1h=3, output=1)


def test_a_raw_stream_that_nobody_reads_is_aborted(provider: Provider, calls: Calls) -> None:
    """``with_raw_response`` of a stream, neither parsed nor closed, is a call once it is dropped."""
    wrap(provider.client("openai")).responses.with_raw_response.create(**RESPONSES, stream=True)
    gc.collect()

    assert calls.one().outcome == "aborted"


def test_a_compressed_body_that_is_read_by_hand_is_read(provider: Provider, calls: Calls) -> None:
    """What passes by is compressed, and its usage is read all the same."""
    packed = gzip.compress(json.dumps(chat_body()).encode())
    provider.answer = lambda path, sent: (200, {**JSON, "content-encoding": "gzip"}, [packed[:30], packed[30:]])
    with wrap(provider.client("openai")).chat.completions.with_streaming_response.create(**CHAT) as response:
        assert json.loads("".join(response.iter_lines())) == chat_body()

    assert calls.one().usage == USAGE["chat"]


# -- the meter under a stream that is collected at a bad moment --------------------------------------------------------------------


def test_a_stream_that_is_collected_while_the_meter_starts_does_not_block_it(tmp_path: Path, patch: Patch) -> None:
    """The garbage collector may end a stream inside the very code that starts the background thread."""
    ours = Meter(Settings.from_environment(ledger=tmp_path / "ledger.db", environ={}))
    done: list[str] = []

    def finish(name: str) -> None:
        ours.finish(Call(call_id=name, occurred_at=1, provider="openai", endpoint="chat"), TagContext(None, Tags()), NOBODY)
        done.append(name)

    class Starting(IngestWorker):
        def __init__(self, *args: Any) -> None:
            finish("collected")
            super().__init__(*args)

    patch("IngestWorker", Starting)
    thread = threading.Thread(target=finish, args=["first"], daemon=True)
    thread.start()
    thread.join(10)

    assert done == ["collected", "first"]
    assert ours.journal.written == 2
    assert ours.close()


@pytest.mark.slow
@ways(streamed=False)
def test_an_endpoint_that_answers_nothing_is_still_one_call(way: Way, provider: Provider, calls: Calls) -> None:
    """An empty JSON object, through every plain way in: one call, without usage."""
    provider.answer = lambda path, sent: (200, JSON, [b"{}"])
    with contextlib.suppress(TypeError, AttributeError, ValueError):  # the SDK's own, over an answer without content
        way.run(wrap(provider.client(way.sdk)))

    assert (calls.one().outcome, calls.one().raw_usage) == ("ok", None)
