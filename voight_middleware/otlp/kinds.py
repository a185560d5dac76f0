"""
What a span stands for: one billable call, a step around or beside calls, or neither.

Only what a library says of its own span is decided here. That two spans tell of one call, ``recent`` finds out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from voight_middleware.otlp.spans import Span

Role = Literal["call", "step", "other", "ours"]
"""
``call``: one billable call. ``step``: an agent, a tool, a chain, and whatever else has calls inside that are not itself; the tokens
that it may report are those of its calls. ``ours``: a call that the gate has metered. ``other``: anything else.
"""

MARK = "voight.call_id"
"""The attribute by which a span says that the gate has metered its call: our own spans, and those that we have enriched."""
METERED = "voight.metered"
"""The same of a span that another library has made around such a call, or of it: ``CostSpanProcessor`` has seen both."""

# OpenTelemetry, "Semantic conventions for generative AI spans", `gen_ai.operation.name`; behind them what libraries write instead.
_OPERATIONS: Mapping[str, Role] = {
    **dict.fromkeys(("chat", "text_completion", "generate_content", "embeddings"), "call"),
    **dict.fromkeys(("completion", "text_generation", "embedding", "responses", "message", "messages", "generate_object"), "call"),
    # litellm, package litellm, `types/utils.py`, CallTypes
    **dict.fromkeys(("acompletion", "atext_completion", "aembedding", "aresponses", "anthropic_messages", "aanthropic_messages"), "call"),
    **dict.fromkeys(("invoke_agent", "create_agent", "execute_tool", "invoke_workflow", "agent_step", "retrieval", "rerank"), "step"),
}
# OpenInference, "Semantic conventions", `openinference.span.kind`
_OPENINFERENCE: Mapping[str, Role] = {
    **dict.fromkeys(("LLM", "EMBEDDING"), "call"),
    **dict.fromkeys(("AGENT", "CHAIN", "TOOL", "RETRIEVER", "RERANKER", "GUARDRAIL", "EVALUATOR", "PROMPT", "DECISION"), "step"),
}
# Langfuse, "OpenTelemetry", "Property mapping": `langfuse.observation.type`
_LANGFUSE: Mapping[str, Role] = {
    **dict.fromkeys(("generation", "embedding"), "call"),
    **dict.fromkeys(("agent", "tool", "chain", "retriever", "evaluator", "guardrail"), "step"),
}
# OpenLLMetry, package opentelemetry-semantic-conventions-ai: `llm.request.type`, `traceloop.span.kind`
_REQUESTS: Mapping[str, Role] = dict.fromkeys(("chat", "completion", "embedding"), "call")
_TRACELOOP: Mapping[str, Role] = dict.fromkeys(("workflow", "task", "agent", "tool"), "step")

_VERCEL = (".doGenerate", ".doStream", ".doEmbed")
"""How the leaves of the Vercel AI SDK end: ``ai.streamText.doStream``. What is around them repeats or adds up their tokens."""
_USED = ("gen_ai.usage.", "llm.token_count.", "llm.usage.")


def role_of(span: Span) -> Role:
    """What *span* stands for."""
    role = _role(span)
    return "ours" if role == "call" and (MARK in span.attributes or METERED in span.attributes) else role


def _role(span: Span) -> Role:
    attributes = span.attributes
    if _counts_only(span):
        return "other"
    operation = attributes.get("ai.operationId")
    if isinstance(operation, str) and operation.startswith("ai."):
        return "call" if operation.endswith(_VERCEL) else "step"
    said = {
        _said(attributes, "openinference.span.kind", _OPENINFERENCE, upper=True),
        _said(attributes, "gen_ai.operation.name", _OPERATIONS),
        _said(attributes, "langfuse.observation.type", _LANGFUSE),
        _said(attributes, "llm.request.type", _REQUESTS),
        _said(attributes, "traceloop.span.kind", _TRACELOOP),
    }
    if "step" in said:
        return "step"
    if "call" in said:
        return "call"
    if "gen_ai.operation.name" in attributes:
        return "other"
    if "agent_name" in attributes or ("gen_ai.agent.name" in attributes and "gen_ai.request.model" not in attributes):
        return "step"  # pydantic-ai before it named the operation: `agent run`, with the sum of its calls
    return "call" if _is_unnamed_call(attributes) else "other"


def _said(attributes: Mapping[str, Any], name: str, roles: Mapping[str, Role], *, upper: bool = False) -> Role | None:
    value = attributes.get(name)
    if not isinstance(value, str):
        return None
    return roles.get(value.upper() if upper else value.lower())


def _is_unnamed_call(attributes: Mapping[str, Any]) -> bool:
    """A span without an operation, as the conventions had none before 1.27: it has asked a model, and says how many tokens it took."""
    if "gen_ai.request.model" not in attributes and "gen_ai.response.model" not in attributes:
        return False
    return any(name.startswith(_USED) for name in attributes)


def _counts_only(span: Span) -> bool:
    """Counting tokens is free. OpenInference calls it LLM all the same."""
    return span.name.lower().replace("_", "").endswith("counttokens")
