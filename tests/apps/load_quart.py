"""Quart under load."""

from typing import Any

from load_calls import chat, chat_stream, message, message_stream, plan_of, user_of
from quart import Quart, request

from voight_middleware import CostTagMiddleware

app = Quart(__name__)
app.asgi_app = CostTagMiddleware(app.asgi_app, user_getter=user_of, plan_getter=plan_of)  # type: ignore[method-assign]


@app.get("/0")
async def zero() -> str:
    return await chat(request.headers)


@app.get("/1")
async def one() -> Any:
    return chat_stream(request.headers), 200


@app.get("/2")
async def two() -> str:
    return await message(request.headers)


@app.get("/3")
async def three() -> Any:
    return message_stream(request.headers), 200
