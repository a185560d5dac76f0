"""Every place of a Django project that can make a call; each asks for a model that is named after it."""

import asyncio
import contextvars
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import anyio
import django
import openai
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.signals import request_finished
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.decorators import sync_and_async_middleware

import voight_middleware as voight


@sync_and_async_middleware
def sign_in(get_response: Any) -> Any:
    """Signs in whoever is named by the header ``x-user``; below ours, so that he is not known when the request begins."""

    def middleware(request: Any) -> Any:
        name = request.headers.get("x-user")
        request.user = SimpleNamespace(pk=name, is_authenticated=name is not None)
        return get_response(request)

    async def amiddleware(request: Any) -> Any:
        return await middleware(request)

    return amiddleware if iscoroutinefunction(get_response) else middleware


class Asking:
    """Middleware of one kind that makes calls itself, in its own code and in its hook for exceptions."""

    sync_capable, async_capable = True, False

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        if request.path == "/middleware":
            ask("middleware, sync")
        return self.get_response(request)

    def process_exception(self, request: Any, error: Exception) -> HttpResponse | None:
        if not isinstance(error, LookupError):
            return None
        ask("handler of a specific exception")
        return HttpResponse()


def async_asking(get_response: Any) -> Any:
    async def middleware(request: Any) -> Any:
        if request.path == "/middleware":
            await aask("middleware, async")
        return await get_response(request)

    return middleware


async_asking.sync_capable, async_asking.async_capable = False, True  # type: ignore[attr-defined]

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={},
    LOGGING_CONFIG=None,
    MIDDLEWARE=["voight_django.CostTagMiddleware", f"{__name__}.sign_in", f"{__name__}.async_asking", f"{__name__}.Asking"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="places",
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
)
django.setup()

client = voight.wrap(openai.OpenAI(api_key="k", base_url=os.environ["PROVIDER_OPENAI"]))
executor = ThreadPoolExecutor(1)


def ask(place: str) -> str:
    return client.chat.completions.create(model=place, messages=[{"role": "user", "content": "?"}]).id


async def aask(place: str) -> str:
    async with openai.AsyncOpenAI(api_key="k", base_url=os.environ["PROVIDER_OPENAI"]) as aclient:
        return (await voight.wrap(aclient).chat.completions.create(model=place, messages=[{"role": "user", "content": "?"}])).id


# -- synchronous views ---------------------------------------------------------------------------------------------------------


def later(place: str) -> None:
    time.sleep(0.3)
    ask(place)


def sync_places(request: Any) -> HttpResponse:
    ask("handler, sync")
    asyncio.run(aask("asyncio.run in a sync handler"))
    async_to_sync(aask)("async_to_sync(fn)")
    executor.submit(ask, "executor.submit(fn)").result()
    executor.submit(contextvars.copy_context().run, ask, "executor.submit(copy_context().run, fn)").result()
    executor.submit(voight.carry(ask), "executor.submit(carry(fn))").result()
    for function, place in ((ask, "Thread(target=fn)"), (voight.carry(ask), "Thread(target=carry(fn))")):
        thread = threading.Thread(target=function, args=(place,))
        thread.start()
        thread.join()
    return HttpResponse()


def outlived_by_thread(request: Any) -> HttpResponse:
    threading.Thread(target=voight.carry(later), args=("Thread(target=carry(fn)) that outlives the request",)).start()
    return HttpResponse()


def stream(request: Any) -> StreamingHttpResponse:
    def steps() -> Iterator[str]:
        yield "a"
        yield ask("streamed response, sync generator")

    return StreamingHttpResponse(steps())


def template(request: Any) -> TemplateResponse:
    return TemplateResponse(request, engines["django"].from_string("{{ ask }}"), {"ask": lambda: ask("template")})


def error(request: Any) -> HttpResponse:
    raise LookupError


def failure(request: Any) -> HttpResponse:
    raise RuntimeError


def handler500(request: Any) -> HttpResponse:
    ask("handler of unexpected exceptions (500)")
    return HttpResponse(status=500)


def finished(request: Any) -> HttpResponse:
    def receiver(**_: Any) -> None:
        request_finished.disconnect(receiver)
        ask("receiver of request_finished")

    request_finished.connect(receiver, weak=False)
    return HttpResponse()


def anonymous(request: Any) -> HttpResponse:
    return HttpResponse(ask("next request on the same thread or connection"))


# -- asynchronous views --------------------------------------------------------------------------------------------------------

tasks: set[Any] = set()


async def alater(place: str) -> None:
    await asyncio.sleep(0.3)
    await aask(place)


async def async_places(request: Any) -> HttpResponse:
    loop = asyncio.get_running_loop()
    await aask("handler, async")
    ask("handler, async, with a synchronous client")
    await asyncio.create_task(aask("asyncio.create_task"))
    await asyncio.gather(aask("asyncio.gather"))
    async with anyio.create_task_group() as group:
        group.start_soon(aask, "anyio task group")
    called: list[Any] = []
    loop.call_soon(lambda: called.append(asyncio.create_task(aask("loop.call_soon"))))
    await asyncio.sleep(0)
    await called[0]
    await asyncio.to_thread(ask, "asyncio.to_thread")
    await sync_to_async(ask)("sync_to_async(fn)")
    await sync_to_async(ask, thread_sensitive=False)("sync_to_async(fn, thread_sensitive=False)")
    await loop.run_in_executor(None, ask, "loop.run_in_executor(None, fn)")
    return HttpResponse()


async def outlived(request: Any) -> HttpResponse:
    task = asyncio.create_task(alater("task that outlives the request"))
    tasks.add(task)
    return HttpResponse()


async def astream(request: Any) -> StreamingHttpResponse:
    async def steps() -> AsyncIterator[str]:
        yield "a"
        yield await aask("streamed response, async generator")

    return StreamingHttpResponse(steps())


async def events(request: Any) -> StreamingHttpResponse:
    async def steps() -> AsyncIterator[str]:
        yield ": begun\n\n"
        yield f"data: {await aask('server-sent events')}\n\n"

    return StreamingHttpResponse(steps(), content_type="text/event-stream")


def nothing(request: Any) -> HttpResponse:
    return HttpResponse()


VIEWS: dict[str, Callable[[Any], Any]] = {
    "sync": sync_places,
    "async": async_places,
    "stream": stream,
    "astream": astream,
    "events": events,
    "middleware": nothing,
    "template": template,
    "error": error,
    "failure": failure,
    "outlived": outlived,
    "thread": outlived_by_thread,
    "finished": finished,
    "anonymous": anonymous,
}
urlpatterns = [path(name, view) for name, view in VIEWS.items()]

application = get_wsgi_application()
asgi_application = get_asgi_application()
