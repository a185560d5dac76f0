"""Raw HTTP: which requests are billed, by method, host and path."""

from typing import Any

import httpx
import pytest

from voight_middleware import wrap
from voight_middleware.instrumentation import http

from ..support.calls import Calls
from ..support.memory_provider import (
    Provider,
)
from .entry_points import CHAT
from .raw_http import BEDROCK, CHAT_URL, GEMINI, LIBRARIES, VERTEX, client_of, raw, sent

HOSTS = [
    ("POST", "https://api.openai.com/v1/chat/completions", "openai", "chat"),
    ("POST", "https://eu.api.openai.com/v1/responses", "openai", "responses"),
    ("GET", "https://api.openai.com/v1/responses/resp_1", "openai", "responses"),
    ("POST", "https://api.openai.com/v1/audio/speech", "openai", "speech"),
    ("POST", "https://api.openai.com/v1/threads/t_1/runs", "openai", "runs"),
    ("GET", "https://api.openai.com/v1/files/f_1/content", "openai", "batch"),
    ("POST", "https://x.openai.azure.com/openai/deployments/d/embeddings", "azure", "embeddings"),
    ("POST", "https://x.openai.azure.com//openai/deployments/d/images/generations", "azure", "images"),
    ("POST", "https://x.openai.azure.com/openai/responses", "azure", "responses"),
    ("POST", "https://x.openai.azure.com/openai/v1/responses/", "azure", "responses"),
    ("POST", "https://x.services.ai.azure.com/models/chat/completions", "azure", "chat"),
    ("POST", "https://x.services.ai.azure.com/api/projects/p/openai/v1/responses", "azure", "responses"),
    ("POST", "https://x.services.ai.azure.com/anthropic/v1/messages", "azure", "messages"),
    ("POST", "https://openrouter.ai/api/v1/chat/completions", "openrouter", "chat"),
    ("POST", "https://openrouter.ai/api/v1/messages", "openrouter", "messages"),
    ("POST", "https://api.groq.com/openai/v1/responses", "groq", "responses"),
    ("POST", "https://api.deepseek.com/chat/completions", "deepseek", "chat"),
    ("POST", "https://api.deepseek.com/beta/completions", "deepseek", "completions"),
    ("POST", "https://api.deepseek.com/anthropic/v1/messages", "deepseek", "messages"),
    ("POST", "https://api.mistral.ai/v1/embeddings", "mistral", "embeddings"),
    ("POST", "https://api.fireworks.ai/inference/v1/completions", "fireworks", "completions"),
    ("POST", "https://api.anthropic.com/v1/messages", "anthropic", "messages"),
    ("POST", "https://api.anthropic.com/v1/messages/count_tokens", "anthropic", "count_tokens"),
    ("POST", "https://api.anthropic.com/v1/messages/batches", "anthropic", "batch"),
    ("GET", "https://api.anthropic.com/v1/messages/batches/b_1/results", "anthropic", "batch"),
    ("POST", "https://api.anthropic.com/v1/chat/completions", "anthropic", "chat"),
    ("POST", "https://generativelanguage.googleapis.com/v1beta/models/gemini-3-flash:generateContent", "google", "generate_content"),
    ("POST", "https://generativelanguage.googleapis.com/v1beta/tunedModels/t-1:streamGenerateContent", "google", "generate_content"),
    ("POST", "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions", "google", "chat"),
    ("POST", f"{VERTEX}/google/models/gemini-3-flash:generateContent", "vertex", "generate_content"),
    ("POST", "https://aiplatform.googleapis.com/v1/publishers/google/models/gemini-3-flash:generateContent", "vertex", "generate_content"),
    ("POST", f"{VERTEX}/anthropic/models/claude-opus-4-8:rawPredict", "vertex", "messages"),
    ("POST", f"{VERTEX}/mistralai/models/mistral-large:rawPredict", "vertex", "chat"),
    ("POST", "https://aiplatform.googleapis.com/v1/projects/p/locations/l/endpoints/openapi/chat/completions", "vertex", "chat"),
    ("POST", f"{BEDROCK}/anthropic.claude-v2/invoke", "bedrock", "messages"),
    ("POST", f"{BEDROCK}/amazon.nova-pro-v1%3A0/converse-stream", "bedrock", "converse"),
    ("POST", "https://bedrock-runtime.us-west-2.amazonaws.com/openai/v1/chat/completions", "bedrock", "chat"),
    ("POST", "http://127.0.0.1:4000/v1/chat/completions", "openai", "chat"),
    ("POST", "https://gateway.example.com/anthropic/v1/messages", "anthropic", "messages"),
]
NOT_BILLED = [
    ("GET", "https://api.openai.com/v1/chat/completions"),
    ("GET", "https://api.openai.com/v1/models"),
    ("POST", "https://api.openai.com/v1/files"),
    ("POST", "https://api.openai.com/v1/threads/t_1/messages"),
    ("POST", "https://api.openai.com/"),
    ("GET", "https://api.anthropic.com/v1/messages"),
    ("GET", f"{GEMINI}:generateContent"),
    ("POST", f"{GEMINI}:countTokens"),
    ("POST", f"{VERTEX}/anthropic/models/count-tokens:rawPredict"),
    ("POST", f"{VERTEX}/meta/models/llama:rawPredict"),
    ("POST", f"{BEDROCK}/x/count-tokens"),
    ("PUT", "https://bucket.s3.amazonaws.com/model/x/invoke"),
    ("POST", "https://example.com/v1/responses"),
    ("POST", "https://example.com/v1/embeddings"),
    ("POST", "https://example.com/api/v1/messages/send"),
    ("POST", "https://notopenai.com/v1/responses"),
    ("POST", "https://example.com/myv1/messages"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "url", "provider", "endpoint"), HOSTS)
