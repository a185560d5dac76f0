"""A ``request`` of somebody else's, on a subclass or on a client itself: one call, and nothing shows."""

import asyncio
import contextvars
import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import openai
import pytest

from voight_middleware import instrument, metered_call, uninstrument, wrap
from voight_middleware.instrumentation.request import request_here

from ..support.calls import Calls
from ..support.memory_provider import USAGE, Provider, http_library, refusal
from .entry_points import CHAT, MESSAGES, both_kinds


def made(cls: Any, provider: Provider, *, asynchronous: bool = False) -> Any:
    """A client of a subclass whose requests come to *provider*."""
    http_client = provider.http_client(http_library(openai), asynchronous=asynchronous)
    return cls(api_key="k", max_retries=0, http_client=http_client)


async def chunks(client: Any) -> list[Any]:
    """A whole stream of a client of either kind."""
    stream = client.chat.completions.create(**CHAT, stream=True)
    if isinstance(client, openai.AsyncOpenAI):
        return [chunk.to_dict() async for chunk in await stream]
    return [chunk.to_dict() for chunk in stream]


# -- on a subclass -------------------------------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {
    "same": lambda options: options,
    "shallow": lambda options: options.model_copy(),
    "deep": lambda options: options.model_copy(deep=True),
    "changed": lambda options: options.model_copy(update={"json_data": {**options.json_data, "seed": 1}}),
}


def passing_on(copy: Callable[[Any], Any], *, asynchronous: bool) -> Any:
    """A subclass whose ``request`` passes on a copy of its options."""

    class Client(openai.OpenAI):
        def request(self, cast_to: Any, options: Any, **more: Any) -> Any:
            return super().request(cast_to, copy(options), **more)

    class AsyncClient(openai.AsyncOpenAI):
        async def request(self, cast_to: Any, options: Any, **more: Any) -> Any:
            return await super().request(cast_to, copy(options), **more)

    return AsyncClient if asynchronous else Client


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("how", ["wrap", "instrument"])
async def test_a_subclass_that_passes_on_a_copy_makes_one_call(
    how: str, copy: Any, asynchronous: bool, provider: Provider, calls: Calls
) -> None:
    """Its stream shows nothing of ours, and a failure is one call too."""
    cls = passing_on(copy, asynchronous=asynchronous)
    alone = await chunks(provider.client("openai", asynchronous=asynchronous))
    client = made(cls, provider, asynchronous=asynchronous)
    wrap(client) if how == "wrap" else instrument()

    assert await chunks(client) == alone
    assert calls.one().usage == USAGE["chat"]

    provider.answer_in_turn(refusal(500))
    with pytest.raises(openai.InternalServerError):
        await chunks(client)
    assert [(call.outcome, call.http_status) for call in calls.all()] == [("ok", 200), ("error", 500)]


def test_the_body_that_is_sent_is_the_calls(provider: Provider, calls: Calls) -> None:
    """A subclass may send another model than it was asked for."""
    cls = passing_on(lambda options: options.model_copy(update={"json_data": {**options.json_data, "model": "gpt-4o"}}), asynchronous=False)
    wrap(made(cls, provider)).chat.completions.create(**CHAT)
    assert calls.one().requested_model == "gpt-4o"


def test_a_request_that_a_subclass_makes_besides_is_a_call_of_its_own(provider: Provider, calls: Calls) -> None:
    """Such as one to a guard, with the same client and to the same endpoint."""

    class Guarded(openai.OpenAI):
        asking = False

        def request(self, cast_to: Any, options: Any, **more: Any) -> Any:
            if not self.asking:
                self.asking = True
                self.chat.completions.create(**{**CHAT, "model": "guard"})
                self.models.list()
            return super().request(cast_to, options, **more)

    wrap(made(Guarded, provider)).chat.completions.create(**CHAT)
    assert sorted(str(call.requested_model) for call in calls.all()) == ["gpt-4o-mini", "guard"]
    assert [call.outcome for call in calls.all()] == ["ok", "ok"]


async def test_requests_that_race_are_all_counted(provider: Provider, calls: Calls) -> None:
    """A subclass that sends two and takes the first is billed for both."""

    class Racing(openai.AsyncOpenAI):
        async def request(self, cast_to: Any, options: Any, **more: Any) -> Any:
            send = super().request
            results = await asyncio.gather(send(cast_to, options, **more), send(cast_to, options.model_copy(), **more))
            return results[0]

    await wrap(made(Racing, provider, asynchronous=True)).chat.completions.create(**CHAT)
    assert [call.usage for call in calls.all()] == [USAGE["chat"]] * 2


