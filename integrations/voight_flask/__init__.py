"""
Flask: who a call is for, in every view, stream and callback of an application.

::

    CostTags(app)  # or, with an application factory, cost_tags = CostTags() and cost_tags.init_app(app)
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
from voight_middleware.context.context import current_context
from voight_middleware.diagnostics import report_internal_error
from voight_middleware.middleware.getters import Getter, Getters
from voight_middleware.middleware.request_scope import RequestScope
from voight_middleware.middleware.wsgi import RequestContext, respond_inside, route_of
from voight_middleware.pipeline.configure import configure

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

__all__ = ["CostTags"]

AppT = TypeVar("AppT", bound=flask.Flask)

_SETTINGS = tuple(inspect.signature(configure).parameters)


class CostTags:
    """
    Bind a fresh cost scope to every request of a Flask application, and add its ``flask voight …`` commands.

    The getters run in the request's own context and get Flask's ``request``; they may be asynchronous. They are asked at the first LLM
    call, and where a view answers with a generator or with ``call_on_close``, when it returns: later, there is no context to ask in. What
    they raise is counted and logged once, and the call is kept without an owner.

    ``app.config`` may have every parameter of ``voight_middleware.configure()``, such as ``VOIGHT_LEDGER`` and ``VOIGHT_RELEASE``; any of
    them calls it, for the whole process.

    Args:
        app: The application; None to call ``init_app`` later, for as many as there are.
        user_getter: Answers the signed-in user's id: text, a whole number or a UUID, or None. By default the id of Flask-Login's
            ``current_user``; without Flask-Login ``REMOTE_USER``, as the server has set it.
        plan_getter: Answers the user's plan.
        tenant_getter: Answers the user's tenant.
        tags_getter: Answers a mapping of further tags, such as ``{"feature": "search"}``.

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
        """Install into *app*, and answer it. An application that has cost tags already keeps those."""
        if "voight" in app.extensions:
            return app
        app.extensions["voight"] = self
        settings = {name: app.config[f"VOIGHT_{name.upper()}"] for name in _SETTINGS if f"VOIGHT_{name.upper()}" in app.config}
        if settings:
            configure(**settings)
        boundary, inner, finalise = _Boundary(self.getters), app.wsgi_app, app.process_response

        def wsgi_app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
            return respond_inside(RequestContext(boundary, environ), inner, environ, start_response)

        def process_response(*arguments: Any) -> flask.Response:  # from Flask 3.2 on, the context comes first
            response = finalise(*arguments)
            _before_the_context_ends(response)
            return response

        app.wsgi_app = wsgi_app  # type: ignore[method-assign]
        # The signal `request_finished` comes at the same moment, for half of what all the rest costs.
        app.process_response = process_response  # type: ignore[method-assign,assignment]
        app.cli.add_command(command)
        return app


class _Boundary:
    def __init__(self, getters: Getters) -> None:
        self.getters = getters

    def scope(self, environ: "WSGIEnvironment") -> RequestScope:
        return RequestScope(_request, self.getters, lambda: route_of(environ), local=True)


def _request() -> flask.Request | None:
    return flask.request._get_current_object() if flask.has_request_context() else None  # type: ignore[attr-defined]


def _before_the_context_ends(response: flask.Response) -> None:
    """Who makes calls after the view has no context to find the user in: ask now, as the headers are final, whatever a getter reads."""
    try:
        context = current_context()
        while context.outer is not None:  # a `with tag()` that the application has left open
            context = context.outer
        if isinstance(context, RequestContext):
            on_close = response._on_close  # pyright: ignore[reportPrivateUsage]
            context.runs_on = bool(on_close) or (response.is_streamed and not response.direct_passthrough)
            if context.runs_on or context.pending:
                context.resolve()
    except Exception as error:
        report_internal_error(error)
