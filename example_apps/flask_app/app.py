"""
A small web application with signed-in users and LLM calls, metered by voight-middleware.

Users sign in with a bearer token (``token-1`` to ``token-10``). The SDK reads the provider from
``OPENAI_API_KEY`` and ``OPENAI_BASE_URL``.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import openai
from flask import Blueprint, Flask, Response, abort, g, request

import voight_middleware as voight
from voight_flask import CostTags

# -- users -----------------------------------------------------------------------------------------


class User(NamedTuple):
    id: str
    plan: str


PLANS = ["free", "free", "pro", "free", "team"]
USERS = {f"token-{number}": User(f"u_{number}", PLANS[number % 5]) for number in range(1, 11)}


def load_user() -> None:
    """Return the signed-in user; None for a visitor without a token."""
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    g.user = USERS.get(token)
    if token and g.user is None:
        abort(401, "unknown token")


def signed_in() -> User:
    if g.user is None:
        abort(401, "sign in: Authorization: Bearer token-1")
    user: User = g.user
    return user


# -- the application -------------------------------------------------------------------------------

# The one line around the client. It returns the same object.
client = voight.wrap(openai.OpenAI())

# The one line of middleware. It names the user of a request. With Flask-Login, it needs no getter.
cost_tags = CostTags(
    user_getter=lambda _: g.user and g.user.id, plan_getter=lambda _: g.user and g.user.plan
)

chats = Blueprint("chats", __name__)
executor = ThreadPoolExecutor(4)


def question() -> dict[str, Any]:
    return {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": request.get_json()["text"]}],
    }


@chats.post("/chat")
def chat() -> dict[str, Any]:
    """Open to visitors without a token, whose calls have no owner."""
    return {"answer": client.chat.completions.create(**question()).choices[0].message.content}


@chats.post("/chat/stream")
def chat_stream() -> Response:
    """A streamed response: the call ends with the last byte, and keeps its owner until then."""
    signed_in()
    stream = client.chat.completions.create(**question(), stream=True)

    def words() -> Iterator[str]:
        with stream:
            for chunk in stream:
                yield chunk.choices[0].delta.content or ""

    return Response(words(), mimetype="text/plain")


@chats.post("/remember")
def remember() -> tuple[dict[str, str], int]:
    """The call runs in another thread, maybe after the response. `carry` keeps its owner."""
    user = signed_in()

    def embed(text: str) -> None:
        with voight.tag(feature="memory"):
            client.embeddings.create(model="text-embedding-3-small", input=text)

    executor.submit(voight.carry(embed), request.get_json()["text"])
    return {"remembered_for": user.id}, 202


def provider_failed(error: openai.APIError) -> tuple[dict[str, str], int]:
    return {"detail": f"the model is not available ({type(error).__name__})"}, 502


def create_app() -> Flask:
    app = Flask(__name__)
    cost_tags.init_app(app)
    app.before_request(load_user)
    app.register_blueprint(chats)
    app.register_error_handler(openai.APIError, provider_failed)
    return app


app = create_app()
