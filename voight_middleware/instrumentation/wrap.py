"""
Instrumentation of the openai and anthropic SDKs: ``wrap()`` and ``instrument()``.

Three methods of each SDK's base client are patched. They do nothing unless the client was wrapped
or ``instrument()`` was called:

- ``request`` starts a metered request. The owner is captured there, at call time.
- ``_process_response`` meters a response. It runs once per billed response, even if a middleware
  of the SDK sends a request again.
- The method that sleeps before a retry shows an attempt that got no response.

They exist in every openai since 1.109 and every anthropic since 0.49. The client object, its class
and its return values stay the SDK's own.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from voight_middleware.diagnostics import report_internal_error
from voight_middleware.instrumentation import http, websockets
from voight_middleware.instrumentation.own_request import RequestDescriptor
from voight_middleware.instrumentation.request import (
    ManualBlock,
    RequestSlot,
    aresolve_owner,
    current_request,
    request_here,
    resolve_owner,
)
from voight_middleware.instrumentation.sdk import SdkRequest, start_request
from voight_middleware.instrumentation.streams import call_guarded, hide_usage
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.providers import anthropic
from voight_middleware.providers.base import Routes
from voight_middleware.providers.openai import text as openai
from voight_middleware.providers.openai.batch_requests import is_batch

T = TypeVar("T")

_ROUTES: Mapping[str, Routes] = {"openai": openai.ROUTES, "anthropic": anthropic.ROUTES}
_MARK = "_voight_metered"

_all_clients = False

# -- the public face -------------------------------------------------------------------------------


def wrap(client: T) -> T:
    """
    Meter one openai or anthropic client, synchronous or asynchronous. Return the same object.

    Wrapping twice has the same effect as wrapping once. Copies made by ``with_options()`` and
    ``copy()`` are metered too. A client of httpx or httpx2 is metered as by
    ``metered_transport()``.

    Raises:
        TypeError: *client* is of none of these kinds.
    """
    return client if http.wrap_client(client) else _wrap(client, "wrap()", tuple(_ROUTES))


def wrap_openai(client: T) -> T:
    """
    Meter one client of the openai SDK. Return the same object.

    Raises:
        TypeError: *client* is not of the openai SDK.
    """
    return _wrap(client, "wrap_openai()", ("openai",))


def wrap_anthropic(client: T) -> T:
    """
    Meter one client of the anthropic SDK. Return the same object.

    Raises:
        TypeError: *client* is not of the anthropic SDK.
    """
    return _wrap(client, "wrap_anthropic()", ("anthropic",))


def instrument() -> None:
    """Meter every openai and anthropic client of this process, if the SDK is installed."""
    global _all_clients
    for sdk in _ROUTES:
        if importlib.util.find_spec(sdk) is not None:
            importlib.import_module(sdk)
            base = importlib.import_module(f"{sdk}._base_client")
            for cls in (base.SyncAPIClient, base.AsyncAPIClient):
                _patch_base(cls, sdk)
                for client_class in _subclasses(cls):
                    _patch_over(client_class, cls, sdk)
    _all_clients = True


def uninstrument() -> None:
    """Stop metering, wrapped clients included, and restore the SDKs' classes."""
    global _all_clients
    _all_clients = False
    http.switch_off()
    with _patching:
        while _patches:
            cls, name, patched, original = _patches.pop()
            if cls.__dict__.get(name) is patched:
                setattr(cls, name, original)


def _wrap(client: T, function: str, sdks: tuple[str, ...]) -> T:
    for cls in type(client).__mro__:
        sdk, _, module = cls.__module__.partition(".")
        if (
            sdk in sdks
            and module == "_base_client"
            and cls.__name__ in ("SyncAPIClient", "AsyncAPIClient")
        ):
            _patch_base(cls, sdk)
            for client_class in type(client).__mro__:
                if client_class is not cls and issubclass(client_class, cls):
                    _patch_over(client_class, cls, sdk)
            _patch_copies(type(client))
            client.__dict__[_MARK] = True
            return client
    raise TypeError(
        f"{function} takes a client of the {' or '.join(sdks)} SDK, not "
        f"{type(client).__module__}.{type(client).__qualname__}"
    )


# -- patching --------------------------------------------------------------------------------------

_patches: list[tuple[type, str, Any, Any]] = []
_patching = threading.Lock()


def _patch(
    cls: type,
    name: str,
    make: Callable[[Any], Any],
    describe: Callable[[Any], Any] = lambda patched: patched,
) -> None:
    """Replace a method by the result of *make*. *describe* makes the class attribute from that."""
    with _patching:
        original = cls.__dict__[name]
        if any(patch[0] is cls and patch[1] == name for patch in _patches):
            return
        patched = describe(functools.wraps(original)(make(original)))
        setattr(cls, name, patched)
        _patches.append((cls, name, patched, original))


