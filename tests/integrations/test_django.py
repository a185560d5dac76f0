"""CostTagMiddleware of voight_django: the owner of each call, in every kind of view, middleware and stream, under WSGI and ASGI."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth import alogin, login, logout
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client
from django.urls import include, path, re_path

import voight_middleware as voight
from voight_middleware.config.settings import Settings
from voight_middleware.context.context import current_context
from voight_middleware.diagnostics import counters
from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.meter import Meter, swap_meter

from .django_project import OURS, SIGN_IN, project, user

QUESTION: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
SYNC_ONLY, ASYNC_ONLY = f"{__name__}.sync_only", f"{__name__}.async_only"


def sync_only(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        return get_response(request)

    return middleware


def async_only(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> Any:
        return await get_response(request)

    return middleware


async_only.sync_capable, async_only.async_capable = False, True  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _connections() -> Iterator[None]:
    """No connection of a test's thread is left to the garbage collector."""
    yield
    connections.close_all()


class Visitor:
    """Makes requests of one user, or of nobody, through Django's handler of WSGI or ASGI."""

    def __init__(self, protocol: str, name: str | None = None) -> None:
        self.client: Any = Client(raise_request_exception=False) if protocol == "WSGI" else AsyncClient(raise_request_exception=False)
        self.cookies = self.client.cookies
        if name is not None:
            self.client.force_login(user(name))

    def get(self, url: str, **options: Any) -> Any:
        if isinstance(self.client, Client):
            response = self.client.get(url, **options)
            if response.streaming:
                response.body = b"".join(response)
            return response
        return asyncio.run(self._get(url, **options))

    async def _get(self, url: str, **options: Any) -> Any:
        response = await self.client.get(url, **options)
        if response.streaming:
            response.body = b"".join([part async for part in response])
        await sync_to_async(response.close)()
        await sync_to_async(connections.close_all)()
        return response


def owners(calls: Any) -> list[tuple[str | None, str]]:
    return [(call.tags.user_id, call.attribution) for call in calls]


@pytest.mark.slow
@pytest.mark.parametrize("streams", [False, True])
def test_synchronous_delivery(streams: bool, aask: Any, tmp_path: Path) -> None:
    """Where delivery is synchronous, the end of an asynchronous request waits until its call is in the ledger."""
    meter = Meter(Settings.from_environment(ledger=tmp_path / "ledger.db", delivery="synchronous"))
    old = swap_meter(meter)

    async def parts() -> AsyncIterator[str]:
        yield await aask()

    async def view(request: HttpRequest) -> Any:
        return StreamingHttpResponse(parts()) if streams else HttpResponse(await aask())

    try:
        with project(path("chat/", view)):
            assert Visitor("ASGI", "alice").get("/chat/").status_code == 200
        with closing(open_ledger(meter.settings.ledger)) as ledger:
            assert [call.tags.user_id for call in ledger.calls()] == [str(user("alice").pk)]
    finally:
        swap_meter(old)
        meter.close()


# -- views and middleware ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["WSGI", "ASGI"])
@pytest.mark.parametrize("view", ["sync", "async", "sync call in async", "async call in sync", "thread of async"])
def test_owner(view: str, protocol: str, ask: Any, aask: Any, voight_calls: Any) -> None:
    """The owner is the signed-in user, though no view reads him; a synchronous call on the loop's own thread has him at the end."""

    def sync(request: HttpRequest, pk: int) -> HttpResponse:
        return HttpResponse(async_to_sync(aask)() if view == "async call in sync" else ask())

    async def asynchronous(request: HttpRequest, pk: int) -> HttpResponse:
        if view == "thread of async":
            return HttpResponse(await sync_to_async(ask, thread_sensitive=False)())
        return HttpResponse(ask() if view == "sync call in async" else await aask())

    with project(path("chats/<int:pk>/", sync if view in ("sync", "async call in sync") else asynchronous), voight={"PLAN_GETTER": plan}):
        for name in ("alice", "bob", None):
            assert Visitor(protocol, name).get("/chats/5/").status_code == 200
    how = "settled" if view == "sync call in async" else "getter"
    assert owners(voight_calls) == [(str(user("alice").pk), how), (str(user("bob").pk), how), (None, "none")]
    assert [call.tags.plan for call in voight_calls] == ["pro", "pro", "pro"]
    assert {call.tags.route for call in voight_calls} == {"GET /chats/<int:pk>/"}


