"""Django under load, WSGI with synchronous views and ASGI with asynchronous ones: every view answers the id of the provider's answer."""

import os
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import anthropic
import django
import openai
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.handlers.asgi import ASGIRequest
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from django.utils.functional import SimpleLazyObject

import voight_middleware as voight


class SignedIn:
    """Signs in whoever is named by the header ``x-user``, as lazily as Django does."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:
        name = request.headers.get("x-user")
        request.user = SimpleLazyObject(lambda: SimpleNamespace(pk=name, is_authenticated=name is not None))
        request.urlconf = ASYNCHRONOUS if isinstance(request, ASGIRequest) else SYNCHRONOUS
        return self.get_response(request)


def plan_of(request: HttpRequest) -> str | None:
    return request.headers.get("x-plan")


settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={},
    LOGGING_CONFIG=None,
    MIDDLEWARE=["voight_django.CostTagMiddleware", f"{__name__}.SignedIn"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="load",
    VOIGHT={"PLAN_GETTER": plan_of},
)
django.setup()

options: dict[str, Any] = {"api_key": "k", "max_retries": 0, "timeout": 60}
openai_client = voight.wrap(openai.OpenAI(base_url=os.environ["PROVIDER_OPENAI"], **options))
anthropic_client = voight.wrap(anthropic.Anthropic(base_url=os.environ["PROVIDER_ANTHROPIC"], **options))
async_openai_client = voight.wrap(openai.AsyncOpenAI(base_url=os.environ["PROVIDER_OPENAI"], **options))
async_anthropic_client = voight.wrap(anthropic.AsyncAnthropic(base_url=os.environ["PROVIDER_ANTHROPIC"], **options))


def question(request: HttpRequest) -> list[Any]:
    return [{"role": "user", "content": f"[user:{request.headers.get('x-user')}] question {request.headers['x-request']}"}]


def chat(request: HttpRequest) -> HttpResponse:
    return HttpResponse(openai_client.chat.completions.create(model="gpt-4o-mini", messages=question(request)).id)


def chat_stream(request: HttpRequest) -> StreamingHttpResponse:
    def answer() -> Iterator[str]:
        last = ""
        for chunk in openai_client.chat.completions.create(model="gpt-5-mini", messages=question(request), stream=True):
            last = chunk.id
            yield "."
        yield f" {last}"

    return StreamingHttpResponse(answer())


def message(request: HttpRequest) -> HttpResponse:
    return HttpResponse(anthropic_client.messages.create(model="claude-haiku-4-5", max_tokens=100, messages=question(request)).id)


def message_stream(request: HttpRequest) -> StreamingHttpResponse:
    def answer() -> Iterator[str]:
        with anthropic_client.messages.stream(model="claude-haiku-4-5", max_tokens=100, messages=question(request)) as stream:
            for _ in stream.text_stream:
                yield "."
            yield f" {stream.get_final_message().id}"

    return StreamingHttpResponse(answer())


async def achat(request: HttpRequest) -> HttpResponse:
    return HttpResponse((await async_openai_client.chat.completions.create(model="gpt-4o-mini", messages=question(request))).id)


async def achat_stream(request: HttpRequest) -> StreamingHttpResponse:
    async def answer() -> AsyncIterator[str]:
        last = ""
        async for chunk in await async_openai_client.chat.completions.create(model="gpt-5-mini", messages=question(request), stream=True):
            last = chunk.id
            yield "."
        yield f" {last}"

    return StreamingHttpResponse(answer())


async def amessage(request: HttpRequest) -> HttpResponse:
    answer = await async_anthropic_client.messages.create(model="claude-haiku-4-5", max_tokens=100, messages=question(request))
    return HttpResponse(answer.id)


async def amessage_stream(request: HttpRequest) -> StreamingHttpResponse:
    async def answer() -> AsyncIterator[str]:
        async with async_anthropic_client.messages.stream(model="claude-haiku-4-5", max_tokens=100, messages=question(request)) as stream:
            async for _ in stream.text_stream:
                yield "."
            yield f" {(await stream.get_final_message()).id}"

    return StreamingHttpResponse(answer())


SYNCHRONOUS = tuple(path(str(number), view) for number, view in enumerate((chat, chat_stream, message, message_stream)))
ASYNCHRONOUS = tuple(path(str(number), view) for number, view in enumerate((achat, achat_stream, amessage, amessage_stream)))
urlpatterns = SYNCHRONOUS

application = get_wsgi_application()
asgi_application = get_asgi_application()
