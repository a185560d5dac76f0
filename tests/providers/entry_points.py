"""Every way into the two SDKs that is billed: what is called, and what its caller gets."""

import functools
import inspect
import operator
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel

CHAT: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Where?"}]}
RESPONSES: dict[str, Any] = {"model": "gpt-4o-mini", "input": "Where?"}
EMBEDDINGS: dict[str, Any] = {"model": "text-embedding-3-small", "input": "Where?", "encoding_format": "float"}
MESSAGES: dict[str, Any] = {"model": "claude-opus-4-8", "max_tokens": 64, "messages": [{"role": "user", "content": "Where?"}]}


class City(BaseModel):
    """What ``parse()`` is to make of an answer."""

    city: str


# -- what the installed SDKs have, of whatever version ---------------------------------------------------------------------------


@functools.cache
def has(sdk: str, path: str) -> bool:
    """Whether a client of the installed SDK has a method, such as ``beta.messages.parse``."""
    client: Any = openai.OpenAI(api_key="k") if sdk == "openai" else anthropic.Anthropic(api_key="k")
    try:
        operator.attrgetter(path)(client)
    except AttributeError:
        return False
    return True


def needs(sdk: str, path: str) -> Any:
    """Leave a test out where the installed SDK has no such method."""
    return pytest.mark.skipif(not has(sdk, path), reason=f"this {sdk} has no {path}")


async def parsed(response: Any) -> Any:
    """The parsed answer of an asynchronous ``with_raw_response``, whose ``parse()`` is synchronous in openai and anthropic 0.x."""
    result = response.parse()
    return await result if inspect.isawaitable(result) else result


_OLD_NAME = pytest.mark.filterwarnings("ignore:The 'output_format' parameter is deprecated:DeprecationWarning")  # beta of anthropic 0.125


# -- the ways in -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way in: its name, whose client it takes, the endpoint, and the two functions that go it."""

    name: str
    sdk: str
    endpoint: str
    run: Callable[[Any], Any]
    arun: Callable[[Any], Awaitable[Any]]
    streamed: bool = False
    by_hand: bool = False
    """Whether the caller reads the body themselves, so that nothing they did not ask for may be in it."""

    def __str__(self) -> str:
        return self.name


WAYS: list[Way] = []


def _add(name: str, sdk: str, endpoint: str, run: Any, arun: Any, *, streamed: bool = False, by_hand: bool = False) -> None:
    WAYS.append(Way(name, sdk, endpoint, run, arun, streamed, by_hand))


def _shown(event: Any) -> Any:
    """An event or an answer, in a form that compares."""
    return event.to_dict(warnings=False) if hasattr(event, "to_dict") else repr(event)


def _simple(name: str, sdk: str, endpoint: str, method: Callable[[Any], Any], arguments: dict[str, Any]) -> None:
    """Every way to call one ``create``: plain, raw, and on a copy of the client."""

    def plain(client: Any) -> Any:
        return _shown(method(client).create(**arguments))

    async def aplain(client: Any) -> Any:
        return _shown(await method(client).create(**arguments))

    def raw(client: Any) -> Any:
        response = method(client).with_raw_response.create(**arguments)
        return response.headers["content-type"], response.http_response.content, _shown(response.parse())

    async def araw(client: Any) -> Any:
        response = await method(client).with_raw_response.create(**arguments)
        return response.headers["content-type"], response.http_response.content, _shown(await parsed(response))

    def unparsed(client: Any) -> Any:
        return method(client).with_raw_response.create(**arguments).http_response.json()

    async def aunparsed(client: Any) -> Any:
        return (await method(client).with_raw_response.create(**arguments)).http_response.json()

    _add(f"{name}.create", sdk, endpoint, plain, aplain)
    _add(f"{name}.with_raw_response.parse", sdk, endpoint, raw, araw)
    _add(f"{name}.with_raw_response", sdk, endpoint, unparsed, aunparsed)
    for copied in ("with_options", "copy"):

        def on_a_copy(client: Any, copied: str = copied) -> Any:
            return plain(getattr(client, copied)(timeout=7).with_options(max_retries=0))

        async def aon_a_copy(client: Any, copied: str = copied) -> Any:
            return await aplain(getattr(client, copied)(timeout=7).with_options(max_retries=0))

        _add(f"{copied}.{name}.create", sdk, endpoint, on_a_copy, aon_a_copy)


