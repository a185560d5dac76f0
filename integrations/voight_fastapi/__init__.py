"""
FastAPI: the owner of a call comes from the application's own dependency.

::

    app = FastAPI(dependencies=[Depends(cost_tags(get_current_user, plan=lambda user: user.plan))])
"""

try:
    from fastapi import Depends
    from starlette.requests import HTTPConnection
except ImportError as error:
    raise ImportError(
        "voight_fastapi needs FastAPI: pip install 'voight-middleware[fastapi]'"
    ) from error

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
    Return a dependency that tags every LLM call of a request with the user that *dependency*
    returns.

    Use it in ``Depends(cost_tags(...))`` on a route, a router or the application. The one nearest
    to the route wins. FastAPI calls *dependency* once per request, even if it is used elsewhere
    too. Its exceptions are raised, such as a 401. An exception in a reader is counted and logged
    once, and only that value is missing. If the user is None, ``request.user`` or the middleware's
    getters decide.

    It works with and without ``CostTagMiddleware``. With it, calls made before the dependency ran
    get their owner too. And a request that a client pipelines after this one has its own owner, on
    any route.

    Args:
        dependency: The application's own dependency, such as ``get_current_user``. It may be sync
            or async, with or without ``yield``.
        user: Reads the user's id from the result of *dependency*. The default is its ``id``,
            ``pk``, ``user_id``, ``identity``, ``sub`` or ``username``.
        plan: Reads the user's plan from the same result.
        tenant: Reads the user's tenant from the same result.
        tags: Reads a mapping of further tags, such as ``{"feature": "search"}``.
    """
    readers = [
        (name, reader)
        for name, reader in (
            ("user_id", user),
            ("plan", plan),
            ("tenant_id", tenant),
            ("tags", tags),
        )
        if reader
    ]

    # Not a generator: FastAPI takes four times as long for one. `async`: a binding made in a worker
    # thread would stay there.
    async def tag_request(connection: HTTPConnection, result: Any = Depends(dependency)) -> None:
        try:
            scope = _scope_of(connection)
            values: dict[str, Any] = {}
            for name, reader in readers:
                try:
                    value = reader(result)
                    values[name] = await value if isinstance(value, Awaitable) else value
                except Exception as error:
                    scope.fail(name, error, f"the {name.removesuffix('_id')} reader of cost_tags()")
            scope.set_identity(scope.read_values(values), "dependency")
        except Exception as error:
            report_internal_error(error)

    return tag_request


def _scope_of(connection: HTTPConnection) -> AsgiScope:
    """
    Return the request's scope: the middleware's, or a new one, bound until FastAPI ends the
    request.
    """
    context = current_context()
    scope = context.scope
    if isinstance(scope, AsgiScope) and scope.is_of(connection.scope):
        scope.refresh(connection.scope)
        return scope
    new_scope = AsgiScope(connection.scope)
    # Tags of another request may be bound: uvicorn starts a pipelined request in the previous one's
    # context.
    tags = context.tags if scope is None else NO_TAGS
    stack = connection.scope.get("fastapi_inner_astack")
    if isinstance(stack, AsyncExitStack):
        stack.enter_context(use_scope(new_scope, tags))
        stack.push_async_callback(new_scope.attribute_late)
    else:
        # FastAPI before 0.118 ends dependencies before it streams, so the binding lasts as long as
        # the request's task
        set_context(TagContext(new_scope, tags))
    return new_scope
