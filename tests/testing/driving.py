"""How the tests of the loopback provider talk to it, beside the fixtures: questions, the wire, and what streams are made of."""

import http.client
import json
from typing import Any

import anthropic
import openai

from voight_middleware.testing.provider import LoopbackProvider

MESSAGES: Any = [{"role": "user", "content": "[user:u_1] Why is the sky blue?"}]
STREAMED = ["chat", "responses", "messages"]
EVERY = [*STREAMED, "embeddings"]
ERRORS = (openai.APIError, anthropic.APIError)


def raw(provider: LoopbackProvider, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of an answer as they come over the wire."""
    connection = http.client.HTTPConnection(provider.url.removeprefix("http://"), timeout=10)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"content-type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read().decode()
    finally:
        connection.close()


def events(text: str) -> list[dict[str, Any]]:
    """The JSON of each server-sent event; OpenAI's ``[DONE]`` is left out."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def texts(name: str, stream: list[Any]) -> list[str]:
    """The pieces of text of a stream."""
    if name == "chat":
        return [event.choices[0].delta.content for event in stream if event.choices and event.choices[0].delta.content]
    kind = {"responses": "response.output_text.delta", "messages": "content_block_delta"}[name]
    return [event.delta if name == "responses" else event.delta.text for event in stream if event.type == kind]
