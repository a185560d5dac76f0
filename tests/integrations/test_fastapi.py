"""voight_fastapi under a real uvicorn, with the application's own dependency."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import openai
import pytest
import websockets.sync.client
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

import voight_middleware as voight
from voight_fastapi import CostTagMiddleware, cost_tags

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


def test_dependency_overrides_and_schema(serve: Any, voight_provider: Any, voight_calls: Any) -> None:
    """``dependency_overrides`` replaces the user here too, and the OpenAPI schema keeps its security."""
    dependency = Dependency(asynchronous=False)
    app = application(voight_provider, dependency, middleware=True)
    app.dependency_overrides[dependency.function] = lambda: User("tester")
    url = serve(app)
    assert httpx.post(f"{url}/v1/sync/5").status_code == 200
    assert voight_calls.one().tags.user_id == "tester"
    assert app.openapi()["paths"]["/v1/sync/{chat_id}"]["post"]["security"] == [{"HTTPBearer": []}]


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
