"""
Streamed bodies whose events are shown to a reader as they pass by: server-sent events, Amazon's event streams, and JSON arrays.

Nothing of what was read is kept, so that a long stream costs no memory.
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
    """An event's JSON, to be read as an SDK's own event is: what is missing is None."""

    __getattr__ = dict.get


def viewed(value: Any) -> Any:
    """Return plain JSON as an ``Event`` all the way down."""
    if type(value) is dict:
        return Event((key, viewed(one)) for key, one in value.items())
    return [viewed(one) for one in value] if type(value) is list else value


class EventFormat(NamedTuple):
    """How events lie in a body."""

    mark: bytes
    """What is in every part that completes an event."""
    read: Callable[[bytes], tuple[list[Any], bytes]]
    """The whole events at the start, and what is left over. Raises ValueError for what is no such body."""
    end: bytes = b""
    """What completes the last event, where a body may end without it."""


class Events(Body):
    """
    A streamed body.

    Args:
        response: Whose body it is, of httpx or httpx2.
        form: How its events lie in it.
        reader: Is shown each event as soon as it has passed.
    """

    __slots__ = ("_form", "_reader", "_rest", "_size_of_rest", "_unpack")

    def __init__(self, response: Any, form: EventFormat, reader: StreamParser) -> None:
        super().__init__(response)
        self._form: EventFormat | None = form
        self._reader = reader
        self._rest: list[bytes] = []
        self._size_of_rest = 0
        self._unpack = Unpacking() if self._encoding in ZIPPED else None
        if self._encoding in (*PLAIN, *ZIPPED):
            self._kept = None  # any other is kept, as only the HTTP library can undo it, and only at the end

    def take(self, part: bytes) -> None:
        super().take(part)
        if self._kept is None:
            try:
                for data in (part,) if self._unpack is None else self._unpack.feed(part):
                    self.feed(data)
            except (ValueError, zlib.error):
                self._give_up()

    def all_there(self, content: bytes) -> None:
        """The whole body is there already, and its encoding is undone."""
        self._kept, self._unpack = None, None
        self.take(content)
        self.ended = True

    def forget(self) -> None:
        super().forget()
        self._form, self._rest = None, []

    def feed(self, data: bytes) -> None:
        """
        Show the reader what *data* completes.

        Raises:
            ValueError: This is no such body.
        """
        form = self._form
        if form is None:
            return
        if form.mark in data:
            found, rest = form.read(b"".join((*self._rest, data)) if self._rest else data)
            self._rest, self._size_of_rest = [rest] if rest else [], len(rest)
            for event in found:
                if event.error is None:
                    self._reader.feed(event)
                else:
                    if event.usage is not None:  # a failure may be billed: OpenRouter says how many tokens
                        self._reader.feed(event)
                    self._reader.failure = self._reader.failure or "error"
        else:
            self._rest.append(data)
            self._size_of_rest += len(data)
        if self._size_of_rest > MAX_BODY_BYTES:
            self.forget()

    def events(self) -> Iterator[Any]:
        """None any more: shows the last of them, as all others have been shown."""
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
    """The event in *text*; None where it cannot be read."""
    try:
        event = _decoder.decode(text.decode())
    except ValueError:
        counters["unreadable_responses"] += 1
        return None
    return event if isinstance(event, Event) else None


# -- server-sent events --------------------------------------------------------------------------------------------------------


def _blocks(data: bytes) -> tuple[list[bytes], bytes]:
    """What stands between empty lines, and what is left over."""
    *blocks, rest = (data.replace(b"\r\n", b"\n") if b"\r" in data else data).split(b"\n\n")
    return blocks, rest


def _data(block: bytes) -> bytes:
    """The JSON object in an event; empty for any other, such as a comment, or what says that the stream is done."""
    if block.startswith(b"data: {") and b"\n" not in block:
        return block[6:]
    data = b"\n".join([line[5:] for line in block.split(b"\n") if line.startswith(b"data:")]).strip()
    return data if data.startswith(b"{") else b""


def _sent(data: bytes) -> tuple[list[Any], bytes]:
    blocks, rest = _blocks(data)
    return [event for block in filter(None, blocks) if (text := _data(block)) and (event := _loaded(text)) is not None], rest


def _named(data: bytes) -> tuple[list[Any], bytes]:
    blocks, rest = _blocks(data)
    loaded = ((block, _loaded(text)) for block in filter(None, blocks) if (text := _data(block)))
    return [Event(event=_name(block), data=event) for block, event in loaded if event is not None], rest


def _name(block: bytes) -> str:
    return next((line[6:].strip().decode() for line in block.split(b"\n") if line.startswith(b"event:")), "")


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
    """Those of a chat, of which there are many: one for each token. Odd ones are read as any other event."""
    blocks, rest = _blocks(data)
    found: list[Any] = []
    for block in filter(None, blocks):
        text = _data(block)
        if text:
            try:
                found.append(_decode_chunk(text))
            except msgspec.DecodeError:
                event = _loaded(text)
                if event is not None:
                    found.append(event)
    return found, rest


SSE = EventFormat(b"\n", _sent, end=b"\n\n")
"""Server-sent events: what is in their ``data``."""
CHAT_SSE = EventFormat(b"\n", _chunks, end=b"\n\n")
"""The same of a chat."""
NAMED_SSE = EventFormat(b"\n", _named, end=b"\n\n")
"""The same of an assistant, whose events are told apart by their name only."""

# -- JSON arrays ---------------------------------------------------------------------------------------------------------------


def _elements(data: bytes) -> tuple[list[Any], bytes]:
    text = data.decode(errors="surrogateescape")  # a part may end in the middle of a character
    found: list[Any] = []
    while text := text.lstrip("[], \r\n\t"):
        try:
            element, end = _decoder.raw_decode(text)
        except ValueError:
            break
        text = text[end:]
        if isinstance(element, Event):
            found.append(element)
    return found, text.encode(errors="surrogateescape")


ARRAY = EventFormat(b"}", _elements)
"""An array of JSON objects, sent one by one (Gemini)."""

# -- Amazon's event stream -----------------------------------------------------------------------------------------------------


def _frames(data: bytes) -> tuple[list[Any], bytes]:
    """Source: "Amazon event stream encoding": total length, length of the headers, checksum; headers; payload; checksum."""
    found: list[Any] = []
    start = 0
    while len(data) - start >= 12:
        length, headers = struct.unpack_from(">II", data, start)
        if length < headers + 16:
            raise ValueError("no frame of an event stream")
        if start + length > len(data):
            break
        event = _unwrapped(_loaded(data[start + 12 + headers : start + length - 4]))
        if event is not None:
            found.append(event)
        start += length
    return found, data[start:]


def _unwrapped(event: Any) -> Any:
    """The event that Bedrock hands on from another provider; an exception, which takes the place of an event, as an error."""
    if event is None:
        return None
    if isinstance(event.bytes, str):
        return _loaded(base64.b64decode(event.bytes))
    return Event(error=event) if isinstance(event.message, str) else event


AWS_EVENT_STREAM = EventFormat(b"", _frames)
"""Amazon's event stream: the JSON in its payloads, unwrapped where it is in ``bytes``."""