def plan(request: HttpRequest) -> str:
    return "pro"


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["WSGI", "ASGI"])
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    "middleware",
    [
        (OURS, *SIGN_IN),
        (SYNC_ONLY, *SIGN_IN, OURS),
        (*SIGN_IN, OURS, SYNC_ONLY),
        (ASYNC_ONLY, *SIGN_IN, OURS),
        (*SIGN_IN, OURS, ASYNC_ONLY),
        (SYNC_ONLY, OURS, ASYNC_ONLY, *SIGN_IN),
        (ASYNC_ONLY, OURS, SYNC_ONLY, *SIGN_IN),
    ],
    ids=[
        "ours, theirs",
        "sync only, theirs, ours",
        "theirs, ours, sync only",
        "async only, theirs, ours",
        "theirs, ours, async only",
        "sync only, ours, async only, theirs",
        "async only, ours, sync only, theirs",
    ],
)
def test_any_order_of_middleware(middleware: Any, kind: str, protocol: str, ask: Any, aask: Any, voight_calls: Any) -> None:
    """Ours may stand on either side of Django's, and of middleware that is only synchronous or only asynchronous."""

    def sync(request: HttpRequest) -> HttpResponse:
        return HttpResponse(ask())

    async def asynchronous(request: HttpRequest) -> HttpResponse:
        return HttpResponse(await aask())

    with project(path("", sync if kind == "sync" else asynchronous), middleware=middleware):
        assert Visitor(protocol, "alice").get("/").status_code == 200
        assert Visitor(protocol).get("/").status_code == 200
    assert owners(voight_calls) == [(str(user("alice").pk), "getter"), (None, "none")]


def test_nothing_is_left_in_the_thread(ask: Any, voight_calls: Any) -> None:
    """What the thread does after a request belongs to nobody."""
    with project(path("", lambda request: HttpResponse(ask()))):
        Visitor("WSGI", "alice").get("/")
        ask()
    assert owners(voight_calls) == [(str(user("alice").pk), "getter"), (None, "none")]


