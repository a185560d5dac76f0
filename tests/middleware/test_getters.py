"""Who says who the user is: the order of all sources in real calls, and a header of a trusted proxy."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from django.http.request import HttpHeaders
from fastapi import Depends, FastAPI, Request
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request as WerkzeugRequest

import voight_middleware as voight
from voight_fastapi import cost_tags

SOURCES = ("tag", "dependency", "getter", "request")
"""From the strongest to the weakest; the last is the user that the request names to the provider."""
QUESTION: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}


def said_by(source: str, connection: HTTPConnection) -> str | None:
    """What the test wants this source to say."""
    return connection.headers.get(f"x-{source}")


def getter(connection: HTTPConnection) -> str | None:
    return said_by("getter", connection)


async def never_waits(connection: HTTPConnection) -> str | None:
    return said_by("getter", connection)


async def waits(connection: HTTPConnection) -> str | None:
    await asyncio.sleep(0.001)
    return said_by("getter", connection)


def application(user_getter: Any, provider: Any) -> FastAPI:
    client = voight.wrap(openai.OpenAI(api_key="k", base_url=provider.openai_base_url))
    aclient = voight.wrap(openai.AsyncOpenAI(api_key="k", base_url=provider.openai_base_url))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        client.close()
        await aclient.close()

    def current_user(request: Request) -> str | None:
        return said_by("dependency", request)

    app = FastAPI(lifespan=lifespan, dependencies=[Depends(cost_tags(current_user))])
    app.add_middleware(voight.CostTagMiddleware, user_getter=user_getter)

    def question(request: Request) -> Any:
        user = said_by("request", request)
        return QUESTION if user is None else {**QUESTION, "user": user}

    @app.get("/awaited")
    async def awaited(request: Request) -> None:
        with voight.tag(user_id=said_by("tag", request)):
            await aclient.chat.completions.create(**question(request))

    @app.get("/thread")
    def thread(request: Request) -> None:
        with voight.tag(user_id=said_by("tag", request)):
            client.chat.completions.create(**question(request))

    @app.get("/loop")
    async def loop(request: Request) -> None:
        with voight.tag(user_id=said_by("tag", request)):
            client.chat.completions.create(**question(request))

    return app


@pytest.mark.slow
@pytest.mark.parametrize("place", ["awaited", "thread", "loop"])
@pytest.mark.parametrize("user_getter", [getter, never_waits, waits])
def test_the_order_of_all_sources(place: str, user_getter: Any, serve: Any, voight_provider: Any, voight_calls: Any) -> None:
    """
    Tag, then dependency, then getter, then the request's own user, in every combination; the call says which of them it was.

    An asynchronous getter is awaited in asynchronous code and from a worker thread, run where it need not wait, and else settles the call.
    The request's own user counts within a web request only where the application trusts it.
    """
    voight.configure(request_identity=True)
    url = serve(application(user_getter, voight_provider))
    combinations = [said for count in range(5) for said in itertools.combinations(SOURCES, count)]
    with httpx.Client() as http:
        for said in combinations:
            http.get(f"{url}/{place}", headers={f"x-{source}": f"u_{source}" for source in said}).raise_for_status()
    serve.stop()
    settles = place == "loop" and user_getter is waits
    for said, call in zip(combinations, voight_calls.all(), strict=True):
        strongest = said[0] if said else "none"
        how = "settled" if strongest == "getter" and settles else strongest
        assert (call.tags.user_id, call.attribution) == (f"u_{strongest}" if said else None, how), said
        assert call.tags.route == f"GET /{place}"


@pytest.mark.slow
def test_a_getter_that_raises_is_the_source_of_nothing(serve: Any, voight_provider: Any, voight_calls: Any) -> None:
    """The call says `error`, unless anybody else names its owner."""

    def broken(connection: HTTPConnection) -> str:
        raise LookupError

    voight.configure(request_identity=True)
    url = serve(application(broken, voight_provider))
    with httpx.Client() as http:
        for source in (None, *SOURCES):
            http.get(f"{url}/thread", headers={f"x-{source}": "u"} if source else {}).raise_for_status()
    serve.stop()
    assert [call.attribution for call in voight_calls] == ["error", "tag", "dependency", "error", "request"]


# -- a header ------------------------------------------------------------------------------------------------------------------


def of_starlette(*headers: tuple[str, str]) -> Any:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return HTTPConnection({"type": "http", "headers": raw})


def of_werkzeug(*headers: tuple[str, str]) -> Any:
    builder = EnvironBuilder(headers=list(headers))
    try:
        return WerkzeugRequest(builder.get_environ())
    finally:
        builder.close()


def of_django(*headers: tuple[str, str]) -> Any:
    meta: dict[str, str] = {}
    for name, value in headers:
        key = f"HTTP_{name.upper().replace('-', '_')}"
        meta[key] = f"{meta[key]},{value}" if key in meta else value
    return SimpleNamespace(headers=HttpHeaders(meta))  # a whole HttpRequest needs settings, and a process has one set of them


@pytest.mark.parametrize("request_of", [of_starlette, of_werkzeug, of_django])
def test_the_header_of_a_proxy(request_of: Any) -> None:
    """It is read from each framework's own request, in any case; what is empty or missing names nobody."""
    read = voight.user_from_header("X-User-Id", trusted=True)
    assert read(request_of(("x-user-id", " u_7 "), ("x-other", "u_8"))) == "u_7"
    assert read(request_of(("X-USER-ID", "u_7"))) == "u_7"
    assert read(request_of(("X-User-Id", "  "))) is None
    assert read(request_of(("X-Other", "u_8"))) is None


@pytest.mark.parametrize("request_of", [of_starlette, of_werkzeug, of_django])
def test_a_header_that_was_sent_twice_bills_neither(request_of: Any) -> None:
    """Where a proxy adds its header to the client's instead of replacing it, nobody is billed for whom the client has named."""
    read = voight.user_from_header("X-User-Id", trusted=True)
    assert read(request_of(("X-User-Id", "victim"), ("X-User-Id", "u_7"))) not in ("victim", "u_7")


def test_a_header_is_not_trusted_by_itself() -> None:
    """Whoever writes it must say that a proxy sets it: any client can send any header."""
    with pytest.raises(ValueError, match=r"any client can send X-User-Id.*header\('X-User-Id', trusted=True\)"):
        voight.user_from_header("X-User-Id")
    with pytest.raises(ValueError, match="any client"):
        voight.user_from_header("X-User-Id", trusted="yes")  # type: ignore[arg-type]
    for name in ("", "X User", "X-User:"):
        with pytest.raises(ValueError, match="not a header name"):
            voight.user_from_header(name, trusted=True)


@pytest.mark.slow
def test_a_header_owns_a_call(serve: Any, voight_calls: Any) -> None:
    """As the getter of a middleware, over HTTP."""

    async def spend(request: Request) -> PlainTextResponse:
        voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1})
        return PlainTextResponse("")

    app = Starlette(routes=[Route("/", spend)])
    app.add_middleware(voight.CostTagMiddleware, user_getter=voight.user_from_header("X-User-Id", trusted=True))
    url = serve(app)
    with httpx.Client() as http:
        http.get(url, headers={"x-user-id": "u_7"}).raise_for_status()
        http.get(url).raise_for_status()
    serve.stop()
    assert [(call.tags.user_id, call.attribution) for call in voight_calls] == [("u_7", "getter"), (None, "none")]
