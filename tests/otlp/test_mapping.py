"""One span becomes one call, by whatever convention it is written. The attributes are those that the libraries have sent."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voight_middleware.otlp.mapping import Reading, read
from voight_middleware.otlp.spans import Key, Span, wanted
from voight_middleware.providers.usage_formats import read_usage
from voight_middleware.records.usage import Usage, UsageError

KEY = Key("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")


def reading(attributes: dict[str, Any], **more: Any) -> Reading:
    """What a span with these attributes stands for."""
    kept = {name: value for name, value in attributes.items() if wanted(name)}
    return read(Span(key=KEY, started=1_760_000_000_000_000_000, ended=1_760_000_001_500_000_000, attributes=kept, **more))


def usage_of(found: Reading) -> Usage | None:
    """The usage that the ingester reads."""
    if found.call is None or found.call.raw_usage is None:
        return None
    (component,) = read_usage(found.call.endpoint, msgspec.json.decode(found.call.raw_usage))
    return component.usage


OPENAI = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-5-nano"}
VERCEL = {"ai.operationId": "ai.generateText.doGenerate", "ai.model.provider": "openai.chat", "ai.model.id": "gpt-5-nano"}
CLAUDE = {"ai.operationId": "ai.generateText.doGenerate", "ai.model.provider": "anthropic.messages", "ai.model.id": "claude-sonnet-4-5"}

USAGES = {
    "OpenTelemetry: the input includes cached tokens": (
        {**OPENAI, "gen_ai.usage.input_tokens": 117, "gen_ai.usage.output_tokens": 50, "gen_ai.usage.cache_read.input_tokens": 100}
        | {"gen_ai.usage.cache_creation.input_tokens": 7, "gen_ai.usage.reasoning.output_tokens": 30},
        Usage(input=10, cache_read=100, cache_write=7, output=50, reasoning=30),
    ),
    "the former names": (
        {
            "gen_ai.system": "openai",
            "gen_ai.request.model": "gpt-4o",
            "gen_ai.usage.prompt_tokens": 12,
            "gen_ai.usage.completion_tokens": 3,
        },
        Usage(input=12, output=3),
    ),
    "anthropic 2.x, with both lifetimes of the cache": (
        {**OPENAI, "gen_ai.usage.input_tokens": 117, "gen_ai.usage.output_tokens": 5, "gen_ai.usage.cache_write.input_tokens": 7}
        | {"gen_ai.usage.cache_read.input_tokens": 100, "anthropic.usage.cache_creation.ephemeral_5m_input_tokens": 3}
        | {"anthropic.usage.cache_creation.ephemeral_1h_input_tokens": 4},
        Usage(input=10, cache_read=100, cache_write_5m=3, cache_write_1h=4, output=5),
    ),
    "anthropic 2.x, with compactions billed beside it": (
        {**OPENAI, "gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 5, "anthropic.usage.compaction.input_tokens": 1000}
        | {"anthropic.usage.compaction.output_tokens": 200},
        Usage(input=1010, output=205),
    ),
    "OpenLLMetry 0.62": (
        {**OPENAI, "gen_ai.usage.total_tokens": 160, "gen_ai.usage.output_tokens": 50, "gen_ai.usage.input_tokens": 110}
        | {"gen_ai.usage.cache_read.input_tokens": 100, "gen_ai.usage.reasoning_tokens": 30},
        Usage(input=10, cache_read=100, output=50, reasoning=30),
    ),
    "pydantic-ai": (
        {**OPENAI, "gen_ai.usage.input_tokens": 110, "gen_ai.usage.output_tokens": 50, "gen_ai.usage.details.cache_read_tokens": 100}
        | {"gen_ai.usage.details.reasoning_tokens": 30},
        Usage(input=10, cache_read=100, output=50, reasoning=30),
    ),
    "a library that leaves cached tokens out of the input": (
        {**OPENAI, "gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 5, "gen_ai.usage.cache_read.input_tokens": 100},
        Usage(input=10, cache_read=100, output=5),
    ),
    "OpenInference": (
        {"openinference.span.kind": "LLM", "llm.system": "openai", "llm.model_name": "gpt-5-nano", "llm.token_count.prompt": 110}
        | {
            "llm.token_count.completion": 50,
            "llm.token_count.prompt_details.cache_read": 100,
            "llm.token_count.completion_details.reasoning": 30,
        },
        Usage(input=10, cache_read=100, output=50, reasoning=30),
    ),
    "OpenInference, an embedding": (
        {"openinference.span.kind": "EMBEDDING", "embedding.model_name": "text-embedding-3-small", "llm.token_count.prompt": 8},
        Usage(input=8),
    ),
    "Vercel AI SDK 6": (
        {**VERCEL, "ai.usage.inputTokens": 110, "ai.usage.inputTokenDetails.noCacheTokens": 10, "ai.usage.outputTokens": 50}
        | {
            "ai.usage.inputTokenDetails.cacheReadTokens": 100,
            "ai.usage.outputTokenDetails.reasoningTokens": 30,
            "ai.usage.cachedInputTokens": 100,
        },
        Usage(input=10, cache_read=100, output=50, reasoning=30),
    ),
    "Vercel AI SDK 5, OpenAI": (
        {
            **VERCEL,
            "ai.usage.inputTokens": 110,
            "ai.usage.outputTokens": 50,
            "ai.usage.cachedInputTokens": 100,
            "ai.usage.reasoningTokens": 30,
        },
        Usage(input=10, cache_read=100, output=50, reasoning=30),
    ),
    "Vercel AI SDK 5, Anthropic: the input excludes the cache": (
        {**CLAUDE, "ai.usage.inputTokens": 200, "ai.usage.outputTokens": 50, "ai.usage.cachedInputTokens": 100}
        | {"ai.response.providerMetadata": '{"anthropic":{"cacheCreationInputTokens":7}}'},
        Usage(input=200, cache_read=100, cache_write=7, output=50),
    ),
    "Vercel AI SDK, Anthropic's own usage passed on": (
        {**CLAUDE, "ai.usage.promptTokens": 117, "ai.usage.completionTokens": 50}
        | {"ai.response.providerMetadata": '{"anthropic":{"usage":{"input_tokens":10,"output_tokens":50,"cache_read_input_tokens":107}}}'},
        Usage(input=10, cache_read=107, output=50),
    ),
    "Vercel AI SDK 5, Google: the output is without what was thought": (
        {**VERCEL, "ai.model.provider": "google.generative-ai", "ai.usage.inputTokens": 110, "ai.usage.outputTokens": 20}
        | {"ai.usage.reasoningTokens": 30, "ai.usage.cachedInputTokens": 100, "ai.usage.totalTokens": 160},
        Usage(input=10, cache_read=100, output=50, reasoning=30),
    ),
    "Vercel AI SDK 5, Google's own usage passed on": (
        {**VERCEL, "ai.model.provider": "google.vertex.chat", "ai.usage.inputTokens": 110, "ai.usage.outputTokens": 20}
        | {
            "ai.response.providerMetadata": '{"google":{"usageMetadata":{"promptTokenCount":110,"cachedContentTokenCount":100,'
            '"candidatesTokenCount":20,"thoughtsTokenCount":30,"toolUsePromptTokenCount":5,"totalTokenCount":165}}}'
        },
        Usage(input=15, cache_read=100, output=50, reasoning=30),
    ),
    "Vercel AI SDK 4, OpenAI: cached tokens are in the metadata alone": (
        {**VERCEL, "ai.usage.promptTokens": 110, "ai.usage.completionTokens": 50}
        | {"ai.response.providerMetadata": '{"openai":{"reasoningTokens":30,"cachedPromptTokens":100}}'},
        Usage(input=10, cache_read=100, output=50),
    ),
    "OpenLLMetry, of xAI: the total says that reasoning is beside the output": (
        {**OPENAI, "gen_ai.usage.input_tokens": 110, "gen_ai.usage.output_tokens": 20, "gen_ai.usage.reasoning_tokens": 30}
        | {"gen_ai.usage.total_tokens": 160},
        Usage(input=110, output=50, reasoning=30),
    ),
    "OpenInference, of xAI: the total says that reasoning is beside the output": (
        {"openinference.span.kind": "LLM", "llm.model_name": "grok-4", "llm.token_count.prompt": 110, "llm.token_count.completion": 20}
        | {"llm.token_count.completion_details.reasoning": 30, "llm.token_count.total": 160},
        Usage(input=110, output=50, reasoning=30),
    ),
    "litellm, asynchronous": (
        {"gen_ai.operation.name": "acompletion", "gen_ai.request.model": "gpt-5-nano", "gen_ai.usage.input_tokens": 110}
        | {"gen_ai.usage.output_tokens": 50, "gen_ai.usage.total_tokens": 160}
        | {"metadata.usage_object": "{'prompt_tokens': 110, 'prompt_tokens_details': {'cached_tokens': 100, 'text_tokens': None}}"},
        Usage(input=10, cache_read=100, output=50),
    ),
    "Vercel AI SDK, an embedding": (
        {"ai.operationId": "ai.embed.doEmbed", "ai.model.provider": "openai.embedding", "ai.model.id": "m", "ai.usage.tokens": 8.0},
        Usage(input=8),
    ),
    "Vercel AI SDK, a stream without usage: NaN": ({**VERCEL, "ai.usage.promptTokens": float("nan")}, None),
    "Langfuse": (
        {"langfuse.observation.type": "generation", "langfuse.observation.model.name": "gpt-5-nano"}
        | {"langfuse.observation.usage_details": '{"input":10,"output":5,"cache_read_input_tokens":3}'},
        Usage(input=10, cache_read=3, output=5),
    ),
    "no counts": (OPENAI, None),
}


@pytest.mark.parametrize(("attributes", "usage"), USAGES.values(), ids=USAGES)
def test_counts_are_disjoint_whatever_the_convention(attributes: dict[str, Any], usage: Usage | None) -> None:
    """Cached tokens are counted once, and reasoning is a part of the output."""
    found = reading(attributes)

    assert found.role == "call"
    assert usage_of(found) == usage


@pytest.mark.parametrize("count", [-5, 2**60, 1.5, float("inf"), "many", True])
def test_what_is_no_count_leaves_the_call_without_a_price(count: Any) -> None:
    """A number that cannot be one is refused by name when it is priced, and is never 0."""
    found = reading({**OPENAI, "gen_ai.usage.input_tokens": count, "gen_ai.usage.output_tokens": 5})

    with pytest.raises(UsageError, match="input is"):
        usage_of(found)


@pytest.mark.parametrize(
    "attributes",
    [
        {"gen_ai.operation.name": "invoke_agent", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 5},
        {"gen_ai.operation.name": "execute_tool"},
        {"openinference.span.kind": "CHAIN", "llm.token_count.prompt": 5},
        {"openinference.span.kind": "AGENT", "gen_ai.operation.name": "chat"},
        {"ai.operationId": "ai.generateText", "ai.usage.inputTokens": 5, "gen_ai.request.model": "m"},
        {"ai.operationId": "ai.streamText", "ai.usage.inputTokens": 5},
        {"ai.operationId": "ai.toolCall"},
        {"ai.operationId": "ai.embed", "ai.usage.tokens": 5},
        {"traceloop.span.kind": "workflow"},
        {"langfuse.observation.type": "agent"},
        {"agent_name": "support", "gen_ai.usage.input_tokens": 5, "gen_ai.request.model": "m"},
    ],
    ids=lambda attributes: next(iter(attributes.values())),
)
def test_steps_around_calls_are_no_calls(attributes: dict[str, Any]) -> None:
    """Their tokens are those of the calls inside."""
    assert reading(attributes).role == "step"


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"http.request.method": "POST", "server.address": "api.openai.com"},
        {"gen_ai.operation.name": "something_new", "gen_ai.usage.input_tokens": 5, "gen_ai.request.model": "m"},
        {"user.id": "u_1"},
    ],
)
def test_other_spans_are_no_calls(attributes: dict[str, Any]) -> None:
    """Requests, queries, and operations that nobody here knows."""
    assert reading(attributes).role == "other"


@pytest.mark.parametrize("name", ["anthropic.messages.count_tokens", "messages.count_tokens", "CountTokens"])
def test_counting_tokens_is_no_call(name: str) -> None:
    """It costs nothing, though OpenInference calls it LLM."""
    assert reading({"openinference.span.kind": "LLM", "llm.model_name": "claude"}, name=name).role == "other"


def test_a_call_that_the_gate_has_metered_says_so() -> None:
    """Our own spans, and those that were enriched, carry the id of their call."""
    assert reading({**OPENAI, "voight.call_id": "019a"}).role == "ours"
    assert reading({**OPENAI, "voight.metered": True}).role == "ours"
    assert reading({"user.id": "u", "voight.call_id": "019a"}).role == "other"


TAGS = {
    "OpenTelemetry": ({"user.id": "u_1", "session.id": "s_1"}, {"user_id": "u_1", "session_id": "s_1"}),
    "Vercel": (
        {"ai.telemetry.metadata.userId": "u_1", "ai.telemetry.metadata.plan": "pro", "ai.telemetry.metadata.tenantId": "t_1"}
        | {"ai.telemetry.metadata.feature": "chat", "ai.telemetry.functionId": "summary"},
        {"user_id": "u_1", "plan": "pro", "tenant_id": "t_1", "extra": {"feature": "chat", "function": "summary"}},
    ),
    "Vercel 7": ({"ai.settings.context.userId": "u_1"}, {"user_id": "u_1"}),
    "Langfuse": (
        {"langfuse.user.id": "u_1", "langfuse.session.id": "s_1", "langfuse.trace.metadata.plan": "pro", "langfuse.release": "1.2"},
        {"user_id": "u_1", "session_id": "s_1", "plan": "pro", "release": "1.2"},
    ),
    "Langfuse's SDK, whose texts are JSON": (
        {"langfuse.trace.metadata.plan": '"pro"', "langfuse.observation.metadata.tenant_id": '"t_1"', "user.id": "u_1"}
        | {"langfuse.trace.metadata.feature": '"'},
        {"user_id": "u_1", "plan": "pro", "tenant_id": "t_1", "extra": {"feature": '"'}},
    ),
    "OpenInference": (
        {"user.id": "u_1", "metadata": '{"plan":"pro","tenant_id":"t_1","beta":true,"nested":{"a":1}}'},
        {"user_id": "u_1", "plan": "pro", "tenant_id": "t_1", "extra": {"beta": "true"}},
    ),
    "OpenLLMetry": ({"traceloop.association.properties.user_id": "u_1"}, {"user_id": "u_1"}),
    "our own, which win": (
        {"user.id": "x", "voight.user_id": "u_1", "voight.plan": "pro", "voight.route": "POST /chat", "voight.tag.feature": "chat"},
        {"user_id": "u_1", "plan": "pro", "route": "POST /chat", "extra": {"feature": "chat"}},
    ),
}


@pytest.mark.parametrize(("attributes", "tags"), TAGS.values(), ids=TAGS)
def test_the_owner_is_found_by_the_names_of_each_tool(attributes: dict[str, Any], tags: dict[str, Any]) -> None:
    """User, plan and tenant are tags; whatever else metadata says is an extra key."""
    found = reading({**OPENAI, **attributes})

    assert found.owner is not None
    assert msgspec.to_builtins(found.owner.tags) == tags
    assert found.owner.attribution == "tag"


def test_the_user_that_a_request_named_is_the_owner_of_last_resort() -> None:
    """OpenLLMetry keeps the request's `user`."""
    found = reading({**OPENAI, "gen_ai.user": "u_9"})

    assert found.owner is not None
    assert (found.owner.tags.user_id, found.owner.attribution) == ("u_9", "request")


