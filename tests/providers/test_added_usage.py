"""What ``include_usage`` adds to a chat stream is taken out again: every chunk is what the SDK alone would give."""

from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest

from voight_middleware import wrap
from voight_middleware.instrumentation import usage_chunks
from voight_middleware.pipeline import open_calls

from ..support.calls import Calls
from ..support.memory_provider import CHAT_USAGE, SSE, USAGE, Answer, Provider, chat_chunk, completion, sse
from .entry_points import CHAT, MESSAGES, RESPONSES, both_kinds, parsed

COUNTS = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}


def forms(chunk: Any) -> Any:
    """Everything in which a chunk can show that ``usage`` was sent."""
    if isinstance(chunk, dict):
        return chunk
    return chunk.to_json(), chunk.to_dict(), chunk.model_dump(exclude_unset=True), sorted(chunk.model_fields_set), chunk.model_extra


def unasked(*chunks: dict[str, Any]) -> Callable[[str, dict[str, Any]], Answer]:
    """A server that sends these chunks, whatever it was asked."""
    return lambda path, body: (200, SSE, sse(*chunks, "[DONE]"))


def bare(chunk: dict[str, Any]) -> dict[str, Any]:
    """A chunk without ``usage``."""
    return {key: value for key, value in chunk.items() if key != "usage"}


async def created(client: Any) -> Any:
    return await client.chat.completions.create(**CHAT, stream=True)


async def raw(client: Any) -> Any:
    return await parsed(await client.chat.completions.with_raw_response.create(**CHAT, stream=True))


async def posted(client: Any) -> Any:
    stream_cls = openai.AsyncStream[openai.types.chat.ChatCompletionChunk]
    body = {**CHAT, "stream": True}
    return await client.post("/chat/completions", cast_to=openai.types.Completion, body=body, stream=True, stream_cls=stream_cls)


async def dictionaries(client: Any) -> Any:
    body = {**CHAT, "stream": True}
    return await client.post("/chat/completions", cast_to=dict, body=body, stream=True, stream_cls=openai.AsyncStream[dict[str, Any]])


class Ours(openai.BaseModel):
    """A chunk as an application reads it. It does not know ``usage``."""

    id: str
    choices: list[Any]


async def own_model(client: Any) -> Any:
    body = {**CHAT, "stream": True}
    return await client.post("/chat/completions", cast_to=Ours, body=body, stream=True, stream_cls=openai.AsyncStream[Ours])


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True], ids=["constructed", "validated"])
@pytest.mark.parametrize("way", [created, raw, posted, dictionaries, own_model])
async def test_each_chunk_is_what_the_sdk_alone_gives(way: Any, strict: bool, provider: Provider, calls: Calls) -> None:
    """To the byte of its JSON: ``usage: null`` is there only because we asked."""
    alone, seen = (provider.client("openai", asynchronous=True, _strict_response_validation=strict) for _ in range(2))
    alone = [forms(chunk) async for chunk in await way(alone)]

    seen = [forms(chunk) async for chunk in await way(wrap(seen))]

    assert seen == alone
    assert b'"usage": null' in provider.answer("/chat/completions", provider.bodies[1])[2][0]
    assert calls.one().usage == USAGE["chat"]


def test_each_chunk_of_a_helper_is_what_the_sdk_alone_gives(provider: Provider, calls: Calls) -> None:
    """``stream()`` shows chunks, and a completion that is made of them."""
    seen = []
    for client in (provider.client("openai"), wrap(provider.client("openai"))):
        with client.chat.completions.stream(**CHAT) as stream:
            chunks = [forms(event.chunk) for event in stream if event.type == "chunk"]
            seen.append((chunks, stream.get_final_completion().to_json()))
    assert seen[0] == seen[1]
    assert calls.one().usage == USAGE["chat"]


def test_each_chunk_of_a_legacy_completion_is_what_the_sdk_alone_gives(provider: Provider, calls: Calls) -> None:
    """They are asked for usage in the same way."""
    choice = {"text": "abcd", "index": 0, "logprobs": None, "finish_reason": "stop"}

    def answer(path: str, body: dict[str, Any]) -> Answer:
        if "stream_options" not in body:
            return 200, SSE, sse(completion(choices=[choice]), "[DONE]")
        return 200, SSE, sse(completion(choices=[choice], usage=None), completion(usage=COUNTS), "[DONE]")

    provider.answer = answer
    seen = []
    for client in (provider.client("openai"), wrap(provider.client("openai"))):
        stream = client.completions.create(model="gpt-3.5-turbo-instruct", prompt="Where?", stream=True)
        seen.append([forms(chunk) for chunk in stream])
    assert seen[0] == seen[1]
    assert calls.one().raw_usage is not None


