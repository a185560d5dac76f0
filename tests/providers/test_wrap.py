"""Instrumentation of the SDKs: every way in is one call, and everything else is not a call."""

import gc
import weakref
from typing import Any

import anthropic
import openai
import pytest

from voight_middleware import configure, instrument, uninstrument, wrap, wrap_anthropic, wrap_openai
from voight_middleware.pipeline.meter import swap_meter

from ..support.calls import Calls
from ..support.memory_provider import IDS, MODELS, REASONS, TIERS, USAGE, Provider, refusal
from .entry_points import CHAT, EMBEDDINGS, MESSAGES, WAYS, Way, both_kinds, needs, ways

pytestmark = pytest.mark.slow  # a sweep over many cases

PATCHED = [
    (cls, name)
    for cls in (
        openai._base_client.SyncAPIClient,
        openai._base_client.AsyncAPIClient,
        anthropic._base_client.SyncAPIClient,
        anthropic._base_client.AsyncAPIClient,
        openai.OpenAI,
        anthropic.Anthropic,
    )
    for name in ("request", "_process_response", "copy", "with_options", "with_middleware")
    if name in cls.__dict__
]


async def go(way: Way, client: Any, asynchronous: bool) -> Any:
    """Go one way in."""
    return await way.arun(client) if asynchronous else way.run(client)


