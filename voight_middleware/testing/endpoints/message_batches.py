"""Anthropic's message batches. The same endpoint serves their requests and single ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import msgspec

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints import messages
from voight_middleware.testing.endpoints.errors import Refusal, anthropic_error
from voight_middleware.testing.endpoints.response import (
    EndpointRequest,
    EndpointResponse,
    lines,
    need,
    one_line,
    page,
)
from voight_middleware.testing.fake_data import Json, hexadecimal, prompt_texts
from voight_middleware.testing.faults import marked_user, read_faults
from voight_middleware.testing.store import Job

_RESULTS = ("succeeded", "errored", "canceled", "expired")


@dataclass(eq=False, slots=True)
class _Batch:
    job: Job
    results: Sequence[Json]


def create(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/messages/batches``."""
    need(request.body, "requests", message=messages.FIELD_REQUIRED)
    made, at = f"msgbatch_01{hexadecimal(22)}", datetime.now(UTC)
    initial: Json = {
        "id": made,
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": {
            "processing": len(request.body["requests"]),
            **dict.fromkeys(_RESULTS, 0),
        },
        "ended_at": None,
        "created_at": at.isoformat(),
        "expires_at": (at + timedelta(days=1)).isoformat(),
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": None,
    }
    charges: list[Charge] = []
    results = [
        {"custom_id": item["custom_id"], "result": _result(request, item["params"], charges)}
        for item in request.body["requests"]
    ]
    job = Job(initial, _ended(request, initial, results), request.options.polls or 0, charges)
    request.store.keep("message batch", made, _Batch(job, results), request.user)
    return one_line(initial)


def retrieve(request: EndpointRequest) -> EndpointResponse:
    """``GET /v1/messages/batches/{id}``: ended at the first poll by default."""
    batch: _Batch = request.store.find("message batch", request.ids["id"])
    return one_line(batch.job.poll())


def every(request: EndpointRequest) -> EndpointResponse:
    """``GET /v1/messages/batches``: as last shown. This does not count as a poll."""
    batches: list[_Batch] = request.store.every("message batch")
    return one_line(page([batch.job.shown for batch in batches], request.query))


def cancel(request: EndpointRequest) -> EndpointResponse:
    """
    ``POST /v1/messages/batches/{id}/cancel``: no request has a result. A batch that was seen ended
    stays.
    """
    batch: _Batch = request.store.find("message batch", request.ids["id"])
    if batch.job.seen:
        raise Refusal(400, "This batch has already ended.")
    at = datetime.now(UTC).isoformat()
    batch.results = [{**line, "result": {"type": "canceled"}} for line in batch.results]
    canceling = {**batch.job.initial, "cancel_initiated_at": at}
    batch.job = Job(canceling, _ended(request, canceling, batch.results), 0)
    return one_line({**canceling, "processing_status": "canceling"})


def results(request: EndpointRequest) -> EndpointResponse:
    """
    ``GET /v1/messages/batches/{id}/results``: counts the cost of the requests, for their users.
    """
    batch: _Batch = request.store.find("message batch", request.ids["id"])
    if not batch.job.seen:
        raise Refusal(404, "This batch has no results yet.")
    return replace(lines(batch.results, *batch.job.charges), media_type="application/x-jsonl")


def _result(request: EndpointRequest, params: Json, charges: list[Charge]) -> Json:
    prompt = list(prompt_texts(params))
    try:
        faults = read_faults({}, prompt)
        if faults.status is not None:
            raise faults.refusal
        if faults.result is not None:
            return {"type": faults.result}
        response = messages.create(
            replace(request, body={**params, "stream": False}, options=faults.options)
        )
    except Refusal as refusal:
        return {
            "type": "errored",
            "error": msgspec.json.decode(anthropic_error(refusal, f"req_{hexadecimal(24)}")),
        }
    message = msgspec.json.decode(response.parts[0])
    if faults.usage is None and "usage" in message:
        message["usage"]["service_tier"] = "batch"
    (charge,) = response.charges
    charge.user = marked_user(prompt)
    charges.append(charge)
    return {"type": "succeeded", "message": message}


def _ended(request: EndpointRequest, initial: Json, results: Sequence[Json]) -> Json:
    counts = Counter(line["result"]["type"] for line in results)
    return {
        **initial,
        "processing_status": "ended",
        "request_counts": {"processing": 0, **{name: counts[name] for name in _RESULTS}},
        "ended_at": datetime.now(UTC).isoformat(),
        "results_url": f"{request.origin}/v1/messages/batches/{initial['id']}/results",
    }
