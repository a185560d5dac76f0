"""Starlette, with a handler for every place in which code can run that a request has caused."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from asgi_places import EVERYWHERE, acall, astream, call, called, stream, user_of, worker
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

import voight_middleware as voight


async def handler(request: Request) -> Response:
    await acall("handler, async")
    return PlainTextResponse("made")


def sync_handler(request: Request) -> Response:
    call("handler, sync")
    return PlainTextResponse("made")


async def background(request: Request) -> Response:
    return PlainTextResponse("later", background=BackgroundTask(acall, "background task, async"))


async def sync_background(request: Request) -> Response:
    return PlainTextResponse("later", background=BackgroundTask(call, "background task, sync"))


async def streamed(request: Request) -> Response:
    return StreamingResponse(astream("streamed response, async generator"))


async def sync_streamed(request: Request) -> Response:
    return StreamingResponse(stream("streamed response, sync generator"))


async def events(request: Request) -> Response:
    return EventSourceResponse(astream("server-sent events"))


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await acall("WebSocket handler")
    await websocket.send_text("made")
    await websocket.close()


class Specific(Exception):
    """One that the application has a handler for."""


async def specific(request: Request) -> Response:
    raise Specific


async def unexpected(request: Request) -> Response:
    raise RuntimeError("nobody expects it")


async def on_specific(request: Request, error: Exception) -> Response:
    await acall("handler of a specific exception")
    return PlainTextResponse("made", 418)


async def on_unexpected(request: Request, error: Exception) -> Response:
    await acall("handler of unexpected exceptions (500)")
    return PlainTextResponse("made", 500)


async def on_unexpected_in_all(request: Request, error: Exception) -> Response:
    await acall("handler of unexpected exceptions (500), in CostTagMiddleware(app)")
    return PlainTextResponse("made", 500)


async def mounted(request: Request) -> Response:
    await acall("mounted app")
    return PlainTextResponse("made")


async def below(request: Request) -> Response:
    await acall("below a BaseHTTPMiddleware")
    return PlainTextResponse("made")


async def above(request: Request) -> Response:
    await acall("CostTagMiddleware below a BaseHTTPMiddleware")
    return PlainTextResponse("made")


async def in_middleware(request: Request, call_next: Any) -> Response:
    return await call_next(request)  # type: ignore[no-any-return]


async def everywhere(request: Request) -> Response:
    place = list(EVERYWHERE)[request.path_params["index"]]
    await EVERYWHERE[place](place)
    return PlainTextResponse("made")


async def anywhere(request: Request) -> Response:
    await acall(request.headers["x-place"])
    return PlainTextResponse("made")


PLACES = {
    "handler, async": "/async",
    "handler, sync": "/sync",
    "background task, async": "/background",
    "background task, sync": "/sync-background",
    "streamed response, async generator": "/streamed",
    "streamed response, sync generator": "/sync-streamed",
    "server-sent events": "/events",
    "WebSocket handler": "ws:/socket",
    "handler of a specific exception": "/specific",
    "handler of unexpected exceptions (500)": "/unexpected",
    "handler of unexpected exceptions (500), in CostTagMiddleware(app)": "/all/unexpected",
    "mounted app": "/mounted/app",
    "below a BaseHTTPMiddleware": "/below",
    "CostTagMiddleware below a BaseHTTPMiddleware": "/all/above",
    **{place: f"/everywhere/{index}" for index, place in enumerate(EVERYWHERE)},
}


async def places(request: Request) -> Response:
    return JSONResponse(PLACES)


async def made(request: Request) -> Response:
    return JSONResponse(called)


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    working = asyncio.create_task(worker())
    yield
    working.cancel()


ours = Middleware(voight.CostTagMiddleware, user_getter=user_of)
base = Middleware(BaseHTTPMiddleware, dispatch=in_middleware)
usual = Starlette(
    lifespan=lifespan,
    middleware=[ours],
    exception_handlers={Specific: on_specific, Exception: on_unexpected},
    routes=[
        Route("/places", places),
        Route("/called", made),
        Route("/any", anywhere),
        Route("/async", handler),
        Route("/sync", sync_handler),
        Route("/background", background),
        Route("/sync-background", sync_background),
        Route("/streamed", streamed),
        Route("/sync-streamed", sync_streamed),
        Route("/events", events),
        WebSocketRoute("/socket", socket),
        Route("/specific", specific),
        Route("/unexpected", unexpected),
        Mount("/mounted", Starlette(routes=[Route("/app", mounted)])),
        Route("/below", below, middleware=[base]),
        Route("/everywhere/{index:int}", everywhere),
    ],
)
another = voight.CostTagMiddleware(
    Starlette(
        middleware=[base, ours],
        exception_handlers={Exception: on_unexpected_in_all},
        routes=[Route("/all/unexpected", unexpected), Route("/all/above", above)],
    ),
    user_getter=user_of,
)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Both, by path."""
    await (another if scope.get("path", "").startswith("/all/") else usual)(scope, receive, send)
