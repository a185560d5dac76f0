"""The route of an ASGI request: its method and path template, read from routers' keys."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from voight_middleware.lazy import lazy_pattern

_ROUTING_KEYS = (
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
_CONVERTED = lazy_pattern(r"\{([^{}:]+):[^{}]*\}")


def route_of(scope: Mapping[str, Any], app: Any = None) -> str | None:
    """
    Return method and path template of the matched route, such as ``POST /chats/{chat_id}``.

    A WebSocket's method is ``WEBSOCKET``. Mount points are included, as their own templates. The
    path under which a proxy serves the application is not.

    Return None before a router has matched, and if none does.

    Args:
        scope: The ASGI scope.
        app: The application below the middleware, for routers that do not set the matched route.
    """
    template = _litestar(scope) or _starlette(scope) or _quart(scope) or _channels(scope, app)
    return None if template is None else f"{scope.get('method') or 'WEBSOCKET'} {template}"


def routing_keys(scope: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a scope that ``route_of`` reads: no headers, no state and no user."""
    return {key: scope[key] for key in _ROUTING_KEYS if key in scope}


def _plain(template: str) -> str:
    """Return a template without converters: ``{item_id:int}`` becomes ``{item_id}``."""
    return _CONVERTED.sub(r"{\1}", template) if ":" in template else template


def _litestar(scope: Mapping[str, Any]) -> str | None:
    template = scope.get("path_template")
    return _plain(template) if isinstance(template, str) and template else None


# -- Starlette and FastAPI -------------------------------------------------------------------------


def _starlette(scope: Mapping[str, Any]) -> str | None:
    route, root = scope.get("route"), scope.get("root_path", "")
    mounted = root[len(scope.get("app_root_path", root)) :]
    if (included := _included(scope, route)) is not None:
        template: object = included
    elif route is None:
        return _of_endpoint(scope)  # Starlette before 1.0 sets the endpoint only
    elif (nested := getattr(route, "routes", None)) is not None:
        # a mount, and none of its routes has matched
        if nested or not mounted:
            return None
        template = "/{path}"  # the mounted application has no known routes
    else:
        template = getattr(route, "path_format", None) or getattr(route, "path", None)
    if not isinstance(template, str):
        return None
    if not mounted:
        return template
    prefix = _mount_template(mounted, scope.get("path_params", {}), template)
    return None if prefix is None else prefix + template


def _included(scope: Mapping[str, Any], route: Any) -> str | None:
    """
    Return the template of a route in an included router of FastAPI.

    Since about 0.140, FastAPI leaves the routes as they are and keeps the prefix in a context
    beside them.
    """
    fastapi = scope.get("fastapi")
    context = fastapi.get("effective_route_context") if isinstance(fastapi, Mapping) else None
    if context is None:
        return None
    starlette_route = getattr(context, "starlette_route", None)
    if (
        route is not None
        and route is not context.original_route
        and route is not starlette_route
        and hasattr(route, "path")
    ):
        return None  # the context of an outer router
    if getattr(starlette_route, "routes", None) is not None:
        return None
    return getattr(starlette_route, "path_format", None) or getattr(context, "path_format", None)


def _mount_template(mounted: str, params: Mapping[str, Any], template: str) -> str | None:
    """Return the template of the mount points, as parameters may be personal data."""
    segments = mounted.split("/")
    for name in reversed(list(params)):
        if f"{{{name}}}" in template:
            continue
        value = str(params[name])
        if value not in segments:
            return None
        index = len(segments) - 1 - segments[::-1].index(value)
        segments[index] = f"{{{name}}}"
    return "/".join(segments)


def _of_endpoint(scope: Mapping[str, Any]) -> str | None:
    endpoint = scope.get("endpoint")
    if endpoint is None:
        return None
    templates = [
        template
        for template, known in _walk(getattr(scope.get("router"), "routes", ()))
        if known is endpoint
    ]
    if len(templates) > 1:  # one function on several routes
        path = scope.get("path", "").removeprefix(
            scope.get("app_root_path", scope.get("root_path", ""))
        )
        templates = [
            template
            for template in templates
            if re.fullmatch(re.sub(r"\\\{[^{}]+\\\}", ".+", re.escape(template)), path)
        ]
    return templates[0] if len(templates) == 1 else None


def _walk(routes: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for route in routes:
        if getattr(route, "routes", None):
            yield from _walk(
                route.routes, prefix + getattr(route, "path_format", "").removesuffix("/{path}")
            )
        elif hasattr(route, "path_format"):
            yield (
                prefix + route.path_format,
                getattr(route, "endpoint", None) or getattr(route, "app", None),
            )


# -- Quart -----------------------------------------------------------------------------------------


def _quart(scope: Mapping[str, Any]) -> str | None:
    """Return Quart's rule. Quart keeps the matched rule in a context of its own."""
    quart = sys.modules.get("quart")
    if quart is None:
        return None
    for has_context, name in (
        (quart.has_request_context, "request"),
        (quart.has_websocket_context, "websocket"),
    ):
        if has_context():
            request = getattr(quart, name)
            if request.scope is not scope and request.scope.get("headers") is not scope.get(
                "headers"
            ):
                return None  # another request, in whose context this one was started
            rule = request.url_rule
            return None if rule is None else str(rule.rule)
    return None


# -- Channels --------------------------------------------------------------------------------------


def _channels(scope: Mapping[str, Any], app: Any) -> str | None:
    """
    Return the route of Channels, by matching the routers' patterns once more.

    The routers pass on only the parameters, and only to the application below.
    """
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
    """Return the next ``URLRouter`` inside the wrappers around it; None for a consumer."""
    while app is not None and not hasattr(app, "routes"):
        by_type = getattr(app, "application_mapping", None)
        app = (
            by_type.get(scope["type"])
            if by_type is not None
            else getattr(app, "inner", None) or getattr(app, "app", None)
        )
    return app


_GROUP = lazy_pattern(r"\(\?P<(\w+)>[^()]*\)")
