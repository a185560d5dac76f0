"""Recorded provider traffic from the folder ``shared``, read and replayed over loopback."""

import gzip
import json
import threading
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from voight_middleware.records.call import Call

CASSETTES = Path(__file__).parents[3] / "shared" / "cassettes"
ENDPOINTS = {"/chat/completions": "chat", "/responses": "responses", "/embeddings": "embeddings", "/messages": "messages"}

_KEPT = ("content-type", "x-request-id", "request-id", "openai-", "anthropic-", "retry-", "x-should-retry")


@dataclass(frozen=True)
class Recording:
    """One recorded call: where it is, and the row that the index has for it."""

    file: str
    position: int
    row: dict[str, Any]

    def __str__(self) -> str:
        return f"{Path(self.file).name}-{self.position}"

    @property
    def endpoint(self) -> str | None:
        """The dialect, where it is one of the four that this library reads."""
        path = self.row["endpoint"].partition("?")[0]
        return next((name for end, name in ENDPOINTS.items() if path.endswith(end)), None)

    @property
    def streamed(self) -> bool:
        return bool(self.row["stream"])


@dataclass(frozen=True)
class Exchange:
    """What was sent and answered, with the transport's own encodings undone."""

    request: dict[str, Any]
    status: int
    headers: dict[str, str]
    body: bytes


def index() -> list[Recording]:
    """Every recorded call; empty where the folder is not there."""
    place = CASSETTES / "index.json"
    files = json.loads(place.read_text())["files"] if place.is_file() else []
    return [Recording(file["file"], at, row) for file in files for at, row in enumerate(file.get("calls", ()))]


def load(recording: Recording) -> Exchange:
    """Read one recorded call, whichever tool wrote it."""
    return _file(recording.file)[recording.row["index"]]


@cache
def _file(name: str) -> list[Exchange]:
    place = CASSETTES / name
    if place.suffix in (".sse", ".txt", ".bin"):  # a bare body
        body = place.read_bytes()
        return [Exchange({}, 200, {"content-type": "text/event-stream" if b"data:" in body else "application/json"}, body)]
    if place.suffix == ".json":
        return [_exchange(json.loads(place.read_text()))]
    read = yaml.load(place.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return [_exchange(one) for one in read["interactions"]]


def _exchange(one: dict[str, Any]) -> Exchange:
    request, response = one["request"], one["response"]
    sent = request.get("parsed_body")
    if sent is None:
        try:
            sent = json.loads(request.get("body") or "{}")
        except ValueError:  # an uploaded file
            sent = {}
    status = response["status"]["code"] if "status" in response else response["status_code"]
    headers = {name.lower(): value[0] if isinstance(value, list) else value for name, value in response["headers"].items()}
    kept = {name: value for name, value in headers.items() if name.startswith(_KEPT)}
    body = _body(response)
    kept.setdefault("content-type", "text/event-stream" if body.lstrip().startswith((b"data:", b"event:")) else "application/json")
    return Exchange(sent if isinstance(sent, dict) else {}, status, kept, body)


def _body(response: dict[str, Any]) -> bytes:
    if "parsed_body" in response:
        return json.dumps(response["parsed_body"]).encode()
    body = response["body"] if "body" in response else response["content"]
    if isinstance(body, dict):
        body = body["string"]
    body = body.encode() if isinstance(body, str) else body
    return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body


class Replay:
    """
    A provider that answers with recordings, byte for byte: the URL says which, ``http://127.0.0.1:PORT/c/NUMBER/…``.

    An answer of server-sent events is sent one event at a time.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        """What the SDKs have sent."""
        self._exchanges: list[Exchange] = []
        replay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers.get("content-length", 0)))
                replay.bodies.append(json.loads(sent))
                replay._answer(self, replay._exchanges[int(self.path.split("/")[2])])

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def url(self, exchange: Exchange) -> str:
        """The base URL under which every request is answered with *exchange*."""
        self._exchanges.append(exchange)
        return f"http://127.0.0.1:{self._server.server_port}/c/{len(self._exchanges) - 1}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, exchange: Exchange) -> None:
        handler.send_response(exchange.status)
        for name, value in exchange.headers.items():
            handler.send_header(name, value)
        if not exchange.headers["content-type"].startswith("text/event-stream"):
            handler.send_header("content-length", str(len(exchange.body)))
            handler.end_headers()
            handler.wfile.write(exchange.body)
            return
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        for event in exchange.body.replace(b"\r\n", b"\n").split(b"\n\n"):
            if event.strip():
                handler.wfile.write(b"%x\r\n%s\n\n\r\n" % (len(event) + 2, event))
        handler.wfile.write(b"0\r\n\r\n")


# -- what was recorded, and what comes of it

RECORDINGS = [one for one in index() if one.endpoint is not None and one.row["method"] == "POST"]
SERVED = [one for one in RECORDINGS if one.row["http_status"] == 200]


def counts(call: Call) -> dict[str, Any]:
    """The counts of a call in the terms of the index, those of the provider itself."""
    usage = call.usage
    assert usage is not None
    if call.endpoint != "messages":
        return {
            "input": usage.input_tokens,
            "output": usage.output_tokens or 0,
            "cached_input": usage.cache_read or 0,
            "cache_write": usage.cache_write_tokens or 0,
            "reasoning": usage.reasoning or 0,
            "audio_in": usage.audio_in or 0,
            "audio_out": usage.audio_out or 0,
        }
    return {
        "input": usage.input,
        "output": usage.output,
        "cache_read": usage.cache_read or 0,
        "cache_write": usage.cache_write_tokens or 0,
        "cache_write_5m": usage.cache_write_5m or 0,
        "cache_write_1h": usage.cache_write_1h or 0,
        "web_search": (usage.tools or {}).get("web_search", 0),
        "web_fetch": (usage.tools or {}).get("web_fetch", 0),
    }


_THOUGHTS = {35: 109 - 35, 66: 100 - 66}
"""Output by input of the calls to Gemini's OpenAI endpoint: thoughts are in total_tokens only, which the index leaves out."""


def expected_of(recording: Recording) -> dict[str, Any]:
    """The counts of the index; of the iterations of a message all are billed, and not its top level."""
    expected = dict(recording.row["expected"])
    if "generativelanguage.googleapis.com" in recording.row["provider"] and expected["input"] in _THOUGHTS:
        expected["output"] = _THOUGHTS[expected["input"]]
    for one in (iterations := expected.pop("iterations", ())):
        assert isinstance(one, dict)
    if iterations:
        for name, key in (
            ("input", "input_tokens"),
            ("output", "output_tokens"),
            ("cache_read", "cache_read_input_tokens"),
            ("cache_write", "cache_creation_input_tokens"),
        ):
            expected[name] = sum(one.get(key) or 0 for one in iterations)
        del expected["cache_write_5m"], expected["cache_write_1h"]  # iterations do not tell them apart
    return expected


def is_exact(call: Call, recording: Recording) -> None:
    expected = expected_of(recording)
    counted = counts(call)
    assert {name: counted[name] for name in expected} == expected
    assert (call.outcome, call.http_status, call.error, call.estimated) == ("ok", 200, None, False)
    assert (call.endpoint, call.streamed, call.attempts) == (recording.endpoint, recording.streamed, 1)
    model = recording.row["model"]
    assert call.model == model or recording.row.get("request_model") == model
