"""The receiver: what is taken, what is refused, and that nothing is lost or counted twice."""

from __future__ import annotations

import base64
import gzip
import json
import os
import threading
import time
import zlib
from collections.abc import Callable
from decimal import Decimal

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from voight_middleware.otlp import receiver

from ..apps.otlp_spans import CHAT, PROTOBUF, Receiving, protobuf, request, span

Start = Callable[..., Receiving]
TOKEN = "a-token-of-some-length"


@pytest.mark.slow
@pytest.mark.parametrize("compression", list(Compression))
def test_pythons_own_exporter_is_understood(receiving: Start, compression: Compression) -> None:
    """OpenTelemetry's exporter in protobuf, with each of its compressions: user, tokens, and an exact cost."""
    one = receiving()
    provider = TracerProvider(resource=Resource({"service.name": "billing", "service.version": "2.1"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{one.url}/v1/traces", compression=compression)))
    with (
        provider.get_tracer("a.library").start_as_current_span("GET /"),
        provider.get_tracer("a.library").start_as_current_span("chat") as made,
    ):
        made.set_attributes(CHAT)
    provider.shutdown()

    (call,) = one.calls()
    assert (call.tags.user_id, call.tags.release, call.tags.extra) == ("u_1", "2.1", {"service": "billing"})
    assert call.usage is not None
    assert (call.usage.input, call.usage.cache_read, call.usage.output) == (10, 100, 50)
    assert call.cost_usd == (10 * Decimal("0.05") + 100 * Decimal("0.005") + 50 * Decimal("0.4")) / 1_000_000
    assert (call.provider, call.requested_model, call.model) == ("openai", "gpt-5-nano", "gpt-5-nano-2025-08-07")


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [True, False], ids=["json", "protobuf"])
@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate", "raw deflate"])
def test_both_encodings_come_in_every_packing(receiving: Start, as_json: bool, encoding: str) -> None:
    """And the answer is in the encoding of the question."""
    one = receiving()
    body = json.dumps(request(span())).encode() if as_json else protobuf(span())
    raw = zlib.compressobj(wbits=-15)
    packed = {
        "identity": body,
        "gzip": gzip.compress(body[:20]) + gzip.compress(body[20:]),
        "deflate": zlib.compress(body),
        "raw deflate": raw.compress(body) + raw.flush(),
    }[encoding]
    kind = "application/json; charset=utf-8" if as_json else "application/x-protobuf"
    answer = one.send(packed, content_type=kind, content_encoding=encoding.removeprefix("raw "))

    assert (answer.status, answer.body) == (200, b"{}" if as_json else b"")
    assert answer.headers["content-type"] == kind.partition(";")[0]
    assert len(one.calls()) == 1


@pytest.mark.slow
def test_the_same_body_five_times_is_one_call(receiving: Start) -> None:
    """An exporter that heard no answer sends again; so does one that speaks the other encoding."""
    one, sent = receiving(), span()
    for _ in range(5):
        assert one.send(request(sent)).status == 200
    assert one.send(protobuf(sent), **PROTOBUF).status == 200

    assert len(one.calls()) == 1
    assert one.server.receiver.totals.repeated == 5


@pytest.mark.slow
def test_a_receiver_that_was_started_anew_knows_what_it_has_written(receiving: Start) -> None:
    """By the id of the call, as its memory is gone."""
    sent = span()
    for _ in range(2):
        one = receiving("the same")
        assert one.send(request(sent)).status == 200
        assert one.server.receiver.totals.calls == 1
        assert len(one.calls()) == 1
        one.stop()


@pytest.mark.slow
def test_what_cannot_be_used_is_said_and_the_rest_is_kept(receiving: Start) -> None:
    """A partial success: how many spans, and why."""
    one = receiving()
    bad = [
        span(2) | {"traceId": "0" * 32},
        span(3) | {"spanId": "xyz"},
        span(4) | {"traceId": base64.b64encode(b"x" * 16).decode()},
        span(5) | {"startTimeUnixNano": "0", "endTimeUnixNano": "0"},
        span(6) | {"startTimeUnixNano": str((int(time.time()) + 90_000) * 10**9)},
        span(7) | {"startTimeUnixNano": str(2**64)},
        span(8) | {"attributes": [{"key": 5}]},
        {"spanId": []},
        None,
    ]
    answer = one.send(request(span(1), *bad))

    assert answer.status == 200
    assert answer.json["partialSuccess"]["rejectedSpans"] == str(len(bad))
    assert "without a trace id" in answer.json["partialSuccess"]["errorMessage"]
    assert len(one.calls()) == 1

    answer = one.send(protobuf(span(1), span(2) | {"traceId": ""}), **PROTOBUF)
    partial = ExportTraceServiceResponse.FromString(answer.body).partial_success
    assert (partial.rejected_spans, "without a trace id" in partial.error_message) == (1, True)


GZIP, DEFLATE = {"content_encoding": "gzip"}, {"content_encoding": "deflate"}
MALFORMED: dict[str, tuple[bytes, dict[str, str]]] = {
    "nothing": (b"", {}),
    "half an object": (b"{", {}),
    "a list": (b"[]", {}),
    "a number of spans": (b'{"resourceSpans": 5}', {}),
    "JSON that ends before its end": (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{}]}]}', {}),
    "lists in lists": (b"[" * 100_000, {}),
    "objects in objects": (b'{"x":' * 100_000, {}),
    "NaN": (b'{"resourceSpans": NaN}', {}),
    "no UTF-8": (b"\xff\xfe", {}),
    "a number without an end": (b"\xff" * 11, PROTOBUF),
    "fewer bytes than said": (b"\x0a\x05abc", PROTOBUF),
    "a group": (b"\x0b", PROTOBUF),
    "fewer bytes inside than said": (b"\x0a\x04\x0a\x02\x0a\x05", PROTOBUF),
    "protobuf that ends before its end": (protobuf(span())[:-3], PROTOBUF),
    "gzip that ends before its end": (gzip.compress(b"{}")[:-9], GZIP),
    "more after gzip": (gzip.compress(b"{}") + b"more", GZIP),
    "no gzip": (b"no gzip", GZIP),
    "no deflate": (b"no deflate", DEFLATE),
}


