"""FastAPI, with a handler for every place in which code can run that a request has caused. Its user is known by its own dependency."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from asgi_places import EVERYWHERE, acall, astream, call, called, stream, worker
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from sse_starlette.sse import EventSourceResponse
from starlette.requests import HTTPConnection

from voight_fastapi import CostTagMiddleware, cost_tags


def current_user(connection: HTTPConnection) -> str | None:
    return connection.headers.get("x-user")


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    working = asyncio.create_task(worker())
    yield
    working.cancel()


app = FastAPI(lifespan=lifespan, dependencies=[Depends(cost_tags(current_user))])
app.add_middleware(CostTagMiddleware)


@app.get("/places")
async def places() -> Any:
    return PLACES


@app.get("/called")
async def made() -> Any:
    return called


@app.get("/any")
async def anywhere(request: Request) -> str:
    await acall(request.headers["x-place"])
    return "made"


@app.get("/async")
async def handler() -> None:
    await acall("handler, async")


@app.get("/sync")
def sync_handler() -> None:
    call("handler, sync")


async def dependency() -> None:
    await acall("dependency, async")


def sync_dependency() -> None:
    call("dependency, sync")


async def yielding() -> AsyncIterator[None]:
    await acall("dependency with yield, async, before the handler")
    yield
    await acall("dependency with yield, async, after it")


def sync_yielding() -> Iterator[None]:
    call("dependency with yield, sync, before the handler")
    yield
    call("dependency with yield, sync, after it")


for number, needed in enumerate((dependency, sync_dependency, yielding, sync_yielding)):

    @app.get(f"/dependency/{number}", dependencies=[Depends(needed)])
    async def with_dependency() -> None:
        pass


async def before_the_user(connection: HTTPConnection) -> None:
    await acall("dependency that runs before the user's")


early = FastAPI()


@early.get("/", dependencies=[Depends(before_the_user), Depends(cost_tags(current_user))])
async def after_the_user() -> None:
    pass


app.mount("/early", early)


@app.get("/background")
async def background(tasks: BackgroundTasks) -> None:
    tasks.add_task(acall, "background task, async")
    tasks.add_task(call, "background task, sync")


@app.get("/streamed")
async def streamed() -> StreamingResponse:
    return StreamingResponse(astream("streamed response, async generator"))


@app.get("/sync-streamed")
def sync_streamed() -> StreamingResponse:
    return StreamingResponse(stream("streamed response, sync generator"))


@app.get("/events")
async def events() -> EventSourceResponse:
    return EventSourceResponse(astream("server-sent events"))


@app.websocket("/socket")
async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await acall("WebSocket handler")
    await websocket.send_text("made")
    await websocket.close()


class Specific(Exception):
    """One that the application has a handler for."""


@app.get("/specific")
async def specific() -> None:
    raise Specific


@app.get("/unexpected")
async def unexpected() -> None:
    raise RuntimeError("nobody expects it")


@app.exception_handler(Specific)
async def on_specific(request: Request, error: Exception) -> JSONResponse:
    await acall("handler of a specific exception")
    return JSONResponse("made", 418)


@app.exception_handler(Exception)
async def on_unexpected(request: Request, error: Exception) -> JSONResponse:
    await acall("handler of unexpected exceptions (500)")
    return JSONResponse("made", 500)


mounted = FastAPI(dependencies=[Depends(cost_tags(current_user))])


@mounted.get("/app")
async def mounted_handler() -> None:
    await acall("mounted app")


app.mount("/mounted", mounted)
router = APIRouter()


@router.get("/everywhere/{index}")
async def everywhere(index: int) -> PlainTextResponse:
    place = list(EVERYWHERE)[index]
    await EVERYWHERE[place](place)
    return PlainTextResponse("made")


app.include_router(router)

PLACES = {
    "handler, async": "/async",
    "handler, sync": "/sync",
    "dependency, async": "/dependency/0",
    "dependency, sync": "/dependency/1",
    "dependency with yield, async, before the handler": "/dependency/2",
    "dependency with yield, async, after it": "",
    "dependency with yield, sync, before the handler": "/dependency/3",
    "dependency with yield, sync, after it": "",
    "dependency that runs before the user's": "/early/",
    "background task, async": "/background",
    "background task, sync": "",
    "streamed response, async generator": "/streamed",
    "streamed response, sync generator": "/sync-streamed",
    "server-sent events": "/events",
    "WebSocket handler": "ws:/socket",
    "handler of a specific exception": "/specific",
    "handler of unexpected exceptions (500)": "/unexpected",
    "mounted app": "/mounted/app",
    **{place: f"/everywhere/{index}" for index, place in enumerate(EVERYWHERE)},
}
"""Without a path: the place is passed by the request before it."""
