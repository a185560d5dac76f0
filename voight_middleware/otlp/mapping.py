"""From one span to one call."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from voight_middleware.otlp.counts import Reported, reported
from voight_middleware.otlp.kinds import Role, role_of
from voight_middleware.otlp.owners import owner_of
from voight_middleware.otlp.spans import Key, Span, first_text, text
from voight_middleware.providers.hosts import billing_provider, host_name
from voight_middleware.records.call import Call, job_call_id
from voight_middleware.records.tag_values import clean_value
from voight_middleware.records.tags import Owner

# OpenTelemetry, "Semantic conventions for generative AI", `gen_ai.provider.name`, and the values of
# the former `gen_ai.system`; the Vercel AI SDK's providers, by how their names begin;
# OpenInference's `llm.provider` and `llm.system`.
_PROVIDERS = (
    ("azure", "azure"),
    ("az.ai", "azure"),
    ("openai", "openai"),
    ("anthropic", "anthropic"),
    ("aws", "bedrock"),
    ("amazon-bedrock", "bedrock"),
    ("bedrock", "bedrock"),
    ("gcp.vertex", "vertex"),
    ("google.vertex", "vertex"),
    ("google-vertex", "vertex"),
    ("vertex", "vertex"),
    ("gcp", "google"),
    ("gemini", "google"),
    ("google", "google"),
    ("x_ai", "xai"),
    ("xai", "xai"),
    ("mistral", "mistral"),
)
_NAMES = (
    "gen_ai.provider.name",
    "gen_ai.system",
    "ai.model.provider",
    "llm.provider",
    "llm.system",
)
_SCOPES = (
    "openai",
    "anthropic",
    "bedrock",
    "vertex",
    "google",
    "gemini",
    "mistral",
    "groq",
    "cohere",
    "together",
)
_HOSTS = ("server.address", "gen_ai.openai.api_base", "url.full")
_TIERS = (
    "openai.response.service_tier",
    "gen_ai.openai.response.service_tier",
    "anthropic.response.service_tier",
)
_CLASS = re.compile(r"[A-Za-z_][A-Za-z0-9_.:\-]{0,119}")
_HOST = re.compile(r"[A-Za-z0-9_.:\-]{1,253}")
_CANCELLED = frozenset(
    {"CancelledError", "Cancelled", "AbortError", "GeneratorExit", "KeyboardInterrupt"}
)
_MAX_TEXT = 1_000_000_000_000_000
"""Microseconds: about thirty years. A longer duration means that the clock was set meanwhile."""


class Reading(NamedTuple):
    """The role of a span. If it is a call, metered or not, also the call and its owner."""

    role: Role
    call: Call | None = None
    owner: Owner | None = None
    usage: Reported | None = None


def read(span: Span) -> Reading:
    """
    Return the reading of *span*. Pure: the same span is always the same call, with the same id.
    """
    role = role_of(span)
    if role not in ("call", "ours"):
        return Reading(role)
    attributes = span.attributes
    host = _host(attributes)
    provider = (billing_provider(host) if host is not None else None) or _provider(
        attributes, span.scope
    )
    usage = reported(attributes, provider)
    requested, model = _models(attributes)
    outcome, error = _outcome(span)
    duration = (span.ended - span.started) // 1000
    call = Call(
        call_id=call_id(span.key),
        occurred_at=span.started // 1000,
        provider=provider,
        endpoint=usage.dialect if usage is not None else "usage",
        requested_model=requested or model,
        model=model or requested,
        host=host,
        streamed=_streamed(attributes),
        outcome=outcome,
        error=error,
        http_status=_whole(attributes.get("http.response.status_code"), 999),
        attempts=1 + (_whole(attributes.get("http.request.resend_count"), 1000) or 0),
        duration=duration if 0 <= duration < _MAX_TEXT else None,
        ttft=_time_to_first_token(span),
        response_id=response_id(attributes),
        service_tier=_named(first_text(attributes, *_TIERS)),
        raw_usage=None if usage is None else usage.raw,
    )
    return Reading(role, call, owner_of(span), usage)


def call_id(key: Key) -> str:
    """Return the id of a span's call. It is the same if the span is sent again, to any receiver."""
    return job_call_id(f"span/{key.trace_id}/{key.span_id}")


def response_id(attributes: Mapping[str, Any]) -> str | None:
    """Return the provider's id of the response."""
    value = first_text(attributes, "gen_ai.response.id", "ai.response.id")
    return clean_value(value) if value is not None else None


def _models(attributes: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the requested model and the responding one, if the span distinguishes them."""
    requested = first_text(
        attributes, "gen_ai.request.model", "ai.model.id", "llm.request.model_name"
    )
    responding = first_text(
        attributes, "gen_ai.response.model", "ai.response.model", "llm.response.model_name"
    )
    either = first_text(
        attributes, "llm.model_name", "embedding.model_name", "langfuse.observation.model.name"
    )
    return _named(requested or either), _named(
        responding or (either if requested is None else None)
    )


def _named(model: str | None) -> str | None:
    """Return a model name to store: of bounded length, and safe to print."""
    return None if model is None else clean_value(model)


def _provider(attributes: Mapping[str, Any], scope: str) -> str:
    name = first_text(attributes, *_NAMES)
    if name is None:
        return next((known for known in _SCOPES if known in scope.lower()), "unknown")
    name = name.strip().lower()
    for begin, provider in _PROVIDERS:
        if name.startswith(begin):
            return provider
    # `groq.chat`: the Vercel AI SDK appends the part after the dot
    return clean_value(name.partition(".")[0][:100]) or "unknown"


def _host(attributes: Mapping[str, Any]) -> str | None:
    for name in _HOSTS:
        value = text(attributes.get(name))
        if value is None:
            continue
        host = host_name(value)
        if host and _HOST.fullmatch(host):
            return host
    return None


def _outcome(span: Span) -> tuple[str, str | None]:
    if not span.failed:
        return "ok", None
    candidates = (span.exception, text(span.attributes.get("error.type")))
    name = next(
        (
            candidate
            for candidate in candidates
            if candidate is not None and _CLASS.fullmatch(candidate)
        ),
        None,
    )
    short = None if name is None else name.rpartition(".")[2]
    return ("cancelled" if short in _CANCELLED else "error"), short


def _streamed(attributes: Mapping[str, Any]) -> bool:
    if any(
        attributes.get(name) is True
        for name in ("gen_ai.request.stream", "gen_ai.is_streaming", "llm.is_streaming")
    ):
        return True
    operation = attributes.get("ai.operationId")
    return isinstance(operation, str) and operation.endswith(".doStream")


def _time_to_first_token(span: Span) -> int | None:
    """
    Return the time to first token in microseconds.

    Sources of the units: OpenTelemetry's conventions (seconds), the Vercel AI SDK's documentation
    (milliseconds).
    """
    attributes = span.attributes
    for name, factor in (
        ("gen_ai.response.time_to_first_chunk", 1_000_000),
        # the metric's name: @ai-sdk/otel 1.0 puts it on spans
        ("gen_ai.client.operation.time_to_first_chunk", 1_000_000),
        ("gen_ai.server.time_to_first_token", 1_000_000),
        ("ai.response.msToFirstChunk", 1000),
    ):
        value = attributes.get(name)
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and 0 <= value * factor < _MAX_TEXT
        ):
            return round(value * factor)
    if span.first_token is not None and 0 <= span.first_token - span.started < _MAX_TEXT * 1000:
        return (span.first_token - span.started) // 1000
    return None


def _whole(value: object, most: int) -> int | None:
    return value if type(value) is int and 0 <= value <= most else None
