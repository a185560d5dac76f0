"""
The protobuf framing around the spans of a request, and inside a long span.

The protobuf library makes an object of every message. For an empty one, that takes fifty times its
bytes. So this module reads the framing itself.

Source: Protocol Buffers, "Encoding"; ``opentelemetry/proto/trace/v1/trace.proto``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from voight_middleware.otlp.spans import MAX_TEXT, wanted

MAX_SPANS = 50_000
"""How many spans one body may hold."""
MAX_PARTS = 400_000
"""How many fields around the spans of one body are read. That takes less than a second."""
LONG_SPAN = 256 * 1024
"""A longer span, in bytes, loses its unused attributes before it is decoded."""
_MAX_SPAN_PARTS = 10_000
"""How many fields a long span may have."""
_MAX_VALUE = 4 * MAX_TEXT + 1024
"""The maximum size of an attribute, in bytes: its text in UTF-8, and its key."""
_ATTRIBUTES, _UNUSED = 9, frozenset({3, 13})  # trace_state and links


class Malformed(ValueError):
    """A body that does not match its content type."""


class TooLarge(ValueError):
    """A body that exceeds a limit."""


class Unusable(ValueError):
    """One span that cannot be used. The other spans of its body can."""


class ScopeSpans(NamedTuple):
    """
    The attributes of a resource, the name of one of its scopes, and the positions of the scope's
    spans in the body.
    """

    resource: dict[str, Any]
    scope: str
    spans: list[tuple[int, int]]


class _Fields:
    """The fields of a body's messages, up to *limit* in total."""

    def __init__(self, body: bytes, limit: int) -> None:
        self.body = body
        self.remaining = limit

    def of(self, at: int, end: int) -> Iterator[tuple[int, bool, int, int]]:
        """
        Yield the fields of the message from *at* to *end*.

        Each field is its number, whether it has a length, and the start and end of its content.

        Raises:
            Malformed: The bytes are not a message.
            TooLarge: The body has more fields than the limit.
        """
        body = self.body
        while at < end:
            self.remaining -= 1
            if self.remaining < 0:
                raise TooLarge("too many parts in one request")
            tag, at = (body[at], at + 1) if body[at] < 0x80 else _varint(body, at, end)
            kind = tag & 7
            if tag < 8:
                raise Malformed("a field without a number")
            start = at
            if kind == 2:
                length, start = (
                    (body[at], at + 1) if at < end and body[at] < 0x80 else _varint(body, at, end)
                )
                at = start + length
            elif kind == 0:
                _, at = _varint(body, at, end)
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                raise Malformed(f"a field of kind {kind}")
            if at > end:
                raise Malformed("an incomplete message")
            yield tag >> 3, kind == 2, start, at

    def messages(self, at: int, end: int, wanted_number: int) -> Iterator[tuple[int, int]]:
        """Yield start and end of each field with this number."""
        for number, has_length, start, stop in self.of(at, end):
            if has_length and number == wanted_number:
                yield start, stop

    def key(self, at: int, end: int) -> str:
        """Return the key of a ``KeyValue``; an empty text if it is too long."""
        key = b""
        for start, stop in self.messages(at, end, 1):
            key = self.body[start:stop] if stop - start <= _MAX_VALUE else b""
        return key.decode(errors="replace")


def _varint(body: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise Malformed("a number that does not end")


def scopes_of(body: bytes, pair: Callable[[bytes], Any]) -> Iterator[ScopeSpans]:
    """
    Yield each ``ScopeSpans`` with spans of an ``ExportTraceServiceRequest``.

    Args:
        body: The request.
        pair: Decodes a ``KeyValue``.

    Raises:
        Malformed: The body is not such a request.
        TooLarge: It has too many spans, or too many fields around them.
    """
    fields, count = _Fields(body, MAX_PARTS), 0
    for start, end in fields.messages(0, len(body), 1):  # resource_spans
        resource: dict[str, Any] = {}
        scopes: list[ScopeSpans] = []
        for number, has_length, at, to in fields.of(start, end):
            if has_length and number == 1:
                resource.update(_resource(fields, at, to, pair))
            elif has_length and number == 2 and to > at:
                scope = _scope(fields, at, to, resource, MAX_SPANS - count)
                count += len(scope.spans)
                scopes += [scope] if scope.spans else []
        yield from scopes


def _scope(
    fields: _Fields, start: int, end: int, resource: dict[str, Any], limit: int
) -> ScopeSpans:
    name, spans = b"", list[tuple[int, int]]()
    for number, has_length, at, to in fields.of(start, end):
        if has_length and number == 1:
            for begin, stop in fields.messages(at, to, 1):
                name = fields.body[begin : min(stop, begin + _MAX_VALUE)]
        elif has_length and number == 2:
            spans.append((at, to))
            if len(spans) > limit:
                raise TooLarge(f"more than {MAX_SPANS:,} spans in one request")
    return ScopeSpans(resource, name.decode(errors="replace")[:MAX_TEXT], spans)


def _resource(
    fields: _Fields, start: int, end: int, pair: Callable[[bytes], Any]
) -> Iterator[tuple[str, str]]:
    for at, to in fields.messages(start, end, 1):
        if (
            to - at > _MAX_VALUE
            or fields.body.find(b"service.", at, to) < 0
            or not of_resource(fields.key(at, to))
        ):
            continue
        attribute = pair(fields.body[at:to])
        if (
            attribute.value.WhichOneof("value") == "string_value"
            and len(attribute.value.string_value) <= MAX_TEXT
        ):
            yield attribute.key, attribute.value.string_value


def of_resource(key: str) -> bool:
    """Return whether the attribute *key* of a resource is read."""
    return key in {"service.name", "service.version"}


def slim_span(span: bytes) -> bytes:
    """
    Return a span without unused parts if it is long. Attributes such as prompts are dropped before
    they are decoded.

    Raises:
        Malformed: The bytes are not a message.
        Unusable: The used parts alone are too long.
    """
    if len(span) <= LONG_SPAN:
        return span
    kept = bytearray()
    fields, done = _Fields(span, _MAX_SPAN_PARTS), 0
    try:
        for number, has_length, start, end in fields.of(0, len(span)):
            begin, done = done, end
            if number in _UNUSED or (has_length and end - start > _MAX_VALUE):
                continue
            if number == _ATTRIBUTES and has_length and not wanted(fields.key(start, end)):
                continue
            kept += span[begin:end]
    except TooLarge:
        kept = bytearray(LONG_SPAN + 1)
    if len(kept) > LONG_SPAN:
        raise Unusable("a span with too many attributes or events")
    return bytes(kept)
