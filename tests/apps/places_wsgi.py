"""Every place of a bare WSGI application that can make a call; each asks for a model named after it. At ``/places``: their paths."""

import asyncio
import contextvars
import json
import os
import threading
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai

import voight_middleware as voight
from voight_middleware.middleware.wsgi import CostTagMiddleware

client = voight.wrap(openai.OpenAI(api_key="k", base_url=os.environ["PROVIDER_OPENAI"]))
executor = ThreadPoolExecutor(1)


def ask(place: str) -> bytes:
    return client.chat.completions.create(model=place, messages=[{"role": "user", "content": "?"}]).id.encode()


async def aask(place: str) -> bytes:
    async with openai.AsyncOpenAI(api_key="k", base_url=os.environ["PROVIDER_OPENAI"]) as aclient:
        answer = await voight.wrap(aclient).chat.completions.create(model=place, messages=[{"role": "user", "content": "?"}])
        return answer.id.encode()


class Closing:
    def __init__(self, place: str, ended: threading.Event) -> None:
        self.place = place
        self.ended = ended

    def __iter__(self) -> Iterator[bytes]:
        yield ask(self.place) if self.place == "streamed response, sync generator" else b"a"

    def close(self) -> None:
        if self.place == "close of the answer":
            ask(self.place)
        self.ended.set()


def in_thread(function: Any, place: str) -> bytes:
    thread = threading.Thread(target=function, args=(place,))
    thread.start()
    thread.join()
    return b""


def outliving(place: str, ended: threading.Event) -> bytes:
    def later() -> None:
        ended.wait(10)
        ask(place)

    threading.Thread(target=voight.carry(later)).start()
    return b""


PLACES: dict[str, Any] = {
    "handler, sync": lambda place, ended: ask(place),
    "streamed response, sync generator": lambda place, ended: b"",
    "close of the answer": lambda place, ended: b"",
    "asyncio.run in a sync handler": lambda place, ended: asyncio.run(aask(place)),
    "executor.submit(fn)": lambda place, ended: executor.submit(ask, place).result(),
    "executor.submit(copy_context().run, fn)": lambda place, ended: executor.submit(contextvars.copy_context().run, ask, place).result(),
    "executor.submit(carry(fn))": lambda place, ended: executor.submit(voight.carry(ask), place).result(),
    "Thread(target=fn)": lambda place, ended: in_thread(ask, place),
    "Thread(target=carry(fn))": lambda place, ended: in_thread(voight.carry(ask), place),
    "Thread(target=carry(fn)) that outlives the request": outliving,
}


def answer(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", [("Content-Type", "text/plain")])
    path = urllib.parse.unquote(environ["PATH_INFO"][1:])
    if path == "places":
        return [json.dumps({place: f"/{urllib.parse.quote(place)}" for place in PLACES}).encode()]
    if path == "any":
        return [ask(environ["HTTP_X_PLACE"])]
    ended = threading.Event()
    PLACES[path](path, ended)
    return Closing(path, ended)


application = CostTagMiddleware(answer, lambda request: request.headers.get("x-user"))
