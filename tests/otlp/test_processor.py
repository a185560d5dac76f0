"""The gate, the SDK's own spans and other instrumentors at once: one call in the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from openinference.instrumentation.anthropic import AnthropicInstrumentor as OpenInferenceAnthropic
from opentelemetry import trace
from opentelemetry.instrumentation.anthropic import AnthropicInstrumentor as OpenLLMetryAnthropic
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import voight_middleware as voight
from voight_middleware.config.settings import Settings
from voight_middleware.diagnostics import counters
from voight_middleware.exporters.otel.spans import OTelSpans
from voight_middleware.instrumentation import wrap as gate
from voight_middleware.ledger import open_ledger
from voight_middleware.otlp.processor import CostSpanProcessor
from voight_middleware.pipeline.meter import Meter, swap_meter
from voight_middleware.records.call import Call
from voight_middleware.testing.provider import LoopbackProvider

from ..support.forks import Forks
from ..support.patching import Patch

INSTRUMENTORS: dict[str, tuple[Any, ...]] = {
    "the SDK alone": (),
    "OpenLLMetry": (OpenLLMetryAnthropic,),
    "OpenInference": (OpenInferenceAnthropic,),
    "both": (OpenLLMetryAnthropic, OpenInferenceAnthropic),
}
USAGE = {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 7}
CLAUDE: dict[str, Any] = {"model": "claude-opus-4-6", "max_tokens": 10, "messages": [{"role": "user", "content": "hello"}]}
GPT: dict[str, Any] = {"model": "gpt-5-nano", "messages": [{"role": "user", "content": "hello"}]}
USED = {"x-loopback-usage": json.dumps(USAGE)}


class Traced:
    """A process with a tracer provider, our processor in it, and a ledger of its own."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings.from_environment(ledger=folder / "ledger.db", environ={})
        self.spans_out: OTelSpans | None = None
        self.exported = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.processor = CostSpanProcessor()
        self.provider.add_span_processor(self.processor)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exported))
        self.meter = Meter(self.settings)
        self.tracer = self.provider.get_tracer("an.application")

    def calls(self) -> list[Call]:
        """What is in the ledger."""
        assert self.meter.flush(30)
        ledger = open_ledger(self.settings.ledger)
        try:
            return list(ledger.calls())
        finally:
            ledger.close()

    def made(self, name: str, attributes: dict[str, Any], error: Exception | None = None) -> None:
        """A span of some library."""
        with contextlib.suppress(Exception), self.tracer.start_as_current_span(name, attributes=attributes):
            if error is not None:
                raise error


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[Traced]:
    """The same, with nothing of ours failing inside."""
    one = Traced(tmp_path)
    outer = swap_meter(one.meter)
    yield one
    swap_meter(outer)
    gate.uninstrument()
    one.provider.shutdown()
    one.meter.close()
    assert counters["internal_errors"] == 0
    assert counters["observer_errors"] == 0


