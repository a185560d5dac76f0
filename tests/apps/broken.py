"""
Applications that break in every way, each as ``bare`` and as ``ours``: what a server makes of both must be the same.

``app`` serves all of them, each under its name: ``/starlette_bare/works``.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import openai
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

import voight_middleware as voight
from voight_fastapi import cost_tags

client = voight.wrap(openai.AsyncOpenAI(api_key="k", base_url=os.environ["PROVIDER_OPENAI"]))
left: dict[str, list[str]] = {}
"""By application: how its handler was ended whose client has left."""


async def ask() -> None:
    await client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Where?"}])


async def works(request: Request) -> Response:
    await ask()
    return PlainTextResponse("made", headers={"x-of-the-app": "1"})


async def raises(request: Request) -> Response:
    await ask()
    raise LookupError("of the application")


async def refuses(request: Request) -> Response:
    await ask()
    raise HTTPException(401, "who?", {"www-authenticate": "Bearer"})


async def breaks_off(request: Request) -> Response:
    async def answer() -> AsyncIterator[str]:
        yield "begun"
        await ask()
        raise LookupError("of the application, in its stream")

    return StreamingResponse(answer())


async def goes_on(request: Request) -> Response:
    ended = left.setdefault(request.scope["name"], [])

    async def answer() -> AsyncIterator[str]:
        try:
            while True:
                yield "."
                await asyncio.sleep(0.01)
        except BaseException as error:
            ended.append(type(error).__name__)
            raise
        finally:
            ended.append("closed")

    return StreamingResponse(answer())


async def who_left(request: Request) -> Response:
    return PlainTextResponse(" ".join(left.get(request.scope["name"], [])))


def getter(connection: Any) -> str:
    raise ZeroDivisionError("of the getter")


async def user() -> str:
    return "alice"


HANDLERS: dict[str, Any] = {
    "/works": works,
    "/raises": raises,
    "/refuses": refuses,
    "/breaks-off": breaks_off,
    "/goes-on": goes_on,
    "/left": who_left,
}
starlette_bare, starlette_ours = Starlette(), Starlette()
fastapi_bare = FastAPI(dependencies=[Depends(user)])
fastapi_ours = FastAPI(dependencies=[Depends(cost_tags(user, user=getter))])
APPS: dict[str, Any] = {
    "starlette_bare": starlette_bare,
    "starlette_ours": starlette_ours,
    "fastapi_bare": fastapi_bare,
    "fastapi_ours": fastapi_ours,
}
for one in APPS.values():
    for path, handler in HANDLERS.items():
        one.add_api_route(path, handler) if isinstance(one, FastAPI) else one.router.add_route(path, handler)
for one in (starlette_ours, fastapi_ours):
    one.add_middleware(voight.CostTagMiddleware, user_getter=getter, plan_getter=getter, tags_getter=getter)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Serve the application that the path begins with, which sees the rest of the path."""
    if scope["type"] == "lifespan":
        return await starlette_ours(scope, receive, send)
    _, name, path = scope["path"].split("/", 2)
    return await APPS[name]({**scope, "name": name, "path": f"/{path}", "raw_path": f"/{path}".encode()}, receive, send)
