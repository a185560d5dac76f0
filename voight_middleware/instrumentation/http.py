"""
Raw HTTP: a transport of httpx or httpx2 that meters what goes through it to a provider's billable endpoint.

The request is never changed. The answer passes byte for byte, and is read as it passes; one call for each HTTP request.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, Self, TypeVar

import msgspec

from voight_middleware.diagnostics import report_internal_error
from voight_middleware.instrumentation import event_formats as events
from voight_middleware.instrumentation.bodies import MAX_BODY_BYTES, Body
from voight_middleware.instrumentation.event_formats import EventFormat, Events
from voight_middleware.instrumentation.request import MeteredRequest, RequestSlot, current_request, in_manual_block, request_here
from voight_middleware.instrumentation.streams import call_guarded, watch_close
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.providers import anthropic, bedrock, gemini
from voight_middleware.providers.base import Endpoint, ResponseSummary
from voight_middleware.providers.hosts import billing_provider
from voight_middleware.providers.openai import text as openai

T = TypeVar("T")

_LIBRARIES = ("httpx", "httpx2")
_metering = False
"""Whether anything is metered: not after ``uninstrument()``."""

# -- the public face -----------------------------------------------------------------------------------------------------------


def metered_transport(transport: T) -> T:
    """
    A transport that hands everything on to *transport* and meters the calls of LLM providers among it::

        client = httpx.Client(transport=voight.metered_transport(httpx.HTTPTransport()))

    What a metered client of an SDK sends through it is not counted twice. Wrapping twice is the same as once.

    Raises:
        TypeError: *transport* is no transport of httpx or httpx2.
    """
    made: T = _metered(transport, "metered_transport() takes a transport of httpx or httpx2")
    return made


def wrap_client(client: Any) -> bool:
    """
    Meter an httpx or httpx2 client; false for anything else.

    Raises:
        TypeError: It has a transport that is none of its library's.
    """
    if not _of_library(type(client), "Client", "AsyncClient"):
        return False
    wanted = "wrap() takes a client with a transport of httpx or httpx2"
    transport = _metered(client._transport, wanted)
    client._mounts = {pattern: None if mounted is None else _metered(mounted, wanted) for pattern, mounted in client._mounts.items()}
    client._transport = transport
    return True


def switch_off() -> None:
    """Meter nothing any more, until something is wrapped again."""
    global _metering
    _metering = False


# -- transports ----------------------------------------------------------------------------------------------------------------


class _Transport:
    """Stands in front of a transport."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._inner, name)


class _Sync(_Transport):
    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._inner.__exit__(*exc_info)

    def close(self) -> None:
        self._inner.close()

    def handle_request(self, request: Any) -> Any:
        metered = _enter(request)
        if metered is None:
            return self._inner.handle_request(request)
        outer, place = current_request.get(), RequestSlot(metered)
        current_request.set(place)  # a metered transport further inside is a part of this one
        try:
            try:
                metered.owner = metered.context.resolve()
            except Exception as error:
                report_internal_error(error)
            metered.start()
            try:
                response = self._inner.handle_request(request)
            except BaseException as error:
                call_guarded(metered.fail, error)
                raise
        finally:
            current_request.set(outer)
            place.leave()
            metered.responded()
        call_guarded(metered.watch, response)
        return response


class _Async(_Transport):
    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._inner.__aexit__(*exc_info)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def handle_async_request(self, request: Any) -> Any:
        metered = _enter(request)
        if metered is None:
            return await self._inner.handle_async_request(request)
        outer, place = current_request.get(), RequestSlot(metered)
        current_request.set(place)  # a metered transport further inside is a part of this one
        try:
            try:
                metered.owner = metered.context.owner() if metered.context.scope is None else await metered.context.aresolve()
            except Exception as error:
                report_internal_error(error)
            metered.start()
            try:
                response = await self._inner.handle_async_request(request)
            except BaseException as error:
                call_guarded(metered.fail, error)
                raise
        finally:
            current_request.set(outer)
            place.leave()
            metered.responded()
        call_guarded(metered.watch, response)
        return response


_classes: dict[tuple[type, ...], Any] = {}


