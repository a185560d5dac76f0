"""What the receiver bounds: a body's size, packed or not, and its parts, what waits, how long a sender takes, and how many there are."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from voight_middleware.otlp import framing, wire

from ..apps.otlp_spans import CHAT, PROTOBUF, Receiving, protobuf, request, span
from ..support.patching import Patch
from ..support.waiting import wait_until

Start = Callable[..., Receiving]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_unpacked_no_further_than_the_limit(receiving: Start, encoding: str) -> None:
    """A megabyte that would be a gigabyte: it is refused before its end, where its checksum would be found to be wrong."""
    one = receiving()
    packing = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    head = packing.flush(zlib.Z_FULL_FLUSH)
    megabyte = packing.compress(bytes(1 << 20)) + packing.flush(zlib.Z_FULL_FLUSH)
    bomb = head + megabyte * 1024 + b"\x03\x00" + bytes(8)
    answer = one.send(bomb, **PROTOBUF, content_encoding=encoding)

    assert len(bomb) < 2_000_000
    assert answer.status == 413


@pytest.mark.slow
def test_a_body_of_many_empty_members_is_refused(receiving: Start) -> None:
    """Four megabytes of nothing, 200,000 times packed: each member would be copied out of what is left."""
    one = receiving()
    assert one.send(gzip.compress(b"") * 200_000, **PROTOBUF, content_encoding="gzip").status == 413
    assert one.send(gzip.compress(b"") * 10 + gzip.compress(b"{}"), content_encoding="gzip").status == 200


def _nested(content: bytes, *fields: int) -> bytes:
    for field in reversed(fields):
        content = bytes([field << 3 | 2]) + wire._sized(content)
    return content


PARTS = {
    "resources": (b"\x0a\x00", ()),
    "scopes": (b"\x12\x00", (1,)),
    "attributes of a resource": (b"\x0a\x00", (1, 1)),
    "attributes of a scope": (b"\x12\x00", (1, 2, 1)),
    "spans": (b"\x12\x00", (1, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("part", "fields"), PARTS.values(), ids=PARTS)
def test_a_small_body_of_many_parts_is_refused(receiving: Start, patch: Patch, part: bytes, fields: tuple[int, ...]) -> None:
    """Sixteen kilobytes say millions of empty messages: they are counted and not made."""
    patch("MAX_PARTS", 4000)
    patch("MAX_SPANS", 4000)
    one = receiving()
    packed = gzip.compress(_nested(part * 1_000_000, *fields))
    assert len(packed) < 16_384
    assert one.send(packed, **PROTOBUF, content_encoding="gzip").status == 413
    assert one.send(protobuf(span()), **PROTOBUF).status == 200


@pytest.mark.slow
def test_parts_of_json_are_counted_outside_of_texts(receiving: Start, patch: Patch) -> None:
    """A prompt may have as many commas as it likes."""
    patch("MAX_JSON_PARTS", 1000)
    one = receiving()
    prompt = span(attributes={**CHAT, "gen_ai.prompt": 'a, "b", \\, ' * 500})
    assert one.send(request(prompt)).status == 200
    assert len(one.calls()) == 1
    for many in (b"{}", b"0", b'""'):
        body = b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b",".join([many] * 2000) + b"]}]}]}"
        assert one.send(body).status == 413


def _long_span(*parts: bytes) -> bytes:
    sent = ExportTraceServiceRequest.FromString(protobuf(span())).resource_spans[0].scope_spans[0].spans[0]
    return _nested(b"".join((*parts, sent.SerializeToString())), 1, 2, 2)


@pytest.mark.slow
def test_a_long_span_is_read_without_what_nobody_looks_at(receiving: Start) -> None:
    """A prompt of a megabyte, and the call that is beside it."""
    one = receiving()
    prompt = _nested(b"gen_ai.prompt", 1) + _nested(b"x" * 1_000_000, 2, 1)
    usage = _nested(b"gen_ai.input.messages", 1) + _nested(b"y" * 1_000, 2, 1)
    body = _long_span(_nested(prompt, 9), _nested(usage, 9) * 300, _nested(b"z" * 40_000, 13))
    assert one.send(body, **PROTOBUF).body == b""
    (call,) = one.calls()
    assert (call.tags.user_id, call.usage and call.usage.input) == ("u_1", 10)


@pytest.mark.slow
@pytest.mark.parametrize("part", [b"\x4a\x00", _nested(b"user.id", 9, 1), b"\x5a\x00"], ids=["empty", "wanted", "events"])
def test_a_span_with_too_much_in_it_is_refused_alone(receiving: Start, part: bytes) -> None:
    """Its parts are counted before they are made."""
    one = receiving()
    answer = one.send(gzip.compress(_long_span(part * 200_000)), **PROTOBUF, content_encoding="gzip")
    assert (answer.status, b"too many attributes or events" in answer.body) == (200, True)
    assert one.send(protobuf(span()), **PROTOBUF).body == b""


def test_what_cannot_be_used_keeps_no_message_in_memory() -> None:
    """An exception's traceback would."""
    decoded = wire.protobuf_decoder()(_nested(b"\x2a\x01x", 1, 2, 2))
    (unusable,) = decoded.spans
    assert isinstance(unusable, framing.Unusable)
    assert unusable.__traceback__ is None


@pytest.mark.slow
def test_a_request_has_so_much_time_and_no_more(receiving: Start, patch: Patch) -> None:
    """The sender hears how many of its spans were not looked at."""
    patch("MAX_SECONDS", -1.0)
    patch("_AT_ONCE", 2, within="intake")
    one = receiving()
    answer = one.send(request(*(span(number) for number in range(1, 6))))
    assert answer.json["partialSuccess"]["rejectedSpans"] == "3"
    assert "seconds of work" in answer.json["partialSuccess"]["errorMessage"]
    assert len(one.calls()) == 2


