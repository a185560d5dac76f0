"""
A finished span, with only the data that a call needs.

Prompts and responses are never read from a span: ``wanted`` selects the attributes by name, before
any value is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

MAX_TEXT = 8192
"""
The maximum length of a text, in characters. Longer ones are dropped: no attribute here needs more.
"""

_FAMILIES = (
    "gen_ai.usage.",  # OpenTelemetry, "Semantic conventions for generative AI systems"
    "llm.token_count.",  # OpenInference, "Semantic conventions"
    "llm.usage.",  # OpenLLMetry before the conventions
    "ai.usage.",  # Vercel AI SDK, "Telemetry"
    "ai.telemetry.metadata.",
    "ai.settings.context.",  # Vercel AI SDK 7, package @ai-sdk/otel
    "anthropic.usage.",  # anthropic-sdk-python 2.x, its own spans
    "langfuse.trace.metadata.",  # Langfuse, "OpenTelemetry", "Property mapping"
    "langfuse.observation.metadata.",
    "traceloop.association.properties.",  # OpenLLMetry, "Associating entities with traces"
    "voight.",
)
_NAMES = frozenset(
    (
        *(
            "gen_ai.operation.name",
            "gen_ai.provider.name",
            "gen_ai.system",
            "gen_ai.request.model",
            "gen_ai.response.model",
        ),
        *(
            "gen_ai.response.id",
            "gen_ai.request.stream",
            "gen_ai.is_streaming",
            "gen_ai.response.time_to_first_chunk",
            "gen_ai.agent.name",
        ),
        *(
            "gen_ai.server.time_to_first_token",
            "gen_ai.client.operation.time_to_first_chunk",
            "llm.is_streaming",
        ),
        *("gen_ai.conversation.id", "gen_ai.user", "gen_ai.openai.api_base"),
        *(
            "gen_ai.openai.response.service_tier",
            "openai.response.service_tier",
            "anthropic.response.service_tier",
            "llm.request.type",
        ),
        *(
            "openinference.span.kind",
            "llm.model_name",
            "llm.request.model_name",
            "llm.response.model_name",
            "llm.provider",
            "llm.system",
        ),
        *(
            "embedding.model_name",
            "metadata",
            "user.id",
            "session.id",
            "enduser.id",
            "traceloop.span.kind",
            "agent_name",
        ),
        *(
            "ai.operationId",
            "ai.model.id",
            "ai.model.provider",
            "ai.response.id",
            "ai.response.model",
            "ai.response.msToFirstChunk",
        ),
        *(
            "ai.response.providerMetadata",
            "ai.telemetry.functionId",
            "operation.name",
            "resource.name",
        ),
        *(
            "langfuse.user.id",
            "langfuse.session.id",
            "langfuse.release",
            "langfuse.observation.type",
            "langfuse.observation.model.name",
        ),
        *(
            "langfuse.observation.usage_details",
            "langfuse.trace.metadata",
            "langfuse.observation.metadata",
        ),
        *(
            "metadata.usage_object",
            "llm.user",
            "error.type",
            "http.response.status_code",
            "http.request.resend_count",
            "server.address",
            "url.full",
        ),
    )
)


def wanted(key: str) -> bool:
    """Return whether the attribute *key* is read."""
    return key in _NAMES or key.startswith(_FAMILIES)


class Key(NamedTuple):
    """The ids of a span: 32 and 16 hexadecimal digits."""

    trace_id: str
    span_id: str


class Span(msgspec.Struct, kw_only=True):
    """
    A finished span. Its attributes are those that are ``wanted``; times are nanoseconds since 1970,
    UTC.
    """

    key: Key
    parent_id: str | None = None
    name: str = ""
    scope: str = ""
    """The name of the instrumentation scope: the library that made the span."""
    started: int = 0
    ended: int = 0
    attributes: Mapping[str, Any] = {}
    resource: Mapping[str, Any] = {}
    failed: bool = False
    exception: str | None = None
    """The class of the recorded exception, never its message."""
    first_token: int | None = None
    """When the first part of the response came, if an event has the time."""

    @property
    def parent(self) -> Key | None:
        """The parent span; None for the root of a trace."""
        return None if self.parent_id is None else Key(self.key.trace_id, self.parent_id)


def text(value: object) -> str | None:
    """Return *value* if it is a text, not empty, and at most ``MAX_TEXT`` long; else None."""
    return value if isinstance(value, str) and 0 < len(value) <= MAX_TEXT else None


def first_text(attributes: Mapping[str, Any], *names: str) -> str | None:
    """Return the first of these attributes that is a text."""
    for name in names:
        if (value := text(attributes.get(name))) is not None:
            return value
    return None


def json_object(value: object) -> Mapping[str, Any]:
    """Return the object that a JSON text contains; an empty one for anything else."""
    if not isinstance(value, str) or not value.startswith("{") or len(value) > MAX_TEXT:
        return {}
    try:
        decoded = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return {}
    return decoded if isinstance(decoded, dict) else {}