@pytest.mark.slow
@pytest.mark.parametrize(("body", "headers"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_body_is_refused(receiving: Start, body: bytes, headers: dict[str, str]) -> None:
    """400, so that it is not sent again; and the receiver goes on."""
    one = receiving()
    answer = one.send(body, **headers)

    assert answer.status == 400
    assert one.send(request(span())).status == 200


@pytest.mark.slow
def test_spans_nested_without_end_are_unusable_and_no_more(receiving: Start) -> None:
    """What is deep inside of a value that nobody looks at."""
    one = receiving()
    deep = b'{"key": "x", "value": {"kvlistValue": ' + b'{"values":[' * 5000 + b"]}" * 5000 + b"}}"
    whole = json.dumps(request(span(1), span(2))).encode()
    body = whole.replace(b'"attributes": [{"key": "gen_ai.op', b'"attributes": [' + deep + b', {"key": "gen_ai.op', 1)
    answer = one.send(body)

    assert answer.status in (200, 400)
    assert one.send(request(span(3))).status == 200


def test_every_refusal_has_its_status(receiving: Start) -> None:
    """As the specification wants: what may be sent again, and what may not."""
    one = receiving()
    assert one.send(b"{}", "/v1/other").status == 404
    answer = one.send(b"", method="GET")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert one.send(b"{}", content_type="text/plain").status == 415
    assert one.send(b"{}", content_type="").status == 415
    assert one.send(b"{}", content_encoding="br").status == 415
    assert one.send(b"{}", content_encoding="gzip, gzip").status == 415
    assert one.send(b"{}", content_length=str(receiver.MAX_BODY + 1)).status == 413
    for path in ("/v1/metrics", "/v1/logs"):
        answer = one.send(b"\x0a\x00", path, **PROTOBUF)
        assert answer.status == 200
        assert b"spans only" in answer.body
        assert "it drops" in one.send({}, path).json["partialSuccess"]["errorMessage"]


def test_a_token_is_asked_for_everywhere(receiving: Start, caplog: pytest.LogCaptureFixture) -> None:
    """401 with what to do about it, before the body is looked at; whoever runs the receiver is told once, without what was sent."""
    one = receiving(token=TOKEN)
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}, {"authorization": "Bearer"}):
        for path in ("/v1/traces", "/v1/metrics"):
            answer = one.send(b"not even JSON", path, **headers)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer realm="voight"')
            assert answer.json["code"] == 16
    assert one.send(request(span()), authorization=f"Bearer {TOKEN}").status == 200
    assert len(one.calls()) == 1
    assert [record.message.count("401") for record in caplog.records] == [1]
    assert TOKEN not in caplog.text


def test_a_journal_that_cannot_be_written_is_503_until_it_can(receiving: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is accepted that is not on the disk; sent again, it is there once."""
    one, sent = receiving(), request(span(1), span(2))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        for _ in range(3):
            answer = one.send(sent)
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert one.send(sent).status == 200
    assert len(one.calls()) == 2


def test_a_call_that_nobody_can_write_is_refused_alone(receiving: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be refused for ever; those beside it are kept."""
    one = receiving()
    right = one.meter.journal.append
    monkeypatch.setattr(one.meter.journal, "append", lambda call: right(call) if call.tags.user_id == "u_1" else 1 / 0)
    answer = one.send(request(span(1), span(2, attributes={**CHAT, "user.id": "u_2"}), span(3)))

    assert answer.json["partialSuccess"]["rejectedSpans"] == "1"
    assert len(one.calls()) == 2


@pytest.mark.slow
def test_the_journal_writes_what_every_call_of_ours_is_written_as(receiving: Start) -> None:
    """Personal data of a span becomes a pseudonym before it is on any disk."""
    one = receiving()
    one.send(request(span(attributes={**CHAT, "user.id": "alice@example.com"})))

    (call,) = one.calls()
    assert call.tags.user_id is not None
    assert "alice" not in call.tags.user_id


@pytest.mark.slow
def test_many_senders_at_once_are_each_counted_once(receiving: Start) -> None:
    """Eight of them, each sending all of its spans twice."""
    one = receiving()
    statuses: list[int] = []

    def send(trace: int) -> None:
        for batch in range(4):
            sent = request(*(span(100 * batch + number, trace=trace) for number in range(1, 26)))
            statuses.extend(one.send(sent).status for _ in range(2))

    threads = [threading.Thread(target=send, args=(trace,)) for trace in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(statuses) == {200}
    assert len(one.calls()) == 800
