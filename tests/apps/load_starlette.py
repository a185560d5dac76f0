"""Starlette under load; with ``LOAD_MIDDLEWARE=http`` around a middleware of the kind that hides whether the client has left."""

import os

from load_calls import chat, chat_stream, message, message_stream, plan_of, user_of
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from voight_middleware import CostTagMiddleware


async def zero(request: Request) -> Response:
    return PlainTextResponse(await chat(request.headers))


async def one(request: Request) -> Response:
    return StreamingResponse(chat_stream(request.headers))


async def two(request: Request) -> Response:
    return PlainTextResponse(await message(request.headers))


async def three(request: Request) -> Response:
    return StreamingResponse(message_stream(request.headers))


app = Starlette(routes=[Route(f"/{number}", endpoint) for number, endpoint in enumerate((zero, one, two, three))])
app.add_middleware(CostTagMiddleware, user_getter=user_of, plan_getter=plan_of)


async def passing(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


if os.environ.get("LOAD_MIDDLEWARE") == "http":
    app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
