"""CostTagMiddleware under a real uvicorn, with the real openai SDK against the loopback provider."""

from __future__ import annotations

import asyncio
import socket
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
import websockets.sync.client
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

import voight_middleware as voight
from voight_middleware.diagnostics import counters
from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.meter import current_meter

from ..support.depth import times
from ..support.garbage import collected
from ..support.waiting import wait_until

QUESTION: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}


class Backend(AuthenticationBackend):
    """Signs in whoever is named by the header ``x-user``."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        name = conn.headers.get("x-user")
        return (AuthCredentials(["authenticated"]), SimpleUser(name)) if name else None


def state_user(connection: HTTPConnection) -> Any:
    return getattr(connection.state, "user", None)


async def slow_state_user(connection: HTTPConnection) -> Any:
    await asyncio.sleep(0.001)
    return getattr(connection.state, "user", None)


@pytest.fixture
def ask(voight_provider: Any) -> Iterator[Callable[[], str | None]]:
    with voight.wrap(openai.OpenAI(api_key="k", base_url=voight_provider.openai_base_url)) as client:
        yield lambda: client.chat.completions.create(**QUESTION).choices[0].message.content


@pytest.fixture
def aask(voight_provider: Any) -> Callable[[], Any]:
    async def call() -> str | None:
        async with openai.AsyncOpenAI(api_key="k", base_url=voight_provider.openai_base_url) as client:
            return (await voight.wrap(client).chat.completions.create(**QUESTION)).choices[0].message.content

    return call


@pytest.mark.slow
@pytest.mark.parametrize("order", ["ours outside", "ours inside"])
def test_default_user(order: str, serve: Any, aask: Any, voight_calls: Any) -> None:
    """Without a getter the owner is request.user, whichever side of the authentication middleware ours is on."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(await aask())

    both = [Middleware(voight.CostTagMiddleware), Middleware(AuthenticationMiddleware, backend=Backend())]
    app = Starlette(routes=[Route("/ask", endpoint)], middleware=both if order == "ours outside" else both[::-1])
    url = serve(app)
    assert httpx.get(f"{url}/ask", headers={"x-user": "alice"}).status_code == 200
    call = voight_calls.one()
    assert (call.tags.user_id, call.tags.route, call.attribution) == ("alice", "GET /ask", "getter")


@pytest.mark.slow
def test_anonymous_is_nobody(serve: Any, aask: Any, voight_calls: Any) -> None:
    """A request without a user is kept without an owner, and counted as such."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(await aask())

    middleware = [Middleware(AuthenticationMiddleware, backend=Backend()), Middleware(voight.CostTagMiddleware)]
    httpx.get(serve(Starlette(routes=[Route("/ask", endpoint)], middleware=middleware)) + "/ask")
    call = voight_calls.one()
    assert (call.tags.user_id, call.attribution) == (None, "none")


@pytest.mark.slow
@pytest.mark.parametrize("getter", [state_user, slow_state_user])
@pytest.mark.parametrize("place", ["async", "threadpool", "loop", "async stream", "sync stream", "background"])
def test_owner_in_every_place(getter: Any, place: str, serve: Any, ask: Any, aask: Any, voight_calls: Any) -> None:
    """The owner is right wherever in a request the call is made, with a synchronous and an asynchronous getter."""

    async def astream() -> AsyncIterator[str]:
        yield await aask()

    def stream() -> Iterator[str]:
        yield ask()

    async def endpoint(request: Request) -> Response:
        request.state.user = "alice"
        if place == "async":
            return PlainTextResponse(await aask())
        if place == "threadpool":
            return PlainTextResponse(await run_in_threadpool(ask))
        if place == "loop":
            return PlainTextResponse(ask())
        if place == "background":
            return PlainTextResponse("later", background=BackgroundTask(ask))
        return StreamingResponse(astream() if place == "async stream" else stream())

    app = Starlette(routes=[Route("/ask/{topic}", endpoint, methods=["POST"])])
    app.add_middleware(voight.CostTagMiddleware, user_getter=getter, plan_getter=lambda _: "pro", tenant_getter=lambda _: "acme")
    assert httpx.post(serve(app) + "/ask/sky").status_code == 200
    serve.stop()
    row = voight_calls.one()
    assert (row.tags.user_id, row.tags.plan, row.tags.tenant_id, row.tags.route) == ("alice", "pro", "acme", "POST /ask/{topic}")
    waits_on_the_loop = place == "loop" and getter is slow_state_user
    assert row.attribution == ("settled" if waits_on_the_loop else "getter")


@pytest.mark.slow
def test_user_known_only_after_the_call(serve: Any, aask: Any, voight_calls: Any) -> None:
    """A call made before the request's user is known gets its owner when the request ends."""

    async def endpoint(request: Request) -> Response:
        answer = await aask()
        request.state.user = "alice"
        return PlainTextResponse(answer)

    app = Starlette(routes=[Route("/ask", endpoint)])
    app.add_middleware(voight.CostTagMiddleware, user_getter=state_user)
    httpx.get(serve(app) + "/ask")
    serve.stop()
    row = voight_calls.one()
    assert (row.tags.user_id, row.attribution) == ("alice", "settled")


