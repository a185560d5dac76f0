"""Tests of voight_middleware/export/otel.py: spans of real SDKs against the loopback provider."""

import asyncio
import contextlib
import contextvars
import gc
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Generator, Sequence
from contextvars import ContextVar
from decimal import Decimal
from typing import Any

import httpx2
import openai
import pytest
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

import voight_middleware as voight
from voight_middleware.export import otel
from voight_middleware.export.otel import OTelSpans
from voight_middleware.providers import gate
from voight_middleware.testing.provider import LoopbackProvider

HELLO: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "a secret of the user's"}]}


class Traced:
    """A tracer provider, and what it was given."""

    def __init__(self, **more: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **more)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")
        self.spans = OTelSpans(self.provider)

    def all(self) -> list[ReadableSpan]:
        """The spans that have ended, after the costs of all calls are there."""
        assert self.spans.flush(30)
        return list(self.exporter.get_finished_spans())

    def one(self, name: str) -> ReadableSpan:
        """The only span of this name."""
        found = [span for span in self.all() if span.name == name]
        assert len(found) == 1, [span.name for span in self.all()]
        return found[0]


@pytest.fixture
def traced() -> Traced:
    """A tracer provider that keeps its spans, and OTelSpans for it."""
    return Traced()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """The attributes of a span."""
    return dict(span.attributes or {})


def lasted(span: ReadableSpan) -> int:
    """Nanoseconds."""
    assert span.end_time is not None
    assert span.start_time is not None
    return span.end_time - span.start_time


# -- what a span says ----------------------------------------------------------------------------------------------------------


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


# -- where a span is -----------------------------------------------------------------------------------------------------------


