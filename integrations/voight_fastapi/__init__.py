"""
FastAPI: who a call is for, from the application's own dependency.

::

    app = FastAPI(dependencies=[Depends(cost_tags(get_current_user, plan=lambda user: user.plan))])
"""

try:
    from fastapi import Depends
    from starlette.requests import HTTPConnection
except ImportError as error:
    raise ImportError("voight_fastapi needs FastAPI: pip install 'voight-middleware[fastapi]'") from error

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from voight_middleware import CostTagMiddleware
from voight_middleware.context.context import TagContext, current_context, set_context, use_scope
from voight_middleware.diagnostics import report_internal_error
from voight_middleware.middleware.asgi import AsgiScope
from voight_middleware.middleware.getters import user_id_of
from voight_middleware.records.tags import NO_TAGS

__all__ = ["CostTagMiddleware", "cost_tags"]

Reader = Callable[[Any], object]


def cost_tags(
    dependency: Callable[..., Any],
    *,
    user: Reader = user_id_of,
    plan: Reader | None = None,
    tenant: Reader | None = None,
    tags: Reader | None = None,
) -> Callable[..., Awaitable[None]]:
    """
    A dependency that tags every LLM call of a request with the user that *dependency* answers.

    For ``Depends(cost_tags(...))`` on a route, a router or the application; of several, the one nearest to the route wins. FastAPI calls
    *dependency* once per request, wherever else it is used, and what it raises, such as a 401, is raised. What a reader raises is counted
    and logged once, and costs only what it was for. None as a user leaves the request to ``request.user`` or the middleware's getters.

    Works with and without ``CostTagMiddleware``. With it, calls made before the dependency was asked get their owner too, and a request
    that a client pipelines behind this one has an owner of its own, whatever its route.

    Args:
        dependency: The application's own dependency, such as ``get_current_user``; synchronous or not, with ``yield`` or without.
        user: The user's id, from what *dependency* answered; by default its ``id``, ``pk``, ``user_id``, ``identity``, ``sub`` or
            ``username``.
        plan: The user's plan, from the same.
        tenant: The user's tenant, from the same.
        tags: A mapping of further tags, such as ``{"feature": "search"}``, from the same.
    """
    readers = [(name, reader) for name, reader in (("user_id", user), ("plan", plan), ("tenant_id", tenant), ("tags", tags)) if reader]

    # Not a generator: FastAPI takes four times as long for one. `async`, as a binding made in a worker thread would stay there.
    async def tag_request(connection: HTTPConnection, found: Any = Depends(dependency)) -> None:
        try:
            scope = _scope_of(connection)
            values: dict[str, Any] = {}
            for name, reader in readers:
                try:
                    value = reader(found)
                    values[name] = await value if isinstance(value, Awaitable) else value
                except Exception as error:
                    scope.fail(name, error, f"the {name.removesuffix('_id')} reader of cost_tags()")
            scope.set_identity(scope.read_values(values), "dependency")
        except Exception as error:
            report_internal_error(error)

    return tag_request


def _scope_of(connection: HTTPConnection) -> AsgiScope:
    """The request's scope: the middleware's, or else one of its own, bound until FastAPI has ended the request."""
    context = current_context()
    scope = context.scope
    if isinstance(scope, AsgiScope) and scope.is_of(connection.scope):
        scope.refresh(connection.scope)
        return scope
    own = AsgiScope(connection.scope)
    # Another request's tags may be in force: uvicorn begins a pipelined one in the context of the one before it.
    tags = context.tags if scope is None else NO_TAGS
    stack = connection.scope.get("fastapi_inner_astack")
    if isinstance(stack, AsyncExitStack):
        stack.enter_context(use_scope(own, tags))
        stack.push_async_callback(own.attribute_late)
    else:  # FastAPI before 0.118 ends its dependencies before it streams: there the binding ends with the request's task
        set_context(TagContext(own, tags))
    return own