async def test_a_request_that_has_lost_a_race_ends_quietly(provider: Provider, calls: Calls) -> None:
    """It is cancelled after the one that won has been answered."""

    class Hedging(openai.AsyncOpenAI):
        late: Any = None

        async def request(self, cast_to: Any, options: Any, **more: Any) -> Any:
            send = super().request

            async def slowly() -> Any:
                await asyncio.sleep(0)
                return await send(cast_to, options, **more)

            self.late = asyncio.create_task(slowly())
            return await send(cast_to, options, **more)

    client = wrap(made(Hedging, provider, asynchronous=True))
    await client.chat.completions.create(**CHAT)
    assert (await client.late).model == "gpt-4o-mini-2024-07-18"
    assert [call.usage for call in calls.all()] == [USAGE["chat"]] * 2


# -- on the client itself ------------------------------------------------------------------------------------------------------


def like_logfire(client: Any) -> list[Any]:
    """Put a ``request`` on the client itself that leads to the one it had. Return what it sees."""
    original, seen = client.request, []

    @functools.wraps(original)
    def request(*args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        return original(*args, **kwargs)

    client.request = request
    return seen


class Caller:
    """The same as an object, as wrapt has it."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.mine = "theirs"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.original(*args, **kwargs)


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize("how", ["wrap", "instrument"])
@pytest.mark.parametrize("order", ["theirs first", "ours first", "theirs, ours, theirs"])
async def test_a_request_on_the_client_itself_is_metered(
    order: str, how: str, asynchronous: bool, provider: Provider, calls: Calls
) -> None:
    """In either order there is one call for a stream and one for a failure. The other library sees each once."""
    alone = await chunks(provider.client("openai", asynchronous=asynchronous))
    client = provider.client("openai", asynchronous=asynchronous)
    seen = like_logfire(client) if order.startswith("theirs") else []
    wrap(client) if how == "wrap" else instrument()
    again = like_logfire(client) if order != "theirs first" else []

    assert await chunks(client) == alone
    provider.answer_in_turn(refusal(500))
    with pytest.raises(openai.InternalServerError):
        await chunks(client)

    assert [(call.outcome, call.estimated) for call in calls.all()] == [("ok", False), ("error", False)]
    assert {len(one) for one in (seen, again) if one} == {2}


def test_an_anthropic_client_with_a_request_of_its_own_is_metered(provider: Provider, calls: Calls) -> None:
    """The rule is the same for both SDKs."""
    client = provider.client("anthropic")
    like_logfire(client)
    instrument()
    client.messages.create(**MESSAGES)
    assert calls.one().usage == USAGE["messages"]


class Own(openai.OpenAI):
    """A client whose ``request`` is one of two methods, both of which go on to the SDK's."""

    def request(self, cast_to: Any, options: Any, **more: Any) -> Any:
        return super().request(cast_to, options.model_copy(), **more)


class Switched(openai.OpenAI):
    """The same without an override of its own."""

    def traced(self, cast_to: Any, options: Any, **more: Any) -> Any:
        return super().request(cast_to, options, **more)


@pytest.mark.slow
@pytest.mark.parametrize("metered", [True, False], ids=["metered", "another is"])
@pytest.mark.parametrize("cls", [Own, Switched])
@pytest.mark.parametrize("order", ["theirs first", "ours first"])
def test_what_goes_on_to_the_class_does_not_come_back(order: str, cls: Any, metered: bool, provider: Provider, calls: Calls) -> None:
    """``super().request`` leads past the client, also in a request that is not billed."""
    client = made(cls, provider)

    def put() -> None:
        if cls is Own:
            like_logfire(client)
        else:
            client.request = client.traced

    if order == "theirs first":
        put()
    wrap(client if metered else made(cls, provider))
    if order == "ours first":
        put()

    client.chat.completions.create(**CHAT)
    list(client.chat.completions.create(**CHAT, stream=True))
    client.get("/models/x", cast_to=object)
    assert len(provider.bodies) == 3
    assert [call.usage for call in calls.all()] == [USAGE["chat"]] * (2 if metered else 0)


def test_an_object_in_the_place_of_request_stays_what_it_is(provider: Provider, calls: Calls) -> None:
    """What is read of it is its own. It can be replaced and taken away."""
    client = provider.client("openai")
    client.request = own = Caller(client.request)
    assert client.request is own
    wrap(client).chat.completions.create(**CHAT)
    assert (client.request.mine, vars(client)["request"]) == ("theirs", own)
    assert isinstance(client.request, Caller)
    del client.request
    client.chat.completions.create(**CHAT)
    assert len(calls.all()) == 2
    with pytest.raises(AttributeError, match="request"):
        del client.request


def test_a_mock_in_the_place_of_request_can_be_asked(provider: Provider, calls: Calls) -> None:
    """Tests of an application replace it."""
    client = wrap(provider.client("openai"))
    with mock.patch.object(client, "request", return_value="theirs"):
        assert client.chat.completions.create(**CHAT) == "theirs"
        client.request.assert_called_once()
    assert "request" not in vars(client)
    client.chat.completions.create(**CHAT)
    assert calls.one().usage == USAGE["chat"]


def test_the_class_shows_a_function(provider: Provider, calls: Calls) -> None:
    """As the SDK's own class does, and so does a client that is not metered."""
    before = openai._base_client.SyncAPIClient.request
    wrap(provider.client("openai"))
    patched = openai._base_client.SyncAPIClient.request
    assert (type(patched), patched.__name__, patched.__doc__) == (type(before), before.__name__, before.__doc__)
    assert provider.client("openai").request.__func__ is patched
    uninstrument()
    assert openai._base_client.SyncAPIClient.request is before


def test_a_client_that_is_instrumented_gains_nothing(provider: Provider, calls: Calls) -> None:
    """Its own variables are what they were; ``wrap()`` adds its mark."""
    client = provider.client("openai")
    client.chat.completions  # the SDK keeps its resources here  # noqa: B018
    before = set(vars(client))
    instrument()
    client.chat.completions.create(**CHAT)
    assert set(vars(client)) == before
    assert set(vars(wrap(client))) == {*before, "_voight_metered"}
    calls.one()


# -- what is kept --------------------------------------------------------------------------------------------------------------


class Prompt(str):
    """A text that can be watched."""

    __slots__ = ("__weakref__",)


@pytest.mark.slow
@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@both_kinds
async def test_no_prompt_outlives_its_call(asynchronous: bool, stream: bool, sdk: str, provider: Provider, calls: Calls) -> None:
    """A pooled connection keeps a copy of the context of the request that has opened it."""
    contexts: list[contextvars.Context] = []
    usual = provider.answer

    def opening(path: str, body: dict[str, Any]) -> Any:
        contexts.append(contextvars.copy_context())
        return usual(path, body)

    provider.answer = opening
    client = wrap(provider.client(sdk, asynchronous=asynchronous))
    prompt = Prompt("x" * 1000)
    gone = weakref.ref(prompt)
    arguments = {**(CHAT if sdk == "openai" else MESSAGES), "messages": [{"role": "user", "content": prompt}]}
    create = client.chat.completions.create if sdk == "openai" else client.messages.create
    result = create(**arguments, stream=stream)
    result = await result if asynchronous else result
    if stream:
        [event async for event in result] if asynchronous else list(result)

    del prompt, arguments, result
    provider.bodies.clear()
    for _ in range(5):  # the event loop closes the SDK's own generators
        gc.collect()
        await asyncio.sleep(0)

    assert contexts[0].run(request_here) is None
    assert gone() is None
    calls.one()


def test_no_prompt_of_raw_http_outlives_its_call(provider: Provider, calls: Calls) -> None:
    """The rule is the same for a metered transport."""
    seen: list[Any] = []
    contexts: list[contextvars.Context] = []
    usual = provider.answer

    def opening(path: str, body: dict[str, Any]) -> Any:
        contexts.append(contextvars.copy_context())
        seen.append(request_here())
        return usual(path, body)

    provider.answer = opening
    wrap(provider.http_client(http_library(openai))).post("https://api.openai.com/v1/chat/completions", json=CHAT)
    assert seen[0] is not None
    assert contexts[0].run(request_here) is None
    calls.one()


def test_what_a_request_leaves_running_is_metered_by_itself(provider: Provider, calls: Calls) -> None:
    """A task that a request has begun goes on in a copy of its context after the request is over."""
    contexts: list[contextvars.Context] = []
    usual = provider.answer

    def beginning(path: str, body: dict[str, Any]) -> Any:
        contexts.append(contextvars.copy_context())
        return usual(path, body)

    provider.answer = beginning
    client = wrap(provider.client("openai"))
    client.chat.completions.create(**CHAT)
    contexts[0].run(lambda: list(client.chat.completions.create(**CHAT, stream=True)))
    transport = wrap(provider.http_client(http_library(openai)))
    contexts[0].run(lambda: transport.post("https://api.openai.com/v1/chat/completions", json=CHAT))
    assert [call.usage for call in calls.all()] == [USAGE["chat"]] * 3


def test_a_block_by_hand_silences_what_a_client_has_of_its_own(provider: Provider, calls: Calls) -> None:
    """``metered_call()`` counts once."""
    client = provider.client("openai")
    like_logfire(client)
    wrap(client)
    with metered_call(provider="openai", model="gpt-4o-mini") as call:
        client.chat.completions.create(**CHAT)
        call.report(input=1, output=1)
    assert calls.one().usage is not None
