"""
What the ASGI applications under load share: four kinds of call, each answering the id of the provider's answer when that has ended.

Without ``PROVIDER_ANTHROPIC`` there are the two of OpenAI's, and the other SDK is not imported, which would take most of a worker's start.
"""

import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import openai

import voight_middleware as voight

openai_client = voight.wrap(openai.AsyncOpenAI(api_key="k", base_url=os.environ["PROVIDER_OPENAI"], max_retries=0, timeout=60))
if "PROVIDER_ANTHROPIC" in os.environ:
    import anthropic

    anthropic_client = voight.wrap(
        anthropic.AsyncAnthropic(api_key="k", base_url=os.environ["PROVIDER_ANTHROPIC"], max_retries=0, timeout=60)
    )


async def user_of(connection: Any) -> str | None:
    return connection.headers.get("x-user")  # type: ignore[no-any-return]


def plan_of(connection: Any) -> str | None:
    return connection.headers.get("x-plan")  # type: ignore[no-any-return]


def question(headers: Mapping[str, str]) -> list[Any]:
    return [{"role": "user", "content": f"[user:{headers.get('x-user')}] question {headers['x-request']}"}]


async def chat(headers: Mapping[str, str]) -> str:
    return (await openai_client.chat.completions.create(model="gpt-4o-mini", messages=question(headers))).id


async def chat_stream(headers: Mapping[str, str]) -> AsyncIterator[str]:
    last = ""
    async for chunk in await openai_client.chat.completions.create(model="gpt-5-mini", messages=question(headers), stream=True):
        last = chunk.id
        yield "."
    yield f" {last}"


async def message(headers: Mapping[str, str]) -> str:
    return (await anthropic_client.messages.create(model="claude-haiku-4-5", max_tokens=100, messages=question(headers))).id


async def message_stream(headers: Mapping[str, str]) -> AsyncIterator[str]:
    async with anthropic_client.messages.stream(model="claude-haiku-4-5", max_tokens=100, messages=question(headers)) as stream:
        async for _ in stream.text_stream:
            yield "."
        yield f" {(await stream.get_final_message()).id}"
