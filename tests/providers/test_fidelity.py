"""The caller's view: with or without instrumentation, and whatever fails inside it, the SDK behaves the same."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

from voight_middleware import wrap
from voight_middleware.instrumentation import streams

from ..support.calls import Calls
from ..support.memory_provider import Provider, http_library, refusal
from .entry_points import CHAT, Way, both_kinds, ways

pytestmark = pytest.mark.slow  # a sweep over many cases


async def go(way: Way, client: Any, asynchronous: bool) -> Any:
    """What the caller gets: a result, or the class and the words of an exception."""
    try:
        return await way.arun(client) if asynchronous else way.run(client)
    except Exception as error:
        return type(error), str(error), getattr(error, "status_code", None), getattr(error, "body", None)


@ways()
@both_kinds
async def test_the_result_is_what_the_sdk_alone_gives(way: Way, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """Objects, events, raw bodies, headers and lines are equal to those of a client that was not wrapped."""
    bare = await go(way, provider.client(way.sdk, asynchronous=asynchronous), asynchronous)

    assert await go(way, wrap(provider.client(way.sdk, asynchronous=asynchronous)), asynchronous) == bare
    assert bare


@ways()
@both_kinds
@pytest.mark.parametrize("status", [400, 503])
async def test_the_exception_is_what_the_sdk_alone_raises(
    way: Way, asynchronous: bool, status: int, provider: Provider, calls: Calls
) -> None:
    """Class, message, status and body are equal, and there is one call that has failed."""
    provider.answer = lambda path, body: refusal(status)
    bare = await go(way, provider.client(way.sdk, asynchronous=asynchronous), asynchronous)

    assert await go(way, wrap(provider.client(way.sdk, asynchronous=asynchronous)), asynchronous) == bare
    assert bare[2] == status
    assert (calls.one().outcome, calls.one().http_status) == ("error", status)


@ways()
async def test_a_broken_connection_is_what_the_sdk_alone_shows(way: Way, provider: Provider, calls: Calls) -> None:
    """The first part of a body arrives, the rest does not."""
    provider.cut = 1 if way.streamed else 0
    bare = await go(way, provider.client(way.sdk), False)

    assert await go(way, wrap(provider.client(way.sdk)), False) == bare
    assert calls.one().outcome == "error"


@both_kinds
async def test_what_is_sent_is_what_the_sdk_alone_sends(asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """Bodies and headers are equal; only a chat stream has the wish for usage in addition."""
    headers: list[dict[str, str]] = []
    for wrapped in (False, True):
        client = provider.client("openai", asynchronous=asynchronous)
        add = headers.append

        def hook(request: Any, add: Callable[[dict[str, str]], None] = add) -> None:
            add(dict(request.headers))

        async def ahook(request: Any, hook: Callable[[Any], None] = hook) -> None:
            hook(request)

        client._client.event_hooks = {"request": [ahook if asynchronous else hook]}
        client = wrap(client) if wrapped else client
        for stream in (False, True):
            made = client.chat.completions.create(**CHAT, stream=stream, extra_headers={"x-mine": "1"})
            made = await made if asynchronous else made
            if stream:
                await made.close() if asynchronous else made.close()

    bare, bare_stream, ours, ours_stream = provider.bodies
    assert ours == bare
    assert ours_stream == {**bare_stream, "stream_options": {"include_usage": True}}
    for mine in (*headers[2:], *headers[:2]):
        mine.pop("content-length")
    assert headers[2:] == headers[:2]


def test_the_library_answers_a_wrong_use_as_before(provider: Provider, calls: Calls) -> None:
    """Reading an asynchronous body synchronously is the HTTP library's own error, with its own words."""
    library = http_library(openai)

    class Body(library.AsyncByteStream):  # type: ignore[misc, name-defined]
        async def __aiter__(self) -> Any:
            yield b"x"

    errors = []
    for watched in (False, True):
        response = library.Response(200, stream=Body())
        if watched:
            streams.watch_close(response, lambda: None)
        with pytest.raises(RuntimeError) as caught:
            response.read()
        errors.append(str(caught.value))
        with pytest.raises(RuntimeError) as caught:
            response.close()
        errors.append(str(caught.value))

    assert errors[:2] == errors[2:]
