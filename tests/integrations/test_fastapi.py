"""voight_fastapi under a real uvicorn, with the application's own dependency."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import httpx
import openai
import pytest
import websockets.sync.client
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

import voight_middleware as voight
from voight_fastapi import CostTagMiddleware, cost_tags
from voight_middleware.context.context import use_scope
from voight_middleware.diagnostics import counters
from voight_middleware.middleware.asgi import AsgiScope
from voight_middleware.middleware.getters import Getters

from ..support.patching import Patch

bearer = HTTPBearer()
QUESTION: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}


class User:
    def __init__(self, token: str) -> None:
        self.id = token
        self.plan = "pro" if token == "alice" else "free"
        self.tenant = f"tenant of {token}"


class Dependency:
    """``get_current_user`` of an application, counting how often it is asked."""

    def __init__(self, asynchronous: bool) -> None:
        self.asked = 0
        self.function: Callable[..., Any] = self.later if asynchronous else self.now

    def now(self, credentials: HTTPAuthorizationCredentials = Depends(bearer)) -> User:
        self.asked += 1
        if credentials.credentials == "nobody":
            raise HTTPException(401, "who?")
        return User(credentials.credentials)

    async def later(self, credentials: HTTPAuthorizationCredentials = Depends(bearer)) -> User:
        await asyncio.sleep(0)
        return self.now(credentials)


def application(provider: Any, dependency: Dependency, middleware: bool) -> FastAPI:
    client = voight.wrap(openai.AsyncOpenAI(api_key="k", base_url=provider.openai_base_url))
    sync_client = voight.wrap(openai.OpenAI(api_key="k", base_url=provider.openai_base_url))
    tags = Depends(cost_tags(dependency.function, plan=lambda user: user.plan, tenant=lambda user: user.tenant))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await client.close()
        sync_client.close()

    app = FastAPI(lifespan=lifespan)
    router = APIRouter(prefix="/v1", dependencies=[tags])

    @router.post("/chats/{chat_id}")
    async def chat(chat_id: int, user: User = Depends(dependency.function)) -> str | None:
        return (await client.chat.completions.create(**QUESTION)).choices[0].message.content

    @router.post("/sync/{chat_id}")
    def sync_chat(chat_id: int) -> str | None:
        return sync_client.chat.completions.create(**QUESTION).choices[0].message.content

    @router.post("/streams/{chat_id}")
    async def stream(chat_id: int) -> StreamingResponse:
        async def answer() -> Any:
            async for chunk in await client.chat.completions.create(**QUESTION, stream=True):
                yield chunk.choices[0].delta.content or ""

        return StreamingResponse(answer())

    @app.get("/open")
    async def open_to_all(request: Request) -> str | None:
        return (await client.chat.completions.create(**QUESTION)).choices[0].message.content

    app.include_router(router)
    if middleware:
        app.add_middleware(CostTagMiddleware)
    return app


@pytest.mark.slow
@pytest.mark.parametrize("middleware", [True, False])
@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("path", ["chats", "sync", "streams"])
def test_owner(path: str, asynchronous: bool, middleware: bool, serve: Any, voight_provider: Any, voight_calls: Any) -> None:
    """Every call has the dependency's user, plan and tenant; it is asked once per request, and leaves nobody behind."""
    dependency = Dependency(asynchronous)
    url = serve(application(voight_provider, dependency, middleware))
    with httpx.Client() as client:
        for name in ("alice", "bob"):
            assert client.post(f"{url}/v1/{path}/5", headers={"authorization": f"Bearer {name}"}).status_code == 200
        assert client.get(f"{url}/open").status_code == 200
        assert client.post(f"{url}/v1/{path}/5", headers={"authorization": "Bearer nobody"}).status_code == 401
    serve.stop()
    owners = [(call.tags.user_id, call.tags.plan, call.tags.tenant_id, call.attribution) for call in voight_calls]
    assert owners == [
        ("alice", "pro", "tenant of alice", "dependency"),
        ("bob", "free", "tenant of bob", "dependency"),
        (None, None, None, "none"),
    ]
    assert voight_calls[0].tags.route == f"POST /v1/{path}/{{chat_id}}"
    assert dependency.asked == 3


