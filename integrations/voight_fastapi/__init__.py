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

from collections.abc import AsyncIterator, Callable
from typing import Any

from voight_middleware import CostTagMiddleware
from voight_middleware.boundary.asgi import request_scope
from voight_middleware.boundary.identity import user_id_of
from voight_middleware.tags import bind, current_frame, make_tags

__all__ = ["CostTagMiddleware", "cost_tags"]

Reader = Callable[[Any], object]


def cost_tags(
    dependency: Callable[..., Any], *, user: Reader = user_id_of, plan: Reader | None = None, tenant: Reader | None = None
) -> Callable[..., AsyncIterator[None]]:
    """
    A dependency that tags every LLM call of a request with the user that *dependency* answers.

    For ``Depends(cost_tags(...))`` on a route, a router or the application. FastAPI calls *dependency* once per request, wherever
    else it is used, and what it raises, such as a 401, is raised. Works with and without ``CostTagMiddleware``.

    Args:
        dependency: The application's own dependency, such as ``get_current_user``; synchronous or not.
        user: The user's id, from what *dependency* answered; by default its ``id``, ``pk``, ``user_id``, ``identity``, ``sub`` or
            ``username``.
        plan: The user's plan, from the same.
        tenant: The user's tenant, from the same.
    """

    async def tag_request(connection: HTTPConnection, found: Any = Depends(dependency)) -> AsyncIterator[None]:
        values = {"user_id": user(found)}
        if plan is not None:
            values["plan"] = plan(found)
        if tenant is not None:
            values["tenant_id"] = tenant(found)
        tags = make_tags(values)
        scope = current_frame().scope
        if scope is not None:
            scope.identify(tags, "dependency")
            yield
        else:
            own = request_scope(connection.scope)
            own.identify(tags, "dependency")
            with bind(own):
                try:
                    yield
                finally:
                    await own.settle()

    return tag_request
