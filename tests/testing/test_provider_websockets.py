"""The loopback provider's WebSockets: realtime, responses and live sessions, driven by the SDK's own connections."""

import base64
import subprocess
import sys
from typing import Any

import openai
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from voight_middleware.testing.accounting import Count
from voight_middleware.testing.provider import LoopbackProvider

from .conftest import fits, total, wish

# openai 3.52 enters the connections of websockets 17 in the old way
pytestmark = pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning")
SECOND = base64.b64encode(bytes(48_000)).decode()
HELLO: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "[user:u_1] Hello"}]}
ASK: Any = {"model": "gpt-5-mini", "input": "[user:u_1] Hello"}


def until(connection: Any, kind: str) -> list[Any]:
    """The next events, up to one of this type."""
    events = [fits(connection.recv())]
    while events[-1].type != kind:
        events.append(fits(connection.recv()))
    return events


def tokens(usage: Any, **others: int) -> Count:
    """The count that a realtime response's usage is."""
    details = usage.input_token_details
    cached = details.cached_tokens or 0
    return Count(input_tokens=usage.input_tokens, cached_tokens=cached, output_tokens=usage.output_tokens, **others)


# -- realtime ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["audio", "text"])
def test_realtime(modality: Any, one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A response has its deltas, and at its end a usage by modality whose parts add up."""
    with one.realtime.connect(model="gpt-realtime-mini") as connection:
        (created,) = until(connection, "session.created")
        connection.session.update(session={"type": "realtime", "output_modalities": [modality]})
        (updated,) = until(connection, "session.updated")
        connection.conversation.item.create(item=HELLO)
        until(connection, "conversation.item.done")
        connection.response.create()
        events = until(connection, "response.done")

    usage, kind = events[-1].response.usage, "output_audio_transcript" if modality == "audio" else "output_text"
    assert (created.session.model, updated.session.model) == ("gpt-realtime-mini", "gpt-realtime-mini")
    assert events[0].type == "response.created"
    (done,) = [event for event in events if event.type == f"response.{kind}.done"]
    deltas = "".join(event.delta for event in events if event.type == f"response.{kind}.delta")
    assert deltas == (done.transcript if modality == "audio" else done.text)
    given, out = usage.input_token_details, usage.output_token_details
    assert given.text_tokens + given.audio_tokens + given.image_tokens == usage.input_tokens
    assert out.text_tokens + out.audio_tokens == usage.output_tokens
    assert (out.audio_tokens > 0) == (modality == "audio")
    assert given.cached_tokens == given.cached_tokens_details.text_tokens + given.cached_tokens_details.audio_tokens
    assert provider.counts().by_user == {"u_1": tokens(usage, calls=1, completed=1)}


def test_realtime_transcription(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """What was said is written down when the buffer is committed: in tokens, in seconds by Whisper, or not at all."""
    with one.realtime.connect(model="gpt-realtime") as connection:
        until(connection, "session.created")
        connection.input_audio_buffer.append(audio=SECOND)
        connection.input_audio_buffer.append(audio=SECOND)
        connection.input_audio_buffer.commit()
        written = until(connection, "conversation.item.input_audio_transcription.completed")[-1]
        assert written.usage.type == "tokens"
        assert written.usage.input_token_details.audio_tokens == 20
        count = Count(calls=1, completed=1, input_tokens=written.usage.input_tokens, output_tokens=written.usage.output_tokens)
        assert total(provider) == count

        connection.session.update(session={"type": "realtime", "audio": {"input": {"transcription": {"model": "whisper-1"}}}})
        connection.input_audio_buffer.append(audio=SECOND)
        connection.input_audio_buffer.commit()
        written = until(connection, "conversation.item.input_audio_transcription.completed")[-1]
        assert (written.usage.type, written.usage.seconds, total(provider).seconds) == ("duration", 1, 1)

        silent: Any = {"type": "realtime", "audio": {"input": {"transcription": None}}}
        connection.session.update(session=silent)
        connection.input_audio_buffer.append(audio=SECOND)
        connection.input_audio_buffer.commit()
        connection.response.create()
        heard = until(connection, "response.done")
        assert not [event for event in heard if "transcription" in event.type]
        assert heard[-1].response.usage.input_token_details.audio_tokens == 40
    assert total(provider).completed == 3


def test_realtime_usage_follows_from_what_was_said(one: openai.OpenAI) -> None:
    """The same conversation costs the same; a longer one costs more."""
    usages = []
    for _ in range(2):
        with one.realtime.connect(model="gpt-realtime") as connection:
            connection.conversation.item.create(item=HELLO)
            for _ in range(2):
                connection.response.create()
                usages.append(until(connection, "response.done")[-1].response.usage)

    assert usages[:2] == usages[2:]
    assert usages[0] != usages[1]


def test_realtime_errors(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A message that is wrong is answered with an error, and the connection goes on; so is a fault in a prompt."""
    with one.realtime.connect(model="gpt-realtime") as connection:
        until(connection, "session.created")
        connection.input_audio_buffer.commit()
        (error,) = until(connection, "error")
        assert error.error.code == "input_audio_buffer_commit_empty"
        connection.send({"type": "nonsense"})  # type: ignore[arg-type]
        until(connection, "error")
        connection.response.create(response={"instructions": "[x-loopback-status: 429]"})
        (error,) = until(connection, "error")
        assert error.error.code == "rate_limit_exceeded"
        connection.response.create(response={"instructions": "[x-loopback-no-usage: 1]", "max_output_tokens": 5})
        last = until(connection, "response.done")[-1]
        assert (last.response.usage, last.response.status) == (None, "incomplete")
    assert total(provider) == Count(calls=4, completed=1, errors=3)


def test_refused_connections(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A status in the headers of the connection refuses it."""
    with pytest.raises(InvalidStatus, match="429"), one.realtime.connect(model="m", extra_headers=wish(status=429)):
        pass
    assert total(provider) == Count(calls=1, errors=1)


@pytest.mark.parametrize("fault", ["cut_after", "end_after"])
def test_connections_that_break_off(fault: str, one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A connection is cut, or closed in good order, after so many messages; a response that has begun is broken."""
    seen = []
    with one.realtime.connect(model="m", extra_headers=wish(**{fault: 3})) as connection:
        connection.response.create()
        with pytest.raises(ConnectionClosed) as caught:
            seen.extend(iter(connection.recv, None))

    assert len(seen) == 3
    assert (caught.value.rcvd is not None) == (fault == "end_after")
    assert total(provider) == Count(calls=1, broken=1)


def test_a_client_that_leaves(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A response whose client has left is broken."""
    with one.realtime.connect(model="m", extra_headers=wish(chunk_delay_ms=20, chunks=200)) as connection:
        connection.response.create()
        until(connection, "response.created")
    for _ in range(200):
        if total(provider).broken:
            break
        provider_is_asked(one)
    assert total(provider).broken == 1


def provider_is_asked(one: openai.OpenAI) -> None:
    """Something that takes a moment."""
    one.models.list(extra_headers=wish(delay_ms=10))


async def test_async_realtime(provider: LoopbackProvider) -> None:
    """Several connections at once, of the asynchronous SDK, keep their conversations apart."""
    async with (
        openai.AsyncOpenAI(base_url=provider.openai_base_url, api_key="k") as client,
        client.realtime.connect(model="m") as first,
        client.realtime.connect(model="m") as second,
    ):
        for number, connection in enumerate((first, second)):
            text = f"[user:u_{number}] Hello"
            await connection.conversation.item.create(item={**HELLO, "content": [{"type": "input_text", "text": text}]})
            await connection.response.create()
        for connection in (first, second):
            async for event in connection:
                if event.type == "response.done":
                    break
    assert {user: count.completed for user, count in provider.counts().by_user.items()} == {"u_0": 1, "u_1": 1}


@pytest.mark.server
def test_without_websockets() -> None:
    """Without the websockets package the provider answers everything else, and refuses the connection."""
    code = """if True:
        import sys, urllib.error, urllib.request
        sys.modules["websockets"] = sys.modules["wsproto"] = None
        from voight_middleware.testing.provider import LoopbackProvider

        upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "AAAA"}
        with LoopbackProvider() as provider:
            print(urllib.request.urlopen(f"{provider.openai_base_url}/models").status)
            try:
                urllib.request.urlopen(urllib.request.Request(f"{provider.openai_base_url}/realtime", headers=upgrade))
            except urllib.error.HTTPError as error:
                print(error.code)
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.split(), result.stderr) == (["200", "404"], "")


# -- responses -----------------------------------------------------------------------------------------------------------------


def test_responses(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """Over a WebSocket a response is the one of HTTP, is kept, and is counted once; several come over one connection."""
    with one.responses.connect() as connection:
        connection.response.create(**ASK)
        events = until(connection, "response.completed")
        connection.response.create(**ASK, tools=[{"type": "web_search"}])
        searched = until(connection, "response.completed")[-1].response

    plain = one.responses.create(**ASK, store=False)
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].response.usage == plain.usage
    assert events[-1].response.output_text == plain.output_text
    assert one.responses.retrieve(events[-1].response.id).usage == plain.usage
    count = provider.counts().by_user["u_1"]
    assert (count.calls, count.completed) == (4, 4)
    assert count.web_searches == searched.tool_usage.web_search.num_requests
    assert plain.usage is not None
    assert count.input_tokens == 3 * plain.usage.input_tokens


def test_responses_errors(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A request that is wrong is answered with an error event that has its status."""
    with one.responses.connect() as connection:
        connection.response.create(model="m")
        (error,) = until(connection, "error")
    assert (error.status, error.error.param) == (400, "input")
    assert total(provider) == Count(calls=1, errors=1)


# -- live ----------------------------------------------------------------------------------------------------------------------


def test_live(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A session reports its seconds so far; it is one call, which is complete when it is closed, and its seconds are counted once."""
    with one.live.connect() as connection:
        connection.session.start(session={"model": "gpt-live-1", "instructions": "[user:u_1] Be brief."})
        (started,) = until(connection, "session.started")
        connection.session.input_audio.append(audio=SECOND)
        first = until(connection, "session.usage.updated")[-1]
        connection.session.input_audio.append(audio=base64.b64encode(bytes(100_000)).decode())
        second = until(connection, "session.usage.updated")[-1]
        assert provider.counts().by_user == {"u_1": Count(calls=1, seconds=4)}
        connection.session.input_audio.mute()
        until(connection, "session.input_audio.muted")
        connection.session.close()
        (closed,) = until(connection, "session.closed")

    assert started.session.model == "gpt-live-1"
    assert [event.usage.seconds for event in (first, second, closed)] == [1, 4, 4]
    assert closed.reason == "close_requested"
    assert provider.counts().by_user == {"u_1": Count(calls=1, completed=1, seconds=4)}


def test_live_delegation(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A response that a session delegates to reports its own tokens, in the events of a response; a session that is dropped is broken."""
    delegation: Any = {"type": "responses", "responses": {"model": "gpt-5-mini"}}
    with one.live.connect() as connection:
        connection.response.create()
        assert until(connection, "error")[-1].error.code == "session_not_started"
        connection.session.start(session={"model": "gpt-live-1", "delegation": delegation})
        until(connection, "session.started")
        connection.response.create()
        event = fits(connection.recv())
        while event.event["type"] != "response.completed":
            event = fits(connection.recv())

    assert event.type == "response.event"
    usage = event.event["response"]["usage"]
    count = total(provider)
    assert (count.input_tokens, count.output_tokens) == (usage["input_tokens"], usage["output_tokens"])
    for _ in range(200):
        if total(provider).broken:
            break
        provider_is_asked(one)
    assert total(provider).broken == 1
