"""
OpenAI's videos: generated, remixed, edited and extended. They are billed by the second, without
usage.
"""

from __future__ import annotations

from typing import Any

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints.errors import Refusal
from voight_middleware.testing.endpoints.response import (
    EndpointRequest,
    EndpointResponse,
    need,
    now,
    page,
    plain,
)
from voight_middleware.testing.fake_data import Json, hexadecimal
from voight_middleware.testing.store import Job

_DAY = 86400
_BYTES = 4096


def create(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/videos``: queued; its seconds are counted now."""
    need(request.body, "prompt")
    return _make(request, {"model": "sora-2", "seconds": "4", "size": "720x1280"})


def remix(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/videos/{id}/remix``."""
    need(request.body, "prompt")
    return _make(
        request, _source(request, request.ids["id"]), remixed_from_video_id=request.ids["id"]
    )


def edit(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/videos/edits``: of a generated or an uploaded video."""
    need(request.body, "prompt", "video")
    given = request.body["video"]
    return _make(
        request,
        _source(request, given["id"])
        if isinstance(given, dict)
        else {"model": "sora-2", "seconds": "4", "size": "720x1280"},
    )


def retrieve(request: EndpointRequest) -> EndpointResponse:
    """``GET /v1/videos/{id}``: in progress at the first poll, then completed."""
    job: Job = request.store.find("video", request.ids["id"])
    return plain(job.poll(status="in_progress", progress=50))


def every(request: EndpointRequest) -> EndpointResponse:
    """``GET /v1/videos``: as last shown. This does not count as a poll."""
    jobs: list[Job] = request.store.every("video")
    return plain(page([job.shown for job in jobs], request.query))


def content(request: EndpointRequest) -> EndpointResponse:
    """``GET /v1/videos/{id}/content``."""
    job: Job = request.store.find("video", request.ids["id"])
    if not job.seen:
        raise Refusal(404, "Video is not ready yet, use GET /v1/videos/{video_id} to check status.")
    return EndpointResponse([bytes(_BYTES)], (), media_type="video/mp4")


def _source(request: EndpointRequest, video: str) -> Json:
    job: Job = request.store.find("video", video)
    return job.initial


def _make(request: EndpointRequest, like: Json, **more: Any) -> EndpointResponse:
    initial: Json = {
        "id": f"video_{hexadecimal(48)}",
        "object": "video",
        "created_at": now(),
        "status": "queued",
        "completed_at": None,
        "error": None,
        "expires_at": None,
        "model": request.body.get("model") or like["model"],
        "progress": 0,
        "prompt": request.body["prompt"],
        "remixed_from_video_id": None,
        "seconds": str(request.body.get("seconds") or like["seconds"]),
        "size": request.body.get("size") or like["size"],
        **more,
    }
    finished = {
        **initial,
        "status": "completed",
        "progress": 100,
        "completed_at": now(),
        "expires_at": now() + _DAY,
    }
    polls = request.options.polls
    request.store.keep(
        "video", initial["id"], Job(initial, finished, 1 if polls is None else polls), request.user
    )
    return plain(initial, Charge(seconds=float(initial["seconds"])))
