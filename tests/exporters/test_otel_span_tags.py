"""Tests of voight_middleware/exporters/otel/span_tags.py: tags onto the spans of other instrumentations."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import voight_middleware as voight
from voight_middleware.exporters.otel.span_tags import CostTagSpanProcessor
from voight_middleware.instrumentation import wrap as gate
from voight_middleware.pipeline import meter
from voight_middleware.testing.provider import LoopbackProvider

from ..support.patching import Patch

HELLO: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}


class Tagged:
    """A tracer provider with the processor, and what was exported."""

    def __init__(self, **more: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.processor = CostTagSpanProcessor(**more)
        self.provider.add_span_processor(self.processor)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    def said(self, name: str) -> dict[str, Any]:
        """The attributes of the only span of this name."""
        found: list[ReadableSpan] = [span for span in self.exporter.get_finished_spans() if span.name == name]
        assert len(found) == 1, name
        return dict(found[0].attributes or {})


@pytest.fixture
def tagged(listening: Any) -> Iterator[Tagged]:
    """The processor with its usual keys."""
    listening()
    made = Tagged()
    yield made
    made.provider.shutdown()


def test_every_span_inside_a_scope_has_the_tags_of_the_list(tagged: Tagged) -> None:
    """And only those: the route and keys of the application's own are not on it."""
    with voight.tag(user_id="u_7", plan="pro", tenant_id="t_1", session_id="s_1", route="POST /chat", feature="summary"):
        tagged.tracer.start_span("inside").end()
    tagged.tracer.start_span("outside").end()

    assert tagged.said("inside") == {"user.id": "u_7", "voight.plan": "pro", "voight.tenant_id": "t_1", "session.id": "s_1"}
    assert tagged.said("outside") == {}


def test_keys_of_the_applications_own(listening: Any) -> None:
    """They are named; what is not named stays away."""
    listening()
    tagged = Tagged(keys=("feature", "route"))
    with voight.tag(user_id="u_7", route="POST /chat", feature="summary"):
        tagged.tracer.start_span("inside").end()
    tagged.provider.shutdown()

    assert tagged.said("inside") == {"voight.tag.feature": "summary", "voight.route": "POST /chat"}


def test_one_text_is_no_list_of_keys() -> None:
    """``keys="plan"`` would be four keys of one letter."""
    with pytest.raises(TypeError):
        CostTagSpanProcessor("plan")


def test_personal_data_is_a_pseudonym(tagged: Tagged) -> None:
    """As in the ledger."""
    with voight.tag(user_id="alice@example.com"):
        tagged.tracer.start_span("inside").end()

    assert "alice" not in str(tagged.said("inside"))
    assert tagged.said("inside")["user.id"].startswith("email:")


def test_what_the_application_set_itself_stays(tagged: Tagged) -> None:
    """Its own attribute is its own."""
    with voight.tag(user_id="u_7", plan="pro"):
        tagged.tracer.start_span("inside", attributes={"user.id": "theirs"}).end()

    assert tagged.said("inside") == {"user.id": "theirs", "voight.plan": "pro"}


def test_a_fault_of_ours_stays_inside(tagged: Tagged, patch: Patch) -> None:
    """The span goes on, and the fault is counted."""
    faults: list[BaseException] = []
    patch("report_internal_error", faults.append, within="span_tags")
    patch("current_context", lambda: 1 / 0, within="span_tags")
    tagged.tracer.start_span("inside").end()

    assert tagged.said("inside") == {}
    assert len(faults) == 1


def test_no_getter_is_asked_for_a_span_and_open_spans_get_the_user_later(tagged: Tagged, loopback: LoopbackProvider) -> None:
    """A request: its span is open when the first LLM call asks the getter; a span that has ended by then stays without."""
    asked: list[str] = []

    def user(request: Request) -> str:
        asked.append(request.url.path)
        return "u_7"

    client = gate.wrap(openai.AsyncOpenAI(base_url=loopback.openai_base_url, api_key="k"))

    async def chat(request: Request) -> PlainTextResponse:
        with tagged.tracer.start_as_current_span("view"):
            with tagged.tracer.start_as_current_span("query"):
                assert not asked, "a span must not ask"
            with tagged.tracer.start_as_current_span("instrumentor's own"):
                await client.chat.completions.create(**HELLO)
            with tagged.tracer.start_as_current_span("afterwards"):
                return PlainTextResponse("ok")

    async def quiet(request: Request) -> PlainTextResponse:
        with tagged.tracer.start_as_current_span("quiet"):
            return PlainTextResponse("ok")

    app = voight.CostTagMiddleware(Starlette(routes=[Route("/chat", chat), Route("/quiet", quiet)]), user_getter=user)

    async def requests() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            await http.get("/quiet")
            await http.get("/chat")
        await client.close()

    asyncio.run(requests())
    assert asked == ["/chat"]
    for name in ("view", "instrumentor's own", "afterwards"):
        assert tagged.said(name)["user.id"] == "u_7", name
    assert "user.id" not in tagged.said("query")
    assert "user.id" not in tagged.said("quiet")


def test_ended_spans_take_no_place(tagged: Tagged) -> None:
    """A long connection with many spans before its first call: those that are open by then get the user."""
    from voight_middleware.context.context import use_scope
    from voight_middleware.middleware.getters import Getters
    from voight_middleware.middleware.request_scope import RequestScope

    with use_scope(RequestScope(object, Getters(user=lambda request: "u_7"), None)):
        for number in range(500):
            tagged.tracer.start_span(f"query {number}").end()
        with tagged.tracer.start_as_current_span("view"), voight.metered_call(provider="openai", model="gpt-4o-mini") as call:
            call.report(input=1, output=1)

    assert tagged.said("view")["user.id"] == "u_7"


@pytest.mark.slow
def test_nothing_of_a_request_is_kept(tagged: Tagged) -> None:
    """Spans that wait for their user do not keep the request that they wait in."""
    from voight_middleware.context.context import use_scope
    from voight_middleware.middleware.getters import Getters
    from voight_middleware.middleware.request_scope import RequestScope

    scope = RequestScope(object, Getters(user=lambda request: None), None)
    with use_scope(scope):
        tagged.tracer.start_span("inside").end()
    assert len(tagged.processor._waiting) == 1
    gone = weakref.ref(scope)
    del scope
    gc.collect()

    assert gone() is None
    assert len(tagged.processor._waiting) == 0


def test_a_processor_that_is_shut_down_sees_no_more_calls(listening: Any) -> None:
    """It is no watcher any more, of this meter or the next."""
    listening()
    tagged = Tagged()
    assert tagged.processor in meter.current_meter().observers.present
    tagged.provider.shutdown()

    assert tagged.processor not in meter.current_meter().observers.present
    assert tagged.processor not in listening().meter.observers.present