def test_getters_are_not_asked_without_a_call(serve: Any) -> None:
    """A request that makes no LLM call costs nobody a look-up."""
    asked: list[str] = []

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(voight.CostTagMiddleware, user_getter=lambda connection: asked.append("user"))
    assert httpx.get(serve(app)).text == "hello"
    assert asked == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("user", "kept"),
    [
        (7, "7"),
        (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        ("", None),
        (None, None),
        (object(), None),
        (" a\x00\nb ", "a\\u0000\\u000ab"),
    ],
)
def test_what_a_getter_may_answer(user: Any, kept: str | None, serve: Any, aask: Any, voight_calls: Any) -> None:
    """Numbers and UUIDs become text, control characters are escaped, and what is no id is no owner."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(await aask())

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(voight.CostTagMiddleware, user_getter=lambda connection: user)
    assert httpx.get(serve(app)).status_code == 200
    assert voight_calls.one().tags.user_id == kept


def test_ten_kilobyte_ids_stay_distinct(serve: Any, aask: Any, voight_calls: Any) -> None:
    """Two ids of 10 kB that differ at their end are two users, in 256 characters each."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(await aask())

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(voight.CostTagMiddleware, user_getter=lambda connection: "x" * 10_000 + connection.headers["x-last"])
    url = serve(app)
    for last in "ab":
        httpx.get(url, headers={"x-last": last})
    users = {call.tags.user_id for call in voight_calls}
    assert len(users) == 2
    assert {len(user) for user in users} == {256}


def test_a_getter_that_raises(serve: Any, aask: Any, voight_calls: Any) -> None:
    """The application does not notice; the call is kept, its attribution says error, and the meter counts it."""

    def broken(connection: HTTPConnection) -> str:
        raise RuntimeError("no database")

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(await aask())

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(voight.CostTagMiddleware, user_getter=broken)
    assert httpx.get(serve(app)).status_code == 200
    call = voight_calls.one()
    assert (call.tags.user_id, call.attribution, call.outcome) == (None, "error", "ok")
    assert counters["getter_errors"] > 0


def test_a_handler_that_raises(serve: Any, aask: Any, voight_calls: Any) -> None:
    """The framework answers 500 as ever, and the calls made before are kept with their owner."""

    async def endpoint(request: Request) -> Response:
        await aask()
        raise LookupError("not ours")

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(voight.CostTagMiddleware, user_getter=lambda connection: "alice")
    assert httpx.get(serve(app)).status_code == 500
    assert voight_calls.one().tags.user_id == "alice"


