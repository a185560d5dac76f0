"""What is taken from a provider's answer: never its text, only what identifies and bills it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

MAX_USAGE_BYTES = 16_384
"""A usage object beyond this is no usage object."""

NULL = msgspec.Raw(b"null")


class Answer(msgspec.Struct):
    """The billing side of one answer."""

    id: str | None = None
    model: str | None = None
    service_tier: str | None = None
    usage: msgspec.Raw = NULL
    tool_calls: dict[str, int] | None = None


class StreamReader(Protocol):
    """Watches the events of one stream. ``see`` runs for every event: it does the least it can and never raises."""

    done: bool
    """Whether the provider said that the answer is complete."""
    failure: str | None
    """What the provider called its failure, where the stream reported one."""

    def see(self, event: Any) -> object:
        """Take note of *event*; true where it must be hidden from the caller."""
        ...

    def answer(self) -> Answer:
        """What the provider has reported so far."""
        ...

    def estimated_output(self) -> int | None:
        """Output tokens estimated from what was streamed, where the provider has not reported them."""
        ...


class Endpoint(msgspec.Struct, frozen=True):
    """One billable endpoint of a provider, and how it is read."""

    name: str
    """The dialect of its usage: ``chat``, ``responses``, …"""
    read: Callable[[bytes], Answer]
    """Reads a whole answer; raises msgspec.DecodeError for one that is none."""
    reader: Callable[[bool], StreamReader] | None = None
    """Makes the reader of a stream; its argument says whether the usage chunk was our wish, and is to be hidden."""
    asks_for_usage: bool = False
    """Whether a stream reports usage only where ``stream_options.include_usage`` is set."""


_read_strictly = msgspec.json.Decoder(Answer).decode


def read_answer(body: bytes) -> Answer:
    """
    Read a whole answer.

    Raises:
        msgspec.DecodeError: *body* is no JSON object.
    """
    try:
        return _read_strictly(body)
    except msgspec.ValidationError:  # a compatible server's own idea of an id or a tier must not cost the usage
        plain = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        identity, model, tier = (text_or_none(msgspec.json.decode(plain.get(name, NULL))) for name in ("id", "model", "service_tier"))
        return Answer(identity, model, tier, plain.get("usage", NULL))


def text_or_none(value: object) -> str | None:
    """*value* where it is a text that says something."""
    return value if isinstance(value, str) and value else None


def usage_json(usage: Any) -> msgspec.Raw:
    """The usage JSON of an SDK model as the provider sent it: fields that were not sent are left out."""
    try:
        return msgspec.Raw(usage.__pydantic_serializer__.to_json(usage, exclude_unset=True, warnings=False))
    except AttributeError:  # a plain mapping, or an SDK on pydantic 1
        plain = usage if isinstance(usage, Mapping) else usage.dict(exclude_unset=True)
        return msgspec.Raw(msgspec.json.encode(plain))


def kept(usage: msgspec.Raw) -> str | None:
    """*usage* as a call keeps it; None for a missing one."""
    data = bytes(usage)
    if data == b"null" or len(data) > MAX_USAGE_BYTES:
        return None
    return data.decode()


def estimate_tokens(body: Any, limit: int = 200_000) -> int:
    """
    A rough count of the input tokens of a request body: a quarter of the characters of its text, images and files left out.

    Args:
        limit: The most characters that are looked at.
    """
    characters = 0
    stack = (
        [body.get(key) for key in ("messages", "input", "prompt", "system", "instructions", "tools")] if isinstance(body, Mapping) else []
    )
    while stack and characters < limit:
        item = stack.pop()
        if isinstance(item, str):
            characters += 0 if item.startswith("data:") else len(item)
        elif isinstance(item, Mapping):
            stack.extend(value for key, value in item.items() if key not in ("data", "image_url", "file_data"))
        elif isinstance(item, list | tuple):
            stack.extend(item)
    return (characters + 3) // 4
