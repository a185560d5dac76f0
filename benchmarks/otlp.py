"""
What OpenTelemetry and listeners add to a metered call, how many spans `voight otlp` takes, and what
a signed header costs.

    pip install '.[demo,otel,otlp]'
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import openai
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from overhead import caller
from starlette.requests import Request

import voight_middleware as voight
from voight_middleware.config.settings import Settings
from voight_middleware.exporters.otel.metrics import OTelMetrics
from voight_middleware.exporters.otel.span_tags import CostTagSpanProcessor
from voight_middleware.exporters.otel.spans import OTelSpans
from voight_middleware.ledger import open_ledger
from voight_middleware.otlp.processor import CostSpanProcessor
from voight_middleware.pipeline.meter import Meter, add_observer, remove_observer, swap_meter
from voight_middleware.pipeline.observers import CallObserver
from voight_middleware.propagation import headers

SENDERS = 4
SPANS_IN_A_REQUEST = 512
"""As many as OpenTelemetry's own exporters put into one."""


class Nowhere(SpanExporter):
    """Takes every span and counts it."""

    count = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.count += len(spans)
        return SpanExportResult.SUCCESS


def provider(*processors: SpanProcessor, exporter: SpanExporter | None = None) -> TracerProvider:
    made = TracerProvider(shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(exporter or Nowhere(), max_queue_size=1_000_000))
    for processor in processors:
        made.add_span_processor(processor)
    return made


# -- a call ----------------------------------------------------------------------------------------


class Way:
    """
    One way to make the same call: with a meter of its own, and with what watches it only while it
    is measured.
    """

    def __init__(
        self,
        folder: Path,
        call: Callable[[], None],
        *listeners: Any,
        watchers: Sequence[CallObserver] = (),
    ) -> None:
        self.call = call
        self.meter = Meter(
            Settings.from_environment(ledger=folder / "ledger.db", environ={}), listeners
        )
        self.watchers = watchers
        self.taken: list[float] = []

    def measure(self) -> None:
        """CPU microseconds of this thread for one call."""
        outer = swap_meter(self.meter)
        for watcher in self.watchers:
            add_observer(watcher)
        begin = time.thread_time_ns()
        self.call()
        self.taken.append((time.thread_time_ns() - begin) / 1e3)
        for watcher in self.watchers:
            remove_observer(watcher)
        swap_meter(outer)


def registered(make: Callable[[], Any]) -> tuple[Any, list[CallObserver]]:
    """A span processor, and what it watches calls with, which it does no more."""
    seen = Meter(Settings.from_environment(environ={"VOIGHT_ENABLED": "0"}))
    outer = swap_meter(seen)
    before = seen.observers.present
    made = make()
    watchers = [one for one in seen.observers.present if one not in before]
    for one in watchers:
        remove_observer(one)
    swap_meter(outer)
    return made, watchers


def calls(count: int, folder: Path) -> None:
    """
    Print what each way to listen adds to a metered call. All ways make one call each, in an order
    by chance, again and again.
    """
    bare, metered = caller(openai, False, False), caller(openai, False, True)
    tags, tagging = registered(CostTagSpanProcessor)
    spans_in, metering = registered(CostSpanProcessor)
    provider(spans_in)
    exporter = Nowhere()
    traced = provider(exporter=exporter)
    spans, spans_and_tags = OTelSpans(traced), OTelSpans(provider(tags))
    ways = {
        "bare SDK": Way(folder / "0", bare),
        "metered": Way(folder / "1", metered),
        "metered, once more": Way(folder / "2", metered),
        "+ a listener": Way(folder / "3", metered, lambda _call: None),
        "+ OTelMetrics": Way(
            folder / "4",
            metered,
            OTelMetrics(MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)),
        ),
        "+ OTelSpans, no provider": Way(folder / "5", metered, OTelSpans()),
        "+ OTelSpans": Way(folder / "6", metered, spans),
        "+ OTelSpans, CostTag…": Way(folder / "7", metered, spans_and_tags, watchers=tagging),
        "+ CostSpanProcessor": Way(folder / "8", metered, watchers=metering),
    }
    order, chance = list(ways.values()), random.Random(8)
    for number in range(count + 1):
        chance.shuffle(order)
        for way in order:
            way.measure()
        # What is done behind the calls is done here, and the first calls are not counted.
        if number % 200 == 0:
            for way in order:
                way.meter.flush(30)
                if number == 0:
                    way.taken.clear()
    for way in order:
        way.meter.flush(30)
    assert spans.flush(30)
    assert traced.force_flush()
    assert exporter.count == count + 1, f"{exporter.count} spans of {count + 1} calls"
    print(f"caller's thread, CPU microseconds; {count} calls of each way, all in turn\n")
    print(f"{'':<26} {'least':>7} {'added':>7} {'median':>8} {'added':>7} {'ratio':>6}")
    least, median = min(ways["metered"].taken), statistics.median(ways["metered"].taken)
    for name, way in ways.items():
        added = statistics.median(
            one - base for one, base in zip(way.taken, ways["metered"].taken, strict=True)
        )
        print(
            f"{name:<26} {min(way.taken):7.0f} {min(way.taken) - least:+7.0f} "
            f"{statistics.median(way.taken):8.0f} {added:+7.0f}"
            f" {1 + added / median:6.2f}"
        )
        way.meter.close()


