"""CostTagMiddleware in Litestar: its own user, and its own route templates."""

from typing import Any

import httpx
import openai
import pytest

import voight_middleware as voight

pytest.importorskip("litestar")

from litestar import Controller, Litestar, Router, get
from litestar.connection import ASGIConnection
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult

QUESTION: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}


class User:
    def __init__(self, name: str) -> None:
        self.id = name


class Authentication(AbstractAuthenticationMiddleware):
    """Signs in whoever is named by the header ``x-user``."""

    async def authenticate_request(self, connection: ASGIConnection[Any, Any, Any, Any]) -> AuthenticationResult:
        name = connection.headers.get("x-user")
        return AuthenticationResult(user=User(name) if name else None, auth=None)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["ours outside", "ours inside"])
def test_user_and_route(order: str, serve: Any, voight_provider: Any, voight_calls: Any) -> None:
    """Without a getter the owner is Litestar's ``request.user``; the route has the router's and the controller's path, and no converter."""
    client = voight.wrap(openai.OpenAI(api_key="k", base_url=voight_provider.openai_base_url))

    class Chats(Controller):
        path = "/chats"

        @get("/{chat_id:int}", sync_to_thread=True)
        def chat(self) -> str | None:
            return client.chat.completions.create(**QUESTION).choices[0].message.content

    both: list[Any] = [voight.CostTagMiddleware, Authentication]
    app = Litestar([Router("/v1", route_handlers=[Chats])], middleware=both if order == "ours outside" else both[::-1])
    url = serve(app)
    assert httpx.get(f"{url}/v1/chats/5", headers={"x-user": "alice"}).status_code == 200
    assert httpx.get(f"{url}/v1/chats/5").status_code == 200
    client.close()
    assert [(call.tags.user_id, call.tags.route) for call in voight_calls] == [
        ("alice", "GET /v1/chats/{chat_id}"),
        (None, "GET /v1/chats/{chat_id}"),
    ]
