"""CostTagMiddleware for Django, under WSGI and ASGI."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from django.http import FileResponse, HttpRequest

from voight_django import conf
from voight_django.scope import DjangoContext
from voight_middleware.context.carry import carry
from voight_middleware.context.context import reset_context, restore_context, set_context
from voight_middleware.diagnostics import report_internal_error
from voight_middleware.middleware.request_scope import flush_if_synchronous
from voight_middleware.pipeline.meter import current_meter

if sys.version_info >= (3, 12):
    from inspect import iscoroutinefunction, markcoroutinefunction
else:
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction


class CostTagMiddleware:
    """
    Bind a fresh cost scope to every request. The LLM calls inside it belong to the request's user.

    Its position in ``MIDDLEWARE`` does not change the owner. ``request.user`` is read at the first
    LLM call of a request. If the user is unknown then, the call is attributed when the request
    ends. Calls of the middleware above this one are not part of the request. A streamed response
    keeps its owner until it is closed. The setting ``VOIGHT`` names the project's getters.

    Raises:
        ImproperlyConfigured: ``VOIGHT`` cannot be used. Raised when the server starts.
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
        context = DjangoContext(request)
        token = set_context(context)
        streams = False
        try:
            response = self.get_response(request)
            streams = getattr(response, "streaming", False) and _follow(response, context)
            return response
        finally:
            if not streams:
                context.end()
            try:
                reset_context(token)
            except ValueError:  # the project runs on in another context, such as a greenlet's
                restore_context(token)

    async def _acall(self, request: HttpRequest) -> Any:
        context = DjangoContext(request)
        token = set_context(context)
        streams = False
        try:
            response = await self.get_response(request)
            streams = getattr(response, "streaming", False) and _follow(response, context)
            return response
        finally:
            try:
                if not streams:
                    context.ended = True
                    if context.made is not None:
                        await context.made.attribute_late()
            finally:  # the server may cancel a request whose getter does not return
                try:
                    reset_context(token)
                except ValueError:  # the server runs the steps of a request in several contexts
                    restore_context(token)
            if current_meter().synchronous and not streams:
                await flush_if_synchronous()


def _follow(response: Any, context: DjangoContext) -> bool:
    """
    Bind the current context around each step of a streamed response, and around its close, which
    attributes the request's calls. Return False for a file.

    The binding covers each step separately, because the server runs other code in the same context
    between two steps.
    """
    try:
        if isinstance(response, FileResponse) and response.file_to_stream is not None:
            # the server may send the file directly, which a new iterator would prevent
            return False
        steps: Callable[..., Any] = _asteps if response.is_async else _steps
        response.streaming_content = carry(steps)(response.streaming_content, context)
    except Exception as error:  # the project's own response class
        report_internal_error(error)
        return False
    close = response.close

    def close_and_attribute() -> None:
        try:
            close()
        finally:
            # break the reference cycle, which would keep the request until a garbage collection
            response.__dict__.pop("close", None)
            context.end()

    response.close = carry(close_and_attribute)
    return True


def _steps(content: Iterator[bytes], _context: DjangoContext) -> Iterator[bytes]:
    yield from content


async def _asteps(content: Any, context: DjangoContext) -> AsyncIterator[bytes]:
    try:
        async for part in content:
            yield part
    finally:
        if hasattr(content, "aclose"):
            await content.aclose()
        context.ended = True
        if context.made is not None:
            # Here, as closing is synchronous: servers other than Django's own may close on the
            # event loop.
            await context.made.attribute_late()
        if current_meter().synchronous:
            await flush_if_synchronous()
