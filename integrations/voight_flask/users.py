"""The user of Flask-Login, found without the response's showing it."""

from __future__ import annotations

import functools
from typing import Any

import flask

from voight_middleware.middleware.getters import Getter, user_id_of
from voight_middleware.middleware.wsgi import waiting

_KEPT = "voight.login_user"
_MISSING = object()


def signed_in_user(request: flask.Request) -> object:
    """The default user: the id of Flask-Login's ``current_user``; ``REMOTE_USER`` for an application that does not use Flask-Login."""
    if not _has_flask_login():
        return request.remote_user
    from flask_login import current_user  # type: ignore[import-untyped]

    found = user_id_of(current_user)
    return current_user.get_id() if found is None and getattr(current_user, "is_authenticated", False) else found


def in_context(getter: Getter) -> Getter:
    """
    *getter*, asked in the request's context only, waited for where it is asynchronous, and without the traces that Flask-Login leaves.

    When Flask-Login loads a user, it reads the session, which adds ``Vary: Cookie`` to the response, and takes a remember-me cookie into
    the session, which sets a cookie. Both are undone: the application's own first use of ``current_user`` does them, as if nobody had
    asked before.
    """
    ask_now = waiting(getter)

    @functools.wraps(getter)
    def ask(request: Any) -> object:
        if not flask.has_request_context():
            return None
        if not _has_flask_login() or "_login_user" in flask.g:
            return ask_now(request)
        session = _session()
        accessed, modified, contents = session.accessed, session.modified, dict(session)
        if _KEPT in request.environ:
            flask.g._login_user = request.environ[_KEPT]
        try:
            return ask_now(request)
        finally:
            user = flask.g.pop("_login_user", _MISSING)
            if user is not _MISSING:
                request.environ[_KEPT] = user
                if dict(session) != contents:
                    session.clear()
                    session.update(contents)
                session.accessed, session.modified = accessed, modified

    return ask


def _has_flask_login() -> bool:
    return hasattr(flask.current_app, "login_manager")


def _session() -> Any:
    """The session, without marking it as accessed, as ``flask.session`` does from Flask 3.1.3 on."""
    one = hasattr(flask.ctx.AppContext, "session")  # from Flask 3.2 on
    context: Any = flask.globals.app_ctx if one else flask.globals.request_ctx
    return context._session if hasattr(context, "_session") else context.session