# -- streams -------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["WSGI", "ASGI"])
@pytest.mark.parametrize("view", ["sync", "async"])
@pytest.mark.parametrize("iterator", ["sync", "async"])
def test_streams(iterator: str, view: str, protocol: str, ask: Any, aask: Any, voight_calls: Any) -> None:
    """A call inside a stream has its owner, whichever iterator any view answers; Django warns of the same ones as without us."""

    def steps() -> Iterator[str]:
        yield "a"
        yield ask()

    async def asteps() -> AsyncIterator[str]:
        yield "a"
        yield await aask()

    def sync(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(steps() if iterator == "sync" else asteps())

    async def asynchronous(request: HttpRequest) -> StreamingHttpResponse:
        return sync(request)

    seen: list[Any] = []
    for middleware in (SIGN_IN, (*SIGN_IN, OURS)):
        urls = path("", sync if view == "sync" else asynchronous)
        with project(urls, middleware=middleware), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            response = Visitor(protocol, "alice").get("/")
        about = [(str(warning.message), warning.filename, warning.lineno) for warning in warned]
        seen.append((response.body, [each for each in about if "must consume" in each[0]]))
    assert seen[0] == seen[1]
    body, warnings_of_django = seen[1]
    assert len(warnings_of_django) == ((protocol, iterator) in (("WSGI", "async"), ("ASGI", "sync")))
    assert len(body) > 1
    assert owners(voight_calls) == [(None, "none"), (str(user("alice").pk), "getter")]


@pytest.mark.parametrize("iterator", ["sync", "async"])
def test_between_the_steps_of_a_stream(iterator: str, voight_calls: Any) -> None:
    """Whoever reads a stream is not inside it: between two steps no tags are in force, and a `with tag()` of the stream's own goes on."""
    seen: list[tuple[str | None, Any]] = []

    def note() -> str:
        tags = voight.current_tags()
        seen.append((tags.user_id, dict(tags.extra)))
        return "."

    def steps() -> Iterator[str]:
        with voight.tag(feature="stream"):
            yield note()
            yield note()
        yield note()

    async def asteps() -> AsyncIterator[str]:
        with voight.tag(feature="stream"):
            yield note()
            yield note()
        yield note()

    def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(steps())

    async def aview(request: Any) -> StreamingHttpResponse:
        await request.auser()  # from now on he is known on the loop's own thread too
        return StreamingHttpResponse(asteps())

    visitor = user("alice")
    with project(path("", view if iterator == "sync" else aview)):
        if iterator == "sync":
            client = Client()
            client.force_login(visitor)
            for _ in client.get("/"):
                assert voight.current_tags() == voight.Tags()
        else:

            async def read() -> None:
                client = AsyncClient()
                await client.aforce_login(visitor)
                async for _ in await client.get("/"):
                    assert voight.current_tags() == voight.Tags()
                await sync_to_async(connections.close_all)()

            asyncio.run(read())
    alice = str(visitor.pk)
    assert seen == [(alice, {"feature": "stream"}), (alice, {"feature": "stream"}), (alice, {})]


@pytest.mark.parametrize("protocol", ["WSGI", "ASGI"])
def test_a_stream_is_settled_when_it_is_closed(protocol: str, ask: Any, aask: Any, voight_calls: Any) -> None:
    """A user who is known only when the stream has begun owns the calls before, also with an asynchronous getter."""

    def steps(request: Any) -> Iterator[str]:
        yield ask()
        request.owner = "alice"

    async def asteps(request: Any) -> AsyncIterator[str]:
        yield await aask()
        request.owner = "alice"

    async def owner(request: Any) -> str | None:
        await asyncio.sleep(0)
        return getattr(request, "owner", None)

    content = steps if protocol == "WSGI" else asteps
    with project(path("", lambda request: StreamingHttpResponse(content(request))), voight={"USER_GETTER": owner}):
        Visitor(protocol).get("/")
    assert owners(voight_calls) == [("alice", "settled")]


def test_a_call_while_a_stream_is_closed(ask: Any, voight_calls: Any) -> None:
    """What a stream that is broken off does at its end belongs to its user too."""

    def steps() -> Iterator[str]:
        try:
            yield "a"
            yield "b"
        finally:
            ask()

    with project(path("", lambda request: StreamingHttpResponse(steps()))):
        client = Client()
        client.force_login(user("alice"))
        response = client.get("/")
        next(iter(response))
        response.close()
    assert owners(voight_calls) == [(str(user("alice").pk), "getter")]


def test_files_stay_files() -> None:
    """A file is still sent by the server's own way of sending files: nothing is put in its place."""
    sent: list[Any] = []

    def file_wrapper(file: Any, size: int) -> list[bytes]:
        sent.append(file.name)
        file.close()
        return [b"sent by the server"]

    with project(path("", lambda request: FileResponse(Path(__file__).open("rb")))):
        environ: dict[str, Any] = {"wsgi.file_wrapper": file_wrapper}
        setup_testing_defaults(environ)
        answer = WSGIHandler()(environ, lambda status, headers: None)
    assert answer == [b"sent by the server"]
    assert sent == [__file__]


# -- who the user is -----------------------------------------------------------------------------------------------------------


def test_a_user_who_signs_in_and_out(ask: Any, voight_calls: Any) -> None:
    """A call before the login of a request is settled with its user; after a logout, calls of the next request have none."""

    def enter(request: HttpRequest) -> HttpResponse:
        ask()
        login(request, user("alice"))
        return HttpResponse(ask())

    def leave(request: HttpRequest) -> HttpResponse:
        logout(request)
        return HttpResponse(ask())

    with project(path("in", enter), path("out", leave), path("", lambda request: HttpResponse(ask()))):
        client = Client()
        for url in ("/in", "/", "/out", "/"):
            client.get(url)
    alice = str(user("alice").pk)
    assert owners(voight_calls) == [(alice, "settled"), (alice, "getter"), (alice, "getter"), (None, "none"), (None, "none")]


def test_a_user_who_signs_in_asynchronously(aask: Any, voight_calls: Any) -> None:
    """``alogin`` is seen as well."""

    async def enter(request: HttpRequest) -> HttpResponse:
        await alogin(request, await sync_to_async(user)("alice"))
        return HttpResponse(await aask())

    with project(path("", enter)):
        Visitor("ASGI").get("/")
    assert owners(voight_calls) == [(str(user("alice").pk), "getter")]


# -- routes --------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "url", "route"),
    [
        (path("chats/<uuid:pk>/", lambda request, **_: 0), "/chats/00000000-0000-0000-0000-000000000007/", "/chats/<uuid:pk>/"),
        (path("a+b(c)/", lambda request: 0), "/a+b(c)/", "/a+b(c)/"),
        (path("api/", include([re_path(r"^items/(?P<pk>[0-9]+)/$", lambda request, **_: 0)])), "/api/items/7/", "/api/items/<pk>/"),
        (re_path(r"^v(\d)/(?:chats|talks)/((?:a|b)\w+)/?$", lambda request, *_: 0), "/v1/talks/abc", "/v<var>/<var>/<var>/"),
        (re_path(r"^(?P<pk>[^/.)]+)\.(?P<format>[a-z0-9]+)/?\Z", lambda request, **_: 0), "/7.json", "/<pk>.<format>/"),
        (path("", lambda request: 0), "/", "/"),
    ],
    ids=["converter", "signs", "regex below a path", "regex without names", "regex with a format", "root"],
)
def test_route(pattern: Any, url: str, route: str, ask: Any, voight_calls: Any) -> None:
    """The route is the method and the template of the URL that was matched, a regular expression made readable."""

    def view_of(pattern: Any) -> Any:
        if hasattr(pattern, "url_patterns"):
            for inner in pattern.url_patterns:
                view_of(inner)
        else:
            pattern.callback = lambda request, *args, **kwargs: HttpResponse(ask())
        return pattern

    with project(view_of(pattern)):
        assert Client().get(url).status_code == 200
        assert Client().post(url, SCRIPT_NAME="/mounted").status_code == 200
    assert [call.tags.route for call in voight_calls] == [f"GET {route}", f"POST /mounted{route}"]


