"""What an endpoint of the loopback provider gets and gives, and the small parts that all endpoints use."""

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
class Asked:
    """One request, as an endpoint sees it."""

    body: Json
    options: Options
    store: Store
    user: str = "-"
    ids: Mapping[str, str] = field(default_factory=dict)
    """The parameters of the path."""
    query: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""
    """The server's URL, without a path."""
    maker: Maker = "openai"


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer: a body, or the pieces of a stream."""

    parts: Sequence[bytes]
    bills: Sequence[Charge]
    """What it reports."""
    complete_at: int = 0
    """The part that completes the answer: the one with the final usage, or the last one where no usage is reported."""
    media_type: str = "application/json"


Endpoint = Callable[[Asked], Answer]


def plain(body: Json, *bills: Charge) -> Answer:
    """JSON over several lines, as OpenAI sends it."""
    return Answer([msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n"], bills)


def one_line(body: Json, *bills: Charge) -> Answer:
    """JSON on one line, as Anthropic sends it."""
    return Answer([msgspec.json.encode(body)], bills)


def stream(events: Iterable[Json], *bills: Charge, complete_at: int = -1) -> Answer:
    """Server-sent events that have their type as a name; the last one completes them, or that of this index."""
    parts = [event(one) for one in events]
    return Answer(parts, bills, complete_at % len(parts), EVENTS)


def lines(items: Iterable[Json], *bills: Charge) -> Answer:
    """A file with one JSON object per line, sent line by line."""
    parts = [msgspec.json.encode(item) + b"\n" for item in items] or [b""]
    return Answer(parts, bills, len(parts) - 1, "application/octet-stream")


def polled(job: Job, **unfinished: Any) -> Answer:
    """The job as it stands now, with its bills once it is finished."""
    body = job.poll(**unfinished)
    return plain(body, *job.bills if body is job.finished else ())


def data(body: Json) -> bytes:
    """A server-sent event without a name."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def event(body: Json) -> bytes:
    """A server-sent event that is named for its type."""
    return f"event: {body['type']}\n".encode() + data(body)


def page(items: Sequence[Json], query: Mapping[str, str]) -> Json:
    """A page of a list: what comes after the item with this id, at most ``limit`` (20) items."""
    ids = [item["id"] for item in items]
    after = query.get("after") or query.get("after_id")
    start = ids.index(after) + 1 if after in ids else 0
    shown = items[start : start + int(query.get("limit") or 20)]
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    return {"object": "list", "data": shown, "first_id": first, "last_id": last, "has_more": start + len(shown) < len(items)}


def need(body: Json, *names: str, message: str = "Missing required parameter: '{}'.") -> None:
    """
    Require these parameters.

    Raises:
        Refusal: One is missing or empty.
    """
    for name in names:
        if body.get(name) in (None, ""):
            raise Refusal(400, message.format(name), name, "missing_required_parameter")


def schema(body: Json, *path: str) -> Any:
    """The JSON schema of a structured output; None where plain text is wanted."""
    found: Any = body
    for name in (*path, "schema"):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def reported(options: Options, make: Callable[[], Json]) -> Any:
    """The usage to report: the wanted one, else the made-up one; None for none."""
    if options.without_usage:
        return None
    return make() if options.usage is None else options.usage


def present(usage: Any, name: str = "usage") -> Json:
    """The usage where there is one."""
    return {} if usage is None else {name: usage}


def tier(body: Json) -> str:
    """The service tier that serves this request."""
    wanted = body.get("service_tier")
    return wanted if wanted in ("flex", "priority") else "default"


def now() -> int:
    """Unix time, in seconds."""
    return int(time.time())
