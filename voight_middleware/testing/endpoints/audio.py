"""
OpenAI's audio: transcription, translation and speech. The reported usage depends on model and
format.
"""

from __future__ import annotations

import base64
import random
import zlib
from collections.abc import Sequence

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints.response import (
    EndpointRequest,
    EndpointResponse,
    need,
    plain,
    present,
    reported,
    stream,
)
from voight_middleware.testing.fake_data import FakeResponse, Json
from voight_middleware.testing.multipart import Upload

_AUDIO_TOKENS_A_SECOND = 10
_TEXT_FORMATS = ("text", "srt", "vtt")
_MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/opus",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


def transcribe(request: EndpointRequest) -> EndpointResponse:
    """
    ``POST /v1/audio/transcriptions``: ``whisper-1`` reports seconds, the others tokens, and plain
    text nothing.
    """
    body, options = request.body, request.options
    need(body, "file", "model")
    form, whisper = body.get("response_format") or "json", str(body["model"]).startswith("whisper")
    made, seconds = FakeResponse(body, None, None), _seconds(body["file"])
    pieces = made.pieces(options.chunks)
    text = "".join(pieces)
    if form in _TEXT_FORMATS:
        return _text(form, text, seconds)
    tokens = transcript_usage(made, seconds)
    usage = reported(
        options, lambda: {"type": "duration", "seconds": float(seconds)} if whisper else tokens
    )
    if body.get("stream") and not whisper:  # whisper-1 ignores `stream`
        deltas = [{"type": "transcript.text.delta", "delta": piece} for piece in pieces]
        return stream(
            [*deltas, {"type": "transcript.text.done", "text": text, **present(usage)}],
            Charge(usage),
        )
    if form == "json":
        return plain({"text": text, **present(usage)}, Charge(usage))
    if form == "diarized_json":
        segment = {
            "id": "seg_0",
            "type": "transcript.text.segment",
            "speaker": "A",
            "start": 0.0,
            "end": float(seconds),
            "text": text,
        }
        shown: Json = {
            "task": "transcribe",
            "duration": float(seconds),
            "text": text,
            "segments": [segment],
        }
    else:
        shown = {"task": "transcribe", **_verbose(text, seconds)}
    return plain({**shown, **present(usage)}, Charge(usage, seconds=0 if usage else seconds))


def translate(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/audio/translations``: only the verbose format has a duration."""
    need(request.body, "file", "model")
    form, seconds = request.body.get("response_format") or "json", _seconds(request.body["file"])
    text = "".join(FakeResponse(request.body, None, None).pieces(request.options.chunks))
    if form in _TEXT_FORMATS:
        return _text(form, text, seconds)
    if form == "verbose_json":
        return plain({"task": "translate", **_verbose(text, seconds)}, Charge(seconds=seconds))
    return plain({"text": text}, Charge())


def speak(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/audio/speech``: bytes without usage, or events with usage."""
    body, options = request.body, request.options
    need(body, "model", "input", "voice")
    form, characters = body.get("response_format") or "mp3", len(body["input"])
    if body.get("stream_format") != "sse":
        return EndpointResponse(
            _audio(options.chunks),
            [Charge(characters=characters)],
            options.chunks - 1,
            _MEDIA_TYPES.get(form, "audio/mpeg"),
        )
    made = FakeResponse(body, None, None)
    counts = {"input_tokens": characters // 4 + 1, "output_tokens": made.output_tokens}
    usage = reported(options, lambda: {**counts, "total_tokens": sum(counts.values())})
    deltas = [
        {"type": "speech.audio.delta", "audio": base64.b64encode(part).decode()}
        for part in _audio(options.chunks)
    ]
    return stream(
        [*deltas, {"type": "speech.audio.done", **present(usage)}],
        Charge(usage, characters=characters),
    )


def transcript_usage(made: FakeResponse, seconds: int) -> Json:
    """Return the token usage of a transcription."""
    audio, text = seconds * _AUDIO_TOKENS_A_SECOND, made.number("prompt tokens", 0, 40)
    counts = {
        "input_tokens": audio + text,
        "output_tokens": made.output_tokens,
        "total_tokens": audio + text + made.output_tokens,
    }
    return {
        "type": "tokens",
        **counts,
        "input_token_details": {"audio_tokens": audio, "text_tokens": text},
    }


def _seconds(file: Upload) -> int:
    """Return a fake duration of one to sixty seconds, from the file's bytes."""
    return zlib.crc32(file.data) % 60 + 1


def _verbose(text: str, seconds: int) -> Json:
    segment: Json = {
        "id": 0,
        "seek": 0,
        "start": 0.0,
        "end": float(seconds),
        "text": text,
        "tokens": [50364],
        "temperature": 0.0,
    }
    segment |= {"avg_logprob": -0.3, "compression_ratio": 1.2, "no_speech_prob": 0.01}
    return {"language": "english", "duration": float(seconds), "text": text, "segments": [segment]}


def _text(form: str, text: str, seconds: int) -> EndpointResponse:
    end = f"00:00:{seconds:02}" if seconds < 60 else "00:01:00"
    shown = {
        "text": f"{text}\n",
        "srt": f"1\n00:00:00,000 --> {end},000\n{text}\n\n",
        "vtt": f"WEBVTT\n\n00:00:00.000 --> {end}.000\n{text}\n\n",
    }[form]
    return EndpointResponse([shown.encode()], [Charge()], media_type="text/plain")


def _audio(chunks: int) -> Sequence[bytes]:
    """Return noise."""
    noise = random.Random(chunks)
    return [noise.randbytes(1024) for _ in range(chunks)]
