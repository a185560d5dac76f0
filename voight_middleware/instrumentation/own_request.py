"""The metered ``request`` of a client's class, before a ``request`` of the client itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

from voight_middleware.instrumentation.request import RequestSlot, current_request


class RequestDescriptor:
    """
    A metered ``request`` on a client's class.

    It is a data descriptor, so it comes before a ``request`` that another library has put on the
    client itself. Logfire does that, and its ``request`` calls the class's as it was at that time.

    Args:
        method: The metered method.
        make: Makes a metered method from another method and its level.
    """

    def __init__(self, method: Any, make: Callable[[Any, object], Any]) -> None:
        functools.update_wrapper(self, method)
        self.__wrapped__ = method
        self._make = make

    def __get__(self, client: Any, owner: type | None = None) -> Any:
        if client is None:
            return self.__wrapped__
        function = client.__dict__.get("request")
        if function is None or self._is_passed_on(client, function):
            return MethodType(self.__wrapped__, client)
        return _OwnRequest(function, client, self._make)

    def _is_passed_on(self, client: Any, function: Any) -> bool:
        """Return whether a subclass or the client's own ``request`` passes a request on."""
        first = next(
            cls.__dict__["request"] for cls in type(client).__mro__ if "request" in cls.__dict__
        )
        slot = current_request.get()
        return first is not self or (
            isinstance(slot, RequestSlot)
            and slot.client is client
            and slot.levels[-1] == id(function)
        )

    def __set__(self, client: Any, value: Any) -> None:
        client.__dict__["request"] = value

    def __delete__(self, client: Any) -> None:
        try:
            del client.__dict__["request"]
        except KeyError:
            raise AttributeError("request") from None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)


class _OwnRequest:
    """A client's own ``request``, metered if the client is."""

    __slots__ = ("__wrapped__", "_client", "_make")

    def __init__(self, function: Any, client: Any, make: Callable[[Any, object], Any]) -> None:
        self.__wrapped__ = function
        self._client = client
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = self.__wrapped__

        def call(_client: Any, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return self._make(call, id(function))(self._client, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self.__wrapped__)
