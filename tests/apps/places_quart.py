"""Quart, with a handler for every place in which code can run that a request has caused."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from asgi_places import EVERYWHERE, acall, astream, call, called, stream, user_of, worker
from quart import Quart, jsonify, request, stream_with_context, websocket

from voight_middleware import CostTagMiddleware

app = Quart(__name__)
app.asgi_app = CostTagMiddleware(app.asgi_app, user_getter=user_of)  # type: ignore[method-assign]


@app.while_serving
async def work() -> AsyncIterator[None]:
    working = asyncio.create_task(worker())
    yield
    working.cancel()


@app.get("/async")
async def handler() -> str:
    await acall("handler, async")
    return "made"


@app.get("/sync")
def sync_handler() -> str:
    call("handler, sync")
    return "made"


@app.get("/background")
async def background() -> str:
    app.add_background_task(acall, "background task, async")
    return "later"


@app.get("/sync-background")
async def sync_background() -> str:
    app.add_background_task(call, "background task, sync")
    return "later"


@app.get("/streamed")
async def streamed() -> Any:
    return astream("streamed response, async generator"), 200


@app.get("/with-context")
async def with_context() -> Any:
    return stream_with_context(astream)("streamed response, stream_with_context"), 200


@app.get("/sync-streamed")
async def sync_streamed() -> Any:
    return stream("streamed response, sync generator"), 200


@app.get("/events")
async def events() -> Any:
    return astream("server-sent events"), 200, {"content-type": "text/event-stream"}


@app.websocket("/socket")
async def socket() -> None:
    await acall("WebSocket handler")
    await websocket.send("made")


class Specific(Exception):
    """One that the application has a handler for."""


@app.get("/specific")
async def specific() -> str:
    raise Specific


@app.errorhandler(Specific)
async def on_specific(error: Specific) -> Any:
    await acall("handler of a specific exception")
    return "made", 418


@app.get("/unexpected")
async def unexpected() -> str:
    raise RuntimeError("nobody expects it")


@app.errorhandler(500)
async def on_unexpected(error: Exception) -> Any:
    await acall("handler of unexpected exceptions (500)")
    return "made", 500


@app.before_request
async def before() -> None:
    if request.path == "/before":
        await acall("before_request")


@app.after_request
async def after(response: Any) -> Any:
    if request.path == "/before":
        await acall("after_request")
    return response


@app.get("/before")
async def empty() -> str:
    return "made"


@app.get("/everywhere/<int:index>")
async def everywhere(index: int) -> str:
    place = list(EVERYWHERE)[index]
    await EVERYWHERE[place](place)
    return "made"


@app.get("/any")
async def anywhere() -> str:
    await acall(request.headers["x-place"])
    return "made"


@app.get("/places")
async def places() -> Any:
    app.json.sort_keys = False  # type: ignore[attr-defined]
    return jsonify(PLACES)


@app.get("/called")
async def made() -> Any:
    return jsonify(called)


PLACES = {
    "handler, async": "/async",
    "handler, sync": "/sync",
    "before_request": "/before",
    "after_request": "",
    "background task, async": "/background",
    "background task, sync": "/sync-background",
    "streamed response, async generator": "/streamed",
    "streamed response, sync generator": "/sync-streamed",
    "streamed response, stream_with_context": "/with-context",
    "server-sent events": "/events",
    "WebSocket handler": "ws:/socket",
    "handler of a specific exception": "/specific",
    "handler of unexpected exceptions (500)": "/unexpected",
    **{place: f"/everywhere/{index}" for index, place in enumerate(EVERYWHERE)},
}