def test_websocket(serve: Any, aask: Any, voight_calls: Any) -> None:
    """Calls made while a WebSocket is open carry its user and its route."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        for _ in range(2):
            await websocket.receive_text()
            await websocket.send_text(await aask())
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/chat/{room}", endpoint)])
    app.add_middleware(voight.CostTagMiddleware, user_getter=lambda connection: connection.headers["x-user"])
    url = serve(app).replace("http", "ws", 1) + "/chat/7"
    with websockets.sync.client.connect(url, additional_headers={"x-user": "alice"}) as connection:
        for _ in range(2):
            connection.send("hello")
            assert connection.recv()
    assert [(call.tags.user_id, call.tags.route) for call in voight_calls] == [("alice", "WEBSOCKET /chat/{room}")] * 2


def test_pipelined_requests(serve: Any, aask: Any, voight_calls: Any) -> None:
    """An anonymous request pipelined behind a signed-in one has no owner: uvicorn starts it in the first one's context."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(await aask())

    app = Starlette(routes=[Route("/{name}", endpoint)])
    app.add_middleware(voight.CostTagMiddleware, user_getter=lambda connection: connection.headers.get("x-user"))
    host, port = serve(app).removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"GET /first HTTP/1.1\r\nHost: x\r\nx-user: alice\r\n\r\nGET /second HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        answer = b""
        while data := connection.recv(65536):
            answer += data
    assert answer.count(b"200 OK") == 2
    assert [call.tags.user_id for call in voight_calls] == ["alice", None]


def test_mounted_apps_and_explicit_tags(serve: Any, aask: Any, voight_calls: Any) -> None:
    """The route of a mounted application begins with its mount point; set_tags() and tag() lie over the getters."""

    async def endpoint(request: Request) -> Response:
        voight.set_tags(plan="trial", feature="search")
        await aask()
        with voight.tag(user_id="customer", session_id="s_1"):
            await aask()
        return JSONResponse({})

    app = Starlette(routes=[Mount("/api", routes=[Route("/v1/items/{item_id:int}", endpoint)])])
    app.add_middleware(
        voight.CostTagMiddleware,
        user_getter=lambda connection: "admin",
        tenant_getter=lambda connection: "acme",
        tags_getter=lambda connection: {"region": "eu"},
    )
    assert httpx.get(serve(app) + "/api/v1/items/5").status_code == 200
    first, second = (call.tags for call in voight_calls)
    assert (first.user_id, first.plan, first.tenant_id, first.extra) == ("admin", "trial", "acme", {"region": "eu", "feature": "search"})
    assert (second.user_id, second.tenant_id, second.session_id) == ("customer", None, "s_1"), "another user has another tenant"
    assert first.route == second.route == "GET /api/v1/items/{item_id}"


@pytest.mark.slow
def test_shutdown_brings_the_ledger_up_to_date(serve: Any, aask: Any, voight_calls: Any) -> None:
    """When the server has shut down, what it metered is in the ledger, without anybody calling flush()."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(await aask())

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(voight.CostTagMiddleware, user_getter=lambda connection: "alice")
    httpx.get(serve(app))
    serve.stop()
    ledger = open_ledger(current_meter().settings.ledger, create=False)
    assert [call.tags.user_id for call in ledger.calls()] == ["alice"]
    ledger.close()


async def plain_user(connection: HTTPConnection) -> Any:
    return connection.headers.get("x-user")


@pytest.mark.slow
@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_pipelined_under_both_protocols(http: str, serve: Any, aask: Any, voight_calls: Any) -> None:
    """Whichever of its parsers uvicorn uses, a pipelined request has an owner of its own."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(await aask())

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(voight.CostTagMiddleware, user_getter=plain_user)
    host, port = serve(app, http=http).removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nx-user: alice\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"
            b"GET / HTTP/1.1\r\nHost: x\r\nx-user: bob\r\nConnection: close\r\n\r\n"
        )
        while connection.recv(65536):
            pass
    assert [call.tags.user_id for call in voight_calls] == ["alice", None, "bob"]


