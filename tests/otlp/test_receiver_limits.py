"""What the receiver bounds: the size of a body, packed or not, what waits, how long a sender takes, and how many there are."""

from __future__ import annotations

import socket
import zlib
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from ..apps.otlp_spans import PROTOBUF, Receiving, request, span
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


def test_when_too_much_waits_senders_are_told_to_come_again(receiving: Start, monkeypatch: pytest.MonkeyPatch, patch: Patch) -> None:
    """429 with Retry-After; what they kept is taken later."""
    one = receiving()
    patch("MAX_WAITING", 10)
    answer = one.send(request(span()))
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    monkeypatch.undo()
    assert one.send(request(span())).status == 200
    assert one.server.receiver._waiting == 0


@pytest.mark.slow
def test_slow_senders_do_not_stay(receiving: Start, patch: Patch) -> None:
    """Half a body, half of the headers, and nothing at all."""
    patch("BODY_SECONDS", 0.1)
    patch("IDLE_SECONDS", 0.5)
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
