"""Any body to the receiver: it is taken or refused, and nothing of ours fails."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from voight_middleware.diagnostics import counters

from ..apps.otlp_spans import Receiving, protobuf, request, span

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["key", "value", "intValue", "x"]), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from([*span(), "parentSpanId", "events", "status", "kind"])
ODD_SPANS = st.builds(lambda changes, number: span(number) | changes, st.dictionaries(FIELDS, ANY_JSON, max_size=3), st.integers(1, 50))
VALID = json.dumps(request(span())).encode()


def _flip(body: bytes, at: int, to: int) -> bytes:
    at %= len(body)
    return body[:at] + bytes([to]) + body[at + 1 :]


BODIES = st.one_of(
    st.binary(max_size=300).map(lambda body: (body, False)),
    st.binary(max_size=300).map(lambda body: (body, True)),
    st.lists(ODD_SPANS, max_size=4).map(lambda spans: (json.dumps(request(*spans)).encode(), True)),
    ANY_JSON.map(lambda value: (json.dumps({"resourceSpans": [{"scopeSpans": value}]}).encode(), True)),
    st.builds(_flip, st.just(VALID), st.integers(0), st.integers(0, 255)).map(lambda body: (body, True)),
    st.builds(_flip, st.just(protobuf(span())), st.integers(0), st.integers(0, 255)).map(lambda body: (body, False)),
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiving]:
    """One receiver for all of the fuzz run; afterwards its ledger holds what it took, and nothing was set aside."""
    one = Receiving(tmp_path_factory.mktemp("fuzz"))
    yield one
    calls = one.calls()
    assert len({call.call_id for call in calls}) == len(calls)
    assert counters["internal_errors"] == 0
    assert not list(one.settings.journal.glob("rejected*"))
    one.stop()


@pytest.mark.slow
@given(body=BODIES, packing=st.sampled_from(["identity", "gzip", "torn gzip"]))
def test_no_body_is_too_strange(fuzzed: Receiving, body: tuple[bytes, bool], packing: str) -> None:
    """Any body is taken or refused; the receiver has no error of its own, and what it took can be priced and kept."""
    data, as_json = body
    if packing != "identity":
        data = gzip.compress(data)[: -5 if packing == "torn gzip" else None]
    kind = "application/json" if as_json else "application/x-protobuf"
    answer = fuzzed.send(data, content_type=kind, content_encoding="gzip" if packing != "identity" else "identity")

    assert answer.status in ((400,) if packing == "torn gzip" else (200, 400))
    if answer.status == 200 and not as_json:
        ExportTraceServiceResponse.FromString(answer.body)
