"""Anthropic's message batches. Their requests are answered by the same endpoint as single ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import msgspec

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints import messages
from voight_middleware.testing.endpoints.errors import Refusal, anthropic_error
from voight_middleware.testing.endpoints.response import Answer, Asked, lines, need, one_line, page
from voight_middleware.testing.fake_data import Json, hexadecimal, prompt_texts
from voight_middleware.testing.faults import marked_user, read_faults
from voight_middleware.testing.store import Job

_RESULTS = ("succeeded", "errored", "canceled", "expired")


@dataclass(eq=False, slots=True)
class _Batch:
    job: Job
    results: Sequence[Json]


def create(asked: Asked) -> Answer:
    """``POST /v1/messages/batches``."""
    need(asked.body, "requests", message=messages.FIELD_REQUIRED)
    made, at = f"msgbatch_01{hexadecimal(22)}", datetime.now(UTC)
    begun: Json = {
        "id": made,
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": {"processing": len(asked.body["requests"]), **dict.fromkeys(_RESULTS, 0)},
        "ended_at": None,
        "created_at": at.isoformat(),
        "expires_at": (at + timedelta(days=1)).isoformat(),
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": None,
    }
    bills: list[Charge] = []
    results = [
        {"custom_id": request["custom_id"], "result": _result(asked, request["params"], bills)} for request in asked.body["requests"]
    ]
    job = Job(begun, _ended(asked, begun, results), asked.options.polls or 0, bills)
    asked.store.keep("message batch", made, _Batch(job, results), asked.user)
    return one_line(begun)


def retrieve(asked: Asked) -> Answer:
    """``GET /v1/messages/batches/{id}``: ended at once, if nothing else is wanted."""
    batch: _Batch = asked.store.find("message batch", asked.ids["id"])
    return one_line(batch.job.poll())


def every(asked: Asked) -> Answer:
    """``GET /v1/messages/batches``: as they stand, without being polled."""
    batches: list[_Batch] = asked.store.every("message batch")
    return one_line(page([batch.job.shown for batch in batches], asked.query))


def cancel(asked: Asked) -> Answer:
    """``POST /v1/messages/batches/{id}/cancel``: nothing of it was answered yet; one that was seen ended stays."""
    batch: _Batch = asked.store.find("message batch", asked.ids["id"])
    if batch.job.seen:
        raise Refusal(400, "This batch has already ended.")
    at = datetime.now(UTC).isoformat()
    batch.results = [{**line, "result": {"type": "canceled"}} for line in batch.results]
    canceling = {**batch.job.begun, "cancel_initiated_at": at}
    batch.job = Job(canceling, _ended(asked, canceling, batch.results), 0)
    return one_line({**canceling, "processing_status": "canceling"})


def results(asked: Asked) -> Answer:
    """``GET /v1/messages/batches/{id}/results``: what the requests cost is counted here, for their users."""
    batch: _Batch = asked.store.find("message batch", asked.ids["id"])
    if not batch.job.seen:
        raise Refusal(404, "This batch has no results yet.")
    return replace(lines(batch.results, *batch.job.bills), media_type="application/x-jsonl")


def _result(asked: Asked, params: Json, bills: list[Charge]) -> Json:
    prompt = list(prompt_texts(params))
    try:
        faults = read_faults({}, prompt)
        if faults.status is not None:
            raise faults.refusal
        if faults.result is not None:
            return {"type": faults.result}
        answer = messages.create(replace(asked, body={**params, "stream": False}, options=faults.options))
    except Refusal as refusal:
        return {"type": "errored", "error": msgspec.json.decode(anthropic_error(refusal, f"req_{hexadecimal(24)}"))}
    message = msgspec.json.decode(answer.parts[0])
    if faults.usage is None and "usage" in message:
        message["usage"]["service_tier"] = "batch"
    (bill,) = answer.bills
    bill.user = marked_user(prompt)
    bills.append(bill)
    return {"type": "succeeded", "message": message}


def _ended(asked: Asked, begun: Json, answered: Sequence[Json]) -> Json:
    counts = Counter(line["result"]["type"] for line in answered)
    return {
        **begun,
        "processing_status": "ended",
        "request_counts": {"processing": 0, **{name: counts[name] for name in _RESULTS}},
        "ended_at": datetime.now(UTC).isoformat(),
        "results_url": f"{asked.origin}/v1/messages/batches/{begun['id']}/results",
    }
