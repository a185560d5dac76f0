"""CostTagMiddleware for WSGI applications. Flask has its own: ``voight_flask.CostTags``."""

from __future__ import annotations

try:
    from werkzeug.wrappers import Request
except ImportError as error:
    raise ImportError(
        "middleware.wsgi needs Werkzeug: pip install 'voight-middleware[wsgi]'"
    ) from error

import functools
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, cast

from voight_middleware.context.context import (
    TagContext,
    current_context,
    reset_context,
    restore_context,
    set_context,
)
from voight_middleware.middleware.getters import Getter, Getters
from voight_middleware.middleware.request_scope import RequestContext, RequestScope

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


class CostTagMiddleware:
    """
    Bind a fresh cost scope to every request, until the server has closed its response.

    The getters are not called before the first LLM call of a request. They get a
    ``werkzeug.Request``, which cannot read the body as that is the application's, and may be
    asynchronous. An exception in a getter is counted and logged once, and the call is kept without
    an owner.

    Args:
        app: The WSGI application to wrap.
        user_getter: Returns the signed-in user's id: a string, a whole number or a UUID, or None.
            By default ``REMOTE_USER``, which the server or an authentication middleware sets.
        plan_getter: Returns the user's plan.
        tenant_getter: Returns the user's tenant.
        tags_getter: Returns a mapping of further tags, such as ``{"feature": "search"}``.
    """

    def __init__(
        self,
        app: WSGIApplication,
        user_getter: Getter | None = None,
        *,
        plan_getter: Getter | None = None,
        tenant_getter: Getter | None = None,
        tags_getter: Getter | None = None,
    ) -> None:
        self.app = app
        self.getters = Getters(
            remote_user if user_getter is None else waiting(user_getter),
            plan_getter and waiting(plan_getter),
            tenant_getter and waiting(tenant_getter),
            tags_getter and waiting(tags_getter),
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return respond_inside(WsgiContext(self, environ), self.app, environ, start_response)

    def scope(self, environ: WSGIEnvironment) -> RequestScope:
        """Return the cost scope of one request."""
        return RequestScope(
            lambda: _request(environ), self.getters, lambda: route_of(environ), local=True
        )


class ScopeFactory(Protocol):
    """Makes the scope of a request when it is needed."""

    def scope(self, environ: WSGIEnvironment) -> RequestScope: ...


class WsgiContext(RequestContext):
    """The tag context of one WSGI request."""

    __slots__ = ("_environ", "_scope_factory", "runs_on")

    def __init__(self, scope_factory: ScopeFactory, environ: WSGIEnvironment) -> None:  # pyright: ignore[reportMissingSuperCall]  # see RequestContext
        self.made = None
        self.ended = False
        self.runs_on = True
        """Whether code of the application may run while its response is iterated or closed."""
        self._scope_factory = scope_factory
        self._environ: WSGIEnvironment | None = environ

    def make_scope(self) -> RequestScope:
        """Return a new scope for this request."""
        return self._scope_factory.scope(self._environ or {})

    @property
    def pending(self) -> bool:
        """Whether a call of this request was written without an owner."""
        return self.made is not None and self.made.pending is not None

    def end(self) -> None:
        """End the request: write the owner of its calls, and drop it."""
        self._environ = None
        self.ended = True
        if self.made is not None:
            self.made.attribute_late_now()


def remote_user(request: Request) -> str | None:
    """
    Return the default user: ``REMOTE_USER``.

    No client can set it: a header of that name is ``HTTP_REMOTE_USER``.
    """
    return request.remote_user


def route_of(environ: WSGIEnvironment) -> str | None:
    """
    Return method, mount point and rule of a Werkzeug application (Flask) that has matched the
    request.

    Return None for other applications, and before.
    """
    request = environ.get("werkzeug.request")
    rule = getattr(request, "url_rule", None)
    return None if rule is None else f"{request.method} {request.root_path}{rule.rule}"  # type: ignore[union-attr]


def waiting(getter: Getter) -> Getter:
    """
    Wrap *getter* to wait for its result if it is asynchronous.

    A WSGI thread has no event loop, and blocks as for any synchronous call. On an event loop's own
    thread (an ``async`` view of Flask) nothing may block, so the request scope gets the awaitable.
    """

    @functools.wraps(getter)
    def call_and_wait(request: Any) -> object:
        value = getter(request)
        return _wait(value) if isinstance(value, Awaitable) else value

    return call_and_wait


def _wait(awaitable: Awaitable[object]) -> object:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        return awaitable

    async def wait() -> object:
        return await awaitable

    # not asyncio.run(): it removes the loop that the application may have set for this thread
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(wait())
    finally:
        try:
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()


def respond_inside(
    context: WsgiContext,
    app: WSGIApplication,
    environ: WSGIEnvironment,
    start_response: StartResponse,
) -> Iterable[bytes]:
    """
    Call *app* inside *context*. Its response is iterated and closed inside it too.

    Nothing else is: between the steps, the server's own context applies.
    """
    token = set_context(context)
    try:
        result = app(environ, start_response)
        kind = type(result)
        if kind is list or kind is tuple or not context.runs_on or _is_file(result, environ):
            context.end()
            return result
        response_class = _SizedResponse if hasattr(kind, "__len__") else _Response
        return response_class(result, context, current_context())
    except BaseException:
        context.end()
        raise
    finally:
        try:
            reset_context(token)
        except ValueError:  # the application runs on in another context, such as a greenlet's
            restore_context(token)


def _is_file(result: object, environ: WSGIEnvironment) -> bool:
    """
    Return whether the server sends *result* itself.

    It recognizes it by its type, or by its identity if its wrapper is a function (uWSGI).
    """
    wrapper = environ.get("wsgi.file_wrapper")
    return (
        isinstance(result, wrapper)
        if isinstance(wrapper, type)
        else wrapper is not None and hasattr(result, "read")
    )


class _Response:
    """
    An application's response.

    A server may iterate it in another thread than it called the application in, and forget to close
    it.
    """

    __slots__ = ("_context", "_now", "_result", "_step")

    def __init__(self, result: Iterable[bytes], context: WsgiContext, now: TagContext) -> None:
        self._result = result
        self._context = context
        self._now = now

    def __iter__(self) -> Iterator[bytes]:
        outer = current_context()
        set_context(self._now)
        try:
            self._step: Callable[[], bytes] = iter(self._result).__next__
        finally:
            set_context(outer)
        return self

    def __next__(self) -> bytes:
        outer = current_context()
        set_context(self._now)
        try:
            return self._step()
        finally:
            # a `with tag()` of the application may stay open over a yield
            self._now = current_context()
            set_context(outer)

    def close(self) -> None:
        outer = current_context()
        set_context(self._now)
        try:
            close = getattr(self._result, "close", None)
            if close is not None:
                close()
        finally:
            try:
                self._context.end()
            finally:
                set_context(outer)

    def __del__(self) -> None:
        self._context.end()


class _SizedResponse(_Response):
    """
    A response with a length, as the application's has.

    If it has one item, a server may take it for the whole body.
    """

    __slots__ = ()

    def __len__(self) -> int:
        return len(cast("Any", self._result))


def _request(environ: WSGIEnvironment) -> Request:
    """Return the application's own request if it has one, else one that cannot read the body."""
    request = environ.get("werkzeug.request")
    return (
        request
        if isinstance(request, Request)
        else Request(environ, populate_request=False, shallow=True)
    )
