"""CostTagMiddleware for ASGI: Starlette, FastAPI, Litestar, Quart, Channels and others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from types import SimpleNamespace
from typing import Any, cast

from voight_middleware.context.context import reset_context, restore_context, set_context
from voight_middleware.middleware.getters import Getter, Getters, request_user
from voight_middleware.middleware.request_scope import (
    RequestContext,
    RequestScope,
    flush_if_synchronous,
)
from voight_middleware.middleware.routes import route_of, routing_keys
from voight_middleware.pipeline.meter import current_meter, flush_before_exit

ScopeDict = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_DEFAULT_GETTERS = Getters(request_user)

ASGIApp = Callable[[ScopeDict, Receive, Send], Awaitable[None]]


class CostTagMiddleware:
    """
    Bind a fresh cost scope to every request and WebSocket connection.

    The getters are not called before the first LLM call of a request. So the position of this
    middleware relative to your authentication middleware doesn't matter. The getters get a
    ``starlette.requests.HTTPConnection`` and may be asynchronous. An exception in a getter is
    counted and logged once, and the call is kept without an owner.

    Args:
        app: The ASGI application to wrap.
        user_getter: Returns the signed-in user's id: a string, a whole number or a UUID, or None.
            By default the id of ``request.user``.
        plan_getter: Returns the user's plan.
        tenant_getter: Returns the user's tenant.
        tags_getter: Returns a mapping of further tags, such as ``{"feature": "search"}``.
    """

    def __init__(
        self,
        app: ASGIApp,
        user_getter: Getter | None = None,
        *,
        plan_getter: Getter | None = None,
        tenant_getter: Getter | None = None,
        tags_getter: Getter | None = None,
    ) -> None:
        self.app = app
        if user_getter is plan_getter is tenant_getter is tags_getter is None:
            self.getters = _DEFAULT_GETTERS
        else:
            self.getters = Getters(
                user_getter or request_user, plan_getter, tenant_getter, tags_getter
            )

    async def __call__(self, scope: ScopeDict, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(
                scope, receive, _flushing(send) if scope["type"] == "lifespan" else send
            )
        context = AsgiContext(scope, self)
        token = set_context(context)
        try:
            await self.app(scope, receive, send)
        finally:
            context.ended = True
            try:
                if context.made is not None:
                    await context.made.attribute_late()
            finally:
                try:
                    reset_context(token)
                except ValueError:  # the server runs the steps of a request in several contexts
                    restore_context(token)
            if current_meter().synchronous:
                await flush_if_synchronous()


class AsgiContext(RequestContext):
    """The tag context of one ASGI request or connection."""

    __slots__ = ("_asgi", "_middleware")

    def __init__(self, scope: ScopeDict, middleware: CostTagMiddleware) -> None:  # pyright: ignore[reportMissingSuperCall]  # see RequestContext
        self.made = None
        self.ended = False
        self._asgi: ScopeDict | None = scope
        self._middleware = middleware

    def make_scope(self) -> RequestScope:
        """Return a new scope for this request. From then on, only the scope has the request."""
        asgi, self._asgi = self._asgi, None
        assert asgi is not None
        return AsgiScope(asgi, self._middleware.getters, self._middleware.app)


class AsgiScope(RequestScope):
    """The cost scope of one ASGI request or connection."""

    def __init__(
        self, scope: ScopeDict, getters: Getters = _DEFAULT_GETTERS, app: ASGIApp | None = None
    ) -> None:
        self._asgi: Mapping[str, Any] = scope
        self._getters = getters
        self._app = app

    def make_request(self) -> Any:
        """Return the connection as Starlette's object."""
        try:
            from starlette.requests import HTTPConnection
        except ImportError as error:
            if self._getters is _DEFAULT_GETTERS:  # which read the scope only
                return SimpleNamespace(scope=self._asgi)
            raise ImportError(
                "getters need Starlette's HTTPConnection: pip install 'voight-middleware[asgi]'"
            ) from error
        return HTTPConnection(cast("ScopeDict", self._asgi))

    def read_route(self) -> str | None:
        """Return the route of the router that has matched."""
        return route_of(self._asgi, self._app)

    def drop_request(self) -> None:
        """Drop the request, except for the keys that the router has set."""
        self._asgi = {} if self._routed else routing_keys(self._asgi)

    def is_of(self, scope: ScopeDict) -> bool:
        """Return whether *scope* is that of the same request, or an inner middleware's copy."""
        return not self._ended and (
            scope is self._asgi or scope.get("headers") is self._asgi.get("headers")
        )

    def refresh(self, scope: ScopeDict) -> None:
        """Read from a copy of the scope from now on, to which inner middleware has written."""
        self._asgi = scope


def _flushing(send: Send) -> Send:
    """Flush before the server knows that the shutdown is complete and may end the process."""

    async def flush_then_send(message: Message) -> None:
        if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            from anyio import to_thread

            await to_thread.run_sync(flush_before_exit)
        await send(message)

    return flush_then_send
