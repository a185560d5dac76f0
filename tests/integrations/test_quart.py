"""CostTagMiddleware around Quart: its own route templates, and a user that the application knows."""

from typing import Any

import httpx
import openai
import pytest
import websockets.sync.client

import voight_middleware as voight

pytest.importorskip("quart")

from quart import Blueprint, Quart, request, websocket

QUESTION: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}


@pytest.fixture
def app(voight_provider: Any) -> Quart:
    app, v1 = Quart(__name__), Blueprint("v1", __name__, url_prefix="/v1")
    client = voight.wrap(openai.AsyncOpenAI(api_key="k", base_url=voight_provider.openai_base_url))

    async def ask() -> str:
        return (await client.chat.completions.create(**QUESTION)).choices[0].message.content or ""

    @v1.post("/chats/<int:chat_id>")
    async def chat(chat_id: int) -> str:
        return await ask()

    @v1.websocket("/rooms/<room>")
    async def room(room: str) -> None:
        await websocket.send(await ask())

    @app.errorhandler(404)
    async def nowhere(error: Exception) -> Any:
        return await ask(), 404

    @app.after_serving
    async def close() -> None:
        await client.close()

    app.register_blueprint(v1)
    return app


@pytest.mark.slow
def test_routes(app: Quart, serve: Any, voight_calls: Any) -> None:
    """The route is the rule with its blueprint's prefix, of a WebSocket too; where nothing matches there is none."""
    app.asgi_app = voight.CostTagMiddleware(app.asgi_app, lambda connection: connection.headers.get("x-user"))  # type: ignore[method-assign]
    url, headers = serve(app), {"x-user": "alice"}
    assert httpx.post(f"{url}/v1/chats/5", headers=headers).status_code == 200
    with websockets.sync.client.connect(f"{url.replace('http', 'ws', 1)}/v1/rooms/blue", additional_headers=headers) as connection:
        assert connection.recv()
    assert httpx.get(f"{url}/nowhere", headers=headers).status_code == 404
    serve.stop()
    assert [(call.tags.user_id, call.tags.route) for call in voight_calls] == [
        ("alice", "POST /v1/chats/<int:chat_id>"),
        ("alice", "WEBSOCKET /v1/rooms/<room>"),
        ("alice", None),
    ]


@pytest.mark.slow
def test_a_user_of_the_application(app: Quart, serve: Any, voight_calls: Any) -> None:
    """What the application has found out itself is told with ``set_tags()``, as Quart's context is its own."""

    @app.before_request
    async def sign_in() -> None:
        voight.set_tags(user_id=request.headers.get("x-user"))

    app.asgi_app = voight.CostTagMiddleware(app.asgi_app)  # type: ignore[method-assign]
    url = serve(app)
    assert httpx.post(f"{url}/v1/chats/5", headers={"x-user": "alice"}).status_code == 200
    assert httpx.post(f"{url}/v1/chats/5").status_code == 200
    serve.stop()
    assert [call.tags.user_id for call in voight_calls] == ["alice", None]
