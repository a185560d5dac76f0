"""The user of a Django request, read without side effects on the request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async
from django.contrib import auth
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import SynchronousOnlyOperation
from django.http import HttpRequest
from django.utils.functional import LazyObject, empty

from voight_middleware.middleware.getters import Getter, user_id_of

_DJANGO = "django.contrib.auth.middleware"
_UNKNOWN = object()


def request_user(request: HttpRequest) -> object:
    """
    Return the primary key of the request's user; None for an anonymous user. On an event loop, it
    may return an awaitable.

    If the application has already loaded the user, that user is taken. Otherwise the user is read
    without ``request.user``, which would mark the session as accessed (``Vary: Cookie`` on the
    response), may delete or renew it, and raises in a coroutine.
    """
    user = _looked_up(request)
    if user is not _UNKNOWN:
        return _id_of(user)
    if not _is_djangos(request):
        if not _in_coroutine():
            return _id_of(request.user)
        # the project's own lazy object may block
        return sync_to_async(lambda: _id_of(request.user))()
    return _aread(request) if _in_coroutine() else _read(request)


def adapted_getter(getter: Getter) -> Getter:
    """
    Return *getter*, sync or async, for use in sync and async code.

    Without a running event loop, an awaitable is awaited at once: in a synchronous view, also under
    WSGI. If a synchronous getter reads the database inside a coroutine, it is called again in
    Django's thread for such code.
    """

    def adapted(request: HttpRequest) -> Any:
        if _in_coroutine():
            try:
                return getter(request)
            except SynchronousOnlyOperation:
                return sync_to_async(getter)(request)
        value = getter(request)
        return async_to_sync(_result)(value) if isinstance(value, Awaitable) else value

    adapted.__name__ = getattr(getter, "__name__", type(getter).__name__)
    return adapted


async def _result(value: Awaitable[Any]) -> Any:
    return await value


def _in_coroutine() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _looked_up(request: HttpRequest) -> Any:
    """Return the user, if the application has loaded it."""
    known = request.__dict__
    user = known.get("user")
    if not isinstance(user, LazyObject):
        # from login(), Django REST framework or a middleware; None if the project has no sign-in
        return user
    wrapped = user.__dict__.get("_wrapped", empty)
    if wrapped is not empty:
        return wrapped
    return (
        known.get("_acached_user", known.get("_cached_user", _UNKNOWN))
        if _is_djangos(request)
        else _UNKNOWN
    )


def _is_djangos(request: HttpRequest) -> bool:
    """
    Return whether ``request.user`` comes from Django's AuthenticationMiddleware, which reads the
    session.
    """
    setup = request.user.__dict__.get("_setupfunc")
    return getattr(setup, "__module__", None) == _DJANGO and isinstance(
        getattr(request, "session", None), SessionBase
    )


def _id_of(user: Any) -> object:
    if user is None or getattr(user, "is_authenticated", True) is False:
        return None
    key = getattr(user, "pk", None)
    if key is None:
        return user_id_of(user)
    return key if isinstance(key, str | int) else str(key)


# -- a user that the application has not loaded ---------------------------------------------------


class _Session(dict[str, Any]):
    """
    A read-only session for ``auth.get_user``. Changes are left to the application's own access.
    """

    def flush(self) -> None: ...

    def cycle_key(self) -> None: ...

    async def aget(self, key: str, default: Any = None) -> Any:
        return self.get(key, default)

    async def aset(self, key: str, value: Any) -> None: ...

    async def aflush(self) -> None: ...

    async def acycle_key(self) -> None: ...


def _read(request: HttpRequest) -> object:
    session = _loaded(request)
    if session is None:
        store = request.session
        session = _keep(request, type(store)(store.session_key).load())
    return _id_of(auth.get_user(_request_with(session))) if auth.SESSION_KEY in session else None


async def _aread(request: HttpRequest) -> object:
    session = _loaded(request)
    if session is None:
        store = request.session
        session = _keep(request, await type(store)(store.session_key).aload())
    return (
        _id_of(await auth.aget_user(_request_with(session)))
        if auth.SESSION_KEY in session
        else None
    )


def _loaded(request: HttpRequest) -> dict[str, Any] | None:
    """
    Return the session's data if the application or an earlier call loaded it, or if the visitor has
    no session. Else None.
    """
    store = request.session
    data = store.__dict__.get("_session_cache")
    if data is None and store.session_key is None:
        data = {}
    if data is None:
        data = request.__dict__.get("_voight_session")
    return data


def _keep(request: HttpRequest, data: dict[str, Any]) -> dict[str, Any]:
    request.__dict__["_voight_session"] = data  # load a visitor's session only once per request
    return data


def _request_with(session: dict[str, Any]) -> Any:
    return SimpleNamespace(session=_Session(session))
