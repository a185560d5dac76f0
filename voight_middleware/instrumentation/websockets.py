"""
WebSockets of the openai SDK: responses, realtime and live connections. They never call ``request``.

These methods are patched. They exist since openai 1.109:

- ``connect()`` of a resource, which knows the client.
- ``enter()`` of its manager, where the owner is captured.
- ``recv_bytes()`` of the connection, which every message passes once, however it is read.
- ``send()``, ``send_raw()`` and ``close()`` of the connection.

Nothing is imported for it. A resource class is patched when the application makes its first
instance.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from voight_middleware.context.context import TagContext, current_context
from voight_middleware.diagnostics import report_internal_error
from voight_middleware.instrumentation.openai_socket import REALTIME, RESPONSES, Socket
from voight_middleware.instrumentation.request import aresolve_owner, resolve_owner
from voight_middleware.instrumentation.streams import call_guarded
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.providers.base import text_or_none
from voight_middleware.providers.hosts import billing_provider, platform
from voight_middleware.records.tags import Owner

Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]
Patch = Callable[[type, str, Wrapper], None]
IsMetered = Callable[[Any], bool]

_OPENING = "_voight_opening"
_SOCKET = "_voight_socket"


def patch_resources(patch: Patch, is_metered: IsMetered) -> None:
    """
    Meter the connections of metered openai clients.

    Args:
        patch: Replaces a method until ``uninstrument()``; a second time does nothing.
        is_metered: Returns whether a client is metered.
    """

    def patch_connect(cls: type) -> None:
        _patch_each(patch, cls, {"connect": functools.partial(_connecting, patch, is_metered)})

    module = importlib.import_module("openai._resource")
    for base in (module.SyncAPIResource, module.AsyncAPIResource):
        patch(base, "__init__", functools.partial(_making, patch_connect))
        for cls in base.__subclasses__():
            patch_connect(cls)


def _patch_each(patch: Patch, cls: type, wrappers: Mapping[str, Wrapper]) -> None:
    """Patch each method on the class that defines it."""
    for name, wrapper in wrappers.items():
        definer = next((base for base in cls.__mro__ if name in base.__dict__), None)
        if definer is not None:
            patch(definer, name, wrapper)


def _making(
    patch_connect: Callable[[type], None], original: Callable[..., Any]
) -> Callable[..., Any]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        call_guarded(patch_connect, type(self))

    return __init__


# -- opening ---------------------------------------------------------------------------------------


class _Opening:
    """A connection that is being opened: the arguments of ``connect()`` and its context."""

    def __init__(self, resource: Any, options: Mapping[str, Any], patch: Patch) -> None:
        self._context = current_context()
        self._client = resource._client
        self._kind = type(resource).__name__.removeprefix("Async")
        self._model = text_or_none(options.get("model"))
        self._session = text_or_none(options.get("session_id"))
        self._patch = patch

    def attach(self, connection: Any, context: TagContext, owner: Owner) -> None:
        """Meter an open connection. Its owner is that of entering it, or else of ``connect()``."""
        if owner.tags.user_id is None:
            context, owner = self._context, self._context.owner()
        _patch_each(self._patch, type(connection), _wrappers(type(connection)))
        url = getattr(self._client, "websocket_base_url", None)
        host = (
            urlsplit(str(url)).hostname if url is not None else None
        ) or self._client._base_url.host
        connection.__dict__[_SOCKET] = Socket(
            host=host,
            provider=billing_provider(host) or platform(type(self._client)) or "openai",
            endpoint=RESPONSES if self._kind == "Responses" else REALTIME,
            creates=self._kind in ("Responses", "Realtime"),
            model=self._model,
            session=self._session,
            context=context,
            owner=owner,
        )


def _connecting(
    patch: Patch, is_metered: IsMetered, original: Callable[..., Any]
) -> Callable[..., Any]:
    def open_with(resource: Any, manager: Any, options: Mapping[str, Any]) -> None:
        if is_metered(resource._client) and current_meter().settings.enabled:
            _patch_each(patch, type(manager), {"__enter__": _entering, "__aenter__": _aentering})
            _patch_each(
                patch,
                type(manager),
                {"enter": _aentering if hasattr(manager, "__aenter__") else _entering},
            )
            manager.__dict__[_OPENING] = _Opening(resource, options, patch)

    def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        manager = original(self, *args, **kwargs)
        call_guarded(open_with, self, manager, kwargs)
        return manager

    return connect


def _entering(original: Callable[..., Any]) -> Callable[..., Any]:
    def enter(self: Any) -> Any:
        opening = self.__dict__.get(_OPENING)
        if opening is None:
            return original(self)
        context = current_context()
        owner = resolve_owner(context)
        connection = original(self)
        call_guarded(opening.attach, connection, context, owner)
        return connection

    return enter


def _aentering(original: Callable[..., Any]) -> Callable[..., Any]:
    async def enter(self: Any) -> Any:
        opening = self.__dict__.get(_OPENING)
        if opening is None:
            return await original(self)
        context = current_context()
        owner = await aresolve_owner(context)
        connection = await original(self)
        call_guarded(opening.attach, connection, context, owner)
        return connection

    return enter


# -- messages --------------------------------------------------------------------------------------


def _wrappers(cls: Any) -> Mapping[str, Wrapper]:
    """
    Return the wrappers of a connection's methods.

    If ``send`` calls ``send_raw`` (openai 3.52), only the latter is wrapped.
    """
    asynchronous = inspect.iscoroutinefunction(inspect.unwrap(cls.recv_bytes))
    sending = _asending if asynchronous else _sending
    wrappers = {
        "recv_bytes": _areceiving if asynchronous else _receiving,
        "send_raw": sending,
        "close": _aclosing if asynchronous else _closing,
    }
    if "send_raw" not in inspect.unwrap(cls.send).__code__.co_names:
        wrappers["send"] = sending
    return wrappers


def _receiving(original: Callable[..., Any]) -> Callable[..., Any]:
    def recv_bytes(self: Any, *args: Any, **kwargs: Any) -> Any:
        socket = self.__dict__.get(_SOCKET)
        if socket is None:
            return original(self, *args, **kwargs)
        try:
            data = original(self, *args, **kwargs)
        except BaseException as error:
            _lost(socket, error)
            raise
        call_guarded(socket.received, data)
        return data

    return recv_bytes


def _areceiving(original: Callable[..., Any]) -> Callable[..., Any]:
    async def recv_bytes(self: Any, *args: Any, **kwargs: Any) -> Any:
        socket = self.__dict__.get(_SOCKET)
        if socket is None:
            return await original(self, *args, **kwargs)
        try:
            data = await original(self, *args, **kwargs)
        except BaseException as error:
            _lost(socket, error)
            raise
        call_guarded(socket.received, data)
        return data

    return recv_bytes


def _lost(socket: Socket, error: BaseException) -> None:
    """End the calls of a closed connection. None of them continues after a reconnection."""
    if type(error).__name__.startswith("ConnectionClosed"):
        call_guarded(socket.end, error)


def _sending(original: Callable[..., Any]) -> Callable[..., Any]:
    def send(self: Any, event: Any, *args: Any, **kwargs: Any) -> Any:
        socket = self.__dict__.get(_SOCKET)
        if socket is None:
            return original(self, event, *args, **kwargs)
        context = current_context()
        if context is not socket.bound_context:
            try:
                socket.bind(context, context.resolve())
            except Exception as error:
                report_internal_error(error)
        call_guarded(socket.sent, event)
        try:
            return original(self, event, *args, **kwargs)
        except BaseException:
            call_guarded(socket.unsent, event)
            raise

    return send


def _asending(original: Callable[..., Any]) -> Callable[..., Any]:
    async def send(self: Any, event: Any, *args: Any, **kwargs: Any) -> Any:
        socket = self.__dict__.get(_SOCKET)
        if socket is None:
            return await original(self, event, *args, **kwargs)
        context = current_context()
        if context is not socket.bound_context:
            try:
                socket.bind(context, await context.aresolve())
            except Exception as error:
                report_internal_error(error)
        call_guarded(socket.sent, event)
        try:
            return await original(self, event, *args, **kwargs)
        except BaseException:
            call_guarded(socket.unsent, event)
            raise

    return send


def _closing(original: Callable[..., Any]) -> Callable[..., Any]:
    def close(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        finally:
            _closed(self)

    return close


def _aclosing(original: Callable[..., Any]) -> Callable[..., Any]:
    async def close(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await original(self, *args, **kwargs)
        finally:
            _closed(self)

    return close


def _closed(connection: Any) -> None:
    socket = connection.__dict__.get(_SOCKET)
    if socket is not None:
        call_guarded(socket.end)
