"""The receiver: what is taken, what is refused, and that nothing is lost or counted twice."""

from __future__ import annotations

import base64
import gzip
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from voight_middleware.cli import main
from voight_middleware.ledger import open_ledger
from voight_middleware.otlp import intake, receiver, wire

_SPANS = runpy.run_path(str(Path(__file__).parents[1] / "apps" / "otlp_spans.py"))
CHAT, Receiving, protobuf, request, span = (_SPANS[name] for name in ("CHAT", "Receiving", "protobuf", "request", "span"))
Start = Callable[..., Any]
PROTOBUF = {"content_type": "application/x-protobuf"}
TOKEN = "a-token-of-some-length"


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


@pytest.mark.parametrize("as_json", [True, False])
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


def test_the_same_body_five_times_is_one_call(receiving: Start) -> None:
    """An exporter that heard no answer sends again; so does one that speaks the other encoding."""
    one, sent = receiving(), span()
    for _ in range(5):
        assert one.send(request(sent)).status == 200
    assert one.send(protobuf(sent), **PROTOBUF).status == 200

    assert len(one.calls()) == 1
    assert one.server.receiver.totals.repeated == 5


def test_a_receiver_that_was_started_anew_knows_what_it_has_written(receiving: Start) -> None:
    """By the id of the call, as its memory is gone."""
    one, sent = receiving(), span()
    one.send(request(sent))
    one.server.receiver._intake = intake.Intake(one.meter)
    one.send(request(sent))

    assert one.server.receiver._intake.totals.calls == 1
    assert len(one.calls()) == 1


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


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"{", {}),
        (b"[]", {}),
        (b'{"resourceSpans": 5}', {}),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{}]}]}', {}),
        (b"[" * 100_000, {}),
        (b'{"x":' * 100_000, {}),
        (b'{"resourceSpans": NaN}', {}),
        (b"\xff\xfe", {}),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", PROTOBUF),
        (b"\x0a\x05abc", PROTOBUF),
        (b"\x0b", PROTOBUF),
        (b"\x0a\x04\x0a\x02\x0a\x05", PROTOBUF),
        (protobuf(span())[:-3], PROTOBUF),
        (gzip.compress(b"{}")[:-9], {"content_encoding": "gzip"}),
        (gzip.compress(b"{}") + b"more", {"content_encoding": "gzip"}),
        (b"no gzip", {"content_encoding": "gzip"}),
        (b"no deflate", {"content_encoding": "deflate"}),
    ],
    ids=str,
)
def test_a_malformed_body_is_refused(receiving: Start, body: bytes, headers: dict[str, str]) -> None:
    """400, so that it is not sent again; and the receiver goes on."""
    one = receiving()
    answer = one.send(body, **headers)

    assert answer.status == 400
    assert one.send(request(span())).status == 200


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
        assert "not kept" in one.send({}, path).json["partialSuccess"]["errorMessage"]


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


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_unpacked_no_further_than_the_limit(receiving: Start, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte that would be a gigabyte."""
    one = receiving()
    packing = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    bomb = b"".join(packing.compress(bytes(1 << 20)) for _ in range(1024)) + packing.flush()
    answer = one.send(bomb, **PROTOBUF, content_encoding=encoding)

    assert len(bomb) < 2_000_000
    assert answer.status == 413


def test_more_on_the_wire_than_is_taken_is_refused(receiving: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody has said before how much it is."""
    monkeypatch.setattr(receiver, "MAX_BODY", 10_000)
    one = receiving()
    connection = one.connect()
    try:
        connection.request("POST", "/v1/traces", iter([b"x" * 4000] * 4), {"content-type": "application/json"}, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):  # it was answered before all of it was sent
        pass
    finally:
        connection.close()
    assert one.send(request(span())).status == 200
    assert one.server.receiver._waiting == 0


def test_when_too_much_waits_senders_are_told_to_come_again(receiving: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """429 with Retry-After; what they kept is taken later."""
    one = receiving()
    monkeypatch.setattr(receiver, "MAX_WAITING", 10)
    answer = one.send(request(span()))
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    monkeypatch.undo()
    assert one.send(request(span())).status == 200
    assert one.server.receiver._waiting == 0


def test_a_journal_that_cannot_be_written_is_503_until_it_can(receiving: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is accepted that is not on the disk; sent again, it is there once."""
    one, sent = receiving(), request(span(1), span(2))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("voight_middleware.journal.os.write", full)
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


def test_slow_senders_do_not_stay(receiving: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a body, half of the headers, and nothing at all."""
    monkeypatch.setattr(receiver, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(receiver, "IDLE_SECONDS", 0.6)
    one = receiving()
    place = urlsplit(one.url)
    assert place.hostname is not None
    head = b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n"
    for said, expected in ((head + b"\r\n{", b"HTTP/1.1 408"), (head, b""), (b"", b"")):
        with socket.create_connection((place.hostname, place.port or 0), timeout=10) as connection:
            connection.sendall(said)
            assert connection.recv(1000).startswith(expected)
            while connection.recv(1000):
                pass


def test_connections_are_bounded(receiving: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many at once, a sender is told to come again; when they are gone, it is heard."""
    monkeypatch.setattr(receiver, "MAX_REQUESTS", 5)
    one = receiving()
    place = urlsplit(one.url)
    idle = [socket.create_connection((place.hostname or "", place.port or 0)) for _ in range(5)]
    time.sleep(0.2)
    assert one.send(request(span())).status == 503
    for connection in idle:
        connection.close()
    time.sleep(0.2)
    assert one.send(request(span())).status == 200


def test_the_journal_writes_what_every_call_of_ours_is_written_as(receiving: Start) -> None:
    """Personal data of a span becomes a pseudonym before it is on any disk."""
    one = receiving()
    one.send(request(span(attributes={**CHAT, "user.id": "alice@example.com"})))

    (call,) = one.calls()
    assert call.tags.user_id is not None
    assert "alice" not in call.tags.user_id


def _command(folder: Path, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    source = "import sys; from voight_middleware.cli import main; sys.exit(main(['otlp', *sys.argv[1:]]))"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VOIGHT_")}
    return subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        env={**kept, "VOIGHT_LEDGER": str(folder / "ledger.db"), **environ},
        stderr=subprocess.PIPE,
        text=True,
    )


def _ready(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "receiving spans at" in line, line
    return line.split()[4].removesuffix("/v1/traces,")


class At(Receiving):  # type: ignore[misc, valid-type]
    """A receiver in another process."""

    def __init__(self, url: str) -> None:
        self.url = url


def test_sigterm_ends_what_is_under_way_and_brings_it_into_the_ledger(tmp_path: Path) -> None:
    """A body that is half there when the signal comes is answered, and its call kept."""
    process = _command(tmp_path, "--port", "0")
    try:
        at = At(_ready(process))
        assert at.send(request(span(1))).status == 200
        body = json.dumps(request(span(2))).encode()
        connection = at.connect()
        connection.putrequest("POST", "/v1/traces")
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", str(len(body)))
        connection.endheaders(body[:50])
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        connection.send(body[50:])
        assert connection.getresponse().status == 200
        connection.close()
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert "2 calls" in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    ledger = open_ledger(str(tmp_path / "ledger.db"))
    assert len(list(ledger.calls())) == 2
    ledger.close()


def test_kill_9_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    """What was answered with 200 is in the journal, and in the ledger as soon as anybody looks."""
    process = _command(tmp_path, "--port", "0")
    try:
        at = At(_ready(process))
        answered = sum(at.send(request(*(span(100 * batch + number) for number in range(1, 51)))).status == 200 for batch in range(10))
        process.kill()
    finally:
        process.kill()
        process.communicate()
    assert answered == 10
    assert main(["spend", "--ledger", str(tmp_path / "ledger.db"), "--format", "json"]) == 0
    ledger = open_ledger(str(tmp_path / "ledger.db"))
    assert len(list(ledger.calls())) == 500
    ledger.close()


def _peak(process: subprocess.Popen[str]) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_memory_is_bounded_by_the_body_and_not_by_what_is_in_it(tmp_path: Path) -> None:
    """A million spans, two million empty ones, and as many values of JSON: refused or taken, below 300 MB."""
    process = _command(tmp_path, "--port", "0")
    try:
        at = At(_ready(process))
        before = _peak(process)
        sent = ExportTraceServiceRequest.FromString(protobuf(span(attributes={}))).resource_spans[0].scope_spans[0].spans[0]
        head, _, tail = sent.SerializeToString().partition(sent.span_id)
        spans = b"".join(
            b"\x12" + bytes([len(raw)]) + raw for number in range(1_000_000) if (raw := head + (number + 1).to_bytes(8) + tail)
        )
        million = b"\x0a" + wire._sized(b"\x12" + wire._sized(spans))
        assert receiver.MAX_UNPACKED / 2 < len(million) < receiver.MAX_UNPACKED
        assert at.send(gzip.compress(million, 1), **PROTOBUF, content_encoding="gzip").status == 200
        empty = b"\x0a" + wire._sized(b"\x12" + wire._sized(b"\x12\x00" * 2_000_000))
        assert at.send(empty, **PROTOBUF).status == 413
        fewer = b"\x0a" + wire._sized(b"\x12" + wire._sized(b"\x12\x00" * 100_000))
        assert ExportTraceServiceResponse.FromString(at.send(fewer, **PROTOBUF).body).partial_success.rejected_spans == 100_000
        for part in (b"{}", b"0", b'{"attributes":[]}'):
            body = b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b",".join([part] * (4_000_000 // (len(part) + 1))) + b"]}]}]}"
            assert at.send(body).status in (200, 413)
        assert at.send(request(span(1))).status == 200
        peak = _peak(process)
        print(f"peak {peak:,} kB, {before:,} kB at the start")
        assert peak < 300_000
    finally:
        process.kill()
        process.communicate()


def test_only_this_machine_is_let_in_without_a_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can reach the receiver can write calls."""
    monkeypatch.setenv("VOIGHT_LEDGER", str(tmp_path / "ledger.db"))
    monkeypatch.delenv("VOIGHT_OTLP_TOKEN", raising=False)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.com"):
        assert main(["otlp", "--host", host, "--port", "0"]) == 1
        assert "VOIGHT_OTLP_TOKEN" in capsys.readouterr().err
    assert main(["otlp", "--token", "short"]) == 1
    assert "16 characters" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(
    receiving: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sentence."""
    monkeypatch.setenv("VOIGHT_LEDGER", str(tmp_path / "ledger.db"))
    port = str(urlsplit(receiving().url).port)
    assert main(["otlp", "--port", port]) == 1
    assert "cannot listen" in capsys.readouterr().err


def test_a_non_loopback_host_with_a_token_is_served(tmp_path: Path) -> None:
    """From the environment, where nobody else sees it."""
    process = _command(tmp_path, "--host", "0.0.0.0", "--port", "0", VOIGHT_OTLP_TOKEN=TOKEN)
    try:
        at = At(_ready(process).replace("0.0.0.0", "127.0.0.1"))
        assert at.send(request(span())).status == 401
        assert at.send(request(span()), authorization=f"Bearer {TOKEN}").status == 200
    finally:
        process.kill()
        process.communicate()


def test_many_senders_at_once_are_each_counted_once(receiving: Start) -> None:
    """Sixteen of them, each sending all of its spans twice."""
    one = receiving()
    statuses: list[int] = []

    def send(trace: int) -> None:
        for batch in range(4):
            sent = request(*(span(100 * batch + number, trace=trace) for number in range(1, 26)))
            statuses.extend(one.send(sent).status for _ in range(2))

    threads = [threading.Thread(target=send, args=(trace,)) for trace in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(statuses) == {200}
    assert len(one.calls()) == 1600


# -- fuzz ----------------------------------------------------------------------------------------------------------------------

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


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES, packing=st.sampled_from(["identity", "gzip", "torn gzip"]))
def test_no_body_is_too_strange(fuzzed: Any, body: tuple[bytes, bool], packing: str) -> None:
    """Any body is taken or refused; the receiver has no error of its own, and what it took can be priced and kept."""
    data, as_json = body
    if packing != "identity":
        data = gzip.compress(data)[: -5 if packing == "torn gzip" else None]
    kind = "application/json" if as_json else "application/x-protobuf"
    answer = fuzzed.send(data, content_type=kind, content_encoding="gzip" if packing != "identity" else "identity")

    assert answer.status in ((400,) if packing == "torn gzip" else (200, 400))
    if answer.status == 200 and not as_json:
        ExportTraceServiceResponse.FromString(answer.body)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One receiver for all of the fuzz run; afterwards its ledger holds what it took, and nothing was set aside."""
    one = Receiving(tmp_path_factory.mktemp("fuzz"))
    yield one
    calls = one.calls()
    assert len({call.call_id for call in calls}) == len(calls)
    assert one.meter.counters["internal_errors"] == 0
    assert not list(one.settings.journal.glob("rejected*"))
    one.stop()