def test_spans_of_the_http_client_are_children(traced: Traced, listening: Any, loopback: LoopbackProvider) -> None:
    """And the call is a child of the request's span, which is the current one again afterwards."""
    listening(traced.spans)

    class Instrumented(httpx2.HTTPTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            with traced.tracer.start_as_current_span("HTTP POST"):
                return super().handle_request(request)

    with httpx2.Client(transport=Instrumented()) as http, traced.tracer.start_as_current_span("request") as request:
        client = gate.wrap(openai.OpenAI(base_url=loopback.openai_base_url, api_key="sk-test", http_client=http))
        client.chat.completions.create(**HELLO)
        assert trace.get_current_span() is request

    call = traced.one("chat gpt-4o-mini")
    assert call.parent == request.get_span_context()
    assert traced.one("HTTP POST").parent == call.context


@pytest.mark.parametrize("way", ["read", "closed", "dropped"])
def test_a_stream_ends_its_span_with_its_last_byte(way: str, traced: Traced, listening: Any, openai_client: openai.OpenAI) -> None:
    """Read to its end, closed or dropped; while it is read, the caller's own span is the current one."""
    listening(traced.spans)
    with traced.tracer.start_as_current_span("request") as request:
        stream = openai_client.chat.completions.create(**HELLO, stream=True, extra_headers={"x-loopback-chunk-delay-ms": "100"})
        next(iter(stream))
        assert trace.get_current_span() is request
        if way == "read":
            list(stream)
        elif way == "closed":
            stream.close()
        else:
            del stream
            gc.collect()
    said = attributes(span := traced.one("chat gpt-4o-mini"))
    assert said["gen_ai.request.stream"] is True
    assert span.parent == request.get_span_context()
    assert 0 < said["gen_ai.response.time_to_first_chunk"] < 5
    assert said["voight.outcome"] == ("ok" if way == "read" else "aborted")
    if way != "dropped":  # the SDK reads a dropped one to its end
        assert (lasted(span) > 900_000_000) is (way == "read")


async def test_tasks_do_not_mix(traced: Traced, listening: Any, loopback: LoopbackProvider) -> None:
    """Fifty asynchronous calls at a time: each a child of its own task's span, with its own user."""
    listening(traced.spans)
    async with openai.AsyncOpenAI(base_url=loopback.openai_base_url, api_key="sk-test") as client:
        gate.wrap(client)

        async def one(number: int) -> None:
            with traced.tracer.start_as_current_span(f"task {number}") as own, voight.tag(user_id=f"u_{number}"):
                if number % 2:
                    await client.chat.completions.create(**HELLO)
                else:
                    async for _ in await client.chat.completions.create(**HELLO, stream=True):
                        assert trace.get_current_span() is own
                assert trace.get_current_span() is own

        await asyncio.gather(*map(one, range(50)))

    spans = traced.all()
    by_id = {span.context.span_id: span for span in spans if span.context is not None}
    calls = [span for span in spans if span.name == "chat gpt-4o-mini"]
    assert len(calls) == 50
    for call in calls:
        assert call.parent is not None
        assert by_id[call.parent.span_id].name == f"task {attributes(call)['user.id'][2:]}"


async def test_a_cancelled_call_leaves_nothing_behind(traced: Traced, listening: Any, loopback: LoopbackProvider) -> None:
    """Its span ends as cancelled, and is no error."""
    listening(traced.spans)
    async with openai.AsyncOpenAI(base_url=loopback.openai_base_url, api_key="sk-test") as client:
        gate.wrap(client)
        task = asyncio.create_task(client.chat.completions.create(**HELLO, extra_headers={"x-loopback-delay-ms": "5000"}))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    span = await asyncio.to_thread(traced.one, "chat gpt-4o-mini")
    assert attributes(span)["voight.outcome"] == "cancelled"
    assert span.status.status_code is StatusCode.UNSET


def test_the_context_may_be_left_in_another_one(
    traced: Traced, listening: Any, openai_client: openai.OpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    """A generator whose block is open is closed in another copy of the context: no error, and nobody's current span changes."""
    listening(traced.spans)

    def steps() -> Generator[None, None, None]:
        with voight.metered_call(provider="openai", model="gpt-4o-mini") as call:
            call.report(input=1, output=1)
            yield

    generator = steps()
    next(generator)
    other = threading.Thread(target=generator.close)
    other.start()
    other.join()
    contexts.attach(contexts.Context())

    assert attributes(traced.one("usage gpt-4o-mini"))["voight.outcome"] == "cancelled"
    assert "detach" not in caplog.text


def test_two_generators_that_end_in_the_order_in_which_they_began(traced: Traced, listening: Any) -> None:
    """As in ``zip()`` over two of them: afterwards no span that has ended is the current one."""
    listening(traced.spans)

    def steps() -> Generator[None, None, None]:
        with voight.metered_call(provider="openai", model="gpt-4o-mini") as call:
            call.report(input=1, output=1)
            yield

    with traced.tracer.start_as_current_span("request") as request:
        first, second = steps(), steps()
        next(first)
        next(second)
        first.close()
        second.close()
        assert trace.get_current_span() is request


class Copying:
    """A runtime context as ddtrace's: it keeps the span alone, shows it in a new context each time, and cannot let go of it."""

    def __init__(self) -> None:
        self.span: ContextVar[trace.Span] = ContextVar("span", default=trace.INVALID_SPAN)

    def attach(self, context: contexts.Context) -> object:
        """Take the span of *context*."""
        if (span := trace.get_current_span(context)) is not trace.INVALID_SPAN:
            self.span.set(span)
        return object()

    def get_current(self) -> contexts.Context:
        """The span, in a context that nobody has seen."""
        span = self.span.get()
        return contexts.Context() if span is trace.INVALID_SPAN else trace.set_span_in_context(span, contexts.Context())

    def detach(self, token: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("inside", [True, False])
def test_a_tracer_that_copies_contexts(
    inside: bool, traced: Traced, listening: Any, openai_client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's span is the current one again, or none is; calls one after the other are not each other's children."""
    monkeypatch.setattr(contexts, "_RUNTIME_CONTEXT", Copying())
    listening(traced.spans)
    request = traced.tracer.start_span("request")
    if inside:
        contexts.attach(trace.set_span_in_context(request))
    for _ in range(2):
        openai_client.chat.completions.create(**HELLO)
        assert trace.get_current_span() is (request if inside else trace.INVALID_SPAN)

    spans = traced.all()
    assert [span.parent for span in spans] == [request.get_span_context() if inside else None] * 2


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


# -- the anthropic SDK's own spans ---------------------------------------------------------------------------------------------


@pytest.fixture
def native(traced: Traced, loopback: LoopbackProvider) -> Any:
    """A metered client of the anthropic SDK that makes spans of its own."""
    import anthropic

    if not hasattr(anthropic.Anthropic, "_tracer"):
        pytest.skip("this anthropic makes no spans")
    options: Any = {"tracer_provider": traced.provider}
    return gate.wrap(anthropic.Anthropic(base_url=loopback.url, api_key="sk-test", max_retries=0, open_telemetry=options))


SONNET: Any = {"model": "claude-haiku-4-5", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize("way", ["whole", "streamed", "helper", "closed", "error"])
def test_the_anthropic_sdks_own_span_is_enriched(way: str, traced: Traced, listening: Any, native: Any) -> None:
    """One span per call, the SDK's: with owner and exact cost, ended when the SDK ended it."""
    import anthropic

    listened = listening(traced.spans)
    before = time.time_ns()
    with voight.tag(user_id="u_7", plan="pro"):
        if way == "whole":
            native.messages.create(**SONNET)
        elif way == "helper":
            with native.messages.stream(**SONNET) as stream:
                stream.get_final_message()
        elif way == "error":
            with pytest.raises(anthropic.APIStatusError):
                native.messages.create(**SONNET, extra_headers={"x-loopback-status": "500"})
        else:
            with native.messages.create(**SONNET, stream=True) as events:
                for _ in events:
                    if way == "closed":
                        break
    after = time.time_ns()
    time.sleep(0.05)

    (span,) = traced.all()
    (call,) = listened.flush()
    said = attributes(span)
    assert span.name == "anthropic.messages.create"
    assert (said["user.id"], said["voight.plan"], said["voight.call_id"]) == ("u_7", "pro", call.call_id)
    assert said["voight.outcome"] == call.outcome == {"error": "error", "closed": "aborted"}.get(way, "ok")
    assert before <= (span.end_time or 0) <= after
    if way == "error":
        assert span.status.status_code is StatusCode.ERROR
    else:
        assert Decimal(said["voight.cost_usd"]) == call.cost_usd
        assert said["llm.token_count.prompt"] == call.usage.input_tokens
    if way in ("whole", "streamed", "helper"):
        assert said["gen_ai.usage.input_tokens"] == call.usage.input_tokens, "the SDK's own attribute"


def test_where_the_sdk_makes_no_span_ours_is_there(traced: Traced, listening: Any, anthropic_client: Any) -> None:
    """The client's own option switches its spans off, or sends them elsewhere."""
    listening(traced.spans)
    anthropic_client.messages.create(**SONNET)

    assert attributes(traced.one("chat claude-haiku-4-5"))["gen_ai.provider.name"] == "anthropic"


# -- sampling, suppression, nothing to do --------------------------------------------------------------------------------------


def test_sampling_is_honoured(listening: Any, openai_client: openai.OpenAI, loopback: LoopbackProvider) -> None:
    """What the sampler does not take is not exported; neither is what the SDK would have made; the ledger has all."""
    import anthropic

    traced = Traced(sampler=ALWAYS_OFF)
    listened = listening(traced.spans)
    openai_client.chat.completions.create(**HELLO)
    list(openai_client.chat.completions.create(**HELLO, stream=True))
    options: Any = {"tracer_provider": traced.provider}
    gate.wrap(anthropic.Anthropic(base_url=loopback.url, api_key="k", open_telemetry=options)).messages.create(**SONNET)

    assert traced.all() == []
    assert len(listened.flush()) == 3


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


# -- when something is down ----------------------------------------------------------------------------------------------------


def test_a_span_whose_cost_does_not_come_ends_without(
    listening: Any, openai_client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another listener holds everything up: the span goes after its time, and says so."""
    monkeypatch.setattr(otel, "PRICE_SECONDS", 0.3)
    traced, release = Traced(), threading.Event()
    listened = listening(lambda call: release.wait(20), traced.spans)
    openai_client.chat.completions.create(**HELLO)
    deadline = time.monotonic() + 10
    while not traced.exporter.get_finished_spans() and time.monotonic() < deadline:
        time.sleep(0.05)
    release.set()

    (span,) = traced.exporter.get_finished_spans()
    assert attributes(span)["voight.cost_status"] == "pending"
    assert "voight.cost_usd" not in attributes(span)
    assert listened.meter.counters["spans_without_cost"] == 1
    assert listened.flush()[0].cost_usd is not None


def test_a_ledger_that_is_down_loses_no_span(tmp_path: Any, traced: Traced, listening: Any, openai_client: openai.OpenAI) -> None:
    """The background thread prices without it."""
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "ledger.db").mkdir()  # no database can be opened there
    listened = listening(traced.spans)
    openai_client.chat.completions.create(**HELLO)
    assert not listened.meter.flush(3)

    said = attributes(traced.one("chat gpt-4o-mini"))
    assert Decimal(said["voight.cost_usd"]) > 0
    assert listened.meter.counters["ledger_errors"] > 0


def test_the_end_of_the_process_waits_for_the_last_spans(tmp_path: Any, loopback: LoopbackProvider) -> None:
    """A script that ends right after its call: its span is exported, with its cost."""
    script = f"""
        import openai, voight_middleware as voight
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
        from voight_middleware.export.otel import OTelSpans
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
        trace.set_tracer_provider(provider)
        voight.configure(ledger={str(tmp_path / "ledger.db")!r}, listeners=[OTelSpans()])
        client = voight.wrap(openai.OpenAI(base_url={loopback.openai_base_url!r}, api_key="k"))
        client.chat.completions.create(model="gpt-4o-mini", messages=[{{"role": "user", "content": "hello"}}])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True)

    assert '"name": "chat gpt-4o-mini"' in done.stdout
    assert '"voight.cost_usd": "0.' in done.stdout
    assert done.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_worker_makes_spans_of_its_own(tmp_path: Any, loopback: LoopbackProvider) -> None:
    """The parent has made calls before the fork, as a preloading server does: each process exports its own spans, once."""
    script = f"""
        import os, sys, openai, voight_middleware as voight
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor, ConsoleSpanExporter
        from voight_middleware.export.otel import OTelSpans
        provider = TracerProvider()
        line = lambda span: f"{{os.getpid()}} {{span.name}} {{span.attributes['voight.cost_usd']}} {{span.attributes['user.id']}}\\n"
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=line)))
        trace.set_tracer_provider(provider)
        voight.configure(ledger={str(tmp_path / "ledger.db")!r}, listeners=[OTelSpans()])
        def call(user):
            with openai.OpenAI(base_url={loopback.openai_base_url!r}, api_key="k") as client, voight.tag(user_id=user):
                voight.wrap(client).chat.completions.create(model="gpt-4o-mini", messages=[{{"role": "user", "content": "hello"}}])
        call("parent")
        if os.fork() == 0:
            call("child")
            sys.exit()
        os.wait()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True)

    lines = [line.split() for line in done.stdout.splitlines()]
    assert sorted(line[-1] for line in lines) == ["child", "parent"], done.stdout + done.stderr
    assert len({line[0] for line in lines}) == 2


def test_importing_the_library_does_not_import_opentelemetry() -> None:
    """It is optional."""
    script = "import sys, voight_middleware; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_bundle_without_metadata_of_packages() -> None:
    """PyInstaller and a copied folder have none: there are spans and metrics all the same."""
    script = """
        import importlib.metadata
        def version(name): raise importlib.metadata.PackageNotFoundError(name)
        from opentelemetry.sdk.trace import TracerProvider
        importlib.metadata.version = version
        from voight_middleware.export.metrics import OTelMetrics
        from voight_middleware.export.otel import OTelSpans
        OTelMetrics()
        assert OTelSpans(TracerProvider())._find_tracer() is not None
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)


def test_without_opentelemetry_the_error_says_what_to_install() -> None:
    """One sentence, with the extra."""
    script = "import sys; sys.modules['opentelemetry'] = None\nimport voight_middleware.export.otel"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip().splitlines()[-1].endswith("pip install 'voight-middleware[otel]'")


class Stuck(SpanExporter):
    """An exporter whose receiver does not answer, until it is let go."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.exported: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Waits."""
        self.answers.wait(60)
        self.exported.extend(spans)
        return SpanExportResult.SUCCESS


@pytest.mark.parametrize("ends", [True, False])
def test_an_exporter_that_never_comes_back_fills_no_memory(ends: bool, listening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans of calls that are told of, and of those that are dropped: what is lost is let go."""
    monkeypatch.setattr(otel, "MOST_HELD", 50)
    exporter = Stuck()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = OTelSpans(provider)
    listened = listening(spans)

    def make_calls() -> None:
        for _ in range(500):
            with contextlib.suppress(KeyError), voight.metered_call(provider="openai", model="gpt-4o-mini") as call:
                call.report(input=1, output=1)
                if not ends:
                    monkeypatch.setattr(call, "_watched", None)  # as that of a stream of which nobody reads an event

    contextvars.copy_context().run(make_calls)  # which leaves its span in there
    listened.flush()

    assert spans._queue.qsize() <= 100
    exporter.answers.set()
    spans.close(1)
    assert len(listened.flush()) == 500
    assert len(exporter.exported) + listened.meter.counters["lost_spans"] == 500 or not ends


@pytest.mark.parametrize("processor", [BatchSpanProcessor, SimpleSpanProcessor])
def test_an_exporter_that_is_down_under_load(processor: Any, listening: Any, loopback: LoopbackProvider) -> None:
    """A thousand calls: none waits, all are in the ledger while it is still down, and afterwards the spans go out."""
    exporter = Stuck()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor(exporter))
    spans = OTelSpans(provider)
    listened = listening(spans)

    async def load() -> float:
        slowest, limit = 0.0, asyncio.Semaphore(20)
        async with openai.AsyncOpenAI(base_url=loopback.openai_base_url, api_key="k", max_retries=0) as client:
            gate.wrap(client)

            async def one() -> None:
                nonlocal slowest
                async with limit:
                    began = time.perf_counter()
                    await client.chat.completions.create(**HELLO)
                    slowest = max(slowest, time.perf_counter() - began)

            await asyncio.gather(*(one() for _ in range(1000)))
        return slowest

    slowest = asyncio.run(load())
    calls = listened.flush()
    down = len(exporter.exported)
    exporter.answers.set()
    deadline = time.monotonic() + 30
    while len(exporter.exported) < 1000 and time.monotonic() < deadline:
        spans.flush(1)
        provider.force_flush()
    provider.shutdown()

    assert slowest < 10
    assert len({call.call_id for call in calls}) == 1000
    assert down == 0
    assert len({attributes(span)["voight.call_id"] for span in exporter.exported}) == 1000
    assert listened.meter.counters["lost_spans"] == 0


def test_a_span_says_why_the_model_stopped(
    traced: Traced, listening: Any, openai_client: openai.OpenAI, anthropic_client: Any, native: Any
) -> None:
    """The provider's word in both vocabularies, on the anthropic SDK's own span too; ``error`` where none came."""
    listening(traced.spans)
    responses: Any = {"model": "gpt-4o", "input": "Where?"}
    openai_client.chat.completions.create(**HELLO)
    openai_client.responses.create(**responses, max_output_tokens=3)
    list(openai_client.responses.create(**responses, stream=True))
    anthropic_client.messages.create(**{**SONNET, "max_tokens": 3})
    native.messages.create(**{**SONNET, "max_tokens": 4000})
    openai_client.embeddings.create(model="text-embedding-3-small", input="Where?")
    with openai_client.chat.completions.create(**HELLO, stream=True) as stream:
        next(stream)

    said = [attributes(span) for span in sorted(traced.all(), key=lambda span: span.start_time or 0)]
    assert [(one.get("gen_ai.response.finish_reasons"), one.get("llm.finish_reason")) for one in said] == [
        (("stop",), "stop"),
        (("max_output_tokens",), "max_output_tokens"),
        (("stop",), "stop"),
        (("max_tokens",), "max_tokens"),
        (("end_turn",), "end_turn"),
        (None, None),
        (("error",), None),
    ]
    assert [one["anthropic.message.stop_reason"] for one in said if "anthropic.message.stop_reason" in one] == ["end_turn"], "its own"
