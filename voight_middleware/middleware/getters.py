"""Getters: functions of the application that return its user."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from voight_middleware.lazy import lazy_pattern
from voight_middleware.records.tag_values import clean_value

Getter = Callable[[Any], Any]
"""Called with the framework's request. Returns the value, or an awaitable of it."""


class Getters(msgspec.Struct, frozen=True):
    """
    The getters of one application.

    They are called at the first LLM call of a request, not before. A result of None means "not
    known yet".
    """

    user: Getter
    plan: Getter | None = None
    tenant: Getter | None = None
    tags: Getter | None = None
    """Returns a mapping of tags, extra keys included."""


def user_from_header(name: str, *, trusted: bool = False) -> Getter:
    """
    Return a getter that reads a header, for applications whose users sign in at a proxy::

        app.add_middleware(
            voight.CostTagMiddleware,
            user_getter=voight.user_from_header("X-User-Id", trusted=True),
        )

    Any client can send any header. Use it only if your proxy sets the header on every request, and
    nobody reaches the application past that proxy. A header names nobody if it is missing, empty,
    or was sent twice with different values.

    Args:
        name: The name of the header, in any case.
        trusted: Must be True: your proxy sets the header, and removes one that the client sent.

    Raises:
        ValueError: *trusted* is not True, or *name* is not a header name.
    """
    if not _HEADER.fullmatch(name):
        raise ValueError(f"{name!r} is not a header name")
    if trusted is not True:
        raise ValueError(
            f"any client can send {name} as any user: if your proxy sets it on every request "
            f"and removes the client's own, write user_from_header({name!r}, trusted=True)"
        )

    def from_header(request: Any) -> str | None:
        headers = request.headers
        # Starlette keeps repeated headers apart; WSGI has joined them with a comma.
        getlist = getattr(headers, "getlist", None)
        values = set(getlist(name)) if getlist is not None else {headers.get(name)}
        return clean_value(values.pop() or "") if len(values) == 1 else None

    return from_header


_HEADER = lazy_pattern(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")


def request_user(connection: Any) -> object:
    """
    Return the id of ``request.user``, which an authentication middleware sets.

    Return None if there is none, or an anonymous one.
    """
    return user_id_of(connection.scope.get("user"))


def user_id_of(user: Any) -> object:
    """
    Return the id of a user object or mapping: its ``id``, ``pk``, ``user_id``, ``identity`` or
    ``sub``.

    If it has none of these, return its ``username``.
    """
    if user is None or isinstance(user, str | int):
        return user
    if getattr(user, "is_authenticated", True) is False:
        return None
    for name in ("id", "pk", "user_id", "identity", "sub", "username"):
        try:
            value = user[name] if isinstance(user, Mapping) else getattr(user, name)
        except (AttributeError, KeyError, NotImplementedError):
            # Starlette's BaseUser.identity is abstract
            continue
        if value is not None and not callable(value):
            return value
    return None