@pytest.mark.slow
def test_dependency_overrides_and_schema(serve: Any, voight_provider: Any, voight_calls: Any) -> None:
    """``dependency_overrides`` replaces the user here too, and the OpenAPI schema keeps its security."""
    dependency = Dependency(asynchronous=False)
    app = application(voight_provider, dependency, middleware=True)
    app.dependency_overrides[dependency.function] = lambda: User("tester")
    url = serve(app)
    assert httpx.post(f"{url}/v1/sync/5").status_code == 200
    assert voight_calls.one().tags.user_id == "tester"
    assert app.openapi()["paths"]["/v1/sync/{chat_id}"]["post"]["security"] == [{"HTTPBearer": []}]


@pytest.mark.slow
def test_websocket(serve: Any, voight_provider: Any, voight_calls: Any) -> None:
    """The dependency tags WebSocket routes too."""
    client = voight.wrap(openai.AsyncOpenAI(api_key="k", base_url=voight_provider.openai_base_url))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await client.close()

    app = FastAPI(lifespan=lifespan)

    def user(token: str) -> dict[str, str]:
        return {"id": token}

    @app.websocket("/ws/{room}", dependencies=[Depends(cost_tags(user))])
    async def endpoint(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        answer = await client.chat.completions.create(**QUESTION)
        await websocket.send_text(answer.choices[0].message.content or "")
        await websocket.close()

    url = serve(app).replace("http", "ws", 1)
    with websockets.sync.client.connect(f"{url}/ws/blue?token=alice") as connection:
        assert connection.recv()
    serve.stop()
    call = voight_calls.one()
    assert (call.tags.user_id, call.tags.route) == ("alice", "WEBSOCKET /ws/{room}")


class Asks:
    """An application whose routes make one call each, and what it served."""

    def __init__(self, provider: Any, serve: Any, **options: Any) -> None:
        client = voight.wrap(openai.OpenAI(api_key="k", base_url=provider.openai_base_url))

        @contextlib.asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            yield
            client.close()

        self.app = FastAPI(lifespan=lifespan, **options)
        self.serve = serve

        def ask() -> str | None:
            return client.chat.completions.create(**QUESTION).choices[0].message.content

        self.ask = ask

    def get(self, path: str = "/", **headers: str) -> httpx.Response:
        return httpx.get(self.serve(self.app) + path, headers=headers)


@pytest.fixture
def asks(voight_provider: Any, serve: Any, voight_calls: Any) -> Callable[..., Asks]:
    return lambda **options: Asks(voight_provider, serve, **options)


def plain_user(request: Request) -> dict[str, Any] | None:
    name = request.headers.get("x-user")
    return None if name is None else {"id": name, "plan": "pro"}


@pytest.mark.slow
@pytest.mark.parametrize("middleware", [True, False])
def test_readers_that_raise(middleware: bool, asks: Any, voight_calls: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The request is answered as ever; the call has what the other readers said, and says that there was an error."""

    def broken_user(user: Any) -> str:
        raise LookupError("no such column for alice")

    def broken_plan(user: Any) -> str:
        raise ZeroDivisionError

    served = asks()
    for path, readers in {"/user": {"user": broken_user}, "/plan": {"plan": broken_plan, "tenant": lambda user: "acme"}}.items():
        served.app.get(path, dependencies=[Depends(cost_tags(plain_user, **readers))])(served.ask)
    served.app.get("/object", dependencies=[Depends(cost_tags(plain_user, user=lambda user: user))])(served.ask)
    if middleware:
        served.app.add_middleware(CostTagMiddleware)
    for path in ("/user", "/plan", "/object"):
        answer = served.get(path, **{"x-user": "alice"})
        assert (answer.status_code, answer.json()) == (200, served.ask())
    made = voight_calls.all()[::2]
    assert [(call.tags.user_id, call.attribution) for call in made] == [(None, "error"), ("alice", "dependency"), (None, "error")]
    assert (made[1].tags.plan, made[1].tags.tenant_id) == (None, "acme")
    assert counters["getter_errors"] == 3
    assert "alice" not in caplog.text


def test_more_tags_and_asynchronous_readers(asks: Any, voight_calls: Any) -> None:
    """``tags=`` reads a mapping of further tags; a reader may be asynchronous."""

    async def plan(user: Any) -> str:
        await asyncio.sleep(0)
        return str(user["plan"])

    served = asks(dependencies=[Depends(cost_tags(plain_user, plan=plan, tags=lambda user: {"feature": "search", "session_id": "s"}))])
    served.app.get("/")(served.ask)
    assert served.get(**{"x-user": "alice"}).status_code == 200
    tags = voight_calls.one().tags
    assert (tags.user_id, tags.plan, tags.session_id, tags.extra) == ("alice", "pro", "s", {"feature": "search"})


@pytest.mark.slow
@pytest.mark.parametrize("middleware", [True, False])
def test_the_nearest_of_several(middleware: bool, asks: Any, voight_calls: Any) -> None:
    """Of the application's, the router's and the route's, the one nearest to the route names the user; None names nobody else."""
    served = asks(dependencies=[Depends(cost_tags(lambda: {"id": "app"}, plan=lambda user: "app's"))])
    router = APIRouter(prefix="/router", dependencies=[Depends(cost_tags(lambda: {"id": "router"}))])
    router.get("/route", dependencies=[Depends(cost_tags(lambda: {"id": "route"}))])(served.ask)
    router.get("/none", dependencies=[Depends(cost_tags(lambda: None))])(served.ask)
    served.app.include_router(router)
    served.app.get("/")(served.ask)
    if middleware:
        served.app.add_middleware(CostTagMiddleware)
    for path in ("/router/route", "/router/none", "/"):
        assert served.get(path).status_code == 200
    assert [(call.tags.user_id, call.tags.plan) for call in voight_calls] == [("route", None), ("router", None), ("app", "app's")]


class ByToken:
    """A dependency that is an instance."""

    def __call__(self, request: Request) -> dict[str, str]:
        return {"id": request.headers["x-user"]}


class ByClass:
    """A dependency that is a class: its instance is the user."""

    def __init__(self, request: Request) -> None:
        self.id = request.headers["x-user"]


async def yields(request: Request) -> AsyncIterator[dict[str, str]]:
    yield {"id": request.headers["x-user"]}


def yields_sync(request: Request) -> Any:
    yield {"id": request.headers["x-user"]}


@pytest.mark.slow
@pytest.mark.parametrize("middleware", [True, False])
@pytest.mark.parametrize("dependency", [ByToken(), ByClass, yields, yields_sync], ids=["instance", "class", "async yield", "sync yield"])
def test_kinds_of_dependency(dependency: Any, middleware: bool, asks: Any, voight_calls: Any) -> None:
    """Whatever FastAPI takes for a dependency is one here."""
    served = asks()

    @served.app.get("/")
    def route(tags: Annotated[None, Depends(cost_tags(dependency))], user: Annotated[Any, Depends(dependency)]) -> str | None:
        return served.ask()  # type: ignore[no-any-return]

    if middleware:
        served.app.add_middleware(CostTagMiddleware)
    assert served.get(**{"x-user": "alice"}).status_code == 200
    assert voight_calls.one().tags.user_id == "alice"


def test_tags_of_a_dependency(asks: Any, voight_calls: Any, caplog: pytest.LogCaptureFixture, patch: Patch) -> None:
    """A block over the ``yield`` of a plain function is lost, as FastAPI runs it in a thread's context: a warning says what to do."""

    def block() -> Iterator[None]:
        with voight.tag(plan="block"):
            yield

    async def asynchronous_block() -> AsyncIterator[None]:
        with voight.tag(plan="asynchronous block"):
            yield

    def for_the_request() -> None:
        voight.set_tags(plan="set")

    patch("_warned", set(), within="diagnostics")
    served = asks()
    served.app.add_middleware(CostTagMiddleware)
    for path, dependency in (("/", for_the_request), ("/asynchronous", asynchronous_block), ("/lost", block), ("/again", block)):
        served.app.get(path, dependencies=[Depends(dependency)])(served.ask)
    url = served.serve(served.app)
    for path in ("/", "/asynchronous", "/lost", "/again"):
        assert httpx.get(url + path).status_code == 200

    assert [call.tags.plan for call in voight_calls] == ["set", "asynchronous block", None, None]
    assert [record.getMessage().partition(":")[2].strip() for record in caplog.records if "another context" in record.getMessage()] == [
        "make it `async def`, or call voight.set_tags() in it"
    ]


def test_the_schema_is_the_same(voight_provider: Any) -> None:
    """What the application's own dependency says in OpenAPI is said, and nothing else."""
    dependency = Dependency(asynchronous=True)

    def schema(wrap: Callable[[Any], Any]) -> Any:
        app = FastAPI()

        @app.get("/{item}", dependencies=[Depends(wrap(dependency.function))])
        def route(item: int, q: str = "") -> int:
            return item

        return app.openapi()

    assert schema(cost_tags) == schema(lambda own: own)


@pytest.mark.slow
def test_optional_users(asks: Any, voight_calls: Any) -> None:
    """A dependency that answers None leaves an anonymous call to nobody."""
    served = asks(dependencies=[Depends(cost_tags(plain_user))])
    served.app.get("/")(served.ask)
    served.app.add_middleware(CostTagMiddleware)
    assert served.get(**{"x-user": "alice"}).status_code == served.get().status_code == 200
    assert [(call.tags.user_id, call.attribution) for call in voight_calls] == [("alice", "dependency"), (None, "none")]


@pytest.mark.slow
@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_pipelined_requests_without_the_middleware(http: str, asks: Any, voight_calls: Any) -> None:
    """uvicorn begins a pipelined request in the context of the one before it: its dependency names its own user, or nobody."""
    served = asks(dependencies=[Depends(cost_tags(plain_user))])
    served.app.get("/")(served.ask)
    host, port = served.serve(served.app, http=http).removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nx-user: alice\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\nx-user: bob\r\n\r\n"
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        answer = b""
        while data := connection.recv(65536):
            answer += data
    assert answer.count(b"200 OK") == 3
    assert [call.tags.user_id for call in voight_calls] == ["alice", "bob", None]


@pytest.mark.skipif(not hasattr(Depends(), "scope"), reason="FastAPI before 0.118 tells nobody when it has ended a request")
async def test_an_application_inside_another_request(asks: Any, voight_calls: Any) -> None:
    """Called in the task of another request, the application's user is its own, and gone when it has answered."""
    served = asks(dependencies=[Depends(cost_tags(plain_user))])
    served.app.get("/")(served.ask)
    with use_scope(AsgiScope({"type": "http", "headers": []}, Getters(lambda connection: "outer"))):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served.app), base_url="http://inner") as client:
            assert (await client.get("/", headers={"x-user": "alice"})).status_code == 200
        await asyncio.to_thread(served.ask)
    assert [call.tags.user_id for call in voight_calls] == ["alice", "outer"]


@pytest.mark.slow
def test_routes_of_included_routers_and_mounted_applications(asks: Any, voight_calls: Any) -> None:
    """The route has every prefix that it is included or mounted under, and no parameter's value."""
    served = asks()
    served.app.root_path = "/proxy"
    inner, outer, sub = APIRouter(prefix="/items"), APIRouter(), FastAPI()
    inner.get("/{item_id}")(served.ask)
    outer.include_router(inner, prefix="/v1")
    served.app.include_router(outer, prefix="/api")
    sub.include_router(outer, prefix="/sub")
    sub.get("/own/{item_id}")(served.ask)
    served.app.mount("/tenants/{tenant}", sub)
    served.app.add_middleware(CostTagMiddleware)
    for path in ("/proxy/api/v1/items/5", "/proxy/tenants/acme/sub/v1/items/5", "/proxy/tenants/acme/own/acme"):
        assert served.get(path).status_code == 200
    assert [call.tags.route for call in voight_calls] == [
        "GET /api/v1/items/{item_id}",
        "GET /tenants/{tenant}/sub/v1/items/{item_id}",
        "GET /tenants/{tenant}/own/{item_id}",
    ]
