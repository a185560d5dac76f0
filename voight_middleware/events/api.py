"""One request to Voight's event API, and its response."""

from __future__ import annotations

import encodings.idna
import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import msgspec

from voight_middleware.config.values import EventsTarget
from voight_middleware.config.version import VERSION

PATH = "/v1/events"
TIMEOUT = 20.0
"""Seconds for a connection, and for each piece of a response."""
_RESPONSE_BYTES = 64 * 1024

_looked_up_with = encodings.idna
"""
Imported here, not at the first name lookup in the sender's thread: a child forked during that
import could never import it.
"""


class Response(NamedTuple):
    """The server's response. Status 0 means none."""

    status: int
    retry_after: float | None = None
    """Seconds."""
    body: bytes = b""
    error: str = ""
    accepted: bool = False


class EventApi:
    """
    Sends each event through a new connection. The server may close a kept connection just when it
    is used, and then the result is unknown.

    Redirects are refused and certificates are verified. ``HTTPS_PROXY`` and ``NO_PROXY`` apply.
    """

    def __init__(self, target: EventsTarget) -> None:
        self._target = target
        self._context = ssl.create_default_context() if target.url.startswith("https") else None

    def post(self, body: bytes) -> Response:
        """Send one event, once. Network and server errors are returned, not raised."""
        target = self._target
        headers = {
            "Authorization": f"Bearer {target.key}",
            "Content-Type": "application/json",
            "User-Agent": f"voight-middleware/{VERSION}",
        }
        request = urllib.request.Request(
            target.url + PATH, data=body, headers=headers, method="POST"
        )
        handlers: list[Any] = [_NoRedirects]
        if self._context is not None:
            handlers.append(urllib.request.HTTPSHandler(context=self._context))
        else:
            # HTTP is for this machine only: a proxy would get the key.
            handlers.append(urllib.request.ProxyHandler({}))
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT) as response:
                status = response.status
                # A page that responds to everything with 200 has accepted nothing. The rest of the
                # body is not needed.
                taken = status == 202 or (
                    200 <= status < 300
                    and "json" in response.headers.get("Content-Type", "").lower()
                )
                _read(response)
                return Response(status, accepted=taken)
        except urllib.error.HTTPError as error:
            with error:
                return Response(
                    error.code, retry_after(error.headers.get("Retry-After")), _read(error)
                )
        except urllib.error.URLError as error:
            return Response(0, error=_kind(error.reason))
        # OverflowError: an impossible port
        except (OSError, ValueError, OverflowError, http.client.HTTPException) as error:
            return Response(0, error=_kind(error))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: only the intended server may get the key."""

    def http_error_302(self, *_: Any, **__: Any) -> None:
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _read(response: Any) -> bytes:
    """Return the body, as far as it arrives in time."""
    body, until = b"", time.monotonic() + TIMEOUT
    try:
        while (
            len(body) < _RESPONSE_BYTES
            and time.monotonic() < until
            and (more := response.read1(_RESPONSE_BYTES))
        ):
            body += more
    except (OSError, ValueError, http.client.HTTPException):
        pass
    return body


def _kind(error: object) -> str:
    """Return the kind of an error, without the system's details, such as an address."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no response in time"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def retry_after(value: str | None) -> float | None:
    """Return seconds from now, from seconds or an HTTP date. Source: RFC 9110, section 10.2.3."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
        return max(
            0.0,
            (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()
            - time.time(),
        )
    except (ValueError, TypeError, OverflowError):
        return None


def reason(response: Response) -> object:
    """Return the paths and messages of a refusal, and nothing else of its body."""
    try:
        body = msgspec.json.decode(response.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(body, Mapping):
        return None
    details = body.get("details")
    paths = [
        {"path": str(detail.get("path"))[:200], "message": str(detail.get("message"))[:200]}
        for detail in (details if isinstance(details, list) else ())[:20]
        if isinstance(detail, Mapping)
    ]
    return {"error": str(body.get("error"))[:200], "details": paths}
