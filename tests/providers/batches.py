"""Providers that answer later: batches of both, and the calls that the ledger has in the end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voight_middleware import Call
from voight_middleware.config.settings import Settings
from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.meter import Meter, swap_meter

from ..support.calls import Calls
from ..support.memory_provider import (
    CHAT_USAGE,
    JSON,
    MESSAGES_USAGE,
    Answer,
    messages_body,
    responses_body,
)
from .entry_points import MESSAGES


def as_json(body: Any) -> Answer:
    return 200, JSON, [json.dumps(body).encode()]


def kept(calls: Calls) -> list[Call]:
    """What the ledger has in the end: a call that is told of later is the same row."""
    assert calls.meter.flush(30)
    ledger = open_ledger(calls.meter.settings.ledger)
    try:
        return list(ledger.calls())
    finally:
        ledger.close()


class Elsewhere:
    """Another process with the same ledger: its own meter, and its own journal that is ingested before or after the first one's."""

    def __init__(self, calls: Calls, folder: Path) -> None:
        self.meter = Meter(Settings.from_environment(ledger=calls.meter.settings.ledger, journal=folder, environ={}))
        self._outer: Meter | None = None

    def __enter__(self) -> None:
        self._outer = swap_meter(self.meter)

    def __exit__(self, *exc_info: object) -> None:
        swap_meter(self._outer)

    def flush(self) -> None:
        assert self.meter.flush(30)


def line(custom_id: str, body: Any, status: int = 200) -> dict[str, Any]:
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": f"batch_req_{custom_id}", "custom_id": custom_id, "response": response, "error": None}


def chat(number: int) -> dict[str, Any]:
    return {"id": f"chatcmpl-{number}", "object": "chat.completion", "model": "gpt-4o-mini-2024-07-18", "choices": [], "usage": CHAT_USAGE}


EMBEDDED = {"object": "list", "model": "text-embedding-3-small", "data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}}
LINES = [
    line("a", chat(1)),
    line("b", chat(2)),
    line("c", responses_body()),
    line("d", EMBEDDED),
    line("e", {"error": {"message": "no"}}, status=400),
    {"id": "batch_req_f", "custom_id": "f", "response": None, "error": {"code": "batch_expired", "message": "late"}},
]


def openai_batches(lines: list[dict[str, Any]] = LINES, **headers: str) -> Callable[[str, dict[str, Any]], Answer]:
    """OpenAI with one batch that is completed when it is asked for, and its file of answers."""
    batch = {"id": "batch_1", "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": "file-in", "created_at": 1}
    content = "\n".join(map(json.dumps, lines)).encode() + b"\n"

    def answer(path: str, body: dict[str, Any]) -> Answer:
        if path.endswith("/content"):
            parts = [content[start : start + 1000] for start in range(0, len(content), 1000)]
            return 200, {"content-type": "application/octet-stream", **headers}, parts
        done = {**batch, "status": "completed", "output_file_id": "file-out", "completion_window": "24h"}
        if body:
            return as_json({**batch, "status": "validating", "completion_window": "24h"})
        return as_json(done if path.endswith("/batch_1") else {"object": "list", "data": [done], "has_more": False})

    return answer


SUBMIT: dict[str, Any] = {"input_file_id": "file-in", "endpoint": "/v1/chat/completions", "completion_window": "24h"}


RESULTS = [
    {"custom_id": "a", "result": {"type": "succeeded", "message": messages_body({**MESSAGES_USAGE, "service_tier": "batch"})}},
    {"custom_id": "b", "result": {"type": "succeeded", "message": messages_body({**MESSAGES_USAGE, "service_tier": "batch"})}},
    {
        "custom_id": "c",
        "result": {"type": "errored", "error": {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}},
    },
    {"custom_id": "d", "result": {"type": "expired"}},
    {"custom_id": "e", "result": {"type": "canceled"}},
]


def anthropic_batches(path: str, _body: dict[str, Any]) -> Answer:
    """Anthropic with one batch that has ended when it is asked for."""
    if path.endswith("/results"):
        return 200, {"content-type": "application/x-jsonl"}, [json.dumps(one).encode() + b"\n" for one in RESULTS]
    counts = {"processing": 0, "succeeded": 2, "errored": 1, "canceled": 1, "expired": 1}
    url = "https://api.anthropic.com/v1/messages/batches/msgbatch_1/results"
    ended = path.endswith("/msgbatch_1")
    return as_json(
        {
            "id": "msgbatch_1",
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": counts,
            "results_url": url if ended else None,
        }
    )


def requests(**users: str) -> list[dict[str, Any]]:
    named = {name: {"metadata": {"user_id": user}} for name, user in users.items()}
    return [{"custom_id": name, "params": {**MESSAGES, **named.get(name, {})}} for name in "abcde"]
