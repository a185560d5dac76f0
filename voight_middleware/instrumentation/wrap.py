"""
The gate: where calls of the openai and anthropic SDKs are metered.

Three methods of each SDK's base client are patched, and inert unless the client was wrapped or ``instrument()`` was called.
``request`` is the metered: the owner is captured there, at call time. ``_process_response`` is the exit: once per answer that the
provider bills, even where a middleware of the SDK sends a request again. What sleeps before a retry tells of an attempt that got no answer.
They exist in every openai since 1.109 and every anthropic since 0.49. The client object, its class and what it returns stay the SDK's own.
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
from voight_middleware.instrumentation.request import ManualBlock, RequestSlot, current_request, request_here
from voight_middleware.instrumentation.sdk import SdkRequest
from voight_middleware.instrumentation.streams import call_guarded, hide_usage
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.providers import anthropic as anthropic_readers
from voight_middleware.providers.base import Routes
from voight_middleware.providers.openai import text as openai_readers
from voight_middleware.providers.openai.batch_requests import is_batch

T = TypeVar("T")

_ROUTES: Mapping[str, Routes] = {"openai": openai_readers.ROUTES, "anthropic": anthropic_readers.ROUTES}
_MARK = "_voight_metered"

_everything = False

# -- the public face -----------------------------------------------------------------------------------------------------------


def wrap(client: T) -> T:
    """
    Meter one openai or anthropic client, synchronous or not; answers the same object. Wrapping twice is the same as once.

    Copies made by ``with_options()`` and ``copy()`` are metered too. A client of httpx or httpx2 is metered as by ``metered_transport()``.

    Raises:
        TypeError: *client* is none of these.
    """
    return client if http.wrap_client(client) else _wrap(client, "wrap()", tuple(_ROUTES))


def wrap_openai(client: T) -> T:
    """
    Meter one client of the openai SDK; answers the same object.

    Raises:
        TypeError: *client* is not of the openai SDK.
    """
    return _wrap(client, "wrap_openai()", ("openai",))


def wrap_anthropic(client: T) -> T:
    """
    Meter one client of the anthropic SDK; answers the same object.

    Raises:
        TypeError: *client* is not of the anthropic SDK.
    """
    return _wrap(client, "wrap_anthropic()", ("anthropic",))


def instrument() -> None:
    """Meter every openai and anthropic client of this process, whoever creates it. SDKs that are not installed are left out."""
    global _everything
    for sdk in _ROUTES:
        if importlib.util.find_spec(sdk) is not None:
            importlib.import_module(sdk)
            base = importlib.import_module(f"{sdk}._base_client")
            for cls in (base.SyncAPIClient, base.AsyncAPIClient):
                _patch_base(cls, sdk)
                for client_class in _subclasses(cls):
                    _patch_over(client_class, cls, sdk)
    _everything = True


def uninstrument() -> None:
    """Meter nothing any more, wrapped clients included, and leave the SDKs' classes as they were."""
    global _everything
    _everything = False
    http.switch_off()
    with _patching:
        while _patches:
            cls, name, patched, original = _patches.pop()
            if cls.__dict__.get(name) is patched:
                setattr(cls, name, original)


def _wrap(client: T, function: str, sdks: tuple[str, ...]) -> T:
    for cls in type(client).__mro__:
        sdk, _, module = cls.__module__.partition(".")
        if sdk in sdks and module == "_base_client" and cls.__name__ in ("SyncAPIClient", "AsyncAPIClient"):
            _patch_base(cls, sdk)
            for client_class in type(client).__mro__:
                if client_class is not cls and issubclass(client_class, cls):
                    _patch_over(client_class, cls, sdk)
            _patch_copies(type(client))
            client.__dict__[_MARK] = True
            return client
    raise TypeError(f"{function} takes a client of the {' or '.join(sdks)} SDK, not {type(client).__module__}.{type(client).__qualname__}")


# -- patching ------------------------------------------------------------------------------------------------------------------

_patches: list[tuple[type, str, Any, Any]] = []
_patching = threading.Lock()


