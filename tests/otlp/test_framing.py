"""The framing that is read by hand: it finds what the protobuf library finds, and makes nothing of what nobody looks at."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message

from voight_middleware.otlp import framing, wire
from voight_middleware.otlp.spans import Span, wanted

from ..support.patching import Patch

NAMES = st.sampled_from(
    ["service.name", "service.version", "service.namespace", "user.id", "gen_ai.request.model", "gen_ai.prompt", "", "x"]
)
VALUES = st.one_of(
    st.text(max_size=20).map(lambda text: AnyValue(string_value=text)),
    st.integers(-5, 5).map(lambda number: AnyValue(int_value=number)),
    st.just(AnyValue(array_value=ArrayValue(values=[AnyValue(string_value="x")]))),
    st.just(AnyValue()),
)
PAIRS = st.lists(st.builds(lambda key, value: KeyValue(key=key, value=value), NAMES, VALUES), max_size=4)
SPANS = st.builds(
    lambda number, attributes, state: Message(
        trace_id=bytes(15) + b"\x07",
        span_id=number.to_bytes(8),
        start_time_unix_nano=10**18,
        end_time_unix_nano=10**18 + number,
        name="chat",
        trace_state=state,
        attributes=attributes,
    ),
    st.integers(1, 1000),
    PAIRS,
    st.text(max_size=5),
)
SCOPES = st.lists(st.tuples(st.text(max_size=5), st.lists(SPANS, max_size=3)), max_size=3)
REQUESTS = st.lists(st.tuples(PAIRS, SCOPES), max_size=3)
decode = wire.protobuf_decoder()


def _request(resources: list[Any]) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    for attributes, scopes in resources:
        into = request.resource_spans.add(schema_url="x")
        into.resource.attributes.extend(attributes)
        for name, spans in scopes:
            scope = into.scope_spans.add(schema_url="y", spans=spans)
            scope.scope.name = name
    return request


def _texts(attributes: Any) -> dict[str, str]:
    """What a resource says of itself, as the library reads it."""
    named = ("service.name", "service.version")
    return {one.key: one.value.string_value for one in attributes if one.key in named and one.value.WhichOneof("value") == "string_value"}


@pytest.mark.slow
@given(REQUESTS)
def test_the_same_spans_are_found_as_by_the_library(resources: list[Any]) -> None:
    """In their order, with the resource and the scope that they are in."""
    request = _request(resources)
    decoded = decode(request.SerializeToString())
    found = list(decoded.spans)
    expected = [
        (span.span_id.hex(), scope.scope.name, _texts(one.resource.attributes))
        for one in request.resource_spans
        for scope in one.scope_spans
        for span in scope.spans
    ]
    assert decoded.count == len(found)
    assert [(span.key.span_id, span.scope, span.resource) for span in found if isinstance(span, Span)] == expected


def test_a_long_span_keeps_what_is_looked_at(patch: Patch) -> None:
    """Attributes by name, and its ids and times."""
    span = Message(trace_id=b"t" * 16, span_id=b"s" * 8, start_time_unix_nano=5, end_time_unix_nano=6, name="chat")
    for key in ("user.id", "gen_ai.prompt", "gen_ai.usage.input_tokens", "x" * 50_000):
        span.attributes.add(key=key).value.string_value = key[:20] * 3
    span.events.add(name="exception", time_unix_nano=7)
    span.links.add(trace_id=b"l" * 16)
    patch("LONG_SPAN", len(span.SerializeToString()) - 1)
    slim = Message.FromString(framing.slim_span(span.SerializeToString()))

    del span.links[:]
    kept = [one for one in span.attributes if wanted(one.key)]
    del span.attributes[:]
    span.attributes.extend(kept)
    assert slim == span


@pytest.mark.slow
@pytest.mark.parametrize("part", [b"\x0a\x00", b"\x0a\x02\x12\x00", b"\x0a\x02\x0a\x00"])
def test_messages_are_counted_before_they_are_made(part: bytes, patch: Patch) -> None:
    """However many there are, a body costs little more than itself."""
    patch("MAX_PARTS", 5_000)
    body = part * 50_000
    tracemalloc.start()
    try:
        with pytest.raises(framing.TooLarge, match="parts"):
            decode(body)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()