def test_a_call_before_the_url_is_resolved(ask: Any, voight_calls: Any) -> None:
    """A call made by middleware has no route, and its user."""

    def asking(get_response: Any) -> Any:
        def middleware(request: HttpRequest) -> Any:
            ask()
            return get_response(request)

        return middleware

    globals()["asking"] = asking
    with project(path("", lambda request: HttpResponse()), middleware=(*SIGN_IN, OURS, f"{__name__}.asking")):
        Visitor("WSGI", "alice").get("/")
    call = voight_calls.one()
    assert (call.tags.user_id, call.tags.route) == (str(user("alice").pk), None)


# -- getters that fail ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["WSGI", "ASGI"])
def test_a_getter_that_raises(protocol: str, ask: Any, voight_calls: Any) -> None:
    """The application does not notice; the call is kept, its attribution says error, and the meter counts it."""

    def broken(request: HttpRequest) -> str:
        raise RuntimeError("no database")

    with project(path("", lambda request: HttpResponse(ask())), voight={"USER_GETTER": broken}):
        assert Visitor(protocol, "alice").get("/").status_code == 200
    assert owners(voight_calls) == [(None, "error")]
    assert counters["getter_errors"] > 0


@pytest.mark.slow
def test_the_request_is_let_go(voight_calls: Any) -> None:
    """A request is gone as soon as its stream is closed: nothing of ours keeps it for the garbage collector."""
    requests: list[Any] = []

    def view(request: HttpRequest) -> StreamingHttpResponse:
        requests.append(weakref.ref(request))
        return StreamingHttpResponse([b"a"])

    def handle() -> None:
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        response: Any = WSGIHandler()(environ, lambda status, headers: None)
        assert b"".join(response) == b"a"
        response.close()

    counts = []
    for middleware in ((), (OURS,)):
        with project(path("", view), middleware=middleware):
            gc.collect()
            gc.disable()
            try:
                handle()
                counts.append([request() is None for request in requests])
            finally:
                gc.enable()
            requests.clear()
    assert counts[0] == counts[1]


@pytest.mark.slow
def test_threads_that_ask_at_once(voight_calls: Any) -> None:
    """Threads that are the first to ask, all at once, get one scope."""
    scopes: list[set[int]] = []

    def ask_at_once(request: HttpRequest) -> HttpResponse:
        barrier = threading.Barrier(8)

        def ask() -> None:
            barrier.wait()
            found.append(current_context().scope)

        found: list[Any] = []
        contexts = [contextvars.copy_context() for _ in range(8)]
        threads = [threading.Thread(target=context.run, args=(ask,)) for context in contexts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        scopes.append({id(scope) for scope in found})
        return HttpResponse()

    with project(path("", ask_at_once), middleware=[OURS]):
        for _ in range(20):
            Visitor("WSGI").get("/")
    assert [len(found) for found in scopes] == [1] * 20
