"""CostTagMiddleware for ASGI: Starlette, FastAPI, and whatever else speaks it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from voight_middleware.boundary.identity import Getter, Getters, request_user
from voight_middleware.boundary.scope import Scope
from voight_middleware.meter import EXIT_SECONDS, flush
from voight_middleware.tags import bind

ScopeDict = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_DEFAULT_GETTERS = Getters(request_user)

ASGIApp = Callable[[ScopeDict, Receive, Send], Awaitable[None]]


class CostTagMiddleware:
    """
    Bind a fresh cost scope to every request and WebSocket connection.

    Nothing is asked before the first LLM call of a request, so it does not matter on which side of the authentication middleware
    this one is. The getters get a ``starlette.requests.HTTPConnection`` and may be asynchronous; what they raise is counted and
    logged once, and the call is kept without an owner.

    Args:
        app: The ASGI application to wrap.
        user_getter: Answers the signed-in user's id: text, a whole number or a UUID, or None. By default the id of ``request.user``.
        plan_getter: Answers the user's plan.
        tenant_getter: Answers the user's tenant.
        tags_getter: Answers a mapping of further tags, such as ``{"feature": "search"}``.
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
        self.getters = Getters(user_getter or request_user, plan_getter, tenant_getter, tags_getter)

    async def __call__(self, scope: ScopeDict, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, _flushing(send) if scope["type"] == "lifespan" else send)
        cost_scope = request_scope(scope, self.getters)
        with bind(cost_scope):
            try:
                await self.app(scope, receive, send)
            finally:
                await cost_scope.settle()


def request_scope(scope: ScopeDict, getters: Getters = _DEFAULT_GETTERS) -> Scope:
    """The cost scope of one ASGI request or connection."""
    root = scope.get("root_path", "")
    return Scope(lambda: _connection(scope), getters, lambda: _route(scope, root))


def _connection(scope: ScopeDict) -> Any:
    try:
        from starlette.requests import HTTPConnection
    except ImportError as error:
        raise ImportError("getters need Starlette's HTTPConnection: pip install 'voight-middleware[asgi]'") from error
    return HTTPConnection(scope)


def _route(scope: ScopeDict, root: str) -> str | None:
    """Method and path template of the matched route, mount points included; None before the router has matched."""
    template = getattr(scope.get("route"), "path_format", None) or getattr(scope.get("route"), "path", None)
    if not isinstance(template, str):
        return None
    mounted = scope.get("root_path", "")[len(root) :]
    return f"{scope.get('method', 'WEBSOCKET')} {mounted}{template}"


def _flushing(send: Send) -> Send:
    """Bring the ledger up to date before the server hears that the shutdown is complete, and may end the process."""

    async def flush_then_send(message: Message) -> None:
        if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            from anyio import to_thread

            await to_thread.run_sync(flush, EXIT_SECONDS)
        await send(message)

    return flush_then_send