def _patch(cls: type, name: str, make: Callable[[Any], Any], place: Callable[[Any], Any] = lambda patched: patched) -> None:
    """Replace a method by what *make* makes of it. What stands in the class is what *place* makes of that."""
    with _patching:
        original = cls.__dict__[name]
        if any(one[0] is cls and one[1] == name for one in _patches):
            return
        patched = place(functools.wraps(original)(make(original)))
        setattr(cls, name, patched)
        _patches.append((cls, name, patched, original))


def _patch_request(cls: type, base: type, sdk: str, bound: Callable[[Any], Any]) -> None:
    """Meter the ``request`` of *cls*. Where the SDK calls it, *bound* has made a function of it."""
    metered = _sync_request if base.__name__ == "SyncAPIClient" else _async_request

    def make(original: Any, level: object) -> Any:
        return metered(original, sdk, level)

    _patch(cls, "request", lambda original: make(bound(original), cls), lambda patched: RequestDescriptor(patched, make))


def _patch_base(cls: Any, sdk: str) -> None:
    synchronous = cls.__name__ == "SyncAPIClient"
    _patch_request(cls, cls, sdk, lambda original: original)
    _patch(cls, "_process_response", _sync_exit if synchronous else _async_exit)
    for name in ("_sleep_for_retry", "_retry_request"):
        if name in cls.__dict__:  # the second one in anthropic before 0.50
            _patch(cls, name, _sync_retry if synchronous else _async_retry)
            break
    if sdk == "openai":
        call_guarded(websockets.patch_resources, _patch, _is_metered)


def _subclasses(cls: type) -> set[type]:
    found: set[type] = set(cls.__subclasses__())
    return found.union(*map(_subclasses, found))


def _patch_over(cls: type, base: type, sdk: str) -> None:
    """
    Meter a client's class that has a ``request`` of its own: another library has put it there, and it calls the base class's as that
    was then. OpenInference does so with ``OpenAI``. Where it was put there behind ours, it leads to ours.
    """
    own = cls.__dict__.get("request")
    ours = [patched.__wrapped__ for _, name, patched, _ in _patches if name == "request"]
    while own is not None:
        if isinstance(own, RequestDescriptor) or any(own is one for one in ours):
            return
        own = getattr(own, "__wrapped__", None)
    if "request" in cls.__dict__:
        _patch_request(cls, base, sdk, _bound)  # bound as Python does it, for what tells a method's client by that


def _bound(method: Any) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method.__get__(self, type(self))(*args, **kwargs)

    return call


def _is_metered(client: Any) -> bool:
    return _everything or _MARK in client.__dict__


def _patch_copies(cls: type) -> None:
    """Hand the mark on to what ``copy()`` and its aliases make. On the class: on the instance it would form a cycle with it."""
    for base in cls.__mro__:
        for name in ("copy", "with_options", "with_middleware"):
            if name in base.__dict__ and base.__module__.partition(".")[0] in _ROUTES:
                _patch(base, name, _marking)