def _metered(transport: Any, wanted: str) -> Any:
    """*transport* behind one of ours, which is of the same base classes."""
    global _metering
    bases = _of_library(type(transport), "BaseTransport", "AsyncBaseTransport")
    if not bases:
        raise TypeError(f"{wanted}, not {type(transport).__module__}.{type(transport).__qualname__}")
    _metering = True
    if isinstance(transport, _Transport):
        return transport
    made = _classes.get(bases)
    if made is None:
        mixins = tuple(_Async if base.__name__ == "AsyncBaseTransport" else _Sync for base in bases)
        made = _classes[bases] = type("MeteredTransport", (*mixins, *bases), {})
    return made(transport)


def _of_library(made: type, *names: str) -> tuple[type, ...]:
    """The classes of httpx and httpx2 by these names that *made* is of. By identity: openai 3.x changes the ``__module__`` of some."""
    libraries = [sys.modules.get(name) for name in _LIBRARIES]
    own = [getattr(library, name, None) for library in libraries for name in names]
    return tuple(cls for cls in made.__mro__ if any(cls is one for one in own))


# -- requests ------------------------------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """What a request is for."""

    endpoint: Endpoint
    provider: str
    path: str
    """Without what stands before the endpoint's own."""
    model: str | None = None
    """The model, where the URL names it."""
    streams: bool = False
    """Whether the URL says that the answer is streamed."""


_ANYWHERE = (
    ("/chat/completions", "openai", openai.ROUTES.find("POST", "/chat/completions")),
    ("/v1/messages", "anthropic", anthropic.ROUTES.find("POST", "/v1/messages")),
)
"""What is recognised on any host, and who bills for it where that is not known."""
_PREFIX = re.compile(
    r"(?:/+(?:api|anthropic|beta|inference|models|openai|v\d\w*|projects/[^/]+|deployments/(?P<deployment>[^/]+))(?=/))*", re.ASCII
)
"""What providers put before the path of an endpoint: ``/v1``, ``/openai/deployments/{deployment}``, ``/api/v1``, ``/anthropic/v1``, …"""
_DEPLOYED = re.compile(r"/openai/deployments/[^/]+/")
"""Azure's own form of a path, which a gateway on a host of its own passes on."""
_GOOGLE = re.compile(r"(?:.*/publishers/(?P<maker>[^/]+))?.*/(?:models|tunedModels|endpoints)/(?P<model>[^/:]+):(?P<action>\w+)")
_BEDROCK = re.compile(r"/model/(?P<model>.+)/(?P<action>[a-z-]+)")
_MAKERS = {"anthropic": _ANYWHERE[1][2], "mistralai": _ANYWHERE[0][2]}
"""Whose models on Vertex are called by ``rawPredict``, in the form of their maker."""


def find(method: str, host: str, path: str) -> Target | None:
    """What a request is for; None for any that is not billed."""
    deployed = _DEPLOYED.search(path)
    provider = billing_provider(host) or ("azure" if deployed is not None else None)
    path = path.rstrip("/")
    if provider == "azure" and (start_at := path.find("/openai/")) > 0:
        path = path[start_at:]  # behind API Management or a gateway, which put a path of their own before it
    if provider is not None:
        found = _named_in_path(provider, path) if method == "POST" else None
        if found is not None:
            return found
        start = _PREFIX.match(path)
        assert start is not None
        rest = path[start.end() :]
        endpoint = openai.ROUTES.find(method, rest) or anthropic.ROUTES.find(method, f"/v1{rest}")
        if endpoint is not None and endpoint.job_phase != "names":  # a form's file may be a stream, which is the caller's
            return Target(endpoint, provider, rest, start["deployment"])
    if method == "POST":
        for end, usual, endpoint in _ANYWHERE:
            if path.endswith(end) and endpoint is not None:
                return Target(endpoint, provider or usual, end)
    return None


def _named_in_path(provider: str, path: str) -> Target | None:
    """Where the path names the model: Gemini's, Vertex' and Bedrock's own endpoints."""
    endpoint = None
    if provider in ("google", "vertex"):
        found = _GOOGLE.fullmatch(path)
        if found is not None and found["action"] in ("generateContent", "streamGenerateContent"):
            endpoint = gemini.CONTENT
        elif found is not None and found["action"] in ("rawPredict", "streamRawPredict") and found["model"] != "count-tokens":
            endpoint = _MAKERS.get(found["maker"] or "")
    elif provider == "bedrock":
        found = _BEDROCK.fullmatch(path)
        endpoint = bedrock.ACTIONS.get(found["action"]) if found is not None else None
    else:
        return None
    if endpoint is None or found is None:
        return None
    return Target(endpoint, provider, path, found["model"], "stream" in found["action"])


