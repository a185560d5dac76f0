"""
Flask: the owner of calls in every view, stream and callback of an application.

::

    CostTags(app)

With an application factory, create ``cost_tags = CostTags()`` and call ``cost_tags.init_app(app)``.
"""

try:
    import flask
except ImportError as error:
    raise ImportError("voight_flask needs Flask: pip install 'voight-middleware[flask]'") from error

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from voight_flask.commands import command
from voight_flask.users import in_context, signed_in_user
from voight_middleware.config.settings import VARIABLES
from voight_middleware.context.context import TagContext, current_context
from voight_middleware.diagnostics import report_internal_error
from voight_middleware.middleware.getters import Getter, Getters
from voight_middleware.middleware.request_scope import RequestScope
from voight_middleware.middleware.wsgi import WsgiContext, respond_inside, route_of
from voight_middleware.pipeline.configure import configure

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

__all__ = ["CostTags"]

AppT = TypeVar("AppT", bound=flask.Flask)

_SETTINGS = {
    VARIABLES.get(name, f"VOIGHT_{name.upper()}"): name
    for name in inspect.signature(configure).parameters
}


class CostTags:
    """
    Bind a fresh cost scope to every request of a Flask application, and add its ``flask voight …``
    commands.

    The getters may be sync or async. They get Flask's ``request``, and run in the request's context
    at the first LLM call. If a view returns a generator or uses ``call_on_close``, they run when it
    returns, because there is no request context later. Exceptions are counted and logged once, and
    the call has no owner.

    ``app.config`` may have every parameter of ``voight_middleware.configure()``, such as
    ``VOIGHT_LEDGER`` and ``VOIGHT_RELEASE``. If it has any, ``configure()`` is called, for the
    whole process.

    Args:
        app: The application. None to call ``init_app`` later, for one or more applications.
        user_getter: Returns the signed-in user's id: a text, an integer, a UUID or None. The
            default is the id of Flask-Login's ``current_user``. Without Flask-Login, it is the
            server's ``REMOTE_USER``.
        plan_getter: Returns the user's plan.
        tenant_getter: Returns the user's tenant.
        tags_getter: Returns a mapping of further tags, such as ``{"feature": "search"}``.

    Raises:
        SettingsError: A value of ``app.config`` cannot be used.
    """

    def __init__(
        self,
        app: flask.Flask | None = None,
        *,
        user_getter: Getter | None = None,
        plan_getter: Getter | None = None,
        tenant_getter: Getter | None = None,
        tags_getter: Getter | None = None,
    ) -> None:
        self.getters = Getters(
            in_context(user_getter or signed_in_user),
            plan_getter and in_context(plan_getter),
            tenant_getter and in_context(tenant_getter),
            tags_getter and in_context(tags_getter),
        )
        if app is not None:
            self.init_app(app)

    def init_app(self, app: AppT) -> AppT:
        """Install into *app*, and return it. An application with cost tags keeps them."""
        if "voight" in app.extensions:
            return app
        app.extensions["voight"] = self
        settings = {name: app.config[key] for key, name in _SETTINGS.items() if key in app.config}
        if settings:
            configure(**settings)
        scopes, inner, finalize = _Scopes(self.getters), app.wsgi_app, app.process_response

        def wsgi_app(
            environ: "WSGIEnvironment", start_response: "StartResponse"
        ) -> Iterable[bytes]:
            return respond_inside(WsgiContext(scopes, environ), inner, environ, start_response)

        # from Flask 3.2 on, the context comes first
        def process_response(*arguments: Any) -> flask.Response:
            response = finalize(*arguments)
            try:
                context = current_context()
                if (
                    type(context) is WsgiContext
                    and context.made is None
                    and type(response.response) is list
                    and not response._on_close  # pyright: ignore[reportPrivateUsage]
                ):
                    context.runs_on = False  # the plain case: no call, and none can follow
                else:
                    _resolve_early(context, response)
            except Exception as error:
                report_internal_error(error)
            return response

        app.wsgi_app = wsgi_app  # type: ignore[method-assign]
        # Not the signal `request_finished`: it comes at the same moment, but would add half of the
        # total overhead.
        app.process_response = process_response  # type: ignore[method-assign,assignment]
        app.cli.add_command(command)
        return app


class _Scopes:
    def __init__(self, getters: Getters) -> None:
        self.getters = getters

    def scope(self, environ: "WSGIEnvironment") -> RequestScope:
        return RequestScope(_request, self.getters, lambda: route_of(environ), local=True)


def _request() -> flask.Request | None:
    return flask.request._get_current_object() if flask.has_request_context() else None  # type: ignore[attr-defined]


def _resolve_early(context: TagContext, response: flask.Response) -> None:
    """
    Resolve the owner if calls may follow after the view, when there is no request context. At this
    point, the response's headers are final, so a getter cannot change them.
    """
    while context.outer is not None:  # a `with tag()` that the application left open
        context = context.outer
    if isinstance(context, WsgiContext):
        on_close = response._on_close  # pyright: ignore[reportPrivateUsage]
        context.runs_on = bool(on_close) or (
            response.is_streamed and not response.direct_passthrough
        )
        if context.runs_on or context.pending:
            context.resolve()
