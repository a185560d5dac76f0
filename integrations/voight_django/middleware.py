"""CostTagMiddleware for Django, under WSGI and ASGI."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from django.http import FileResponse, HttpRequest

from voight_django import conf
from voight_django.scope import RequestContext
from voight_middleware.context.carry import carry
from voight_middleware.context.context import current_context, set_context
from voight_middleware.diagnostics import report_internal_error
from voight_middleware.middleware.request_scope import flush_if_synchronous
from voight_middleware.pipeline.meter import current_meter

if sys.version_info >= (3, 12):
    from inspect import iscoroutinefunction, markcoroutinefunction
else:
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction


class CostTagMiddleware:
    """
    Bind a fresh cost scope to every request: every LLM call made inside it is its user's.

    Its place in ``MIDDLEWARE`` does not matter to the owner, as ``request.user`` is asked at the first LLM call of a request, and at
    its end for calls made before the user was known; but what the middleware above it calls is not part of the request. A streamed
    answer keeps its owner until it is closed. The setting ``VOIGHT`` names the getters of the project.

    Raises:
        ImproperlyConfigured: When the server starts: ``VOIGHT`` cannot be used; the message says why.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        conf.apply()
        self.get_response = get_response
        self._asynchronous = iscoroutinefunction(get_response)  # pyright: ignore[reportDeprecated]  # from Python 3.14 on only
        if self._asynchronous:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        if self._asynchronous:
            return self._acall(request)
        context = RequestContext(request)
        outer = current_context()
        set_context(context)
        streams = False
        try:
            response = self.get_response(request)
            streams = getattr(response, "streaming", False) and _follow(response, context)
            return response
        finally:
            if context.made is not None and not streams:
                context.made.attribute_late_now()
            set_context(outer)

    async def _acall(self, request: HttpRequest) -> Any:
        context = RequestContext(request)
        outer = current_context()
        set_context(context)
        streams = False
        try:
            response = await self.get_response(request)
            streams = getattr(response, "streaming", False) and _follow(response, context)
            return response
        finally:
            try:
                if context.made is not None and not streams:
                    await context.made.attribute_late()
            finally:  # the server may cancel a request whose getter does not answer
                set_context(outer)
            if current_meter().synchronous and not streams:
                await flush_if_synchronous()


def _follow(response: Any, context: RequestContext) -> bool:
    """
    Bind the current context around each step of a streamed response, and around its closing, which settles the request; False for a file.

    Around each step and not around them all: between two of them the server runs other code in the same context.
    """
    try:
        if isinstance(response, FileResponse) and response.file_to_stream is not None:
            return False  # the server may send it without our seeing it: a new iterator in its place would undo that
        steps: Callable[..., Any] = _asteps if response.is_async else _steps
        response.streaming_content = carry(steps)(response.streaming_content, context)
    except Exception as error:  # a response class of the project's own
        report_internal_error(error)
        return False
    close = response.close

    def close_and_settle() -> None:
        try:
            close()
        finally:
            response.__dict__.pop("close", None)  # the two would keep each other, and the request, for the garbage collector
            if context.made is not None:
                context.made.attribute_late_now()

    response.close = carry(close_and_settle)
    return True


def _steps(content: Iterator[bytes], _context: RequestContext) -> Iterator[bytes]:
    yield from content


async def _asteps(content: Any, context: RequestContext) -> AsyncIterator[bytes]:
    try:
        async for part in content:
            yield part
    finally:
        if hasattr(content, "aclose"):
            await content.aclose()
        if context.made is not None:
            await (
                context.made.attribute_late()
            )  # closing is synchronous: a server other than Django's own handler may do it on the event loop
        if current_meter().synchronous:
            await flush_if_synchronous()
