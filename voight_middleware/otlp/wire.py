"""
The two encodings of OTLP. Spans are read one by one, as a body may hold tens of thousands of them.

Sources: OpenTelemetry, "OTLP specification" 1.x (JSON: ids in hexadecimal, lowerCamelCase,
enumerations as numbers; "Full success", "Partial success", "Failures");
``opentelemetry/proto/trace/v1/trace.proto``.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from voight_middleware.otlp.framing import (
    MAX_SPANS,
    Malformed,
    ScopeSpans,
    TooLarge,
    Unusable,
    of_resource,
    scopes_of,
    slim_span,
)
from voight_middleware.otlp.spans import MAX_TEXT, Key, Span, text, wanted

MAX_JSON_PARTS = 500_000
"""
How many values one JSON body may have. Each takes memory here, and almost no bytes of a compressed
body.
"""
_MAX_ATTRIBUTES = 2000
"""How many attributes of one span are read."""
_MAX_EXCEPTIONS = 16
"""How many exceptions of one span are read."""
FIRST_TOKEN = frozenset({"First Token Stream Event", "ai.stream.firstChunk"})
"""
Events at the first part of a response: of OpenInference's instrumentors, and of the Vercel AI SDK.
"""

Found = Span | Unusable


@dataclass(frozen=True, slots=True)
class Decoded:
    """The spans of a request, decoded one by one by the iterator."""

    count: int
    spans: Iterator[Found]


# -- protobuf --------------------------------------------------------------------------------------


def protobuf_decoder() -> Callable[[bytes], Decoded]:
    """
    Return a decoder of ``ExportTraceServiceRequest``. It checks the framing of the whole body
    before it decodes the first span.

    Raises:
        ImportError: opentelemetry-proto is not installed.
    """
    try:
        broken: Any = importlib.import_module("google.protobuf.message").DecodeError
        from opentelemetry.proto.common.v1.common_pb2 import KeyValue
        from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message
    except ImportError as error:
        raise ImportError(
            "reading OTLP needs opentelemetry-proto: pip install 'voight-middleware[otlp]'"
        ) from error

    def decode(body: bytes) -> Decoded:
        try:
            scopes = list(scopes_of(body, KeyValue.FromString))
        except (broken, UnicodeDecodeError) as error:
            raise Malformed("an invalid resource or scope") from error
        return Decoded(sum(len(spans) for _, _, spans in scopes), spans_of(body, scopes))

    def spans_of(body: bytes, scopes: list[ScopeSpans]) -> Iterator[Found]:
        for resource, scope, spans in scopes:
            for start, end in spans:
                try:
                    message = Message.FromString(slim_span(body[start:end]))
                    yield _from_message(message, resource, scope)
                except (broken, UnicodeDecodeError, Malformed):
                    yield Unusable("an invalid span")
                except Unusable as unusable:
                    # a traceback would keep the message in memory
                    yield unusable.with_traceback(None)

    return decode


def _from_message(message: Any, resource: Mapping[str, Any], scope: str) -> Span:
    failed = message.status.code == 2 if message.HasField("status") else False
    span = Span(
        key=_key(message.trace_id.hex(), message.span_id.hex()),
        parent_id=message.parent_span_id.hex() or None,
        name=message.name[:MAX_TEXT],
        scope=scope,
        started=message.start_time_unix_nano,
        ended=message.end_time_unix_nano,
        attributes=_attributes(message.attributes, wanted),
        resource=resource,
        failed=failed,
    )
    exceptions = 0
    for event in message.events[:_MAX_ATTRIBUTES]:
        exceptions += event.name == "exception"
        is_read = event.name == "exception" and exceptions <= _MAX_EXCEPTIONS
        _event(
            span,
            event.name,
            event.time_unix_nano,
            _attributes(event.attributes, _of_exception) if is_read else {},
        )
    return _checked(span)


def _attributes(pairs: Iterable[Any], is_wanted: Callable[[str], bool]) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for number, pair in enumerate(pairs):
        if number >= _MAX_ATTRIBUTES:
            break
        key = pair.key
        if not is_wanted(key):
            continue
        value = pair.value
        kind = value.WhichOneof("value")
        if kind in _PLAIN and not (kind == "string_value" and len(value.string_value) > MAX_TEXT):
            attributes[key] = getattr(value, kind)
    return attributes


_PLAIN = frozenset({"string_value", "bool_value", "int_value", "double_value"})


# -- JSON ------------------------------------------------------------------------------------------


class _Value(msgspec.Struct, rename="camel"):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: int | str | None = None
    double_value: float | str | None = None


class _Pair(msgspec.Struct):
    key: str = ""
    value: _Value | None = None


class _Event(msgspec.Struct, rename="camel"):
    name: str = ""
    time_unix_nano: int | str = 0
    attributes: list[_Pair] = []


class _Status(msgspec.Struct):
    code: int | str = 0


class _Span(msgspec.Struct, rename="camel"):
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str | None = None
    name: str = ""
    start_time_unix_nano: int | str = 0
    end_time_unix_nano: int | str = 0
    attributes: list[_Pair] = []
    events: list[_Event] = []
    status: _Status | None = None


class _Scope(msgspec.Struct):
    name: str = ""


class _ScopeSpans(msgspec.Struct):
    scope: _Scope | None = None
    spans: list[msgspec.Raw] = []


class _Resource(msgspec.Struct):
    attributes: list[_Pair] = []


class _ResourceSpans(msgspec.Struct, rename="camel"):
    resource: _Resource | None = None
    scope_spans: list[_ScopeSpans] = []


class _Request(msgspec.Struct, rename="camel"):
    resource_spans: list[_ResourceSpans] = []


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_span = msgspec.json.Decoder(_Span).decode


_JSON_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


def _json_parts(body: bytes) -> int:
    """
    Return how many commas separate values. Commas inside texts are excluded only if the body has
    many.
    """
    commas = body.count(b",")
    if (
        commas <= MAX_JSON_PARTS
        or commas > 4 * MAX_JSON_PARTS
        or body.count(b'"') > 8 * MAX_JSON_PARTS
    ):
        return commas
    return commas - sum(text.group().count(b",") for text in _JSON_TEXT.finditer(body))


def decode_json(body: bytes) -> Decoded:
    """
    Decode an ``ExportTraceServiceRequest`` in JSON.

    Raises:
        Malformed: The body is not such a request.
        TooLarge: It has too many values or spans.
    """
    if _json_parts(body) > MAX_JSON_PARTS:
        raise TooLarge(f"more than {MAX_JSON_PARTS:,} values in one request")
    try:
        request = _decode_request(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"not an ExportTraceServiceRequest: {str(error)[:200]}") from error
    count = sum(
        len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans
    )
    if count > MAX_SPANS:
        raise TooLarge(f"more than {MAX_SPANS:,} spans in one request")
    return Decoded(count, _json_spans(request))


def _json_spans(request: _Request) -> Iterator[Found]:
    for resource_spans in request.resource_spans:
        resource = (
            _pairs(resource_spans.resource.attributes, of_resource)
            if resource_spans.resource is not None
            else {}
        )
        for scope in resource_spans.scope_spans:
            name = scope.scope.name[:MAX_TEXT] if scope.scope is not None else ""
            for raw in scope.spans:
                try:
                    yield _from_json(_decode_span(raw), resource, name)
                except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                    yield Unusable("a span with a value of the wrong type")
                except Unusable as unusable:
                    # a traceback would keep the message in memory
                    yield unusable.with_traceback(None)


def _from_json(decoded: _Span, resource: Mapping[str, Any], scope: str) -> Span:
    parent = decoded.parent_span_id or None
    span = Span(
        key=_key(decoded.trace_id.lower(), decoded.span_id.lower()),
        parent_id=parent.lower() if parent is not None and _is_id(parent, 16) else None,
        name=decoded.name[:MAX_TEXT],
        scope=scope,
        started=_nanoseconds(decoded.start_time_unix_nano),
        ended=_nanoseconds(decoded.end_time_unix_nano),
        attributes=_pairs(decoded.attributes, wanted),
        resource=resource,
        failed=decoded.status is not None and decoded.status.code in (2, "2", "STATUS_CODE_ERROR"),
    )
    exceptions = 0
    for event in decoded.events[:_MAX_ATTRIBUTES]:
        exceptions += event.name == "exception"
        is_read = event.name == "exception" and exceptions <= _MAX_EXCEPTIONS
        _event(
            span,
            event.name,
            _nanoseconds(event.time_unix_nano),
            _pairs(event.attributes, _of_exception) if is_read else {},
        )
    return _checked(span)


def _pairs(pairs: list[_Pair], is_wanted: Callable[[str], bool]) -> dict[str, Any]:
    return {
        pair.key: value
        for pair in pairs[:_MAX_ATTRIBUTES]
        if is_wanted(pair.key)
        and pair.value is not None
        and (value := _plain(pair.value)) is not None
    }


def _plain(value: _Value) -> str | bool | int | float | None:
    if value.string_value is not None:
        return value.string_value if len(value.string_value) <= MAX_TEXT else None
    if value.bool_value is not None:
        return value.bool_value
    if value.int_value is not None:
        try:
            return int(value.int_value) if len(str(value.int_value)) < 25 else None
        except ValueError:
            return None
    if isinstance(value.double_value, str):  # "NaN", "Infinity"
        return math.nan
    return value.double_value


def _nanoseconds(value: int | str) -> int:
    try:
        return int(value) if not isinstance(value, str) or len(value) < 25 else -1
    except ValueError:
        return -1


# -- both ------------------------------------------------------------------------------------------


def _of_exception(key: str) -> bool:
    return key == "exception.type"


def _event(span: Span, name: str, moment: int, attributes: Mapping[str, Any]) -> None:
    if name == "exception":
        span.exception = text(attributes.get("exception.type"))
    elif name in FIRST_TOKEN and span.first_token is None and moment > 0:
        span.first_token = moment


_HEX = frozenset("0123456789abcdefABCDEF")


def _is_id(value: str, length: int) -> bool:
    return len(value) == length and _HEX.issuperset(value) and value.strip("0") != ""


def _key(trace_id: str, span_id: str) -> Key:
    if not _is_id(trace_id, 32) or not _is_id(span_id, 16):
        raise Unusable("a span without a trace id and span id")
    return Key(trace_id, span_id)


def _checked(span: Span) -> Span:
    """
    Return *span* with a start time.

    Raises:
        Unusable: The times are impossible.
    """
    if span.started <= 0:
        span.started = span.ended
    if not 0 < span.started < 2**63 or not 0 <= span.ended < 2**64:
        raise Unusable("a span without a time")
    return span


# -- responses -------------------------------------------------------------------------------------


def export_response(rejected: int, message: str, *, as_json: bool) -> bytes:
    """
    Return an ``ExportTraceServiceResponse``. It is empty after a full success. The responses for
    metrics and logs have the same encoding.
    """
    if as_json:
        name = {"rejectedSpans": str(rejected)} if rejected else {}
        return msgspec.json.encode(
            {"partialSuccess": {**name, "errorMessage": message}} if rejected or message else {}
        )
    partial = (b"\x08" + _as_varint(rejected) if rejected else b"") + (
        b"\x12" + _sized(message.encode()) if message else b""
    )
    return b"\x0a" + _sized(partial) if partial else b""


def status(code: int, message: str, *, as_json: bool) -> bytes:
    """
    Return a ``google.rpc.Status``, which the specification requires for failures. *code* is gRPC's.
    """
    if as_json:
        return msgspec.json.encode({"code": code, "message": message})
    return b"\x08" + _as_varint(code) + b"\x12" + _sized(message.encode())


def _sized(data: bytes) -> bytes:
    return _as_varint(len(data)) + data


def _as_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