def others_spans(rounds: int = 40) -> None:
    """Print what our processors add to a span that is no call of a model."""
    ways: dict[str, tuple[SpanProcessor, ...]] = {
        "alone": (),
        "CostTagSpanProcessor": (registered(CostTagSpanProcessor)[0],),
        "CostSpanProcessor": (registered(CostSpanProcessor)[0],),
    }
    print("\nany other span, start and end, CPU microseconds\n")
    with voight.tag(user_id="u_1", plan="pro", tenant_id="t_1"):
        tracers = {
            name: provider(*processors).get_tracer("benchmark") for name, processors in ways.items()
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, tracer in tracers.items():
                begin = time.thread_time()
                for _ in range(1000):
                    tracer.start_span("GET /").end()
                taken[name].append((time.thread_time() - begin) * 1e3)
    for name, one in taken.items():
        print(f"{name:<26} {min(one):7.1f} {statistics.median(one):8.1f}")


# -- the receiver ----------------------------------------------------------------------------------


def batch(number: int, packed: bool) -> bytes:
    """A request with as many calls, of no other request."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    scope.scope.name = "an.instrumentor"
    now = time.time_ns() - 10_000_000_000
    for index in range(SPANS_IN_A_REQUEST):
        said: dict[str, str | int] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-5-nano",
            "gen_ai.response.model": "gpt-5-nano-2025-08-07",
            "gen_ai.response.id": f"chatcmpl-{number}-{index}",
            "gen_ai.usage.input_tokens": 110,
            "gen_ai.usage.output_tokens": 50,
            "user.id": f"u_{index}",
        }
        span = scope.spans.add(
            trace_id=(number + 1).to_bytes(16),
            span_id=(index + 1).to_bytes(8),
            name="chat gpt-5-nano",
            start_time_unix_nano=now + index,
            end_time_unix_nano=now + index + 2_000_000_000,
        )
        for key, of in said.items():
            value = AnyValue(int_value=of) if isinstance(of, int) else AnyValue(string_value=of)
            span.attributes.append(KeyValue(key=key, value=value))
    return gzip.compress(request.SerializeToString(), 1) if packed else request.SerializeToString()


class Server:
    """`voight otlp` in a process of its own, with an empty ledger."""

    def __init__(self, folder: Path) -> None:
        self.ledger = folder / "ledger.db"
        self.cpu = 0.0
        """Seconds, when it has ended."""
        self.peak = 0
        """Bytes of memory at most, when it has ended."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("VOIGHT_")}
        source = (
            "import sys; from voight_middleware.cli import main; sys.exit(main(['otlp', '--port', "
            "'0']))"
        )
        command = [sys.executable, "-c", source]
        self._process = subprocess.Popen(
            command,
            env={**kept, "VOIGHT_LEDGER": str(self.ledger)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        assert "receiving spans at" in line, line
        self.host = urlsplit(line.split()[4]).netloc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        assert self._process.stderr is not None
        self._process.stderr.close()
        self.cpu = used.ru_utime + used.ru_stime
        self.peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def send(self, bodies: Iterator[bytes], packed: bool) -> int:
        """Over one connection; answers how often it was told to come again."""
        again = 0
        connection = http.client.HTTPConnection(self.host, timeout=300)
        sent = {
            "content-type": "application/x-protobuf",
            **({"content-encoding": "gzip"} if packed else {}),
        }
        for body in bodies:
            while True:
                connection.request("POST", "/v1/traces", body, sent)
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    break
                assert answer.status in (429, 503), answer.status
                again += 1
                time.sleep(float(answer.headers["retry-after"]))
        connection.close()
        return again


def send_all(server: Server, bodies: list[bytes], packed: bool) -> int:
    """Over several connections at once; answers how often they were told to come again."""
    waits: list[int] = []
    threads = [
        threading.Thread(
            target=lambda first=first: waits.append(
                server.send(iter(bodies[first::SENDERS]), packed)
            )
        )
        for first in range(SENDERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(waits) == SENDERS, "a sender has failed"
    return sum(waits)


def kept_calls(server: Server) -> int:
    with closing(open_ledger(str(server.ledger))) as ledger:
        return sum(group.calls for group in ledger.spend())


def flood(requests: int) -> None:
    """
    Print what the receiver does with spans as fast as they come, until all are priced and in the
    ledger.
    """
    print(
        f"\nvoight otlp: {requests} requests of {SPANS_IN_A_REQUEST} spans over {SENDERS} "
        "connections, as fast as they are taken\n"
    )
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as idle:
        pass
    print(
        f"{'':<26} {'taken/s':>8} {'priced and kept/s':>18} {'CPU us/span':>12} "
        f"{'told to wait':>13} {'peak MB':>8}"
    )
    for packed in (False, True):
        bodies = [batch(number, packed) for number in range(requests)]
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            with Server(Path(folder)) as server:
                begin = time.perf_counter()
                waits = send_all(server, bodies, packed)
                taken = time.perf_counter() - begin
                spans = requests * SPANS_IN_A_REQUEST
                while (found := kept_calls(server)) < spans:
                    assert time.perf_counter() - begin < 900, (
                        f"{found} calls of {spans} are in the ledger"
                    )
                    time.sleep(0.5)
                kept = time.perf_counter() - begin
            assert found == spans, f"{found} calls of {spans} are in the ledger"
            print(
                f"{'protobuf, gzip' if packed else 'protobuf':<26} {spans / taken:8,.0f} "
                f"{spans / kept:18,.0f}"
                f" {(server.cpu - idle.cpu) / spans * 1e6:12.0f} {waits:13} "
                f"{server.peak / 1e6:8.0f}"
            )
    print(f"{'idle':<26} {'':8} {'':18} {'':12} {'':13} {idle.peak / 1e6:8.0f}")


# -- the signed header -----------------------------------------------------------------------------


def signed(folder: Path) -> None:
    """Print what the header costs: to sign, not to send, to verify, to ask again."""
    settings = Settings.from_environment(
        ledger=folder / "ledger.db", environ={"VOIGHT_HEADER_KEY": "k" * 32}
    )
    meter = Meter(settings)
    outer = swap_meter(meter)
    ours, sent = {"reports.internal"}, dict[str, str]()
    getter = voight.tags_from_signed_headers("user_id")
    with voight.tag(user_id="u_12345", plan="pro", tenant_id="acme", feature="summary"):
        voight.inject_headers(sent, url="https://reports.internal/x?y=1", hosts=ours)
        request = Request(
            {"type": "http", "headers": [(headers.HEADER.encode(), sent[headers.HEADER].encode())]}
        )
        assert getter(request) == "u_12345"

        def verify() -> None:
            headers._read.cache_clear()
            getter(request)

        ways: dict[str, Callable[[], object]] = {
            "sign, and put it in": lambda: voight.inject_headers(
                {}, url="https://reports.internal/x?y=1", hosts=ours
            ),
            "a host that is not named": lambda: voight.inject_headers(
                {}, url="https://api.openai.com/v1", hosts=ours
            ),
            "verify": verify,
            "verify, asked once more": lambda: getter(request),
        }
        print("\na signed header with four tags, CPU microseconds\n")
        for name, way in ways.items():
            taken = [
                one / 5000 * 1e6
                for one in timeit.repeat(way, timer=time.thread_time, number=5000, repeat=7)
            ]
            print(f"{name:<26} {min(taken):7.1f} {statistics.median(taken):8.1f}")
    swap_meter(outer)
    meter.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=3000, help="of each way (default: 3000)")
    parser.add_argument("--requests", type=int, default=400, help="to the receiver (default: 400)")
    options = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, openai {openai.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        calls(options.calls, Path(folder))
        others_spans()
        signed(Path(folder) / "signed")
    flood(options.requests)


if __name__ == "__main__":
    main()