MODERATION = {**bare(chat_chunk()), "moderation": {"input": {}}}
FIRST, LAST = bare(chat_chunk({"content": "hi"})), bare(chat_chunk({}, finish="stop"))


async def received(client: Any, asynchronous: bool) -> list[Any]:
    """A whole stream."""
    if asynchronous:
        return [chunk async for chunk in await client.chat.completions.create(**CHAT, stream=True)]
    return list(client.chat.completions.create(**CHAT, stream=True))


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([FIRST, LAST, bare(chat_chunk()) | {"usage": CHAT_USAGE, "citations": ["https://a"]}], id="citations"),
        pytest.param([FIRST, LAST, bare(chat_chunk()) | {"usage": CHAT_USAGE, "moderation": None}], id="a null of its own"),
        pytest.param([FIRST, MODERATION, bare(chat_chunk()) | {"usage": CHAT_USAGE, "moderation": None}], id="another value than before"),
        pytest.param([FIRST, bare(chat_chunk({}, finish="stop")) | {"usage": CHAT_USAGE}], id="with the finish reason"),
        pytest.param([chat_chunk({"content": "hi"}), chat_chunk(usage=CHAT_USAGE, moderation={"input": {}})], id="moderation, after nulls"),
    ],
)
async def test_a_chunk_that_says_more_is_not_hidden(chunks: list[Any], asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """A usage chunk with anything else on it is the server's own."""
    provider.answer = unasked(*chunks)
    seen = await received(wrap(provider.client("openai", asynchronous=asynchronous)), asynchronous)

    assert len(seen) == len(chunks)
    assert seen[-1].usage.to_dict() == CHAT_USAGE
    assert calls.one().usage == USAGE["chat"]


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([FIRST, LAST, bare(chat_chunk()) | {"usage": CHAT_USAGE}], id="no nulls"),
        pytest.param([FIRST, LAST, bare(chat_chunk()) | {"usage": CHAT_USAGE, "timings": {"prompt_n": 1}}], id="timings"),
        pytest.param([{**one, "provider": "x"} for one in (FIRST, LAST, chat_chunk(usage=CHAT_USAGE))], id="what every chunk says"),
        pytest.param([chat_chunk({"content": "hi"}), chat_chunk(usage=CHAT_USAGE, moderation=None)], id="a null after nulls"),
    ],
)
def test_a_chunk_that_says_only_usage_is_hidden(chunks: list[Any], provider: Provider, calls: Calls) -> None:
    """``choices[0]`` of it would raise in an application that has not asked for it."""
    provider.answer = unasked(*chunks)
    seen = list(wrap(provider.client("openai")).chat.completions.create(**CHAT, stream=True))
    assert len(seen) == len(chunks) - 1
    assert calls.one().usage == USAGE["chat"]


def test_a_provider_that_always_sends_usage_is_not_asked(provider: Provider, calls: Calls) -> None:
    """OpenRouter's usage chunk is there without us, and stays."""
    chunks = [FIRST, LAST, bare(chat_chunk()) | {"usage": {**CHAT_USAGE, "cost": 0.1}}]
    provider.answer = unasked(*chunks)
    client = wrap(provider.client("openai", base_url="https://openrouter.ai/api/v1"))
    assert [chunk.to_dict() for chunk in client.chat.completions.create(**CHAT, stream=True)] == chunks
    assert "stream_options" not in provider.bodies[0]
    assert (calls.one().usage, calls.one().estimated) == (USAGE["chat"], False)


