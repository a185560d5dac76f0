"""FastAPI under load, its user known by a dependency."""

from dataclasses import dataclass

from fastapi import Depends, FastAPI, Request
from fastapi.responses import PlainTextResponse, StreamingResponse
from load_calls import chat, chat_stream, message, message_stream
from starlette.requests import HTTPConnection

from voight_fastapi import CostTagMiddleware, cost_tags


@dataclass
class User:
    id: str
    plan: str


def current_user(connection: HTTPConnection) -> User | None:
    name = connection.headers.get("x-user")
    return None if name is None else User(name, connection.headers["x-plan"])


app = FastAPI(dependencies=[Depends(cost_tags(current_user, plan=lambda user: user and user.plan))])
app.add_middleware(CostTagMiddleware)


@app.get("/0", response_class=PlainTextResponse)
async def zero(request: Request) -> str:
    return await chat(request.headers)


@app.get("/1")
async def one(request: Request) -> StreamingResponse:
    return StreamingResponse(chat_stream(request.headers))


@app.get("/2", response_class=PlainTextResponse)
async def two(request: Request) -> str:
    return await message(request.headers)


@app.get("/3")
async def three(request: Request) -> StreamingResponse:
    return StreamingResponse(message_stream(request.headers))