@pytest.mark.slow
def test_a_small_request_is_heard_between_the_slices_of_a_large_one(receiving: Start, patch: Patch) -> None:
    """A large one is under way, and waits in its worker until the small one has been answered."""
    patch("SMALL_BODY", 5000)
    patch("_AT_ONCE", 2, within="intake")
    one = receiving()
    intake = one.server.receiver._intake
    begun, answered = threading.Event(), threading.Event()
    right = intake.slices

    def slices(decoded: wire.Decoded, taken: Any) -> Any:
        for number, _ in enumerate(right(decoded, taken)):
            if decoded.count > 2 and number == 1:
                begun.set()
                yield
                assert answered.wait(30)
            yield

    intake.slices = slices  # type: ignore[method-assign]
    large = request(*(span(number) for number in range(1, 21)))
    assert len(json.dumps(large)) > 5000
    statuses: list[int] = []
    sender = threading.Thread(target=lambda: statuses.append(one.send(large).status))
    sender.start()
    assert begun.wait(30)
    small = threading.Thread(target=lambda: statuses.append(one.send(request(span(50))).status))
    small.start()
    wait_until(lambda: one.server.receiver._worker._work_queue.qsize() > 0 or statuses == [200])
    answered.set()
    sender.join(30)
    small.join(30)
    assert statuses == [200, 200]
    assert len(one.calls()) == 21


@pytest.mark.slow
def test_more_on_the_wire_than_is_taken_is_refused(receiving: Start, patch: Patch) -> None:
    """Also where nobody has said before how much it is."""
    patch("MAX_BODY", 10_000)
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


@pytest.mark.slow
def test_when_too_much_waits_senders_are_told_to_come_again(receiving: Start, monkeypatch: pytest.MonkeyPatch, patch: Patch) -> None:
    """429 with Retry-After; what they kept is taken later."""
    one = receiving()
    patch("MAX_WAITING", 10, within="receiver")
    answer = one.send(request(span()))
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    monkeypatch.undo()
    assert one.send(request(span())).status == 200
    assert one.server.receiver._waiting == 0


@pytest.mark.slow
def test_slow_senders_do_not_stay(receiving: Start, patch: Patch) -> None:
    """Half a body, half of the headers, and nothing at all."""
    patch("BODY_SECONDS", 0.1)
    patch("HEADER_SECONDS", 0.5)
    one = receiving()
    place = urlsplit(one.url)
    assert place.hostname is not None
    head = b"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n"
    for said, expected in ((head + b"\r\n{", b"HTTP/1.1 408"), (head, b""), (b"", b"")):
        with socket.create_connection((place.hostname, place.port or 0), timeout=10) as connection:
            connection.sendall(said)
            assert connection.recv(1000).startswith(expected)
            while connection.recv(1000):
                pass


@pytest.mark.slow
@pytest.mark.parametrize("said", [b"host: local", b"host: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"])
def test_half_open_connections_keep_nobody_out(receiving: Start, patch: Patch, said: bytes) -> None:
    """Of those of one address the oldest is closed, whether half of the headers is there or half of the body."""
    patch("MAX_IDLE", 3)
    patch("MAX_REQUESTS", 6)
    one = receiving()
    place = urlsplit(one.url)
    half = []
    for _ in range(20):
        half.append(socket.create_connection((place.hostname or "", place.port or 0), timeout=30))
        half[-1].sendall(b"POST /v1/traces HTTP/1.1\r\n" + said)
    assert one.send(request(span())).status == 200
    for connection in half[:15]:
        with contextlib.suppress(ConnectionResetError):  # it was closed before what was sent had been read
            assert connection.recv(100) == b""
    for connection in half:
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "LOCALHOST.:4318"}, 200),
        ({"host": "[::1]:4318"}, 200),
        ({"host": "127.8.9.1"}, 200),
        ({"origin": "http://localhost:3000"}, 200),
        ({"host": "evil.example:4318"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "127.0.0.1.nip.io"}, 403),
        ({"host": "192.168.0.5:4318"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
    ],
)
def test_a_page_in_a_browser_writes_no_calls(receiving: Start, headers: dict[str, str], status: int) -> None:
    """Its host's name may lead to this machine; only the name of this machine is one of ours."""
    one = receiving()
    answer = one.send(request(span()), **headers)
    assert answer.status == status
    assert status == 200 or "VOIGHT_OTLP_TOKEN" in answer.json["message"]
    for path in ("/v1/metrics", "/v1/logs"):
        assert one.send(b"{}", path, **headers).status == status


@pytest.mark.slow
def test_with_a_token_the_host_may_have_any_name(receiving: Start) -> None:
    """A page does not know the token."""
    one = receiving(token="a-token-of-some-length")
    headers = {"host": "otlp.internal", "authorization": "Bearer a-token-of-some-length"}
    assert one.send(request(span()), **headers).status == 200


def test_what_was_sent_drives_no_terminal(receiving: Start, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal quotes it in the log, where its control characters are escaped."""
    one = receiving()
    assert one.send(b"{}", content_type="text/\x9b31mred").status == 415
    assert "\\u009b31mred" in caplog.text


@pytest.mark.slow
def test_connections_are_bounded(receiving: Start, patch: Patch) -> None:
    """Beyond so many at once, a sender is told to come again; when they are gone, it is heard."""
    patch("MAX_REQUESTS", 5)
    one = receiving()
    place = urlsplit(one.url)
    idle = [socket.create_connection((place.hostname or "", place.port or 0)) for _ in range(5)]
    wait_until(lambda: one.send(request(span())).status == 503)
    for connection in idle:
        connection.close()
    wait_until(lambda: one.send(request(span())).status == 200)