def _opened(name: str, sdk: str, endpoint: str, method: Callable[[Any], Any], arguments: dict[str, Any]) -> None:
    """Every way to read the body of one ``create`` while it comes."""

    def opened(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(client: Any) -> Any:
            with method(client).with_streaming_response.create(**arguments) as response:
                return read(response)

        return run

    def aopened(read: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Any]:
        async def run(client: Any) -> Any:
            async with method(client).with_streaming_response.create(**arguments) as response:
                return await read(response)

        return run

    async def aparse(response: Any) -> Any:
        return _shown(await response.parse())

    async def aread(response: Any) -> Any:
        return await response.read()

    async def alines(response: Any) -> Any:
        return [line async for line in response.iter_lines()]

    _add(f"{name}.with_streaming_response.parse", sdk, endpoint, opened(lambda response: _shown(response.parse())), aopened(aparse))
    _add(f"{name}.with_streaming_response.read", sdk, endpoint, opened(lambda response: response.read()), aopened(aread))
    _add(
        f"{name}.with_streaming_response.iter_lines", sdk, endpoint, opened(lambda it: list(it.iter_lines())), aopened(alines), by_hand=True
    )


def _streaming(name: str, sdk: str, endpoint: str, method: Callable[[Any], Any], arguments: dict[str, Any]) -> None:
    """Every way to stream one ``create``."""
    arguments = {**arguments, "stream": True}

    def plain(client: Any) -> Any:
        return [_shown(event) for event in method(client).create(**arguments)]

    async def aplain(client: Any) -> Any:
        return [_shown(event) async for event in await method(client).create(**arguments)]

    def in_block(client: Any) -> Any:
        seen = []
        with method(client).create(**arguments) as stream:
            while (event := next(stream, None)) is not None:
                seen.append(_shown(event))
        return seen

    async def ain_block(client: Any) -> Any:
        seen = []
        async with await method(client).create(**arguments) as stream:
            while (event := await anext(stream, None)) is not None:
                seen.append(_shown(event))
        return seen

    def raw(client: Any) -> Any:
        return [_shown(event) for event in method(client).with_raw_response.create(**arguments).parse()]

    async def araw(client: Any) -> Any:
        response = await method(client).with_raw_response.create(**arguments)
        return [_shown(event) async for event in await parsed(response)]

    def opened(client: Any) -> Any:
        with method(client).with_streaming_response.create(**arguments) as response:
            return [_shown(event) for event in response.parse()]

    async def aopened(client: Any) -> Any:
        async with method(client).with_streaming_response.create(**arguments) as response:
            return [_shown(event) async for event in await response.parse()]

    def lines(client: Any) -> Any:
        with method(client).with_streaming_response.create(**arguments) as response:
            return list(response.iter_lines())

    async def alines(client: Any) -> Any:
        async with method(client).with_streaming_response.create(**arguments) as response:
            return [line async for line in response.iter_lines()]

    _add(f"{name}.create(stream)", sdk, endpoint, plain, aplain, streamed=True)
    _add(f"{name}.create(stream) with next", sdk, endpoint, in_block, ain_block, streamed=True)
    _add(f"{name}.with_raw_response(stream).parse", sdk, endpoint, raw, araw, streamed=True)
    # A chat stream that is parsed here carries no usage: injecting it would show in a body that is read by hand.
    unasked = endpoint == "chat"
    _add(f"{name}.with_streaming_response(stream).parse", sdk, endpoint, opened, aopened, streamed=True, by_hand=unasked)
    _add(f"{name}.with_streaming_response(stream).iter_lines", sdk, endpoint, lines, alines, streamed=True, by_hand=True)


for _name, _sdk, _endpoint, _method, _arguments in (
    ("chat", "openai", "chat", lambda client: client.chat.completions, CHAT),
    ("responses", "openai", "responses", lambda client: client.responses, RESPONSES),
    ("messages", "anthropic", "messages", lambda client: client.messages, MESSAGES),
    ("beta.messages", "anthropic", "messages", lambda client: client.beta.messages, MESSAGES),
):
    _simple(_name, _sdk, _endpoint, _method, _arguments)
    _opened(_name, _sdk, _endpoint, _method, _arguments)
    _streaming(_name, _sdk, _endpoint, _method, _arguments)
for _ways in (_simple, _opened):
    _ways("embeddings", "openai", "embeddings", lambda client: client.embeddings, EMBEDDINGS)


def _helpers(name: str, sdk: str, endpoint: str, path: str, *, arguments: dict[str, Any], form: str, final: str) -> None:
    """``parse()`` and the ``stream()`` helper, of what is found at *path* of a client."""
    method = operator.attrgetter(path)

    def parse(client: Any) -> Any:
        return _shown(method(client).parse(**arguments, **{form: City}))

    async def aparse(client: Any) -> Any:
        return _shown(await method(client).parse(**arguments, **{form: City}))

    def stream(client: Any) -> Any:
        with method(client).stream(**arguments) as events:
            return [_shown(event) for event in events], _shown(getattr(events, final)())

    async def astream(client: Any) -> Any:
        async with method(client).stream(**arguments) as events:
            return [_shown(event) async for event in events], _shown(await getattr(events, final)())

    if has(sdk, f"{path}.parse"):
        _add(f"{name}.parse", sdk, endpoint, parse, aparse)
    if has(sdk, f"{path}.stream"):
        _add(f"{name}.stream", sdk, endpoint, stream, astream, streamed=True)


for _name, _path in (("chat", "chat.completions"), ("beta.chat", "beta.chat.completions")):
    _helpers(_name, "openai", "chat", _path, arguments=CHAT, form="response_format", final="get_final_completion")
_helpers("responses", "openai", "responses", "responses", arguments=RESPONSES, form="text_format", final="get_final_response")
for _name in ("messages", "beta.messages"):
    _helpers(_name, "anthropic", "messages", _name, arguments=MESSAGES, form="output_format", final="get_final_message")


def _text(client: Any) -> Any:
    with client.messages.stream(**MESSAGES) as stream:
        return list(stream.text_stream), stream.get_final_text()


async def _atext(client: Any) -> Any:
    async with client.messages.stream(**MESSAGES) as stream:
        return [text async for text in stream.text_stream], await stream.get_final_text()


_add("messages.stream.text_stream", "anthropic", "messages", _text, _atext, streamed=True)


def _passing_on(client: Any) -> Any:
    return client.with_middleware(lambda request, call_next: call_next(request)).messages


def _apassing_on(client: Any) -> Any:
    async def pass_on(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    return client.with_middleware(pass_on).messages


def _behind(client: Any) -> Any:
    return _shown(_passing_on(client).create(**MESSAGES))


async def _abehind(client: Any) -> Any:
    return _shown(await _apassing_on(client).create(**MESSAGES))


def _streamed_behind(client: Any) -> Any:
    return [_shown(event) for event in _passing_on(client).create(**MESSAGES, stream=True)]


async def _astreamed_behind(client: Any) -> Any:
    return [_shown(event) async for event in await _apassing_on(client).create(**MESSAGES, stream=True)]


if has("anthropic", "with_middleware"):
    _add("with_middleware.messages.create", "anthropic", "messages", _behind, _abehind)
    _add("with_middleware.messages.create(stream)", "anthropic", "messages", _streamed_behind, _astreamed_behind, streamed=True)


def _post(client: Any) -> Any:
    return _shown(client.post("/chat/completions", cast_to=openai.types.chat.ChatCompletion, body=CHAT))


async def _apost(client: Any) -> Any:
    return _shown(await client.post("/chat/completions", cast_to=openai.types.chat.ChatCompletion, body=CHAT))


def _message_post(client: Any) -> Any:
    return _shown(client.post("/v1/messages", cast_to=anthropic.types.Message, body=MESSAGES))


async def _amessage_post(client: Any) -> Any:
    return _shown(await client.post("/v1/messages", cast_to=anthropic.types.Message, body=MESSAGES))


_add("client.post chat", "openai", "chat", _post, _apost)
_add("client.post messages", "anthropic", "messages", _message_post, _amessage_post)


def ways(*, streamed: bool | None = None) -> Any:
    """Parametrise a test over the ways in."""
    chosen = [pytest.param(way, marks=_OLD_NAME) for way in WAYS if streamed is None or way.streamed == streamed]
    return pytest.mark.parametrize("way", chosen, ids=str)


both_kinds = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