def _patch_request(cls: type, base: type, sdk: str, bound: Callable[[Any], Any]) -> None:
    """Meter the ``request`` of *cls*. *bound* adapts the original to be called as a function."""
    metered = _sync_request if base.__name__ == "SyncAPIClient" else _async_request

    def make(original: Any, level: object) -> Any:
        return metered(original, sdk, level)

    _patch(
        cls,
        "request",
        lambda original: make(bound(original), cls),
        lambda patched: RequestDescriptor(patched, make),
    )


def _patch_base(cls: Any, sdk: str) -> None:
    synchronous = cls.__name__ == "SyncAPIClient"
    _patch_request(cls, cls, sdk, lambda original: original)
    _patch(cls, "_process_response", _sync_exit if synchronous else _async_exit)
    for name in ("_sleep_for_retry", "_retry_request"):
        if name in cls.__dict__:  # anthropic before 0.50 has only the second
            _patch(cls, name, _sync_retry if synchronous else _async_retry)
            break
    if sdk == "openai":
        call_guarded(websockets.patch_resources, _patch, _is_metered)


def _subclasses(cls: type) -> set[type]:
    classes: set[type] = set(cls.__subclasses__())
    return classes.union(*map(_subclasses, classes))


def _patch_over(cls: type, base: type, sdk: str) -> None:
    """
    Meter a client class whose ``request`` another library has replaced (OpenInference does, on
    ``OpenAI``).

    Such a ``request`` calls the base class's as it was at that time. If it was placed after our
    patch, it already leads to our ``request``, and nothing is patched.
    """
    method = cls.__dict__.get("request")
    ours = [patched.__wrapped__ for _, name, patched, _ in _patches if name == "request"]
    while method is not None:
        if isinstance(method, RequestDescriptor) or any(method is function for function in ours):
            return
        method = getattr(method, "__wrapped__", None)
    if "request" in cls.__dict__:
        # bound as Python does it, for libraries that find the client through the binding
        _patch_request(cls, base, sdk, _bound)


def _bound(method: Any) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method.__get__(self, type(self))(*args, **kwargs)

    return call


def _is_metered(client: Any) -> bool:
    return _all_clients or _MARK in client.__dict__


def _patch_copies(cls: type) -> None:
    """
    Copy the mark to clients that ``copy()`` and its aliases make.

    The methods are patched on the class. On the instance they would form a reference cycle with it.
    """
    for base in cls.__mro__:
        for name in ("copy", "with_options", "with_middleware"):
            if name in base.__dict__ and base.__module__.partition(".")[0] in _ROUTES:
                _patch(base, name, _marking)


def _marking(original: Callable[..., Any]) -> Callable[..., Any]:
    def copy(self: Any, *args: Any, **kwargs: Any) -> Any:
        client = original(self, *args, **kwargs)
        if _MARK in self.__dict__:
            client.__dict__[_MARK] = True
        return client

    return copy


# -- the start of a request ------------------------------------------------------------------------


def _is_passed_on(
    slot: RequestSlot, client: Any, level: object, options: Any, stream: bool
) -> bool:
    """
    Return whether a request is the one in *slot*, passed on by a subclass's or another library's
    ``request``. Its options may be a copy.

    A request that enters a method that it is already in is a new one, such as a middleware's.
    """
    metered = slot.metered
    if (
        not isinstance(metered, SdkRequest)
        or slot.client is not client
        or level in slot.levels
        or metered.stream != stream
    ):
        return False
    known = metered.options
    if options is known:
        return True
    if options.method != known.method or options.url != known.url:
        return False
    metered.body = options.json_data  # the body that is sent
    return True


def _sync_request(original: Callable[..., Any], sdk: str, level: object) -> Callable[..., Any]:
    routes = _ROUTES[sdk]
    # A client's own ``request`` needs a slot, so that the class's knows that the request comes from
    # there.
    is_client_own = isinstance(level, int)

    def request(
        self: Any, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None
    ) -> Any:
        outer = current_request.get()
        if outer is not None:
            if isinstance(outer, ManualBlock):
                if outer.open:
                    return original(self, cast_to, options, stream=stream, stream_cls=stream_cls)
            elif _is_passed_on(outer, self, level, options, stream):
                levels, outer.levels = outer.levels, (*outer.levels, level)
                try:
                    return original(self, cast_to, options, stream=stream, stream_cls=stream_cls)
                finally:
                    outer.levels = levels
        metered = (
            _enter(self, sdk, routes, options, stream)
            if _all_clients or _MARK in self.__dict__
            else None
        )
        if metered is None and outer is None and not is_client_own:
            return original(self, cast_to, options, stream=stream, stream_cls=stream_cls)
        # A request that is not metered gets a slot too: inside a metered one, it must not end as a
        # part of it.
        slot = RequestSlot(metered, self, level)
        slot.enter()
        try:
            if metered is None:
                return original(self, cast_to, options, stream=stream, stream_cls=stream_cls)
            metered.owner = resolve_owner(metered.context)
            if current_meter().observers.present:
                metered.start(self, options)
            try:
                return original(
                    self, cast_to, metered.options, stream=stream, stream_cls=stream_cls
                )
            except BaseException as error:
                if not _retries_without_usage(metered, error):
                    raise
            try:
                result = original(self, cast_to, options, stream=stream, stream_cls=stream_cls)
            except BaseException as error:
                call_guarded(metered.fail, error)
                raise
            metered.succeeded_without_usage()
            return result
        finally:
            slot.leave()

    return request


