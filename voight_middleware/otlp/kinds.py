"""
The role of a span: one billable call, a step around or beside calls, or neither.

The role depends on the span's own attributes only. ``deduplicator`` detects two spans of one call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from voight_middleware.otlp.spans import Span

Role = Literal["call", "step", "other", "ours"]
"""
``call``: one billable call. ``step``: an agent, a tool, a chain or anything else that contains
calls; any tokens that it reports are those of its calls. ``ours``: a call that our instrumentation
has metered. ``other``: anything else.
"""

MARK = "voight.call_id"
"""
The attribute of a span whose call is already metered: our own spans, and those that we enrich.
"""
METERED = "voight.metered"
"""
The same, for another library's span of such a call or around it. ``CostSpanProcessor`` sets it.
"""

# OpenTelemetry, "Semantic conventions for generative AI spans", `gen_ai.operation.name`; then the
# values that libraries write instead.
_OPERATIONS: Mapping[str, Role] = {
    **dict.fromkeys(("chat", "text_completion", "generate_content", "embeddings"), "call"),
    **dict.fromkeys(
        (
            "completion",
            "text_generation",
            "embedding",
            "responses",
            "message",
            "messages",
            "generate_object",
        ),
        "call",
    ),
    # litellm, package litellm, `types/utils.py`, CallTypes
    **dict.fromkeys(
        (
            "acompletion",
            "atext_completion",
            "aembedding",
            "aresponses",
            "anthropic_messages",
            "aanthropic_messages",
        ),
        "call",
    ),
    **dict.fromkeys(
        (
            "invoke_agent",
            "create_agent",
            "execute_tool",
            "invoke_workflow",
            "agent_step",
            "retrieval",
            "rerank",
        ),
        "step",
    ),
}
# OpenInference, "Semantic conventions", `openinference.span.kind`
_OPENINFERENCE: Mapping[str, Role] = {
    **dict.fromkeys(("LLM", "EMBEDDING"), "call"),
    **dict.fromkeys(
        (
            "AGENT",
            "CHAIN",
            "TOOL",
            "RETRIEVER",
            "RERANKER",
            "GUARDRAIL",
            "EVALUATOR",
            "PROMPT",
            "DECISION",
        ),
        "step",
    ),
}
# Langfuse, "OpenTelemetry", "Property mapping": `langfuse.observation.type`
_LANGFUSE: Mapping[str, Role] = {
    **dict.fromkeys(("generation", "embedding"), "call"),
    **dict.fromkeys(("agent", "tool", "chain", "retriever", "evaluator", "guardrail"), "step"),
}
# OpenLLMetry, package opentelemetry-semantic-conventions-ai: `llm.request.type`,
# `traceloop.span.kind`
_REQUESTS: Mapping[str, Role] = dict.fromkeys(("chat", "completion", "embedding"), "call")
_TRACELOOP: Mapping[str, Role] = dict.fromkeys(("workflow", "task", "agent", "tool"), "step")

_VERCEL = (".doGenerate", ".doStream", ".doEmbed")
"""
The last parts of the Vercel AI SDK's call spans, such as ``ai.streamText.doStream``. The spans
around them repeat or add up their tokens.
"""
_USED = ("gen_ai.usage.", "llm.token_count.", "llm.usage.")


def role_of(span: Span) -> Role:
    """Return the role of *span*."""
    role = _role(span)
    return (
        "ours"
        if role == "call" and (MARK in span.attributes or METERED in span.attributes)
        else role
    )


def _role(span: Span) -> Role:
    attributes = span.attributes
    if _counts_only(span):
        return "other"
    operation = attributes.get("ai.operationId")
    if isinstance(operation, str) and operation.startswith("ai."):
        return "call" if operation.endswith(_VERCEL) else "step"
    roles = {
        _role_by(attributes, "openinference.span.kind", _OPENINFERENCE, upper=True),
        _role_by(attributes, "gen_ai.operation.name", _OPERATIONS),
        _role_by(attributes, "langfuse.observation.type", _LANGFUSE),
        _role_by(attributes, "llm.request.type", _REQUESTS),
        _role_by(attributes, "traceloop.span.kind", _TRACELOOP),
    }
    if "step" in roles:
        return "step"
    if "call" in roles:
        return "call"
    if "gen_ai.operation.name" in attributes:
        return "other"
    if "agent_name" in attributes or (
        "gen_ai.agent.name" in attributes and "gen_ai.request.model" not in attributes
    ):
        # pydantic-ai before it named the operation: `agent run`, with the sum of its calls
        return "step"
    return "call" if _is_unnamed_call(attributes) else "other"


def _role_by(
    attributes: Mapping[str, Any], name: str, roles: Mapping[str, Role], *, upper: bool = False
) -> Role | None:
    value = attributes.get(name)
    if not isinstance(value, str):
        return None
    return roles.get(value.upper() if upper else value.lower())


def _is_unnamed_call(attributes: Mapping[str, Any]) -> bool:
    """
    Return whether a span without an operation has a model and tokens. The conventions had no
    operation before 1.27.
    """
    if "gen_ai.request.model" not in attributes and "gen_ai.response.model" not in attributes:
        return False
    return any(name.startswith(_USED) for name in attributes)


def _counts_only(span: Span) -> bool:
    """Return whether a span only counts tokens, which is free. OpenInference labels it LLM."""
    return span.name.lower().replace("_", "").endswith("counttokens")