def test_a_service_says_its_name_and_release() -> None:
    """Of the resource."""
    found = reading(OPENAI, resource={"service.name": "billing", "service.version": "2.1"})

    assert found.owner is not None
    assert msgspec.to_builtins(found.owner.tags) == {"release": "2.1", "extra": {"service": "billing"}}


@pytest.mark.parametrize(
    ("attributes", "provider"),
    [
        ({"gen_ai.system": "az.ai.openai"}, "azure"),
        ({"gen_ai.provider.name": "aws.bedrock"}, "bedrock"),
        ({"gen_ai.provider.name": "gcp.vertex_ai"}, "vertex"),
        ({"gen_ai.provider.name": "gcp.gemini"}, "google"),
        ({"gen_ai.provider.name": "x_ai"}, "xai"),
        ({"gen_ai.provider.name": "mistral_ai"}, "mistral"),
        ({"ai.model.provider": "groq.chat"}, "groq"),
        ({"gen_ai.provider.name": "openai", "server.address": "openrouter.ai"}, "openrouter"),
        ({"gen_ai.provider.name": "openai", "gen_ai.openai.api_base": "https://api.deepseek.com/v1/"}, "deepseek"),
        ({"gen_ai.provider.name": "openai", "server.address": "127.0.0.1"}, "openai"),
        ({}, "unknown"),
    ],
)
def test_the_provider_is_who_bills(attributes: dict[str, Any], provider: str) -> None:
    """Its names in each convention; the host of the API has the last word, where it is known."""
    call = reading({"gen_ai.operation.name": "chat", **attributes}).call

    assert call is not None
    assert call.provider == provider


