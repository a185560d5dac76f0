"""OpenAI's Realtime API: a conversation in text and audio, transcribed by another model."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints.audio import transcript_usage
from voight_middleware.testing.endpoints.errors import Refusal
from voight_middleware.testing.endpoints.response import EndpointRequest, now, present, reported
from voight_middleware.testing.endpoints.session import Turn, described, merged, numbered
from voight_middleware.testing.fake_data import FakeResponse, Json, hexadecimal

_BYTES_A_SECOND = 48_000
"""PCM of 24 kHz and 16 bits."""
_AUDIO_TOKENS_A_SECOND = 10
_MINUTES = 1800


class RealtimeSession:
    """
    One connection. Each committed audio buffer is transcribed with the session's
    ``audio.input.transcription`` model, by default ``gpt-4o-mini-transcribe``.
    """

    def __init__(self, request: EndpointRequest) -> None:
        pcm = {"type": "audio/pcm", "rate": 24000}
        self._session: Json = {
            "type": "realtime",
            "object": "realtime.session",
            "id": f"sess_{hexadecimal(21)}",
            "model": request.query.get("model") or "gpt-realtime",
            "output_modalities": ["audio"],
            "instructions": "",
            "tools": [],
            "tool_choice": "auto",
            "max_output_tokens": "inf",
            "audio": {
                "input": {
                    "format": pcm,
                    "transcription": {"model": "gpt-4o-mini-transcribe"},
                    "turn_detection": None,
                },
                "output": {"format": pcm, "voice": "marin", "speed": 1.0},
            },
            "expires_at": now() + _MINUTES,
        }
        self._items: list[Json] = []
        self._buffered = 0
        self._seconds = 0

    def greeting(self) -> Sequence[Json]:
        return numbered([{"type": "session.created", "session": self._session}])

    def handle(self, request: EndpointRequest) -> Turn:
        message = request.body
        match message.get("type"):
            case "session.update":
                self._session = merged(self._session, message.get("session") or {})
                return Turn(numbered([{"type": "session.updated", "session": self._session}]))
            case "conversation.item.create":
                return Turn(
                    numbered(
                        self._add(
                            {
                                "id": f"item_{hexadecimal(21)}",
                                "status": "completed",
                                **message["item"],
                            }
                        )
                    )
                )
            case "input_audio_buffer.append":
                self._buffered += len(base64.b64decode(message.get("audio") or ""))
                return Turn()
            case "input_audio_buffer.clear":
                self._buffered = 0
                return Turn(numbered([{"type": "input_audio_buffer.cleared"}]))
            case "input_audio_buffer.commit":
                return self._commit(request)
            case "response.create":
                return self._respond(request)
            case kind:
                raise Refusal(400, f"Invalid value: '{kind}'.", "type", "invalid_value")

    def error(self, refusal: Refusal) -> Json:
        return numbered([{"type": "error", "error": {**described(refusal), "event_id": None}}])[0]

    def _add(self, item: Json) -> list[Json]:
        before = self._items[-1]["id"] if self._items else None
        self._items.append({**item, "object": "realtime.item"})
        kinds = ("conversation.item.added", "conversation.item.done")
        return [
            {"type": kind, "previous_item_id": before, "item": self._items[-1]} for kind in kinds
        ]

    def _commit(self, request: EndpointRequest) -> Turn:
        if not self._buffered:
            raise Refusal(
                400,
                "Error committing input audio buffer: buffer too small.",
                None,
                "input_audio_buffer_commit_empty",
            )
        seconds, self._buffered = math.ceil(self._buffered / _BYTES_A_SECOND), 0
        self._seconds += seconds
        item = {
            "id": f"item_{hexadecimal(21)}",
            "type": "message",
            "status": "completed",
            "role": "user",
        }
        before = self._items[-1]["id"] if self._items else None
        events = [
            {
                "type": "input_audio_buffer.committed",
                "previous_item_id": before,
                "item_id": item["id"],
            }
        ]
        events += self._add({**item, "content": [{"type": "input_audio", "transcript": None}]})
        writer = (self._session["audio"]["input"].get("transcription") or {}).get("model")
        if writer is None:
            return Turn(numbered(events))
        made = FakeResponse({"model": writer, "input": str(seconds)}, None, None)
        tokens = transcript_usage(made, seconds)
        usage = reported(
            request.options,
            lambda: (
                {"type": "duration", "seconds": float(seconds)} if "whisper" in writer else tokens
            ),
        )
        kind = "conversation.item.input_audio_transcription"
        pieces = made.pieces(request.options.chunks)
        place = {"item_id": item["id"], "content_index": 0}
        events += [{"type": f"{kind}.delta", **place, "delta": piece} for piece in pieces]
        events.append(
            {"type": f"{kind}.completed", **place, "transcript": "".join(pieces), **present(usage)}
        )
        return Turn(numbered(events), [Charge(usage)], starts=True, completes=True)

    def _respond(self, request: EndpointRequest) -> Turn:
        wanted = merged(self._session, request.body.get("response") or {})
        limit, audible = wanted["max_output_tokens"], "audio" in wanted["output_modalities"]
        parts = [
            part
            for item in [*self._items, *(wanted.get("input") or ())]
            for part in item.get("content") or ()
        ]
        texts = [part.get("text") or part.get("transcript") or "" for part in parts]
        prompt = {
            "model": self._session["model"],
            "input": texts,
            "instructions": wanted["instructions"],
        }
        made = FakeResponse(prompt, None, limit if isinstance(limit, int) else None)
        usage = reported(request.options, lambda: self._usage(made, audible=audible))
        pieces = made.pieces(request.options.chunks)
        part = (
            {"type": "audio", "transcript": "".join(pieces)}
            if audible
            else {"type": "text", "text": "".join(pieces)}
        )
        item: Json = {
            "id": f"item_{hexadecimal(21)}",
            "type": "message",
            "role": "assistant",
            "status": "completed",
        }
        whole = {**item, "content": [{**part, "type": f"output_{part['type']}"}]}
        status = "incomplete" if made.cut_short else "completed"
        initial: Json = {
            "object": "realtime.response",
            "id": f"resp_{hexadecimal(21)}",
            "status": "in_progress",
            "status_details": None,
            "output": [],
            "conversation_id": f"conv_{hexadecimal(21)}",
            "output_modalities": wanted["output_modalities"],
            "max_output_tokens": limit,
            "audio": {
                "output": {name: wanted["audio"]["output"][name] for name in ("format", "voice")}
            },
            "usage": None,
            "metadata": None,
        }
        details = {"type": "incomplete", "reason": "max_output_tokens"} if made.cut_short else None
        done = {
            **initial,
            "status": status,
            "status_details": details,
            "output": [whole],
            "usage": usage,
        }
        events = [
            {"type": "response.created", "response": initial},
            *self._spoken(initial["id"], item, part, pieces),
        ]
        events += self._add(whole)[1:]
        events.append({"type": "response.done", "response": done})
        return Turn(numbered(events), [Charge(usage)], starts=True, completes=True)

    def _spoken(self, response: str, item: Json, part: Json, pieces: Sequence[str]) -> list[Json]:
        opened: Json = {**item, "status": "in_progress", "content": []}
        place = {"response_id": response, "output_index": 0}
        inside = {**place, "item_id": item["id"], "content_index": 0}
        kind, name = (
            ("output_audio_transcript", "transcript")
            if part["type"] == "audio"
            else ("output_text", "text")
        )
        events: list[Json] = [
            {"type": "response.output_item.added", **place, "item": opened},
            {"type": "conversation.item.added", "previous_item_id": None, "item": opened},
            {
                "type": "response.content_part.added",
                **inside,
                "part": {"type": part["type"], name: ""},
            },
        ]
        for piece in pieces:
            events.append({"type": f"response.{kind}.delta", **inside, "delta": piece})
            if part["type"] == "audio":
                events.append(
                    {"type": "response.output_audio.delta", **inside, "delta": "AAAAAAAA"}
                )
        if part["type"] == "audio":
            events.append({"type": "response.output_audio.done", **inside})
        done = {**item, "content": [{**part, "type": f"output_{part['type']}"}]}
        return [
            *events,
            {"type": f"response.{kind}.done", **inside, name: part[name]},
            {"type": "response.content_part.done", **inside, "part": part},
            {"type": "response.output_item.done", **place, "item": done},
        ]

    def _usage(self, made: FakeResponse, *, audible: bool) -> Json:
        """Return the usage. The same share of text and audio tokens is cached."""
        text = made.input_tokens
        audio = self._seconds * _AUDIO_TOKENS_A_SECOND
        output = made.output_tokens
        cached: dict[str, Any] = {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0}
        if made.number("cached", 0, 2):
            cached |= {"text_tokens": text // 2, "audio_tokens": audio // 2}
        spoken = output * 3 // 4 if audible else 0
        return {
            "total_tokens": text + audio + output,
            "input_tokens": text + audio,
            "output_tokens": output,
            "input_token_details": {
                "text_tokens": text,
                "audio_tokens": audio,
                "image_tokens": 0,
                "cached_tokens": sum(cached.values()),
                "cached_tokens_details": cached,
            },
            "output_token_details": {"text_tokens": output - spoken, "audio_tokens": spoken},
        }
