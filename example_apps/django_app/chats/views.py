"""
The views: a chat, a streamed chat, an asynchronous view, and a search that is open to visitors.
"""

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
from django.contrib.auth import authenticate, login
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.http import require_POST

import voight_middleware as voight

# The one line around each client. It returns the same object.
openai_client = voight.wrap(openai.OpenAI())


@require_POST
def sign_in(request: HttpRequest) -> HttpResponse:
    user = authenticate(
        request, username=request.POST["username"], password=request.POST["password"]
    )
    if user is None:
        return JsonResponse({"detail": "wrong name or password"}, status=401)
    login(request, user)
    return JsonResponse({"signed_in": user.get_username()})


def question(request: HttpRequest) -> list[Any]:
    return [{"role": "user", "content": request.POST["text"]}]


@require_POST
def chat(request: HttpRequest) -> HttpResponse:
    if not request.user.is_authenticated:
        return JsonResponse({"detail": "sign in first"}, status=401)
    answer = openai_client.chat.completions.create(model="gpt-4o-mini", messages=question(request))
    return JsonResponse({"answer": answer.choices[0].message.content})


@require_POST
def chat_stream(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
    """
    The call runs while the response is streamed, after this view and all middleware have returned.
    """
    if not request.user.is_authenticated:
        return JsonResponse({"detail": "sign in first"}, status=401)

    def words() -> Iterator[str]:
        for chunk in openai_client.chat.completions.create(
            model="gpt-4o-mini", messages=question(request), stream=True
        ):
            yield chunk.choices[0].delta.content or ""

    return StreamingHttpResponse(words(), content_type="text/plain")


@require_POST
async def summarise(request: HttpRequest) -> HttpResponse:
    """
    Uses a separate client. Under WSGI, every asynchronous view has its own event loop, and a
    connection belongs to one loop.
    """
    if not (await request.auser()).is_authenticated:
        return JsonResponse({"detail": "sign in first"}, status=401)
    async with anthropic.AsyncAnthropic() as client:
        with voight.tag(feature="summaries"):
            message = await voight.wrap(client).messages.create(
                model="claude-haiku-4-5", max_tokens=500, messages=question(request)
            )
    return JsonResponse(
        {"summary": "".join(block.text for block in message.content if block.type == "text")}
    )


@require_POST
def search(request: HttpRequest) -> HttpResponse:
    """Open to visitors, whose calls have no owner."""
    embedding = openai_client.embeddings.create(
        model="text-embedding-3-small", input=request.POST["text"]
    )
    return JsonResponse({"dimensions": len(embedding.data[0].embedding)})


urlpatterns = [
    path("sign-in", sign_in),
    path("chat", chat),
    path("chat/stream", chat_stream),
    path("summarise", summarise),
    path("search", search),
]
