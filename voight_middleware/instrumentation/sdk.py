"""
SdkRequest: one request through the openai or anthropic SDK.

A response is metered when the SDK has made its own object from it. A stream gets a
``MeteredIterator``, a raw response is observed, and everything else is read from the bytes that the
SDK has read already.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Mapping
from typing import Any

from voight_middleware.diagnostics import report_internal_error, warn_once
from voight_middleware.instrumentation.bodies import Body
from voight_middleware.instrumentation.request import MeteredRequest
from voight_middleware.instrumentation.streams import (
    AsyncMeteredIterator,
    MeteredIterator,
    call_guarded,
    hide_usage,
    watch_close,
)
from voight_middleware.instrumentation.usage_chunks import ALWAYS_SENT
from voight_middleware.providers import bedrock
from voight_middleware.providers.base import Endpoint
from voight_middleware.providers.hosts import billing_provider, platform
from voight_middleware.providers.openai.batch_requests import uploaded

_RAW_HEADER = "X-Stainless-Raw-Response"

REFUSAL_SECONDS = 3600.0
"""How long ``stream_options`` is not sent to a host that refused it. The host may be upgraded."""
_refusing_usage: dict[str, float] = {}
"""Hosts that refused ``stream_options``, and until when (``time.monotonic``)."""


def start_request(
    client: Any, sdk: str, endpoint: Endpoint, options: Any, stream: bool
) -> SdkRequest:
    """Return the metered request that a client of an SDK is about to send."""
    host: str = client._base_url.host
    body = options.json_data
    if endpoint.job_phase == "upload":
        body = uploaded(body, options.files)
    metered = SdkRequest(
        endpoint, options.url, body, host, _provider(host, client.__class__, sdk), stream
    )
    metered.options = options
    if stream and endpoint.asks_for_usage:
        metered.ask_for_usage(options)
    return metered


class SdkRequest(MeteredRequest):
    """One request through an SDK, from its start to the end of its last response."""

    __slots__ = ("options",)

    options: Any
    """The SDK's request options, as they are sent."""

    def ask_for_usage(self, options: Any) -> None:
        """
        Ask a chat stream for its usage. The chunk that carries it is hidden again.

        Nothing is asked if the caller has set the option, or reads the raw body and would see that
        chunk.
        """
        body = self.body
        if not isinstance(body, dict) or self.provider in ALWAYS_SENT or _refuses_usage(self.host):
            return
        given = body.get("stream_options")
        extra = getattr(options, "extra_json", None) or {}
        if (
            "stream_options" in extra
            or (given is not None and not isinstance(given, dict))
            or (given and "include_usage" in given)
        ):
            return
        headers = options.headers if isinstance(options.headers, Mapping) else {}
        if headers.get(_RAW_HEADER) == "stream":
            return
        self.options = options.model_copy() if hasattr(options, "model_copy") else options.copy()
        self.options.json_data = {
            **body,
            "stream_options": {**(given or {}), "include_usage": True},
        }
        self.asked_for_usage = True

    def may_go_without_usage(self, error: BaseException) -> bool:
        """
        Return whether a server seems to have refused our ``stream_options``.

        Then the caller's own request is sent once more. A refusal for another reason may quote the
        caller, so only the response to the second request shows whether it was about our option.
        """
        if not self.asked_for_usage or getattr(error, "status_code", None) not in (400, 422):
            return False
        param = getattr(error, "param", None)
        if "stream_options" not in (param if isinstance(param, str) else str(error)):
            return False
        self.asked_for_usage = False
        return True

    def succeeded_without_usage(self) -> None:
        """Remember that the host streams only if usage is not asked for. Never raises."""
        _refusing_usage[self.host] = time.monotonic() + REFUSAL_SECONDS
        call_guarded(
            warn_once,
            "a server refused stream_options.include_usage; its streams are metered by estimate",
        )

    def watch(self, response: Any, result: Any, retries: int) -> None:
        """Meter a response: at once if it is whole, else at its end."""
        # seen by a middleware of the SDK; the request raises or retries
        if response.status_code >= 400:
            return
        if self.provider == "bedrock":
            self.endpoint = bedrock.counted(self.endpoint, response.headers)
        if not self.stream or self.endpoint.parse_line is not None:
            self._responses += 1
            if not response.is_closed:
                self.read_when_closed(response, retries)
            elif self.endpoint.parse_line is not None:
                self.lines_read(response.content)
            else:
                self.body_read(response.content, response.status_code, retries)
        elif hasattr(type(result), "__stream__"):
            self._responses += 1
            self._meter_stream(response, result, retries)
        elif hasattr(result, "parse"):
            self._responses += 1
            self._meter_when_parsed(response, result, retries)

    def _meter_stream(self, response: Any, stream: Any, retries: int) -> None:
        completion = self.completion(response.status_code, retries)
        if completion is not None:
            iterator = stream._iterator
            stream._iterator = (
                AsyncMeteredIterator(iterator, completion)
                if hasattr(iterator, "__anext__")
                else MeteredIterator(iterator, completion)
            )
            watch_close(response, completion.close)

    def _meter_when_parsed(self, response: Any, result: Any, retries: int) -> None:
        """
        Meter a raw response: ``parse()`` makes the stream, or the caller reads the body.

        That is ``with_raw_response`` and ``with_streaming_response``.
        """
        parse = result.parse
        body = Body(response)
        metered = False

        def closed() -> None:
            if (
                not metered
                and (completion := self.completion(response.status_code, retries)) is not None
            ):
                self.read_by_hand(body, completion)

        def meter(stream: Any) -> Any:
            nonlocal metered
            if not metered and hasattr(type(stream), "__stream__"):
                metered = True
                result.__dict__.pop("parse", None)  # ``parse`` refers to *result*
                body.forget()
                try:
                    self._meter_stream(response, stream, retries)
                except Exception as error:
                    report_internal_error(error)
                    if self.asked_for_usage:
                        call_guarded(hide_usage, stream)
            return stream

        def parse_and_meter(*args: Any, **kwargs: Any) -> Any:
            return meter(parse(*args, **kwargs))

        async def aparse_and_meter(*args: Any, **kwargs: Any) -> Any:
            return meter(await parse(*args, **kwargs))

        result.parse = functools.wraps(parse)(
            aparse_and_meter if inspect.iscoroutinefunction(parse) else parse_and_meter
        )
        watch_close(response, closed, body)


def _refuses_usage(host: str) -> bool:
    until = _refusing_usage.get(host)
    if until is None:
        return False
    if time.monotonic() < until:
        return True
    _refusing_usage.pop(host, None)
    return False


@functools.lru_cache(1024)
def _provider(host: str, client_class: type, sdk: str) -> str:
    """
    Return the provider that bills.

    An unknown host, such as a proxy, counts as the SDK's own provider.
    """
    return billing_provider(host) or platform(client_class) or sdk
