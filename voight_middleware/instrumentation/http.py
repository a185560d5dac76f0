"""
Raw HTTP: a transport of httpx or httpx2 that meters the calls of LLM providers.

The request is never changed. The response passes byte for byte, and is parsed as it passes. Each
HTTP request is one call.
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
from voight_middleware.instrumentation.request import (
    MeteredRequest,
    RequestSlot,
    aresolve_owner,
    in_manual_block,
    request_here,
    resolve_owner,
)
from voight_middleware.instrumentation.streams import call_guarded, watch_close
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.providers import anthropic, bedrock, gemini
from voight_middleware.providers.base import Endpoint, ResponseSummary
from voight_middleware.providers.hosts import billing_provider
from voight_middleware.providers.openai import text as openai

T = TypeVar("T")

_LIBRARIES = ("httpx", "httpx2")
_metering = False
"""Whether anything is metered. False after ``uninstrument()``."""

# -- the public face -------------------------------------------------------------------------------


def metered_transport(transport: T) -> T:
    """
    Return a transport that passes every request on to *transport* and meters the LLM calls among
    them::

        client = httpx.Client(transport=voight.metered_transport(httpx.HTTPTransport()))

    Requests of a metered SDK client through it are not counted twice. Wrapping twice has the same
    effect as wrapping once.

    Raises:
        TypeError: *transport* is not a transport of httpx or httpx2.
    """
    metered: T = _metered(transport, "metered_transport() takes a transport of httpx or httpx2")
    return metered


def wrap_client(client: Any) -> bool:
    """
    Meter an httpx or httpx2 client. Return False for anything else.

    Raises:
        TypeError: Its transport is not one of its library.
    """
    if not _of_library(type(client), "Client", "AsyncClient"):
        return False
    requirement = "wrap() takes a client with a transport of httpx or httpx2"
    transport = _metered(client._transport, requirement)
    client._mounts = {
        pattern: None if mounted is None else _metered(mounted, requirement)
        for pattern, mounted in client._mounts.items()
    }
    client._transport = transport
    return True


def switch_off() -> None:
    """Stop metering until something is wrapped again."""
    global _metering
    _metering = False


# -- transports ------------------------------------------------------------------------------------


class _Transport:
    """A transport around another one."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":  # a copy is being made
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
        with RequestSlot(metered):  # a metered transport inside this one is a part of it
            metered.owner = resolve_owner(metered.context)
            metered.start()
            try:
                response = self._inner.handle_request(request)
            except BaseException as error:
                call_guarded(metered.fail, error)
                raise
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
        with RequestSlot(metered):  # a metered transport inside this one is a part of it
            metered.owner = await aresolve_owner(metered.context)
            metered.start()
            try:
                response = await self._inner.handle_async_request(request)
            except BaseException as error:
                call_guarded(metered.fail, error)
                raise
        call_guarded(metered.watch, response)
        return response


_classes: dict[tuple[type, ...], Any] = {}


def _metered(transport: Any, requirement: str) -> Any:
    """Return *transport* wrapped in a metered one of the same base classes."""
    global _metering
    bases = _of_library(type(transport), "BaseTransport", "AsyncBaseTransport")
    if not bases:
        raise TypeError(
            f"{requirement}, not {type(transport).__module__}.{type(transport).__qualname__}"
        )
    _metering = True
    if isinstance(transport, _Transport):
        return transport
    metered_class = _classes.get(bases)
    if metered_class is None:
        mixins = tuple(_Async if base.__name__ == "AsyncBaseTransport" else _Sync for base in bases)
        metered_class = _classes[bases] = type("MeteredTransport", (*mixins, *bases), {})
    return metered_class(transport)


def _of_library(kind: type, *names: str) -> tuple[type, ...]:
    """
    Return the bases of *kind* that are classes of httpx or httpx2 with these names.

    They are compared by identity: openai 3.x changes the ``__module__`` of some.
    """
    libraries = [sys.modules.get(name) for name in _LIBRARIES]
    classes = [getattr(library, name, None) for library in libraries for name in names]
    return tuple(base for base in kind.__mro__ if any(base is cls for cls in classes))


# -- requests --------------------------------------------------------------------------------------


class Target(NamedTuple):
    """The endpoint that a request is for."""

    endpoint: Endpoint
    provider: str
    path: str
    """The path of the endpoint, without a prefix."""
    model: str | None = None
    """The model, if the URL names it."""
    streams: bool = False
    """Whether the URL says that the response is streamed."""


_ANYWHERE = (
    ("/chat/completions", "openai", openai.ROUTES.find("POST", "/chat/completions")),
    ("/v1/messages", "anthropic", anthropic.ROUTES.find("POST", "/v1/messages")),
)
"""Paths that are recognized on any host, and the provider that bills if the host is not known."""
_PREFIX = re.compile(
    r"(?:/+(?:api|anthropic|beta|inference|models|openai|v\d\w*|projects/[^/]+|deployments/(?P<deployment>[^/]+))(?=/))*",
    re.ASCII,
)
"""Prefixes of an endpoint's path: ``/v1``, ``/openai/deployments/{deployment}``, ``/api/v1``, …"""
_DEPLOYED = re.compile(r"/openai/deployments/[^/]+/")
"""Azure's own form of a path. A gateway on another host passes it on."""
_GOOGLE = re.compile(
    r"(?:.*/publishers/(?P<maker>[^/]+))?.*/(?:models|tunedModels|endpoints)/(?P<model>[^/:]+):(?P<action>\w+)"
)
_BEDROCK = re.compile(r"/model/(?P<model>.+)/(?P<action>[a-z-]+)")
_MAKERS = {"anthropic": _ANYWHERE[1][2], "mistralai": _ANYWHERE[0][2]}
"""Makers whose models on Vertex are called by ``rawPredict``, in the maker's own format."""


