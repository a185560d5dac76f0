"""The SDKs' clients for clouds: one call each, with the provider's own counts, billed by the cloud."""

import json
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest

from voight_middleware import instrument, wrap
from voight_middleware.records.usage import Usage

from ..support.calls import Calls
from ..support.memory_provider import IDS, JSON, MODELS, REASONS, USAGE, Provider, http_library, messages_body, messages_events, usual
from .entry_points import CHAT, MESSAGES, WAYS, Way, both_kinds
from .raw_http import invoked_frame

pytestmark = pytest.mark.slow  # a sweep over many cases


@dataclass(frozen=True)
class Cloud:
    """A client class of an SDK: how it is made, where it goes, and who bills."""

    name: str
    sdk: Any
    host: str
    provider: str
    options: dict[str, Any]
    botocore: bool = False
    """Whether AWS's own library signs its requests, or reads its streams."""

    def __str__(self) -> str:
        return f"{self.name}({', '.join(self.options)})"

    def client(self, provider: Provider, *, asynchronous: bool) -> Any:
        """A client of this class whose requests all come to *provider*."""
        if self.botocore:
            pytest.importorskip("botocore")
        made = getattr(self.sdk, f"Async{self.name}" if asynchronous else self.name)
        http_client = provider.http_client(http_library(self.sdk), asynchronous=asynchronous)
        return made(**self.options, max_retries=0, http_client=http_client)