def _enter(request: Any) -> RawHttpRequest | None:
    """Start the metered request of a billed request. Return None if it is metered elsewhere, is not billed, or on an error of ours."""
    try:
        if not _metering or in_manual_block() or request_here() is not None:
            return None
        url = request.url
        target = find(request.method, url.host, url.path)
        if target is None or not current_meter().settings.enabled:
            return None
        return RawHttpRequest(target, url.host, _body(request))
    except Exception as error:
        report_internal_error(error)
        return None


def _body(request: Any) -> dict[str, Any]:
    """The body of a request as far as it is there: JSON, or the fields of a form beside its files."""
    try:
        content = request.content
    except Exception:  # RequestNotRead: it is streamed, and must stay so
        fields = getattr(request.stream, "fields", ())
        return {field.name: field.value for field in fields if isinstance(getattr(field, "value", None), str)}
    if not content.startswith(b"{") or len(content) > MAX_BODY_BYTES:
        return {}
    try:
        return dict(msgspec.json.decode(content))
    except (msgspec.DecodeError, RecursionError):
        return {}


# -- answers -------------------------------------------------------------------------------------------------------------------


_FORMS: Mapping[str, EventFormat] = {"chat": events.CHAT_SSE, "runs": events.NAMED_SSE}
"""Server-sent events that are not read as any other, by endpoint."""


class RawHttpRequest(MeteredRequest):
    """One HTTP request, from when it is sent to the end of its answer."""

    __slots__ = ()

    def __init__(self, target: Target, host: str, body: Mapping[str, Any]) -> None:
        streams = target.streams or body.get("stream") in (True, "true")
        if target.endpoint is gemini.CONTENT:
            body = gemini.prompt_of(body)
        if target.model is not None:
            body = {"model": target.model, **body}
        super().__init__(target.endpoint, target.path, body, host, target.provider, streams)

    def watch(self, response: Any) -> None:
        """Meter an answer: at once where it failed or is whole, at its end where the caller is going to read it."""
        status = response.status_code
        if status >= 400:
            self._refused(status)
            return
        if not 200 <= status < 300:
            return
        if self.provider == "bedrock":
            self.endpoint = bedrock.counted(self.endpoint, response.headers)
        form = self._form(response.headers.get("content-type", ""))
        if form is not None:
            self._watch_events(response, form)
        elif self.endpoint.parse_line is not None:
            self.lines_read(response.content) if response.is_closed else self.read_when_closed(response, 0)
        else:
            self._watch_body(response)

    def _refused(self, status: int) -> None:
        if self.endpoint.parse is not None and self.endpoint.job_phase != "tells":
            self.finish(ResponseSummary(), "error", http_status=status)

    def _form(self, content_type: str) -> EventFormat | None:
        """How events lie in the answer; None for one that is not streamed, or that has no reader."""
        if self.endpoint.stream_parser is None:
            return None
        sent = _FORMS.get(self.endpoint.name) or events.SSE
        if content_type.startswith("text/event-stream"):
            return sent
        if content_type.startswith("application/vnd.amazon.eventstream"):
            return events.AWS_EVENT_STREAM
        if not self.stream:
            return None
        if self.endpoint is gemini.CONTENT:
            return events.ARRAY
        return None if content_type.startswith("application/json") else sent

    def _watch_events(self, response: Any, form: EventFormat) -> None:
        completion = self.completion(response.status_code, 0)
        assert completion is not None
        self.stream = True
        body = Events(response, form, completion.reader)
        if response.is_closed:
            body.all_there(response.content)
            self.read_by_hand(body, completion)
        else:
            watch_close(response, partial(self.read_by_hand, body, completion), body)

    def _watch_body(self, response: Any) -> None:
        status = response.status_code
        if response.is_closed:
            self.body_read(response.content, status, 0)
            return
        body = Body(response)
        if response.headers.get("content-type", "").startswith("audio/"):
            body.forget()  # it says nothing of its usage

        def closed() -> None:
            if body.ended:
                self.body_read(body.content(), status, 0)
            elif self.endpoint.parse is not None:
                error = body.error
                outcome = "aborted" if error is None else "error" if isinstance(error, Exception) else "cancelled"
                self.finish(ResponseSummary(), outcome, error=None if error is None else type(error).__name__, http_status=status)

        watch_close(response, closed, body)
