"""
The readers of OpenAI's images, audio and videos, which are billed by tokens, pictures, seconds or characters.

Source of the shapes: OpenAI API reference (images, audio, videos). What is not reported is taken from the request, and only where it
is what the price list counts: the size and quality of a dall-e picture, and the characters that are to be spoken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from voight_middleware.diagnostics import report_internal_error
from voight_middleware.providers.base import (
    NULL,
    Endpoint,
    ResponseSummary,
    failure_of,
    is_null,
    parse_response,
    text_or_none,
    usage_json,
    with_usage,
)

# -- images --------------------------------------------------------------------------------------------------------------------


class _Picture(msgspec.Struct):
    """Not looked into."""


class _Images(msgspec.Struct):
    data: list[_Picture] | None = None
    usage: msgspec.Raw = NULL
    svg_usage: msgspec.Raw = NULL
    error: msgspec.Raw = NULL
    size: str | None = None
    quality: str | None = None


_decode_images = msgspec.json.Decoder(_Images).decode


def parse_images(body: bytes) -> ResponseSummary:
    """Read an answer with pictures: tokens where they are reported, else their number, size and quality."""
    answer = _decode_images(body)
    usage = answer.usage
    if is_null(usage) and answer.data is not None:
        usage = with_usage(NULL, images=len(answer.data), **_said(size=answer.size, quality=answer.quality))
    if not is_null(answer.svg_usage):
        usage = with_usage(usage, svg_usage=answer.svg_usage)
    return ResponseSummary(usage=usage, failure=failure_of(answer.error))


def _lay_in_size(answer: ResponseSummary, request: Mapping[str, Any]) -> ResponseSummary:
    """The size and quality that were asked for, where the answer counts pictures and does not say them itself."""
    usage = None if is_null(answer.usage) else msgspec.json.decode(answer.usage)
    if isinstance(usage, dict) and "images" in usage:
        asked = _said(size=request.get("size"), quality=request.get("quality"))
        answer.usage = with_usage(NULL, **{**asked, **usage})
    return answer


def _said(**values: object) -> dict[str, str]:
    return {name: value for name, value in values.items() if isinstance(value, str)}


class ImagesParser:
    """A stream of pictures, partial ones and at last whole ones; each whole one carries its own usage."""

    def __init__(self) -> None:
        self.done = False
        self.failure: str | None = None
        self._usages: list[Any] = []

    def feed(self, event: Any) -> None:
        try:
            kind = event.type
            if kind.endswith(".completed"):
                self.done = True
                if event.usage is not None:
                    self._usages.append(event.usage)
            elif kind == "error":
                self.failure = kind
        except Exception as error:
            report_internal_error(error)

    def summary(self) -> ResponseSummary:
        total: dict[str, Any] = {}
        for usage in self._usages:
            _add(total, msgspec.json.decode(usage_json(usage)))
        return ResponseSummary(usage=msgspec.Raw(msgspec.json.encode(total)) if total else NULL)

    def estimated_output(self) -> int | None:
        return None


def _add(total: dict[str, Any], usage: Mapping[str, Any]) -> None:
    for name, value in usage.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(name, {}), value)
        elif isinstance(value, int):
            total[name] = total.get(name, 0) + value


# -- audio ---------------------------------------------------------------------------------------------------------------------


class _Transcript(msgspec.Struct):
    usage: msgspec.Raw = NULL
    duration: float | str | None = None
    error: msgspec.Raw = NULL


_decode_transcript = msgspec.json.Decoder(_Transcript).decode


def parse_transcript(body: bytes) -> ResponseSummary:
    """
    Read a transcription or a translation: its usage, or at least its duration.

    Raises:
        msgspec.DecodeError: *body* is plain text, subtitles or anything else that says nothing of usage.
    """
    answer = _decode_transcript(body)
    if is_null(answer.usage) and answer.duration is not None:
        return ResponseSummary(usage=with_usage(NULL, type="duration", seconds=float(answer.duration)))
    return ResponseSummary(usage=answer.usage, failure=failure_of(answer.error))


class TranscriptParser:
    """A stream of a transcription."""

    def __init__(self) -> None:
        self.done = False
        self.failure: str | None = None
        self._usage: Any = None
        self._characters = 0

    def feed(self, event: Any) -> None:
        try:
            kind = event.type
            if kind == "transcript.text.delta":
                self._characters += len(event.delta)
            elif kind == "transcript.text.done":
                self.done = True
                self._usage = event.usage
            elif kind == "error":
                self.failure = kind
        except Exception as error:
            report_internal_error(error)

    def summary(self) -> ResponseSummary:
        return ResponseSummary(usage=NULL if self._usage is None else usage_json(self._usage))

    def estimated_output(self) -> int | None:
        return None if self._usage is not None else (self._characters + 3) // 4


def parse_speech(body: bytes) -> ResponseSummary:
    """Sound says nothing of usage; server-sent events do in their last one (``stream_format="sse"``)."""
    if body.startswith((b"data:", b"event:")):
        for line in body.splitlines():
            if line.startswith(b"data:") and b'"speech.audio.done"' in line:
                return parse_response(line[5:].strip())
    return ResponseSummary()


def _lay_in_characters(answer: ResponseSummary, request: Mapping[str, Any]) -> ResponseSummary:
    text = request.get("input")
    if is_null(answer.usage) and isinstance(text, str):
        answer.usage = with_usage(NULL, characters=len(text))
    return answer


# -- videos --------------------------------------------------------------------------------------------------------------------


class _Video(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    seconds: str | int | None = None
    size: str | None = None
    status: str | None = None
    created_at: int | None = None


_decode_video = msgspec.json.Decoder(_Video).decode


def parse_video(body: bytes) -> ResponseSummary:
    """Read a video, which is a job at first, and has seconds and a size to be billed once it is completed."""
    video = _decode_video(body)
    usage = NULL
    if video.status == "completed" and video.seconds is not None:
        usage = _video_usage(video.seconds, video.size)
    failure = "failed" if video.status == "failed" else None
    return ResponseSummary(text_or_none(video.id), video.model, None, usage, None, text_or_none(video.id), video.created_at, failure)


def _lay_in_added_seconds(answer: ResponseSummary, request: Mapping[str, Any]) -> ResponseSummary:
    """Of an extension the request's seconds are billed; the video's own are those of the whole."""
    seconds = request.get("seconds")
    if isinstance(seconds, str | int):
        answer.usage = _video_usage(seconds, None)
    return answer


def _video_usage(seconds: str | int, size: str | None) -> msgspec.Raw:
    return with_usage(NULL, seconds=int(seconds), **_said(size=size))


_IMAGES = Endpoint(name="images", parse=parse_images, stream_parser=ImagesParser, enrich=_lay_in_size)
_VIDEO = Endpoint(name="videos", parse=parse_video, job_phase="begins")

POSTS = {
    "/images/generations": _IMAGES,
    "/images/edits": _IMAGES,
    "/images/variations": _IMAGES,
    "/audio/transcriptions": Endpoint(name="transcriptions", parse=parse_transcript, stream_parser=TranscriptParser),
    "/audio/translations": Endpoint(name="translations", parse=parse_transcript),
    "/audio/speech": Endpoint(name="speech", parse=parse_speech, enrich=_lay_in_characters),
    "/videos": _VIDEO,
    "/videos/edits": _VIDEO,
    "/videos/extensions": Endpoint(name="videos", parse=parse_video, job_phase="begins", enrich=_lay_in_added_seconds),
}
PATTERNS = [
    ("POST", r"/videos/[^/]+/remix", _VIDEO),
    ("GET", r"/videos/[^/]+", Endpoint(name="videos", parse=parse_video, job_phase="tells")),
]