@ways()
@both_kinds
async def test_every_way_in_is_one_call_with_exact_usage(way: Way, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """Whatever of the SDK is used, there is one call, with the provider's own counts, model, tier and id."""
    client = wrap(provider.client(way.sdk, asynchronous=asynchronous))

    await go(way, client, asynchronous)

    call = calls.one()
    assert call.outcome == "ok"
    assert (call.requested_model, call.model) == MODELS[way.endpoint]
    assert (call.response_id, call.service_tier) == (IDS[way.endpoint], TIERS[way.endpoint])
    assert call.finish_reasons == REASONS[way.endpoint]
    assert (call.provider, call.endpoint, call.host) == (way.sdk, way.endpoint, f"api.{way.sdk}.com")
    assert (call.http_status, call.attempts, call.streamed) == (200, 1, way.streamed)
    assert call.duration is not None
    if way.endpoint == "chat" and way.by_hand and way.streamed:
        assert call.estimated  # nothing was asked for, as it would show in the body
    else:
        assert call.usage == USAGE[way.endpoint]
        assert not call.estimated
    if way.streamed and not way.by_hand:
        assert call.ttft is not None
        assert 0 < call.ttft <= call.duration


@ways(streamed=False)
@both_kinds
async def test_wrapping_twice_is_the_same_as_once(way: Way, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """A client that was wrapped three times, and is instrumented too, still makes one call."""
    client = provider.client(way.sdk, asynchronous=asynchronous)
    assert wrap(wrap(wrap(client))) is client
    instrument()

    await go(way, client, asynchronous)

    calls.one()


@both_kinds
@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
async def test_a_client_that_was_not_wrapped_makes_no_call(sdk: str, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """Wrapping one client leaves every other one alone."""
    wrap(provider.client(sdk, asynchronous=asynchronous))
    other = provider.client(sdk, asynchronous=asynchronous)

    made = other.chat.completions.create(**CHAT) if sdk == "openai" else other.messages.create(**MESSAGES)
    if asynchronous:
        await made

    assert len(provider.bodies) == 1
    assert calls.all() == []


@both_kinds
@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
async def test_instrument_covers_clients_made_before_and_after(sdk: str, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """Whoever creates a client, and whenever, it is metered while the process is instrumented."""
    earlier = provider.client(sdk, asynchronous=asynchronous)
    instrument()
    for client in (earlier, provider.client(sdk, asynchronous=asynchronous), earlier.with_options(timeout=3)):
        made = client.chat.completions.create(**CHAT) if sdk == "openai" else client.messages.create(**MESSAGES)
        if asynchronous:
            await made

    assert [call.provider for call in calls.all()] == [sdk] * 3


def test_uninstrument_leaves_the_classes_as_they_were(provider: Provider, calls: Calls) -> None:
    """The SDKs' methods are the very same functions again, and wrapped clients are inert."""
    before = [(cls, name, cls.__dict__[name]) for cls, name in PATCHED]
    instrument()
    client = wrap(provider.client("openai"))
    wrap(provider.client("anthropic"))
    assert any(cls.__dict__[name] is not function for cls, name, function in before)

    uninstrument()

    assert all(cls.__dict__[name] is function for cls, name, function in before)
    client.chat.completions.create(**CHAT)
    assert calls.all() == []


def test_a_client_wrapped_after_uninstrument_is_metered_again(provider: Provider, calls: Calls) -> None:
    """Uninstrumenting is no dead end."""
    client = wrap(provider.client("openai"))
    uninstrument()

    wrap(client).chat.completions.create(**CHAT)

    calls.one()


def test_uninstrument_leaves_another_patch_in_place(
    provider: Provider, calls: Calls, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """What another tool has put over ours stays where it is, and works."""
    cls = openai._base_client.SyncAPIClient
    original = cls.__dict__["request"]
    client = wrap(provider.client("openai"))
    ours = cls.__dict__["request"]
    seen: list[str] = []

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append("theirs")
        return ours(self, *args, **kwargs)

    request.addfinalizer(lambda: setattr(cls, "request", original))
    cls.request = theirs  # type: ignore[method-assign, assignment]
    uninstrument()

    client.chat.completions.create(**CHAT)
    assert cls.__dict__["request"] is theirs
    assert seen == ["theirs"]


@pytest.mark.parametrize(
    "thing", [None, "sk-123", object(), openai.OpenAI, {"api_key": "k"}], ids=["None", "key", "object", "class", "mapping"]
)
def test_only_a_client_can_be_wrapped(thing: object, calls: Calls) -> None:
    """Anything else is a TypeError that names what was given."""
    with pytest.raises(TypeError, match=r"wrap\(\) takes a client"):
        wrap(thing)


def test_the_named_twins_take_their_own_sdk_only(provider: Provider, calls: Calls) -> None:
    """wrap_openai refuses an anthropic client, and the other way round."""
    assert isinstance(wrap_openai(provider.client("openai")), openai.OpenAI)
    assert isinstance(wrap_anthropic(provider.client("anthropic")), anthropic.Anthropic)
    with pytest.raises(TypeError, match=r"wrap_openai\(\) takes a client of the openai SDK, not anthropic\.Anthropic"):
        wrap_openai(provider.client("anthropic"))
    with pytest.raises(TypeError, match=r"wrap_anthropic\(\) takes a client of the anthropic SDK, not openai\.OpenAI"):
        wrap_anthropic(provider.client("openai"))


def test_a_wrapped_client_keeps_its_class_and_its_options(provider: Provider, calls: Calls) -> None:
    """The type is the SDK's own, also of copies, and nothing of ours shows in its resources."""
    client = provider.client("openai", organization="org")
    resource = client.chat.completions

    wrapped = wrap(client)

    assert type(wrapped) is openai.OpenAI
    assert type(wrapped.with_options(timeout=1)) is openai.OpenAI
    assert wrapped.chat.completions is resource
    assert wrapped.with_options(timeout=1).organization == "org"


def test_a_wrapped_client_is_garbage_collected(provider: Provider, calls: Calls) -> None:
    """Nothing of ours keeps a client alive, though it was copied and has made calls."""
    client = wrap(provider.client("openai"))
    client.with_options(timeout=1).chat.completions.create(**CHAT)
    for _ in client.chat.completions.create(**CHAT, stream=True):
        pass
    gone = weakref.ref(client)

    del client
    gc.collect()

    assert gone() is None
    assert len(calls.all()) == 2


@pytest.mark.parametrize(
    ("base_url", "billed_by"),
    [
        ("https://api.groq.com/openai/v1", "groq"),
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("https://api.cerebras.ai/v1", "cerebras"),
        ("https://api.moonshot.ai/v1", "moonshotai"),
        ("https://api.z.ai/api/paas/v4", "zai"),
        ("https://router.huggingface.co/v1", "huggingface"),
        ("https://notz.ai/v1", "openai"),
        ("https://acme.cognitiveservices.azure.com/openai", "azure"),
        ("http://localhost:4000/v1", "openai"),
        ("https://notgroq.com/v1", "openai"),
    ],
)
def test_the_host_says_who_bills(base_url: str, billed_by: str, provider: Provider, calls: Calls) -> None:
    """A compatible provider is known by its host; any other host is billed as the SDK's own."""
    client = wrap(provider.client("openai"))

    client.with_options(base_url=base_url).chat.completions.create(**CHAT)

    assert calls.one().provider == billed_by


def test_a_client_that_is_pointed_elsewhere_is_billed_there(provider: Provider, calls: Calls) -> None:
    """The host is read again once the base URL of a client has changed."""
    client = wrap(provider.client("openai"))
    client.embeddings.create(**EMBEDDINGS)
    client.base_url = "https://api.groq.com/openai/v1"
    client.embeddings.create(**EMBEDDINGS)

    assert [call.provider for call in calls.all()] == ["openai", "groq"]


@pytest.mark.parametrize("path", ["/chat/completions", "chat/completions", "/chat/completions?beta=true"])
def test_a_path_written_by_hand_is_known(path: str, provider: Provider, calls: Calls) -> None:
    """``client.post()`` is metered however its path is written."""
    wrap(provider.client("openai")).post(path, cast_to=object, body=CHAT)

    assert calls.one().usage == USAGE["chat"]


def test_what_is_not_billed_is_no_call(provider: Provider, calls: Calls) -> None:
    """Listing models and reading a stored answer are free."""
    client = wrap(provider.client("openai"))
    client.models.list()
    client.get("/chat/completions/chatcmpl-1", cast_to=object)
    client.responses.retrieve("resp_1")

    assert len(provider.bodies) == 3
    assert calls.all() == []


def test_nothing_is_metered_while_it_is_switched_off(provider: Provider, calls: Calls, tmp_path: Any) -> None:
    """``configure(enabled=False)`` makes wrapped clients plain ones."""
    client = wrap(provider.client("openai"))
    outer = swap_meter(None)
    try:
        configure(ledger=tmp_path / "off.db", enabled=False)
        client.chat.completions.create(**CHAT)
        list(client.chat.completions.create(**CHAT, stream=True))
    finally:
        swap_meter(outer)

    assert "stream_options" not in provider.bodies[1]
    assert not (tmp_path / "off.db").exists()
    assert calls.all() == []


# -- anthropic's middleware, and requests inside requests ------------------------------------------------------------------------


@needs("anthropic", "with_middleware")
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_each_answer_that_a_middleware_asks_for_is_billed(stream: bool, provider: Provider, calls: Calls) -> None:
    """A middleware of the SDK that sends a request again makes two billed answers of one."""

    def twice(request: Any, call_next: Any) -> Any:
        first = call_next(request)
        if stream:
            list(first.parse())
        return call_next(request)

    client = wrap(provider.client("anthropic")).with_middleware(twice)
    result = client.messages.create(**MESSAGES, stream=stream)
    if stream:
        list(result)

    assert [(call.outcome, call.usage) for call in calls.all()] == [("ok", USAGE["messages"])] * 2


@needs("anthropic", "with_middleware")
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_refusal_that_a_middleware_sees_is_no_answer(stream: bool, provider: Provider, calls: Calls) -> None:
    """A middleware is shown every HTTP answer; the SDK tries again behind it, and that is one call of three attempts."""
    seen = []

    def look(request: Any, call_next: Any) -> Any:
        response = call_next(request)
        seen.append(response.status_code)
        return response

    provider.answer_in_turn(refusal(429), refusal(500), None)
    client = wrap(provider.client("anthropic", max_retries=2)).with_middleware(look)
    result = client.messages.create(**MESSAGES, stream=stream)
    if stream:
        list(result)

    assert seen == [429, 500, 200]
    call = calls.one()
    assert (call.outcome, call.attempts, call.http_status, call.usage) == ("ok", 3, 200, USAGE["messages"])


@needs("anthropic", "with_middleware")
def test_a_request_inside_a_request_is_not_a_part_of_it(provider: Provider, calls: Calls) -> None:
    """A middleware that lists the models, or uses a client of its own that is not wrapped, adds nothing to the call."""
    bare = provider.client("anthropic")
    wrapped = wrap(provider.client("anthropic"))

    def asking(request: Any, call_next: Any) -> Any:
        wrapped.get("/v1/models", cast_to=object)
        bare.messages.create(**MESSAGES)
        return call_next(request)

    wrapped.with_middleware(asking).messages.create(**MESSAGES)

    assert len(provider.bodies) == 3
    assert calls.one().usage == USAGE["messages"]


def first_ways(endpoint: str) -> list[Way]:
    """The first whole answer and the first stream of an endpoint, through the SDK's own methods."""
    found = [way for way in WAYS if way.endpoint == endpoint and not way.by_hand]
    return [next(way for way in found if way.streamed == streamed) for streamed in (False, True)]


class Traced:
    """A ``request`` of another library's on a client's class, which has to be bound to know its client."""

    def __init__(self, method: Any, closed: bool) -> None:
        self.method = method
        self.seen: list[Any] = []
        if not closed:
            self.__wrapped__ = method

    def __get__(self, client: Any, _: Any = None) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.seen.append(client)
            return self.method(client, *args, **kwargs)

        return call if client is not None else self

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("called without being bound")


ORDERS = ("before wrap", "before instrument", "behind wrap", "behind instrument", "between two clients")


@pytest.mark.parametrize(("order", "closed"), [(order, closed) for order in ORDERS for closed in (False, True)])
@pytest.mark.parametrize("way", [one for kind in ("chat", "messages") for one in first_ways(kind)], ids=str)
@both_kinds
async def test_another_library_on_the_client_class(
    way: Way, asynchronous: bool, order: str, closed: bool, provider: Provider, calls: Calls
) -> None:
    """One call, whether the other library came before us or behind us, and it hears of each request once."""
    client = provider.client(way.sdk, asynchronous=asynchronous)
    cls: Any = type(client)
    if order in ("behind wrap", "between two clients"):
        wrap(client)
    elif order == "behind instrument":
        instrument()
    traced = Traced(cls.request, closed)
    cls.request = traced
    try:
        if order == "before wrap":
            wrap(client)
        elif order == "before instrument":
            instrument()
        elif order == "between two clients":
            client = wrap(provider.client(way.sdk, asynchronous=asynchronous))

        await go(way, client, asynchronous)

        call = calls.one()
        assert (call.outcome, call.model, call.estimated) == ("ok", MODELS[way.endpoint][1], False)
        assert traced.seen == [client]
        uninstrument()
        assert cls.__dict__["request"] is traced
    finally:
        uninstrument()
        del cls.request
