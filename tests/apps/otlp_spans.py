"""Spans to send, and a receiver to send them to."""

from __future__ import annotations

import http.client
import json
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from voight_middleware.config.settings import Settings
from voight_middleware.ledger import open_ledger
from voight_middleware.otlp.receiver import Server
from voight_middleware.pipeline.meter import Meter
from voight_middleware.records.call import Call

CHAT = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-5-nano",
    "gen_ai.response.model": "gpt-5-nano-2025-08-07",
    "gen_ai.usage.input_tokens": 110,
    "gen_ai.usage.output_tokens": 50,
    "gen_ai.usage.cache_read.input_tokens": 100,
    "user.id": "u_1",
}
PROTOBUF = {"content_type": "application/x-protobuf"}


class Answer:
    """What the receiver has answered."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.body = answer.read()

    @property
    def json(self) -> Any:
        """The body of a JSON answer."""
        return json.loads(self.body)


class Receiving:
    """A receiver in a thread of this process."""

    def __init__(self, folder: Path, token: str | None = None) -> None:
        self.settings = Settings.from_environment(ledger=folder / "ledger.db", environ={})
        self.meter = Meter(self.settings)
        self.server = Server(self.meter, port=0, token=token)
        self.url = self.server.url
        self._thread = threading.Thread(target=self.server.serve, daemon=True)
        self._thread.start()

    def connect(self) -> http.client.HTTPConnection:
        """A connection to it."""
        return http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=300)

    def send(self, body: bytes | Any, path: str = "/v1/traces", method: str = "POST", **headers: str) -> Answer:
        """Send a body; one that is no bytes as JSON."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        given = {"content_type": "application/json", **headers}
        connection = self.connect()
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in given.items()})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def calls(self) -> list[Call]:
        """What is in the ledger."""
        assert self.meter.flush(30)
        ledger = open_ledger(self.settings.ledger)
        try:
            return list(ledger.calls())
        finally:
            ledger.close()

    def stop(self) -> None:
        """End as at SIGTERM."""
        self.begin_to_stop()
        self._thread.join(30)
        assert not self._thread.is_alive(), "the receiver did not stop"

    def begin_to_stop(self) -> None:
        """Let it end, and do not wait for it."""
        self.server.stop()


def value(of: Any) -> dict[str, Any]:
    """A value in OTLP's JSON."""
    if isinstance(of, bool):
        return {"boolValue": of}
    if isinstance(of, int):
        return {"intValue": str(of)}
    if isinstance(of, float):
        return {"doubleValue": of}
    return {"stringValue": of}


def span(
    number: int = 1, parent: int | None = None, *, trace: int = 7, offset: float = 0.0, seconds: float = 1.0, **more: Any
) -> dict[str, Any]:
    """A span in OTLP's JSON, a minute ago."""
    start = time.time_ns() - 60_000_000_000 + int(offset * 1e9)
    attributes = more.pop("attributes", CHAT)
    made = {
        "traceId": f"{trace:032x}",
        "spanId": f"{number:016x}",
        "name": "chat",
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(start + int(seconds * 1e9)),
        "attributes": [{"key": key, "value": value(of)} for key, of in attributes.items()],
        **more,
    }
    return made if parent is None else {**made, "parentSpanId": f"{parent:016x}"}


def request(*spans: dict[str, Any], scope: str = "a.library", **resource: str) -> dict[str, Any]:
    """An ExportTraceServiceRequest in JSON."""
    attributes = [{"key": key.replace("__", "."), "value": value(of)} for key, of in resource.items()]
    return {"resourceSpans": [{"resource": {"attributes": attributes}, "scopeSpans": [{"scope": {"name": scope}, "spans": list(spans)}]}]}


def protobuf(*spans: dict[str, Any], scope: str = "a.library") -> bytes:
    """The same in protobuf."""
    message = ExportTraceServiceRequest()
    into = message.resource_spans.add().scope_spans.add()
    into.scope.name = scope
    for one in spans:
        made = into.spans.add(
            trace_id=bytes.fromhex(one["traceId"]),
            span_id=bytes.fromhex(one["spanId"]),
            parent_span_id=bytes.fromhex(one.get("parentSpanId", "")),
            name=one["name"],
            start_time_unix_nano=int(one["startTimeUnixNano"]),
            end_time_unix_nano=int(one["endTimeUnixNano"]),
        )
        for pair in one["attributes"]:
            ((kind, of),) = pair["value"].items()
            names = {"intValue": "int_value", "boolValue": "bool_value", "doubleValue": "double_value", "stringValue": "string_value"}
            made.attributes.append(KeyValue(key=pair["key"], value=AnyValue(**{names[kind]: int(of) if kind == "intValue" else of})))
    return message.SerializeToString()