def test_a_billable_request_is_recognised_by_its_url(method: str, url: str, provider: str, endpoint: str) -> None:
    """Whatever a provider puts before its paths; on a host that is not known only what nothing else has."""
    parsed = httpx.URL(url)
    target = http.find(method, parsed.host, parsed.path)
    assert target is not None
    assert (target.provider, target.endpoint.name) == (provider, endpoint)


@pytest.mark.parametrize(("method", "url"), NOT_BILLED)
def test_no_other_request_is_a_call(method: str, url: str) -> None:
    parsed = httpx.URL(url)
    assert http.find(method, parsed.host, parsed.path) is None


def test_the_url_names_the_model_where_the_body_does_not() -> None:
    """Azure's deployment, Gemini's model, an inference profile of Bedrock's with a slash in it."""
    profile = "arn:aws:bedrock:eu-west-1:1:inference-profile/eu.anthropic.claude-opus-4-8"
    for url, model in (
        ("https://x.openai.azure.com/openai/deployments/our-4o/chat/completions", "our-4o"),
        (f"{GEMINI}:generateContent", "gemini-2.5-flash"),
        (f"{BEDROCK}/{profile.replace('/', '%2F').replace(':', '%3A')}/invoke", profile),
    ):
        parsed = httpx.URL(url)
        target = http.find("POST", parsed.host, parsed.path)
        assert target is not None
        assert target.model == model


@LIBRARIES
async def test_what_is_no_call_passes_and_is_none(library: Any, calls: Calls) -> None:
    """Other paths, other hosts, redirects."""
    provider = Provider()
    provider.answer = lambda path, body: (200, {}, [b"x"])
    client = wrap(client_of(library, raw(provider, library)))
    for method, url in NOT_BILLED:
        assert (await sent(client, url, None, method=method))[0] == 200
    provider.answer = lambda path, body: (307, {"location": "/elsewhere"}, [b""])
    assert (await sent(client, CHAT_URL, CHAT))[0] == 307

    assert calls.all() == []
