"""
The HTTP side of the loopback provider: it routes requests to endpoints, and sends responses with
faults.
"""

from __future__ import annotations

import asyncio
import uuid
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from voight_middleware.testing.accounting import Accounting
from voight_middleware.testing.endpoints.errors import Maker, Refusal, shown
from voight_middleware.testing.endpoints.registry import ENDPOINTS
from voight_middleware.testing.endpoints.response import (
    EVENTS,
    Endpoint,
    EndpointRequest,
    EndpointResponse,
)
from voight_middleware.testing.fake_data import prompt_texts
from voight_middleware.testing.faults import Faults, marked_user, read_faults
from voight_middleware.testing.multipart import read_form
from voight_middleware.testing.sockets import SESSIONS, talk
from voight_middleware.testing.store import Store


def application(accounting: Accounting, store: Store) -> Starlette:
    """Return the ASGI application of one provider."""

    async def counts(_request: Request) -> Response:
        counted = accounting.counts()
        by_user = {user: asdict(count) for user, count in counted.by_user.items()}
        return JSONResponse({"by_user": by_user, "total": asdict(counted.total)})

    routes = [Route("/_loopback/counts", counts)]
    for place, endpoint in ENDPOINTS.items():
        method, path = place.split()
        routes.append(
            Route(
                path,
                partial(_handle, endpoint=endpoint, accounting=accounting, store=store),
                methods=[method],
            )
        )
    sockets = [
        WebSocketRoute(path, partial(talk, kind=kind, accounting=accounting, store=store))
        for path, kind in SESSIONS.items()
    ]
    return Starlette(routes=[*routes, *sockets])


class _CountedResponse(Response):
    """Sends the parts of a response one by one, and counts it just before the completing part."""

    def __init__(
        self,
        accounting: Accounting,
        user: str,
        response: EndpointResponse,
        faults: Faults,
        headers: Mapping[str, str],
    ) -> None:
        self._accounting = accounting
        self._user = user
        self._response = response
        self._faults = faults
        self._counted = False
        super().__init__(media_type=response.media_type)
        del self.headers["content-length"]
        self.headers.update(headers)
        parts, self._complete_at = list(response.parts), response.complete_at
        self._ends = faults.cut_after is None
        if len(parts) == 1 and response.media_type != EVENTS:
            (body,) = parts = list(_gzipped(parts, ends=True)) if faults.encoding else parts
            self.headers["content-length"] = str(len(body))
            if not self._ends:
                parts, self._complete_at = [body[: len(body) // 2]], 1
        elif faults.cut_after is not None or faults.end_after is not None:
            parts = parts[: faults.end_after if self._ends else faults.cut_after]
        if faults.encoding:
            self.headers["content-encoding"] = faults.encoding
            parts = (
                parts
                if "content-length" in self.headers
                else list(_gzipped(parts, ends=self._ends))
            )
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # the body has been read: the next message is the client's disconnect
        gone = asyncio.ensure_future(receive())
        try:
            await asyncio.sleep(self._faults.delay_ms / 1000)
            if gone.done():
                return
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            for number, part in enumerate(self._parts):
                # also lets other streams and a client's disconnect through
                await asyncio.sleep(self._faults.chunk_delay_ms / 1000)
                if gone.done():
                    return
                if number == self._complete_at:
                    self._count(whole=True)
                await send({"type": "http.response.body", "body": part, "more_body": True})
            if self._ends:
                self._count(whole=False)
                await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()
            self._count(whole=False)

    def _count(self, *, whole: bool) -> None:
        """
        Count the response once, before its last byte: a client that has read it must find it in the
        counts.
        """
        if self._counted:
            return
        self._counted = True
        if whole:
            self._accounting.completed(self._user, self._response.charges)
        else:
            self._accounting.failed(self._user)


async def _handle(
    request: Request, *, endpoint: Endpoint, accounting: Accounting, store: Store
) -> Response:
    request_id = f"req_{uuid.uuid4().hex}"
    maker = _maker(request)
    user = store.owner(request.path_params.values()) or "-"
    try:
        body = await _body(request)
        prompt = list(prompt_texts(body))
        user = marked_user(prompt) or user
        accounting.called(user)
        if request.method == "POST":
            accounting.received(body)
        if not isinstance(body, dict):
            raise Refusal(400, "The JSON body of your request is not an object.")
        faults = read_faults(request.headers, prompt)
        if faults.status is not None and accounting.still_failing(faults.key, faults.status_times):
            await asyncio.sleep(faults.delay_ms / 1000)
            raise faults.refusal
        if faults.reject is not None and faults.reject in body:
            raise Refusal(400, f"Unrecognized request argument supplied: {faults.reject}")
        origin = str(request.base_url).rstrip("/")
        endpoint_request = EndpointRequest(
            body,
            faults.options,
            store,
            user,
            request.path_params,
            request.query_params,
            origin,
            maker,
        )
        return _CountedResponse(
            accounting, user, endpoint(endpoint_request), faults, _headers(maker, request_id)
        )
    except Refusal as refusal:
        accounting.refused(user)
        headers = {**_headers(maker, request_id), **refusal.headers}
        return Response(
            shown(refusal, maker, request_id),
            refusal.status,
            headers,
            media_type="application/json",
        )


async def _body(request: Request) -> Any:
    content_type, body = request.headers.get("content-type", ""), await request.body()
    if content_type.startswith("multipart/form-data"):
        return read_form(content_type, body)
    try:
        return msgspec.json.decode(body or b"{}")
    except msgspec.DecodeError as error:
        raise Refusal(400, "We could not parse the JSON body of your request.") from error


def _maker(request: Request) -> Maker:
    path = request.url.path
    if path.startswith("/v1/messages") or "anthropic-version" in request.headers:
        return "anthropic"
    return "google" if ":" in path else "openai"


def _headers(maker: Maker, request_id: str) -> dict[str, str]:
    if maker == "openai":
        return {
            "x-request-id": request_id,
            "openai-organization": "org-loopback",
            "openai-processing-ms": "1",
            "openai-version": "2020-10-01",
        }
    if maker == "anthropic":
        return {
            "request-id": request_id,
            "anthropic-organization-id": "4d1c4a52-0d0b-4f0c-8a3b-000000000000",
        }
    return {"server-timing": "gfet4t7; dur=1"}


def _gzipped(parts: Iterable[bytes], *, ends: bool) -> Iterable[bytes]:
    """Compress each part so that it can be read at once. A cut stream lacks its end."""
    packer = zlib.compressobj(wbits=31)
    packed = [packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH) for part in parts]
    return [*packed[:-1], packed[-1] + packer.flush()] if packed and ends else packed
