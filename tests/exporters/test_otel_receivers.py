"""
What real receivers make of spans and metrics. Each is installed from its package registry into an environment of its own, as they do not
agree with each other on their dependencies: rotel (an OpenTelemetry collector), ddapm-test-agent (Datadog's), Prometheus (Debian's package)
and Arize Phoenix.

They run where ``VOIGHT_RECEIVERS`` names them (``rotel,ddapm-test-agent,prometheus,arize-phoenix``), as tox's environments ``receivers``
and, for the last one, which needs 700 MB, ``receivers-phoenix`` do.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import CollectorRegistry

import voight_middleware as voight
from voight_middleware.exporters.otel.metrics import OTelMetrics
from voight_middleware.exporters.otel.spans import OTelSpans
from voight_middleware.exporters.prometheus import PrometheusMetrics, prometheus_text

from ..support.authorities import of_the_system

WANTED = os.environ.get("VOIGHT_RECEIVERS", "").split(",")
HELLO: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}

Tool = Callable[[str], Path]

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(1500)]  # most of it is the installation


@pytest.fixture
def tool(request: pytest.FixtureRequest) -> Tool:
    """Installs a tool, once; answers the folder that it is in."""

    def install(name: str) -> Path:
        if name not in WANTED:
            pytest.skip(f"VOIGHT_RECEIVERS does not name {name}")
        folder = Path(os.environ.get("TOX_ENV_DIR") or request.config.cache.mkdir("voight")) / "receivers" / name
        if not (folder / "installed").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            if name == "prometheus":
                _debian_package(name, folder)
            else:
                subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
                subprocess.run([folder / "bin" / "pip", "install", "--quiet", name], env=of_the_system(), check=True, timeout=1200)
            (folder / "installed").touch()
        return folder

    return install


def _debian_package(name: str, folder: Path) -> None:
    """Unpack one into a folder: nothing is installed. A fresh machine has no lists of packages, and only root can fetch them."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip(f"{name} comes as a package of Debian, and there is no apt-get here")

    def apt(*arguments: str) -> str:
        done = subprocess.run(["apt-get", "--quiet=2", *arguments], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        return "" if done.returncode == 0 else (done.stderr.strip() or "it failed").splitlines()[-1]

    if apt("download", name):
        apt("update")
        if said := apt("download", name):
            pytest.skip(f"apt-get cannot download {name}: {said}")
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg", "-x", package, folder], check=True, timeout=60)


@contextlib.contextmanager
def _running(command: list[Any], url: str, seconds: float = 100, **more: Any) -> Iterator[None]:
    """A server, from when *url* answers."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, **more)
        try:
            _until(lambda: _answers(url) or process.poll() is not None, seconds)
            assert process.poll() is None, f"{command[0]} did not start"
            yield
        except BaseException:
            log.seek(0)
            print(log.read().decode(errors="replace")[-5000:])  # shown with the failed test
            raise
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def _until(found: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # not there yet
            if what := found():
                return what
        time.sleep(0.1)
    raise AssertionError("nothing came")


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _calls(client: openai.OpenAI) -> None:
    """One whole, one streamed and one that fails."""
    with voight.tag(user_id="u_7", plan="pro", tenant_id="t_1", session_id="s_1", feature="summary"):
        client.chat.completions.create(**HELLO)
        list(client.chat.completions.create(**HELLO, stream=True))
        with pytest.raises(openai.APIStatusError):
            client.chat.completions.create(**HELLO, extra_headers={"x-loopback-status": "500"})


def _traced(endpoint: str, project: str = "voight-test") -> TracerProvider:
    resource = Resource.create({"service.name": "voight-test", "openinference.project.name": project})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return provider


class _Sink(BaseHTTPRequestHandler):
    """What a collector sends on to."""

    got: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        """Keep it."""
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.got.append((self.path, body))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def _sink() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    got: list[tuple[str, bytes]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Sink", (_Sink,), {"got": got}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_collector(tool: Tool, listening: Any, openai_client: openai.OpenAI) -> None:
    """Spans and metrics pass through an OpenTelemetry collector, and come out as they went in."""
    agent = next((tool("rotel") / "lib").glob("*/site-packages/rotel/rotel-agent"))
    port = _port()
    with _sink() as (sink, got):
        command = [agent, "start", "--otlp-http-endpoint", f"127.0.0.1:{port}", "--otlp-grpc-endpoint", f"127.0.0.1:{_port()}"]
        command += ["--exporter", "otlp", "--otlp-exporter-endpoint", sink, "--otlp-exporter-protocol", "http"]
        with _running(command, f"http://127.0.0.1:{port}/"):
            provider = _traced(f"http://127.0.0.1:{port}/v1/traces")
            reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"http://127.0.0.1:{port}/v1/metrics"), 3_600_000)
            meters = MeterProvider([reader], shutdown_on_exit=False)
            spans = OTelSpans(provider)
            listened = listening(spans, OTelMetrics(meters))
            _calls(openai_client)
            assert spans.flush(30)
            calls = listened.flush()
            provider.shutdown()
            meters.shutdown()

            def exported() -> dict[str, dict[str, Any]]:
                requests = [ExportTraceServiceRequest.FromString(body) for path, body in got if path == "/v1/traces"]
                found = [span for one in requests for part in one.resource_spans for scope in part.scope_spans for span in scope.spans]
                said = [{one.key: one.value for one in span.attributes} for span in found]
                return {one["voight.call_id"].string_value: one for one in said}

            def measured() -> set[str]:
                requests = [ExportMetricsServiceRequest.FromString(body) for path, body in got if path == "/v1/metrics"]
                return {
                    metric.name
                    for one in requests
                    for part in one.resource_metrics
                    for scope in part.scope_metrics
                    for metric in scope.metrics
                }

            _until(lambda: len(exported()) == 3 and len(measured()) == 6)
            for call in calls:
                said = exported()[call.call_id]
                assert Decimal(said["voight.cost_usd"].string_value) == call.cost_usd
                assert said["user.id"].string_value == "u_7"
                if call.usage is not None:
                    assert said["gen_ai.usage.input_tokens"].int_value == call.usage.input_tokens
            assert "voight.client.cost" in measured()


def test_datadogs_test_agent(tool: Tool, listening: Any, openai_client: openai.OpenAI) -> None:
    """It takes the spans over OTLP/HTTP and shows them; what Datadog's own service makes of them it does not say."""
    port = _port()
    command = [tool("ddapm-test-agent") / "bin" / "ddapm-test-agent", "--host", "127.0.0.1", "--port", _port()]
    command += ["--otlp-http-port", port, "--otlp-grpc-port", _port(), "--web-ui-port", "0", "--disable-llmobs-data-forwarding"]
    with _running(command, f"http://127.0.0.1:{port}/test/session/traces"):
        provider = _traced(f"http://127.0.0.1:{port}/v1/traces")
        spans = OTelSpans(provider)
        listening(spans)
        _calls(openai_client)
        assert spans.flush(30)
        provider.shutdown()
        shown = _until(lambda: _get(f"http://127.0.0.1:{port}/test/session/traces"))

    text = json.dumps(shown)
    for expected in ("chat gpt-4o-mini", "gen_ai.conversation.id", "user.id", "u_7", "voight.cost_usd", "gen_ai.usage.input_tokens"):
        assert expected in text


def test_prometheus_scrapes(tool: Tool, tmp_path: Path, listening: Any, openai_client: openai.OpenAI) -> None:
    """A real Prometheus scrapes our text, and answers what a plan costs."""
    server = tool("prometheus") / "usr" / "bin" / "prometheus"
    registry = CollectorRegistry()
    listened = listening(PrometheusMetrics(registry, plans=("free", "pro")))
    _calls(openai_client)
    calls = listened.flush()

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = prometheus_text(registry)
            self.send_response(200)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    exposed = ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    thread = threading.Thread(target=exposed.serve_forever, args=(0.01,))
    thread.start()
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "scrape_configs: [{job_name: voight, scrape_interval: 1s, static_configs: "
        f"[{{targets: ['127.0.0.1:{exposed.server_address[1]}']}}]}}]"
    )
    at = f"127.0.0.1:{_port()}"
    command = [server, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}", f"--web.listen-address={at}"]
    try:
        with _running(command, f"http://{at}/-/ready"):
            query = f"http://{at}/api/v1/query?query="
            cost = _until(lambda: _get(query + "sum(voight_cost_usd_total)%20by%20(plan,model)")["data"]["result"], 60)
            ok = _get(query + "sum(voight_calls_total)%20by%20(outcome)")["data"]["result"]
            slow = _get(query + "histogram_quantile(0.95,sum(voight_duration_seconds_bucket)%20by%20(le))")["data"]["result"]
            labels = _get(f"http://{at}/api/v1/labels")["data"]
    finally:
        exposed.shutdown()
        thread.join()
        exposed.server_close()

    assert {one["metric"]["plan"] for one in cost} == {"pro"}
    assert sum(float(one["value"][1]) for one in cost) == pytest.approx(float(sum(call.cost_usd or 0 for call in calls)))
    assert {one["metric"]["outcome"]: one["value"][1] for one in ok} == {"ok": "2", "error": "1"}
    assert 0 < float(slow[0]["value"][1]) < 10
    assert not {"user_id", "tenant_id", "session_id"} & set(labels)


