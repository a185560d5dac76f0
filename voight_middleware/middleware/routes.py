"""The route of an ASGI request, as method and path template, from what each framework leaves in the ASGI scope."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_LEFT_BY_ROUTERS = (
    "type",
    "method",
    "path",
    "root_path",
    "app_root_path",
    "path_params",
    "path_template",
    "route",
    "router",
    "endpoint",
    "fastapi",
)
_CONVERTED = re.compile(r"\{([^{}:]+):[^{}]*\}")


def route_of(scope: Mapping[str, Any], app: Any = None) -> str | None:
    """
    Method and path template of the matched route, such as ``POST /chats/{chat_id}``; a WebSocket's method is ``WEBSOCKET``.

    Mount points are part of it, in their own templates; the path under which a proxy serves the application is not. None before a router
    has matched, and where none does. *app* is the application below the middleware, where the router tells nobody what it has matched.
    """
    template = _litestar(scope) or _starlette(scope) or _quart(scope) or _channels(scope, app)
    return None if template is None else f"{scope.get('method') or 'WEBSOCKET'} {template}"


def what_routers_left(scope: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a scope that ``route_of`` reads: no headers, no state, nobody's user."""
    return {key: scope[key] for key in _LEFT_BY_ROUTERS if key in scope}


def _plain(template: str) -> str:
    """Parameters without their converters: ``{item_id:int}`` is ``{item_id}``."""
    return _CONVERTED.sub(r"{\1}", template) if ":" in template else template


def _litestar(scope: Mapping[str, Any]) -> str | None:
    template = scope.get("path_template")
    return _plain(template) if isinstance(template, str) and template else None


# -- Starlette and FastAPI -----------------------------------------------------------------------------------------------------------


def _starlette(scope: Mapping[str, Any]) -> str | None:
    route, root = scope.get("route"), scope.get("root_path", "")
    mounted = root[len(scope.get("app_root_path", root)) :]
    if (included := _included(scope, route)) is not None:
        template: object = included
    elif route is None:
        return _of_endpoint(scope)  # Starlette before 1.0 tells the endpoint only
    elif (nested := getattr(route, "routes", None)) is not None:  # a mount, and nothing in it has matched
        if nested or not mounted:
            return None
        template = "/{path}"  # what is mounted has no routes that are known
    else:
        template = getattr(route, "path_format", None) or getattr(route, "path", None)
    if not isinstance(template, str):
        return None
    if not mounted:
        return template
    prefix = _mount_template(mounted, scope.get("path_params", {}), template)
    return None if prefix is None else prefix + template


def _included(scope: Mapping[str, Any], route: Any) -> str | None:
    """FastAPI since 0.140 or so leaves an included router's routes as they are, and tells the prefix in a context beside them."""
    told = scope.get("fastapi")
    context = told.get("effective_route_context") if isinstance(told, Mapping) else None
    if context is None:
        return None
    own = getattr(context, "starlette_route", None)
    if route is not None and route is not context.original_route and route is not own and hasattr(route, "path"):
        return None  # of a router further out
    if getattr(own, "routes", None) is not None:
        return None
    return getattr(own, "path_format", None) or getattr(context, "path_format", None)


def _mount_template(mounted: str, params: Mapping[str, Any], template: str) -> str | None:
    """The mount points' own template: the values of their parameters are somebody's, and not to be kept."""
    segments = mounted.split("/")
    for name in reversed(list(params)):
        if f"{{{name}}}" in template:
            continue
        value = str(params[name])
        if value not in segments:
            return None
        at = len(segments) - 1 - segments[::-1].index(value)
        segments[at] = f"{{{name}}}"
    return "/".join(segments)


def _of_endpoint(scope: Mapping[str, Any]) -> str | None:
    endpoint = scope.get("endpoint")
    if endpoint is None:
        return None
    found = [template for template, known in _walk(getattr(scope.get("router"), "routes", ())) if known is endpoint]
    if len(found) > 1:  # one function on several routes
        path = scope.get("path", "").removeprefix(scope.get("app_root_path", scope.get("root_path", "")))
        found = [template for template in found if re.fullmatch(re.sub(r"\\\{[^{}]+\\\}", ".+", re.escape(template)), path)]
    return found[0] if len(found) == 1 else None


def _walk(routes: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for route in routes:
        if getattr(route, "routes", None):
            yield from _walk(route.routes, prefix + getattr(route, "path_format", "").removesuffix("/{path}"))
        elif hasattr(route, "path_format"):
            yield prefix + route.path_format, getattr(route, "endpoint", None) or getattr(route, "app", None)


# -- Quart ---------------------------------------------------------------------------------------------------------------------------


def _quart(scope: Mapping[str, Any]) -> str | None:
    """Quart matches in a context of its own; there it can be asked."""
    quart = sys.modules.get("quart")
    if quart is None:
        return None
    for has_context, name in ((quart.has_request_context, "request"), (quart.has_websocket_context, "websocket")):
        if has_context():
            request = getattr(quart, name)
            if request.scope is not scope and request.scope.get("headers") is not scope.get("headers"):
                return None  # of another request, whose context this one was begun in
            rule = request.url_rule
            return None if rule is None else str(rule.rule)
    return None


# -- Channels ------------------------------------------------------------------------------------------------------------------------


def _channels(scope: Mapping[str, Any], app: Any) -> str | None:
    """Channels' routers tell their parameters only, and those to the application below: their patterns are matched here once more."""
    if "channels" not in sys.modules:
        return None
    path, template = scope["path"].removeprefix(scope.get("root_path", "")).lstrip("/"), ""
    while (router := _router_below(scope, app)) is not None:
        for route in router.routes:
            if match := route.pattern.match(path):
                template += _GROUP.sub(r"<\1>", str(route.pattern)).strip("^$")
                path, app = match[0].lstrip("/"), route.callback
                break
        else:
            return None
    return f"/{template}" if template else None


def _router_below(scope: Mapping[str, Any], app: Any) -> Any:
    """The next ``URLRouter``, through what is wrapped around it; None for a consumer."""
    while app is not None and not hasattr(app, "routes"):
        by_type = getattr(app, "application_mapping", None)
        app = by_type.get(scope["type"]) if by_type is not None else getattr(app, "inner", None) or getattr(app, "app", None)
    return app


_GROUP = re.compile(r"\(\?P<(\w+)>[^()]*\)")