@contextlib.contextmanager
def instrumented(names: str, provider: TracerProvider) -> Iterator[None]:
    """With these instrumentors in force."""
    made = [one() for one in INSTRUMENTORS[names]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in made:
            one.instrument(tracer_provider=provider)
        try:
            yield
        finally:
            for one in reversed(made):
                one.uninstrument()


def _anthropic(loopback: LoopbackProvider, traced: Traced) -> anthropic.Anthropic:
    options: Any = {"tracer_provider": traced.provider}
    return anthropic.Anthropic(base_url=loopback.anthropic_base_url, api_key="any", max_retries=0, open_telemetry=options)


def _streamed(client: Any) -> None:
    for _ in client.messages.create(**CLAUDE, stream=True, extra_headers=USED):
        pass


def _helper(client: Any) -> None:
    with client.messages.stream(**CLAUDE, extra_headers=USED) as stream:
        stream.get_final_message()


def _failed(client: Any) -> None:
    with contextlib.suppress(anthropic.APIError):
        client.messages.create(**CLAUDE, extra_headers={"x-loopback-status": "500"})


ASKING: dict[str, Callable[[Any], Any]] = {
    "whole": lambda client: client.messages.create(**CLAUDE, extra_headers=USED),
    "streamed": _streamed,
    "the helper for streams": _helper,
    "failed": _failed,
}


CASES = [
    pytest.param(
        *(names, gated, inside, asking),
        id=f"{names}-{'gated' if gated else 'not gated'}-{'in a request' if inside else 'in none'}-{asking}",
        marks=[] if (row + column + gated + inside) % 2 else pytest.mark.deep,  # in a request or in none: half of each
    )
    for row, names in enumerate(INSTRUMENTORS)
    for column, asking in enumerate(ASKING)
    for gated in (True, False)
    for inside in (True, False)
]


@pytest.mark.slow
@pytest.mark.parametrize(("names", "gated", "inside_a_request", "asking"), CASES)
def test_anthropic_is_one_call_whoever_sees_it(
    traced: Traced, loopback: LoopbackProvider, names: str, gated: bool, inside_a_request: bool, asking: str
) -> None:
    """Its native spans, one instrumentor or two, with the gate or without, with a span around or none: one call, of the right user."""
    around = traced.tracer.start_as_current_span("GET /") if inside_a_request else contextlib.nullcontext()
    with instrumented(names, traced.provider), _anthropic(loopback, traced) as client:
        if gated:
            gate.wrap(client)
        with voight.tag(user_id="u_1", plan="pro"), around:
            ASKING[asking](client)

    (call,) = traced.calls()
    assert (call.tags.user_id, call.tags.plan, call.attribution, call.provider) == ("u_1", "pro", "tag", "anthropic")
    assert call.requested_model == "claude-opus-4-6"
    if asking == "failed":
        assert (call.outcome, call.http_status) == ("error", 500)
    else:
        assert call.usage is not None
        assert (call.usage.input, call.usage.cache_read, call.usage.cache_write_tokens, call.usage.output) == (10, 100, 7, 5)
        assert call.cost_usd is not None
        assert call.outcome == "ok"
    assert len(traced.exported.get_finished_spans()) >= 1 + inside_a_request


OPENAI = {
    "OpenLLMetry": ("opentelemetry.instrumentation.openai",),
    "OpenInference": ("openinference.instrumentation.openai",),
    "both": ("opentelemetry.instrumentation.openai", "openinference.instrumentation.openai"),
}


@pytest.mark.server
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "not gated"])
@pytest.mark.parametrize("names", OPENAI)
def test_openai_is_one_call_whoever_sees_it(forks: Forks, tmp_path: Path, loopback: LoopbackProvider, names: str, gated: bool) -> None:
    """Exactly what the provider has counted. In a process of its own, as these instrumentors do not take back all that they patch."""
    script = """
        import contextlib, importlib, sys
        import openai, voight_middleware as voight
        from opentelemetry.sdk.trace import TracerProvider
        from voight_middleware.otlp.processor import CostSpanProcessor

        ledger, url, gated, *names = sys.argv[1:]
        voight.configure(ledger=ledger)
        provider = TracerProvider()
        provider.add_span_processor(CostSpanProcessor())
        if gated == "gated":
            voight.instrument()  # before OpenInference takes the method that the gate patches for itself
        for name in names:
            importlib.import_module(name).OpenAIInstrumentor().instrument(tracer_provider=provider)
        client = openai.OpenAI(base_url=url, api_key="any", max_retries=0)
        chat = dict(model="gpt-5-nano", messages=[{"role": "user", "content": "hello"}])
        with voight.tag(user_id="chat"):
            client.chat.completions.create(**chat)
        with voight.tag(user_id="stream"):
            list(client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True}))
        with voight.tag(user_id="responses"):
            client.responses.create(model="gpt-5-nano", input="hello")
        with voight.tag(user_id="streamed response"):
            list(client.responses.create(model="gpt-5-nano", input="hello", stream=True))
        with voight.tag(user_id="embedding"):
            client.embeddings.create(model="text-embedding-3-small", input="hello")
        with voight.tag(user_id="failed"), contextlib.suppress(openai.APIError):
            client.chat.completions.create(**chat, extra_headers={"x-loopback-status": "500"})
        assert voight.flush(30)
    """
    loopback.reset()
    forks.run(script, str(tmp_path / "ledger.db"), loopback.openai_base_url, "gated" if gated else "not gated", *OPENAI[names])

    ledger = open_ledger(str(tmp_path / "ledger.db"))
    calls = list(ledger.calls())
    ledger.close()
    counted = loopback.counts().total
    assert [call.tags.user_id for call in calls] == ["chat", "stream", "responses", "streamed response", "embedding", "failed"]
    usages = [call.usage for call in calls if call.usage is not None]
    assert sum(usage.input_tokens or 0 for usage in usages) == counted.input_tokens
    assert sum(usage.output_tokens or 0 for usage in usages) == counted.output_tokens
    assert (calls[-1].outcome, calls[-1].usage) == ("error", None)


