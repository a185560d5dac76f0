"""What a span of OTelSpans says, and when there is none: spans of real SDKs against the loopback provider."""

import json
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

import voight_middleware as voight
from voight_middleware.exporters.otel import spans as otel
from voight_middleware.exporters.otel.spans import OTelSpans
from voight_middleware.instrumentation import wrap as gate
from voight_middleware.testing.provider import LoopbackProvider

from .traced import HELLO, SONNET, Traced, attributes, lasted


def test_a_call_is_a_span_with_owner_usage_and_exact_cost(traced: Traced, listening: Any, openai_client: openai.OpenAI) -> None:
    """All three vocabularies say the same, and the cost is the ledger's, to the last digit."""
    listened = listening(traced.spans)
    with voight.tag(user_id="u_7", plan="pro", tenant_id="t_1", session_id="s_1", route="POST /chat", feature="summary"):
        answer = openai_client.chat.completions.create(**HELLO)

    span, call = traced.one("chat gpt-4o-mini"), listened.flush()[0]
    said = attributes(span)
    assert answer.usage is not None
    assert call.cost_usd is not None
    assert span.kind is SpanKind.CLIENT
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.provider.name"] == "openai"
    assert said["gen_ai.request.model"] == said["llm.request.model_name"] == "gpt-4o-mini"
    assert said["gen_ai.response.model"] == said["llm.model_name"] == answer.model
    assert said["gen_ai.response.id"] == answer.id
    assert said["gen_ai.usage.input_tokens"] == said["llm.token_count.prompt"] == answer.usage.prompt_tokens
    assert said["gen_ai.usage.output_tokens"] == said["llm.token_count.completion"] == answer.usage.completion_tokens
    assert said["llm.token_count.total"] == answer.usage.total_tokens
    assert said["openinference.span.kind"] == "LLM"
    assert (said["user.id"], said["session.id"], said["gen_ai.conversation.id"]) == ("u_7", "s_1", "s_1")
    assert (said["voight.plan"], said["voight.tenant_id"], said["voight.route"]) == ("pro", "t_1", "POST /chat")
    assert said["metadata"] == '{"feature":"summary","plan":"pro","tenant_id":"t_1","route":"POST /chat"}'
    assert said["voight.call_id"] == call.call_id
    assert isinstance(said["voight.cost_usd"], str)
    assert Decimal(said["voight.cost_usd"]) == call.cost_usd > 0
    assert said["voight.cost_status"] == "priced"
    assert said["voight.attribution"] == "tag"
    assert (span.start_time or 0) // 1000 == call.occurred_at
    assert lasted(span) == (call.duration or 0) * 1000


def test_cached_and_reasoning_tokens_are_parts_of_the_sums(traced: Traced, listening: Any, openai_client: openai.OpenAI) -> None:
    """As both conventions want it: input includes the cache, output the reasoning."""
    listening(traced.spans)
    usage = (
        '{"prompt_tokens":1000,"completion_tokens":200,"total_tokens":1200,'
        '"prompt_tokens_details":{"cached_tokens":400},"completion_tokens_details":{"reasoning_tokens":150}}'
    )
    openai_client.chat.completions.create(**HELLO, extra_headers={"x-loopback-usage": usage})

    said = attributes(traced.one("chat gpt-4o-mini"))
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.cache_read.input_tokens"]) == (1000, 400)
    assert (said["gen_ai.usage.output_tokens"], said["gen_ai.usage.reasoning.output_tokens"]) == (200, 150)
    assert said["llm.token_count.prompt_details.cache_read"] == 400
    assert said["llm.token_count.completion_details.reasoning"] == 150


def test_no_prompt_and_no_answer(traced: Traced, listening: Any, openai_client: openai.OpenAI) -> None:
    """Nothing of what was said is on a span, an event or a status."""
    listening(traced.spans)
    answer = openai_client.chat.completions.create(**HELLO)
    with pytest.raises(openai.APIStatusError):
        openai_client.chat.completions.create(**HELLO, extra_headers={"x-loopback-status": "400"})

    text = "".join(span.to_json() for span in traced.all())
    assert "secret" not in text
    assert (answer.choices[0].message.content or "?") not in text
    assert not any(span.events for span in traced.all())


def test_personal_data_is_a_pseudonym(traced: Traced, listening: Any, openai_client: openai.OpenAI) -> None:
    """The same one as in the ledger."""
    listened = listening(traced.spans)
    with voight.tag(user_id="alice@example.com"):
        openai_client.chat.completions.create(**HELLO)

    said = attributes(traced.one("chat gpt-4o-mini"))
    assert "alice" not in str(said)
    assert said["user.id"] == listened.flush()[0].tags.user_id


def test_what_langfuse_reads_is_set_on_request(listening: Any, openai_client: openai.OpenAI) -> None:
    """Metadata to filter by, disjoint token counts, and our cost in the place of its own."""
    traced = Traced()
    traced.spans = OTelSpans(traced.provider, langfuse=True)
    listening(traced.spans)
    usage = '{"prompt_tokens":1000,"completion_tokens":200,"total_tokens":1200,"prompt_tokens_details":{"cached_tokens":400}}'
    with voight.tag(plan="pro"):
        openai_client.chat.completions.create(**HELLO, extra_headers={"x-loopback-usage": usage})

    said = attributes(traced.one("chat gpt-4o-mini"))
    details = json.loads(said["langfuse.observation.usage_details"])
    assert (details["input"], details["input_cached_tokens"], details["output"], details["total"]) == (600, 400, 200, 1200)
    assert said["langfuse.observation.metadata.plan"] == "pro"
    assert said["langfuse.observation.cost_details"] == f'{{"total":{said["voight.cost_usd"]}}}'