@pytest.mark.parametrize("first", ["gen_ai.response.time_to_first_chunk", "gen_ai.client.operation.time_to_first_chunk"])
def test_times_outcome_and_ids_are_kept(first: str) -> None:
    """Durations in microseconds, the class of an error without its module, and the provider's id."""
    more = {"gen_ai.response.id": "chatcmpl-1", first: 0.25, "gen_ai.request.stream": True}
    call = reading({**OPENAI, **more, "error.type": "boom: the prompt was hello"}, failed=True, exception="openai.RateLimitError").call

    assert call is not None
    assert (call.duration, call.ttft, call.streamed, call.response_id) == (1_500_000, 250_000, True, "chatcmpl-1")
    assert (call.outcome, call.error) == ("error", "RateLimitError")


def test_an_error_that_is_a_sentence_is_not_kept() -> None:
    """Messages may quote the prompt."""
    call = reading({**OPENAI, "error.type": "boom: the prompt was hello"}, failed=True).call

    assert call is not None
    assert (call.outcome, call.error) == ("error", None)


def test_prompts_are_never_looked_at() -> None:
    """Whatever they are called."""
    for name in ("gen_ai.input.messages", "gen_ai.prompt.0.content", "llm.input_messages.0.message.content", "input.value", "ai.prompt"):
        assert not wanted(name)
    for name in ("ai.prompt.messages", "ai.response.text", "gen_ai.output.messages", "langfuse.observation.input", "ai.values"):
        assert not wanted(name)


