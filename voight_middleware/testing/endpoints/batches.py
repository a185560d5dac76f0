"""OpenAI's files and batches. The lines of a batch are answered by the same endpoints as single requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from voight_middleware.testing.accounting import Charge, Tokens, tokens_of
from voight_middleware.testing.endpoints import chat, embeddings, images, responses, videos
from voight_middleware.testing.endpoints.errors import Refusal, openai_error
from voight_middleware.testing.endpoints.response import Answer, Asked, Endpoint, lines, need, now, page, plain, polled, reported
from voight_middleware.testing.fake_data import Json, hexadecimal, prompt_texts
from voight_middleware.testing.faults import marked_user, read_faults
from voight_middleware.testing.multipart import Upload
from voight_middleware.testing.store import Job

_ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": chat.chat,
    "/v1/completions": chat.completions,
    "/v1/embeddings": embeddings.embeddings,
    "/v1/moderations": embeddings.moderations,
    "/v1/responses": responses.create,
    "/v1/images/generations": images.generate,
    "/v1/images/edits": images.edit,
    "/v1/videos": videos.create,
}
_DAY = 86400
_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


@dataclass(frozen=True, slots=True)
class File:
    """A file that was uploaded, or that a batch has written."""

    shown: Json
    data: bytes
    bills: list[Charge]
    """What its lines cost."""


class _Request(msgspec.Struct):
    """One line of the file that a batch is made of."""

    custom_id: str
    body: Json


@dataclass(frozen=True, slots=True)
class _Line:
    """What one line of a batch was answered."""

    answered: Json
    status: int
    bills: list[Charge]


def upload(asked: Asked) -> Answer:
    """``POST /v1/files``."""
    need(asked.body, "file", "purpose")
    given: Upload = asked.body["file"]
    return plain(_keep(asked, given.name, given.data, str(asked.body["purpose"]), []))


def file(asked: Asked) -> Answer:
    """``GET /v1/files/{id}``."""
    found: File = asked.store.find("file", asked.ids["id"])
    return plain(found.shown)


def files(asked: Asked) -> Answer:
    """``GET /v1/files``."""
    return plain(page([found.shown for found in asked.store.every("file")], asked.query))


def content(asked: Asked) -> Answer:
    """``GET /v1/files/{id}/content``."""
    found: File = asked.store.find("file", asked.ids["id"])
    return replace(lines([], *found.bills), parts=[found.data])


def create(asked: Asked) -> Answer:
    """``POST /v1/batches``."""
    need(asked.body, "input_file_id", "endpoint", "completion_window")
    source: File = asked.store.find("file", asked.body["input_file_id"])
    if asked.body["endpoint"] not in _ENDPOINTS:
        raise Refusal(400, f"Invalid value: '{asked.body['endpoint']}'.", "endpoint", "invalid_value")
    made = f"batch_{hexadecimal(32)}"
    begun: Json = {
        "id": made,
        "object": "batch",
        "endpoint": asked.body["endpoint"],
        "model": None,
        "errors": None,
        "input_file_id": asked.body["input_file_id"],
        "completion_window": asked.body["completion_window"],
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": now(),
        "expires_at": now() + _DAY,
        **{f"{name}_at": None for name in _TIMES},
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "usage": None,
        "metadata": asked.body.get("metadata"),
    }
    finished, bills = _finished(asked, begun, source.data)
    asked.store.keep("batch", made, Job(begun, finished, asked.options.polls or 0, bills), asked.user)
    return plain(begun)


def retrieve(asked: Asked) -> Answer:
    """``GET /v1/batches/{id}``: completed at once, if nothing else is wanted; what its lines cost is counted then, for their users."""
    job: Job = asked.store.find("batch", asked.ids["id"])
    return polled(job, status="in_progress", in_progress_at=job.begun["created_at"])


def cancel(asked: Asked) -> Answer:
    """``POST /v1/batches/{id}/cancel``: one that was seen completed stays."""
    job: Job = asked.store.find("batch", asked.ids["id"])
    times = {"cancelling_at": now(), "in_progress_at": job.begun["created_at"]}
    job.cancel(status="cancelled", cancelled_at=now(), **times)
    return plain(job.finished if job.seen else {**job.begun, "status": "cancelling", **times})


def every(asked: Asked) -> Answer:
    """``GET /v1/batches``: as they stand, without being polled."""
    jobs: list[Job] = asked.store.every("batch")
    return plain(page([job.shown for job in jobs], asked.query))


def _finished(asked: Asked, begun: Json, source: bytes) -> tuple[Json, list[Charge]]:
    """The batch at its end, and what its lines cost."""
    try:
        requests = [msgspec.json.decode(line, type=_Request) for line in source.splitlines() if line.strip()]
    except msgspec.DecodeError as error:
        wrong = {"code": "invalid_json_line", "message": f"This line is not parseable: {error}", "line": None, "param": None}
        return {**begun, "status": "failed", "failed_at": now(), "errors": {"object": "list", "data": [wrong]}}, []
    answered = list(_answered(asked, begun, requests))
    good = [line for line in answered if line.status == 200]
    bad = [line for line in answered if line.status != 200]
    bills = [bill for line in good for bill in line.bills]
    usage = reported(asked.options, lambda: _sum([line.answered["response"]["body"].get("usage") for line in good]))
    counts = {"total": len(answered), "completed": len(good), "failed": len(bad)}
    done = {
        "status": "completed",
        "model": next((line.answered["response"]["body"].get("model") for line in good), None),
        "output_file_id": _write(asked, f"{begun['id']}_output.jsonl", good),
        "error_file_id": _write(asked, f"{begun['id']}_error.jsonl", bad),
        "request_counts": counts,
        "usage": usage,
    }
    return {**begun, **done, **dict.fromkeys(("in_progress_at", "finalizing_at", "completed_at"), now())}, bills


def _answered(asked: Asked, begun: Json, requests: list[_Request]) -> Iterator[_Line]:
    for request in requests:
        body = {name: value for name, value in request.body.items() if name not in ("background", "stream", "stream_options")}
        prompt = list(prompt_texts(body))
        user = marked_user(prompt) or asked.user
        bills: list[Charge] = []
        try:
            faults = read_faults({}, prompt)
            if faults.status is not None:
                raise faults.refusal
            answer = _ENDPOINTS[begun["endpoint"]](replace(asked, body=body, options=faults.options, user=user))
            status, shown, bills = 200, answer.parts[0], list(answer.bills)
        except Refusal as refusal:
            status, shown = refusal.status, openai_error(refusal)
        for bill in bills:
            bill.user = user
        response = {"status_code": status, "request_id": hexadecimal(32), "body": msgspec.json.decode(shown)}
        line = {"id": f"batch_req_{hexadecimal(32)}", "custom_id": request.custom_id, "response": response, "error": None}
        yield _Line(line, status, bills)


def _write(asked: Asked, name: str, answered: list[_Line]) -> str | None:
    """Write a file of the batch; none where there is nothing to write."""
    if not answered:
        return None
    written = lines([line.answered for line in answered], *(bill for line in answered for bill in line.bills))
    made: str = _keep(asked, name, b"".join(written.parts), "batch_output", list(written.bills))["id"]
    return made


def _keep(asked: Asked, name: str, data: bytes, purpose: str, bills: list[Charge]) -> Json:
    made = f"file-{hexadecimal(24)}"
    shown = {"object": "file", "id": made, "purpose": purpose, "filename": name, "bytes": len(data), "created_at": now()}
    shown |= {"expires_at": None, "status": "processed", "status_details": None}
    asked.store.keep("file", made, File(shown, data, bills), asked.user)
    return shown


def _sum(usages: list[Any]) -> Json:
    """As responses report it, whatever the endpoint."""
    tokens = [tokens_of(usage) for usage in usages]
    total = Tokens(*(sum(getattr(one, name) for one in tokens) for name in ("input", "cached", "output", "reasoning")))
    return {
        "input_tokens": total.input,
        "input_tokens_details": {"cached_tokens": total.cached},
        "output_tokens": total.output,
        "output_tokens_details": {"reasoning_tokens": total.reasoning},
        "total_tokens": total.input + total.output,
    }
