"""OpenAI's files and batches. The same endpoints serve the lines of a batch and single requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from voight_middleware.testing.accounting import Charge, Tokens, tokens_of
from voight_middleware.testing.endpoints import chat, embeddings, images, responses, videos
from voight_middleware.testing.endpoints.errors import Refusal, openai_error
from voight_middleware.testing.endpoints.response import (
    Endpoint,
    EndpointRequest,
    EndpointResponse,
    lines,
    need,
    now,
    page,
    plain,
    polled,
    reported,
)
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
    """An uploaded file, or an output file of a batch."""

    shown: Json
    data: bytes
    charges: list[Charge]
    """The cost of its lines."""


class _Request(msgspec.Struct):
    """One line of a batch's input file."""

    custom_id: str
    body: Json


@dataclass(frozen=True, slots=True)
class _Line:
    """The result of one line of a batch."""

    result: Json
    status: int
    charges: list[Charge]


def upload(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/files``."""
    need(request.body, "file", "purpose")
    given: Upload = request.body["file"]
    return plain(_keep(request, given.name, given.data, str(request.body["purpose"]), []))


def file(request: EndpointRequest) -> EndpointResponse:
    """``GET /v1/files/{id}``."""
    stored: File = request.store.find("file", request.ids["id"])
    return plain(stored.shown)


def files(request: EndpointRequest) -> EndpointResponse:
    """``GET /v1/files``."""
    return plain(page([stored.shown for stored in request.store.every("file")], request.query))


def content(request: EndpointRequest) -> EndpointResponse:
    """``GET /v1/files/{id}/content``."""
    stored: File = request.store.find("file", request.ids["id"])
    return replace(lines([], *stored.charges), parts=[stored.data])


def create(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/batches``."""
    need(request.body, "input_file_id", "endpoint", "completion_window")
    source: File = request.store.find("file", request.body["input_file_id"])
    if request.body["endpoint"] not in _ENDPOINTS:
        raise Refusal(
            400, f"Invalid value: '{request.body['endpoint']}'.", "endpoint", "invalid_value"
        )
    made = f"batch_{hexadecimal(32)}"
    initial: Json = {
        "id": made,
        "object": "batch",
        "endpoint": request.body["endpoint"],
        "model": None,
        "errors": None,
        "input_file_id": request.body["input_file_id"],
        "completion_window": request.body["completion_window"],
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": now(),
        "expires_at": now() + _DAY,
        **{f"{name}_at": None for name in _TIMES},
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "usage": None,
        "metadata": request.body.get("metadata"),
    }
    finished, charges = _finished(request, initial, source.data)
    request.store.keep(
        "batch", made, Job(initial, finished, request.options.polls or 0, charges), request.user
    )
    return plain(initial)


def retrieve(request: EndpointRequest) -> EndpointResponse:
    """
    ``GET /v1/batches/{id}``: completed at the first poll by default. The cost of the lines is
    counted then, for their users.
    """
    job: Job = request.store.find("batch", request.ids["id"])
    return polled(job, status="in_progress", in_progress_at=job.initial["created_at"])


def cancel(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/batches/{id}/cancel``: a batch that was seen completed stays."""
    job: Job = request.store.find("batch", request.ids["id"])
    times = {"cancelling_at": now(), "in_progress_at": job.initial["created_at"]}
    job.cancel(status="cancelled", cancelled_at=now(), **times)
    return plain(job.finished if job.seen else {**job.initial, "status": "cancelling", **times})


def every(request: EndpointRequest) -> EndpointResponse:
    """``GET /v1/batches``: as last shown. This does not count as a poll."""
    jobs: list[Job] = request.store.every("batch")
    return plain(page([job.shown for job in jobs], request.query))


def _finished(request: EndpointRequest, initial: Json, source: bytes) -> tuple[Json, list[Charge]]:
    """Return the finished batch, and the cost of its lines."""
    try:
        requests = [
            msgspec.json.decode(line, type=_Request) for line in source.splitlines() if line.strip()
        ]
    except msgspec.DecodeError as error:
        wrong = {
            "code": "invalid_json_line",
            "message": f"This line is not parseable: {error}",
            "line": None,
            "param": None,
        }
        return {
            **initial,
            "status": "failed",
            "failed_at": now(),
            "errors": {"object": "list", "data": [wrong]},
        }, []
    results = list(_results(request, initial, requests))
    good = [line for line in results if line.status == 200]
    bad = [line for line in results if line.status != 200]
    charges = [charge for line in good for charge in line.charges]
    usage = reported(
        request.options,
        lambda: _sum([line.result["response"]["body"].get("usage") for line in good]),
    )
    counts = {"total": len(results), "completed": len(good), "failed": len(bad)}
    done = {
        "status": "completed",
        "model": next((line.result["response"]["body"].get("model") for line in good), None),
        "output_file_id": _write(request, f"{initial['id']}_output.jsonl", good),
        "error_file_id": _write(request, f"{initial['id']}_error.jsonl", bad),
        "request_counts": counts,
        "usage": usage,
    }
    return {
        **initial,
        **done,
        **dict.fromkeys(("in_progress_at", "finalizing_at", "completed_at"), now()),
    }, charges


def _results(request: EndpointRequest, initial: Json, requests: list[_Request]) -> Iterator[_Line]:
    for line_request in requests:
        body = {
            name: value
            for name, value in line_request.body.items()
            if name not in ("background", "stream", "stream_options")
        }
        prompt = list(prompt_texts(body))
        user = marked_user(prompt) or request.user
        charges: list[Charge] = []
        try:
            faults = read_faults({}, prompt)
            if faults.status is not None:
                raise faults.refusal
            endpoint_response = _ENDPOINTS[initial["endpoint"]](
                replace(request, body=body, options=faults.options, user=user)
            )
            status = 200
            shown = endpoint_response.parts[0]
            charges = list(endpoint_response.charges)
        except Refusal as refusal:
            status, shown = refusal.status, openai_error(refusal)
        for charge in charges:
            charge.user = user
        response = {
            "status_code": status,
            "request_id": hexadecimal(32),
            "body": msgspec.json.decode(shown),
        }
        line = {
            "id": f"batch_req_{hexadecimal(32)}",
            "custom_id": line_request.custom_id,
            "response": response,
            "error": None,
        }
        yield _Line(line, status, charges)


def _write(request: EndpointRequest, name: str, results: list[_Line]) -> str | None:
    """Write an output file of the batch, unless it would be empty."""
    if not results:
        return None
    written = lines(
        [line.result for line in results], *(charge for line in results for charge in line.charges)
    )
    made: str = _keep(
        request, name, b"".join(written.parts), "batch_output", list(written.charges)
    )["id"]
    return made


def _keep(
    request: EndpointRequest, name: str, data: bytes, purpose: str, charges: list[Charge]
) -> Json:
    made = f"file-{hexadecimal(24)}"
    shown = {
        "object": "file",
        "id": made,
        "purpose": purpose,
        "filename": name,
        "bytes": len(data),
        "created_at": now(),
    }
    shown |= {"expires_at": None, "status": "processed", "status_details": None}
    request.store.keep("file", made, File(shown, data, charges), request.user)
    return shown


def _sum(usages: list[Any]) -> Json:
    """Return the total in the format of responses, for all endpoints."""
    tokens = [tokens_of(usage) for usage in usages]
    total = Tokens(
        *(
            sum(getattr(part, name) for part in tokens)
            for name in ("input", "cached", "output", "reasoning")
        )
    )
    return {
        "input_tokens": total.input,
        "input_tokens_details": {"cached_tokens": total.cached},
        "output_tokens": total.output,
        "output_tokens_details": {"reasoning_tokens": total.reasoning},
        "total_tokens": total.input + total.output,
    }