NAMES = st.sampled_from(sorted({name for attributes, _ in USAGES.values() for name in attributes} | {"metadata", "user.id", "error.type"}))
VALUES = st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=50), st.sampled_from(["LLM", "chat", "{", '{"a":[[[]]]}']))


@pytest.mark.slow
@given(st.dictionaries(NAMES, VALUES), st.text(max_size=30), st.integers(0, 2**63), st.integers(0, 2**63))
def test_no_attributes_are_too_strange(attributes: dict[str, Any], name: str, started: int, ended: int) -> None:
    """Nothing raises, and the same span is always the same call."""
    one = Span(key=KEY, name=name, started=started, ended=ended, attributes=attributes, failed=True)
    first, second = read(one), read(one)

    assert msgspec.to_builtins(first) == msgspec.to_builtins(second)


COUNTS = st.integers(0, 10**9)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_the_buckets_add_up_to_the_total(plain: int, cached: int, written: int, output: int) -> None:
    """Whatever is cached, the input is what OpenTelemetry's total says."""
    total = plain + cached + written
    usage = usage_of(
        reading(
            {**OPENAI, "gen_ai.usage.input_tokens": total, "gen_ai.usage.cache_read.input_tokens": cached}
            | {"gen_ai.usage.cache_creation.input_tokens": written, "gen_ai.usage.output_tokens": output}
        )
    )

    assert usage is not None
    assert (usage.input_tokens, usage.cache_read, usage.cache_write, usage.output) == (total, cached, written, output)
