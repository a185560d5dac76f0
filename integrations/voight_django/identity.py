"""Who the user of a Django request is, asked without leaving a trace in the request."""

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
    The primary key of the request's user; None for an anonymous one. Where an event loop is running that may be an awaitable of it.

    A user that the application has looked up already is taken as it is. Otherwise it is read past ``request.user``, which would mark
    the session as accessed (``Vary: Cookie`` on the response), may delete or renew it, and in a coroutine raises.
    """
    user = _looked_up(request)
    if user is not _UNKNOWN:
        return _id_of(user)
    if not _is_djangos(request):
        if not _in_coroutine():
            return _id_of(request.user)
        return sync_to_async(lambda: _id_of(request.user))()  # a lazy object of the project's own may block
    return _aread(request) if _in_coroutine() else _read(request)


def two_faced(getter: Getter) -> Getter:
    """
    *getter*, of either kind, in code of either kind.

    An awaitable is awaited here and now where no event loop is running: in a synchronous view, under WSGI too. A synchronous getter
    that reads the database is asked again in the thread that Django keeps for that, where it is called inside a coroutine.
    """

    def ask(request: HttpRequest) -> Any:
        if _in_coroutine():
            try:
                return getter(request)
            except SynchronousOnlyOperation:
                return sync_to_async(getter)(request)
        value = getter(request)
        return async_to_sync(_result)(value) if isinstance(value, Awaitable) else value

    ask.__name__ = getattr(getter, "__name__", type(getter).__name__)
    return ask


async def _result(value: Awaitable[Any]) -> Any:
    return await value


def _in_coroutine() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _looked_up(request: HttpRequest) -> Any:
    """The user, as far as the application knows it by now."""
    known = request.__dict__
    user = known.get("user")
    if not isinstance(user, LazyObject):
        return user  # of login(), of Django REST framework or of a middleware; None where nobody signs anybody in
    wrapped = user.__dict__.get("_wrapped", empty)
    if wrapped is not empty:
        return wrapped
    return known.get("_acached_user", known.get("_cached_user", _UNKNOWN)) if _is_djangos(request) else _UNKNOWN


def _is_djangos(request: HttpRequest) -> bool:
    """Whether ``request.user`` is the one of Django's own AuthenticationMiddleware, which reads the session."""
    setup = request.user.__dict__.get("_setupfunc")
    return getattr(setup, "__module__", None) == _DJANGO and isinstance(getattr(request, "session", None), SessionBase)


def _id_of(user: Any) -> object:
    if user is None or getattr(user, "is_authenticated", True) is False:
        return None
    key = getattr(user, "pk", None)
    if key is None:
        return user_id_of(user)
    return key if isinstance(key, str | int) else str(key)


# -- the user of a session that the application has not asked for --------------------------------------------------------------


class _Session(dict[str, Any]):
    """What ``auth.get_user`` sees of a session: it can be read, and what would change it is left to the application's own look."""

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
    return _id_of(await auth.aget_user(_request_with(session))) if auth.SESSION_KEY in session else None


def _loaded(request: HttpRequest) -> dict[str, Any] | None:
    """The data of the session, where the application or an earlier call has loaded it, or the visitor brought none."""
    store = request.session
    data = store.__dict__.get("_session_cache")
    if data is None and store.session_key is None:
        data = {}
    if data is None:
        data = request.__dict__.get("_voight_session")
    return data


def _keep(request: HttpRequest, data: dict[str, Any]) -> dict[str, Any]:
    request.__dict__["_voight_session"] = data  # a visitor's session is not loaded again for each of his calls
    return data


def _request_with(session: dict[str, Any]) -> Any:
    return SimpleNamespace(session=_Session(session))
