"""OpenAI's videos: made, remixed, edited and extended. There is no usage; they are billed by the second."""

from __future__ import annotations

from typing import Any

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints.errors import Refusal
from voight_middleware.testing.endpoints.response import Answer, Asked, need, now, page, plain
from voight_middleware.testing.fake_data import Json, hexadecimal
from voight_middleware.testing.store import Job

_DAY = 86400
_BYTES = 4096


def create(asked: Asked) -> Answer:
    """``POST /v1/videos``: queued; its seconds are counted now."""
    need(asked.body, "prompt")
    return _make(asked, {"model": "sora-2", "seconds": "4", "size": "720x1280"})


def remix(asked: Asked) -> Answer:
    """``POST /v1/videos/{id}/remix``."""
    need(asked.body, "prompt")
    return _make(asked, _source(asked, asked.ids["id"]), remixed_from_video_id=asked.ids["id"])


def edit(asked: Asked) -> Answer:
    """``POST /v1/videos/edits``: of one that was made here, or of one that is uploaded."""
    need(asked.body, "prompt", "video")
    given = asked.body["video"]
    return _make(asked, _source(asked, given["id"]) if isinstance(given, dict) else {"model": "sora-2", "seconds": "4", "size": "720x1280"})


def retrieve(asked: Asked) -> Answer:
    """``GET /v1/videos/{id}``: in progress at the first poll, then completed."""
    job: Job = asked.store.find("video", asked.ids["id"])
    return plain(job.poll(status="in_progress", progress=50))


def every(asked: Asked) -> Answer:
    """``GET /v1/videos``: as they stand, without being polled."""
    jobs: list[Job] = asked.store.every("video")
    return plain(page([job.shown for job in jobs], asked.query))


def content(asked: Asked) -> Answer:
    """``GET /v1/videos/{id}/content``."""
    job: Job = asked.store.find("video", asked.ids["id"])
    if not job.seen:
        raise Refusal(404, "Video is not ready yet, use GET /v1/videos/{video_id} to check status.")
    return Answer([bytes(_BYTES)], (), media_type="video/mp4")


def _source(asked: Asked, video: str) -> Json:
    job: Job = asked.store.find("video", video)
    return job.begun


def _make(asked: Asked, like: Json, **more: Any) -> Answer:
    begun: Json = {
        "id": f"video_{hexadecimal(48)}",
        "object": "video",
        "created_at": now(),
        "status": "queued",
        "completed_at": None,
        "error": None,
        "expires_at": None,
        "model": asked.body.get("model") or like["model"],
        "progress": 0,
        "prompt": asked.body["prompt"],
        "remixed_from_video_id": None,
        "seconds": str(asked.body.get("seconds") or like["seconds"]),
        "size": asked.body.get("size") or like["size"],
        **more,
    }
    finished = {**begun, "status": "completed", "progress": 100, "completed_at": now(), "expires_at": now() + _DAY}
    polls = asked.options.polls
    asked.store.keep("video", begun["id"], Job(begun, finished, 1 if polls is None else polls), asked.user)
    return plain(begun, Charge(seconds=float(begun["seconds"])))
