"""
Streamed bodies, parsed as they pass: server-sent events, Amazon's event streams, and JSON arrays.

Nothing is kept after it was read, so a long stream costs no memory.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from voight_middleware.diagnostics import counters
from voight_middleware.instrumentation.bodies import MAX_BODY_BYTES, PLAIN, ZIPPED, Body, Unpacking
from voight_middleware.providers.base import StreamParser


class Event(dict[str, Any]):
    """An event's JSON with attribute access, as an SDK's event has. A missing one is None."""

    __getattr__ = dict.get


def viewed(value: Any) -> Any:
    """Return plain JSON as an ``Event`` all the way down."""
    if type(value) is dict:
        return Event((key, viewed(item)) for key, item in value.items())
    return [viewed(item) for item in value] if type(value) is list else value


class EventFormat(NamedTuple):
    """The format of the events in a body."""

    mark: bytes
    """Bytes that every part contains which completes an event."""
    read: Callable[[bytes], tuple[list[Any], bytes]]
    """Returns the whole events and the rest. Raises ValueError for another kind of body."""
    end: bytes = b""
    """Bytes that complete the last event, if a body may end without them."""


class Events(Body):
    """
    A streamed body.

    Args:
        response: The response of httpx or httpx2 that has the body.
        form: The format of its events.
        parser: Gets each event as soon as it has passed.
    """

    __slots__ = ("_form", "_parser", "_rest", "_rest_size", "_unpack")

    def __init__(self, response: Any, form: EventFormat, parser: StreamParser) -> None:
        super().__init__(response)
        self._form: EventFormat | None = form
        self._parser = parser
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._unpack = Unpacking() if self._encoding in ZIPPED else None
        if self._encoding in (*PLAIN, *ZIPPED):
            # Any other encoding is kept: only the HTTP library can undo it, and only at the end.
            self._kept = None

    def take(self, part: bytes) -> None:
        super().take(part)
        if self._kept is None:
            try:
                for data in (part,) if self._unpack is None else self._unpack.feed(part):
                    self.feed(data)
            except (ValueError, zlib.error):
                self._give_up()

    def feed_whole(self, content: bytes) -> None:
        """Take a whole body, whose content encoding is undone already."""
        self._kept, self._unpack = None, None
        self.take(content)
        self.ended = True

    def forget(self) -> None:
        super().forget()
        self._form, self._rest = None, []

    def feed(self, data: bytes) -> None:
        """
        Feed the parser the events that *data* completes.

        Raises:
            ValueError: The body has another format.
        """
        form = self._form
        if form is None:
            return
        if form.mark in data:
            events, rest = form.read(b"".join((*self._rest, data)) if self._rest else data)
            self._rest, self._rest_size = [rest] if rest else [], len(rest)
            for event in events:
                if event.error is None:
                    self._parser.feed(event)
                else:
                    # a failure may be billed: OpenRouter reports its tokens
                    if event.usage is not None:
                        self._parser.feed(event)
                    self._parser.failure = self._parser.failure or "error"
        else:
            self._rest.append(data)
            self._rest_size += len(data)
        if self._rest_size > MAX_BODY_BYTES:
            self.forget()

    def events(self) -> Iterator[Any]:
        """Feed the parser the last events. Return none, as the parser has had all others."""
        try:
            if self._kept:
                self.feed(self.content())
            if self.ended and self._form is not None:
                self.feed(self._form.end)
        except ValueError:
            self._give_up()
        self.forget()
        return iter(())

    def _give_up(self) -> None:
        counters["unreadable_responses"] += 1
        self.forget()


_decoder = json.JSONDecoder(object_hook=Event)


def _loaded(text: bytes) -> Any:
    """Return the event in *text*; None if it cannot be read."""
    try:
        event = _decoder.decode(text.decode())
    except ValueError:
        counters["unreadable_responses"] += 1
        return None
    return event if isinstance(event, Event) else None


# -- server-sent events ----------------------------------------------------------------------------


def _blocks(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the blocks between empty lines, and the rest."""
    *blocks, rest = (data.replace(b"\r\n", b"\n") if b"\r" in data else data).split(b"\n\n")
    return blocks, rest


