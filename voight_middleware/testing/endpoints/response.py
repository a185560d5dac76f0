"""The input and output of an endpoint of the loopback provider, and helpers for all endpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints.errors import Maker, Refusal
from voight_middleware.testing.fake_data import Json, Options
from voight_middleware.testing.store import Job, Store

EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True)
class EndpointRequest:
    """A request, as passed to an endpoint."""

    body: Json
    options: Options
    store: Store
    user: str = "-"
    ids: Mapping[str, str] = field(default_factory=dict)
    """The path parameters."""
    query: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""
    """The server's URL, without a path."""
    maker: Maker = "openai"


@dataclass(frozen=True, slots=True)
class EndpointResponse:
    """A complete response: a body, or the pieces of a stream."""

    parts: Sequence[bytes]
    charges: Sequence[Charge]
    """The reported cost."""
    complete_at: int = 0
    """
    The index of the completing part: the one with the final usage, or the last one without usage.
    """
    media_type: str = "application/json"


Endpoint = Callable[[EndpointRequest], EndpointResponse]


def plain(body: Json, *charges: Charge) -> EndpointResponse:
    """Return JSON over several lines, as OpenAI sends it."""
    return EndpointResponse(
        [msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n"], charges
    )


def one_line(body: Json, *charges: Charge) -> EndpointResponse:
    """Return JSON on one line, as Anthropic sends it."""
    return EndpointResponse([msgspec.json.encode(body)], charges)


def stream(events: Iterable[Json], *charges: Charge, complete_at: int = -1) -> EndpointResponse:
    """
    Return server-sent events, named by their type. The event with the index *complete_at* completes
    them; by default the last one.
    """
    parts = [event(body) for body in events]
    return EndpointResponse(parts, charges, complete_at % len(parts), EVENTS)


def lines(items: Iterable[Json], *charges: Charge) -> EndpointResponse:
    """Return a file with one JSON object per line, sent line by line."""
    parts = [msgspec.json.encode(item) + b"\n" for item in items] or [b""]
    return EndpointResponse(parts, charges, len(parts) - 1, "application/octet-stream")


def polled(job: Job, **unfinished: Any) -> EndpointResponse:
    """Return the job as it is now, with its charges if it is finished."""
    body = job.poll(**unfinished)
    return plain(body, *job.charges if body is job.finished else ())


def data(body: Json) -> bytes:
    """Return a server-sent event without a name."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def event(body: Json) -> bytes:
    """Return a server-sent event, named by its type."""
    return f"event: {body['type']}\n".encode() + data(body)


def page(items: Sequence[Json], query: Mapping[str, str]) -> Json:
    """Return a page of a list: up to ``limit`` (20) items after the one with the id ``after``."""
    ids = [item["id"] for item in items]
    after = query.get("after") or query.get("after_id")
    start = ids.index(after) + 1 if after in ids else 0
    shown = items[start : start + int(query.get("limit") or 20)]
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    return {
        "object": "list",
        "data": shown,
        "first_id": first,
        "last_id": last,
        "has_more": start + len(shown) < len(items),
    }


def need(body: Json, *names: str, message: str = "Missing required parameter: '{}'.") -> None:
    """
    Require these parameters.

    Raises:
        Refusal: A parameter is missing or empty.
    """
    for name in names:
        if body.get(name) in (None, ""):
            raise Refusal(400, message.format(name), name, "missing_required_parameter")


def schema(body: Json, *path: str) -> Any:
    """Return the JSON schema of a structured output; None for plain text."""
    value: Any = body
    for name in (*path, "schema"):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def reported(options: Options, make: Callable[[], Json]) -> Any:
    """Return the usage to report: the requested one, or a fake one. None reports no usage."""
    if options.without_usage:
        return None
    return make() if options.usage is None else options.usage


def present(usage: Any, name: str = "usage") -> Json:
    """Return the usage as a field, if there is one."""
    return {} if usage is None else {name: usage}


def tier(body: Json) -> str:
    """Return the service tier of this request."""
    wanted = body.get("service_tier")
    return wanted if wanted in ("flex", "priority") else "default"


def now() -> int:
    """Return the Unix time, in seconds."""
    return int(time.time())
