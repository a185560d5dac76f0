"""Getters: how an application says who its user is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from voight_middleware.records.tag_values import clean_value

Getter = Callable[[Any], Any]
"""Called with the framework's request; answers the value, or an awaitable of it."""


class Getters(msgspec.Struct, frozen=True):
    """The getters of one application. They run at the first LLM call of a request, not before; None as an answer means "not known yet"."""

    user: Getter
    plan: Getter | None = None
    tenant: Getter | None = None
    tags: Getter | None = None
    """Answers a mapping of tags, extra keys among them."""


def user_from_header(name: str, *, trusted: bool = False) -> Getter:
    """
    A getter that answers what a header of the request says, for an application whose users sign in at a proxy before it::

        app.add_middleware(voight.CostTagMiddleware, user_getter=voight.header("X-User-Id", trusted=True))

    Any client can send any header. It names a user only where a proxy of yours sets it on every request, and nobody reaches the
    application past that proxy. An empty header, one that is missing, and one that was sent twice with different values name nobody.

    Args:
        name: The name of the header, in any case.
        trusted: Must be True: that your proxy sets it, and lets nobody else do so.

    Raises:
        ValueError: *trusted* is not True, or *name* is no name of a header.
    """
    if not _HEADER.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a header")
    if trusted is not True:
        raise ValueError(
            f"any client can send {name} and be billed as anybody: where a proxy of yours sets it on every request, "
            f"and removes what the client sent, write header({name!r}, trusted=True)"
        )

    def from_header(request: Any) -> str | None:
        headers = request.headers
        several = getattr(headers, "getlist", None)  # Starlette keeps what was sent twice apart, WSGI has joined it with a comma
        values = set(several(name)) if several is not None else {headers.get(name)}
        return clean_value(values.pop() or "") if len(values) == 1 else None

    return from_header


_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")


def request_user(connection: Any) -> object:
    """The id of ``request.user``, as an authentication middleware left it; None where there is none, or an anonymous one."""
    return user_id_of(connection.scope.get("user"))


def user_id_of(user: Any) -> object:
    """The id of a user object or mapping: its ``id``, ``pk``, ``user_id``, ``identity`` or ``sub``, else its ``username``."""
    if user is None or isinstance(user, str | int):
        return user
    if getattr(user, "is_authenticated", True) is False:
        return None
    for name in ("id", "pk", "user_id", "identity", "sub", "username"):
        try:
            value = user[name] if isinstance(user, Mapping) else getattr(user, name)
        except (AttributeError, KeyError, NotImplementedError):  # Starlette's BaseUser.identity is abstract
            continue
        if value is not None and not callable(value):
            return value
    return None
