"""
Every kind of answer that PEP 3333 knows, and every way to break one, as ``bare`` and as ``ours``: what a server makes of both must be
the same bytes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from voight_middleware.middleware.wsgi import CostTagMiddleware

CLOSED: list[str] = []


class Closing:
    """An iterable that says when it is closed."""

    def __init__(self, items: Iterable[bytes], error: Exception | None = None) -> None:
        self.items = items
        self.error = error

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.items)

    def close(self) -> None:
        CLOSED.append("closed")
        if self.error is not None:
            raise self.error


class Sized(Closing):
    def __len__(self) -> int:
        return len(list(self.items))


class Uniterable:
    def close(self) -> None:
        CLOSED.append("closed")


def steps(*items: bytes | Exception) -> Iterator[bytes]:
    try:
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        CLOSED.append("generator")


def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    path = environ["PATH_INFO"][1:]
    if path == "closed":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [",".join(CLOSED).encode()]
    if path == "raises":
        raise LookupError("before the head")
    if path == "never starts":
        return [b"body"]
    if path == "lazy start":
        return lazily(start_response)
    if path == "exc_info":
        start_response("200 OK", [("X-First", "1")])
        try:
            raise LookupError("half way")
        except LookupError:
            start_response("500 Oh", [("X-Second", "2"), ("Content-Length", "5")], sys.exc_info())
        return [b"error"]
    if path == "starts twice":
        start_response("200 OK", [])
        start_response("200 OK", [])
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "write":
        write(b"first, ")
        write(b"second, ")
        return [b"last"]
    if path == "file":
        return environ["wsgi.file_wrapper"](Path(__file__).open("rb"))
    if path == "file of an upper":
        return Path(__file__).open("rb")
    return KINDS[path]()


def lazily(start_response: Callable[..., Any]) -> Iterator[bytes]:
    start_response("200 OK", [("X-Lazy", "1"), ("Content-Length", "4")])
    yield b"lazy"


KINDS: dict[str, Callable[[], Any]] = {
    "list": lambda: [b"one item"],
    "long list": lambda: [b"two", b" items"],
    "empty": list,
    "tuple": lambda: (b"one item",),
    "sized": lambda: Sized([b"one item"]),
    "long sized": lambda: Sized([b"two", b" items"]),
    "closing": lambda: Closing([b"a", b"b"]),
    "closing raises": lambda: Closing([b"a", b"b"], LookupError("at the close")),
    "generator": lambda: steps(b"a", b"", b"b"),
    "generator raises first": lambda: steps(LookupError("at once")),
    "generator raises later": lambda: steps(b"a", LookupError("later")),
    "bytes": lambda: b"bytes",
    "text": lambda: ["text"],
    "none": lambda: None,
    "uniterable": Uniterable,
}
PATHS = ["raises", "never starts", "lazy start", "exc_info", "starts twice", "write", "file", "file of an upper", *KINDS]

bare = answer
ours = CostTagMiddleware(answer)
app = ours if os.environ.get("APP") == "ours" else bare
