"""Litestar under load."""

from typing import Any

from litestar import Litestar, MediaType, Request, get
from litestar.middleware import DefineMiddleware
from litestar.response import Stream
from load_calls import chat, chat_stream, message, message_stream, plan_of, user_of

from voight_middleware import CostTagMiddleware


@get("/0", media_type=MediaType.TEXT)
async def zero(request: Request[Any, Any, Any]) -> str:
    return await chat(request.headers)


@get("/1")
async def one(request: Request[Any, Any, Any]) -> Stream:
    return Stream(chat_stream(request.headers))


@get("/2", media_type=MediaType.TEXT)
async def two(request: Request[Any, Any, Any]) -> str:
    return await message(request.headers)


@get("/3")
async def three(request: Request[Any, Any, Any]) -> Stream:
    return Stream(message_stream(request.headers))


app = Litestar([zero, one, two, three], middleware=[DefineMiddleware(CostTagMiddleware, user_getter=user_of, plan_getter=plan_of)])
