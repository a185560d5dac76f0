"""
Conventions: the attribute names of a call that tracing tools read.

A span has attributes of three vocabularies, as no tool reads all of them:

* ``gen_ai.*``: OpenTelemetry's semantic conventions for generative AI, as of November 2026
  (https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/client-inference.md).
  Cache writes are ``gen_ai.usage.cache_write.input_tokens``; up to version 1.44 they were called
  ``cache_creation``.
* ``openinference.*``, ``llm.*``, ``user.id``, ``session.id`` and ``metadata``: OpenInference
  (https://arize-ai.github.io/openinference/spec/attributes/semantic-conventions.html), which
  Phoenix reads.
* ``voight.*``: all other data. Money is an exact decimal string of US dollars, as attributes cannot
  be decimal numbers.

``langfuse.*`` is set only if asked for
(https://langfuse.com/integrations/native/opentelemetry#property-mapping). No attribute contains a
prompt or a response.
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
"""``gen_ai.provider.name`` of our providers, if it differs."""
OPERATIONS: Mapping[str, str] = {
    "chat": "chat",
    "completions": "text_completion",
    "converse": "chat",
    "embeddings": "embeddings",
    "generate_content": "generate_content",
    "messages": "chat",
    "responses": "chat",
}
"""
``gen_ai.operation.name`` of our endpoints. The convention has no name for the others, and allows
custom names.
"""

TAG_ATTRIBUTES: Mapping[str, str] = {
    "user_id": "user.id",
    "session_id": "session.id",
    "plan": "voight.plan",
    "tenant_id": "voight.tenant_id",
    "route": "voight.route",
    "release": "voight.release",
}
"""
The attributes of tags. ``user.id`` and ``session.id`` are in OpenTelemetry's registry
(https://opentelemetry.io/docs/specs/semconv/registry/attributes/user/, …/session/) and in
OpenInference. Langfuse and Phoenix read them.
"""


def tag_attribute(key: str) -> str:
    """Return the attribute of a tag: ``voight.tag.<key>`` for an application's own key."""
    return TAG_ATTRIBUTES.get(key) or f"voight.tag.{key}"


def provider_name(provider: str) -> str:
    """Return ``gen_ai.provider.name``."""
    return PROVIDERS.get(provider, provider)


def operation_name(endpoint: str) -> str:
    """Return ``gen_ai.operation.name``."""
    return OPERATIONS.get(endpoint, endpoint)


def span_name(endpoint: str, model: str | None) -> str:
    """Return ``{gen_ai.operation.name} {gen_ai.request.model}``."""
    operation = operation_name(endpoint)
    return f"{operation} {_exportable(model)}" if model else operation


def _exportable(model: str) -> str:
    """
    Return a model name that can be exported. It may come from a client, and half a character (a
    lone surrogate) would fail a whole batch of spans.
    """
    return clean_value(model) or "_OTHER"


def start_attributes(start: CallStart) -> Attributes:
    """
    Return the attributes at the start of a call, for samplers. They say nothing about its owner.
    """
    return _request(
        start.provider, start.endpoint, start.requested_model, start.host, start.streamed
    )


def call_attributes(call: Call, langfuse: bool = False) -> Attributes:
    """
    Return all attributes of a finished call. Usage and cost are included if it is priced.

    Args:
        call: A call whose tags contain no personal data.
        langfuse: Whether to add the attributes that only Langfuse reads: metadata for filters, and
            our cost instead of its own.
    """
    attributes = _request(
        call.provider, call.endpoint, call.requested_model, call.host, call.streamed
    )
    attributes |= tag_attributes(call.tags)
    attributes |= _response(call)
    attributes |= _usage(call)
    attributes["voight.call_id"] = call.call_id
    attributes["voight.attribution"] = call.attribution
    attributes["voight.outcome"] = call.outcome
    attributes["voight.cost_status"] = call.cost_status
    if call.cost_reasons:
        # they may quote the model
        attributes["voight.cost_reasons"] = tuple(map(_exportable, call.cost_reasons))
    if call.estimated:
        attributes["voight.estimated"] = True
    cost = None if call.cost_usd is None else usd_text(call.cost_usd)
    if cost is not None:
        attributes["voight.cost_usd"] = cost
    if langfuse:
        attributes |= _for_langfuse(call, cost)
    return attributes


def tag_attributes(tags: Tags) -> Attributes:
    """
    Return the attributes of tags without personal data. OpenInference's ``metadata`` has the tags
    that its vocabulary has no name for.
    """
    attributes: Attributes = {}
    for key, name in TAG_ATTRIBUTES.items():
        if (value := getattr(tags, key)) is not None:
            attributes[name] = value
    if tags.session_id is not None:
        # Datadog's session: docs.datadoghq.com, "OpenTelemetry Instrumentation"
        attributes["gen_ai.conversation.id"] = tags.session_id
    if metadata := _metadata(tags):
        attributes["metadata"] = msgspec.json.encode(metadata).decode()
    return attributes


def error_type(call: Call) -> str:
    """Return ``error.type``: the class of the caller's exception, or else the HTTP status."""
    return call.error or (
        str(call.http_status)
        if call.http_status is not None and call.http_status >= 400
        else "_OTHER"
    )


def _metadata(tags: Tags) -> dict[str, str]:
    named = {key: getattr(tags, key) for key in ("plan", "tenant_id", "route", "release")}
    return {**tags.extra, **{key: value for key, value in named.items() if value is not None}}


def _for_langfuse(call: Call, cost: str | None) -> Attributes:
    """
    Return the ``langfuse.*`` attributes, which take precedence in Langfuse. Without them, it would
    add cached tokens to an input that includes them, and use its own prices.
    """
    attributes: Attributes = {
        f"langfuse.observation.metadata.{key}": value for key, value in _metadata(call.tags).items()
    }
    if call.tags.release is not None:
        attributes["langfuse.release"] = call.tags.release
    if counts := dict(tokens(call)):
        names = {_LANGFUSE_USAGE.get(kind, kind): count for kind, count in counts.items()}
        attributes["langfuse.observation.usage_details"] = msgspec.json.encode(
            {**names, "total": sum(counts.values())}
        ).decode()
    if cost is not None:
        attributes["langfuse.observation.cost_details"] = f'{{"total":{cost}}}'
    return attributes


_LANGFUSE_USAGE = {
    "cache_read": "input_cached_tokens",
    "cache_write": "input_cache_creation",
    "reasoning": "output_reasoning_tokens",
}
"""
Langfuse's names of token types, also disjoint
(https://langfuse.com/docs/observability/features/token-and-cost-tracking).
"""


def _request(
    provider: str, endpoint: str, model: str | None, host: str | None, streamed: bool
) -> Attributes:
    attributes: Attributes = {
        "gen_ai.operation.name": operation_name(endpoint),
        "gen_ai.provider.name": provider_name(provider),
        "openinference.span.kind": "EMBEDDING" if endpoint == "embeddings" else "LLM",
        "llm.provider": provider,
    }
    if model is not None:
        model = _exportable(model)
        attributes["gen_ai.request.model"] = model
        attributes["llm.request.model_name"] = model
    if host is not None:
        attributes["server.address"] = host
    if streamed:
        attributes["gen_ai.request.stream"] = True
    return attributes


def _response(call: Call) -> Attributes:
    attributes: Attributes = {}
    if (model := call.model or call.requested_model) is not None:
        attributes[
            "embedding.model_name" if call.endpoint == "embeddings" else "llm.model_name"
        ] = _exportable(model)
    if call.model is not None:
        attributes["gen_ai.response.model"] = attributes["llm.response.model_name"] = _exportable(
            call.model
        )
    if call.response_id is not None:
        attributes["gen_ai.response.id"] = call.response_id
    if call.finish_reasons:
        attributes["gen_ai.response.finish_reasons"] = call.finish_reasons
        # of the first choice, as in OpenInference's own instrumentors
        attributes["llm.finish_reason"] = call.finish_reasons[0]
    elif call.outcome != "ok" and call.endpoint in OPERATIONS and call.endpoint != "embeddings":
        # the convention's note on this attribute: expected, but not received
        attributes["gen_ai.response.finish_reasons"] = ("error",)
    if call.ttft is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = call.ttft / 1_000_000
    if call.service_tier is not None and call.provider in ("openai", "azure"):
        attributes["openai.response.service_tier"] = call.service_tier
    if call.outcome == "error":
        attributes["error.type"] = error_type(call)
    return attributes


def _usage(call: Call) -> Attributes:
    """
    Return the token counts. In both conventions, input includes cache reads and cache writes, and
    output includes reasoning.
    """
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
    Yield the tokens of a call by type. Types without a reported count are skipped.

    The types are ``input`` (not cached), ``cache_read``, ``cache_write``, ``output`` (without
    reasoning) and ``reasoning``. They are disjoint, and add up to input and output.
    """
    usage = call.usage
    if usage is None:
        return
    reads, writes, reasoning = usage.cache_read_tokens, usage.cache_write_tokens, usage.reasoning
    if reasoning is not None and usage.output_tokens is not None:
        # some providers report more reasoning than they bill as output
        reasoning = min(reasoning, usage.output_tokens)
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
