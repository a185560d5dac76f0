"""Starlette under load: every endpoint answers the id of the provider's answer, when that has ended."""

import os
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

import voight_middleware as voight

openai_client = voight.wrap(openai.AsyncOpenAI(api_key="k", base_url=os.environ["PROVIDER_OPENAI"], max_retries=0, timeout=60))
anthropic_client = voight.wrap(anthropic.AsyncAnthropic(api_key="k", base_url=os.environ["PROVIDER_ANTHROPIC"], max_retries=0, timeout=60))


def question(request: Request) -> list[Any]:
    return [{"role": "user", "content": f"[user:{request.headers.get('x-user')}] question {request.headers['x-request']}"}]


async def chat(request: Request) -> Response:
    answer = await openai_client.chat.completions.create(model="gpt-4o-mini", messages=question(request))
    return PlainTextResponse(answer.id)


async def chat_stream(request: Request) -> Response:
    async def answer() -> AsyncIterator[str]:
        last = ""
        async for chunk in await openai_client.chat.completions.create(model="gpt-5-mini", messages=question(request), stream=True):
            last = chunk.id
            yield "."
        yield f" {last}"

    return StreamingResponse(answer())


async def message(request: Request) -> Response:
    answer = await anthropic_client.messages.create(model="claude-haiku-4-5", max_tokens=100, messages=question(request))
    return PlainTextResponse(answer.id)


async def message_stream(request: Request) -> Response:
    async def answer() -> AsyncIterator[str]:
        async with anthropic_client.messages.stream(model="claude-haiku-4-5", max_tokens=100, messages=question(request)) as stream:
            async for _ in stream.text_stream:
                yield "."
            yield f" {(await stream.get_final_message()).id}"

    return StreamingResponse(answer())


async def user_of(connection: HTTPConnection) -> str | None:
    return connection.headers.get("x-user")


routes = [Route(f"/{number}", endpoint) for number, endpoint in enumerate((chat, chat_stream, message, message_stream))]
app = Starlette(routes=routes)
app.add_middleware(voight.CostTagMiddleware, user_getter=user_of, plan_getter=lambda connection: connection.headers.get("x-plan"))
