"""Litestar, with a handler for every place in which code can run that a request has caused."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from asgi_places import EVERYWHERE, acall, astream, call, called, stream, user_of, worker
from litestar import Litestar, MediaType, Request, WebSocket, get, websocket
from litestar.background_tasks import BackgroundTask
from litestar.di import Provide
from litestar.middleware import DefineMiddleware
from litestar.response import Response, ServerSentEvent, Stream

from voight_middleware import CostTagMiddleware


@get("/async")
async def handler() -> None:
    await acall("handler, async")


@get("/sync", sync_to_thread=True)
def sync_handler() -> None:
    call("handler, sync")


async def dependency() -> str:
    await acall("dependency, async")
    return "made"


def sync_dependency() -> str:
    call("dependency, sync")
    return "made"


@get("/dependency", dependencies={"made": Provide(dependency)})
async def with_dependency(made: str) -> str:
    return made


@get("/sync-dependency", dependencies={"made": Provide(sync_dependency, sync_to_thread=True)})
async def with_sync_dependency(made: str) -> str:
    return made


@get("/background")
async def background() -> Response[None]:
    return Response(None, background=BackgroundTask(acall, "background task, async"))


@get("/sync-background")
async def sync_background() -> Response[None]:
    return Response(None, background=BackgroundTask(call, "background task, sync"))


@get("/streamed")
async def streamed() -> Stream:
    return Stream(astream("streamed response, async generator"))


@get("/sync-streamed")
async def sync_streamed() -> Stream:
    return Stream(stream("streamed response, sync generator"))


@get("/events")
async def events() -> ServerSentEvent:
    return ServerSentEvent(astream("server-sent events"))


@websocket("/socket")
async def socket(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    await acall("WebSocket handler")
    await socket.send_text("made")
    await socket.close()


class Specific(Exception):
    """One that the application has a handler for."""


@get("/specific")
async def specific() -> None:
    raise Specific


def on_specific(request: Request[Any, Any, Any], error: Specific) -> Response[str]:
    call("handler of a specific exception")
    return Response("made", status_code=418)


@get("/unexpected")
async def unexpected() -> None:
    raise RuntimeError("nobody expects it")


def on_unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[str]:
    call("handler of unexpected exceptions (500)")
    return Response("made", status_code=500)


@get("/everywhere/{index:int}", media_type=MediaType.TEXT)
async def everywhere(index: int) -> str:
    place = list(EVERYWHERE)[index]
    await EVERYWHERE[place](place)
    return "made"


@get("/any", media_type=MediaType.TEXT)
async def anywhere(request: Request[Any, Any, Any]) -> str:
    await acall(request.headers["x-place"])
    return "made"


@get("/places")
async def places() -> dict[str, str]:
    return PLACES


@get("/called")
async def made() -> list[str]:
    return called


PLACES = {
    "handler, async": "/async",
    "handler, sync": "/sync",
    "dependency, async": "/dependency",
    "dependency, sync": "/sync-dependency",
    "background task, async": "/background",
    "background task, sync": "/sync-background",
    "streamed response, async generator": "/streamed",
    "streamed response, sync generator": "/sync-streamed",
    "server-sent events": "/events",
    "WebSocket handler": "ws:/socket",
    "handler of a specific exception": "/specific",
    "handler of unexpected exceptions (500)": "/unexpected",
    **{place: f"/everywhere/{index}" for index, place in enumerate(EVERYWHERE)},
}


@contextlib.asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    working = asyncio.create_task(worker())
    yield
    working.cancel()


app = Litestar(
    [
        handler,
        sync_handler,
        with_dependency,
        with_sync_dependency,
        background,
        sync_background,
        streamed,
        sync_streamed,
        events,
        socket,
        specific,
        unexpected,
        everywhere,
        anywhere,
        places,
        made,
    ],
    lifespan=[lifespan],
    middleware=[DefineMiddleware(CostTagMiddleware, user_getter=user_of)],
    exception_handlers={Specific: on_specific, RuntimeError: on_unexpected},
)