def _data(block: bytes) -> bytes:
    """Return the JSON object in an event; empty for a comment or the event that ends the stream."""
    if block.startswith(b"data: {") and b"\n" not in block:
        return block[6:]
    data = b"\n".join(
        [line[5:] for line in block.split(b"\n") if line.startswith(b"data:")]
    ).strip()
    return data if data.startswith(b"{") else b""


def _data_events(data: bytes) -> tuple[list[Any], bytes]:
    blocks, rest = _blocks(data)
    return [
        event
        for block in filter(None, blocks)
        if (text := _data(block)) and (event := _loaded(text)) is not None
    ], rest


def _named(data: bytes) -> tuple[list[Any], bytes]:
    blocks, rest = _blocks(data)
    loaded = ((block, _loaded(text)) for block in filter(None, blocks) if (text := _data(block)))
    return [
        Event(event=_name(block), data=event) for block, event in loaded if event is not None
    ], rest


def _name(block: bytes) -> str:
    return next(
        (line[6:].strip().decode() for line in block.split(b"\n") if line.startswith(b"event:")), ""
    )


class _Function(msgspec.Struct):
    arguments: str | None = None


class _Custom(msgspec.Struct):
    input: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Function | None = None
    custom: _Custom | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct):
    delta: _Delta
    finish_reason: str | None = None
    index: Any = None
    usage: Any = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice]
    id: str | None = None
    model: str | None = None
    service_tier: str | None = None
    usage: dict[str, Any] | None = None
    error: Any = None
    x_groq: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


def _chunks(data: bytes) -> tuple[list[Any], bytes]:
    """
    Return the chunks of a chat and the rest. A chat has one chunk per token, so they are decoded
    fast.

    Chunks of another shape are read as any other event.
    """
    blocks, rest = _blocks(data)
    chunks: list[Any] = []
    for block in filter(None, blocks):
        text = _data(block)
        if text:
            try:
                chunks.append(_decode_chunk(text))
            except msgspec.DecodeError:
                event = _loaded(text)
                if event is not None:
                    chunks.append(event)
    return chunks, rest


SSE = EventFormat(b"\n", _data_events, end=b"\n\n")
"""Server-sent events: the JSON in their ``data``."""
CHAT_SSE = EventFormat(b"\n", _chunks, end=b"\n\n")
"""Server-sent events of a chat."""
NAMED_SSE = EventFormat(b"\n", _named, end=b"\n\n")
"""Server-sent events of an assistant, which differ in their name only."""

# -- JSON arrays -----------------------------------------------------------------------------------


def _elements(data: bytes) -> tuple[list[Any], bytes]:
    text = data.decode(errors="surrogateescape")  # a part may end in the middle of a character
    events: list[Any] = []
    while text := text.lstrip("[], \r\n\t"):
        try:
            element, end = _decoder.raw_decode(text)
        except ValueError:
            break
        text = text[end:]
        if isinstance(element, Event):
            events.append(element)
    return events, text.encode(errors="surrogateescape")


ARRAY = EventFormat(b"}", _elements)
"""An array of JSON objects, sent element by element (Gemini)."""

# -- Amazon's event stream -------------------------------------------------------------------------


def _frames(data: bytes) -> tuple[list[Any], bytes]:
    """
    Return the events of whole frames, and the rest.

    Source: "Amazon event stream encoding": total length, length of the headers, checksum; headers;
    payload; checksum.
    """
    events: list[Any] = []
    start = 0
    while len(data) - start >= 12:
        length, headers = struct.unpack_from(">II", data, start)
        if length < headers + 16:
            raise ValueError("not a frame of an event stream")
        if start + length > len(data):
            break
        event = _unwrapped(_loaded(data[start + 12 + headers : start + length - 4]))
        if event is not None:
            events.append(event)
        start += length
    return events, data[start:]


def _unwrapped(event: Any) -> Any:
    """Return the event that Bedrock wraps. An exception in place of an event is an error."""
    if event is None:
        return None
    if isinstance(event.bytes, str):
        return _loaded(base64.b64decode(event.bytes))
    return Event(error=event) if isinstance(event.message, str) else event


AWS_EVENT_STREAM = EventFormat(b"", _frames)
"""Amazon's event stream: the JSON in its payloads, unwrapped if it is in ``bytes``."""