def test_arize_phoenix(tool: Tool, tmp_path: Path, listening: Any, openai_client: openai.OpenAI) -> None:
    """User, session, tokens and model are visible through Phoenix's API; our exact cost as an attribute, beside Phoenix' own figure."""
    port = _port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("OTEL", "PYTHON"))},
        "PHOENIX_WORKING_DIR": str(tmp_path),
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(_port()),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    with _running([tool("arize-phoenix") / "bin" / "phoenix", "serve"], f"http://127.0.0.1:{port}/healthz", seconds=200, env=environment):
        provider = _traced(f"http://127.0.0.1:{port}/v1/traces")
        spans = OTelSpans(provider)
        listened = listening(spans)
        _calls(openai_client)
        assert spans.flush(30)
        calls = listened.flush()
        provider.shutdown()
        pages = f"http://127.0.0.1:{port}/v1/projects/voight-test/spans"
        shown = _until(lambda: len(got := _get(pages)["data"]) == 3 and got)
        text = "{spans(first: 10) {edges {node {spanKind tokenCountTotal tokenCountPrompt statusCode userId}}}}"
        graph = "query {projects {edges {node {name ... on Project " + text + "}}}}"
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/graphql", json.dumps({"query": graph}).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            projects = json.load(answer)

    costs = {call.call_id: call.cost_usd for call in calls}
    for one in shown:
        said = one["attributes"]
        assert one["span_kind"] == "LLM"
        assert Decimal(said["voight.cost_usd"]) == costs[said["voight.call_id"]]
        assert (said["user.id"], said["session.id"], said["voight.tenant_id"]) == ("u_7", "s_1", "t_1")
        assert said["llm.model_name"].startswith("gpt-4o-mini")
    nodes = [edge["node"] for project in projects["data"]["projects"]["edges"] for edge in project["node"]["spans"]["edges"]]
    assert sorted(node["statusCode"] for node in nodes) in (["ERROR", "OK", "OK"], ["ERROR", "UNSET", "UNSET"])
    assert {node["userId"] for node in nodes} == {"u_7"}
    totals = sorted(
        (one.usage.input_tokens or 0) + (one.usage.output_tokens or 0) for one in calls if one.usage is not None and one.outcome == "ok"
    )
    assert sorted(node["tokenCountTotal"] for node in nodes if node["statusCode"] != "ERROR") == totals
