"""The errors of each provider's API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

Maker = Literal["openai", "anthropic", "google"]
"""The provider whose API a request uses."""

_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_OPENAI = {401: "authentication_error", 403: "permission_error", 429: "requests"}
_GOOGLE = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}


@dataclass(eq=False, slots=True)
class Refusal(Exception):
    """An error response to a request."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def shown(refusal: Refusal, maker: Maker, request_id: str) -> bytes:
    """Return the error in this provider's format."""
    if maker == "anthropic":
        return anthropic_error(refusal, request_id)
    return google_error(refusal) if maker == "google" else openai_error(refusal)


def error_kind(refusal: Refusal) -> str:
    """Return OpenAI's type of the error."""
    return _OPENAI.get(
        refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error"
    )


def openai_error(refusal: Refusal) -> bytes:
    """Return an error in OpenAI's format."""
    error = {
        "message": refusal.message,
        "type": error_kind(refusal),
        "param": refusal.param,
        "code": refusal.code,
    }
    return msgspec.json.format(msgspec.json.encode({"error": error}), indent=4)


def anthropic_error(refusal: Refusal, request_id: str) -> bytes:
    """Return an error in Anthropic's format."""
    kind = _ANTHROPIC.get(
        refusal.status, "invalid_request_error" if refusal.status < 500 else "api_error"
    )
    return msgspec.json.encode(
        {
            "type": "error",
            "error": {"type": kind, "message": refusal.message},
            "request_id": request_id,
        }
    )


def google_error(refusal: Refusal) -> bytes:
    """Return an error in the Gemini API's format."""
    status = _GOOGLE.get(refusal.status, "INVALID_ARGUMENT" if refusal.status < 500 else "INTERNAL")
    error = {"code": refusal.status, "message": refusal.message, "status": status}
    return msgspec.json.format(msgspec.json.encode({"error": error}), indent=2)
