"""Bedrock's tiers and latencies: whole and streamed, in bodies and headers, at the readers themselves."""

from typing import Any

import msgspec
import pytest

from voight_middleware.instrumentation.event_formats import _loaded
from voight_middleware.instrumentation.http import find
from voight_middleware.providers import bedrock
from voight_middleware.providers.base import ResponseSummary
from voight_middleware.providers.hosts import billing_provider, platform

USAGE = {"inputTokens": 1000, "outputTokens": 100}
TERMS: list[tuple[dict[str, Any], str | None, str | None]] = [
    ({}, None, None),
    ({"serviceTier": {"type": "default"}}, "default", None),
    ({"serviceTier": {"type": "flex"}}, "flex", None),
    ({"performanceConfig": {"latency": "standard"}}, None, None),
    ({"performanceConfig": {"latency": "optimized"}}, None, "optimized"),
    ({"serviceTier": {"type": "priority"}, "performanceConfig": {"latency": "optimized"}}, "priority", "optimized"),
]


def said(answer: ResponseSummary) -> tuple[str | None, str | None]:
    return answer.service_tier, msgspec.json.decode(answer.usage).get("speed")


@pytest.mark.parametrize(("terms", "tier", "speed"), TERMS, ids=str)
def test_converse_says_its_terms(terms: dict[str, Any], tier: str | None, speed: str | None) -> None:
    """In a whole answer, and in the last event of a stream."""
    body = msgspec.json.encode({"usage": USAGE, "stopReason": "end_turn", **terms})
    assert said(bedrock.parse_conversation(body)) == (tier, speed)
    reader = bedrock.ConverseParser()
    reader.feed(_loaded(body))
    assert said(reader.summary()) == (tier, speed)


@pytest.mark.parametrize(("tier", "latency", "speed"), [(None, None, None), ("flex", None, None), ("default", "optimized", "optimized")])
def test_invoke_says_its_terms_in_headers(tier: str | None, latency: str | None, speed: str | None) -> None:
    """Beside the counts of a body that has none, and of one that has."""
    headers = {"x-amzn-bedrock-input-token-count": "1000", "x-amzn-bedrock-output-token-count": "100"}
    headers |= {"x-amzn-bedrock-service-tier": tier} if tier else {}
    headers |= {"x-amzn-bedrock-performanceconfig-latency": latency} if latency else {}
    endpoint = bedrock.counted(bedrock.ACTIONS["invoke"], headers)
    assert endpoint.parse is not None
    assert endpoint.enrich is not None
    for body in (b'{"generation": "x"}', b'{"usage": {"input_tokens": 1000, "output_tokens": 100}}'):
        answer = endpoint.enrich(endpoint.parse(body), {})
        assert said(answer) == (tier, speed)
        assert msgspec.json.decode(answer.usage)["input_tokens"] == 1000


@pytest.mark.parametrize(
    "host",
    [
        "acme.openai.azure.us",
        "acme.openai.azure.cn",
        "acme.azure-api.net",
        "Mistral-large-abcd.eastus2.models.ai.azure.com".lower(),
        "llama.eastus2.inference.ai.azure.com",
        "acme.cognitiveservices.azure.us",
    ],
)
def test_hosts_of_azure(host: str) -> None:
    """Of other clouds, of serverless models, and of API Management."""
    assert billing_provider(host) == "azure"


@pytest.mark.parametrize(
    ("host", "path"),
    [
        ("acme.azure-api.net", "/openai/deployments/chat-prod/chat/completions"),
        ("acme.azure-api.net", "/my-team/openai/deployments/chat-prod/chat/completions"),
        ("llm-gateway.acme.example", "/openai/deployments/chat-prod/chat/completions"),
        ("acme.azure-api.net", "/my-team/openai/deployments/chat-prod/embeddings"),
    ],
)
def test_a_deployment_behind_a_gateway(host: str, path: str) -> None:
    """Its name is read, whatever stands before Azure's own path."""
    target = find("POST", host, path)
    assert target is not None
    assert (target.provider, target.model) == ("azure", "chat-prod")


@pytest.mark.parametrize(
    ("sdk", "name", "provider"),
    [
        ("openai", "AzureOpenAI", "azure"),
        ("openai", "AsyncAzureOpenAI", "azure"),
        ("openai", "OpenAI", None),
        ("anthropic", "AnthropicVertex", "vertex"),
        ("anthropic", "AnthropicBedrock", "bedrock"),
        ("anthropic", "AsyncAnthropicFoundry", "azure"),
        ("anthropic", "Anthropic", None),
    ],
)
def test_the_class_of_a_client_says_who_bills(sdk: str, name: str, provider: str | None) -> None:
    """On a host of one's own too."""
    cls = getattr(pytest.importorskip(sdk), name, None)
    if cls is None:
        pytest.skip(f"this {sdk} has no {name}")
    assert platform(cls) == provider
