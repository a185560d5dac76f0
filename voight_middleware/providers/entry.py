"""
Entry: one request of an SDK, from its entry to the end of its last answer.

An answer that is whole is read from its bytes at once; a streamed one is tapped, and one that the caller reads by hand is watched as
it passes by. Whatever its end, it becomes one call.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from voight_middleware.call import Call, new_call_id
from voight_middleware.meter import current_meter, note
from voight_middleware.providers.answers import Answer, Endpoint, StreamReader, estimate_tokens, kept
from voight_middleware.providers.bodies import Body
from voight_middleware.providers.streams import AsyncTap, Ending, Tap, quietly, watch_close
from voight_middleware.tag_values import complain
from voight_middleware.tags import NOBODY, Frame, current_frame

_RAW_HEADER = "X-Stainless-Raw-Response"

_HOSTS = (
    ("openai.azure.com", "azure"),
    ("cognitiveservices.azure.com", "azure"),
    ("services.ai.azure.com", "azure"),
    ("openrouter.ai", "openrouter"),
    ("groq.com", "groq"),
    ("deepseek.com", "deepseek"),
    ("mistral.ai", "mistral"),
    ("together.xyz", "together"),
    ("together.ai", "together"),
    ("x.ai", "xai"),
    ("fireworks.ai", "fireworks"),
    ("perplexity.ai", "perplexity"),
    ("googleapis.com", "google"),
    ("amazonaws.com", "bedrock"),
)
"""Who bills, by the end of the host's name. Any other host, such as a proxy, is billed as the SDK's own provider."""

_refusing_usage: set[str] = set()
"""Hosts that refused ``stream_options``."""


class Entry:
    """One request of an SDK, from its entry to the end of its last answer."""

    __slots__ = (
        "_answers",
        "asked_for_usage",
        "body",
        "endpoint",
        "frame",
        "host",
        "options",
        "owner",
        "provider",
        "started",
        "started_at",
        "stream",
    )

    def __init__(self, client: Any, sdk: str, endpoint: Endpoint, options: Any, stream: bool) -> None:
        self.started_at = time.time_ns()
        self.started = time.perf_counter_ns()
        self.endpoint = endpoint
        self.frame: Frame = current_frame()
        self.owner = NOBODY
        self.stream = stream
        self.options = options
        self.body = options.json_data
        self.host, self.provider = _whose(client, sdk)
        self.asked_for_usage = False
        self._answers = 0
        if stream and endpoint.asks_for_usage:
            self._ask_for_usage(options)

    def _ask_for_usage(self, options: Any) -> None:
        """
        A chat stream reports usage only where it was asked to; the chunk that carries it is hidden again.

        Nothing is asked where the caller decided himself, or reads the raw body and would see that chunk.
        """
        body = self.body
        if not isinstance(body, dict) or self.host in _refusing_usage:
            return
        wish = body.get("stream_options")
        extra = getattr(options, "extra_json", None) or {}
        if "stream_options" in extra or (wish is not None and not isinstance(wish, dict)) or (wish and "include_usage" in wish):
            return
        headers = options.headers if isinstance(options.headers, Mapping) else {}
        if headers.get(_RAW_HEADER) == "stream":
            return
        self.options = options.model_copy() if hasattr(options, "model_copy") else options.copy()
        self.options.json_data = {**body, "stream_options": {**(wish or {}), "include_usage": True}}
        self.asked_for_usage = True

    def may_go_without_usage(self, error: BaseException) -> bool:
        """Whether a server refused our ``stream_options``: then the caller's own request is sent once more, as he wrote it."""
        if not self.asked_for_usage or getattr(error, "status_code", None) not in (400, 422):
            return False
        if "stream_options" not in str(error):
            return False
        self.asked_for_usage = False
        _refusing_usage.add(self.host)
        quietly(complain, "a server refused stream_options.include_usage; its streams are metered by estimate")
        return True

    def answered(self, answer: Answer, outcome: str = "ok", **more: Any) -> None:
        """One billed answer has ended. Never raises."""
        try:
            body = self.body
            requested = body.get("model") if type(body) is dict or isinstance(body, Mapping) else None
            now = time.perf_counter_ns()
            call = Call(
                call_id=new_call_id(),
                occurred_at=self.started_at // 1000,
                provider=self.provider,
                endpoint=self.endpoint.name,
                requested_model=requested if isinstance(requested, str) else None,
                model=answer.model,
                host=self.host,
                streamed=self.stream,
                outcome=outcome,
                duration=(now - self.started) // 1000,
                response_id=answer.id,
                service_tier=answer.service_tier,
                raw_usage=kept(answer.usage),
                tool_calls=answer.tool_calls,
                **more,
            )
            current_meter().finish(call, self.frame, self.owner)
        except Exception as error:
            note(error)

    def failed(self, error: BaseException) -> None:
        """The request raised; answers that it got before are metered already."""
        if self._answers:
            return
        status = getattr(error, "status_code", None)
        self.answered(
            Answer(),
            "error" if isinstance(error, Exception) else "cancelled",
            error=type(error).__name__,
            http_status=status if isinstance(status, int) else None,
            attempts=_attempts(error),
        )

    # -- exit ------------------------------------------------------------------------------------------------------------------

    def body_read(self, body: bytes, status: int, retries: int) -> None:
        """A whole answer is there. Never raises."""
        answer = Answer()
        try:
            answer = self.endpoint.read(body)
        except msgspec.DecodeError:
            current_meter().counters["unreadable_answers"] += 1
        except Exception as error:
            note(error)
        self.answered(answer, http_status=status, attempts=retries + 1)

    def watch(self, response: Any, result: Any, retries: int) -> None:
        """Meter an answer: at once where it is whole, at its end where it is streamed."""
        if not self.stream:
            self._answers += 1
            if response.is_closed:
                self.body_read(response.content, response.status_code, retries)
            else:
                self._read_when_closed(response, retries)
        elif hasattr(type(result), "__stream__"):
            self._answers += 1
            self._tap(response, result, retries)
        elif hasattr(result, "parse"):
            self._answers += 1
            self._tap_when_parsed(response, result, retries)

    def _ending(self, status: int, retries: int) -> Ending | None:
        if self.endpoint.reader is None:
            return None

        def report(reader: StreamReader, outcome: str, error: BaseException | None, first_event: int | None) -> None:
            self.stream_ended(reader, outcome, error, first_event, status, retries)

        return Ending(self.endpoint.reader(self.asked_for_usage), report)

    def _tap(self, response: Any, stream: Any, retries: int) -> None:
        ending = self._ending(response.status_code, retries)
        if ending is not None:
            iterator = stream._iterator
            stream._iterator = AsyncTap(iterator, ending) if hasattr(iterator, "__anext__") else Tap(iterator, ending)
            watch_close(response, ending.closed)

    def stream_ended(
        self, reader: StreamReader, outcome: str, error: BaseException | None, first_event: int | None, status: int, retries: int
    ) -> None:
        """A stream has ended, one way or another. Never raises."""
        answer = Answer()
        output = input_tokens = None
        try:
            answer = reader.answer()
            unreported = kept(answer.usage) is None
            output = reader.estimated_output() if outcome != "ok" or unreported else None
            input_tokens = estimate_tokens(self.body) if output is not None and unreported else None
        except Exception as ours:
            note(ours)
        self.answered(
            answer,
            outcome,
            error=type(error).__name__ if error is not None else reader.failure,
            http_status=status,
            attempts=retries + 1,
            ttft=None if first_event is None else (first_event - self.started) // 1000,
            estimated_input=input_tokens,
            estimated_output=output,
        )

    def _tap_when_parsed(self, response: Any, result: Any, retries: int) -> None:
        """``with_raw_response``, ``with_streaming_response``: ``parse()`` makes the stream, or the caller reads the body by hand."""
        import inspect

        parse = result.parse
        body = Body(response)
        ending = self._ending(response.status_code, retries)
        tapped = False

        def closed() -> None:
            if ending is not None and not tapped:
                self._read_by_hand(body, ending)

        def taken(stream: Any) -> Any:
            nonlocal tapped
            if not tapped and hasattr(type(stream), "__stream__"):
                tapped = True
                result.__dict__.pop("parse", None)  # it refers to *result*
                body.forget()
                quietly(self._tap, response, stream, retries)
            return stream

        def parse_and_tap(*args: Any, **kwargs: Any) -> Any:
            return taken(parse(*args, **kwargs))

        async def aparse_and_tap(*args: Any, **kwargs: Any) -> Any:
            return taken(await parse(*args, **kwargs))

        result.parse = functools.wraps(parse)(aparse_and_tap if inspect.iscoroutinefunction(parse) else parse_and_tap)
        watch_close(response, closed, body)

    def _read_by_hand(self, body: Body, ending: Ending) -> None:
        """A stream's body that the caller has read himself."""
        for event in body.events():
            ending.reader.see(event)
        if body.error is not None:
            ending.failed(body.error)
        elif body.ended:
            ending.exhausted()
        else:
            ending.dropped()

    def _read_when_closed(self, response: Any, retries: int) -> None:
        """``with_streaming_response`` of a plain answer: its body passes by while the caller reads it."""
        body, status = Body(response), response.status_code

        def closed() -> None:
            if body.ended:
                self.body_read(body.content(), status, retries)
            elif body.error is not None:
                self.answered(Answer(), "error", error=type(body.error).__name__, http_status=status, attempts=retries + 1)
            else:
                self.answered(Answer(), "aborted", http_status=status, attempts=retries + 1)

        watch_close(response, closed, body)


def _attempts(error: BaseException) -> int:
    """How often a request was sent that failed; the SDK says it in a header of the last one."""
    try:
        return 1 + int(error.request.headers["x-stainless-retry-count"])  # type: ignore[attr-defined]
    except Exception:
        return 1


def _whose(client: Any, sdk: str) -> tuple[str, str]:
    """The host that a client talks to, and who bills for it; remembered on the client until its base URL changes."""
    url = client._base_url
    known = client.__dict__.get("_voight_host")
    if known is not None and known[0] is url:
        return known[1], known[2]
    host = url.host
    provider = next((name for end, name in _HOSTS if host == end or host.endswith(f".{end}")), sdk)
    client.__dict__["_voight_host"] = (url, host, provider)
    return host, provider
