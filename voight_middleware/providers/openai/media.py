"""
Parsers of OpenAI's images, audio and videos, which are billed by tokens, images, seconds or
characters.

Source of the shapes: OpenAI API reference (images, audio, videos). Facts that are not reported come
from the request, but only those that the price list counts: the size and quality of a dall-e image,
and the characters that are to be spoken.
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
    StreamParser,
    failure_of,
    is_null,
    parse_response,
    text_or_none,
    usage_json,
    with_usage,
)

# -- images ----------------------------------------------------------------------------------------


class _Image(msgspec.Struct):
    """One image, whose fields are not read."""


class _Images(msgspec.Struct):
    data: list[_Image] | None = None
    usage: msgspec.Raw = NULL
    svg_usage: msgspec.Raw = NULL
    error: msgspec.Raw = NULL
    size: str | None = None
    quality: str | None = None


_decode_images = msgspec.json.Decoder(_Images).decode


def parse_images(body: bytes) -> ResponseSummary:
    """Read a response with images: its tokens, or else their number, size and quality."""
    response = _decode_images(body)
    usage = response.usage
    if is_null(usage) and response.data is not None:
        usage = with_usage(
            NULL,
            images=len(response.data),
            **_strings(size=response.size, quality=response.quality),
        )
    if not is_null(response.svg_usage):
        usage = with_usage(usage, svg_usage=response.svg_usage)
    return ResponseSummary(usage=usage, failure=failure_of(response.error))


def _add_size(summary: ResponseSummary, request: Mapping[str, Any]) -> ResponseSummary:
    """Add the requested size and quality, if the usage counts images without them."""
    usage = None if is_null(summary.usage) else msgspec.json.decode(summary.usage)
    if isinstance(usage, dict) and "images" in usage:
        requested = _strings(size=request.get("size"), quality=request.get("quality"))
        summary.usage = with_usage(NULL, **{**requested, **usage})
    return summary


def _strings(**values: object) -> dict[str, str]:
    return {name: value for name, value in values.items() if isinstance(value, str)}


class ImagesParser(StreamParser):
    """A stream of partial and then whole images. Each whole one carries its own usage."""

    def __init__(self) -> None:
        super().__init__()
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


def _add(total: dict[str, Any], usage: Mapping[str, Any]) -> None:
    for name, value in usage.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(name, {}), value)
        elif isinstance(value, int):
            total[name] = total.get(name, 0) + value


# -- audio -----------------------------------------------------------------------------------------


class _Transcript(msgspec.Struct):
    usage: msgspec.Raw = NULL
    duration: float | str | None = None
    error: msgspec.Raw = NULL


_decode_transcript = msgspec.json.Decoder(_Transcript).decode


def parse_transcript(body: bytes) -> ResponseSummary:
    """
    Read a transcription or a translation: its usage, or at least its duration.

    Raises:
        msgspec.DecodeError: *body* is plain text, subtitles or another format without usage.
    """
    transcript = _decode_transcript(body)
    if is_null(transcript.usage) and transcript.duration is not None:
        return ResponseSummary(
            usage=with_usage(NULL, type="duration", seconds=float(transcript.duration))
        )
    return ResponseSummary(usage=transcript.usage, failure=failure_of(transcript.error))


class TranscriptParser(StreamParser):
    """A stream of a transcription."""

    def __init__(self) -> None:
        super().__init__()
        self._usage: Any = None

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
        return None if self._usage is not None else self._tokens_of_text()


def parse_speech(body: bytes) -> ResponseSummary:
    """
    Read a speech response. Audio contains no usage.

    The last server-sent event has it (``stream_format="sse"``).
    """
    if body.startswith((b"data:", b"event:")):
        for line in body.splitlines():
            if line.startswith(b"data:") and b'"speech.audio.done"' in line:
                return parse_response(line[5:].strip())
    return ResponseSummary()


def _add_characters(summary: ResponseSummary, request: Mapping[str, Any]) -> ResponseSummary:
    text = request.get("input")
    if is_null(summary.usage) and isinstance(text, str):
        summary.usage = with_usage(NULL, characters=len(text))
    return summary


# -- videos ----------------------------------------------------------------------------------------


class _Video(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    seconds: str | int | None = None
    size: str | None = None
    status: str | None = None
    created_at: int | None = None


_decode_video = msgspec.json.Decoder(_Video).decode


def parse_video(body: bytes) -> ResponseSummary:
    """Read a video. It is a job at first. A completed one is billed by its seconds and size."""
    video = _decode_video(body)
    usage = NULL
    if video.status == "completed" and video.seconds is not None:
        usage = _video_usage(video.seconds, video.size)
    failure = "failed" if video.status == "failed" else None
    return ResponseSummary(
        text_or_none(video.id),
        video.model,
        None,
        usage,
        None,
        text_or_none(video.id),
        video.created_at,
        failure,
    )


def _add_extension_seconds(summary: ResponseSummary, request: Mapping[str, Any]) -> ResponseSummary:
    """Take an extension's billed seconds from the request; the video has those of the whole."""
    seconds = request.get("seconds")
    if isinstance(seconds, str | int):
        summary.usage = _video_usage(seconds, None)
    return summary


def _video_usage(seconds: str | int, size: str | None) -> msgspec.Raw:
    return with_usage(NULL, seconds=int(seconds), **_strings(size=size))


_IMAGES = Endpoint(name="images", parse=parse_images, stream_parser=ImagesParser, enrich=_add_size)
_VIDEO = Endpoint(name="videos", parse=parse_video, job_phase="submit")

POSTS = {
    "/images/generations": _IMAGES,
    "/images/edits": _IMAGES,
    "/images/variations": _IMAGES,
    "/audio/transcriptions": Endpoint(
        name="transcriptions", parse=parse_transcript, stream_parser=TranscriptParser
    ),
    "/audio/translations": Endpoint(name="translations", parse=parse_transcript),
    "/audio/speech": Endpoint(name="speech", parse=parse_speech, enrich=_add_characters),
    "/videos": _VIDEO,
    "/videos/edits": _VIDEO,
    "/videos/extensions": Endpoint(
        name="videos", parse=parse_video, job_phase="submit", enrich=_add_extension_seconds
    ),
}
PATTERNS = [
    ("POST", r"/videos/[^/]+/remix", _VIDEO),
    ("GET", r"/videos/[^/]+", Endpoint(name="videos", parse=parse_video, job_phase="poll")),
]