def _async_request(original: Callable[..., Any], sdk: str, level: object) -> Callable[..., Any]:
    routes = _ROUTES[sdk]
    is_client_own = isinstance(level, int)

    async def request(
        self: Any, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None
    ) -> Any:
        outer = current_request.get()
        if outer is not None:
            if isinstance(outer, ManualBlock):
                if outer.open:
                    return await original(
                        self, cast_to, options, stream=stream, stream_cls=stream_cls
                    )
            elif _is_passed_on(outer, self, level, options, stream):
                levels, outer.levels = outer.levels, (*outer.levels, level)
                try:
                    return await original(
                        self, cast_to, options, stream=stream, stream_cls=stream_cls
                    )
                finally:
                    outer.levels = levels
        metered = (
            _enter(self, sdk, routes, options, stream)
            if _all_clients or _MARK in self.__dict__
            else None
        )
        if metered is None and outer is None and not is_client_own:
            return await original(self, cast_to, options, stream=stream, stream_cls=stream_cls)
        slot = RequestSlot(metered, self, level)
        slot.enter()
        try:
            if metered is None:
                return await original(self, cast_to, options, stream=stream, stream_cls=stream_cls)
            metered.owner = await aresolve_owner(metered.context)
            if current_meter().observers.present:
                metered.start(self, options)
            try:
                return await original(
                    self, cast_to, metered.options, stream=stream, stream_cls=stream_cls
                )
            except BaseException as error:
                if not _retries_without_usage(metered, error):
                    raise
            try:
                result = await original(
                    self, cast_to, options, stream=stream, stream_cls=stream_cls
                )
            except BaseException as error:
                call_guarded(metered.fail, error)
                raise
            metered.succeeded_without_usage()
            return result
        finally:
            slot.leave()

    return request


def _enter(client: Any, sdk: str, routes: Routes, options: Any, stream: bool) -> SdkRequest | None:
    """Return the metered request of a known endpoint; None for others, or on an error of ours."""
    try:
        endpoint = routes.find(options.method, options.url)
        if endpoint is None or not current_meter().settings.enabled:
            return None
        if endpoint.job_phase == "upload" and not is_batch(options.json_data):
            return None  # only a batch's file is read
        return start_request(client, sdk, endpoint, options, stream)
    except Exception as error:
        report_internal_error(error)
        return None


def _retries_without_usage(metered: SdkRequest, error: BaseException) -> bool:
    """Return whether a failed request is sent once more. If not, write its call."""
    try:
        if metered.may_go_without_usage(error):
            return True
        metered.fail(error)
    except Exception as ours:
        report_internal_error(ours)
    return False


def _sync_exit(original: Callable[..., Any]) -> Callable[..., Any]:
    def _process_response(self: Any, **kwargs: Any) -> Any:
        metered = request_here()
        if not isinstance(metered, SdkRequest):
            return original(self, **kwargs)
        try:
            result = original(self, **kwargs)
        except BaseException:
            _watch(metered, kwargs, None)
            raise
        _watch(metered, kwargs, result)
        return result

    return _process_response


def _async_exit(original: Callable[..., Any]) -> Callable[..., Any]:
    async def _process_response(self: Any, **kwargs: Any) -> Any:
        metered = request_here()
        if not isinstance(metered, SdkRequest):
            return await original(self, **kwargs)
        try:
            result = await original(self, **kwargs)
        except BaseException:
            _watch(metered, kwargs, None)
            raise
        _watch(metered, kwargs, result)
        return result

    return _process_response


def _watch(metered: SdkRequest, kwargs: Mapping[str, Any], result: Any) -> None:
    try:
        metered.watch(kwargs["response"], result, kwargs.get("retries_taken", 0))
    except Exception as error:
        report_internal_error(error)
        if metered.asked_for_usage:
            call_guarded(hide_usage, result)


# -- retries ---------------------------------------------------------------------------------------


def _sync_retry(original: Callable[..., Any]) -> Callable[..., Any]:
    def retry(self: Any, *args: Any, **kwargs: Any) -> Any:
        _attempt_failed(kwargs)
        return original(self, *args, **kwargs)

    return retry


def _async_retry(original: Callable[..., Any]) -> Callable[..., Any]:
    async def retry(self: Any, *args: Any, **kwargs: Any) -> Any:
        _attempt_failed(kwargs)
        return await original(self, *args, **kwargs)

    return retry


def _attempt_failed(kwargs: Mapping[str, Any]) -> None:
    """Note a failed attempt. The SDK retries inside its ``except`` clause: the error is current."""
    try:
        metered = request_here()
        if (
            metered is not None
            and kwargs.get("response") is None
            and kwargs.get("response_headers") is None
        ):
            metered.note_failed_attempt(sys.exc_info()[1])
    except Exception as error:
        report_internal_error(error)