def test_an_error_is_one(traced: Traced, listening: Any, openai_client: openai.OpenAI) -> None:
    """The class of the exception, without its message."""
    listening(traced.spans)
    with pytest.raises(openai.RateLimitError):
        openai_client.chat.completions.create(**HELLO, extra_headers={"x-loopback-status": "429"})

    span = traced.one("chat gpt-4o-mini")
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "RateLimitError"
    assert attributes(span)["voight.outcome"] == "error"
    assert attributes(span)["voight.cost_usd"] == "0", "a refusal is not billed"


def test_record_and_metered_call_are_spans_too(traced: Traced, listening: Any) -> None:
    """A block is one while it runs; what is told afterwards gets its time from what is told."""
    listening(traced.spans)
    with traced.tracer.start_as_current_span("request") as request:
        with voight.metered_call(provider="mistral", model="large", endpoint="chat") as call:
            inside = trace.get_current_span()
            call.report({"prompt_tokens": 10, "completion_tokens": 5})
        assert trace.get_current_span() is request
        voight.record(provider="openai", model="gpt-4o-mini", usage={"prompt_tokens": 10, "completion_tokens": 5}, duration=2.5)

    block, told = traced.one("chat large"), traced.one("chat gpt-4o-mini")
    assert block.context == inside.get_span_context()
    assert attributes(block)["gen_ai.provider.name"] == "mistral_ai"
    for span in (block, told):
        assert span.parent == request.get_span_context()
    assert lasted(told) == 2_500_000_000


def test_half_a_character_and_a_book_in_a_models_name(traced: Traced, listening: Any) -> None:
    """What a client asks for may be anything: it neither fails the export of other spans, nor is it a megabyte."""
    listening(traced.spans)
    for model in ("gpt\ud800", "x" * 1_000_000):
        with voight.metered_call(provider="openai", model=model) as call:
            call.report(input=1, output=1)

    for span in traced.all():
        assert len(span.to_json().encode()) < 10_000
        assert span.name.encode()
        assert all(value.encode() for value in attributes(span).values() if isinstance(value, str))


def test_sampling_is_honoured(listening: Any, openai_client: openai.OpenAI, loopback: LoopbackProvider) -> None:
    """What the sampler does not take is not exported; neither is what the SDK would have made; the ledger has all."""
    traced = Traced(sampler=ALWAYS_OFF)
    listened = listening(traced.spans)
    openai_client.chat.completions.create(**HELLO)
    list(openai_client.chat.completions.create(**HELLO, stream=True))
    options: Any = {"tracer_provider": traced.provider}
    gate.wrap(anthropic.Anthropic(base_url=loopback.url, api_key="k", open_telemetry=options)).messages.create(**SONNET)

    assert traced.all() == []
    assert len(listened.flush()) == 3


@pytest.mark.slow
def test_half_of_the_traces(listening: Any, openai_client: openai.OpenAI) -> None:
    """A call is sampled exactly where its trace is."""
    traced = Traced(sampler=ParentBased(TraceIdRatioBased(0.5)))
    listened = listening(traced.spans)
    for _ in range(40):
        with traced.tracer.start_as_current_span("request"):
            openai_client.chat.completions.create(**HELLO)

    names = [span.name for span in traced.all()]
    assert names.count("request") == names.count("chat gpt-4o-mini")
    assert 0 < names.count("request") < 40
    assert len(listened.flush()) == 40


def test_suppressed_instrumentation_makes_no_span(traced: Traced, listening: Any, openai_client: openai.OpenAI) -> None:
    """As OpenTelemetry's own instrumentations do."""
    listened = listening(traced.spans)
    outer = contexts.get_current()
    contexts.attach(contexts.set_value(otel._SUPPRESSED, True))
    try:
        openai_client.chat.completions.create(**HELLO)
    finally:
        contexts.attach(outer)

    assert traced.all() == []
    assert len(listened.flush()) == 1


def test_without_a_tracer_provider_nothing_is_made(listening: Any, openai_client: openai.OpenAI) -> None:
    """No span, no thread, and the current span stays what it was."""
    spans = OTelSpans(trace.NoOpTracerProvider())
    listened = listening(spans)
    openai_client.chat.completions.create(**HELLO)
    listened.flush()

    assert spans._thread is None
    assert spans._queue.empty()


def test_a_provider_that_is_not_installed_is_looked_for_once(
    listening: Any, openai_client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenTelemetry searches all packages for what OTEL_PYTHON_TRACER_PROVIDER names, and logs a page, each time that it is asked."""
    asked: list[int] = []

    def not_installed() -> trace.TracerProvider:
        asked.append(1)
        raise RuntimeError

    monkeypatch.setattr(trace, "get_tracer_provider", not_installed)
    listened = listening(OTelSpans())
    for _ in range(3):
        openai_client.chat.completions.create(**HELLO)

    assert len(listened.flush()) == 3
    assert len(asked) == 1
