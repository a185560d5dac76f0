"""
Conventions: the names under which tools for traces read what is known of a call.

Three vocabularies stand beside each other on a span, as no tool reads all of them:

* ``gen_ai.*``: OpenTelemetry's semantic conventions for generative AI, at the state of November 2026
  (https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/client-inference.md). Cache writes are
  ``gen_ai.usage.cache_write.input_tokens`` there; up to version 1.44 they were called ``cache_creation``.
* ``openinference.*``, ``llm.*``, ``user.id``, ``session.id`` and ``metadata``: OpenInference
  (https://arize-ai.github.io/openinference/spec/attributes/semantic-conventions.html), which Phoenix reads.
* ``voight.*``: what neither has a name for. Money is an exact decimal string of US dollars, as attributes have no decimal numbers.

``langfuse.*`` is set on request only (https://langfuse.com/integrations/native/opentelemetry#property-mapping). Nothing here is a
prompt or an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import msgspec

from voight_middleware.pipeline.observers import CallStart
from voight_middleware.records.call import Call
from voight_middleware.records.money import usd_text
from voight_middleware.records.tag_values import clean_value
from voight_middleware.records.tags import Tags

Attributes: TypeAlias = dict[str, str | bool | int | float | tuple[str, ...]]

PROVIDERS: Mapping[str, str] = {
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "google": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex": "gcp.vertex_ai",
    "xai": "x_ai",
}
"""``gen_ai.provider.name`` of our providers, where it is not the same name."""
OPERATIONS: Mapping[str, str] = {
    "chat": "chat",
    "completions": "text_completion",
    "converse": "chat",
    "embeddings": "embeddings",
    "generate_content": "generate_content",
    "messages": "chat",
    "responses": "chat",
}
"""``gen_ai.operation.name`` of our endpoints; the convention has no word for the others, and allows names of one's own."""

TAG_ATTRIBUTES: Mapping[str, str] = {
    "user_id": "user.id",
    "session_id": "session.id",
    "plan": "voight.plan",
    "tenant_id": "voight.tenant_id",
    "route": "voight.route",
    "release": "voight.release",
}
"""
The attributes of tags. ``user.id`` and ``session.id`` are in the registry of OpenTelemetry (https://opentelemetry.io/docs/specs/semconv/registry/attributes/user/,
…/session/), in OpenInference, and what Langfuse and Phoenix read.
"""


def tag_attribute(key: str) -> str:
    """The attribute of a tag; ``voight.tag.<key>`` of a key of the application's own."""
    return TAG_ATTRIBUTES.get(key) or f"voight.tag.{key}"


def provider_name(provider: str) -> str:
    """``gen_ai.provider.name``."""
    return PROVIDERS.get(provider, provider)


def operation_name(endpoint: str) -> str:
    """``gen_ai.operation.name``."""
    return OPERATIONS.get(endpoint, endpoint)


def span_name(endpoint: str, model: str | None) -> str:
    """``{gen_ai.operation.name} {gen_ai.request.model}``."""
    operation = operation_name(endpoint)
    return f"{operation} {_sayable(model)}" if model else operation


def _sayable(model: str) -> str:
    """A model as a tag's value would be kept: it may come from a client, and half a character in a name fails a whole batch of spans."""
    return clean_value(model) or "_OTHER"


def start_attributes(start: CallStart) -> Attributes:
    """What is known when a call begins, and what a sampler may decide by: nothing of its owner."""
    return _request(start.provider, start.endpoint, start.requested_model, start.host, start.streamed)


def call_attributes(call: Call, langfuse: bool = False) -> Attributes:
    """
    Everything about a call that has ended; usage and cost where it has been priced.

    Args:
        call: Its tags hold no personal data any more.
        langfuse: Whether to add what only Langfuse reads: metadata that can be filtered, and our cost instead of its own.
    """
    attributes = _request(call.provider, call.endpoint, call.requested_model, call.host, call.streamed)
    attributes |= tag_attributes(call.tags)
    attributes |= _answer(call)
    attributes |= _usage(call)
    attributes["voight.call_id"] = call.call_id
    attributes["voight.attribution"] = call.attribution
    attributes["voight.outcome"] = call.outcome
    attributes["voight.cost_status"] = call.cost_status
    if call.cost_reasons:
        attributes["voight.cost_reasons"] = tuple(map(_sayable, call.cost_reasons))  # they may quote the model
    if call.estimated:
        attributes["voight.estimated"] = True
    cost = None if call.cost_usd is None else usd_text(call.cost_usd)
    if cost is not None:
        attributes["voight.cost_usd"] = cost
    if langfuse:
        attributes |= _for_langfuse(call, cost)
    return attributes


def tag_attributes(tags: Tags) -> Attributes:
    """The attributes of tags that hold no personal data any more, and OpenInference's ``metadata`` with those that have no place in it."""
    attributes: Attributes = {}
    for key, name in TAG_ATTRIBUTES.items():
        if (value := getattr(tags, key)) is not None:
            attributes[name] = value
    if tags.session_id is not None:
        attributes["gen_ai.conversation.id"] = tags.session_id  # Datadog's session: docs.datadoghq.com, "OpenTelemetry Instrumentation"
    if metadata := _metadata(tags):
        attributes["metadata"] = msgspec.json.encode(metadata).decode()
    return attributes