@pytest.mark.slow
def test_an_asynchronous_getter_that_never_waits(serve: Any, ask: Any, voight_calls: Any) -> None:
    """It answers a synchronous call on the event loop's own thread at once; one that might wait is not even begun there."""
    begun: list[str] = []

    async def waits(connection: HTTPConnection) -> Any:
        begun.append("waits")
        await asyncio.sleep(0)
        return "pro"

    async def endpoint(request: Request) -> Response:
        ask()
        assert begun == []
        return PlainTextResponse("made")

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(voight.CostTagMiddleware, user_getter=plain_user, plan_getter=waits)
    assert httpx.get(serve(app), headers={"x-user": "alice"}).status_code == 200
    serve.stop()
    assert [(call.tags.user_id, call.attribution) for call in voight_calls] == [("alice", "getter")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_task_that_outlives_its_request(kind: str, serve: Any, ask: Any, aask: Any, voight_calls: Any) -> None:
    """The first call of a request may come after its end: its user, and its route, are found all the same."""
    tasks = []

    async def later() -> None:
        await asyncio.sleep(0.1)
        if kind == "sync":
            await asyncio.to_thread(ask)
        else:
            await aask()

    async def endpoint(request: Request) -> Response:
        tasks.append(asyncio.create_task(later()))
        return PlainTextResponse("accepted", 202)

    app = Starlette(routes=[Mount("/api", routes=[Route("/{topic}", endpoint)])])
    app.add_middleware(voight.CostTagMiddleware, user_getter=lambda connection: connection.headers.get("x-user"))
    url = serve(app)
    for user in ("alice", "bob"):
        assert httpx.get(f"{url}/api/sky", headers={"x-user": user}).status_code == 202
    wait_until(lambda: all(task.done() for task in tasks))
    assert sorted((call.tags.user_id, call.tags.route) for call in voight_calls) == [
        ("alice", "GET /api/{topic}"),
        ("bob", "GET /api/{topic}"),
    ]


async def test_what_outliving_tasks_keep(voight_calls: Any) -> None:
    """A request that is over is let go when its task has asked whose it was, though the task goes on; and all of them when theirs end."""

    class State(dict[str, Any]):
        """Can be looked for."""

    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    tasks: list[asyncio.Task[None]] = []
    go_on = asyncio.Event()

    class Held:
        pass

    async def later(asks: bool) -> None:
        if asks:
            voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1, "completion_tokens": 1})
        await go_on.wait()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(asyncio.create_task(later(scope["path"] == "/asks")))

    async def one(path: str) -> None:
        held = Held()
        alive.add(held)
        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "state": State(held=held)}
        await voight.CostTagMiddleware(app, lambda connection: "alice")(scope, nothing, nothing)

    async def nothing(*_: Any) -> Any: ...

    with collected():
        for _ in range(times(50, 500)):
            await one("/asks")
        await asyncio.sleep(0)
    assert len(alive) == 0, "each has asked, and none has ended"
    with collected():
        for _ in range(times(50, 500)):
            await one("/quiet")
        go_on.set()
        await asyncio.gather(*tasks)
        tasks.clear()
        await asyncio.sleep(0.01)  # the loop lets go of their last steps
    assert len(alive) == 0
    assert {call.tags.user_id for call in voight_calls} == {"alice"}


@pytest.mark.slow
def test_routes(serve: Any, aask: Any, voight_calls: Any) -> None:
    """Neither a mount point's parameters nor a proxy's path are part of a route; where nothing matches, there is none."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(await aask())

    async def nowhere(request: Request, error: Exception) -> Response:
        return PlainTextResponse(await aask(), 404)

    async def alien(scope: Any, receive: Any, send: Any) -> None:
        await endpoint(Request(scope))
        await PlainTextResponse("made")(scope, receive, send)

    inner = Starlette(routes=[Route("/items/{item_id:int}", endpoint), Route("/same/{user}", endpoint)], exception_handlers={404: nowhere})
    app = Starlette(
        routes=[Mount("/users/{user}", inner), Mount("/alien", alien), Mount("/a", routes=[Mount("/{b}/c", inner)])],
        exception_handlers={404: nowhere},
    )

    async def behind_a_proxy(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["root_path"], scope["path"] = "/proxy", "/proxy" + scope["path"]
        await app(scope, receive, send)

    url = serve(voight.CostTagMiddleware(behind_a_proxy, lambda connection: "alice"))
    paths = {
        "/users/alice/items/5": "GET /users/{user}/items/{item_id}",
        "/alien/x": "GET /alien/{path}",
        "/a/a/c/items/5": "GET /a/{b}/c/items/{item_id}",
        "/users/alice/nothing": None,
        "/nothing": None,
    }
    for path in paths:
        httpx.get(url + path)
    serve.stop()
    assert [call.tags.route for call in voight_calls] == list(paths.values())