def find(method: str, host: str, path: str) -> Target | None:
    """Return the target of a request; None for a request that is not billed."""
    deployed = _DEPLOYED.search(path)
    provider = billing_provider(host) or ("azure" if deployed is not None else None)
    path = path.rstrip("/")
    if provider == "azure" and (start_at := path.find("/openai/")) > 0:
        path = path[start_at:]  # API Management or a gateway may add a path of its own before it
    if provider is not None:
        target = _named_in_path(provider, path) if method == "POST" else None
        if target is not None:
            return target
        start = _PREFIX.match(path)
        assert start is not None
        rest = path[start.end() :]
        endpoint = openai.ROUTES.find(method, rest) or anthropic.ROUTES.find(method, f"/v1{rest}")
        # a form's file may be a stream, which is the caller's
        if endpoint is not None and endpoint.job_phase != "upload":
            return Target(endpoint, provider, rest, start["deployment"])
    if method == "POST":
        for end, usual, endpoint in _ANYWHERE:
            if path.endswith(end) and endpoint is not None:
                return Target(endpoint, provider or usual, end)
    return None


def _named_in_path(provider: str, path: str) -> Target | None:
    """Return the target if the path names the model: endpoints of Gemini, Vertex and Bedrock."""
    endpoint = None
    if provider in ("google", "vertex"):
        match = _GOOGLE.fullmatch(path)
        if match is not None and match["action"] in ("generateContent", "streamGenerateContent"):
            endpoint = gemini.CONTENT
        elif (
            match is not None
            and match["action"] in ("rawPredict", "streamRawPredict")
            and match["model"] != "count-tokens"
        ):
            endpoint = _MAKERS.get(match["maker"] or "")
    elif provider == "bedrock":
        match = _BEDROCK.fullmatch(path)
        endpoint = bedrock.ACTIONS.get(match["action"]) if match is not None else None
    else:
        return None
    if endpoint is None or match is None:
        return None
    return Target(endpoint, provider, path, match["model"], "stream" in match["action"])


def _enter(request: Any) -> RawHttpRequest | None:
    """
    Return the metered request of a billed request.

    Return None if it is metered elsewhere, is not billed, or on an error of ours.
    """
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
    """Return the JSON of a request's body, or the fields of a form without its files."""
    try:
        content = request.content
    except Exception:  # RequestNotRead: the body is a stream, and must stay one
        fields = getattr(request.stream, "fields", ())
        return {
            field.name: field.value
            for field in fields
            if isinstance(getattr(field, "value", None), str)
        }
    if not content.startswith(b"{") or len(content) > MAX_BODY_BYTES:
        return {}
    try:
        return dict(msgspec.json.decode(content))
    except (msgspec.DecodeError, RecursionError):
        return {}


# -- responses -------------------------------------------------------------------------------------


_FORMS: Mapping[str, EventFormat] = {"chat": events.CHAT_SSE, "runs": events.NAMED_SSE}
"""Formats of server-sent events other than the usual one, by endpoint."""


class RawHttpRequest(MeteredRequest):
    """One HTTP request, from its start to the end of its response."""

    __slots__ = ()

    def __init__(self, target: Target, host: str, body: Mapping[str, Any]) -> None:
        streams = target.streams or body.get("stream") in (True, "true")
        if target.endpoint is gemini.CONTENT:
            body = gemini.prompt_of(body)
        if target.model is not None:
            body = {"model": target.model, **body}
        super().__init__(target.endpoint, target.path, body, host, target.provider, streams)

    def watch(self, response: Any) -> None:
        """Meter a response: at once if it failed or is whole, else when the caller has read it."""
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
            self.lines_read(response.content) if response.is_closed else self.read_when_closed(
                response, 0
            )
        else:
            self._watch_body(response)

    def _refused(self, status: int) -> None:
        if self.endpoint.parse is not None and self.endpoint.job_phase != "poll":
            self.finish(ResponseSummary(), "error", http_status=status)

    def _form(self, content_type: str) -> EventFormat | None:
        """Return the format of the response's events; None if there are none, or no parser."""
        if self.endpoint.stream_parser is None:
            return None
        server_sent = _FORMS.get(self.endpoint.name) or events.SSE
        if content_type.startswith("text/event-stream"):
            return server_sent
        if content_type.startswith("application/vnd.amazon.eventstream"):
            return events.AWS_EVENT_STREAM
        if not self.stream:
            return None
        if self.endpoint is gemini.CONTENT:
            return events.ARRAY
        return None if content_type.startswith("application/json") else server_sent

    def _watch_events(self, response: Any, form: EventFormat) -> None:
        completion = self.completion(response.status_code, 0)
        assert completion is not None
        self.stream = True
        body = Events(response, form, completion.parser)
        if response.is_closed:
            body.feed_whole(response.content)
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
            body.forget()  # audio contains no requirement

        def closed() -> None:
            if body.ended:
                self.body_read(body.content(), status, 0)
            elif self.endpoint.parse is not None:
                error = body.error
                outcome = (
                    "aborted"
                    if error is None
                    else "error"
                    if isinstance(error, Exception)
                    else "cancelled"
                )
                self.finish(
                    ResponseSummary(),
                    outcome,
                    error=None if error is None else type(error).__name__,
                    http_status=status,
                )

        watch_close(response, closed, body)
