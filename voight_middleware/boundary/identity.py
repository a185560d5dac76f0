"""Getters: how an application says who its user is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

Getter = Callable[[Any], Any]
"""Called with the framework's request; answers the value, or an awaitable of it."""


class Getters(msgspec.Struct, frozen=True):
    """The getters of one application. They run at the first LLM call of a request, not before; None as an answer means "not known yet"."""

    user: Getter
    plan: Getter | None = None
    tenant: Getter | None = None
    tags: Getter | None = None
    """Answers a mapping of tags, extra keys among them."""


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