def _marking(original: Callable[..., Any]) -> Callable[..., Any]:
    def copy(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(self, *args, **kwargs)
        if _MARK in self.__dict__:
            made.__dict__[_MARK] = True
        return made

    return copy


# -- the start of a request ----------------------------------------------------------------------------------------------------


def _is_on_its_way(place: RequestSlot, client: Any, level: object, options: Any, stream: bool) -> bool:
    """
    Return whether a request is the one in *place*, passed on by a subclass or by another library's ``request``. Its options may be a copy.

    One that comes to a method that it is in already is a request of its own, such as a middleware's.
    """
    metered = place.metered
    if not isinstance(metered, SdkRequest) or place.client is not client or level in place.levels or metered.stream != stream:
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
    passes_on = isinstance(level, int)  # a client's own: where it passes its request on must know that it comes from there

    def request(self: Any, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
        outer = current_request.get()
        if outer is not None:
            if isinstance(outer, ManualBlock):
                if outer.open:
                    return original(self, cast_to, options, stream=stream, stream_cls=stream_cls)
            elif _is_on_its_way(outer, self, level, options, stream):
                outer.levels.append(level)
                try:
                    return original(self, cast_to, options, stream=stream, stream_cls=stream_cls)
                finally:
                    outer.levels.remove(level)
        metered = _enter(self, sdk, routes, options, stream) if _everything or _MARK in self.__dict__ else None
        if metered is None and outer is None and not passes_on:
            return original(self, cast_to, options, stream=stream, stream_cls=stream_cls)
        place = RequestSlot(metered, self, level)
        current_request.set(place)  # without a metered request, too: a request inside a metered one must not end as a part of it
        try:
            if metered is None:
                return original(self, cast_to, options, stream=stream, stream_cls=stream_cls)
            try:
                metered.owner = metered.context.resolve()
            except Exception as error:
                report_internal_error(error)
            metered.start(self, options)
            for tried in (metered.options, options):
                try:
                    result = original(self, cast_to, tried, stream=stream, stream_cls=stream_cls)
                except BaseException as error:
                    if not _goes_on(metered, error):
                        raise
                else:
                    if tried is not metered.options:
                        metered.succeeded_without_usage()
                    return result
        finally:
            current_request.set(outer)
            place.leave()
            if metered is not None:
                metered.responded()

    return request


def _async_request(original: Callable[..., Any], sdk: str, level: object) -> Callable[..., Any]:
    routes = _ROUTES[sdk]
    passes_on = isinstance(level, int)  # a client's own: where it passes its request on must know that it comes from there

    async def request(self: Any, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
        outer = current_request.get()
        if outer is not None:
            if isinstance(outer, ManualBlock):
                if outer.open:
                    return await original(self, cast_to, options, stream=stream, stream_cls=stream_cls)
            elif _is_on_its_way(outer, self, level, options, stream):
                outer.levels.append(level)
                try:
                    return await original(self, cast_to, options, stream=stream, stream_cls=stream_cls)
                finally:
                    outer.levels.remove(level)
        metered = _enter(self, sdk, routes, options, stream) if _everything or _MARK in self.__dict__ else None
        if metered is None and outer is None and not passes_on:
            return await original(self, cast_to, options, stream=stream, stream_cls=stream_cls)
        place = RequestSlot(metered, self, level)
        current_request.set(place)  # without a metered request, too: a request inside a metered one must not end as a part of it
        try:
            if metered is None:
                return await original(self, cast_to, options, stream=stream, stream_cls=stream_cls)
            try:
                metered.owner = metered.context.owner() if metered.context.scope is None else await metered.context.aresolve()
            except Exception as error:
                report_internal_error(error)
            metered.start(self, options)
            for tried in (metered.options, options):
                try:
                    result = await original(self, cast_to, tried, stream=stream, stream_cls=stream_cls)
                except BaseException as error:
                    if not _goes_on(metered, error):
                        raise
                else:
                    if tried is not metered.options:
                        metered.succeeded_without_usage()
                    return result
        finally:
            current_request.set(outer)
            place.leave()
            if metered is not None:
                metered.responded()

    return request


def _enter(client: Any, sdk: str, routes: Routes, options: Any, stream: bool) -> SdkRequest | None:
    """The metered of a request that is billed, or tells of something that is; None for any other, and wherever something of ours fails."""
    try:
        endpoint = routes.find(options.method, options.url)
        if endpoint is None or not current_meter().settings.enabled:
            return None
        if endpoint.job_phase == "names" and not is_batch(options.json_data):
            return None  # nobody's file but a batch's is looked at
        return SdkRequest(client, sdk, endpoint, options, stream)
    except Exception as error:
        report_internal_error(error)
        return None


def _goes_on(metered: SdkRequest, error: BaseException) -> bool:
    """Whether a request that failed is sent once more; otherwise it is a call that has failed."""
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
            _watched(metered, kwargs, None)
            raise
        _watched(metered, kwargs, result)
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
            _watched(metered, kwargs, None)
            raise
        _watched(metered, kwargs, result)
        return result

    return _process_response


def _watched(metered: SdkRequest, kwargs: Mapping[str, Any], result: Any) -> None:
    try:
        metered.watch(kwargs["response"], result, kwargs.get("retries_taken", 0))
    except Exception as error:
        report_internal_error(error)
        if metered.asked_for_usage:
            call_guarded(hide_usage, result)


# -- retries -------------------------------------------------------------------------------------------------------------------


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
    """The SDK tries again inside its ``except`` clause: the error is the one that is being handled."""
    try:
        metered = request_here()
        if metered is not None and kwargs.get("response") is None and kwargs.get("response_headers") is None:
            metered.note_failed_attempt(sys.exc_info()[1])
    except Exception as error:
        report_internal_error(error)