def error_type(call: Call) -> str:
    """``error.type``: the class of the exception that the caller got, or else the status of the answer."""
    return call.error or (str(call.http_status) if call.http_status is not None and call.http_status >= 400 else "_OTHER")


def _metadata(tags: Tags) -> dict[str, str]:
    named = {key: getattr(tags, key) for key in ("plan", "tenant_id", "route", "release")}
    return {**tags.extra, **{key: value for key, value in named.items() if value is not None}}


def _for_langfuse(call: Call, cost: str | None) -> Attributes:
    """``langfuse.*`` goes before everything else there: it would add cached tokens to the input that includes them, and price by itself."""
    attributes: Attributes = {f"langfuse.observation.metadata.{key}": value for key, value in _metadata(call.tags).items()}
    if call.tags.release is not None:
        attributes["langfuse.release"] = call.tags.release
    if counts := dict(tokens(call)):
        names = {_LANGFUSE_USAGE.get(kind, kind): count for kind, count in counts.items()}
        attributes["langfuse.observation.usage_details"] = msgspec.json.encode({**names, "total": sum(counts.values())}).decode()
    if cost is not None:
        attributes["langfuse.observation.cost_details"] = f'{{"total":{cost}}}'
    return attributes


_LANGFUSE_USAGE = {"cache_read": "input_cached_tokens", "cache_write": "input_cache_creation", "reasoning": "output_reasoning_tokens"}
"""Types of tokens by the names of https://langfuse.com/docs/observability/features/token-and-cost-tracking; they are disjoint there too."""


def _request(provider: str, endpoint: str, model: str | None, host: str | None, streamed: bool) -> Attributes:
    attributes: Attributes = {
        "gen_ai.operation.name": operation_name(endpoint),
        "gen_ai.provider.name": provider_name(provider),
        "openinference.span.kind": "EMBEDDING" if endpoint == "embeddings" else "LLM",
        "llm.provider": provider,
    }
    if model is not None:
        model = _sayable(model)
        attributes["gen_ai.request.model"] = model
        attributes["llm.request.model_name"] = model
    if host is not None:
        attributes["server.address"] = host
    if streamed:
        attributes["gen_ai.request.stream"] = True
    return attributes


def _answer(call: Call) -> Attributes:
    attributes: Attributes = {}
    if (model := call.model or call.requested_model) is not None:
        attributes["embedding.model_name" if call.endpoint == "embeddings" else "llm.model_name"] = _sayable(model)
    if call.model is not None:
        attributes["gen_ai.response.model"] = attributes["llm.response.model_name"] = _sayable(call.model)
    if call.response_id is not None:
        attributes["gen_ai.response.id"] = call.response_id
    if call.finish_reasons:
        attributes["gen_ai.response.finish_reasons"] = call.finish_reasons
        attributes["llm.finish_reason"] = call.finish_reasons[0]  # of the first choice, as OpenInference's own instrumentors say it
    elif call.outcome != "ok" and call.endpoint in OPERATIONS and call.endpoint != "embeddings":
        attributes["gen_ai.response.finish_reasons"] = ("error",)  # the convention, note on this attribute: expected, and not received
    if call.ttft is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = call.ttft / 1_000_000
    if call.service_tier is not None and call.provider in ("openai", "azure"):
        attributes["openai.response.service_tier"] = call.service_tier
    if call.outcome == "error":
        attributes["error.type"] = error_type(call)
    return attributes


def _usage(call: Call) -> Attributes:
    """Token counts. Input includes what was read from and written to the cache, output includes reasoning, in both conventions."""
    usage = call.usage
    if usage is None:
        return {}
    counts = {
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cache_read_tokens,
        "gen_ai.usage.cache_write.input_tokens": usage.cache_write_tokens,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning,
        "llm.token_count.prompt": usage.input_tokens,
        "llm.token_count.completion": usage.output_tokens,
        "llm.token_count.prompt_details.cache_read": usage.cache_read_tokens,
        "llm.token_count.prompt_details.cache_write": usage.cache_write_tokens,
        "llm.token_count.prompt_details.audio": usage.audio_in,
        "llm.token_count.completion_details.reasoning": usage.reasoning,
        "llm.token_count.completion_details.audio": usage.audio_out,
    }
    if usage.input_tokens is not None and usage.output_tokens is not None:
        counts["llm.token_count.total"] = usage.input_tokens + usage.output_tokens
    return {name: count for name, count in counts.items() if count is not None}


def tokens(call: Call) -> Iterator[tuple[str, int]]:
    """
    The tokens of a call by type, disjoint: they add up to input and output. What was not reported is left out.

    The types are ``input`` (not cached), ``cache_read``, ``cache_write``, ``output`` (without reasoning) and ``reasoning``.
    """
    usage = call.usage
    if usage is None:
        return
    reads, writes, reasoning = usage.cache_read_tokens, usage.cache_write_tokens, usage.reasoning
    if reasoning is not None and usage.output_tokens is not None:
        reasoning = min(reasoning, usage.output_tokens)  # some report more of it than they bill as output
    if usage.input_tokens is not None:
        yield "input", usage.input_tokens - (reads or 0) - (writes or 0)
    if reads is not None:
        yield "cache_read", reads
    if writes is not None:
        yield "cache_write", writes
    if usage.output_tokens is not None:
        yield "output", usage.output_tokens - (reasoning or 0)
    if reasoning is not None:
        yield "reasoning", reasoning
