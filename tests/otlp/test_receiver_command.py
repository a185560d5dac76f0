"""``voight otlp`` as a process: signals, its death, its memory, and whom it lets in."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from voight_middleware.cli import main
from voight_middleware.ledger import open_ledger
from voight_middleware.otlp import framing, wire

from ..apps.otlp_spans import PROTOBUF, Receiving, protobuf, request, span
from ..support.depth import times
from ..support.waiting import wait_until

Start = Callable[..., Receiving]
TOKEN = "a-token-of-some-length"


SOURCE = """
import sys
from voight_middleware.cli import main
shrink = int(sys.argv[1])
if shrink > 1:
    import voight_middleware.otlp.receiver
    limits = {"MAX_UNPACKED", "MAX_JSON", "MAX_SPANS", "MAX_PARTS", "MAX_JSON_PARTS"}
    for module in [module for name, module in sys.modules.items() if name.startswith("voight_middleware.")]:
        for name in limits & vars(module).keys():
            setattr(module, name, vars(module)[name] // shrink)
sys.exit(main(["otlp", *sys.argv[2:]]))
"""


def _command(folder: Path, *arguments: str, shrink: int = 1, **environ: str) -> subprocess.Popen[str]:
    """Start a receiver with limits that are shrunk by so much."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VOIGHT_")}
    return subprocess.Popen(
        [sys.executable, "-c", SOURCE, str(shrink), *arguments],
        env={**kept, "VOIGHT_LEDGER": str(folder / "ledger.db"), **environ},
        stderr=subprocess.PIPE,
        text=True,
    )


def _ready(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "receiving spans at" in line, line
    return line.split()[4].removesuffix("/v1/traces,")


def _listens(url: str) -> bool:
    place = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((place.hostname or "", place.port or 0)) == 0


class At(Receiving):
    """A receiver in another process."""

    def __init__(self, url: str) -> None:
        self.url = url


@pytest.mark.server
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
        connection.putheader("expect", "100-continue")
        connection.endheaders()
        assert connection.sock.recv(1000).startswith(b"HTTP/1.1 100")  # it reads the body
        connection.send(body[:50])
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not _listens(at.url))
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


@pytest.mark.server
def test_kill_9_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    """What was answered with 200 is in the journal, and in the ledger as soon as anybody looks."""
    process = _command(tmp_path, "--port", "0")
    try:
        at = At(_ready(process))
        answered = sum(at.send(request(*(span(100 * batch + number) for number in range(1, 51)))).status == 200 for batch in range(4))
        process.kill()
    finally:
        process.kill()
        process.communicate()
    assert answered == 4
    assert main(["spend", "--ledger", str(tmp_path / "ledger.db"), "--format", "json"]) == 0
    ledger = open_ledger(str(tmp_path / "ledger.db"))
    assert len(list(ledger.calls())) == 200
    ledger.close()


def _peak(process: subprocess.Popen[str]) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _in_scope(content: bytes) -> bytes:
    return b"\x0a" + wire._sized(b"\x12" + wire._sized(content))


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_memory_is_bounded_by_the_body_and_not_by_what_is_in_it(tmp_path: Path) -> None:
    """
    As many spans as are taken, and millions of empty messages and values: taken or refused, below 200 MB. The default run has an eighth
    of each, and limits of an eighth. What is remembered of the last spans does not shrink.
    """
    shrink = times(8, 1)
    process = _command(tmp_path, "--port", "0", shrink=shrink)
    try:
        at = At(_ready(process))
        assert at.send(request(span(1))).status == 200
        before = _peak(process)
        sent = ExportTraceServiceRequest.FromString(protobuf(span(attributes={}))).resource_spans[0].scope_spans[0].spans[0]
        head, _, tail = sent.SerializeToString().partition(sent.span_id)
        count = framing.MAX_SPANS // shrink
        spans = b"".join(b"\x12" + bytes([len(raw)]) + raw for number in range(count) if (raw := head + (number + 1).to_bytes(8) + tail))
        assert at.send(gzip.compress(_in_scope(spans), 1), **PROTOBUF, content_encoding="gzip").status == 200
        for empty in (b"\x0a\x00", b"\x12\x00"):  # a scope's attribute, a span
            assert at.send(gzip.compress(_in_scope(empty * (20_000_000 // shrink)), 1), **PROTOBUF, content_encoding="gzip").status == 413
        long = b"\x12" + wire._sized(b"\x4a\x00" * 100_000)  # a span of empty attributes
        assert at.send(gzip.compress(_in_scope(long * (300 // shrink)), 1), **PROTOBUF, content_encoding="gzip").status == 200
        fewer = _in_scope(b"\x12\x00" * count)
        assert ExportTraceServiceResponse.FromString(at.send(fewer, **PROTOBUF).body).partial_success.rejected_spans == count
        for part in (b"{}", b"0", b'{"attributes":[]}'):
            parts = 4_000_000 // shrink // (len(part) + 1)
            body = b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b",".join([part] * parts) + b"]}]}]}"
            assert at.send(body).status in (200, 413)
        assert at.send(request(span(1))).status == 200
        grown = _peak(process) - before
        print(f"{before:,} kB, and {grown:,} kB more")
        assert grown < 60_000 + 130_000 // shrink
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


@pytest.mark.slow
def test_a_port_that_is_taken_is_said(
    receiving: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sentence."""
    monkeypatch.setenv("VOIGHT_LEDGER", str(tmp_path / "ledger.db"))
    port = str(urlsplit(receiving().url).port)
    assert main(["otlp", "--port", port]) == 1
    assert "cannot listen" in capsys.readouterr().err


@pytest.mark.server
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
