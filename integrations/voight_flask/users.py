"""The user of Flask-Login, read without a trace in the response."""

from __future__ import annotations

import functools
from typing import Any

import flask

from voight_middleware.middleware.getters import Getter, user_id_of
from voight_middleware.middleware.wsgi import waiting

_KEPT = "voight.login_user"
_MISSING = object()


def signed_in_user(request: flask.Request) -> object:
    """
    Return the default user: the id of Flask-Login's ``current_user``. Without Flask-Login, it is
    ``REMOTE_USER``.
    """
    if not _has_flask_login():
        return request.remote_user
    from flask_login import current_user  # type: ignore[import-untyped]

    user_id = user_id_of(current_user)
    return (
        current_user.get_id()
        if user_id is None and getattr(current_user, "is_authenticated", False)
        else user_id
    )


def in_context(getter: Getter) -> Getter:
    """
    Return *getter*, sync or async, for use in the request's context only. It undoes the side
    effects of Flask-Login.

    Loading a user reads the session, which adds ``Vary: Cookie`` to the response. It also copies a
    remember-me cookie into the session, which sets a cookie. Both are undone, so they happen only
    at the application's own first use of ``current_user``.
    """
    call = waiting(getter)

    @functools.wraps(getter)
    def call_in_context(request: Any) -> object:
        if not flask.has_request_context():
            return None
        if not _has_flask_login() or "_login_user" in flask.g:
            return call(request)
        session = _session()
        accessed, modified, contents = session.accessed, session.modified, dict(session)
        if _KEPT in request.environ:
            flask.g._login_user = request.environ[_KEPT]
        try:
            return call(request)
        finally:
            user = flask.g.pop("_login_user", _MISSING)
            if user is not _MISSING:
                request.environ[_KEPT] = user
                if dict(session) != contents:
                    session.clear()
                    session.update(contents)
                session.accessed, session.modified = accessed, modified

    return call_in_context


def _has_flask_login() -> bool:
    return hasattr(flask.current_app, "login_manager")


def _session() -> Any:
    """
    Return the session without marking it as accessed, as ``flask.session`` does since Flask 3.1.3.
    """
    has_one_context = hasattr(flask.ctx.AppContext, "session")  # since Flask 3.2
    context: Any = flask.globals.app_ctx if has_one_context else flask.globals.request_ctx
    return context._session if hasattr(context, "_session") else context.session
