"""Flask under load: every view answers the id of the provider's answer, when that has ended."""

import os
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
from flask import Flask, Response, g, request

import voight_middleware as voight
from voight_flask import CostTags

options: dict[str, Any] = {"api_key": "k", "max_retries": 0, "timeout": 60}
openai_client = voight.wrap(openai.OpenAI(base_url=os.environ["PROVIDER_OPENAI"], **options))
anthropic_client = voight.wrap(anthropic.Anthropic(base_url=os.environ["PROVIDER_ANTHROPIC"], **options))

app = Flask(__name__)


def question() -> list[Any]:
    return [{"role": "user", "content": f"[user:{request.headers.get('x-user')}] question {request.headers['x-request']}"}]


@app.before_request
def sign_in() -> None:
    g.user = request.headers.get("x-user")


@app.get("/0")
def chat() -> str:
    return openai_client.chat.completions.create(model="gpt-4o-mini", messages=question()).id


@app.get("/1")
def chat_stream() -> Response:
    messages = question()

    def answer() -> Iterator[str]:
        last = ""
        for chunk in openai_client.chat.completions.create(model="gpt-5-mini", messages=messages, stream=True):
            last = chunk.id
            yield "."
        yield f" {last}"

    return Response(answer())


@app.get("/2")
def message() -> str:
    return anthropic_client.messages.create(model="claude-haiku-4-5", max_tokens=100, messages=question()).id


@app.get("/3")
def message_stream() -> Response:
    messages = question()

    def answer() -> Iterator[str]:
        with anthropic_client.messages.stream(model="claude-haiku-4-5", max_tokens=100, messages=messages) as stream:
            for _ in stream.text_stream:
                yield "."
            yield f" {stream.get_final_message().id}"

    return Response(answer())


CostTags(app, user_getter=lambda _: g.user, plan_getter=lambda request: request.headers.get("x-plan"))