AZURE = {"api_key": "k", "api_version": "2024-10-21", "azure_endpoint": "https://acme.openai.azure.com"}
AWS = {"aws_region": "us-east-1", "aws_access_key": "AKIDEXAMPLE", "aws_secret_key": "secret"}
AWS_ID = {"aws_region": "us-east-1", "aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "secret"}
VERTEX = {"region": "us-east5", "project_id": "p", "access_token": "t"}
CLOUDS = [
    Cloud("AzureOpenAI", openai, "acme.openai.azure.com", "azure", AZURE),
    Cloud("AzureOpenAI", openai, "acme.openai.azure.com", "azure", {**AZURE, "azure_deployment": "mine"}),
    Cloud("BedrockOpenAI", openai, "bedrock-mantle.us-east-1.api.aws", "bedrock", {"aws_region": "us-east-1", "api_key": "k"}),
    Cloud("BedrockOpenAI", openai, "bedrock-mantle.us-east-1.api.aws", "bedrock", AWS_ID, botocore=True),
    Cloud("AnthropicBedrock", anthropic, "bedrock-runtime.us-east-1.amazonaws.com", "bedrock", AWS, botocore=True),
    Cloud("AnthropicBedrockMantle", anthropic, "bedrock-mantle.us-east-1.api.aws", "bedrock", AWS, botocore=True),
    Cloud("AnthropicFoundry", anthropic, "acme.services.ai.azure.com", "azure", {"api_key": "k", "resource": "acme"}),
    Cloud("AnthropicVertex", anthropic, "us-east5-aiplatform.googleapis.com", "vertex", VERTEX),
    # Anthropic's own platform, bought through a marketplace: by its own price list.
    Cloud("AnthropicAWS", anthropic, "aws-external-anthropic.us-east-1.api.aws", "anthropic", {**AWS, "workspace_id": "w"}, botocore=True),
    Cloud(
        "AnthropicGoogleCloud",
        anthropic,
        "claude.googleapis.com",
        "anthropic",
        {"project": "p", "workspace_id": "w", "token_provider": lambda: "t"},
    ),
]
NAMES = {
    *("chat.create", "chat.create(stream)", "chat.parse", "chat.stream", "chat.with_raw_response.parse", "client.post chat"),
    *("chat.with_raw_response(stream).parse", "chat.with_streaming_response.read"),
    *("responses.create", "responses.create(stream)", "embeddings.create"),
    *("messages.create", "messages.create(stream)", "messages.parse", "messages.stream", "messages.with_raw_response.parse"),
    *("messages.with_raw_response(stream).parse", "messages.with_streaming_response.read"),
    *("messages.with_streaming_response(stream).parse", "client.post messages"),
    *("beta.messages.create", "beta.messages.create(stream)"),
}
"""The ways in that each cloud's client is tried with."""


def event_stream(events: list[bytes]) -> list[bytes]:
    """Server-sent events as Bedrock sends them: frames of ``application/vnd.amazon.eventstream``, each with two checksums."""
    return [invoked_frame(event.partition(b"data: ")[2].strip()) for event in events]


def cloudy(path: str, body: dict[str, Any]) -> Any:
    """What a cloud answers: Bedrock and Vertex have paths of their own, and Bedrock streams in a format of its own."""
    if path.endswith("/invoke-with-response-stream"):
        return 200, {"content-type": "application/vnd.amazon.eventstream"}, event_stream(messages_events())
    if path.endswith(("/invoke", ":rawPredict")):
        return 200, JSON, [json.dumps(messages_body()).encode()]
    return usual("/v1/messages" if path.endswith(":streamRawPredict") else path, body)


def clouds(*names: str) -> Any:
    """Parametrise a test over the clients that the installed SDKs have, each with those of its ways in that are named."""
    chosen = [
        pytest.param(cloud, way, id=f"{cloud}-{way}")
        for cloud in CLOUDS
        for way in WAYS
        if way.name in names and way.sdk == cloud.sdk.__name__ and hasattr(cloud.sdk, cloud.name)
    ]
    return pytest.mark.parametrize(("cloud", "way"), chosen)


@clouds(*NAMES)
@both_kinds
async def test_a_cloud_is_one_call_with_exact_usage(cloud: Cloud, way: Way, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """Whatever its paths and its wire format: there is one call, of the model that was asked for, and the cloud bills it."""
    provider.answer = cloudy
    client = wrap(cloud.client(provider, asynchronous=asynchronous))

    await way.arun(client) if asynchronous else way.run(client)

    call = calls.one()
    assert (call.outcome, call.usage, call.estimated) == ("ok", USAGE[way.endpoint], False)
    assert (call.requested_model, call.model) == MODELS[way.endpoint]
    assert (call.provider, call.endpoint, call.host) == (cloud.provider, way.endpoint, cloud.host)
    assert (call.response_id, call.http_status, call.streamed) == (IDS[way.endpoint], 200, way.streamed)
    assert call.finish_reasons == REASONS[way.endpoint]


@clouds("chat.create", "chat.create(stream)", "messages.create", "messages.create(stream)")
@both_kinds
async def test_instrument_covers_the_clouds(cloud: Cloud, way: Way, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """The same without wrapping: one call, and no second one of what lies underneath."""
    provider.answer = cloudy
    instrument()
    client = cloud.client(provider, asynchronous=asynchronous)

    await way.arun(client) if asynchronous else way.run(client)

    assert (calls.one().usage, calls.one().provider) == (USAGE[way.endpoint], cloud.provider)


@clouds("chat.create", "messages.create(stream)")
@both_kinds
@pytest.mark.parametrize("copied", ["copy", "with_options"])
async def test_a_copy_of_a_clouds_client_is_metered(
    copied: str, cloud: Cloud, way: Way, asynchronous: bool, provider: Provider, calls: Calls
) -> None:
    """A copy of a copy, too."""
    provider.answer = cloudy
    client = wrap(cloud.client(provider, asynchronous=asynchronous))
    for _ in range(2):
        client = getattr(client, copied)(timeout=7, http_client=client._client)  # anthropic 1.x: a cloud's copy does not share it

    await way.arun(client) if asynchronous else way.run(client)

    assert (calls.one().usage, calls.one().provider) == (USAGE[way.endpoint], cloud.provider)


@pytest.mark.parametrize(
    ("base_url", "billed_by"),
    [
        ("https://aiplatform.googleapis.com/v1", "vertex"),
        ("https://aiplatform.eu.rep.googleapis.com/v1", "vertex"),
        ("https://bedrock-runtime.eu-west-1.amazonaws.com", "bedrock"),
        ("https://bedrock-runtime.cn-north-1.amazonaws.com.cn", "bedrock"),
    ],
)
def test_the_host_of_a_region_is_the_clouds(base_url: str, billed_by: str, provider: Provider, calls: Calls) -> None:
    """Whichever region or partition of the cloud it is."""
    wrap(provider.client("anthropic", base_url=base_url)).messages.create(**MESSAGES)

    assert calls.one().provider == billed_by


@both_kinds
async def test_an_azure_deployment_is_the_model_that_was_asked_for(asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """The answer says which model it is."""
    client = wrap(CLOUDS[0].client(provider, asynchronous=asynchronous))
    made = client.chat.completions.create(**{**CHAT, "model": "my-deployment"})
    if asynchronous:
        await made

    assert (calls.one().requested_model, calls.one().model) == ("my-deployment", MODELS["chat"][1])


def test_a_bedrock_stream_that_is_left_keeps_what_was_reported(provider: Provider, calls: Calls) -> None:
    """Its frames are binary, and its events are those of every message stream."""
    provider.answer = cloudy
    (bedrock,) = (cloud for cloud in CLOUDS if cloud.name == "AnthropicBedrock")
    with wrap(bedrock.client(provider, asynchronous=False)).messages.create(**MESSAGES, stream=True) as stream:
        for event in stream:
            if event.type == "content_block_delta":
                break

    assert (calls.one().outcome, calls.one().estimated) == ("aborted", True)
    assert calls.one().usage == Usage(input=100, cache_read=20, cache_write_5m=4, cache_write_1h=3, output=1)