@pytest.mark.parametrize("broken", ["reader", "tap"])
def test_what_we_added_is_hidden_though_something_of_ours_fails(
    broken: str, provider: Provider, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader of a stream has no part in hiding it."""
    alone = [forms(chunk) for chunk in provider.client("openai").chat.completions.create(**CHAT, stream=True)]

    def fail(*_: Any) -> Any:
        raise RuntimeError("ours")

    calls.faults_expected = True
    from voight_middleware.instrumentation import sdk
    from voight_middleware.providers.openai.streams import ChatParser

    place: Any = ChatParser if broken == "reader" else sdk
    monkeypatch.setattr(place, "feed" if broken == "reader" else "MeteredIterator", fail)
    stream = wrap(provider.client("openai")).chat.completions.create(**CHAT, stream=True)
    assert [forms(chunk) for chunk in stream] == alone
    assert calls.faults


def test_a_model_that_does_not_know_usage_is_left_as_it_is(provider: Provider, calls: Calls) -> None:
    """Where the server sends it in the last chunk only."""
    provider.answer = unasked(FIRST, LAST, bare(chat_chunk()) | {"usage": CHAT_USAGE})
    body = {**CHAT, "stream": True}
    stream = wrap(provider.client("openai")).post("/chat/completions", cast_to=Ours, body=body, stream=True, stream_cls=openai.Stream[Ours])
    assert [chunk.to_dict() for chunk in stream] == [FIRST, LAST]
    assert (calls.one().usage, calls.faults) == (USAGE["chat"], 0)


def test_an_event_of_an_unknown_class_is_left_alone(calls: Calls) -> None:
    """Hiding never raises."""
    calls.faults_expected = True
    assert usage_chunks.UsageChunks().take_out(object()) is False


# -- streams of dictionaries ---------------------------------------------------------------------------------------------------


def test_a_stream_of_dictionaries_without_usage_is_estimated(provider: Provider, calls: Calls) -> None:
    """From its text, as any other."""
    provider.answer = unasked(bare(chat_chunk({"content": "x" * 40})), LAST)
    client = wrap(provider.client("openai"))
    body = {**CHAT, "stream": True}
    list(client.post("/chat/completions", cast_to=dict, body=body, stream=True, stream_cls=openai.Stream[dict[str, Any]]))
    assert (calls.one().outcome, calls.one().estimated_output) == ("ok", 10)


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
def test_other_streams_of_dictionaries_are_read(sdk: str, provider: Provider, calls: Calls) -> None:
    """Responses and messages."""
    library: Any = {"openai": openai, "anthropic": anthropic}[sdk]
    path, body = ("/responses", RESPONSES) if sdk == "openai" else ("/v1/messages", MESSAGES)

    def events(client: Any) -> list[Any]:
        options: Any = {
            "cast_to": dict[str, Any],
            "body": {**body, "stream": True},
            "stream": True,
            "stream_cls": library.Stream[dict[str, Any]],
        }
        return list(client.post(path, **options))

    assert events(wrap(provider.client(sdk))) == events(provider.client(sdk))
    assert calls.one().usage == USAGE["responses" if sdk == "openai" else "messages"]
    assert calls.faults == 0


# -- failures that are billed --------------------------------------------------------------------------------------------------

FAILURE = {**chat_chunk({"content": ""}, finish="error"), "error": {"code": 502, "message": "Token limit reached"}}


@both_kinds
@pytest.mark.parametrize("usage", [{"prompt_tokens": 43, "completion_tokens": 10, "total_tokens": 53}, None])
async def test_an_error_event_with_usage_is_exact(usage: Any, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """OpenRouter sends it in the middle of a stream, and the SDK raises."""
    provider.answer = unasked(FIRST, {**FAILURE, "usage": usage})
    client = wrap(provider.client("openai", asynchronous=asynchronous, base_url="https://openrouter.ai/api/v1"))
    with pytest.raises(openai.APIError, match="Token limit reached"):
        await received(client, asynchronous)
    call = calls.one()
    assert (call.outcome, call.estimated) == ("error", usage is None)
    assert call.usage is not None
    if usage is not None:
        assert (call.usage.input, call.usage.output) == (43, 10)


@pytest.mark.parametrize("failure", [FAILURE, {"error": {"message": "Token limit reached"}}], ids=["chunk", "error only"])
def test_an_error_event_that_is_read_by_hand_is_exact(failure: dict[str, Any], provider: Provider, calls: Calls) -> None:
    """The body is passed on as it came."""
    provider.answer = unasked(FIRST, {**failure, "usage": COUNTS})
    client = wrap(provider.client("openai"))
    with client.chat.completions.with_streaming_response.create(**CHAT, stream=True) as response:
        list(response.iter_lines())
    call = calls.one()
    assert (call.outcome, call.estimated) == ("error", False)
    assert call.usage is not None
    assert (call.usage.input, call.usage.output) == (12, 5)


# -- the SDK's own iterator ----------------------------------------------------------------------------------------------------


async def test_the_iterator_of_a_stream_is_still_a_generators(provider: Provider, calls: Calls) -> None:
    """What reaches for ``stream._iterator`` may send, throw and close."""
    iterator: Any = wrap(provider.client("openai")).chat.completions.create(**CHAT, stream=True)._iterator
    assert iterator.send(None).id == next(iterator).id
    with pytest.raises(KeyError):
        iterator.throw(KeyError("theirs"))
    iterator.close()
    aiterator: Any = (await wrap(provider.client("openai", asynchronous=True)).chat.completions.create(**CHAT, stream=True))._iterator
    assert (await aiterator.asend(None)).id == (await anext(aiterator)).id
    await aiterator.aclose()
    assert not hasattr(aiterator, "_unknown")
    open_calls.end_all()  # older SDKs leave the response open
    assert [call.outcome for call in calls.all()] == ["aborted", "aborted"]
