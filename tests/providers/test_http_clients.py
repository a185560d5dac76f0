"""Raw HTTP: clients and transports that are metered, once each, however they are put together."""

import copy
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx
import openai
import pytest

import voight_middleware
from voight_middleware import instrument, metered_transport, tag, uninstrument, wrap
from voight_middleware.instrumentation import http
from voight_middleware.instrumentation.request import ManualBlock, current_request
from voight_middleware.pipeline import meter

from ..support.calls import Calls
from ..support.memory_provider import (
    USAGE,
    Provider,
    http_library,
    refusal,
)
from .entry_points import CHAT, MESSAGES
from .raw_http import CHAT_URL, KINDS, LIBRARIES, client_of, close, got, raw


def through(provider: Provider, sdk: str, **options: Any) -> Any:
    """A client of an SDK whose HTTP client has a metered transport."""
    client = provider.client(sdk, **options)
    client._client._transport = metered_transport(client._client._transport)
    return client


@KINDS
@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
async def test_what_an_sdk_sends_is_counted_once(sdk: str, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """By the SDK's instrumentation if its client is metered, else by the transport."""
    clients = {
        "wrapped": wrap(through(provider, sdk, asynchronous=asynchronous)),
        "unwrapped": through(provider, sdk, asynchronous=asynchronous),
    }
    for name, client in clients.items():
        method, arguments = (client.chat.completions, CHAT) if sdk == "openai" else (client.messages, MESSAGES)
        with tag(user_id=name):
            answer = method.create(**arguments)
            await answer if asynchronous else answer
            stream = method.create(**arguments, stream=True)
            events_seen = [event async for event in await stream] if asynchronous else list(stream)
            assert events_seen

    assert [(call.tags.user_id, call.outcome, call.streamed) for call in calls.all()] == [
        ("wrapped", "ok", False),
        ("wrapped", "ok", True),
        ("unwrapped", "ok", False),
        ("unwrapped", "ok", True),
    ]
    whole = "chat" if sdk == "openai" else "messages"
    assert [call.usage for call in calls.all()][:3] == [USAGE[whole]] * 3


async def test_instrument_and_a_wrapped_http_client_are_one_call(provider: Provider, calls: Calls) -> None:
    """The SDK's own requests over a client that is used raw as well."""
    library = http_library(openai)
    http_client = wrap(library.Client(transport=raw(provider, library)))
    instrument()
    client = openai.OpenAI(api_key="k", http_client=http_client, max_retries=0)
    client.chat.completions.create(**CHAT)
    http_client.post(CHAT_URL, json=CHAT)

    assert [call.usage for call in calls.all()] == [USAGE["chat"]] * 2


def test_an_sdk_that_is_not_wrapped_has_a_call_for_each_attempt(provider: Provider, calls: Calls) -> None:
    """A transport sees attempts, not requests: a refused one costs nothing."""
    provider.answer_in_turn(refusal(500), None)
    client = through(provider, "openai", max_retries=1)
    client.chat.completions.create(**CHAT)

    refused, answered = calls.all()
    assert (refused.outcome, refused.http_status, refused.cost_usd) == ("error", 500, 0)
    assert (answered.outcome, answered.usage) == ("ok", USAGE["chat"])


@pytest.mark.parametrize("still_open", [True, False])
def test_inside_a_call_by_hand_nothing_is_counted(still_open: bool, provider: Provider, calls: Calls) -> None:
    """As long as its block is open."""
    client = wrap(client_of(httpx, raw(provider, httpx)))
    block = ManualBlock()
    block.open = still_open
    outer = current_request.get()
    current_request.set(block)
    try:
        client.post(CHAT_URL, json=CHAT)
    finally:
        current_request.set(outer)

    assert len(calls.all()) == (0 if still_open else 1)


@LIBRARIES
@KINDS
async def test_a_metered_transport_inside_another_counts_once(asynchronous: bool, library: Any, calls: Calls) -> None:
    """Such as behind one that tries again: what it hides is a part of one call."""
    provider = Provider()
    inner = metered_transport(raw(provider, library))

    class Again(library.BaseTransport, library.AsyncBaseTransport):  # type: ignore[misc, name-defined]
        def handle_request(self, request: Any) -> Any:
            inner.handle_request(request)
            return inner.handle_request(request)

        async def handle_async_request(self, request: Any) -> Any:
            await inner.handle_async_request(request)
            return await inner.handle_async_request(request)

    await got(client_of(library, metered_transport(Again()), asynchronous), CHAT_URL, CHAT)

    assert len(provider.bodies) == 2
    assert calls.one().usage == USAGE["chat"]


# -- transports and clients


class Told:
    """What a transport was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __enter__(self) -> Any:
        self.told.append("enter")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.told.append("exit")

    def close(self) -> None:
        self.told.append("close")

    async def __aenter__(self) -> Any:
        self.told.append("aenter")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.told.append("aexit")

    async def aclose(self) -> None:
        self.told.append("aclose")


@LIBRARIES
async def test_a_metered_transport_is_one_of_its_library(library: Any) -> None:
    """Of the same base classes and no others; everything it is told it hands on."""
    for base in (library.BaseTransport, library.AsyncBaseTransport):
        inner = type("Inner", (Told, base), {})()
        transport: Any = metered_transport(inner)
        assert isinstance(transport, base)
        other = library.AsyncBaseTransport if base is library.BaseTransport else library.BaseTransport
        assert not isinstance(transport, other)
        assert metered_transport(transport) is transport
        assert transport.told is inner.told
        assert hasattr(transport, "handle_request") == (base is library.BaseTransport)
        assert hasattr(transport, "handle_async_request") == (base is library.AsyncBaseTransport)
        assert not hasattr(transport, "unheard_of")
        assert copy.copy(transport).told is inner.told
        if base is library.BaseTransport:
            with transport as entered:
                assert entered is transport
            transport.close()
            assert inner.told == ["enter", "exit", "close"]
        else:
            async with transport as entered:
                assert entered is transport
            await transport.aclose()
            assert inner.told == ["aenter", "aexit", "aclose"]


@LIBRARIES
@KINDS
async def test_a_wrapped_client_is_the_same_object(asynchronous: bool, library: Any, provider: Provider, calls: Calls) -> None:
    """Its transports are metered, those that are mounted too, and None stays None. Wrapping twice counts once."""
    kind = library.AsyncHTTPTransport if asynchronous else library.HTTPTransport
    mounts = {"all://none.example.com": None, "https://api.openai.com": raw(provider, library)}
    client = client_of(library, kind(), asynchronous, mounts=mounts)
    patterns = list(client._mounts)
    assert wrap(wrap(client)) is client

    assert list(client._mounts) == patterns
    assert [mounted is None for mounted in client._mounts.values()].count(True) == 1
    assert isinstance(client._transport, library.AsyncBaseTransport if asynchronous else library.BaseTransport)
    await got(client, CHAT_URL, CHAT)
    await close(client)
    assert calls.one().usage == USAGE["chat"]


def test_the_http_clients_of_the_sdks_can_be_wrapped(calls: Calls) -> None:
    """They are subclasses."""
    for client in (openai.DefaultHttpxClient(), anthropic.DefaultHttpxClient()):
        with client:
            assert wrap(client) is client
            assert type(client._transport).__name__ == "MeteredTransport"


@pytest.mark.parametrize("thing", [None, object(), httpx.Client, "transport", SimpleNamespace(handle_request=print)])
def test_what_is_no_transport_is_named(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"metered_transport\(\) takes a transport of httpx or httpx2, not (builtins|types)\.\w+"):
        metered_transport(thing)


def test_a_client_with_a_transport_of_another_kind_is_refused() -> None:
    """And left as it was."""
    transport: Any = SimpleNamespace(handle_request=print, close=lambda: None)
    client = httpx.Client(transport=transport)
    with pytest.raises(TypeError, match=r"wrap\(\) takes a client with a transport of httpx or httpx2, not types\.SimpleNamespace"):
        wrap(client)
    assert client._transport is transport
    client.close()


async def test_uninstrument_ends_it(provider: Provider, calls: Calls) -> None:
    """Nothing is metered any more, and everything still works; until something is wrapped again."""
    client = wrap(client_of(httpx, raw(provider, httpx)))
    uninstrument()
    assert (await got(client, CHAT_URL, CHAT))[0] == 200
    assert calls.all() == []

    wrap(client)
    await got(client, CHAT_URL, CHAT)
    assert len(calls.all()) == 1


async def test_disabled_means_nothing(provider: Provider, calls: Calls) -> None:
    calls.meter.settings = meter.Settings.from_environment(enabled=False, environ={})
    await got(wrap(client_of(httpx, raw(provider, httpx))), CHAT_URL, CHAT)

    assert calls.all() == []


def test_the_public_name() -> None:
    assert voight_middleware.metered_transport is http.metered_transport
