"""Where a span of OTelSpans is: inside which other, and which is the current one meanwhile."""

import asyncio
import gc
import threading
from collections.abc import Generator
from contextvars import ContextVar
from typing import Any

import httpx2
import openai
import pytest
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import StatusCode

import voight_middleware as voight
from voight_middleware.instrumentation import wrap as gate
from voight_middleware.testing.provider import LoopbackProvider

from ..support.waiting import wait_until
from .traced import HELLO, Traced, attributes, lasted


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


@pytest.mark.slow
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


@pytest.mark.slow
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
    loopback.reset()
    listening(traced.spans)
    async with openai.AsyncOpenAI(base_url=loopback.openai_base_url, api_key="sk-test") as client:
        gate.wrap(client)
        task = asyncio.create_task(client.chat.completions.create(**HELLO, extra_headers={"x-loopback-delay-ms": "5000"}))
        await asyncio.to_thread(wait_until, lambda: loopback.requests)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    span = await asyncio.to_thread(traced.one, "chat gpt-4o-mini")
    assert attributes(span)["voight.outcome"] == "cancelled"
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("inside", [True, False], ids=["in a request", "in none"])
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