@pytest.mark.slow
async def test_many_at_once_are_each_counted_once(traced: Traced, loopback: LoopbackProvider) -> None:
    """Half of the clients are wrapped, all are traced twice: as many calls as were made, each of its own user."""
    options: Any = {"tracer_provider": traced.provider}
    with instrumented("both", traced.provider):
        async with (
            anthropic.AsyncAnthropic(base_url=loopback.anthropic_base_url, api_key="any", open_telemetry=options) as wrapped,
            anthropic.AsyncAnthropic(base_url=loopback.anthropic_base_url, api_key="any", open_telemetry=options) as plain,
        ):
            gate.wrap(wrapped)

            async def ask(number: int) -> None:
                client = (wrapped, plain)[number % 2]
                with voight.tag(user_id=f"u_{number}"):
                    if number % 3:
                        await client.messages.create(**CLAUDE, extra_headers=USED)
                    else:
                        async for _ in await client.messages.create(**CLAUDE, stream=True, extra_headers=USED):
                            pass

            await asyncio.gather(*(ask(number) for number in range(40)))

    assert sorted(call.tags.user_id or "" for call in traced.calls()) == sorted(f"u_{number}" for number in range(40))


def test_a_framework_that_no_gate_sees_is_metered(traced: Traced) -> None:
    """With the tags of here and now, which say more than the span's own; without any, the span's."""
    chat = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "gcp.gemini", "gen_ai.request.model": "gemini-2.5-flash"}
    chat |= {"gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 5, "user.id": "of the span"}  # type: ignore[dict-item]
    with voight.tag(user_id="u_1", plan="pro"):
        traced.made("chat", chat)
        traced.made("invoke_agent", {"gen_ai.operation.name": "invoke_agent", "gen_ai.usage.input_tokens": 10})
    traced.made("chat", chat, ValueError("the prompt was hello"))

    mine, other = sorted(traced.calls(), key=lambda call: call.occurred_at)
    assert (mine.tags.user_id, mine.tags.plan, mine.provider, mine.outcome) == ("u_1", "pro", "google", "ok")
    assert (other.tags.user_id, other.tags.plan, other.outcome, other.error) == ("of the span", None, "error", "ValueError")
    assert mine.cost_usd


def test_a_metered_call_inside_a_tool_of_another_model_is_a_call_of_its_own(traced: Traced, loopback: LoopbackProvider) -> None:
    """The chat of one provider runs a tool that asks another one, which is gated: two calls."""
    outer = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "gcp.gemini", "gen_ai.request.model": "gemini-2.5-flash"}
    outer |= {"gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 5}  # type: ignore[dict-item]
    with _anthropic(loopback, traced) as client:
        gate.wrap(client)
        with traced.tracer.start_as_current_span("chat", attributes=outer):
            client.messages.create(**CLAUDE)
    assert sorted(call.provider for call in traced.calls()) == ["anthropic", "google"]


def test_a_stream_that_is_open_meanwhile_is_a_call_of_its_own(traced: Traced, loopback: LoopbackProvider) -> None:
    """An instrumentor's span of a stream goes on while a metered call is made in the same place."""
    other = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "anthropic", "gen_ai.request.model": "claude-opus-4-6"}
    with _anthropic(loopback, traced) as client:
        gate.wrap(client)
        going_on = traced.tracer.start_span("chat", attributes=other)
        client.messages.create(**CLAUDE, extra_headers=USED)
        going_on.set_attributes({"gen_ai.usage.input_tokens": 500, "gen_ai.usage.output_tokens": 60, "gen_ai.response.id": "msg_other"})
        going_on.end()
    assert sorted(call.usage.output or 0 for call in traced.calls() if call.usage is not None) == [5, 60]


