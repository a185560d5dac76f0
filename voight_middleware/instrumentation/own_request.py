"""The place of the gate on a client's class, before whatever stands on the client itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

from voight_middleware.instrumentation.request import RequestSlot, current_request


class RequestDescriptor:
    """
    A metered ``request`` on a client's class.

    It is a data descriptor, so it comes before a ``request`` that another library has put on the client itself. Logfire does so, and its
    ``request`` leads to the class's as it was then.

    Args:
        method: The metered method.
        make: Makes a metered method of another one, and of what tells the two apart.
    """

    def __init__(self, method: Any, make: Callable[[Any, object], Any]) -> None:
        functools.update_wrapper(self, method)
        self.__wrapped__ = method
        self._make = make

    def __get__(self, client: Any, owner: type | None = None) -> Any:
        if client is None:
            return self.__wrapped__
        own = client.__dict__.get("request")
        if own is None or self._is_passed_on(client, own):
            return MethodType(self.__wrapped__, client)
        return _OwnRequest(own, client, self._make)

    def _is_passed_on(self, client: Any, own: Any) -> bool:
        """Return whether this is ``super().request`` inside a subclass's ``request`` or the client's own: it goes past the client."""
        first = next(cls.__dict__["request"] for cls in type(client).__mro__ if "request" in cls.__dict__)
        here = current_request.get()
        return first is not self or (isinstance(here, RequestSlot) and here.client is client and here.levels[-1] == id(own))

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
    """A client's own ``request`` as *own* is, but metered if the client is."""

    __slots__ = ("__wrapped__", "_client", "_make")

    def __init__(self, own: Any, client: Any, make: Callable[[Any, object], Any]) -> None:
        self.__wrapped__ = own
        self._client = client
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = self.__wrapped__

        def call(_client: Any, *args: Any, **kwargs: Any) -> Any:
            return own(*args, **kwargs)

        return self._make(call, id(own))(self._client, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self.__wrapped__)
