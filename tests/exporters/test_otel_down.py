"""Spans when something is down: the exporter, the ledger, another listener."""

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import openai
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult

import voight_middleware as voight
from voight_middleware.diagnostics import counters
from voight_middleware.exporters.otel.spans import OTelSpans
from voight_middleware.instrumentation import wrap as gate
from voight_middleware.testing.provider import LoopbackProvider

from ..support.depth import times
from ..support.patching import Patch
from ..support.waiting import wait_until
from .traced import HELLO, Traced, attributes


@pytest.mark.slow
def test_a_span_whose_cost_does_not_come_ends_without(listening: Any, openai_client: openai.OpenAI, patch: Patch) -> None:
    """Another listener holds everything up: the span goes after its time, and says so."""
    patch("PRICE_SECONDS", 0.1, within="otel.spans")
    traced, release = Traced(), threading.Event()
    listened = listening(lambda call: release.wait(20), traced.spans)
    openai_client.chat.completions.create(**HELLO)
    wait_until(traced.exporter.get_finished_spans)
    release.set()

    (span,) = traced.exporter.get_finished_spans()
    assert attributes(span)["voight.cost_status"] == "pending"
    assert "voight.cost_usd" not in attributes(span)
    assert counters["spans_without_cost"] == 1
    assert listened.flush()[0].cost_usd is not None


@pytest.mark.slow
def test_a_ledger_that_is_down_loses_no_span(tmp_path: Any, traced: Traced, listening: Any, openai_client: openai.OpenAI) -> None:
    """The background thread prices without it."""
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "ledger.db").mkdir()  # no database can be opened there
    listened = listening(traced.spans)
    openai_client.chat.completions.create(**HELLO)
    assert not listened.meter.flush(0.5)

    said = attributes(traced.one("chat gpt-4o-mini"))
    assert Decimal(said["voight.cost_usd"]) > 0
    assert counters["ledger_errors"] > 0
    listened.meter.close(0.1)


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


@pytest.mark.slow
@pytest.mark.parametrize("ends", [True, False], ids=["told of", "dropped"])
def test_an_exporter_that_never_comes_back_fills_no_memory(
    ends: bool, listening: Any, monkeypatch: pytest.MonkeyPatch, patch: Patch
) -> None:
    """Spans of calls that are told of, and of those that are dropped: what is lost is let go."""
    patch("MAX_HELD", 20, within="otel.spans")
    exporter = Stuck()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = OTelSpans(provider)
    listened = listening(spans)

    count = times(150, 500)

    def make_calls() -> None:
        for _ in range(count):
            with contextlib.suppress(KeyError), voight.metered_call(provider="openai", model="gpt-4o-mini") as call:
                call.report(input=1, output=1)
                if not ends:
                    monkeypatch.setattr(call, "_observed", None)  # as that of a stream of which nobody reads an event

    contextvars.copy_context().run(make_calls)  # which leaves its span in there
    listened.flush()

    assert spans._queue.qsize() <= 40
    exporter.answers.set()
    spans.close(1)
    assert len(listened.flush()) == count
    assert len(exporter.exported) + counters["lost_spans"] == count or not ends


@pytest.mark.slow
@pytest.mark.parametrize("processor", [BatchSpanProcessor, SimpleSpanProcessor])
def test_an_exporter_that_is_down_under_load(processor: Any, listening: Any, loopback: LoopbackProvider) -> None:
    """Many calls: none waits, all are in the ledger while it is still down, and afterwards the spans go out."""
    count = times(100, 1000)
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

            await asyncio.gather(*(one() for _ in range(count)))
        return slowest

    slowest = asyncio.run(load())
    calls = listened.flush()
    down = len(exporter.exported)
    exporter.answers.set()
    deadline = time.monotonic() + 30
    while len(exporter.exported) < count and time.monotonic() < deadline:
        spans.flush(1)
        provider.force_flush()
    provider.shutdown()

    assert slowest < 10
    assert len({call.call_id for call in calls}) == count
    assert down == 0
    assert len({attributes(span)["voight.call_id"] for span in exporter.exported}) == count
    assert counters["lost_spans"] == 0