def test_what_is_metered_by_hand_is_not_metered_again(traced: Traced, loopback: LoopbackProvider) -> None:
    """The spans inside the block are of its call."""
    with (
        instrumented("both", traced.provider),
        _anthropic(loopback, traced) as client,
        voight.metered_call(provider="anthropic", model="claude-opus-4-6") as block,
    ):
        answer = client.messages.create(**CLAUDE)
        block.report(answer.usage)
    assert len(traced.calls()) == 1


def test_our_own_spans_are_not_metered(traced: Traced, loopback: LoopbackProvider) -> None:
    """`OTelSpans` makes a span of each call, and gives anthropic's own what it lacks: no calls, and no span is made of a span."""
    spans = OTelSpans(traced.provider)
    swap_meter(Meter(traced.settings, [spans]))
    try:
        with (
            instrumented("OpenInference", traced.provider),
            _anthropic(loopback, traced) as client,
            traced.tracer.start_as_current_span("GET /"),
        ):
            gate.wrap(client).messages.create(**CLAUDE)
        with openai.OpenAI(base_url=loopback.openai_base_url, api_key="any") as client_2:
            gate.wrap(client_2).chat.completions.create(**GPT)
        traced.made("chat", {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gemini-2.5-flash", "gen_ai.usage.input_tokens": 1})
        assert voight.flush(30)
        spans.flush(10)
    finally:
        inner = swap_meter(traced.meter)
        assert inner is not None
        inner.close()
    assert len(traced.calls()) == 3
    names = sorted(span.name for span in traced.exported.get_finished_spans())
    assert names == ["GET /", "anthropic.messages.create", "chat", "chat gpt-5-nano", "messages.create"]


@pytest.mark.slow
def test_what_was_metered_is_marked_for_the_receiver(traced: Traced, loopback: LoopbackProvider, receiving: Callable[..., Any]) -> None:
    """The same spans, sent on to `voight otlp`: no call of theirs is counted once more; one that is not gated is the same call there."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    one = receiving()
    with (
        instrumented("OpenInference", traced.provider),
        _anthropic(loopback, traced) as client,
        traced.tracer.start_as_current_span("GET /"),
    ):
        gate.wrap(client).messages.create(**CLAUDE)
    traced.made("chat", {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gemini-2.5-flash", "gen_ai.usage.input_tokens": 1})
    exporter = OTLPSpanExporter(f"{one.url}/v1/traces")
    for span in reversed(traced.exported.get_finished_spans()):  # each in a request of its own, the outermost first
        exporter.export([span])
    exporter.shutdown()

    assert [call.call_id for call in one.calls()] == [call.call_id for call in traced.calls() if call.model == "gemini-2.5-flash"]


@pytest.mark.slow
def test_spans_that_never_end_and_contexts_that_live_long_cost_no_memory(traced: Traced, patch: Patch) -> None:
    """What is kept of open spans is bounded."""
    patch("LIVE_SPANS", 100)
    opened = [traced.tracer.start_span(f"span {number}") for number in range(1000)]
    assert len(traced.processor._live) == 100
    for span in opened:
        span.end()
    assert not traced.processor._live
    del opened, span
    gc.collect()


def test_a_span_that_cannot_be_read_does_not_reach_the_application(traced: Traced, patch: Patch) -> None:
    """An error of ours is counted."""
    patch("read", lambda span: 1 / 0, within="otlp.processor")
    patch("role_of", lambda span: 1 / 0, within="otlp.processor")
    traced.made("chat", {"gen_ai.operation.name": "chat"})
    assert counters.pop("internal_errors") == 2


@pytest.mark.server
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_wait_for_its_parents_lock(traced: Traced) -> None:
    """Another thread holds it at that moment."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with traced.processor._lock:
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    child = os.fork()
    if child == 0:
        traced.tracer.start_span("in the child").end()
        os._exit(0)
    deadline = time.monotonic() + 20
    while (status := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if status == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    done.set()
    thread.join()
    assert status == (child, 0)


def test_a_processor_that_was_shut_down_watches_no_more(traced: Traced) -> None:
    """And costs the gate nothing."""
    traced.provider.shutdown()
    assert traced.meter.observers.present == ()
    assert trace.get_current_span() is trace.INVALID_SPAN
